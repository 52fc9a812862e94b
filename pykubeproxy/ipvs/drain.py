"""Graceful termination: which real servers wait at weight 0 for their connections to end.

Decides only. Whoever writes to the kernel asks here what to do with a real server that is no
longer wanted, looks at connection counts when told to, and says what became of it. Times are
seconds on any clock that never goes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from msgspec import Struct

from pykubeproxy.ipvs.objects import Real, Virtual
from pykubeproxy.model.kinds import Protocol

__all__ = ["FIRST_PAUSE_SECONDS", "LONGEST_PAUSE_SECONDS", "Drain", "Verdict"]

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 15.0
"""Each pause is twice the one before: most connections end soon, and a look costs a dump."""


class Verdict(Enum):
    """What a look at a real server's connections means for it."""

    KEEP = "keep"
    DELETE = "delete"
    """Now. It stays on the list until `Drain.leave`, in case that fails."""
    GONE = "gone"
    """Somebody else deleted it; it has left the list."""


class _Wait(Struct):
    deadline: float | None
    next_look: float
    pause: float = FIRST_PAUSE_SECONDS


class Drain:
    """The real servers that wait, for one family. Not safe for several threads.

    *limit_seconds* is how long one may wait at most; 0: as long as its connections last.
    """

    def __init__(self, limit_seconds: float = 30.0) -> None:
        self._limit_seconds = limit_seconds
        self._waits: dict[Virtual, dict[Real, _Wait]] = {}

    def __contains__(self, real: Real) -> bool:
        return real in self._waits.get(real.virtual, ())

    def __len__(self) -> int:
        return sum(map(len, self._waits.values()))

    def __iter__(self) -> Iterator[Real]:
        for reals in self._waits.values():
            yield from reals

    def enter(self, real: Real, connections: int, now: float) -> bool:
        """Tell whether a real server that is not wanted any more must wait, at weight 0.

        If not, it is deleted at once: only TCP connections (active or not) are waited for. One
        that waits already goes on waiting; its time does not begin again.
        """
        if real in self:
            return True
        if real.virtual.protocol is not Protocol.TCP or connections <= 0:
            return False
        deadline = now + self._limit_seconds if self._limit_seconds else None
        wait = _Wait(deadline, _earlier(now + FIRST_PAUSE_SECONDS, deadline))
        self._waits.setdefault(real.virtual, {})[real] = wait
        return True

    def leave(self, real: Real) -> bool:
        """Take one off the list that is wanted again or deleted; tell whether it was there."""
        reals = self._waits.get(real.virtual, {})
        if reals.pop(real, None) is None:
            return False
        if not reals:
            del self._waits[real.virtual]
        return True

    def leave_all(self, virtual: Virtual) -> tuple[Real, ...]:
        """Take all of a virtual server off the list, as it goes with its real servers."""
        return tuple(self._waits.pop(virtual, ()))

    def next_look(self) -> float | None:
        """When somebody is due; ``None`` if nobody waits. May be in the past."""
        looks = (wait.next_look for reals in self._waits.values() for wait in reals.values())
        return min(looks, default=None)

    def due(self, now: float) -> dict[Virtual, tuple[Real, ...]]:
        """Who is to be looked at now, by virtual server: one dump tells of all its real servers."""
        found: dict[Virtual, tuple[Real, ...]] = {}
        for virtual, reals in self._waits.items():
            if these := tuple(real for real, wait in reals.items() if wait.next_look <= now):
                found[virtual] = these
        return found

    def judge(self, real: Real, connections: int | None, now: float) -> Verdict:
        """Decide by the connections counted now; ``None``: there is no such real server.

        A count that could not be read is taken for 1: nobody is cut off early, and the time
        limit holds all the same.

        Raises:
            KeyError: *real* does not wait.
        """
        wait = self._waits[real.virtual][real]
        if connections is None:
            self.leave(real)
            return Verdict.GONE
        late = wait.deadline is not None and now >= wait.deadline
        if late or connections <= 0:
            # Should the deletion fail, it is tried again after the usual pause.
            wait.next_look = now + wait.pause
            return Verdict.DELETE
        wait.pause = min(2 * wait.pause, LONGEST_PAUSE_SECONDS)
        wait.next_look = _earlier(now + wait.pause, wait.deadline)
        return Verdict.KEEP


def _earlier(time: float, deadline: float | None) -> float:
    return time if deadline is None else min(time, deadline)
