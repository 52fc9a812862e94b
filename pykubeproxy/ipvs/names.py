"""Names of the ipvs backend: the dummy device, schedulers, the sets with comments, the chains."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from msgspec import Struct

from pykubeproxy.iptables.names import FORWARD, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES
from pykubeproxy.model.kinds import Family

__all__ = [
    "CHAINS",
    "CLUSTER_IP",
    "DEVICE",
    "EXTERNAL_IP",
    "EXTERNAL_IP_LOCAL",
    "FILTER",
    "HEALTH_CHECK_NODE_PORT",
    "IPVS_IPS",
    "LOAD_BALANCER",
    "LOAD_BALANCER_FW",
    "LOAD_BALANCER_LOCAL",
    "LOAD_BALANCER_SOURCE_CIDR",
    "LOAD_BALANCER_SOURCE_IP",
    "LOOP_BACK",
    "MAX_SET_NAME",
    "NODE_PORT",
    "NODE_PORT_LOCAL_SCTP",
    "NODE_PORT_LOCAL_TCP",
    "NODE_PORT_LOCAL_UDP",
    "NODE_PORT_SCTP",
    "NODE_PORT_TCP",
    "NODE_PORT_UDP",
    "OUT_FILTER",
    "SCHEDULERS",
    "SETS",
    "SOURCE_RANGES_FIREWALL",
    "SetKind",
    "set_name",
]

DEVICE = "kube-ipvs0"
"""The dummy device that holds the addresses of virtual servers; never brought up."""

SCHEDULERS = frozenset(
    {"dh", "fo", "lblc", "lblcr", "lc", "mh", "nq", "ovf", "rr", "sed", "sh", "twos", "wlc", "wrr"}
)
"""Every scheduler of Linux up to 6.18; which of them a node has is another question."""

MAX_SET_NAME = 31
"""IPSET_MAXNAMELEN of linux/netfilter/ipset/ip_set.h, without the final NUL."""


# --- sets ---

LOOP_BACK = "KUBE-LOOP-BACK"
CLUSTER_IP = "KUBE-CLUSTER-IP"
EXTERNAL_IP = "KUBE-EXTERNAL-IP"
EXTERNAL_IP_LOCAL = "KUBE-EXTERNAL-IP-LOCAL"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
"""A set, and the nat chain for what is in it."""
LOAD_BALANCER_LOCAL = "KUBE-LOAD-BALANCER-LOCAL"
LOAD_BALANCER_FW = "KUBE-LOAD-BALANCER-FW"
LOAD_BALANCER_SOURCE_IP = "KUBE-LOAD-BALANCER-SOURCE-IP"
LOAD_BALANCER_SOURCE_CIDR = "KUBE-LOAD-BALANCER-SOURCE-CIDR"
NODE_PORT_TCP = "KUBE-NODE-PORT-TCP"
NODE_PORT_LOCAL_TCP = "KUBE-NODE-PORT-LOCAL-TCP"
NODE_PORT_UDP = "KUBE-NODE-PORT-UDP"
NODE_PORT_LOCAL_UDP = "KUBE-NODE-PORT-LOCAL-UDP"
NODE_PORT_SCTP = "KUBE-NODE-PORT-SCTP-HASH"
NODE_PORT_LOCAL_SCTP = "KUBE-NODE-PORT-LOCAL-SCTP-HASH"
HEALTH_CHECK_NODE_PORT = "KUBE-HEALTH-CHECK-NODE-PORT"
IPVS_IPS = "KUBE-IPVS-IPS"


class SetKind(Struct, frozen=True):
    """One of the sets: its name in IPv4, its type, and what rules that match it say about it."""

    name: str
    type: str
    comment: str


def _kinds(*rows: tuple[str, str, str]) -> Mapping[str, SetKind]:
    return MappingProxyType({name: SetKind(name, kind, comment) for name, kind, comment in rows})


_SERVICE = "Kubernetes service"
_LB = "Kubernetes service load balancer"
_NODE_PORT = "Kubernetes nodeport"

SETS = _kinds(
    (
        LOOP_BACK,
        "hash:ip,port,ip",
        "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    ),
    (CLUSTER_IP, "hash:ip,port", f"{_SERVICE} cluster ip + port for masquerade purpose"),
    (
        EXTERNAL_IP,
        "hash:ip,port",
        f"{_SERVICE} external ip + port for masquerade and filter purpose",
    ),
    (
        EXTERNAL_IP_LOCAL,
        "hash:ip,port",
        f"{_SERVICE} external ip + port with externalTrafficPolicy=local",
    ),
    (LOAD_BALANCER, "hash:ip,port", f"{_SERVICE} lb portal"),
    (LOAD_BALANCER_LOCAL, "hash:ip,port", f"{_LB} ip + port with externalTrafficPolicy=local"),
    (
        LOAD_BALANCER_FW,
        "hash:ip,port",
        f"{_LB} ip + port for load balancer with sourceRange",
    ),
    (
        LOAD_BALANCER_SOURCE_IP,
        "hash:ip,port,ip",
        f"{_LB} ip + port + source IP for packet filter purpose",
    ),
    (
        LOAD_BALANCER_SOURCE_CIDR,
        "hash:ip,port,net",
        f"{_LB} ip + port + source cidr for packet filter purpose",
    ),
    (NODE_PORT_TCP, "bitmap:port", f"{_NODE_PORT} TCP port for masquerade purpose"),
    (
        NODE_PORT_LOCAL_TCP,
        "bitmap:port",
        f"{_NODE_PORT} TCP port with externalTrafficPolicy=local",
    ),
    (NODE_PORT_UDP, "bitmap:port", f"{_NODE_PORT} UDP port for masquerade purpose"),
    (
        NODE_PORT_LOCAL_UDP,
        "bitmap:port",
        f"{_NODE_PORT} UDP port with externalTrafficPolicy=local",
    ),
    (
        NODE_PORT_SCTP,
        "hash:ip,port",
        f"{_NODE_PORT} SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    (
        NODE_PORT_LOCAL_SCTP,
        "hash:ip,port",
        f"{_NODE_PORT} SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    (HEALTH_CHECK_NODE_PORT, "bitmap:port", "Kubernetes health check node port"),
    (IPVS_IPS, "hash:ip", "Addresses on the ipvs interface"),
)
"""All sets, by their IPv4 name."""


def set_name(name: str, family: Family) -> str:
    """Return the name of a set in *family*; *name* is the one in IPv4."""
    if family is Family.IPV4:
        return name
    return f"KUBE-6-{name.removeprefix('KUBE-')}"[:MAX_SET_NAME]


# --- chains ---

NODE_PORT = "KUBE-NODE-PORT"
"""Singular; iptables mode's is KUBE-NODEPORTS."""
SOURCE_RANGES_FIREWALL = "KUBE-SOURCE-RANGES-FIREWALL"
FILTER = "KUBE-IPVS-FILTER"
OUT_FILTER = "KUBE-IPVS-OUT-FILTER"

CHAINS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "nat": (SERVICES, POSTROUTING, NODE_PORT, LOAD_BALANCER, MARK_MASQ),
        "filter": (
            FORWARD,
            NODE_PORT,
            PROXY_FIREWALL,
            SOURCE_RANGES_FIREWALL,
            FILTER,
            OUT_FILTER,
        ),
    }
)
"""All chains of this mode, per table; some of them iptables mode fills as well."""
