"""Who has what several owners want: the one with the smallest rank, the others wait.

A claim stands for the objects that can only be had together, such as a virtual server with its
real servers. Rank is age, then name: the same on every node and after every restart.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterable, Set
from typing import Generic, TypeVar

from pykubeproxy.model.objects import ServiceKey

__all__ = ["Claims", "Rank"]

K = TypeVar("K", bound=Hashable)

Rank = tuple[str, ServiceKey]
"""Creation time in a sortable form, and the owner."""

_NOTHING: frozenset[object] = frozenset()


class Claims(Generic[K]):
    """Holders and waiting owners of every claim; only contested claims cost more than an entry."""

    def __init__(self) -> None:
        self._holders: dict[K, Rank] = {}
        self._waiting: dict[K, list[Rank]] = {}
        self._lost: dict[ServiceKey, set[K]] = {}

    def __bool__(self) -> bool:
        return bool(self._holders or self._waiting or self._lost)

    def take(self, claim: K, rank: Rank) -> ServiceKey | None:
        """Claim for the owner of *rank*; return the owner who had it until now and loses it."""
        holder = self._holders.setdefault(claim, rank)
        if holder == rank:
            return None
        if rank < holder:
            self._holders[claim] = rank
            self._wait(claim, holder)
            return holder[1]
        self._wait(claim, rank)
        return None

    def give_up(self, claim: K, rank: Rank) -> ServiceKey | None:
        """Leave the claim; return the owner who waited for it and has it now."""
        queue = self._waiting.get(claim)
        if self._holders.get(claim) != rank:
            if queue and rank in queue:
                queue.remove(rank)
                self._settle(claim, rank[1])
            return None
        if not queue:
            del self._holders[claim]
            return None
        heir = self._holders[claim] = queue.pop(0)
        self._settle(claim, heir[1])
        return heir[1]

    def holder(self, claim: K) -> ServiceKey | None:
        """Who has it; ``None`` if nobody claims it."""
        rank = self._holders.get(claim)
        return rank[1] if rank else None

    def waiting(self, claim: K) -> Iterable[ServiceKey]:
        """Owners who want it and do not have it, the next one first."""
        return [owner for _, owner in self._waiting.get(claim, ())]

    def contested(self, claims: Set[K]) -> Set[K]:
        """Those of *claims* that somebody waits for."""
        return claims & self._waiting.keys()

    def lost(self, owner: ServiceKey) -> Set[K]:
        """What *owner* waits for."""
        return self._lost.get(owner, _NOTHING)  # type: ignore[arg-type]  # empty fits any K

    def _wait(self, claim: K, rank: Rank) -> None:
        queue = self._waiting.setdefault(claim, [])
        if rank not in queue:
            insort(queue, rank)
        self._lost.setdefault(rank[1], set()).add(claim)

    def _settle(self, claim: K, owner: ServiceKey) -> None:
        """*owner* no longer waits."""
        if not self._waiting[claim]:
            del self._waiting[claim]
        lost = self._lost[owner]
        lost.discard(claim)
        if not lost:
            del self._lost[owner]
