"""Keys and values of the iptables backend.

A value is always a tuple of rule bodies: what stands after ``-A CHAIN`` in iptables-restore
input. The keys differ in how such rules are brought in and taken out.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

__all__ = [
    "Chain",
    "DispatchRule",
    "Jump",
    "Key",
    "Presence",
    "Rules",
    "SharedChain",
    "TailRule",
    "rules_by_table",
]

Rules = tuple[str, ...]


class Chain(Struct, frozen=True, gc=False):
    """A chain that has one owner: written and rewritten as a whole."""

    table: str
    name: str

    def __str__(self) -> str:
        return f"{self.table} {self.name}"


class SharedChain(Struct, frozen=True, gc=False):
    """A chain whose rules belong to many owners; putting it empties it.

    Its value is always empty. It is put only when the kernel's chain is not known to be as
    noted, and then all its `DispatchRule` and `TailRule` members are put along with it.
    """

    table: str
    name: str


class DispatchRule(Struct, frozen=True, gc=False):
    """One owner's rule (or few) in a shared chain, for one destination.

    ``match`` says for what traffic in words of our own (``tcp 10.96.0.1 443``): two owners with
    the same match would compete. Put at the head, removed by content.
    """

    table: str
    chain: str
    match: str

    def __str__(self) -> str:
        return f"{self.match} in {self.table} {self.chain}"


class TailRule(Struct, frozen=True, gc=False):
    """A rule that must stay behind all dispatch rules of a shared chain. Appended."""

    table: str
    chain: str
    rule: str


class Jump(Struct, frozen=True, gc=False):
    """The way from a built-in chain to one of ours: at the top if absent, else left alone.

    The value is one rule body, ``-j`` included.
    """

    table: str
    chain: str
    target: str


class Presence(Struct, frozen=True, gc=False):
    """A chain that must exist, with whatever somebody else put into it."""

    table: str
    name: str


Key = Chain | SharedChain | DispatchRule | TailRule | Jump | Presence


def rules_by_table(objects: Mapping[Key, Rules]) -> dict[str, int]:
    """Count the rules that *objects* consist of."""
    counts: dict[str, int] = {}
    for key, rules in objects.items():
        counts[key.table] = counts.get(key.table, 0) + len(rules)
    return counts
