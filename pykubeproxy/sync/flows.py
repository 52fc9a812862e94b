"""Which UDP conntrack entries a change makes stale, and which of them to look for.

A UDP flow stays pinned by conntrack to the endpoint it got, for as long as packets come; when
that endpoint is gone the entry has to be deleted. TCP needs no such care (the peer resets).
The rule is kube-proxy's: an entry towards a served destination whose replies come from no serving
endpoint is stale. A destination without serving endpoints is left alone.

Unlike kube-proxy, which scans the whole table after every change, only destinations that changed
since the last run are named for the scan; the first run names all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

from pykubeproxy.model.kinds import Protocol
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import PortKey, Route

__all__ = [
    "Address",
    "FlowIndex",
    "FlowTable",
    "Scope",
    "endpoint_text",
    "flow_table",
    "is_stale",
    "joined",
]

Address = tuple[str, int]  # canonical IP and port
_Destination = Address | int  # a bare number is a node port

UDP = 17


class FlowTable(Struct, frozen=True):
    """Serving endpoints (``IP:port``, ``[IPv6]:port``) of each destination; never an empty set."""

    by_address: Mapping[Address, frozenset[str]]
    by_node_port: Mapping[int, frozenset[str]]


class Scope(Struct, frozen=True):
    """What a run has to look at. With ``everything`` the other two are not to be read.

    With nothing in it there is nothing to look at: a run all the same, which is counted.
    """

    everything: bool = False
    addresses: frozenset[Address] = frozenset()
    node_ports: frozenset[int] = frozenset()


def joined(
    table: FlowTable, scope: Scope, newer_table: FlowTable, newer_scope: Scope
) -> tuple[FlowTable, Scope]:
    """Return table and scope of one run that does the work of two, by what is known now."""
    if newer_scope.everything:
        return newer_table, newer_scope
    both = Scope(
        scope.everything,
        scope.addresses | newer_scope.addresses,
        scope.node_ports | newer_scope.node_ports,
    )
    by_address = {**table.by_address, **newer_table.by_address}
    return FlowTable(by_address, {**table.by_node_port, **newer_table.by_node_port}), both


def endpoint_text(address: str, port: int) -> str:
    """Write an endpoint as `Route.serving_endpoints` does."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def is_stale(
    table: FlowTable, proto: int, orig_dst: str, orig_dport: int, reply_src: str, reply_sport: int
) -> bool:
    """Tell whether an entry must go.

    Arguments are the original direction's protocol number and destination, and the reply
    direction's source. A node port counts on every destination address, as in kube-proxy, so an
    unrelated flow to another host's same port goes too (harmless: its next packet re-creates it).
    """
    if proto != UDP:
        return False
    serving = table.by_address.get((orig_dst, orig_dport))
    node_serving = table.by_node_port.get(orig_dport)
    if serving is None and node_serving is None:
        return False
    reply = endpoint_text(reply_src, reply_sport)
    return (serving is not None and reply not in serving) or (
        node_serving is not None and reply not in node_serving
    )


def flow_table(routes: Iterable[Route]) -> FlowTable:
    """Return the table of *routes* (one family), for tests and one-off runs."""
    index = FlowIndex()
    for route in routes:
        index.update(route.key.service, [*index.routes(route.key.service), route])
    return index.table()


class _Port(Struct, frozen=True):
    """What counts of one UDP route."""

    destinations: frozenset[_Destination]
    serving: frozenset[str]


class FlowIndex:
    """The flow table of one family, kept up to date service by service.

    One owner thread. `update` costs as much as the service is large, never as the cluster is.
    """

    def __init__(self) -> None:
        self._ports: dict[ServiceKey, dict[PortKey, _Port]] = {}
        self._routes: dict[ServiceKey, tuple[Route, ...]] = {}
        # Several ports may claim a destination. Who wins is for the tracker; here the union
        # counts, so that no flow to a serving endpoint of either is ever cut.
        self._claims: dict[_Destination, dict[PortKey, frozenset[str]]] = {}
        self._touched: set[_Destination] = set()
        self._due = False
        self._everything = True

    def update(
        self, owner: ServiceKey, routes: Iterable[Route], endpoints_changed: bool | None = None
    ) -> None:
        """Replace the routes of *owner* (none: it is gone).

        *endpoints_changed* tells whether its EndpointSlices changed: only that makes a run due.
        Other changes (a new external IP) wait for the next run. ``None`` derives it: the serving
        endpoints of a UDP port are new or different.
        """
        kept = tuple(route for route in routes if route.key.protocol is Protocol.UDP)
        before = self._ports.get(owner, {})
        after = {route.key: _port(route) for route in kept}
        if not before and not after:
            return
        if endpoints_changed is None:
            endpoints_changed = any(
                port.serving != (before[key].serving if key in before else frozenset())
                for key, port in after.items()
            )
        if endpoints_changed and any(
            port.serving for ports in (before, after) for port in ports.values()
        ):
            self._due = True
            for port in after.values():
                self._touched |= port.destinations
        for key in before.keys() | after.keys():
            self._replace(key, before.get(key), after.get(key))
        if after:
            self._ports[owner] = after
            self._routes[owner] = kept
        else:
            del self._ports[owner], self._routes[owner]

    def routes(self, owner: ServiceKey) -> tuple[Route, ...]:
        """Return the UDP routes that `update` was last given for *owner*."""
        return self._routes.get(owner, ())

    def take_scope(self) -> Scope | None:
        """Return what a run must look at now, or ``None`` when no run is due; forget it.

        Nothing, if nobody serves any more what changed: kube-proxy counts that as a run.
        Call after a successful sync only: until then changes keep adding up. Give the scope back
        with `give_back` when the run failed.
        """
        if not self._due:
            return None
        self._due = False
        touched, self._touched = self._touched, set()
        if self._everything:
            self._everything = False
            return Scope(everything=bool(self._claims))
        # What nobody serves now is left alone, so it need not be looked for.
        served = [destination for destination in touched if self._serving(destination)]
        return Scope(
            addresses=frozenset(item for item in served if isinstance(item, tuple)),
            node_ports=frozenset(item for item in served if isinstance(item, int)),
        )

    def give_back(self, scope: Scope) -> None:
        """Make the destinations of *scope* due again."""
        self._due = True
        self._everything = self._everything or scope.everything
        self._touched |= scope.addresses
        self._touched |= scope.node_ports

    def table(self, scope: Scope | None = None) -> FlowTable:
        """Return a copy for another thread: the part that *scope* names, or all of it."""
        wanted: Iterable[_Destination] = self._claims
        if scope is not None and not scope.everything:
            wanted = [*scope.addresses, *scope.node_ports]
        by_address: dict[Address, frozenset[str]] = {}
        by_node_port: dict[int, frozenset[str]] = {}
        for destination in wanted:
            serving = self._serving(destination)
            if not serving:
                continue
            if isinstance(destination, int):
                by_node_port[destination] = serving
            else:
                by_address[destination] = serving
        return FlowTable(by_address, by_node_port)

    def _replace(self, key: PortKey, before: _Port | None, after: _Port | None) -> None:
        if before == after:
            return
        old = before.destinations if before else frozenset()
        new = after.destinations if after else frozenset()
        self._touched |= old
        self._touched |= new
        for destination in old - new:
            claims = self._claims[destination]
            del claims[key]
            if not claims:
                del self._claims[destination]
        if after is not None:
            for destination in new:
                self._claims.setdefault(destination, {})[key] = after.serving

    def _serving(self, destination: _Destination) -> frozenset[str]:
        claims = self._claims.get(destination)
        if not claims:
            return frozenset()
        if len(claims) == 1:
            return next(iter(claims.values()))
        return frozenset().union(*claims.values())


def _port(route: Route) -> _Port:
    return _Port(
        frozenset(
            front.port if front.address is None else (front.address, front.port)
            for front in route.frontends
        ),
        route.serving_endpoints,
    )
