"""Everything about this node that a decision may use, for one IP family."""

from __future__ import annotations

from msgspec import Struct

from pykubeproxy.model.kinds import Family

__all__ = [
    "LOOPBACK",
    "NodeContext",
    "PodCIDR",
    "PodInterface",
    "PodInterfacePrefix",
    "PodTraffic",
]

LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


class PodCIDR(Struct, frozen=True):
    """Pods of this cluster or node are told by their source address."""

    cidr: str


class PodInterface(Struct, frozen=True):
    """Pods of this node are told by the bridge their packets come in on."""

    name: str


class PodInterfacePrefix(Struct, frozen=True):
    """Pods of this node are told by how the name of the incoming interface begins."""

    prefix: str


PodTraffic = PodCIDR | PodInterface | PodInterfacePrefix


class NodeContext(Struct, frozen=True):
    """This node as one family sees it; a new value makes every Service dirty.

    ``zone`` is empty where the node has no zone label. ``address`` is the node's own address,
    the loopback address as long as it is unknown. ``nodeport_addresses`` are the local addresses
    that serve node ports, ``None`` meaning all of them. ``addresses`` are those of all interfaces
    but loopback and the proxy's own, without link-local ones; empty where the mode does not ask
    for them. ``pod_traffic`` tells how packets of pods are recognised, ``None`` where that is not
    configured for this family.
    """

    name: str
    family: Family
    zone: str = ""
    address: str = ""
    nodeport_addresses: tuple[str, ...] | None = None
    addresses: tuple[str, ...] = ()
    pod_traffic: PodTraffic | None = None
    masquerade_all: bool = False
    allow_external_ips: bool = True
