"""Wanted and applied objects, by owner, and what is missing between them.

The idea of two views with the pending changes maintained between them is Calico Felix's
(``deltatracker``). Here the unit is the owner: a pass visits only owners whose views differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Change, Observation, Transaction, leftover

__all__ = ["Conflict", "Tracker"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Rank = tuple[str, ServiceKey]
Conflict = tuple[Hashable, ServiceKey, ServiceKey]
"""A key, the owner that has it, and an owner that wants it too."""


class Tracker(Generic[K, V]):
    """The books of one dataplane. Owned by the sync thread; no I/O.

    *exclusive* tells which keys two owners could want at the same time. Of those that do, the
    one with the smallest rank has the key (the older Service, then the smaller name), on every
    node and after every restart; the others get it as soon as it is free.
    """

    def __init__(self, exclusive: Callable[[K], bool]) -> None:
        self._exclusive = exclusive
        self._wanted: dict[ServiceKey, dict[K, V]] = {}
        self._applied: dict[ServiceKey, dict[K, V]] = {}
        self._ranks: dict[ServiceKey, str] = {}
        self._claims: dict[K, list[Rank]] = {}
        self._contested: set[K] = set()
        self._dirty: set[ServiceKey] = set()
        self._held: set[ServiceKey] = set()
        self._leftovers: dict[K, ServiceKey] = {}

    # --- wanting ---

    def want(self, owner: ServiceKey, objects: dict[K, V], age: str = "") -> None:
        """Set everything *owner* wants; *age* is its creation time in a sortable form."""
        before = self._wanted.get(owner, {})
        if before == objects and self._ranks.get(owner) == age:
            return
        # Claims are sorted by rank, so an owner that changes its age leaves and comes back.
        self._unclaim(owner, [k for k in before if k not in objects or self._ranks[owner] != age])
        if objects:
            self._wanted[owner] = objects
            self._ranks[owner] = age
            self._claim(owner, age, objects)
            # A leftover that is wanted again: written by its new owner, no longer removed.
            for key in self._leftovers.keys() & objects.keys():
                self._applied.pop(self._leftovers.pop(key), None)
        else:
            self._wanted.pop(owner, None)
            self._ranks.pop(owner, None)
        self._dirty.add(owner)

    def wanted(self, owner: ServiceKey) -> Mapping[K, V]:
        """What *owner* wants and has the right to: without keys that an older owner has."""
        objects = self._wanted.get(owner, {})
        lost = [
            k
            for k in objects
            if self._exclusive(k) and (claims := self._claims.get(k)) and claims[0][1] != owner
        ]
        if not lost:
            return objects
        return {k: v for k, v in objects.items() if k not in lost}

    def conflicts(self) -> list[Conflict]:
        """Every key that more than one owner wants."""
        return [
            (key, claims[0][1], loser)
            for key in self._contested
            for claims in [self._claims[key]]
            for _, loser in claims[1:]
        ]

    # --- comparing ---

    def changes(self) -> list[Change[K, V]]:
        """What every owner lacks, except owners on hold; cost follows the owners that differ."""
        found = []
        for owner in sorted(self._dirty - self._held):
            wanted, applied = self.wanted(owner), self._applied.get(owner, {})
            put = {k: v for k, v in wanted.items() if k not in applied or applied[k] != v}
            drop = {k: v for k, v in applied.items() if k not in wanted}
            if put or drop:
                old = {k: applied[k] for k in put if k in applied}
                found.append(Change(owner, put, drop, old))
            else:
                self._settle(owner)
        return found

    @property
    def in_sync(self) -> bool:
        """Nothing is missing, owners on hold included."""
        return not self._dirty

    def applied(self) -> Iterable[Mapping[K, V]]:
        """Everything the kernel is known to hold, by owner."""
        return self._applied.values()

    @property
    def object_count(self) -> int:
        return sum(len(objects) for objects in self._applied.values())

    # --- confirming ---

    def confirm(self, transaction: Transaction[K, V]) -> None:
        """Note that *transaction* was committed."""
        for change in transaction.changes:
            applied = self._applied.get(change.owner, {})
            if applied is self._wanted.get(change.owner):
                applied = dict(applied)  # a settled owner shares its dict with wanted
            applied.update(change.put)
            for key in change.drop:
                applied.pop(key, None)
            self._applied[change.owner] = applied
            if applied == self.wanted(change.owner):
                self._settle(change.owner)

    def hold(self, owner: ServiceKey) -> None:
        """Leave *owner* as it is until `release`."""
        self._held.add(owner)

    def release(self, owner: ServiceKey) -> None:
        self._held.discard(owner)

    def is_held(self, owner: ServiceKey) -> bool:
        return owner in self._held

    def owes(self, owner: ServiceKey) -> bool:
        """Tell whether anything of *owner* is still missing."""
        return owner in self._dirty

    def align(self, observation: Observation[K, V]) -> int:
        """Take over what the kernel really holds; return how many objects were not as noted.

        Objects of ours that nobody wants are from now on pending for removal. Costs a visit to
        every object: the slow path, for start and repair only.
        """
        surprises = 0
        for owner in self._wanted.keys() | self._applied.keys():
            before = self._applied.get(owner, {})
            candidates = {**self.wanted(owner), **before}
            present = {k: v for k, v in candidates.items() if observation.holds(k, v)}
            surprises += sum(1 for k in before if k not in present)
            self._applied[owner] = present
            self._dirty.add(owner)
        known = [*self._wanted.values(), *self._applied.values()]
        strays = dict(observation.strays(known))
        surprises += len(strays)
        self._leftovers = {key: leftover(key) for key in strays}
        for key, value in strays.items():
            self._applied[leftover(key)] = {key: value}
            self._dirty.add(leftover(key))
        return surprises

    # --- private ---

    def _settle(self, owner: ServiceKey) -> None:
        self._dirty.discard(owner)
        wanted = self._wanted.get(owner)
        if wanted is None:
            self._applied.pop(owner, None)
        elif self._applied.get(owner) == wanted:
            self._applied[owner] = wanted  # one dict for both views: half the memory

    def _claim(self, owner: ServiceKey, age: str, objects: Mapping[K, V]) -> None:
        for key in objects:
            if not self._exclusive(key):
                continue
            claims = self._claims.setdefault(key, [])
            if (age, owner) in claims:
                continue
            if claims:
                self._dirty.add(claims[0][1])
                self._contested.add(key)
            claims.append((age, owner))
            claims.sort()

    def _unclaim(self, owner: ServiceKey, keys: list[K]) -> None:
        for key in keys:
            claims = self._claims.get(key)
            if claims is None:
                continue
            claims[:] = [claim for claim in claims if claim[1] != owner]
            if len(claims) < 2:
                self._contested.discard(key)
            if claims:
                self._dirty.add(claims[0][1])
            else:
                del self._claims[key]
