"""Counters, gauges and histograms without a library behind them.

What counts in places that a start passes through (requests, Events, watches) or that a pass runs
through (everything a sync tells) is kept in these, and turned into Prometheus' text only when
somebody asks (`pykubeproxy.metrics`). Every method may be called from any thread; a lock is held
for as long as a dictionary is looked at, so a scrape holds up nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from threading import Lock

from msgspec import Struct

__all__ = ["Counts", "Distribution", "Gauges", "Labels", "Measure", "Readings", "Spread", "Text"]

Labels = tuple[str, ...]
"""Values of a measure's labels, in their order."""


class Text(Struct, frozen=True):
    """What is said about a measure: ``name`` in full (a counter's ends in ``_total``), its labels,
    and how settled Kubernetes says it is (``ALPHA``, ``BETA``); ours have no such promise.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    stability: str = ""


class _Numbers:
    """A number for each series; without labels there is one series, which starts at 0."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self._lock = Lock()
        self._values: dict[Labels, float] = {} if text.labels else {(): 0.0}

    def read(self) -> dict[Labels, float]:
        with self._lock:
            return dict(self._values)

    def _increase(self, by: float, labels: Labels) -> None:
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + by


class Counts(_Numbers):
    """A counter. Without labels it starts at 0, with labels a series starts at its first count."""

    def add(self, *labels: str, by: float = 1.0) -> None:
        self._increase(by, labels)


class Gauges(_Numbers):
    """A value that comes and goes; series as in `Counts`."""

    def set(self, value: float, *labels: str) -> None:
        with self._lock:
            self._values[labels] = value

    def add(self, by: float, *labels: str) -> None:
        self._increase(by, labels)

    def remove(self, *labels: str) -> None:
        """End a series, if it is there."""
        with self._lock:
            self._values.pop(labels, None)


class Spread(Struct, frozen=True):
    """A histogram's state: how many values were at most each bound (the last: of any size)."""

    cumulative: tuple[int, ...]
    total: float


class Distribution:
    """A histogram over *bounds*, which are inclusive and ascending; series as in `Counts`."""

    def __init__(self, text: Text, bounds: Sequence[float]) -> None:
        self.text = text
        self.bounds = tuple(bounds)
        self._lock = Lock()
        self._series: dict[Labels, list[int]] = {}
        self._totals: dict[Labels, float] = {}
        if not text.labels:
            self.observe_all(())

    def observe(self, value: float, *labels: str) -> None:
        self.observe_all((value,), *labels)

    def observe_all(self, values: Iterable[float], *labels: str) -> None:
        """Take many values at once; none at all makes the series appear."""
        bounds = self.bounds
        with self._lock:
            counts = self._series.get(labels)
            if counts is None:
                counts = self._series[labels] = [0] * (len(bounds) + 1)
                self._totals[labels] = 0.0
            for value in values:
                counts[bisect_left(bounds, value)] += 1
                self._totals[labels] += value

    def read(self) -> dict[Labels, Spread]:
        with self._lock:
            return {
                labels: Spread(tuple(accumulate(counts)), self._totals[labels])
                for labels, counts in self._series.items()
            }


class Readings:
    """Gauges (or, with *counter*, counters) that are found out only when somebody asks.

    *read* may be called from any thread, and returns the value of every series there is now.
    """

    def __init__(
        self, text: Text, read: Callable[[], Mapping[Labels, float]], *, counter: bool = False
    ) -> None:
        self.text = text
        self.read = read
        self.counter = counter


Measure = Counts | Gauges | Distribution | Readings
