"""The ipvs mode stage by stage: the real code on the real kernel, without daemon and API.

Runs in a network namespace of its own, where the kernel has IPVS.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event
from typing import Any

import msgspec
from msgspec import Struct

from bench.measure import Cost, Programs, Row, measured, percentile, timed
from bench.worlds import service, slice_of
from pykubeproxy.host.netlink import (
    GENERIC,
    NETFILTER,
    ROUTE,
    SMALL_READ,
    Netlink,
    Refusal,
    Request,
)
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.ipvs.compile import IpvsCompiler
from pykubeproxy.ipvs.drain import Drain
from pykubeproxy.ipvs.kernel import IpvsDataplane
from pykubeproxy.ipvs.netfilter import IpvsSettings
from pykubeproxy.ipvs.node import IPVS, ensure_device, find_device
from pykubeproxy.ipvs.objects import Key, Value
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import Kind, ObjectKey, ServiceKey, WireObject
from pykubeproxy.sync.reconciler import Reconciler, Report
from pykubeproxy.sync.routes import ServiceRoutes, service_routes
from pykubeproxy.sync.store import Store
from pykubeproxy.sync.tracker import Tracker
from pykubeproxy.watch.wire import decode_list

__all__ = ["stages"]

CHANGES = 60
NODE = NodeContext(
    "node",
    Family.IPV4,
    address="192.0.2.1",
    pod_traffic=PodCIDR("10.128.0.0/9"),
    addresses=("192.0.2.1",),
)
LISTS = {Kind.SERVICE: "v1", Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1"}


def stages(services: int, endpoints: int) -> list[Row]:
    """Measure every stage. For root, on a kernel with IPVS, in an empty network namespace."""
    store = Store()
    rows = _without_a_kernel(store, services, endpoints)
    with ExitStack() as parts:
        kernel = _Kernel(parts)
        rows += _with_a_kernel(kernel, store, services, endpoints)
    return rows


# --- pure stages ---


def _without_a_kernel(store: Store, services: int, endpoints: int) -> list[Row]:
    rows = []
    for kind, objects in _world(services, endpoints).items():
        body = _list_body(kind, objects)
        listing, cost = timed(partial(decode_list, kind, body))
        rows.append(_row(f"decode {kind}s", cost))
        _, cost = timed(partial(store.replace, kind, listing.objects, frozenset()))
        rows.append(_row(f"store {kind}s", cost))
    compiler = IpvsCompiler(IpvsSettings())
    keys = sorted(store.services)
    decided, cost = timed(lambda: [(key, _routes(store, key)) for key in keys])
    rows.append(_row("routes", cost))
    compiled, cost = timed(
        lambda: [
            (key, dict(i for r in found.routes for i in compiler.compile(r, NODE).items()))
            for key, found in decided
        ]
    )
    rows.append(_row("compile", cost))
    tracker: Tracker[Key, Value] = Tracker(compiler.claim)
    with measured() as cost:
        for key, wanted in compiled:
            tracker.want(key, wanted, "2026-01-01T00:00:00Z")
    rows.append(_row("want (claims)", cost))
    changes, cost = timed(tracker.changes)
    rows.append(_row("diff", cost))
    assert len(changes) == services
    return rows


def _routes(store: Store, key: ServiceKey) -> ServiceRoutes:
    found = store.service(key)
    assert found is not None
    return service_routes(found, store.slices(key), NODE)


def _world(services: int, endpoints: int) -> dict[Kind, list[WireObject]]:
    return {
        Kind.SERVICE: [service(index) for index in range(services)],
        Kind.ENDPOINT_SLICE: [slice_of(index, endpoints) for index in range(services)],
    }


def _list_body(kind: Kind, objects: Sequence[WireObject]) -> bytes:
    return msgspec.json.encode(
        {
            "kind": f"{kind}List",
            "apiVersion": LISTS[kind],
            "metadata": {"resourceVersion": "1"},
            "items": objects,
        }
    )


# --- stages on the kernel ---


class _Counting(Netlink):
    """Counts what it writes, and the time that takes."""

    messages = 0
    seconds = 0.0

    def refusals(self, requests: Sequence[Request]) -> Mapping[int, Refusal]:
        started = time.perf_counter()
        try:
            return super().refusals(requests)
        finally:
            self.messages += len(requests)
            self.seconds += time.perf_counter() - started


class _Kernel:
    """Sockets and programs shared by one dataplane after the other, as by daemons."""

    def __init__(self, parts: ExitStack) -> None:
        ensure_device()
        self.programs = Programs()
        self.generic, self.netfilter, self.route = self.writers = (
            _Counting(GENERIC),
            _Counting(NETFILTER),
            _Counting(ROUTE),
        )
        for writer in self.writers:
            parts.enter_context(writer)
        self.reader = parts.enter_context(Netlink(GENERIC, SMALL_READ))
        self.family_id = self.generic.family_id(IPVS)

    def dataplane(self) -> IpvsDataplane:
        family, route = Family.IPV4, self.route
        rules = XtablesDataplane(
            Tools(family, Variant.LEGACY), lambda _: None, Event(), self.programs.run
        )
        servers = Servers(
            family,
            self.generic,
            self.reader,
            lambda: self.family_id,
            "rr",
            (),
            Drain(30.0),
            time.monotonic,
        )

        def index() -> int:
            device = find_device(route)
            assert device is not None
            return device.index

        addresses = BoundAddresses(family, route, index)
        return IpvsDataplane(servers, Sets(family, self.netfilter), addresses, rules, lambda: None)


class _Pass(Struct):
    """One pass: its cost, the reconciler's report, and what went to the kernel."""

    cost: Cost
    report: Report
    messages: int
    write_seconds: float
    programs: int

    @property
    def row(self) -> Row:
        return _row("", self.cost, self.messages, self.programs)


class _Proxy:
    """A daemon's life: one reconciler on one dataplane."""

    def __init__(self, kernel: _Kernel, store: Store) -> None:
        self._kernel = kernel
        self._store = store
        self.dataplane = kernel.dataplane()
        self.reconciler: Reconciler[Key, Value] = Reconciler(
            Family.IPV4, IpvsCompiler(IpvsSettings()), self.dataplane, time.monotonic
        )

    def run(self) -> _Pass:
        kernel = self._kernel
        messages = sum(w.messages for w in kernel.writers)
        seconds, programs = sum(w.seconds for w in kernel.writers), kernel.programs.count
        touched = self._store.take()
        report, cost = timed(lambda: self.reconciler.run(touched, self._store, NODE))
        assert report.succeeded, report.detail
        assert not report.quarantined, report.quarantined[0]
        return _Pass(
            cost,
            report,
            sum(w.messages for w in kernel.writers) - messages,
            sum(w.seconds for w in kernel.writers) - seconds,
            kernel.programs.count - programs,
        )


def _with_a_kernel(kernel: _Kernel, store: Store, services: int, endpoints: int) -> list[Row]:
    proxy = _Proxy(kernel, store)
    first = proxy.run()
    rows = _pass_rows("first write", first)
    # As the daemon does once it is in sync.
    gc.collect()
    gc.freeze()
    rows += _changes(proxy, store, services, endpoints)
    rows += _looks(kernel, proxy)
    again = _Proxy(kernel, store)
    restarted = again.run()
    assert not restarted.report.changed, restarted.report.outcomes
    rows += _pass_rows("restart", restarted)
    return rows


def _changes(proxy: _Proxy, store: Store, services: int, endpoints: int) -> list[Row]:
    changed, added, removed = [], [], []
    for n in range(1, CHANGES + 1):
        store.put(slice_of(services // 2, endpoints, generation=n))
        changed.append(proxy.run())
        store.put(service(services + n))
        store.put(slice_of(services + n, endpoints))
        added.append(proxy.run())
        store.drop(Kind.SERVICE, ObjectKey(*service(services + n).key))
        removed.append(proxy.run())
        store.drop(Kind.ENDPOINT_SLICE, slice_of(services + n, endpoints).key)
        proxy.run()
    return [
        _typical("one endpoint changed", changed),
        _typical("a Service added", added),
        _typical("a Service removed", removed),
    ]


def _looks(kernel: _Kernel, proxy: _Proxy) -> list[Row]:
    """What happens between changes, and holds one up that comes meanwhile."""
    rows = []
    looks: list[tuple[str, Callable[[], Any]]] = [
        ("learn", proxy.reconciler.learn),
        ("intact", proxy.dataplane.intact),
        ("full garbage collection", gc.collect),
    ]
    for what, look in looks:
        before = kernel.programs.count
        _, cost = timed(look)
        rows.append(_row(what, cost, programs=kernel.programs.count - before))
    at = time.monotonic()
    tends = [timed(partial(proxy.dataplane.tend, at + 10.0 * n))[1] for n in range(CHANGES)]
    rows.append(_row("tend", _middle(tends), p99=percentile([c.wall for c in tends], 0.99)))
    return rows


# --- rows ---


def _pass_rows(what: str, one: _Pass) -> list[Row]:
    report = one.report
    parts = {
        "decide": report.decide_seconds,
        "observe": report.observe_seconds,
        "plan": report.diff_seconds,
        "encode, rules": report.write_seconds - one.write_seconds,
        "netlink": one.write_seconds,
    }
    whole = one.row
    whole.what = what
    return [whole, *(Row(f"{what}: {part}", seconds) for part, seconds in parts.items())]


def _typical(what: str, passes: Sequence[_Pass]) -> Row:
    row = _row(what, _middle([one.cost for one in passes]))
    row.p99 = percentile([one.cost.wall for one in passes], 0.99)
    row.messages = passes[-1].messages
    row.programs = max(one.programs for one in passes)
    return row


def _middle(costs: Sequence[Cost]) -> Cost:
    return Cost(
        percentile([c.wall for c in costs], 0.5),
        percentile([c.own for c in costs], 0.5),
        percentile([c.tools for c in costs], 0.5),
    )


def _row(what: str, cost: Cost, messages: int = 0, programs: int = 0, p99: float = 0.0) -> Row:
    return Row(what, cost.wall, p99, cost.own, cost.tools, messages, programs)
