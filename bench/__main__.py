"""``python -m bench [SERVICES ENDPOINTS]``: what a start and single changes cost, per variant.

Runs the whole sync core and the real tools in a network namespace that ends with the process.
Wall and CPU seconds are of this process and its children. Machines are noisy: compare runs of
one call, not of different days.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from threading import Event

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

CLONE_NEWNET = 0x40000000
CHANGES = 9
NODE = NodeContext("node", Family.IPV4, address="192.0.2.1", pod_traffic=PodCIDR("10.128.0.0/9"))


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        _inside(Variant(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
        return 0
    services, endpoints = (int(a) for a in (sys.argv[1:3] or ("10000", "5")))
    print(f"{services} Services x {endpoints} endpoints, IPv4; seconds, median of {CHANGES}")
    print(f"{'':28}{'wall':>9}{'cpu self':>10}{'cpu tools':>10}{'lines':>9}")
    for variant in Variant:
        argv = [sys.executable, "-m", "bench", "--inside", variant, str(services), str(endpoints)]
        finished = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
        for row in json.loads(finished.stdout):
            print(
                f"{variant + ': ' + row['what']:28}{row['wall']:9.3f}{row['self']:10.3f}"
                f"{row['tools']:10.3f}{row['lines']:9}"
            )
    return 0


class _Bench:
    def __init__(self, variant: Variant) -> None:
        self.rows: list[dict[str, object]] = []
        self.store = Store()
        dataplane = XtablesDataplane(Tools(Family.IPV4, variant), lambda _: None, Event())
        compiler = IptablesCompiler(XtablesSettings())
        self.reconciler: Reconciler[Key, Rules] = Reconciler(
            Family.IPV4, compiler, dataplane, time.monotonic
        )

    def run(self) -> dict[str, float]:
        """One pass; wall, own CPU and tool CPU seconds, and lines sent."""
        tools = resource.getrusage(resource.RUSAGE_CHILDREN)
        before = time.perf_counter(), time.process_time(), tools.ru_utime + tools.ru_stime
        report = self.reconciler.run(self.store.take(), self.store, NODE)
        tools = resource.getrusage(resource.RUSAGE_CHILDREN)
        after = time.perf_counter(), time.process_time(), tools.ru_utime + tools.ru_stime
        assert report.succeeded, report.detail
        assert not report.quarantined, report.quarantined
        wall, own, children = (b - a for a, b in zip(before, after, strict=True))
        return {"wall": wall, "self": own, "tools": children, "lines": report.lines}

    def note(self, what: str, runs: list[dict[str, float]]) -> None:
        middle = {k: sorted(run[k] for run in runs)[len(runs) // 2] for k in runs[0]}
        self.rows.append({"what": what, **middle})


def _inside(variant: Variant, services: int, endpoints: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "network namespace")
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
    started = time.perf_counter()
    bench.reconciler.learn()
    wall = time.perf_counter() - started
    bench.note("read back once", [{"wall": wall, "self": 0.0, "tools": 0.0, "lines": 0}])
    json.dump(bench.rows, sys.stdout)


if __name__ == "__main__":
    sys.exit(main())
