"""Changes become transactions, in the order they must land.

What is new comes from the packet's end to its beginning: sets first, because the rules ask them;
virtual servers with their real servers; the rules, so that nobody is served without them; then
the addresses that make packets come. Where the rules of iptables mode are still in, the
addresses come before the rules: the old ones redirect until the new ones replace them in one
commit, and from then on the packets must find somebody. What goes, goes in the opposite order,
after everything new is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pykubeproxy.iptables import objects as xtables
from pykubeproxy.iptables.names import is_service_chain
from pykubeproxy.ipvs.objects import BoundAddress, IPSet, Key, Real, SetEntry, Value, Virtual
from pykubeproxy.sync.outcome import BASE, Change, Transaction

__all__ = ["ADDRESSES", "SERVERS", "SETS", "RulesPlan", "plan", "rules_in"]

SETS, SERVERS, ADDRESSES = "ipset", "ipvs", "addresses"
"""Scopes of transactions; all others are tables of iptables."""

IpvsChange = Change[Key, Value]
IpvsTransaction = Transaction[Key, Value]
RulesPlan = Callable[
    [Sequence[Change[xtables.Key, xtables.Rules]]],
    Sequence[Transaction[xtables.Key, xtables.Rules]],
]

_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    # In the order in which new objects are written.
    (SETS, (IPSet, SetEntry)),
    (SERVERS, (Virtual, Real)),
    (ADDRESSES, (BoundAddress,)),
)
_FIRST = (IPSet, Virtual)  # what others of their transaction are part of

T = TypeVar("T")


def plan(changes: Sequence[IpvsChange], plan_rules: RulesPlan) -> list[IpvsTransaction]:
    """Cut *changes* by what they are about; *plan_rules* does so for the rules among them.

    Every owner's part of one kind stays in one transaction: messages commit one by one, so a
    refused one holds nobody else up. The base comes first, since the others build on it.
    """
    ordered = sorted(changes, key=lambda change: change.owner != BASE)
    rules = [part for change in ordered if (part := _rules_of(change)) is not None]
    sets_and_servers, addresses = _puts(ordered, SETS, SERVERS), _puts(ordered, ADDRESSES)
    rule_plan: Sequence[Transaction[Any, Any]] = plan_rules(rules) if rules else ()
    if any(map(_is_of_iptables_mode, rules)):
        return [*sets_and_servers, *addresses, *rule_plan, *_drops(ordered)]
    return [*sets_and_servers, *rule_plan, *addresses, *_drops(ordered)]


def _is_of_iptables_mode(change: Change[xtables.Key, xtables.Rules]) -> bool:
    """Tell whether *change* removes a chain that only iptables mode has."""
    return any(isinstance(key, xtables.Chain) and is_service_chain(key.name) for key in change.drop)


def rules_in(objects: Mapping[Key, Value]) -> dict[xtables.Key, xtables.Rules]:
    """The objects that the iptables backend writes."""
    rules: dict[xtables.Key, xtables.Rules] = {}
    for key, value in objects.items():
        if not isinstance(key, Virtual | Real | BoundAddress | IPSet | SetEntry):
            assert isinstance(value, tuple)
            rules[key] = value
    return rules


def _rules_of(change: IpvsChange) -> Change[xtables.Key, xtables.Rules] | None:
    put, drop = rules_in(change.put), rules_in(change.drop)
    if not put and not drop:
        return None
    return Change(change.owner, put, drop, rules_in(change.old))


def _puts(changes: Sequence[IpvsChange], *scopes: str) -> Iterator[IpvsTransaction]:
    for scope, kinds in _KINDS:
        if scope not in scopes:
            continue
        parts = []
        for change in changes:
            put = _wholes_first(change.put, kinds)
            if put:
                old = {k: v for k, v in change.old.items() if k in put}
                parts.append(Change(change.owner, put, {}, old))
        if parts:
            yield Transaction(scope, tuple(parts))


def _drops(changes: Sequence[IpvsChange]) -> Iterator[IpvsTransaction]:
    for scope, kinds in reversed(_KINDS):
        parts = []
        for change in changes:
            drop = _wholes_first(change.drop, kinds)
            if drop:
                parts.append(Change(change.owner, {}, drop, {}))
        if parts:
            yield Transaction(scope, tuple(parts))


def _wholes_first(objects: Mapping[Key, T], kinds: tuple[type, ...]) -> dict[Key, T]:
    """Those of *kinds*, a set before its entries and a virtual server before its real servers."""
    chosen = [k for k in objects if isinstance(k, kinds)]
    chosen.sort(key=lambda key: not isinstance(key, _FIRST))
    return {k: objects[k] for k in chosen}
