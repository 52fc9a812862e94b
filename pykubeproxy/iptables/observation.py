"""What one read-back of iptables showed, compared with what is wanted."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from pykubeproxy.iptables.names import BASE_CHAINS, is_service_chain
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Key,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.printed import printed
from pykubeproxy.iptables.tools import SavedTable, jumps_of
from pykubeproxy.model.kinds import Family

__all__ = ["XtablesObservation", "fingerprints", "target_of"]


class XtablesObservation:
    """The `pykubeproxy.sync.outcome.Observation` of one read-back.

    Two things vouch for a chain: its print, if it is the one learnt when it was written, or its
    text, if it is word for word what iptables-save would print of what is wanted. A chain with
    many owners is vouched for as a whole or not at all, so its text counts once `strays` was told
    everything that is wanted.
    """

    def __init__(
        self,
        tables: Mapping[str, SavedTable],
        prints: Mapping[Chain | SharedChain, int],
        known: Mapping[Chain | SharedChain, tuple[Rules, int]],
        members: Mapping[Key, Rules],
        has_rule: Callable[[str, str, str], bool],
        family: Family,
    ) -> None:
        self._tables = tables
        self._prints = prints
        self._known = known
        self._members = members
        self._has_rule = has_rule
        self._family = family
        self._read: dict[Key, Rules] = {}

    def holds(self, key: Key, value: Rules) -> bool:
        match key:
            case Chain(table, name):
                return self._is_learnt(key, value) or self._reads_as(table, name, value)
            case SharedChain():
                return self._is_learnt(key, value) or self._read.get(key) == value
            case DispatchRule(table, chain, _) | TailRule(table, chain, _):
                # The print of the chain vouches for the rules it was taken with, no others.
                learnt = self._is_learnt(SharedChain(table, chain), ())
                return (self._members if learnt else self._read).get(key) == value
            case Presence(table, name):
                return table in self._tables and name in self._tables[table].chains
            case Jump(table, chain, target):
                return self._holds_jump(table, chain, target, value[0])

    def strays(self, wanted: Iterable[Mapping[Key, Rules]]) -> dict[Key, Rules]:
        """Return chains of ours in any mode, and rules that lead to them, that nobody wants."""
        names: set[tuple[str, str]] = set()
        jumps: dict[tuple[str, str, str], str] = {}
        members: dict[SharedChain, dict[Key, Rules]] = {}
        # Where a key comes twice, the later value is what the kernel is noted to hold.
        for objects in wanted:
            for key, value in objects.items():
                match key:
                    case Chain(table, name) | Presence(table, name):
                        names.add((table, name))
                    case SharedChain(table, name):
                        names.add((table, name))
                        members.setdefault(key, {})
                    case DispatchRule(table, chain, _) | TailRule(table, chain, _):
                        members.setdefault(SharedChain(table, chain), {})[key] = value
                    case Jump(table, chain, target):
                        jumps[table, chain, target] = value[0]
        for shared, rules in members.items():
            if not self._is_learnt(shared, ()) and self._reads_as_members(shared, rules):
                self._read[shared] = ()
                self._read.update(rules)
        found: dict[Key, Rules] = {}
        for table, saved in self._tables.items():
            base = BASE_CHAINS.get(table, ())
            for chain, target, bodies in _ways(saved, base):
                surplus = bodies
                if (table, target) in names:
                    surplus = self._other_ways(table, chain, target, bodies, jumps)
                for rule, count in Counter(surplus).items():
                    # Each has its own owner, and all are removed by their content.
                    found[DispatchRule(table, chain, rule)] = (rule,) * count
            for name in saved.chains:
                ours = name in base or (table == "nat" and is_service_chain(name))
                if ours and (table, name) not in names:
                    # Its rules need not be known: a chain is removed by its name.
                    found[Chain(table, name)] = ()
        return found

    def _is_learnt(self, key: Chain | SharedChain, value: Rules) -> bool:
        known = self._known.get(key)
        return known is not None and known == (value, self._prints.get(key))

    def _printed(self, rule: str) -> str:
        try:
            return printed(rule, self._family)
        except ValueError:
            return rule  # in doubt it is not held, and written again

    def _bodies(self, table: str, chain: str) -> list[str] | None:
        saved = self._tables.get(table)
        if saved is None or chain not in saved.chains:
            return None
        skipped = len(f"-A {chain} ")
        return [line[skipped:] for line in saved.chains[chain]]

    def _reads_as(self, table: str, chain: str, rules: Rules) -> bool:
        bodies = self._bodies(table, chain)
        return (
            bodies is not None
            and len(bodies) == len(rules)
            and all(
                body == rule or body == self._printed(rule)
                for body, rule in zip(bodies, rules, strict=True)
            )
        )

    def _reads_as_members(self, shared: SharedChain, members: Mapping[Key, Rules]) -> bool:
        """Each wanted rule once and no other; an owner's in their order, the tail behind all."""
        bodies = self._bodies(shared.table, shared.name)
        if bodies is None:
            return False
        places = {body: place for place, body in enumerate(bodies)}
        tail_from = len(bodies) - sum(len(v) for k, v in members.items() if isinstance(k, TailRule))
        met: set[int] = set()
        for key, rules in members.items():
            last = tail_from - 1 if isinstance(key, TailRule) else -1
            for rule in rules:
                place = places.get(rule)
                if place is None:
                    place = places.get(self._printed(rule))
                if place is None or place <= last:
                    return False
                met.add(place)
                last = place
        return len(met) == len(bodies) == sum(map(len, members.values()))

    def _holds_jump(self, table: str, chain: str, target: str, rule: str) -> bool:
        saved = self._tables.get(table)
        if saved is None or target not in saved.chains or chain not in saved.chains:
            return False
        lines = saved.chains[chain]
        if f"-A {chain} {rule}" in lines or f"-A {chain} {self._printed(rule)}" in lines:
            return True
        # This tool may spell the rule in another way than we do, so ask it; but only if
        # there is anything that leads to our chain.
        return any(line.endswith(f" -j {target}") for line in lines) and self._has_rule(
            table, chain, rule
        )

    def _other_ways(
        self,
        table: str,
        chain: str,
        target: str,
        bodies: Sequence[str],
        jumps: Mapping[tuple[str, str, str], str],
    ) -> list[str]:
        """Which of *bodies* another mode or version put to lead to a chain that stays.

        Somebody's own way to it, for some interface or source, is none of these.
        """
        ours = [body for body in bodies if _MADE_BY_A_PROXY.fullmatch(body)]
        wanted = jumps.get((table, chain, target))
        if wanted is None:
            return ours
        others = [body for body in ours if body not in (wanted, self._printed(wanted))]
        if others and len(others) == len(ours) and self._has_rule(table, chain, wanted):
            return []  # one of them is the wanted one, in a spelling that we do not know
        return others


_MADE_BY_A_PROXY = re.compile(
    r'(?:-m conntrack --ctstate NEW )?-m comment --comment "(?:kubernetes|kube-proxy) [^"]*" '
    r"(?:-m conntrack --ctstate NEW )?-j \S+"
)
"""The ways into our chains, as a service proxy of any mode or version makes them."""


def _ways(saved: SavedTable, targets: Collection[str]) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Built-in chain, target and rules that lead from one to the other, for each such pair."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for chain, line in jumps_of(saved, targets):
        found[chain, line.rpartition(" -j ")[2]].append(line[len(f"-A {chain} ") :])
    for (chain, target), bodies in found.items():
        yield chain, target, bodies


def target_of(rule: str) -> str:
    """The word behind ``-j``; empty for a rule that only counts."""
    _, found, rest = f" {rule}".rpartition(" -j ")
    return rest.partition(" ")[0] if found else ""


def fingerprints(tables: Mapping[str, SavedTable]) -> dict[Chain | SharedChain, int]:
    """A hash of every chain's printed rules. Good within this process only."""
    prints: dict[Chain | SharedChain, int] = {}
    for name, table in tables.items():
        for chain, rules in table.chains.items():
            mark = hash(tuple(rules))
            prints[Chain(name, chain)] = mark
            prints[SharedChain(name, chain)] = mark
    return prints
