"""What one read-back of iptables showed, compared with what is wanted."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from pykubeproxy.iptables.fingerprints import (
    PRINTLESS,
    Fingerprints,
    chain_mark,
    jump_mark,
    mark,
    members_mark,
    rules_mark,
)
from pykubeproxy.iptables.index import INDEXED, Indexes, Member, Sizes, TreeChain
from pykubeproxy.iptables.listing import Listing
from pykubeproxy.iptables.names import BASE_CHAINS, is_own_chain
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
from pykubeproxy.model.kinds import Family

__all__ = [
    "KernelChain",
    "KernelObjects",
    "Verdict",
    "XtablesObservation",
    "fingerprints",
    "kernel_objects",
    "object_mark",
    "target_of",
    "verdict",
]


# --- what objects amount to ---


_NOTHING: Mapping[Key, Rules] = {}
"""The same for all: there are many chains without members."""


class KernelChain(Struct, frozen=True, gc=False):
    """What one chain of the kernel should hold, and which objects it vouches for.

    ``rules`` are all of it in this order. ``None`` where the order is open: ``members`` tells
    them by object then, those of each in their order and the tail behind all others. ``above``
    is the chain of a tree that leads to it.
    """

    keys: tuple[Key, ...]
    rules: Rules | None = None
    members: Mapping[Key, Rules] = msgspec.field(default_factory=lambda: _NOTHING)
    above: tuple[str, str] | None = None

    @property
    def is_shared(self) -> bool:
        return not (self.keys and isinstance(self.keys[0], Chain))

    @property
    def content(self) -> int:
        """The mark of what it should hold."""
        return members_mark(self.members) if self.rules is None else rules_mark(self.rules)

    def rule_bodies(self) -> Iterator[str]:
        if self.rules is not None:
            return iter(self.rules)
        return (rule for rules in self.members.values() for rule in rules)


class KernelObjects(Struct, frozen=True):
    """What objects amount to in the kernel. ``chains`` are ours alone, by table and name."""

    chains: dict[tuple[str, str], KernelChain]
    jumps: dict[Jump, Rules]
    presences: dict[Presence, Rules]


Trees = Callable[[SharedChain, Mapping[Member, Rules]], Mapping[str, TreeChain] | None]
"""The chains of a shared chain with such members, if that is a tree."""


def kernel_objects(objects: Iterable[Mapping[Key, Rules]], trees: Trees) -> KernelObjects:
    """Return what *objects* amount to; where a key comes twice, the later value counts."""
    found = KernelObjects({}, {}, {})
    shared: dict[tuple[str, str], dict[Key, Rules]] = defaultdict(dict)
    for part in objects:
        for key, value in part.items():
            match key:
                case Chain(table, name):
                    found.chains[table, name] = KernelChain((key,), value)
                case SharedChain(table, name):
                    shared[table, name][key] = value
                case DispatchRule(table, chain, _) | TailRule(table, chain, _):
                    shared[table, chain][key] = value
                case Jump():
                    found.jumps[key] = value
                case Presence():
                    found.presences[key] = value
    for (table, name), members in shared.items():
        own = {k: v for k, v in members.items() if isinstance(k, DispatchRule | TailRule)}
        tree = trees(SharedChain(table, name), own)
        if tree is None:
            found.chains[table, name] = KernelChain(tuple(members), None, members)
            continue
        for chain, node in tree.items():
            above = None if node.above is None else (table, node.above)
            held: dict[Key, Rules] = {key: members[key] for key in node.members}
            if chain == name:
                held |= {k: v for k, v in members.items() if k not in own}
            found.chains[table, chain] = KernelChain(tuple(held), node.rules, held, above)
    return found


def fingerprints(expected: KernelObjects, known: Fingerprints) -> Iterator[tuple[int, int, int]]:
    """The rows of a table of all that is *expected*; prints are those *known* of it."""
    for (table, name), chain in expected.chains.items():
        of, content = chain_mark(table, name), chain.content
        yield of, content, known.print_of(of, content)
    yield from _printless(expected)


def _printless(expected: KernelObjects) -> Iterator[tuple[int, int, int]]:
    for jump, rules in expected.jumps.items():
        yield object_mark(jump), rules_mark(rules), PRINTLESS
    for presence, rules in expected.presences.items():
        yield object_mark(presence), rules_mark(rules), PRINTLESS


def object_mark(key: Chain | Jump | Presence) -> int:
    """The mark of an object that is one in the kernel as well."""
    return jump_mark(key) if isinstance(key, Jump) else chain_mark(key.table, key.name)


# --- comparing ---


class XtablesObservation:
    """The `pykubeproxy.sync.outcome.Observation` of one read-back.

    A chain is vouched for by its print, if that is the known one of what is wanted, or by its
    text, if it is word for word what iptables-save would print of what is wanted. A chain with
    many owners is vouched for as a whole or not at all, so its text counts once `strays` was told
    everything that is wanted.

    Without a *listing* nobody but us changed anything since *known* was all there is: it vouches
    for everything then. Only if something of it is not wanted any more is the kernel read, by
    *read*, since only there are the names of what is to go.
    """

    def __init__(
        self,
        listing: Listing | None,
        known: Fingerprints,
        members: Mapping[tuple[str, str], Mapping[Key, Rules]],
        has_rule: Callable[[str, str, str], bool],
        family: Family,
        read: Callable[[], Listing] | None = None,
        indexes: Indexes | None = None,
        trees: Trees | None = None,
    ) -> None:
        """*members*: what a shared chain holds if it is a list and its print the known one.

        *indexes* hear what was seen of shared chains, unless it is known which are *trees*.
        """
        self._known_trees = trees
        self._indexes = indexes or Indexes(family, Sizes())
        self._listing = listing
        self._known = known
        self._has_rule = has_rule
        self._family = family
        self._read = read
        self._held: dict[Key, Rules] = {}
        self._marks: dict[tuple[str, str], int] = {}
        for (table, name), part in members.items():
            if listing is not None and listing.is_known(table, name):
                self._held.update(part)

    def holds(self, key: Key, value: Rules) -> bool:
        match key:
            case Chain(table, name):
                if self._listing is None or self._listing.is_known(table, name):
                    return self._is_known(self._mark_of(table, name), rules_mark(value))
                return self.is_right(table, name, KernelChain((key,), value))
            case SharedChain() | DispatchRule() | TailRule():
                return self._held.get(key) == value
            case Presence(table, name):
                if self._listing is None:
                    return self._is_known(object_mark(key), rules_mark(value))
                return self._listing.has(table, name)
            case Jump(table, chain, target):
                if self._listing is None:
                    return self._is_known(object_mark(key), rules_mark(value))
                return self._holds_jump(self._listing, table, chain, target, value[0])

    def strays(self, wanted: Iterable[Mapping[Key, Rules]]) -> dict[Key, Rules]:
        """Return chains of ours in any mode, and rules that lead to them, that nobody wants."""
        if self._listing is not None and not self._has_anything(self._listing):
            self._indexes.hold({}, ())
            return {}
        # Where a key comes twice, the later value is what the kernel is noted to hold.
        wanted = list(wanted)
        trees = self._known_trees or self._trees
        expected = kernel_objects(wanted, trees)
        if self._listing is None and self._read is not None and not self._is_all_wanted(expected):
            self._listing = self._read()
            expected = kernel_objects(wanted, trees)
        trusted: dict[tuple[str, str], bool] = {}
        for place, chain in expected.chains.items():
            if chain.is_shared and self._is_trusted(place, expected, trusted):
                self._held.update(chain.members)
        if self._known_trees is None:
            self._tell_indexes(expected)
            # A chain of a tree that is written anew is left over until the tree has it again.
            for place in [place for place, is_right in trusted.items() if not is_right]:
                if expected.chains[place].above is not None:
                    del expected.chains[place]
        return {} if self._listing is None else self._strays(self._listing, expected)

    def _tell_indexes(self, expected: KernelObjects) -> None:
        seen = {
            SharedChain(*place)
            for place, chain in expected.chains.items()
            if chain.is_shared and chain.above is None and chain.rules is not None
        }
        self._indexes.hold(self._held, {shared for shared in seen if shared in self._held})

    def _has_anything(self, listing: Listing) -> bool:
        """Tell whether a proxy ever wrote here: at a first start there is nothing to compare."""
        return any(
            is_own_chain(table, chain)
            for table, saved in listing.tables.items()
            for chain in saved.chains
        )

    def _is_trusted(
        self,
        place: tuple[str, str],
        expected: KernelObjects,
        trusted: dict[tuple[str, str], bool],
    ) -> bool:
        """Tell whether a chain is right, and every one that leads to it."""
        if place not in trusted:
            chain = expected.chains[place]
            trusted[place] = self.is_right(*place, chain) and (
                chain.above is None or self._is_trusted(chain.above, expected, trusted)
            )
        return trusted[place]

    def _trees(
        self, shared: SharedChain, members: Mapping[Member, Rules]
    ) -> Mapping[str, TreeChain] | None:
        """As so many members should be; where both are right, as they are."""
        if shared not in INDEXED or not self._indexes.wants_tree(members, is_tree=True):
            return None
        chains = self._indexes.tree(shared, members)
        if self._indexes.wants_tree(members, is_tree=False):
            return chains
        names = chains.keys() - {shared.name}
        return chains if any(self._is_there(shared.table, name) for name in names) else None

    def _is_there(self, table: str, name: str) -> bool:
        if self._listing is None:
            return self._known.get(chain_mark(table, name)) is not None
        return self._listing.has(table, name)

    def is_right(self, table: str, name: str, chain: KernelChain) -> bool:
        """Tell whether the chain is there and holds just this."""
        if self._listing is None or self._listing.is_known(table, name):
            return self._is_known(self._mark_of(table, name), chain.content)
        bodies = self._listing.rules(table, name)
        if bodies is None:
            return False
        if chain.rules is None:
            return self._reads_as_members(bodies, chain.members)
        return self._reads_as(bodies, chain.rules)

    # --- private ---

    def _is_known(self, of: int, content: int) -> bool:
        known = self._known.get(of)
        return known is not None and known.content == content

    def _mark_of(self, table: str, name: str) -> int:
        """The mark of a chain: remembered, since it takes as long as all the rest."""
        return self._marks.get((table, name)) or chain_mark(table, name)

    def _is_all_wanted(self, expected: KernelObjects) -> bool:
        self._marks = {place: chain_mark(*place) for place in expected.chains}
        wanted = set(self._marks.values())
        wanted.update(map(object_mark, expected.jumps))
        wanted.update(map(object_mark, expected.presences))
        return all(of in wanted for of, _, _ in self._known)

    def _strays(self, listing: Listing, expected: KernelObjects) -> dict[Key, Rules]:
        names = expected.chains.keys() | {(p.table, p.name) for p in expected.presences}
        wanted = {(jump.table, jump.chain, jump.target): v for jump, v in expected.jumps.items()}
        found: dict[Key, Rules] = {}
        for table, saved in listing.tables.items():
            base = BASE_CHAINS.get(table, ())
            for chain, target, bodies in _ways(listing, table, base):
                surplus = bodies
                if (table, target) in names:
                    jump = wanted.get((table, chain, target))
                    surplus = self._other_ways(table, chain, bodies, jump[0] if jump else None)
                for rule, count in Counter(surplus).items():
                    # Each has its own owner, and all are removed by their content.
                    found[DispatchRule(table, chain, rule)] = (rule,) * count
            for name in saved.chains:
                if is_own_chain(table, name) and (table, name) not in names:
                    # Its rules need not be known: a chain is removed by its name.
                    found[Chain(table, name)] = ()
        return found

    def _printed(self, rule: str) -> str:
        try:
            return printed(rule, self._family)
        except ValueError:
            return rule  # in doubt it is not held, and written again

    def _reads_as(self, bodies: Sequence[str], rules: Rules) -> bool:
        return len(bodies) == len(rules) and all(
            body == rule or body == self._printed(rule)
            for body, rule in zip(bodies, rules, strict=True)
        )

    def _reads_as_members(self, bodies: Sequence[str], members: Mapping[Key, Rules]) -> bool:
        """Each wanted rule once and no other; an owner's in their order, the tail behind all."""
        if len(bodies) != sum(map(len, members.values())):
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
        return len(met) == len(bodies)

    def _holds_jump(self, listing: Listing, table: str, chain: str, target: str, rule: str) -> bool:
        if not listing.has(table, target):
            return False
        bodies = listing.rules(table, chain) or []
        if rule in bodies or self._printed(rule) in bodies:
            return True
        # This tool may spell the rule in another way than we do, so ask it; but only if
        # there is anything that leads to our chain.
        leads = any(target == target_of(body) for body in bodies)
        return leads and self._has_rule(table, chain, rule)

    def _other_ways(
        self, table: str, chain: str, bodies: Sequence[str], wanted: str | None
    ) -> list[str]:
        """Which of *bodies* another mode or version put to lead to a chain that stays.

        Somebody's own way to it, for some interface or source, is none of these.
        """
        ours = [body for body in bodies if _MADE_BY_A_PROXY.fullmatch(body)]
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


def _ways(
    listing: Listing, table: str, targets: Sequence[str]
) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Built-in chain, target and rules that lead from one to the other, for each such pair."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for chain in sorted(listing.tables[table].builtin):
        for body in listing.rules(table, chain) or ():
            _, jump, target = f" {body}".rpartition(" -j ")
            if jump and target in targets:
                found[chain, target].append(body)
    for (chain, target), bodies in found.items():
        yield chain, target, bodies


def target_of(rule: str) -> str:
    """The word behind ``-j``; empty for a rule that only counts."""
    _, found, rest = f" {rule}".rpartition(" -j ")
    return rest.partition(" ")[0] if found else ""


# --- learning ---


class Verdict(Struct, frozen=True):
    """What a read-back says about what was written.

    ``prints`` are the numbers of rows of a table, of what is believed. ``odd`` are prints of
    chains with the right number of rules and the right targets, in a text that we do not know.
    ``wrong`` names what is not as written. ``shared`` holds the marks of chains that have many
    owners, ``members`` what those of them hold that are lists.
    """

    prints: array[int]
    odd: frozenset[tuple[int, int]]
    wrong: list[str]
    shared: frozenset[int]
    members: dict[tuple[str, str], Mapping[Key, Rules]]

    def rows(self) -> Iterator[tuple[int, int, int]]:
        numbers = iter(self.prints)
        return zip(numbers, numbers, numbers, strict=True)


def verdict(
    observation: XtablesObservation,
    listing: Listing,
    applied: Sequence[Mapping[Key, Rules]],
    trees: Trees,
    *,
    known: Fingerprints,
    is_ours: bool,
    accepted: frozenset[tuple[int, int]],
) -> Verdict:
    """Compare all that was *applied* with a read-back.

    *is_ours*: nobody else wrote since, so that every print is of what was written. *accepted*
    are prints that were odd before. Still so after the chain was written again, they are how
    this tool prints it; so they are where most chains are odd. Else somebody edited the chain.
    """
    # First, since it takes as much memory as what follows.
    wrong = [] if is_ours else list(map(str, observation.strays(applied)))
    expected = kernel_objects(applied, trees)
    rows = array("Q", [number for row in _printless(expected) for number in row])
    odd: list[tuple[str, tuple[int, int, int]]] = []
    if not is_ours:
        wrong += (str(jump) for jump, v in expected.jumps.items() if not observation.holds(jump, v))
    for (table, name), chain in expected.chains.items():
        of, content = chain_mark(table, name), chain.content
        text = listing.text(table, name)
        if text is None:
            printed = known.print_of(of, content) if listing.has(table, name) else 0
            if printed:
                rows.extend((of, content, printed))
            else:
                wrong.append(f"{table} {name}")
            continue
        row = (of, content, mark(text))
        if is_ours or observation.is_right(table, name, chain):
            rows.extend(row)
        elif _resembles(text, chain):
            odd.append((f"{table} {name}", row))
        else:
            wrong.append(f"{table} {name}")
    is_usual = len(odd) * 2 > len(expected.chains)
    for what, row in odd:
        if is_usual or (row[0], row[2]) in accepted:
            rows.extend(row)
        else:
            wrong.append(what)
    return Verdict(
        rows,
        frozenset((of, printed) for _, (of, _, printed) in odd),
        wrong,
        frozenset(chain_mark(*place) for place, c in expected.chains.items() if c.is_shared),
        {place: c.members for place, c in expected.chains.items() if c.rules is None},
    )


def _resembles(text: bytes, chain: KernelChain) -> bool:
    """Tell whether so many rules with the same targets are printed."""
    lines = text.decode(errors="replace").splitlines()
    return Counter(map(target_of, lines)) == Counter(map(target_of, chain.rule_bodies()))
