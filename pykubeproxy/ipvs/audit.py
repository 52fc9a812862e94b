"""Which virtual servers to look at next, and whether their real servers are as written.

IPVS sends no notices, and a service dump says nothing about real servers: each needs a dump of
its own. So they are looked at a few at a time, round and round. Kept is one number per virtual
server, not a second copy of all real servers. Pure; time is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

from pykubeproxy.ipvs.objects import Key, Real, Value, Virtual
from pykubeproxy.sync.outcome import Change

__all__ = ["Audit"]

ROUND_SECONDS = 60.0
"""How long one round over all virtual servers takes, unless there are too many."""
PAUSE_SECONDS = 1.0
MOST_AT_ONCE = 16
"""A look takes 0.1 to 0.4 ms, and a change that comes meanwhile has to wait."""


class Audit:
    """The expected real servers of every virtual server, as order-independent checksums."""

    def __init__(self) -> None:
        self._sums: dict[Virtual, int] = {}
        self._round: deque[Virtual] = deque()
        self._due_at: float | None = None

    def forget(self) -> None:
        """Expect nothing: what the kernel holds is being read back."""
        self._sums.clear()
        self._round.clear()
        self._due_at = None

    def learn(self, applied: Iterable[Mapping[Key, Value]]) -> None:
        """Expect *applied*."""
        self.forget()
        for objects in applied:
            for key, value in objects.items():
                if isinstance(key, Virtual):
                    self._sums.setdefault(key, 0)
                elif isinstance(key, Real):
                    self._toggle(key, value)

    def note(self, change: Change[Key, Value]) -> None:
        """Expect from now on what *change* wrote, if anything is expected at all."""
        if not self._sums:
            return
        for key, value in change.put.items():
            if isinstance(key, Virtual):
                self._sums.setdefault(key, 0)
            elif isinstance(key, Real):
                if key in change.old:
                    self._toggle(key, change.old[key])
                self._toggle(key, value)
        for key, value in change.drop.items():
            if isinstance(key, Real):
                self._toggle(key, value)
        for key in change.drop:
            if isinstance(key, Virtual):
                self._sums.pop(key, None)

    def next_at(self, now: float) -> float | None:
        """When to look next; ``None`` while nothing is expected."""
        if not self._sums:
            return None
        if self._due_at is None:
            self._due_at = now + PAUSE_SECONDS
        return self._due_at

    def take(self, now: float) -> list[Virtual]:
        """Return what to look at now."""
        due_at = self.next_at(now)
        if due_at is None or now < due_at:
            return []
        count = len(self._sums)
        self._due_at = now + max(PAUSE_SECONDS, min(ROUND_SECONDS / count, ROUND_SECONDS))
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
        found = 0
        for real, weight in reals.items():
            found ^= _mark(real, weight)
        return self._sums.get(virtual) in (None, found)

    def _toggle(self, real: Real, weight: Value) -> None:
        self._sums[real.virtual] = self._sums.get(real.virtual, 0) ^ _mark(real, weight)


def _mark(real: Real, weight: Value) -> int:
    return hash((real.address, real.port, weight))
