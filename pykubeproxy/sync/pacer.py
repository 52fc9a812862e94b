"""When the next pass may start. Time is an argument, in seconds on any monotonic clock."""

from __future__ import annotations

__all__ = ["Pacer"]

ADAPTIVE_FACTOR = 2.0
"""Pause after a pass, as a multiple of its cost: at most a third of the time is spent syncing."""
ADAPTIVE_FLOOR_SECONDS = 0.02
ADAPTIVE_CEILING_SECONDS = 1.0
RETRY_FLOOR_SECONDS = 0.25


class Pacer:
    """Gathers bursts, lets a first change through at once, and schedules retries and resyncs.

    *min_interval_seconds* is the least pause between the end of a pass and the start of the next
    one; ``None`` makes it follow the cost of the last pass, up to one second. After a failure
    the next pass comes by itself, doubling from a quarter of a second to *retry_seconds*; after
    a success the next one comes after *resync_seconds*.

    Raises:
        ValueError: a resync would be due before the pause allows it.
    """

    def __init__(
        self,
        min_interval_seconds: float | None,
        retry_seconds: float,
        resync_seconds: float = 3600.0,
    ) -> None:
        if resync_seconds < (min_interval_seconds or 0):
            raise ValueError("the resync interval is shorter than the minimum sync interval")
        self._min_interval = min_interval_seconds
        self._retry = retry_seconds
        self._resync = resync_seconds
        self._not_before = float("-inf")
        self._due: float | None = None
        self._failures = 0

    def request(self, now: float) -> None:
        """Ask for a pass at *now* or as soon after as the pause allows.

        Requests until it starts are one.
        """
        wanted = max(now, self._not_before)
        self._due = wanted if self._due is None else min(self._due, wanted)

    def urge(self, now: float) -> None:
        """Ask for a pass at once, without the pause: something is broken."""
        self._due = now

    def finished(self, now: float, cost_seconds: float, succeeded: bool) -> None:
        """Note the end of a pass: sets the pause and the next pass that comes by itself."""
        pause = self._min_interval
        if pause is None:
            share = ADAPTIVE_FACTOR * cost_seconds
            pause = min(ADAPTIVE_CEILING_SECONDS, max(ADAPTIVE_FLOOR_SECONDS, share))
        self._not_before = now + pause
        if succeeded:
            self._failures = 0
            self._due = now + self._resync
        else:
            delay = min(self._retry, RETRY_FLOOR_SECONDS * 2**self._failures)
            self._failures = min(self._failures + 1, 16)
            self._due = max(self._not_before, now + delay)

    def due(self, now: float) -> bool:
        return self._due is not None and now >= self._due

    @property
    def next_at(self) -> float | None:
        """When the next pass starts if nothing else is asked for; ``None`` before any request."""
        return self._due
