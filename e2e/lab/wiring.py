"""The commands that build the laboratory's network, as text for ``ip -batch``.

Every neighbour is static and every IPv6 address skips duplicate detection, so the first packet
already arrives and nothing depends on timing.
"""

from __future__ import annotations

from collections.abc import Callable

from e2e.lab.addresses import (
    BOUND_VIP,
    EXTERNAL_CIDR,
    LOCAL_PODS,
    PODS,
    REMOTE_PODS,
    SERVICE_CIDR,
    UPLINK,
    address_of,
)

__all__ = ["NAMESPACES", "SYSCTLS", "SYSCTLS_IF_PRESENT", "links", "node_sysctls", "rules", "setup"]

UNDERLAY = ("node", "far", "client")
NAMESPACES = ("net", *UNDERLAY, *PODS)

_UNDERLAY_MAC = {"gateway": 1, "node": 2, "far": 3, "client": 4}
_POD_MAC = {pod: 0x10 + index for index, pod in enumerate(PODS)}

# Written in every namespace before there is any interface in it.
SYSCTLS = {
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/conf/all/accept_redirects": "0",
    "net/ipv6/conf/default/accept_redirects": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
    # A table of refused probes is a burst of ICMP errors; none may be held back.
    "net/ipv4/icmp_ratelimit": "0",
    "net/ipv6/icmp/ratelimit": "0",
}
# Per namespace only in newer kernels; older ones have one limit for the whole machine.
SYSCTLS_IF_PRESENT = {
    "net/ipv4/icmp_msgs_per_sec": "1000000",
    "net/ipv4/icmp_msgs_burst": "100000",
}


def node_sysctls() -> dict[str, str]:
    """What `node` and `far` need besides: they forward."""
    return {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def _mac(kind: int, number: int) -> str:
    return f"02:00:00:00:{kind:02x}:{number:02x}"


def _uplink_mac(role: str) -> str:
    return _mac(0, _UNDERLAY_MAC[role])


def _pod_mac(pod: str) -> str:
    return _mac(1, _POD_MAC[pod])


def _host_side_mac(pod: str) -> str:
    return _mac(2, _POD_MAC[pod])


def _bits(version: int) -> int:
    return 32 if version == 4 else 128


def _everything(version: int) -> str:
    return "0.0.0.0/0" if version == 4 else "::/0"


def links(name: Callable[[str], str]) -> str:
    """All namespaces and all cables between them; *name* maps a role to its namespace."""
    lines = [f"netns add {name(role)}" for role in NAMESPACES]
    # The kernel notices at once that a veth pair is up, except (after up to 1 s) where both ends
    # happen to have one interface number; so this end gets numbers of its own.
    for index, role in enumerate(UNDERLAY, start=101):
        lines.append(
            f"link add {role} index {index} netns {name('net')} type veth"
            f" peer name {UPLINK} address {_uplink_mac(role)} netns {name(role)}"
        )
    for index, pod in enumerate(PODS, start=111):
        host = "node" if pod in LOCAL_PODS else "far"
        lines.append(
            f"link add veth-{pod} index {index} address {_host_side_mac(pod)}"
            f" netns {name(host)} type veth"
            f" peer name eth0 address {_pod_mac(pod)} netns {name(pod)}"
        )
    return "\n".join(lines) + "\n"


def setup(role: str) -> str:
    """Addresses, neighbours and routes inside one namespace."""
    if role == "net":
        lines = _underlay()
    elif role in PODS:
        lines = _pod(role)
    else:
        lines = _station(role)
    return "\n".join(["link set lo up", *lines]) + "\n"


def rules(role: str) -> str:
    """Routing rules inside one namespace; the same text for ``ip -4`` and ``ip -6``."""
    if role != "far":
        return ""
    return "".join(f"rule add iif veth-{pod} lookup 100 pref 100\n" for pod in REMOTE_PODS)


def _underlay() -> list[str]:
    # The gateway's address has a neighbour entry everywhere but no owner: what leaves through a
    # default route is lost in silence, which is what "nobody's address" looks like.
    lines = ["link add underlay type bridge forward_delay 0 stp_state 0", "link set underlay up"]
    lines += [f"link set {role} master underlay up" for role in UNDERLAY]
    return lines


def _pod(pod: str) -> list[str]:
    lines = ["link set eth0 up"]
    for version, gateway in ((4, "169.254.1.1"), (6, "fe80::1")):
        nodad = " nodad" if version == 6 else ""
        lines += [
            f"addr add {address_of(pod, version)}/{_bits(version)} dev eth0{nodad}",
            f"neigh add {gateway} lladdr {_host_side_mac(pod)} dev eth0",
            f"route add {_everything(version)} via {gateway} dev eth0 onlink",
        ]
    return lines


def _station(role: str) -> list[str]:
    lines = [f"link set {UPLINK} up"]
    for version, prefix in ((4, 24), (6, 64)):
        nodad = " nodad" if version == 6 else ""
        lines.append(f"addr add {address_of(role, version)}/{prefix} dev {UPLINK}{nodad}")
        lines += [
            f"neigh add {address_of(other, version)} lladdr {_uplink_mac(other)} dev {UPLINK}"
            for other in _UNDERLAY_MAC
            if other != role
        ]
        lines.append(f"route add {_everything(version)} via {address_of('gateway', version)}")
    lines += {"node": _node_routes, "far": _far_routes, "client": _client_routes}[role]()
    return lines


def _host_routes(pods: tuple[str, ...]) -> list[str]:
    lines = [f"link set veth-{pod} up" for pod in pods]
    for pod in pods:
        for version in (4, 6):
            target = address_of(pod, version)
            lines += [
                f"neigh add {target} lladdr {_pod_mac(pod)} dev veth-{pod}",
                f"route add {target}/{_bits(version)} dev veth-{pod}",
            ]
    return lines


def _node_routes() -> list[str]:
    lines = _host_routes(LOCAL_PODS)
    for version in (4, 6):
        # Never the source of what the node sends elsewhere.
        unchosen = "scope host" if version == 4 else "nodad preferred_lft 0"
        lines += [
            f"route add {address_of(pod, version)} via {address_of('far', version)}"
            for pod in REMOTE_PODS
        ]
        lines.append(f"addr add {BOUND_VIP[version]}/{_bits(version)} dev lo {unchosen}")
    return lines


def _far_routes() -> list[str]:
    lines = _host_routes(REMOTE_PODS)
    for version in (4, 6):
        node = address_of("node", version)
        # Remote pods send everything through the node under test, even to their neighbour:
        # their own node runs no proxy here, and an answer to a client that was not masqueraded
        # must pass the node that rewrote the request (a cloud's routers arrange that).
        lines += [
            f"route add {_everything(version)} via {node} table 100",
            *(f"route add {cidr[version]} via {node}" for cidr in (SERVICE_CIDR, EXTERNAL_CIDR)),
        ]
    return lines


def _client_routes() -> list[str]:
    lines = []
    for version in (4, 6):
        node = address_of("node", version)
        targets = [SERVICE_CIDR[version], EXTERNAL_CIDR[version]]
        targets += [address_of(pod, version) for pod in PODS]
        lines += [f"route add {target} via {node}" for target in targets]
    return lines
