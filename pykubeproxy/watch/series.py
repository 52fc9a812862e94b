"""Which Events are told to the API server and which are only counted, as client-go decides it.

The same thing again, within a while of the last time, makes no second Event: the first one becomes
a series (events.k8s.io/v1), told at once when it begins, and from then on as it goes on or ends.
Besides, every object has a budget of Events, so that one that is in trouble without end costs the
API server next to nothing. See client-go's tools/events (series) and tools/record (budget).

Time is an argument, in seconds on any clock. One owner thread.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

from msgspec import Struct

__all__ = ["Budgets", "Open", "Series", "Verdict"]

K = TypeVar("K", bound=Hashable)

FINISH_SECONDS = 360.0
"""What has not happened for so long is over; the next time is a new Event."""
REFRESH_SECONDS = 1800.0
"""How often a series that goes on is told. Events live for an hour, counted from the last write."""
BURST = 25
REFILL_SECONDS = 300.0
MOST = 1000
"""So many series, and budgets, are known at a time; beyond, the oldest is forgotten."""


class Verdict(Enum):
    """What to do about something that happened."""

    CREATE = "create"
    EXTEND = "extend"
    COUNT = "count"
    DROP = "drop"


class Open(Struct, Generic[K]):
    """A series that may go on: something that happened *count* times so far.

    *told* is how often the API server knows of.
    """

    key: K
    first: float
    last: float
    count: int = 1
    told: int = 1
    told_at: float = 0.0


class Budgets:
    """A token bucket for each source: a burst, then one in five minutes."""

    def __init__(self) -> None:
        self._left: dict[Hashable, tuple[float, float]] = {}

    def spend(self, source: Hashable, now: float) -> bool:
        """Take one of *source*'s tokens, if there is one."""
        tokens, at = self._left.pop(source, (float(BURST), now))
        tokens = min(float(BURST), tokens + max(0.0, now - at) / REFILL_SECONDS)
        granted = tokens >= 1
        # At the end of the dict: the first one in it is who was heard of least recently.
        self._left[source] = (tokens - granted, now)
        if len(self._left) > MOST:
            del self._left[next(iter(self._left))]
        return granted


class Series(Generic[K]):
    """What happened lately, by what makes two happenings the same."""

    def __init__(self) -> None:
        self._open: dict[K, Open[K]] = {}
        self._budgets = Budgets()

    def happened(self, key: K, source: Hashable, now: float) -> Verdict:
        """Something happened to *source*; *key* is equal where it is the same again."""
        known = self._open.get(key)
        if known is not None and now - known.last <= FINISH_SECONDS:
            known.count += 1
            known.last = now
            begins = known.told == 1
            return Verdict.EXTEND if begins and self._budgets.spend(source, now) else Verdict.COUNT
        if not self._budgets.spend(source, now):
            return Verdict.DROP
        self._open.pop(key, None)
        self._open[key] = Open(key, now, now, told_at=now)
        if len(self._open) > MOST:
            del self._open[next(iter(self._open))]
        return Verdict.CREATE

    def known(self, key: K) -> Open[K] | None:
        return self._open.get(key)

    def told(self, key: K, now: float) -> None:
        """The API server knows of all there were so far."""
        known = self._open.get(key)
        if known is not None:
            known.told, known.told_at = known.count, now

    def forget(self, key: K) -> None:
        """The API server does not have it: the next time is the first."""
        self._open.pop(key, None)

    def due(self, now: float) -> list[Open[K]]:
        """Return the series of which more is to be told; what is over is forgotten."""
        found = []
        for key, known in list(self._open.items()):
            over = now - known.last > FINISH_SECONDS
            if over:
                del self._open[key]
            if known.count > known.told and (over or now - known.told_at >= REFRESH_SECONDS):
                found.append(known)
        return found

    def __len__(self) -> int:
        return len(self._open)
