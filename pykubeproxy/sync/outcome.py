"""What the sync core asks of a backend: two protocols, and the answers they may give.

A backend is a pair: a `Compiler` (pure, route to kernel objects) and a `Dataplane` (effects).
Keys and values are the backend's own; the core only compares them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Route

__all__ = [
    "BASE",
    "Applied",
    "Change",
    "Compiler",
    "Dataplane",
    "Observation",
    "Outcome",
    "Partly",
    "Rejected",
    "Transaction",
    "Unknown",
    "is_leftover",
    "leftover",
]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

BASE = ServiceKey("", "")
"""Owner of the objects that belong to no Service."""


def leftover(key: object) -> ServiceKey:
    """Return the owner of an object that was found in the kernel and that nobody wants.

    Each has its own, so that one that cannot go (a foreign chain still uses it) keeps no other.
    """
    return ServiceKey("", f"(leftover {key})")


def is_leftover(owner: ServiceKey) -> bool:
    return not owner.namespace and owner != BASE


class Change(Struct, Generic[K, V], frozen=True):
    """What one owner lacks: objects to write and objects to remove.

    ``old`` holds the values that ``put`` replaces and ``drop`` the values that go, because some
    backends can remove an object only by its content.
    """

    owner: ServiceKey
    put: dict[K, V]
    drop: dict[K, V]
    old: dict[K, V]


class Transaction(Struct, Generic[K, V], frozen=True):
    """Parts of changes that the kernel commits at once, in order; one entry per owner.

    ``scope`` names where it goes (an iptables table), for logs and counters.
    """

    scope: str
    changes: tuple[Change[K, V], ...]

    @property
    def owners(self) -> tuple[ServiceKey, ...]:
        """Each owner once, in order."""
        return tuple(dict.fromkeys(change.owner for change in self.changes))

    def only(self, owners: frozenset[ServiceKey]) -> Transaction[K, V]:
        return Transaction(self.scope, tuple(c for c in self.changes if c.owner in owners))

    def without(self, failed: Set[tuple[ServiceKey, K]]) -> Transaction[K, V]:
        """What is left when these objects of these owners were not committed."""
        return Transaction(
            self.scope,
            tuple(
                Change(
                    c.owner,
                    {k: v for k, v in c.put.items() if (c.owner, k) not in failed},
                    {k: v for k, v in c.drop.items() if (c.owner, k) not in failed},
                    c.old,
                )
                for c in self.changes
            ),
        )


class Applied(Struct, frozen=True):
    """Committed as a whole. ``lines`` and ``bytes`` were sent, ``rules`` of them set a rule.

    ``chains`` of the lines made a chain or emptied it. Of what is sent as messages, each is a
    line and counts as a rule. ``notes`` are sentences about owners whose wish was granted in
    another way than asked.
    """

    lines: int = 0
    bytes: int = 0
    rules: int = 0
    notes: tuple[tuple[ServiceKey, str], ...] = ()
    chains: int = 0

    def plus(self, other: Applied) -> Applied:
        """Both together."""
        return Applied(
            self.lines + other.lines,
            self.bytes + other.bytes,
            self.rules + other.rules,
            self.notes + other.notes,
            self.chains + other.chains,
        )


class Partly(Struct, Generic[K, V], frozen=True):
    """Committed object by object, and some were refused.

    ``landed`` is what the kernel took, ``refused`` says why an owner did not get the rest.
    """

    landed: Transaction[K, V]
    refused: dict[ServiceKey, str]
    applied: Applied = Applied()


class Rejected(Struct, frozen=True):
    """Refused as a whole; the kernel is unchanged.

    ``suspects`` are the owners of the refused line, where the tool told which line it was.
    """

    detail: str
    suspects: frozenset[ServiceKey] = frozenset()


class Unknown(Struct, frozen=True):
    """Nobody knows what the kernel holds now (killed or timed-out tool, lost socket)."""

    detail: str


Outcome = Applied | Partly[Any, Any] | Rejected | Unknown


class Observation(Protocol[K, V]):
    """What a read-back of the kernel showed."""

    def holds(self, key: K, value: V) -> bool:
        """Tell whether the kernel holds *key* with just this *value*; in doubt, no."""

    def strays(self, wanted: Iterable[Mapping[K, V]]) -> Mapping[K, V]:
        """Return the objects of ours in the kernel whose keys are in none of *wanted*.

        Asked before `holds`, so that what is only right as a whole can be judged as a whole.
        *wanted* holds what owners want first, then what the kernel is noted to hold.
        """


class Compiler(Protocol[K, V]):
    """From decisions to kernel objects; pure."""

    def base(self, node: NodeContext) -> dict[K, V]:
        """Return the objects that exist whatever Services there are."""

    def compile(self, route: Route, node: NodeContext) -> dict[K, V]:
        """Return the objects of one route."""

    def claim(self, key: K) -> K | None:
        """Return the key that an owner must hold to have *key*; ``None`` if nobody else could.

        Itself where two owners could want it (a shared address), another where it is part of
        that one (the real servers of a virtual server). Owners that want the same under one claim
        agree; else the older one has it.
        """

    def problems(self, route: Route) -> tuple[str, ...]:
        """Return a sentence for everything *route* asks for that this backend passes over."""

    def resize(self, endpoint_count: int) -> None:
        """Hear the number of endpoints in the family before routes are compiled."""


class Dataplane(Protocol[K, V]):
    """The kernel, for one family."""

    def observe(self) -> Observation[K, V]:
        """Read back what is there. Raises HostError where that fails."""

    def learn(
        self, applied: Sequence[Mapping[K, V]], *, anew: bool = True
    ) -> Callable[[], bool | None]:
        """Return a job that remembers *applied*, for later `observe` and for a restart.

        Called when nothing is missing; nobody changes *applied* any more. The job may be slow,
        and run on another thread, one at a time, while transactions are applied. With *anew* it
        makes sure that the kernel holds all of it. It returns whether that is so as far as it
        knows; ``None`` where a transaction came in between, so that it should be asked for again.
        It raises HostError.
        """

    def intact(self) -> bool:
        """Tell, cheaply at any size, whether somebody flushed our objects; in doubt, yes."""

    def plan(self, changes: Sequence[Change[K, V]]) -> Sequence[Transaction[K, V]]:
        """Cut changes into transactions, in the order they must land."""

    def apply(self, transaction: Transaction[K, V]) -> Outcome:
        """Commit one transaction; never raises for a refusal."""

    def accepts(self, scopes: Collection[str]) -> str | None:
        """Write something that changes nothing to each of *scopes*, where there is such a thing.

        Return why one did not take it, else ``None``.

        Asked when all that a pass tried of Services was refused: is it they, or everything?
        """

    def tend(self, now: float) -> float | None:
        """Do what is due without any change; return when there is more, on the clock of *now*."""
