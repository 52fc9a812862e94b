"""A dataplane that is a dictionary, and a compiler that needs no knowledge of any kernel.

With them the sync core is tested apart from every backend. Keys are tuples of words; what the
compiler makes of a route is readable in a failing test's report.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from pykubeproxy.errors import HostError
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Route
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Rejected, Transaction, Unknown

__all__ = ["MemoryDataplane", "PlainCompiler"]

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

    def exclusive(self, key: Key) -> bool:
        return key[0] == "front"

    def resize(self, endpoint_count: int) -> None:
        self.endpoint_count = endpoint_count


class MemoryDataplane:
    """Applies transactions as a whole or not at all.

    ``refused`` holds owners and keys: a transaction with one of them is rejected. ``unknowns``
    holds for the next runs whether they die ``before`` or ``after`` the commit (``None``: they
    do not die). ``batch`` is the number of owners per transaction.
    """

    def __init__(self, batch: int | None = None, names_suspects: bool = False) -> None:
        self.objects: dict[Key, Value] = {}
        self.refused: set[Hashable] = set()
        self.unknowns: list[str | None] = []
        self.transactions: list[Transaction[Key, Value]] = []
        self.observations = 0
        self.learned = 0
        self.broken = ""
        self._batch = batch
        self._names_suspects = names_suspects

    def observe(self) -> _Snapshot:
        if self.broken:
            raise HostError(self.broken)
        self.observations += 1
        return _Snapshot(dict(self.objects))

    def learn(self, applied: Iterable[Mapping[Key, Value]]) -> None:
        self.learned += 1

    def intact(self) -> bool:
        return bool(self.objects)

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

    @property
    def written(self) -> list[ServiceKey]:
        """Owners of every transaction so far, in order."""
        return [owner for transaction in self.transactions for owner in transaction.owners]

    def forget(self) -> None:
        """Start counting anew."""
        self.transactions.clear()
        self.observations = 0
        self.learned = 0


class _Snapshot:
    def __init__(self, objects: dict[Key, Value]) -> None:
        self._objects = objects

    def holds(self, key: Key, value: Value) -> bool:
        return key in self._objects and self._objects[key] == value

    def strays(self, wanted: Iterable[Mapping[Key, Value]]) -> dict[Key, Value]:
        known = {key for objects in wanted for key in objects}
        return {key: value for key, value in self._objects.items() if key not in known}
