"""Dataplanes in memory, for tests of what is above them.

`MemoryDataplane` is a dictionary and `PlainCompiler` needs no knowledge of any kernel: with them
the sync core is tested apart from every backend. `ChainDataplane` interprets the transactions of
the iptables backend without rule text being parsed, which is faster than the strict fake of the
tools (`tests.fakes.xtables`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from pykubeproxy.errors import HostError
from pykubeproxy.iptables.names import is_service_chain
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.render import plan
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Route
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Rejected, Transaction, Unknown

__all__ = ["ChainDataplane", "MemoryDataplane", "PlainCompiler"]

Key = tuple[Hashable, ...]
Value = tuple[str, ...]


class PlainCompiler:
    """One object per route with its endpoints, and one exclusive object per frontend."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.endpoint_count = 0

    def base(self, node: NodeContext) -> dict[Key, Value]:
        return {("base",): (node.name, node.zone)}

    def compile(self, route: Route, node: NodeContext) -> dict[Key, Value]:
        name = str(route.key)
        self.compiled.append(name)
        objects: dict[Key, Value] = {
            ("pool", name): tuple(str(endpoint) for endpoint in route.cluster_endpoints)
        }
        for frontend in route.frontends:
            objects["front", frontend.address, frontend.port] = (name,)
        return objects

    def claim(self, key: Key) -> Key | None:
        return key if key[0] == "front" else None

    def problems(self, route: Route) -> tuple[str, ...]:
        return ()

    def resize(self, endpoint_count: int) -> None:
        self.endpoint_count = endpoint_count


class MemoryDataplane:
    """Applies transactions as a whole or not at all.

    ``refused`` holds owners and keys: a transaction with one of them is rejected. ``unknowns``
    holds for the next runs whether they die ``before`` or ``after`` the commit (``None``: they
    do not die). While ``disturbed`` nothing can be learnt. ``refuses_all`` is what everything is
    refused with, and ``questions`` counts how often that was asked for. ``batch`` is the number
    of owners per transaction.
    """

    def __init__(self, batch: int | None = None, names_suspects: bool = False) -> None:
        self.objects: dict[Key, Value] = {}
        self.refused: set[Hashable] = set()
        self.unknowns: list[str | None] = []
        self.transactions: list[Transaction[Key, Value]] = []
        self.observations = 0
        self.learned = 0
        self.disturbed = False
        self.broken = ""
        self.refuses_all = ""
        self.questions = 0
        self._batch = batch
        self._names_suspects = names_suspects

    def observe(self) -> _Snapshot:
        if self.broken:
            raise HostError(self.broken)
        self.observations += 1
        return _Snapshot(dict(self.objects))

    def learn(
        self, applied: Sequence[Mapping[Key, Value]], *, anew: bool = True
    ) -> Callable[[], bool | None]:
        def learn() -> bool | None:
            if self.broken:
                raise HostError(self.broken)
            if self.disturbed:
                return None
            self.learned += anew
            held = all(self.objects.get(k) == v for part in applied for k, v in part.items())
            return held or not anew

        return learn

    def intact(self) -> bool:
        return bool(self.objects)

    def tend(self, now: float) -> float | None:
        return None

    def plan(self, changes: Sequence[Change[Key, Value]]) -> list[Transaction[Key, Value]]:
        step = self._batch or max(len(changes), 1)
        return [
            Transaction("memory", tuple(changes[at : at + step]))
            for at in range(0, len(changes), step)
        ]

    def apply(self, transaction: Transaction[Key, Value]) -> Outcome:
        self.transactions.append(transaction)
        death = self.unknowns.pop(0) if self.unknowns else None
        if death == "before":
            return Unknown("killed before the commit")
        culprits = {
            change.owner
            for change in transaction.changes
            if self.refused & {change.owner, *change.put, *change.drop}
        }
        if self.refuses_all:
            return Rejected(self.refuses_all)
        if culprits:
            suspects = frozenset(culprits if self._names_suspects else ())
            return Rejected("refused: " + ", ".join(map(str, sorted(culprits))), suspects)
        for change in transaction.changes:
            self.objects.update(change.put)
        for change in transaction.changes:
            for key, value in change.drop.items():
                # By content: another owner may have taken the key over in this transaction.
                if self.objects.get(key) == value:
                    del self.objects[key]
        if death == "after":
            return Unknown("killed after the commit")
        return Applied(lines=sum(len(c.put) + len(c.drop) for c in transaction.changes))

    def accepts(self, scopes: Collection[str]) -> str | None:
        assert scopes
        self.questions += 1
        return self.refuses_all or None

    @property
    def written(self) -> list[ServiceKey]:
        """Owners of every transaction so far, in order."""
        return [owner for transaction in self.transactions for owner in transaction.owners]

    def forget(self) -> None:
        """Start counting anew."""
        self.transactions.clear()
        self.observations = 0
        self.learned = 0
        self.questions = 0


class _Snapshot:
    def __init__(self, objects: dict[Key, Value]) -> None:
        self._objects = objects

    def holds(self, key: Key, value: Value) -> bool:
        return key in self._objects and self._objects[key] == value

    def strays(self, wanted: Iterable[Mapping[Key, Value]]) -> dict[Key, Value]:
        known = {key for objects in wanted for key in objects}
        return {key: value for key, value in self._objects.items() if key not in known}


class ChainDataplane:
    """Interprets iptables transactions without any rule text being parsed.

    Refuses what every kernel refuses: removing a rule that is not there or a chain that is
    still jumped to, and jumping to a chain that does not exist. *fault* is asked before each
    run: ``reject``, ``before`` or ``after`` (the commit), or ``None``.
    """

    def __init__(self, fault: Callable[[], str | None] = lambda: None) -> None:
        self.chains: dict[tuple[str, str], list[str]] = {}
        self.transactions: list[Transaction[Any, Rules]] = []
        self._fault = fault

    def observe(self) -> _Chains:
        return _Chains({name: list(rules) for name, rules in self.chains.items()})

    def learn(
        self, applied: Sequence[Mapping[Any, Rules]], *, anew: bool = True
    ) -> Callable[[], bool | None]:
        return lambda: True

    def intact(self) -> bool:
        return bool(self.chains)

    def tend(self, now: float) -> float | None:
        return None

    def plan(self, changes: Sequence[Change[Any, Rules]]) -> list[Transaction[Any, Rules]]:
        return plan(changes, 12)

    def apply(self, transaction: Transaction[Any, Rules]) -> Outcome:
        self.transactions.append(transaction)
        fault = self._fault()
        if fault == "before":
            return Unknown("killed before the commit")
        if fault == "reject":
            return Rejected("the kernel is in a bad mood")
        work = {name: list(rules) for name, rules in self.chains.items()}
        try:
            for change in transaction.changes:
                _put_chains(work, change.put)
            for change in transaction.changes:
                _put_rules(work, change.put)
            emptied = {
                (key.table, key.name)
                for change in transaction.changes
                for key in change.put
                if isinstance(key, SharedChain)
            }
            for change in transaction.changes:
                _remove_rules(work, change.old, emptied)
                _remove_rules(work, change.drop, emptied)
            gone = [k for c in transaction.changes for k in c.drop if isinstance(k, Chain)]
            for key in gone:
                work.pop((key.table, key.name), None)
            _check_jumps(work)
        except ValueError as error:
            return Rejected(str(error))
        self.chains = work
        return Unknown("killed after the commit") if fault == "after" else Applied()

    def accepts(self, scopes: Collection[str]) -> str | None:
        return None


def _put_chains(work: dict[tuple[str, str], list[str]], put: Mapping[Any, Rules]) -> None:
    for key, rules in put.items():
        match key:
            case SharedChain(table, name) | Chain(table, name):
                work[table, name] = list(rules)
            case Presence(table, name):
                work.setdefault((table, name), [])


def _put_rules(work: dict[tuple[str, str], list[str]], put: Mapping[Any, Rules]) -> None:
    for key, rules in put.items():
        match key:
            case TailRule(table, chain, _):
                work[table, chain] += rules
            case DispatchRule(table, chain, _) | Jump(table, chain, _):
                work.setdefault((table, chain), [])[:0] = rules


def _remove_rules(
    work: dict[tuple[str, str], list[str]],
    gone: Mapping[Any, Rules],
    emptied: set[tuple[str, str]],
) -> None:
    for key, rules in gone.items():
        match key:
            case DispatchRule(table, chain, _) | TailRule(table, chain, _) | Jump(table, chain, _):
                if (table, chain) in emptied:
                    continue
                for rule in rules:
                    work[table, chain].remove(rule)


def _check_jumps(work: Mapping[tuple[str, str], list[str]]) -> None:
    for (table, chain), rules in work.items():
        for rule in rules:
            target = rule.partition("-j ")[2].partition(" ")[0]
            if target.startswith("KUBE-") and (table, target) not in work:
                raise ValueError(f"{chain} jumps to {target}, which does not exist")


class _Chains:
    def __init__(self, chains: dict[tuple[str, str], list[str]]) -> None:
        self._chains = chains

    def holds(self, key: Any, value: Rules) -> bool:
        match key:
            case Chain(table, name):
                return self._chains.get((table, name)) == list(value)
            case Presence(table, name):
                return (table, name) in self._chains
            case Jump(table, chain, _):
                return value[0] in self._chains.get((table, chain), ())
            case _:  # rules of shared chains are not told apart: in doubt, no
                return False

    def strays(self, wanted: Iterable[Mapping[Any, Rules]]) -> dict[Any, Rules]:
        known = {key for objects in wanted for key in objects}
        return {
            Chain(table, name): tuple(rules)
            for (table, name), rules in self._chains.items()
            if is_service_chain(name) and Chain(table, name) not in known
        }
