"""Wanted and applied objects, by owner, and what is missing between them.

The idea of two views with the pending changes maintained between them is Calico Felix's
(``deltatracker``). Here the unit is the owner: a pass visits only owners whose views differ.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from typing import Generic, TypeVar

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.claims import Claims, Rank
from pykubeproxy.sync.outcome import Change, Observation, Transaction, leftover

__all__ = ["Conflict", "Tracker"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Conflict = tuple[Hashable, ServiceKey, ServiceKey]
"""A claim, the owner that has it, and an owner that wants something else under it."""


class Tracker(Generic[K, V]):
    """The books of one dataplane. Owned by the sync thread; no I/O.

    *claim* tells under which key an object can be had, ``None`` where only one owner could want
    it (`pykubeproxy.sync.outcome.Compiler.claim`). Of several owners with one claim the one with
    the smallest rank has it; the others get it as soon as it is free. What the kernel holds under
    a claim stays there when the claim changes hands: only what differs is written.
    *counts_of* tells how much objects are (rules, servers), by name, for `counts`.
    """

    def __init__(
        self,
        claim: Callable[[K], K | None],
        counts_of: Callable[[Mapping[K, V]], Mapping[str, int]] = lambda _: {},
    ) -> None:
        self._claim_of = claim
        self._counts_of = counts_of
        self._counts: dict[str, int] = {}
        self._wanted: dict[ServiceKey, dict[K, V]] = {}
        self._applied: dict[ServiceKey, dict[K, V]] = {}
        self._ranks: dict[ServiceKey, Rank] = {}
        self._claims: Claims[K] = Claims()
        self._conflicts: dict[tuple[K, ServiceKey], Conflict] = {}
        self._new_conflicts: dict[tuple[K, ServiceKey], Conflict] = {}
        self._dirty: set[ServiceKey] = set()
        self._held: set[ServiceKey] = set()
        self._leftovers: dict[K, ServiceKey] = {}
        self._given_up: dict[K, ServiceKey] = {}  # claims nobody has, still in the kernel

    # --- wanting ---

    def want(self, owner: ServiceKey, objects: dict[K, V], age: str = "") -> None:
        """Set everything *owner* wants; *age* is its creation time in a sortable form."""
        before = self._wanted.get(owner, {})
        rank = (age, owner)
        old_rank = self._ranks.get(owner, rank)
        if before == objects and old_rank == rank:
            return
        self._count(before, -1)
        self._count(objects, 1)
        if objects:
            self._wanted[owner] = objects
            self._ranks[owner] = rank
        else:
            self._wanted.pop(owner, None)
            self._ranks.pop(owner, None)
        self._dirty.add(owner)
        had: Set[K] = self._claims_in(before) if before else frozenset()
        has = self._claims_in(objects)
        concerned = set(self._claims.contested(had | has))
        for claim in had if old_rank != rank else had - has:
            heir = self._claims.give_up(claim, old_rank)
            if heir is not None:
                self._hand_over(claim, owner, heir)
            elif owner in self._applied and self._claims.holder(claim) is None:
                self._given_up[claim] = owner
        for claim in has if old_rank != rank else has - had:
            loser = self._claims.take(claim, rank)
            if loser is None and self._given_up:
                loser = self._given_up.pop(claim, None)
            if loser is not None and loser != owner:
                self._hand_over(claim, loser, owner)
        # A leftover that is wanted again: its new owner replaces it, nobody removes it.
        for key in self._leftovers.keys() & objects.keys():
            self._move({key}, self._leftovers.pop(key), owner)
        concerned |= self._claims.contested(had | has)
        for claim in concerned:
            self._judge(claim, owner)

    def wanted(self, owner: ServiceKey) -> dict[K, V]:
        """What *owner* wants and has the right to: without what an older owner has.

        Not to be changed by anybody: later wishes come as another dict.
        """
        objects = self._wanted.get(owner, {})
        lost = self._claims.lost(owner)
        if not lost:
            return objects
        return {k: v for k, v in objects.items() if self._claim_of(k) not in lost}

    def conflicts(self) -> Iterable[Conflict]:
        """Every claim under which owners want different things; cost follows their number."""
        return self._conflicts.values()

    def take_new_conflicts(self) -> Iterable[Conflict]:
        """Those there are now that were not there when last asked; cost follows their number."""
        news, self._new_conflicts = self._new_conflicts, {}
        return news.values()

    @property
    def counts(self) -> Mapping[str, int]:
        """How much all owners together want, by name: a running total."""
        return self._counts

    # --- comparing ---

    def changes(self) -> list[Change[K, V]]:
        """What every owner lacks, except owners on hold; cost follows the owners that differ."""
        found = []
        for owner in sorted(self._dirty - self._held):
            wanted, applied = self.wanted(owner), self._applied.get(owner, {})
            if not applied and wanted:
                # A first write. Not copied: what is wanted is never changed, only replaced.
                found.append(Change(owner, wanted, {}, {}))
                continue
            put = {k: v for k, v in wanted.items() if k not in applied or applied[k] != v}
            drop = {k: v for k, v in applied.items() if k not in wanted}
            if put or drop:
                old = {k: applied[k] for k in put if k in applied}
                found.append(Change(owner, put, drop, old))
            else:
                self._settle(owner)
        return found

    @property
    def is_settled(self) -> bool:
        """Nothing is missing but of owners on hold."""
        return self._dirty <= self._held

    def applied(self) -> Iterable[Mapping[K, V]]:
        """Everything the kernel is known to hold, by owner."""
        return self._applied.values()

    def snapshot(self) -> list[Mapping[K, V]]:
        """The same, never changed any more; 1 ms for 10,000 owners of which nothing is missing."""
        # What an owner wants is replaced as a whole, so that one dict for both views may be lent.
        return [
            objects if objects is self._wanted.get(owner) else dict(objects)
            for owner, objects in self._applied.items()
        ]

    # --- confirming ---

    def confirm(self, transaction: Transaction[K, V]) -> None:
        """Note that *transaction* was committed."""
        for change in transaction.changes:
            applied = self._own_applied(change.owner)
            applied.update(change.put)
            for key in change.drop:
                applied.pop(key, None)
                claim = self._claim_of(key) if self._given_up else None
                if claim is not None:
                    self._given_up.pop(claim, None)
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
        for owner in self._leftovers.values():
            self._applied.pop(owner, None)
        owned = [self.wanted(owner) for owner in self._wanted]
        strays = dict(observation.strays([*owned, *self._applied.values()]))
        surprises = len(strays)
        for owner in self._wanted.keys() | self._applied.keys():
            before = self._applied.get(owner, {})
            candidates = {**self.wanted(owner), **before}
            present = {k: v for k, v in candidates.items() if observation.holds(k, v)}
            surprises += sum(1 for k in before if k not in present)
            self._applied[owner] = present
            self._dirty.add(owner)
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

    def _count(self, objects: Mapping[K, V], sign: int) -> None:
        for name, count in self._counts_of(objects).items():
            self._counts[name] = self._counts.get(name, 0) + sign * count

    def _claims_in(self, objects: Mapping[K, V]) -> Set[K]:
        return {claim for key in objects if (claim := self._claim_of(key)) is not None}

    def _hand_over(self, claim: K, loser: ServiceKey, heir: ServiceKey) -> None:
        """The kernel's objects under *claim* are now the heir's, who may want them otherwise."""
        applied = self._applied.get(loser, {})
        self._move({k for k in applied if self._claim_of(k) == claim}, loser, heir)
        self._dirty.update((loser, heir))

    def _move(self, keys: Set[K], source: ServiceKey, target: ServiceKey) -> None:
        if not keys:
            return
        given = self._own_applied(source)
        taken = self._own_applied(target)
        for key in keys & given.keys():
            taken[key] = given.pop(key)
        if not given:
            del self._applied[source]
        self._dirty.update((source, target))

    def _own_applied(self, owner: ServiceKey) -> dict[K, V]:
        """The notes on *owner* for writing: a settled owner shares them with what it wants."""
        applied = self._applied.setdefault(owner, {})
        if applied is self._wanted.get(owner):
            applied = self._applied[owner] = dict(applied)
        return applied

    def _judge(self, claim: K, changed: ServiceKey) -> None:
        """Note which owners want other things under *claim* than the one who has it."""
        holder = self._claims.holder(claim)
        waiting = self._claims.waiting(claim) if holder is not None else ()
        if changed not in waiting:
            self._note_conflict(claim, changed, None)
        if holder is None:
            return
        self._note_conflict(claim, holder, None)
        held = self._under(claim, holder) if waiting else {}
        for loser in waiting if changed not in waiting else (changed,):
            differs = self._under(claim, loser) != held
            self._note_conflict(claim, loser, holder if differs else None)

    def _note_conflict(self, claim: K, loser: ServiceKey, holder: ServiceKey | None) -> None:
        """*holder* has what *loser* wants otherwise; ``None``: nobody has."""
        key = (claim, loser)
        if holder is None:
            self._conflicts.pop(key, None)
            self._new_conflicts.pop(key, None)
            return
        conflict = (claim, holder, loser)
        if self._conflicts.get(key) != conflict:
            self._conflicts[key] = self._new_conflicts[key] = conflict

    def _under(self, claim: K, owner: ServiceKey) -> dict[K, V]:
        objects = self._wanted.get(owner, {})
        return {k: v for k, v in objects.items() if self._claim_of(k) == claim}
