"""Who is who in the laboratory: the addresses and names that tests, demo and benchmarks share.

::

    client 192.0.2.100 ──┐                       ┌── veth-p1 ── p1 10.244.0.11
                         ├── underlay ── node ───┼── veth-p2 ── p2 10.244.0.12
    far    192.0.2.11  ──┘   192.0.2.0/24  .10   └── veth-p3 ── p3 10.244.0.13
     ├── veth-r1 ── r1 10.244.1.11
     └── veth-r2 ── r2 10.244.1.12

IPv6 runs beside it with the same last number: 2001:db8:2::/64 on the underlay, fd00:244:0::/48 and
fd00:244:1::/48 for pods, fd00:96::/108 for cluster IPs, 2001:db8:113::/64 for external addresses.
"""

from __future__ import annotations

from ipaddress import ip_address

__all__ = [
    "BOUND_VIP",
    "CLUSTER_CIDR",
    "EXTERNAL_CIDR",
    "LOCAL_PODS",
    "NODE_NAME",
    "PODS",
    "POD_CIDR",
    "REMOTE_NODE_NAME",
    "REMOTE_PODS",
    "ROLES",
    "SERVICE_CIDR",
    "UPLINK",
    "address_of",
    "owner_of",
]

NODE_NAME = "node"
REMOTE_NODE_NAME = "far"
UPLINK = "eth0"

LOCAL_PODS = ("p1", "p2", "p3")
REMOTE_PODS = ("r1", "r2")
PODS = LOCAL_PODS + REMOTE_PODS
ROLES = ("node", "far", "client", *PODS)

CLUSTER_CIDR = {4: "10.244.0.0/16", 6: "fd00:244::/31"}
POD_CIDR = {4: "10.244.0.0/24", 6: "fd00:244::/48"}
SERVICE_CIDR = {4: "10.96.0.0/12", 6: "fd00:96::/108"}
EXTERNAL_CIDR = {4: "203.0.113.0/24", 6: "2001:db8:113::/64"}
# An external address that the node itself carries on lo, as behind some cloud balancers.
BOUND_VIP = {4: "203.0.113.250", 6: "2001:db8:113::250"}

_ADDRESSES: dict[str, dict[int, str]] = {
    "gateway": {4: "192.0.2.1", 6: "2001:db8:2::1"},
    "node": {4: "192.0.2.10", 6: "2001:db8:2::10"},
    "far": {4: "192.0.2.11", 6: "2001:db8:2::11"},
    "client": {4: "192.0.2.100", 6: "2001:db8:2::100"},
    **{f"p{n}": {4: f"10.244.0.1{n}", 6: f"fd00:244::1{n}"} for n in (1, 2, 3)},
    **{f"r{n}": {4: f"10.244.1.1{n}", 6: f"fd00:244:1::1{n}"} for n in (1, 2)},
}
_OWNERS = {
    ip_address(address): role for role, both in _ADDRESSES.items() for address in both.values()
} | {ip_address(address): "node" for address in ("127.0.0.1", "::1", *BOUND_VIP.values())}


def address_of(role: str, version: int) -> str:
    """The address of *role* in IP version 4 or 6."""
    return _ADDRESSES[role][version]


def owner_of(address: str) -> str:
    """The role an address belongs to, or the address itself where it is nobody's."""
    return _OWNERS.get(ip_address(address), address)
