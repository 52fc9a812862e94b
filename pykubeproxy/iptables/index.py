"""What a shared chain holds in the kernel: a flat list of rules, or a tree of chains.

KUBE-SERVICES has a rule for every address and port of every Service, and each new connection on
the node walks it from the top, whether it is for a Service or not. Above a number of rules the
list becomes a tree (`pykubeproxy.iptables.prefixtree`), of which a packet sees a few chains with a
few rules each. Rules without an address (node ports) are in a tree of their own beside it. A rule
that comes or goes changes its leaf chain, seldom those around it, and the shared one hardly ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from ipaddress import IPv6Address

import msgspec
from msgspec import Struct

from pykubeproxy.iptables.names import EXTERNAL_SERVICES, NODEPORTS, PROXY_FIREWALL, SERVICES
from pykubeproxy.iptables.objects import DispatchRule, Key, Rules, SharedChain, TailRule
from pykubeproxy.iptables.prefixtree import (
    PORT_BITS,
    PROTOCOL_BITS,
    PROTOCOLS,
    Branch,
    Leaf,
    Line,
    PrefixTree,
)
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Transaction

__all__ = [
    "INDEXED",
    "INDEX_ABOVE",
    "ChainIndex",
    "Edit",
    "Held",
    "Indexes",
    "Member",
    "Sizes",
    "TreeChain",
    "tree_chains",
]

INDEX_ABOVE = 500
"""Destinations in a shared chain from which on walking them costs more than a tree's jumps."""
LIST_BELOW = 0.8
"""Share of that number below which the list comes back: not at every change around it."""
LEAF_RULES = 8
REBUILD_SHARE = 8
"""If more than one member in so many changes, making the tree anew takes less time."""

INDEXED = frozenset(
    {
        SharedChain("nat", SERVICES),
        SharedChain("nat", NODEPORTS),
        SharedChain("filter", SERVICES),
        SharedChain("filter", EXTERNAL_SERVICES),
        SharedChain("filter", NODEPORTS),
        SharedChain("filter", PROXY_FIREWALL),
    }
)

Member = DispatchRule | TailRule
Held = tuple[ServiceKey | None, Rules]
"""Who wants a member, where that is known, and its rules."""


class Sizes(Struct, frozen=True):
    """When a shared chain is a tree, and how many rules a leaf chain takes.

    ``above``: the most destinations in a list; ``None``: it is never a tree.
    """

    above: int | None = INDEX_ABOVE
    leaf_rules: int = LEAF_RULES

    def wants_tree(self, destinations: int, *, is_tree: bool) -> bool:
        """Tell whether so many make a tree, where there is one now or not."""
        if self.above is None:
            return False
        return destinations > (self.above * LIST_BELOW if is_tree else self.above)


class Edit(Struct, frozen=True):
    """Chains to fill anew, by name, and chains to remove afterwards.

    ``new`` are those of the filled ones that nothing in the kernel leads to before.
    """

    filled: dict[str, tuple[Line, ...]]
    new: frozenset[str]
    gone: frozenset[str]


class TreeChain(Struct, frozen=True):
    """A chain of a tree: its rules, the members among them, and the chain that leads to it.

    ``above`` is ``None`` for the shared chain.
    """

    rules: Rules
    members: tuple[Member, ...]
    above: str | None


def tree_chains(
    shared: SharedChain, family: Family, sizes: Sizes, members: Mapping[Member, Rules]
) -> dict[str, TreeChain]:
    """Return the chains, by name, that *members* amount to as a tree."""
    return _forest_of(shared, family, sizes, members).chains()


def _forest_of(
    shared: SharedChain, family: Family, sizes: Sizes, members: Mapping[Member, Rules]
) -> _Forest:
    held: dict[Member, Held] = {key: (None, rules) for key, rules in members.items()}
    return _Forest(shared, family, sizes.leaf_rules, held)


class ChainIndex:
    """The members of one shared chain, as they are in the kernel.

    Every change goes through `edit`, also while they are a list; one that did not land is taken
    back by `undo`. Not safe for several threads.
    """

    def __init__(self, shared: SharedChain, family: Family, sizes: Sizes) -> None:
        self._shared = shared
        self._family = family
        self._sizes = sizes
        self._members: dict[Member, Held] = {}
        self._count = 0
        self._forest: _Forest | None = None
        self._take_back: Callable[[], object] = lambda: None

    @property
    def is_tree(self) -> bool:
        return self._forest is not None

    def __contains__(self, chain: str) -> bool:
        """Tell whether *chain* is one of the tree."""
        return self._forest is not None and chain in self._forest.filled

    def written(self) -> dict[str, TreeChain] | None:
        """Return the chains as they were written, members apart; ``None`` for a list."""
        forest = self._forest  # once: another thread may just be changing it
        if forest is None:
            return None
        filled = dict(forest.filled)
        return {name: TreeChain(rules, (), None) for name, rules in filled.items()}

    def hold(
        self, members: Mapping[Member, Rules], *, as_tree: bool, forest: _Forest | None = None
    ) -> None:
        """Note what the kernel was seen to hold; *forest* are these members, if planted already."""
        self._clear()
        self._note({key: (None, rules) for key, rules in members.items()})
        self._forest = (forest or self._planted()) if as_tree else None

    def edit(
        self, puts: Mapping[Member, Held], drops: Iterable[Member], *, reset: bool
    ) -> Edit | None:
        """Put and drop members; *reset*: those from before do not count. ``None`` for a list.

        The chains of a tree come ready to be filled; a list is for the caller to change.
        """
        gone = [key for key in drops if key in self._members and key not in puts]
        if reset:
            before = self._members, self._count, self._forest
            self._take_back = lambda: self._restore(*before)
            self._clear()
            edit = self._change(puts, (), as_tree=None)
            return edit if before[2] is None else self._instead_of(before[2], edit)
        old_puts = {key: self._members[key] for key in (*puts, *gone) if key in self._members}
        old_drops = [key for key in puts if key not in self._members]
        was_tree = self.is_tree
        self._take_back = lambda: self._change(old_puts, old_drops, as_tree=was_tree)
        return self._change(puts, gone, as_tree=None)

    def undo(self) -> None:
        """Take the last edit back: it did not land."""
        take_back, self._take_back = self._take_back, lambda: None
        take_back()

    def landed(self) -> None:
        """Forget how to take the last edit back."""
        self._take_back = lambda: None

    # --- private ---

    def _change(
        self, puts: Mapping[Member, Held], drops: Collection[Member], *, as_tree: bool | None
    ) -> Edit | None:
        changed = {key: held for key, held in puts.items() if self._members.get(key) != held}
        for key in drops:
            del self._members[key]
        self._count -= _destinations(drops)
        replaced = [key for key in changed if key in self._members]
        self._note(changed)
        if as_tree is None:
            as_tree = self._sizes.wants_tree(self._count, is_tree=self.is_tree)
        before, self._forest = self._forest, None
        if not as_tree:
            if before is None:
                return None
            return self._instead_of(before, None)
        if before is None or len(changed) + len(drops) > len(self._members) // REBUILD_SHARE:
            self._forest = self._planted()
            return _difference(before, self._forest)
        self._forest = before
        return before.change((*drops, *replaced), changed)

    def _instead_of(self, before: _Forest, edit: Edit | None) -> Edit:
        """*edit* where the chains of *before* are still there."""
        filled = edit.filled if edit else {self._shared.name: tuple(self._list())}
        new = edit.new if edit else frozenset()
        old = before.filled.keys()
        return Edit(filled, new - old, frozenset(old - filled.keys()))

    def _planted(self) -> _Forest:
        return _Forest(self._shared, self._family, self._sizes.leaf_rules, self._members)

    def _list(self) -> Iterator[Line]:
        """All members, the tail behind the others."""
        for tail in (False, True):
            for key, (owner, rules) in self._members.items():
                if isinstance(key, TailRule) is tail:
                    yield from ((owner, rule) for rule in rules)

    def _note(self, members: Mapping[Member, Held]) -> None:
        self._count += _destinations(members.keys() - self._members.keys())
        self._members.update(members)

    def _clear(self) -> None:
        self._members, self._count, self._forest = {}, 0, None

    def _restore(self, members: dict[Member, Held], count: int, forest: _Forest | None) -> None:
        self._members, self._count, self._forest = members, count, forest


class Indexes:
    """All shared chains of one family whose rules belong to Services."""

    def __init__(self, family: Family, sizes: Sizes) -> None:
        self.family = family
        self.sizes = sizes
        self._of = {shared: ChainIndex(shared, family, sizes) for shared in INDEXED}
        self._edited: list[ChainIndex] = []
        self._planted: dict[SharedChain, tuple[Mapping[Member, Rules], _Forest]] = {}

    def edit(self, transaction: Transaction[Key, Rules]) -> dict[str, Edit]:
        """Return how the trees of the table of *transaction* change, by shared chain."""
        parts: dict[SharedChain, _Part] = {}

        def part(key: SharedChain | Member) -> _Part | None:
            shared = key if isinstance(key, SharedChain) else SharedChain(key.table, key.chain)
            return parts.setdefault(shared, _Part()) if shared in self._of else None

        for change in transaction.changes:
            for key, rules in change.put.items():
                if isinstance(key, SharedChain):
                    if found := part(key):
                        found.reset = True
                elif isinstance(key, DispatchRule | TailRule) and (found := part(key)):
                    found.puts[key] = (change.owner, rules)
            for key in change.drop:
                if isinstance(key, DispatchRule | TailRule) and (found := part(key)):
                    found.drops.append(key)
        self._edited = [self._of[shared] for shared in parts]
        edits = {
            shared.name: self._of[shared].edit(one.puts, one.drops, reset=one.reset)
            for shared, one in parts.items()
        }
        return {name: edit for name, edit in edits.items() if edit is not None}

    def undo(self) -> None:
        """Take back what the last `edit` did."""
        for index in self._edited:
            index.undo()
        self._edited = []

    def landed(self) -> None:
        """Note that the last `edit` is in the kernel."""
        for index in self._edited:
            index.landed()
        self._edited = []

    def hold(self, seen: Mapping[Key, Rules], trees: Collection[SharedChain]) -> None:
        """Note what of shared chains the kernel was seen to hold, and which are *trees*."""
        parts: dict[SharedChain, dict[Member, Rules]] = {shared: {} for shared in INDEXED}
        for key, rules in seen.items():
            if isinstance(key, DispatchRule | TailRule):
                parts.get(SharedChain(key.table, key.chain), {})[key] = rules
        planted, self._planted = self._planted, {}
        for shared, index in self._of.items():
            members, forest = planted.get(shared, ({}, None))
            same = forest if members == parts[shared] else None
            index.hold(parts[shared], as_tree=shared in trees, forest=same)

    def in_kernel(
        self, shared: SharedChain, _members: Mapping[Member, Rules]
    ) -> Mapping[str, TreeChain] | None:
        """The chains of a shared chain as they were written, if it is a tree. For any thread."""
        return self._of[shared].written() if shared in self._of else None

    def tree(self, shared: SharedChain, members: Mapping[Member, Rules]) -> Mapping[str, TreeChain]:
        """The chains that *members* amount to as a tree, which the next `hold` need not plant."""
        forest = _forest_of(shared, self.family, self.sizes, members)
        self._planted[shared] = members, forest
        return forest.chains()

    def wants_tree(self, members: Mapping[Member, Rules], *, is_tree: bool) -> bool:
        """Tell whether *members* of a shared chain are to be a tree, where they are or not."""
        return self.sizes.wants_tree(_destinations(members), is_tree=is_tree)

    def uses(self, table: str, chain: str) -> bool:
        """Tell whether *chain* is one of a tree."""
        return any(chain in index for shared, index in self._of.items() if shared.table == table)


class _Part(Struct):
    """What a transaction does to one shared chain."""

    puts: dict[Member, Held] = msgspec.field(default_factory=dict)
    drops: list[Member] = msgspec.field(default_factory=list)
    reset: bool = False


class _Forest:
    """Members as trees: one of those with an address, one of the others. Owned by its index.

    ``filled`` is what each chain holds, the shared one included.
    """

    def __init__(
        self,
        shared: SharedChain,
        family: Family,
        leaf_rules: int,
        members: Mapping[Member, Held],
    ) -> None:
        label = f"{shared.table} {shared.name}"
        self.shared = shared
        self._by_address = PrefixTree(f"{label} address", family.host_prefix, leaf_rules)
        self._by_port = PrefixTree(f"{label} port", 0, leaf_rules)
        self._leaves: dict[Member, tuple[PrefixTree, Leaf]] = {}
        self._apart: dict[Member, Held] = {}
        leaves: dict[PrefixTree, list[Leaf]] = {self._by_address: [], self._by_port: []}
        for key, held in members.items():
            leaf = self._leaf(key, held)
            if leaf is not None:
                leaves[leaf[0]].append(leaf[1])
        for tree, some in leaves.items():
            tree.fill(some)
        self.filled: dict[str, Rules] = {n: _texts(lines) for n, lines in self.lines().items()}

    def members(self) -> dict[str, tuple[tuple[Member, ...], str | None]]:
        """The members that are in each chain itself, and the name of the chain above it."""
        shared = self.shared.name
        found: dict[str, tuple[tuple[Member, ...], str | None]] = {}
        in_shared: list[Member] = list(self._apart)
        for tree in (self._by_address, self._by_port):
            in_shared += [leaf.key for leaf in tree.inline()]
            for name, branch, above in tree.chains():
                found[name] = tuple(leaf.key for leaf in branch.node.leaves), above or shared
        found[shared] = tuple(in_shared), None
        return found

    def chains(self) -> dict[str, TreeChain]:
        """All chains, the shared one included."""
        return {
            name: TreeChain(self.filled[name], inside, above)
            for name, (inside, above) in self.members().items()
        }

    def lines(self) -> dict[str, tuple[Line, ...]]:
        """The rules of every chain, the shared one included."""
        found = {self.shared.name: tuple(self._shared_lines())}
        for tree in (self._by_address, self._by_port):
            found.update((name, tuple(tree.lines(branch))) for name, branch, _ in tree.chains())
        return found

    def change(self, drops: Iterable[Member], puts: Mapping[Member, Held]) -> Edit:
        """Visits the chains on the way to each of them, and those that are divided or joined."""
        tops = self._tops()
        suspects: set[str] = set()
        places: dict[tuple[PrefixTree, int], None] = {}
        for key in drops:
            self._apart.pop(key, None)
            tree, leaf = self._leaves.pop(key, (None, None))
            if tree is not None and leaf is not None:
                suspects.update(name for name, _ in tree.path(leaf.bits))
                suspects.update(tree.remove(leaf))
                places[tree, leaf.bits] = None
        for key, held in puts.items():
            place = _placed(key)
            if place is not None:
                tree = self._by_address if place[0] else self._by_port
                suspects.update(name for name, _ in tree.path(place[1]))
            for tree, bits in self._insert(key, held):
                places[tree, bits] = None
        found: dict[str, tuple[Line, ...]] = {self.shared.name: tuple(self._shared_lines())}
        for tree, bits in places:
            for name, branch in tree.path(bits):
                if name not in found:
                    found[name] = tuple(tree.lines(branch))
        now = self._tops()
        if now.keys() != tops.keys():
            # A tree begins deeper or higher: chains come and go on no way to a changed member.
            suspects.update(n for n, (tree, top) in tops.items() if not tree.has(top))
            waiting = list(now.values())
            while waiting:
                tree, branch = waiting.pop()
                name = tree.name(branch)
                if name not in self.filled:
                    found.setdefault(name, tuple(tree.lines(branch)))
                    waiting += ((tree, below) for below in tree.branches(branch))
        gone = frozenset(suspects & self.filled.keys() - found.keys())
        filled = {n: lines for n, lines in found.items() if self.filled.get(n) != _texts(lines)}
        new = frozenset(filled.keys() - self.filled.keys())
        for name in gone:
            del self.filled[name]
        self.filled.update((name, _texts(lines)) for name, lines in filled.items())
        return Edit(filled, new, gone)

    def _tops(self) -> dict[str, tuple[PrefixTree, Branch]]:
        """The chains that the shared one leads to."""
        trees = (self._by_address, self._by_port)
        return {tree.name(branch): (tree, branch) for tree in trees for branch in tree.tops()}

    def _insert(self, key: Member, held: Held) -> list[tuple[PrefixTree, int]]:
        """Return where chains may be others now."""
        found = self._leaf(key, held)
        if found is None:
            return []
        tree, leaf = found
        return [(tree, one.bits) for one in tree.insert(leaf)]

    def _leaf(self, key: Member, held: Held) -> tuple[PrefixTree, Leaf] | None:
        """Note a member, and return what it is in which tree, if it has a place in one."""
        place = _placed(key)
        if place is None or not isinstance(key, DispatchRule):
            self._apart[key] = held
            return None
        has_address, bits = place
        tree = self._by_address if has_address else self._by_port
        found = self._leaves[key] = (tree, Leaf(bits, key, *held))
        return found

    def _shared_lines(self) -> Iterator[Line]:
        """The way into the trees, what is in neither, and the tail."""
        for tree in (self._by_address, self._by_port):
            yield from tree.top_lines()
        for tail in (False, True):
            for key in sorted(self._apart, key=repr):
                if isinstance(key, TailRule) is tail:
                    owner, rules = self._apart[key]
                    yield from ((owner, rule) for rule in rules)


def _difference(before: _Forest | None, after: _Forest) -> Edit:
    old = before.filled if before else {}
    filled = {n: lines for n, lines in after.lines().items() if old.get(n) != _texts(lines)}
    return Edit(
        filled,
        frozenset(filled.keys() - old.keys() - {after.shared.name}),
        frozenset(old.keys() - after.filled.keys()),
    )


def _texts(lines: Iterable[Line]) -> Rules:
    return tuple(rule for _, rule in lines)


def _destinations(members: Iterable[Member]) -> int:
    return sum(isinstance(key, DispatchRule) for key in members)


_destination = re.compile(r"(tcp|udp|sctp) (node port|\S+) (\d+)").fullmatch
_health_check = re.compile(r"health check (\d+) of .*").fullmatch


def _placed(key: Member) -> tuple[bool, int] | None:
    """Whether *key* has an address, and its place as bits; ``None`` if it has no place."""
    if isinstance(key, TailRule):
        return None
    protocol, address = "tcp", "node port"
    found = _destination(key.match)
    if found:
        protocol, address, port = found.groups()
    else:
        found = _health_check(key.match)
        if not found:
            return None
        port = found[1]
    bits = PROTOCOLS.index(protocol) << PORT_BITS | int(port)
    if address == "node port":
        return False, bits
    if ":" in address:
        number = int(IPv6Address(address))
    else:
        number = 0  # four times as fast as an IPv4Address
        for octet in address.split("."):
            number = number << 8 | int(octet)
    return True, number << (PROTOCOL_BITS + PORT_BITS) | bits
