"""The iptables mode: the sync core and the real tools, one variant."""

from __future__ import annotations

import time
from threading import Event

from bench.measure import Row, measured, percentile
from bench.worlds import service, slice_of
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.objects import Key, Rules
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store

__all__ = ["passes"]

CHANGES = 9
NODE = NodeContext("node", Family.IPV4, address="192.0.2.1", pod_traffic=PodCIDR("10.128.0.0/9"))


class _Bench:
    def __init__(self, variant: Variant) -> None:
        self.rows: list[Row] = []
        self.store = Store()
        dataplane = XtablesDataplane(Tools(Family.IPV4, variant), lambda _: None, Event())
        compiler = IptablesCompiler(XtablesSettings())
        self.reconciler: Reconciler[Key, Rules] = Reconciler(
            Family.IPV4, compiler, dataplane, time.monotonic
        )

    def run(self) -> Row:
        """One pass."""
        with measured() as cost:
            report = self.reconciler.run(self.store.take(), self.store, NODE)
        assert report.succeeded, report.detail
        assert not report.quarantined, report.quarantined[0]
        return Row("", cost.wall, own=cost.own, tools=cost.tools, messages=report.lines)

    def note(self, what: str, runs: list[Row]) -> None:
        """Add a row with the median of each number."""
        wall, own, tools, lines = (
            percentile([getattr(run, name) for run in runs], 0.5)
            for name in ("wall", "own", "tools", "messages")
        )
        worst = max(run.wall for run in runs)
        self.rows.append(Row(what, wall, worst, own, tools, int(lines)))


def passes(variant: Variant, services: int, endpoints: int) -> list[Row]:
    """Measure whole passes. For root, in an empty network namespace."""
    bench = _Bench(variant)
    store = bench.store
    store.replace(Kind.SERVICE, map(service, range(services)), frozenset())
    slices = (slice_of(index, endpoints) for index in range(services))
    store.replace(Kind.ENDPOINT_SLICE, slices, frozenset())
    bench.note("first write", [bench.run()])
    bench.note("nothing changed", [bench.run() for _ in range(CHANGES)])
    changes, additions, removals = [], [], []
    for n in range(1, CHANGES + 1):
        store.put(slice_of(services // 2, endpoints, generation=n))
        changes.append(bench.run())
        store.put(service(services + n))
        store.put(slice_of(services + n, endpoints))
        additions.append(bench.run())
        gone = service(services + n).key
        store.drop(Kind.SERVICE, ObjectKey(*gone))
        removals.append(bench.run())
    bench.note("one endpoint changed", changes)
    bench.note("a Service added", additions)
    bench.note("a Service removed", removals)
    with measured() as cost:
        bench.reconciler.learn()
    bench.rows.append(Row("read back once", cost.wall, own=cost.own, tools=cost.tools))
    return bench.rows
