"""Routes and the node become virtual servers, addresses, set entries and rules.

What packets meet is kube-proxy's: a virtual server stands without endpoints, too, and under
externalTrafficPolicy Local a node without endpoints still forwards to those elsewhere.
"""

from __future__ import annotations

from msgspec import Struct

from pykubeproxy.iptables.objects import DispatchRule
from pykubeproxy.iptables.printed import printed
from pykubeproxy.ipvs import names
from pykubeproxy.ipvs.names import SCHEDULERS, SETS, set_name
from pykubeproxy.ipvs.netfilter import IpvsSettings, fixed_rules, set_types
from pykubeproxy.ipvs.objects import (
    PERSISTENT,
    BoundAddress,
    Key,
    Present,
    Real,
    SetEntry,
    Value,
    Virtual,
    VirtualConfig,
    scheduler_flags,
)
from pykubeproxy.model.kinds import Action, FrontendKind, Pool, Protocol
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.route import Endpoint, Frontend, Route

__all__ = ["IpvsCompiler", "IpvsSettings", "scheduler_problem"]


IN_USE = 1
"""Weight of every real server that is wanted."""

_PRESENT = Present()
_NODE_PORT_SETS = {
    Protocol.TCP: (names.NODE_PORT_TCP, names.NODE_PORT_LOCAL_TCP),
    Protocol.UDP: (names.NODE_PORT_UDP, names.NODE_PORT_LOCAL_UDP),
    Protocol.SCTP: (names.NODE_PORT_SCTP, names.NODE_PORT_LOCAL_SCTP),
}
_WORDS = {protocol: protocol.lower() for protocol in Protocol}


class IpvsCompiler:
    """The `pykubeproxy.sync.outcome.Compiler` of this backend, for one family."""

    def __init__(self, settings: IpvsSettings) -> None:
        self._settings = settings
        self._place: _Place | None = None

    def claim(self, key: Key) -> Key | None:
        match key:
            case Real():
                return key.virtual
            case Virtual() | BoundAddress() | SetEntry() | DispatchRule():
                return key
            case _:
                return None

    def problems(self, route: Route) -> tuple[str, ...]:
        found = scheduler_problem(route.scheduler, self._settings)
        ports = [f.port for f in route.frontends]
        ports += [e.port for e in (*route.cluster_endpoints, *route.local_endpoints)]
        bad = dict.fromkeys(port for port in ports if not _is_port(port))
        return (*([found] if found else []), *(f"{port} is no port number" for port in bad))

    def resize(self, endpoint_count: int) -> None:
        """Nothing here depends on the size of the family."""

    def base(self, node: NodeContext) -> dict[Key, Value]:
        """Return the sets and the fixed rules."""
        return {**set_types(node.family), **fixed_rules(self._settings, node)}

    def compile(self, route: Route, node: NodeContext) -> dict[Key, Value]:
        """Return the virtual servers of one route and all that makes packets come to them."""
        if self._place is None or self._place.node is not node:
            self._place = _Place.of(node)
        return _RouteCompiler(route, self._place, self._settings).objects


def scheduler_problem(scheduler: str, settings: IpvsSettings) -> str:
    """Say what is wrong with the scheduler that a Service asks for; empty if nothing is."""
    if not scheduler or scheduler in (settings.scheduler, *settings.schedulers):
        return ""
    why = "is not available on this node" if scheduler in SCHEDULERS else "does not exist"
    return f"IPVS scheduler {scheduler!r} {why}; {settings.scheduler} is used instead"


def _is_port(number: int) -> bool:
    return 0 < number < 0x10000


class _Place(Struct, frozen=True):
    """What a node means for every route on it.

    ``own`` are addresses on other interfaces: packets for them come to this node anyway, and
    they are not ours to remove.
    """

    node: NodeContext
    own: frozenset[str]
    node_ips: tuple[str, ...]
    sets: dict[str, str]

    @classmethod
    def of(cls, node: NodeContext) -> _Place:
        listed = node.nodeport_addresses
        candidates = node.addresses if listed is None else listed
        return cls(
            node=node,
            own=frozenset(node.addresses),
            node_ips=tuple(a for a in candidates if a != "::1" and not a.startswith("127.")),
            sets={name: set_name(name, node.family) for name in SETS},
        )


class _RouteCompiler:
    """The working state of compiling one route."""

    def __init__(self, route: Route, place: _Place, settings: IpvsSettings) -> None:
        self.objects: dict[Key, Value] = {}
        self._route = route
        self._place = place
        self._protocol = route.key.protocol
        self._word = _WORDS[route.key.protocol]
        self._config = _config(route, settings)

        for endpoint in route.node_endpoints:
            if _is_port(endpoint.port):
                address = endpoint.address
                self._entry(names.LOOP_BACK, f"{address},{self._word}:{endpoint.port},{address}")
        kinds = set()
        for frontend in route.frontends:
            kinds.add(frontend.kind)
            if _is_port(frontend.port):
                self._frontend(frontend)
        # As in kube-proxy: a port that should be served on node addresses and cannot be is left
        # half done, and load balancers are not told that the node is there.
        unserved = FrontendKind.NODE_PORT in kinds and not place.node_ips
        if _is_port(route.health_check_port) and not unserved:
            self._entry(names.HEALTH_CHECK_NODE_PORT, str(route.health_check_port))

    def _frontend(self, frontend: Frontend) -> None:
        address, port = frontend.address, frontend.port
        match frontend.kind:
            case FrontendKind.NODE_PORT:
                for node_ip in self._place.node_ips:
                    self._serve(frontend, node_ip)
                if self._place.node_ips:
                    self._node_port_entries(port)
                return
            case _ if address is None:
                return
            case FrontendKind.CLUSTER_IP:
                self._bind(address)
                self._entry(names.CLUSTER_IP, f"{address},{self._word}:{port}")
            case FrontendKind.EXTERNAL_IP:
                self._bind_unless_own(address)
                local = self._route.external_local
                self._entry(
                    names.EXTERNAL_IP_LOCAL if local else names.EXTERNAL_IP,
                    f"{address},{self._word}:{port}",
                )
            case FrontendKind.LOAD_BALANCER:
                self._bind_unless_own(address)
                self._load_balancer_entries(address, port, frontend.source_ranges)
        self._serve(frontend, address)

    # --- virtual servers ---

    def _serve(self, frontend: Frontend, address: str) -> None:
        virtual = Virtual(self._protocol, address, frontend.port)
        if virtual in self.objects:
            # The first frontend with an address keeps it: a cluster IP before an external IP
            # before a load balancer IP.
            return
        objects = self.objects
        objects[virtual] = self._config
        for endpoint in self._pool(frontend):
            if _is_port(endpoint.port):
                objects[Real(virtual, endpoint.address, endpoint.port)] = IN_USE

    def _pool(self, frontend: Frontend) -> tuple[Endpoint, ...]:
        verdict = frontend.outside
        if verdict.action is Action.FORWARD and verdict.pool is Pool.LOCAL:
            return self._route.local_endpoints
        return self._route.cluster_endpoints

    # --- addresses ---

    def _bind(self, address: str) -> None:
        self.objects[BoundAddress(address)] = _PRESENT
        self._entry(names.IPVS_IPS, address)

    def _bind_unless_own(self, address: str) -> None:
        if address not in self._place.own:
            self._bind(address)

    # --- sets ---

    def _entry(self, name: str, entry: str) -> None:
        self.objects[SetEntry(self._place.sets[name], entry)] = _PRESENT

    def _node_port_entries(self, port: int) -> None:
        for name in _NODE_PORT_SETS[self._protocol][: 1 + self._route.external_local]:
            if self._protocol is Protocol.SCTP:
                for node_ip in self._place.node_ips:
                    self._entry(name, f"{node_ip},sctp:{port}")
            else:
                self._entry(name, str(port))

    def _load_balancer_entries(self, address: str, port: int, ranges: tuple[str, ...]) -> None:
        entry = f"{address},{self._word}:{port}"
        self._entry(names.LOAD_BALANCER, entry)
        if self._route.external_local:
            self._entry(names.LOAD_BALANCER_LOCAL, entry)
        if not ranges or any(source.endswith("/0") for source in ranges):
            return
        self._entry(names.LOAD_BALANCER_FW, entry)
        for source in ranges:
            if "/" in source:
                self._entry(names.LOAD_BALANCER_SOURCE_CIDR, f"{entry},{_member(source)}")
        if address in ranges:
            self._entry(names.LOAD_BALANCER_SOURCE_IP, f"{entry},{address}")
        else:
            self._drop_from_here(address, port)

    def _drop_from_here(self, address: str, port: int) -> None:
        # The firewall is in INPUT and FORWARD; what the node itself sends passes neither. It
        # goes out with the address as its source, because that is a local one.
        rule = printed(
            f"-s {address} -m ipvs --vaddr {address} --vproto {self._word} --vport {port} -j DROP",
            self._place.node.family,
        )
        match = f"{self._word} {address} {port}"
        self.objects[DispatchRule("filter", names.OUT_FILTER, match)] = (rule,)


def _config(route: Route, settings: IpvsSettings) -> VirtualConfig:
    scheduler = route.scheduler
    if not scheduler or scheduler_problem(scheduler, settings):
        scheduler = settings.scheduler
    flags = scheduler_flags(scheduler)
    if not route.affinity_seconds:
        return VirtualConfig(scheduler, flags)
    return VirtualConfig(scheduler, flags | PERSISTENT, route.affinity_seconds)


def _member(cidr: str) -> str:
    """A net as a set prints it: without the length where it is a single address."""
    return cidr.removesuffix("/128" if ":" in cidr else "/32")
