"""The one queue between the watch threads and the sync thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Condition

from pykubeproxy.watch.source import Event

__all__ = ["Mailbox"]


class Mailbox:
    """An unbounded queue of events with one reader and many writers.

    Unbounded on purpose: a full queue would hold up a watch until the server cuts it, and the
    memory is bounded by the cluster anyway, since the reader folds events into a store.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: deque[tuple[float, Event]] = deque()
        self._changed = Condition()
        self._woken = False

    def put(self, event: Event) -> None:
        with self._changed:
            self._events.append((self._clock(), event))
            self._changed.notify()

    def wake(self) -> None:
        """Make the reader's current or next `wait` return, although there may be no event."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def wait(self, seconds: float | None) -> None:
        """Return when there is an event, after `wake`, or after *seconds* (``None``: no limit)."""
        with self._changed:
            self._changed.wait_for(lambda: self._woken or bool(self._events), seconds)
            self._woken = False

    def drain(self) -> list[Event]:
        """Take everything that is in, oldest first; never waits."""
        return [event for _, event in self.drain_timed()]

    def drain_timed(self) -> list[tuple[float, Event]]:
        """The same, each event with the moment it came, on the clock of this mailbox."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
            return events
