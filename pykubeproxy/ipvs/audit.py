"""Which virtual servers to look at next, and whether their real servers are as written.

IPVS sends no notices, and a service dump says nothing about real servers: each needs a dump of
its own. So they are looked at a few at a time, round and round. Kept is one number per virtual
server, not a second copy of all real servers: what a read-back found there, and every write since.
Pure; time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from pykubeproxy.ipvs.objects import Key, Real, Value, Virtual
from pykubeproxy.sync.outcome import Change

__all__ = ["Audit"]

ROUND_SECONDS = 60.0
"""How long one round over all virtual servers takes, unless there are too many."""
PAUSE_SECONDS = 1.0
IN_USE = 1
"""The weight of every real server that is wanted."""
MOST_AT_ONCE = 16
"""A look takes 0.1 to 0.4 ms, and a change that comes meanwhile has to wait."""


class Audit:
    """The expected real servers of every virtual server, as order-independent checksums."""

    def __init__(self) -> None:
        self._sums: dict[Virtual, int] = {}
        self._odd: dict[Real, int] = {}
        self._round: deque[Virtual] = deque()
        self._looked_at: float | None = None

    def forget(self) -> None:
        """Expect nothing: what the kernel holds is being read back."""
        self._sums.clear()
        self._odd.clear()
        self._round.clear()
        self._looked_at = None

    def expect(self, virtual: Virtual, reals: Mapping[Real, int]) -> None:
        """Expect what was found by a read-back; what is wrong there will be written."""
        self._sums[virtual] = _sum(reals)
        # Written over without a word about what was there before.
        self._odd.update((real, weight) for real, weight in reals.items() if weight != IN_USE)

    def note(self, change: Change[Key, Value]) -> None:
        """Expect from now on what *change* wrote."""
        for key, value in change.put.items():
            if isinstance(key, Virtual):
                self._sums.setdefault(key, 0)
            elif isinstance(key, Real):
                before = change.old.get(key, self._odd.pop(key, None) if self._odd else None)
                if before is not None:
                    self._toggle(key, before)
                self._toggle(key, value)
        for key, value in change.drop.items():
            if isinstance(key, Real):
                self._odd.pop(key, None)
                self._toggle(key, value)
        for key in change.drop:
            if isinstance(key, Virtual):
                self._sums.pop(key, None)

    def next_at(self, now: float) -> float | None:
        """When to look next; ``None`` while nothing is expected."""
        if not self._sums:
            return None
        # By how many there are now, lest a look that was far off for few is so for many.
        pause = max(PAUSE_SECONDS, ROUND_SECONDS / len(self._sums))
        if self._looked_at is None:
            self._looked_at = now + PAUSE_SECONDS - pause
        return self._looked_at + pause

    def take(self, now: float) -> list[Virtual]:
        """Return what to look at now."""
        due_at = self.next_at(now)
        if due_at is None or now < due_at:
            return []
        self._looked_at = now
        count = len(self._sums)
        chosen: list[Virtual] = []
        for _ in range(min(MOST_AT_ONCE, -(-count // int(ROUND_SECONDS)))):
            if not self._round:
                self._round.extend(self._sums)
            virtual = self._round.popleft()
            if virtual in self._sums and virtual not in chosen:
                chosen.append(virtual)
        return chosen

    def agrees(self, virtual: Virtual, reals: Mapping[Real, int]) -> bool:
        """Tell whether *reals* (with their weights, without draining ones) are as expected."""
        return self._sums.get(virtual) in (None, _sum(reals))

    def _toggle(self, real: Real, weight: Value) -> None:
        self._sums[real.virtual] = self._sums.get(real.virtual, 0) ^ _mark(real, weight)


def _sum(reals: Mapping[Real, int]) -> int:
    found = 0
    for real, weight in reals.items():
        found ^= _mark(real, weight)
    return found


def _mark(real: Real, weight: Value) -> int:
    return hash((real.address, real.port, weight))
