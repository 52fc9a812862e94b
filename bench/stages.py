"""A proxy without API server and daemon: objects go in by hand, and each pass is taken apart.

The stages are seams of the real code, so nothing of it is written down a second time here.
"""

from __future__ import annotations

import gc
import subprocess
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from bench import netns
from bench.measure import Programs, Row, Stopwatch, measured, median, timed
from bench.wire import watch_line, watch_lines
from bench.worlds import World
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, Service
from pykubeproxy.sync import reconciler as reconciler_module
from pykubeproxy.sync.outcome import Compiler, Dataplane
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from pykubeproxy.sync.tracker import Tracker
from pykubeproxy.watch.wire import Changed, decode_line

__all__ = ["STAGES", "Half", "Passes", "events", "watch_stages"]

STAGES = ("decode", "store", "routes", "compile", "diff", "render", "kernel", "read back", "rest")
CHANGES = 9

Object = Service | EndpointSlice


class Half(Struct):
    """One address family: its reconciler, and what it is told about the node."""

    reconciler: Reconciler[Any, Any]
    node: NodeContext


def watch_stages(
    watch: Stopwatch, compiler: Compiler[Any, Any], dataplane: Dataplane[Any, Any]
) -> None:
    """Make *watch* follow one family of a backend; what starts programs it follows already."""
    watch.follow("compile", compiler, "base", "compile")
    watch.follow("render", dataplane, "plan", "apply")
    watch.follow("read back", dataplane, "observe")


class Passes:
    """Feeds a store and runs passes; remembers the programs of each for `replay`."""

    def __init__(
        self, halves: Sequence[Half], programs: Programs, watch: Stopwatch, store: Store
    ) -> None:
        self._halves = halves
        self._programs = programs
        self._watch = watch
        self._store = store
        self._done: list[tuple[Row, int]] = []
        self._decode = watch.wrapped("decode", decode_line)
        self._put = watch.wrapped("store", store.put)

    def run(self, put: Iterable[Object] = (), drop: Iterable[Object] = ()) -> Row:
        """One pass after these changes, from the bytes of a watch on."""
        return self.run_lines([(_kind(obj), watch_line(obj)) for obj in put], drop)

    def run_lines(self, lines: Iterable[tuple[Kind, bytes]], drop: Iterable[Object] = ()) -> Row:
        messages = 0

        def work() -> None:
            nonlocal messages
            for kind, line in lines:
                event: Changed = self._decode(kind, line)
                self._put(event.object)
            for obj in drop:
                self._store.drop(_kind(obj), ObjectKey(*obj.key))
            touched = self._store.take()
            for half in self._halves:
                report = half.reconciler.run(touched, self._store, half.node)
                assert report.succeeded, report.detail
                assert not report.quarantined, report.quarantined[0]
                messages += report.lines

        row = self.look(work)
        row.messages = messages
        return row

    def look(self, action: Callable[[], object]) -> Row:
        """Something, be it a pass or not, and where its time went."""
        before = len(self._programs.runs)
        self._watch.take()
        _, cost = timed(action)
        seconds = self._watch.take()
        seconds["rest"] = cost.wall - sum(seconds.values())
        stages = {stage: seconds[stage] for stage in STAGES if stage in seconds}
        started = len(self._programs.runs) - before
        row = Row("", cost.wall, own=cost.own, tools=cost.tools, programs=started, stages=stages)
        self._done.append((row, len(self._programs.runs)))
        return row

    def learn(self) -> None:
        for half in self._halves:
            learn = self._watch.wrapped("read back", half.reconciler.learn)
            assert learn(), "the kernel does not hold what was written"

    def distrust(self) -> None:
        for half in self._halves:
            half.reconciler.distrust()

    def replay(self) -> None:
        """Note the floor of every row: the same programs and input, straight into a new kernel."""
        netns.enter_new()
        start = 0
        for row, end in self._done:
            if row.programs:
                with measured() as row.floor:
                    for program in self._programs.runs[start:end]:
                        text = b"".join(program.input)
                        done = subprocess.run(
                            program.argv, input=text, capture_output=True, check=False
                        )
                        assert program.status == done.returncode, done.stderr
            start = end


def events(passes: Passes, world: World) -> list[tuple[str, list[Row]]]:
    """What a proxy's life is made of, as rows for each thing that happens."""
    lists = (
        (Kind.SERVICE, watch_lines(map(world.service, range(world.services)))),
        (
            Kind.ENDPOINT_SLICE,
            watch_lines(s for n in range(world.services) for s in world.slices(n)),
        ),
    )
    found = [("first write", [passes.run_lines((k, line) for k, part in lists for line in part)])]
    # As the daemon does once it is in sync.
    gc.collect()
    gc.freeze()
    found.append(("nothing changed", [passes.run() for _ in range(CHANGES)]))
    changed, added, removed = [], [], []
    for n in range(1, CHANGES + 1):
        index, new = n * world.services // (CHANGES + 1), world.services + n
        changed.append(passes.run([world.changed_slice(index, n)]))
        added.append(passes.run([world.service(new), *world.slices(new)]))
        removed.append(passes.run(drop=[world.service(new)]))
        passes.run(drop=world.slices(new))
    found += [
        ("one endpoint changed", changed),
        ("Service added", added),
        ("Service removed", removed),
        ("read back once", [passes.look(passes.learn)]),
    ]
    passes.distrust()
    found.append(("resync", [passes.run()]))
    return found


def rows(found: Iterable[tuple[str, list[Row]]]) -> list[Row]:
    return [median(what, runs) for what, runs in found]


def follow_core(watch: Stopwatch) -> None:
    """Make *watch* follow what all backends share; for the rest of this process."""
    watch.follow("routes", reconciler_module, "service_routes")
    watch.follow("diff", Tracker, "want", "changes", "confirm", "align")


def _kind(obj: Object) -> Kind:
    return Kind.SERVICE if isinstance(obj, Service) else Kind.ENDPOINT_SLICE
