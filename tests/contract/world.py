"""The vocabulary of the packet tables: worlds, packets and what must become of them.

A world is written once, with IPv4 addresses and small numbers. `World.objects` maps it to either
family, and `World.place` moves it to addresses, node ports and a namespace of its own, so that
many worlds fit into one cluster.

The addresses are those of the network laboratory (e2e/lab/addresses.py, which a test compares):
node 192.0.2.10, client 192.0.2.100, local pods 10.244.0.11-13 (p1, p2, p3), remote pods
10.244.1.11-12 (r1, r2), cluster IPs 10.96.0.x, external IPs and VIPs 203.0.113.x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import EndpointSlice, Node, Service, WireObject
from tests.build import node

__all__ = [
    "ADDRESS_OF",
    "BOUND_ADDRESSES",
    "DROP",
    "INTERFACE_OF",
    "LOCALHOST",
    "NODE_ADDRESS",
    "NOT_A_SERVICE",
    "REJECT",
    "Detect",
    "Expectation",
    "Forward",
    "Nothing",
    "Packet",
    "Place",
    "Settings",
    "World",
    "address",
    "forward",
    "packet",
    "sticky",
    "watched",
]

SENDERS = ("pod", "other_pod", "remote_pod", "client", "node")
# A sender's role in the laboratory, and where its packets enter the node under test.
ROLE_OF = {"pod": "p1", "other_pod": "p3", "remote_pod": "r1", "client": "client", "node": "node"}
INTERFACE_OF = {
    "pod": "veth-p1",
    "other_pod": "veth-p3",
    "remote_pod": "eth0",
    "client": "eth0",
    "node": "",
}
ADDRESS_OF = {
    "p1": "10.244.0.11",
    "p2": "10.244.0.12",
    "p3": "10.244.0.13",
    "r1": "10.244.1.11",
    "r2": "10.244.1.12",
    "node": "192.0.2.10",
    "client": "192.0.2.100",
}
NODE_ADDRESS = "192.0.2.10"
LOCALHOST = "127.0.0.1"
BOUND_ADDRESSES = (LOCALHOST, NODE_ADDRESS, "203.0.113.250")  # what the node answers for itself
NODE_PORTS_PER_WORLD = 20
VIPS_PER_WORLD = 4


# --- addresses ---------------------------------------------------------------------------------

_PREFIXES = (
    (
        re.compile(r"0*10\.244\.0*(\d+)\.0*(\d+)"),
        lambda a, b: f"fd00:244::{b}" if a == "0" else f"fd00:244:{a}::{b}",
    ),
    (
        re.compile(r"0*10\.0*96\.0*(\d+)\.0*(\d+)"),
        lambda a, b: f"fd00:96::{b}" if a == "0" else f"fd00:96::{a}{int(b):02}",
    ),
    (re.compile(r"203\.0\.113\.0*(\d+)"), lambda b: f"2001:db8:113::{b}"),
    (re.compile(r"192\.0\.2\.0*(\d+)"), lambda b: f"2001:db8:2::{b}"),
    (re.compile(r"198\.51\.100\.0*(\d+)"), lambda b: f"2001:db8:51::{b}"),
    (re.compile(r"127\.0\.0\.1"), lambda: "::1"),
    (re.compile(r"0\.0\.0\.0"), lambda: "::"),
)
_CIDRS = {
    "10.244.0.0/16": "fd00:244::/31",
    "10.244.0.0/24": "fd00:244::/48",
    "192.0.2.0/24": "2001:db8:2::/64",
    "198.51.100.0/24": "2001:db8:51::/64",
    "203.0.113.0/24": "2001:db8:113::/64",
    "0.0.0.0/0": "::/0",
}
_LENGTHS = {32: 128, 24: 64, 16: 31, 0: 0}


def address(text: str, family: Family) -> str:
    """Map an IPv4 address or CIDR of the tables to *family*; other text stays as it is."""
    if family is Family.IPV4:
        return text
    bare = text.strip()
    if bare in _CIDRS:
        return text.replace(bare, _CIDRS[bare])
    host, slash, length = bare.partition("/")
    for pattern, build in _PREFIXES:
        if match := pattern.fullmatch(host):
            mapped = build(*match.groups())
            if re.search(r"(^|\.)0\d", host):  # sloppy stays sloppy: long groups in upper case
                mapped = ":".join(g.zfill(4) if g else g for g in mapped.upper().split(":"))
            return text.replace(bare, mapped + (f"/{_LENGTHS[int(length)]}" if slash else ""))
    return text


class Place(NamedTuple):
    """Where in a shared cluster a world lives; place 0 is as written."""

    number: int = 0

    def namespace(self, family: Family) -> str:
        return f"world-{self.number}-{family.lower()}"

    def ip(self, text: str) -> str:
        """Move a cluster IP (10.96.0.x) or an external one (203.0.113.1-3)."""
        match = re.fullmatch(r"(0*10\.0*96\.)0+(\.0*\d+)", text)
        if match and self.number:
            return f"{match[1]}{self.number}{match[2]}"
        match = re.fullmatch(r"(203\.0\.113\.)(\d+)", text)
        if match and int(match[2]) < VIPS_PER_WORLD:
            return f"{match[1]}{int(match[2]) + VIPS_PER_WORLD * self.number}"
        return text

    def node_port(self, number: int) -> int:
        return number + NODE_PORTS_PER_WORLD * self.number if number >= 30000 else number


# --- packets -----------------------------------------------------------------------------------


class Forward(Struct, frozen=True):
    """Some endpoint answers. ``own`` see the client's own address, ``node`` that of the node.

    Endpoints are written ``p1:8080``. Over many connections each of them must turn up;
    with ``sticky`` all connections of one client meet the same one.
    """

    own: frozenset[str] = frozenset()
    node: frozenset[str] = frozenset()
    sticky: bool = False


class Nothing(Struct, frozen=True):
    """No endpoint answers; *kind* says how."""

    kind: str


REJECT = Nothing("refused at once")
DROP = Nothing("dropped in silence")
NOT_A_SERVICE = Nothing("left alone by the proxy")

Expectation = Forward | Nothing


class Packet(Struct, frozen=True):
    """A new connection from *sender* to *target*:*port*, and what must become of it.

    ``source`` overrides the client's address. ``only`` restricts the packet to one family.
    ``on_wire`` is false for what only a tracer can send.
    """

    sender: str
    target: str
    port: int
    expected: Expectation
    protocol: Protocol = Protocol.TCP
    source: str | None = None
    only: Family | None = None
    on_wire: bool = True

    def __str__(self) -> str:
        suffix = f" from {self.source}" if self.source else ""
        return f"{self.sender}{suffix} to {self.target} {self.protocol} {self.port}"


def forward(own: str = "", node: str = "") -> Forward:
    """``forward(own="p1:8080 r1:8080", node="p2:8080")``."""
    return Forward(frozenset(own.split()), frozenset(node.split()))


def sticky(own: str = "", node: str = "") -> Forward:
    return Forward(frozenset(own.split()), frozenset(node.split()), sticky=True)


def packet(
    senders: str,
    target: str,
    port: int,
    expected: Expectation,
    *,
    protocol: Protocol = Protocol.TCP,
    source: str | None = None,
    only: Family | None = None,
    on_wire: bool = True,
) -> list[Packet]:
    """One packet for each of the blank-separated *senders*."""
    unknown = set(senders.split()) - set(SENDERS)
    if unknown:
        raise ValueError(f"unknown senders {unknown}")
    return [
        Packet(sender, target, port, expected, protocol, source, only, on_wire)
        for sender in senders.split()
    ]


# --- worlds ------------------------------------------------------------------------------------


class Detect(Struct, frozen=True):
    """How pods are recognised: the daemon's detect-local mode and its value."""

    mode: str = "ClusterCIDR"
    value: str = "10.244.0.0/16"


class Settings(Struct, frozen=True):
    """How the daemon under test is started, and what its Node object says."""

    detect: Detect | None = Detect()
    masquerade_all: bool = False
    nodeport_addresses: tuple[str, ...] = ()
    localhost_nodeports: bool = True
    zone: str | None = "zone-a"

    def flags(self) -> list[str]:
        """These settings as command line flags, for both families at once."""
        flags = [f"--masquerade-all={str(self.masquerade_all).lower()}"]
        flags.append(f"--iptables-localhost-nodeports={str(self.localhost_nodeports).lower()}")
        if self.nodeport_addresses:
            flags.append(f"--nodeport-addresses={','.join(self.nodeport_addresses)}")
        if self.detect is None:
            return flags
        flags.append(f"--detect-local-mode={self.detect.mode}")
        match self.detect.mode:
            case "ClusterCIDR":
                value = self.detect.value
                both = dict.fromkeys((value, address(value, Family.IPV6)))
                flags.append(f"--cluster-cidr={','.join(both)}")
            case "InterfaceNamePrefix":
                flags.append(f"--pod-interface-name-prefix={self.detect.value}")
            case "BridgeInterface":
                flags.append(f"--pod-bridge-interface={self.detect.value}")
        return flags


class World(Struct, frozen=True):
    """A small cluster and the packets sent into it."""

    name: str
    build: Callable[[], list[WireObject]]
    packets: tuple[Packet, ...]
    settings: Settings = Settings()
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6)

    def node_object(self) -> Node:
        """The Node under test; one object for both families."""
        pod_cidrs = [address("10.244.0.0/24", family) for family in Family]
        return node("node", zone=self.settings.zone, pod_cidrs=pod_cidrs)

    def objects(self, family: Family, place: Place | None = None) -> list[WireObject]:
        """Services and slices, for one family, at a place."""
        if place is None:
            return [_mapped(obj, family, Place(), "default") for obj in self.build()]
        return [_mapped(obj, family, place, place.namespace(family)) for obj in self.build()]

    def packets_for(self, family: Family, place: Place = Place(0)) -> list[Packet]:  # noqa: B008 - a value
        """The packets of one family, with the addresses they really go to."""
        return [
            msgspec.structs.replace(
                p,
                target=address(place.ip(p.target), family),
                source=None if p.source is None else address(place.ip(p.source), family),
                port=place.node_port(p.port),
            )
            for p in self.packets
            if p.only in (None, family)
        ]


def watched(objects: Iterable[WireObject]) -> list[WireObject]:
    """What the selectors of the watches let through: the API server filters, not the proxy."""
    chosen: list[WireObject] = []
    for obj in objects:
        match obj:
            case Service():
                labels = obj.metadata.labels
                delegated = labels is not None and labels.proxy_name is not None
                passes = not delegated and obj.spec.cluster_ip != "None"
            case EndpointSlice():
                slice_labels = obj.metadata.labels
                passes = slice_labels is None or slice_labels.headless is None
            case _:
                passes = True
        if passes:
            chosen.append(obj)
    return chosen


def _mapped(obj: WireObject, family: Family, place: Place, namespace: str) -> WireObject:
    """Move every address, node port and the namespace of *obj*."""

    def move(text: str) -> str:
        return address(place.ip(text), family)

    def walk(value: object, key: str) -> object:
        match value:
            case dict():
                return {name: walk(item, name) for name, item in value.items()}
            case list() | tuple():
                return [walk(item, key) for item in value]
            case str() if key == "addressType" and value in tuple(Family):
                return str(family) if value == Family.IPV4 else str(family.other)
            case str() if key == "ipFamilies":
                return str(family) if value == Family.IPV4 else str(family.other)
            case str() if key == "namespace":
                return namespace
            case str() if ":" in value and family is Family.IPV6 and key in _ADDRESS_FIELDS:
                return _to_ipv4(value)
            case str():
                return move(value)
            case int() if key in ("nodePort", "healthCheckNodePort"):
                return place.node_port(value)
            case _:
                return value

    if not isinstance(obj, (Service, EndpointSlice)):
        return obj
    return msgspec.convert(walk(msgspec.to_builtins(obj), ""), type(obj))


_ADDRESS_FIELDS = (
    "addresses",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "ip",
    "loadBalancerSourceRanges",
)
# What a table writes in IPv6 is "of the other family"; under IPv6 that is IPv4.
_OTHER_FAMILY = {
    "2001:db8:51::/64": "198.51.100.0/24",
    "2001:db8:113::3": "203.0.113.3",
    "fd00:96::3": "10.96.0.3",
    "fd00:244::12": "10.244.0.12",
}


def _to_ipv4(text: str) -> str:
    return _OTHER_FAMILY[text]
