"""What a piece of work costs: wall time, own CPU, the programs it starts, and where time went."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from msgspec import Struct

from pykubeproxy.host.exec import Finished, Input, Result, Stream, run

__all__ = [
    "Cost",
    "Program",
    "Programs",
    "Row",
    "Stopwatch",
    "measured",
    "median",
    "percentile",
    "timed",
]

T = TypeVar("T")


class Cost(Struct):
    """Seconds of wall time, of this process's CPU and of its programs' CPU."""

    wall: float = 0.0
    own: float = 0.0
    tools: float = 0.0


class Row(Struct, omit_defaults=True):
    """One line of a table: what was done and what it took, in seconds unless *unit* says otherwise.

    ``own`` and ``tools`` are CPU seconds of the process and its programs, ``stages`` is where the
    wall time went, ``messages`` and ``programs`` what was sent and started, ``floor`` what is left
    when the same programs get the same input without us.
    """

    what: str
    value: float
    p99: float = 0.0
    own: float = 0.0
    tools: float = 0.0
    messages: int = 0
    programs: int = 0
    stages: dict[str, float] = {}
    floor: Cost | None = None
    unit: str = "s"


class Stopwatch:
    """Tells where the time of a pass goes, by wrapping the seams of the real code.

    A seam inside another one counts for itself only. About half a microsecond per call.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._inner = [0.0]

    def follow(self, stage: str, owner: object, *names: str) -> None:
        """Count calls of these functions of a module, class or object under *stage*."""
        for name in names:
            setattr(owner, name, self.wrapped(stage, getattr(owner, name)))

    def take(self) -> dict[str, float]:
        """Return the seconds per stage since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def wrapped(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """*function*, with its calls counted under *stage*."""

        def call(*arguments: Any, **named: Any) -> Any:
            started = self._clock()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                whole = self._clock() - started
                own = whole - self._inner.pop()
                self._seconds[stage] = self._seconds.get(stage, 0.0) + own
                self._inner[-1] += whole

        return call


class Program(Struct):
    """One that was started: with what input, and how it ended (``None``: not by itself)."""

    argv: tuple[str, ...]
    input: list[bytes] = []
    status: int | None = None


class Programs:
    """Starts programs as the proxy does, and remembers which, with what input.

    Their time is the stage ``kernel``; input that is made while one reads it is ``render``.
    """

    def __init__(self, watch: Stopwatch) -> None:
        self.runs: list[Program] = []
        self.run = watch.wrapped("kernel", self._run)
        self._next = watch.wrapped("render", next)

    def _run(self, argv: Sequence[str], input: Input | None, timeout_seconds: float) -> Result:
        program = Program(tuple(argv))
        self.runs.append(program)
        if isinstance(input, Stream):
            input = Stream(partial(self._noted, input.chunks(), program.input))
        elif input is not None:
            program.input.append(input)
        result = run(argv, input, timeout_seconds)
        program.status = result.exit_status if isinstance(result, Finished) else None
        return result

    def _noted(self, chunks: Iterator[bytes], sent: list[bytes]) -> Iterator[bytes]:
        while (chunk := self._next(chunks, None)) is not None:
            sent.append(chunk)
            yield chunk


@contextmanager
def measured() -> Iterator[Cost]:
    """Fill in the yielded `Cost` when the block ends."""
    cost = Cost()
    before = _moment()
    yield cost
    cost.wall, cost.own, cost.tools = (b - a for a, b in zip(before, _moment(), strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that *share* of *values* do not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def median(what: str, runs: Sequence[Row]) -> Row:
    """One row for several runs of the same: the middle of each number, and the 99th
    percentile of the wall time."""

    def middle(values: Iterable[float]) -> float:
        return percentile(list(values), 0.5)

    stages = dict.fromkeys(stage for run in runs for stage in run.stages)
    floors = [run.floor for run in runs if run.floor is not None]
    row = Row(what, middle(run.value for run in runs))
    row.p99 = percentile([run.value for run in runs], 0.99) if len(runs) > 1 else 0.0
    row.own = middle(run.own for run in runs)
    row.tools = middle(run.tools for run in runs)
    row.messages = int(middle(run.messages for run in runs))
    row.programs = int(middle(run.programs for run in runs))
    row.stages = {stage: middle(run.stages.get(stage, 0.0) for run in runs) for stage in stages}
    if floors:
        row.floor = Cost(
            *(middle(getattr(f, name) for f in floors) for name in Cost.__struct_fields__)
        )
    return row


def timed(action: Callable[[], T]) -> tuple[T, Cost]:
    with measured() as cost:
        result = action()
    return result, cost


def _moment() -> tuple[float, float, float]:
    tools = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time(), tools.ru_utime + tools.ru_stime
