"""What a piece of work costs: wall time, own CPU, and the programs it starts."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from msgspec import Struct

from pykubeproxy.host.exec import Result, run

__all__ = ["Cost", "Programs", "Row", "measured", "percentile", "timed"]

T = TypeVar("T")


class Cost(Struct):
    """Seconds of wall time, of this process's CPU and of its programs' CPU."""

    wall: float = 0.0
    own: float = 0.0
    tools: float = 0.0


class Row(Struct):
    """One line of the table: what was done, its cost, and what it wrote and started."""

    what: str
    wall: float
    p99: float = 0.0
    own: float = 0.0
    tools: float = 0.0
    messages: int = 0
    programs: int = 0


class Programs:
    """Starts programs as the proxy does, and remembers which and for how long."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0

    def run(self, argv: Sequence[str], input: bytes | None, timeout_seconds: float) -> Result:
        started = time.perf_counter()
        try:
            return run(argv, input, timeout_seconds)
        finally:
            self.count += 1
            self.seconds += time.perf_counter() - started


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


def timed(action: Callable[[], T]) -> tuple[T, Cost]:
    with measured() as cost:
        result = action()
    return result, cost


def _moment() -> tuple[float, float, float]:
    tools = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter(), time.process_time(), tools.ru_utime + tools.ru_stime
