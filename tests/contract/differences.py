"""Where ipvs mode differs from the packet tables, packet by packet, and why.

The tables of tests/contract/cases.py hold for iptables and nftables. ipvs mode is kube-proxy's own,
with its own promises: `IPVS_WORLDS` are the same worlds with the packets below put in place of
those they contradict. Written from what kube-proxy's ipvs mode does and the kernel's IPVS, never
from this program.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from pykubeproxy.model.kinds import Family, Protocol
from tests.contract.cases import (
    EVERYBODY,
    EXTERNAL,
    IP1,
    IP2,
    NODE_PORT,
    UDP,
    VIP,
    WORLDS,
    outer,
)
from tests.contract.world import (
    ADDRESS_OF,
    DROP,
    LOCALHOST,
    NOT_A_SERVICE,
    REJECT,
    ROLE_OF,
    Packet,
    World,
    address,
    forward,
    packet,
    sticky,
)

__all__ = ["DIFFERENCES", "IPVS_WORLDS", "Difference", "own_address"]


class Difference(NamedTuple):
    why: str
    packets: tuple[Packet, ...]


# --- why -----------------------------------------------------------------------------------------

OTHER_PORT = (
    "the address of a virtual server is the node's own, and what nobody serves there is rejected "
    "lest the node's own programs answer (KUBE-IPVS-FILTER)"
)
LOCALHOST_IS_LEFT_ALONE = (
    "virtual servers for node ports are on the node's addresses but loopback, "
    "and there is no route_localnet"
)
NO_KUBE_FIREWALL = (
    "without route_localnet nobody needs KUBE-FIREWALL: the kernel itself drops what comes for "
    "127.0.0.1 from a wire, which the tracer does not"
)
FALLS_BACK = (
    "a Local virtual server without local endpoints has those of the cluster; "
    "nobody masquerades what comes for a Local address"
)
NO_SHORT_CUT = (
    "a virtual server has one set of endpoints for all clients, so pods and the node "
    "itself meet local endpoints too; nobody masquerades what comes for a Local address"
)
EMPTY_NOT_DROPPED = (
    "an internal Service under internalTrafficPolicy Local without local endpoints is "
    "a virtual server without real servers, which answers port unreachable"
)
EMPTY_FOR_THE_NODE_TOO = "a virtual server answers the node like everybody else"
RANGES_COME_FIRST = "the firewall of source ranges is in INPUT, and IPVS behind it"
SOURCE_IS_THE_CLUSTER_IP = (
    "the node itself sends with the cluster IP as its source, which is told apart and masqueraded"
)
HAIRPIN_OF_OTHERS = (
    "only endpoints on this node are masqueraded when they meet themselves (KUBE-LOOP-BACK); "
    "those elsewhere get a packet with their own source, and drop it"
)


def because(why: str, *packets: list[Packet]) -> Difference:
    return Difference(why, tuple(each for part in packets for each in part))


def lost(*packets: list[Packet]) -> list[Packet]:
    """Packets that a real endpoint would not answer, because they bear its own address."""
    return [replace(each, on_wire=False) for part in packets for each in part]


def localhost(protocol: Protocol = Protocol.TCP, only: Family | None = Family.IPV4) -> Difference:
    here = packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE, protocol=protocol, only=only)
    return because(LOCALHOST_IS_LEFT_ALONE, here)


# --- which packets -------------------------------------------------------------------------------

_NOBODY = (
    localhost(),
    because(
        EMPTY_FOR_THE_NODE_TOO,
        packet("node", VIP, 80, REJECT),
        packet("node", EXTERNAL, 80, REJECT),
    ),
)

DIFFERENCES: dict[str, tuple[Difference, ...]] = {
    # how packets reach a Service
    "a cluster IP spreads over all endpoints and masquerades who is no pod": (
        because(
            HAIRPIN_OF_OTHERS,
            lost(packet("remote_pod", IP1, 80, forward(own="p1:8080 p2:8080 r1:8080"))),
        ),
        because(
            OTHER_PORT,
            packet(EVERYBODY, IP1, 81, REJECT),
            packet(EVERYBODY, IP1, 80, REJECT, protocol=UDP),
        ),
    ),
    "external destinations are masqueraded for everybody, pods included": (
        localhost(),
        because(
            OTHER_PORT,
            packet(EVERYBODY, VIP, NODE_PORT, REJECT),
            packet(EVERYBODY, IP1, NODE_PORT, REJECT),
            packet(EVERYBODY, VIP, 81, REJECT),
        ),
    ),
    "only new destinations of the right protocol match": (localhost(UDP),),
    "SCTP is carried like the others": (because(OTHER_PORT, packet("other_pod", IP1, 80, REJECT)),),
    # externalTrafficPolicy and internalTrafficPolicy
    "under external policy Local outsiders keep their address and stay on the node": (
        because(
            NO_SHORT_CUT,
            outer("other_pod remote_pod node", forward(own="p1:8080 p2:8080")),
            outer("pod", forward(own="p2:8080", node="p1:8080")),
        ),
        localhost(),
    ),
    "external policy Local without local endpoints drops outsiders, not pods or the node": (
        because(FALLS_BACK, outer("client node", forward(own="r1:8080 r2:8080"))),
        because(HAIRPIN_OF_OTHERS, lost(outer("remote_pod", forward(own="r1:8080 r2:8080")))),
    ),
    "an endpoint without a node name is never local, nor is one with another spelling": (
        because(FALLS_BACK, outer("client", forward(own="p1:8080 p2:8080"))),
    ),
    "external policy Local counts on a cluster IP Service with external IPs": (
        because(NO_SHORT_CUT, packet("other_pod", EXTERNAL, 80, forward(own="p1:8080"))),
    ),
    "internal policy Local without local endpoints drops the cluster IP only": (
        because(
            FALLS_BACK,
            packet("pod other_pod", IP1, 80, forward(own="r1:8080")),
            packet("client node", IP1, 80, forward(node="r1:8080")),
        ),
        because(HAIRPIN_OF_OTHERS, lost(packet("remote_pod", IP1, 80, forward(own="r1:8080")))),
    ),
    "internal policy Local on an internal Service": (
        because(EMPTY_NOT_DROPPED, packet(EVERYBODY, IP2, 80, REJECT)),
    ),
    "both policies Local with nothing local": (
        because(
            FALLS_BACK,
            packet("pod other_pod", IP1, 80, forward(own="r1:8080")),
            packet("client node", IP1, 80, forward(node="r1:8080")),
            outer("client node", forward(own="r1:8080")),
        ),
        because(HAIRPIN_OF_OTHERS, lost(packet("remote_pod", IP1, 80, forward(own="r1:8080")))),
    ),
    "both policies Local with something local": (
        because(NO_SHORT_CUT, outer("other_pod node", forward(own="p1:8080"))),
    ),
    # no endpoints
    "a Service without endpoints refuses": _NOBODY,
    "a Service without endpoints refuses under policy Local too": _NOBODY,
    "a Service with an empty slice refuses": _NOBODY,
    "endpoints that are not ready are none": _NOBODY,
    # source ranges
    "source ranges guard the VIP and nothing else": (
        because(OTHER_PORT, packet("client", VIP, 81, REJECT)),
    ),
    "source ranges and policy Local": (
        because(NO_SHORT_CUT, packet("other_pod", VIP, 80, forward(own="p1:8080"))),
    ),
    "source ranges and policy Local with nothing local": (
        because(FALLS_BACK, packet("client", VIP, 80, forward(own="r1:8080"))),
    ),
    "without endpoints the VIP refuses even those in no range": (
        because(RANGES_COME_FIRST, packet("client pod", VIP, 80, DROP)),
    ),
    # which endpoints
    "a draining local endpoint serves outsiders while the cluster IP uses a ready remote one": (
        because(NO_SHORT_CUT, outer("other_pod node", forward(own="p1:8080"))),
    ),
    "draining endpoints elsewhere make outsiders dropped, not refused": (
        because(FALLS_BACK, outer("client", forward(own="r1:8080"))),
    ),
    "internal policy Local falls back to a draining local endpoint": (
        because(EMPTY_NOT_DROPPED, packet("other_pod client node", IP2, 80, REJECT)),
    ),
    "local endpoints are never filtered by hints": (
        because(NO_SHORT_CUT, outer("other_pod", forward(own="p1:8080"))),
    ),
    # session affinity
    "client affinity under policy Local stays on the node": (
        because(NO_SHORT_CUT, outer("other_pod", sticky(own="p1:8080 p2:8080"))),
    ),
    # settings of the proxy
    "masquerade-all masquerades the cluster IP for everybody": (
        because(NO_SHORT_CUT, outer("other_pod", forward(own="p1:8080"))),
    ),
    "without a way to tell pods the cluster IP is never masqueraded": (
        because(SOURCE_IS_THE_CLUSTER_IP, packet("node", IP1, 80, forward(node="p1:8080 r1:8080"))),
        because(
            HAIRPIN_OF_OTHERS,
            lost(packet("remote_pod", IP1, 80, forward(own="p1:8080 r1:8080"))),
        ),
    ),
    "without a way to tell pods they are outsiders to policy Local": (
        because(NO_SHORT_CUT, outer("node", forward(own="p1:8080 p2:8080"))),
    ),
    "without a way to tell pods policy Local with nothing local drops them": (
        because(FALLS_BACK, outer("client pod other_pod node", forward(own="r1:8080"))),
        because(HAIRPIN_OF_OTHERS, lost(outer("remote_pod", forward(own="r1:8080")))),
    ),
    "pods told by an interface prefix are those of this node": (
        because(NO_SHORT_CUT, outer("other_pod node", forward(own="p1:8080"))),
    ),
    "pods told by a bridge are those behind it": (
        because(NO_SHORT_CUT, outer("pod", forward(node="p1:8080"))),
    ),
    "pods told by the node's own CIDR are those of this node": (
        because(NO_SHORT_CUT, outer("other_pod", forward(own="p1:8080"))),
    ),
    "node port addresses with loopback serve localhost in IPv4": (localhost(),),
    "neighbours cannot reach what listens on localhost": (
        because(
            NO_KUBE_FIREWALL,
            packet("client pod", LOCALHOST, 22, NOT_A_SERVICE, only=Family.IPV4, on_wire=False),
        ),
    ),
}


# --- the worlds of ipvs mode ---------------------------------------------------------------------


def _route(sent: Packet) -> Packet:
    """What a packet is, without what must become of it."""
    return replace(sent, expected=NOT_A_SERVICE, on_wire=True)


def _in_ipvs(world: World) -> World:
    changed = {
        _route(each): each
        for difference in DIFFERENCES.get(world.name, ())
        for each in difference.packets
    }
    packets = tuple(changed.get(_route(each), each) for each in world.packets)
    return replace(world, packets=packets)


IPVS_WORLDS: list[World] = [_in_ipvs(world) for world in WORLDS]


def own_address(sent: Packet, family: Family) -> str:
    """The address that endpoints see where a `Forward` says ``own``.

    The node asks its own addresses from these themselves, and those of virtual servers are its
    own: what it sends to 10.96.0.1 comes from 10.96.0.1.
    """
    if sent.source is not None:
        return sent.source
    if sent.sender == "node":
        return sent.target
    return address(ADDRESS_OF[ROLE_OF[sent.sender]], family)
