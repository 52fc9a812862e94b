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
from ipaddress import ip_address

from msgspec import Struct

from pykubeproxy.iptables.objects import DispatchRule, Rules, SharedChain, TailRule
from pykubeproxy.iptables.prefixtree import (
    PORT_BITS,
    PROTOCOL_BITS,
    PROTOCOLS,
    Leaf,
    Line,
    PrefixTree,
)
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey

__all__ = [
    "INDEX_ABOVE",
    "ChainIndex",
    "Edit",
    "Held",
    "Member",
    "Sizes",
    "TreeChain",
    "tree_chains",
]

INDEX_ABOVE = 500
"""Rules of a shared chain from which on walking them costs more than the jumps of a tree."""
LIST_BELOW = 0.8
"""Share of that number below which the list comes back: not at every change around it."""
LEAF_RULES = 8
REBUILD_SHARE = 8
"""If more than one member in so many changes, making the tree anew takes less time."""

Member = DispatchRule | TailRule
Held = tuple[ServiceKey | None, Rules]
"""Who wants a member, where that is known, and its rules."""


class Sizes(Struct, frozen=True):
    """When a shared chain is a tree, and how many rules a leaf chain takes.

    ``above``: the most rules of a list; ``None``: it is never a tree.
    """

    above: int | None = INDEX_ABOVE
    leaf_rules: int = LEAF_RULES

    def wants_tree(self, rules: int, *, is_tree: bool) -> bool:
        """Tell whether so many rules make a tree, where there is one now or not."""
        if self.above is None:
            return False
        return rules > (self.above * LIST_BELOW if is_tree else self.above)


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
    held: dict[Member, Held] = {key: (None, rules) for key, rules in members.items()}
    forest = _Forest(shared, family, sizes.leaf_rules, held)
    return {
        name: TreeChain(forest.filled[name], inside, above)
        for name, (inside, above) in forest.members().items()
    }


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
        self._rules = 0
        self._forest: _Forest | None = None
        self._take_back: Callable[[], object] = lambda: None

    @property
    def is_tree(self) -> bool:
        return self._forest is not None

    def __contains__(self, chain: str) -> bool:
        """Tell whether *chain* is one of the tree."""
        return self._forest is not None and chain in self._forest.filled

    def hold(self, members: Mapping[Member, Rules], *, as_tree: bool) -> None:
        """Note what the kernel was seen to hold."""
        self._clear()
        self._note({key: (None, rules) for key, rules in members.items()})
        self._forest = self._planted() if as_tree else None

    def edit(
        self, puts: Mapping[Member, Held], drops: Iterable[Member], *, reset: bool
    ) -> Edit | None:
        """Put and drop members; *reset*: those from before do not count. ``None`` for a list.

        The chains of a tree come ready to be filled; a list is for the caller to change.
        """
        gone = [key for key in drops if key in self._members and key not in puts]
        if reset:
            before = self._members, self._rules, self._forest
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

    # --- private ---

    def _change(
        self, puts: Mapping[Member, Held], drops: Collection[Member], *, as_tree: bool | None
    ) -> Edit | None:
        changed = {key: held for key, held in puts.items() if self._members.get(key) != held}
        for key in drops:
            self._rules -= _counted(key, self._members.pop(key)[1])
        for key in changed.keys() & self._members.keys():
            self._rules -= _counted(key, self._members[key][1])
        replaced = [key for key in changed if key in self._members]
        self._note(changed)
        if as_tree is None:
            as_tree = self._sizes.wants_tree(self._rules, is_tree=self.is_tree)
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
        self._members.update(members)
        self._rules += sum(_counted(key, rules) for key, (_, rules) in members.items())

    def _clear(self) -> None:
        self._members, self._rules, self._forest = {}, 0, None

    def _restore(self, members: dict[Member, Held], rules: int, forest: _Forest | None) -> None:
        self._members, self._rules, self._forest = members, rules, forest


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
        for key, held in members.items():
            self._insert(key, held)
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

    def lines(self) -> dict[str, tuple[Line, ...]]:
        """The rules of every chain, the shared one included."""
        found = {self.shared.name: tuple(self._shared_lines())}
        for tree in (self._by_address, self._by_port):
            found.update((name, tuple(tree.lines(branch))) for name, branch, _ in tree.chains())
        return found

    def change(self, drops: Iterable[Member], puts: Mapping[Member, Held]) -> Edit:
        """Visits the chains on the way to each of them, and those that are divided or joined."""
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
        gone = frozenset(suspects & self.filled.keys() - found.keys())
        filled = {n: lines for n, lines in found.items() if self.filled.get(n) != _texts(lines)}
        new = frozenset(filled.keys() - self.filled.keys())
        for name in gone:
            del self.filled[name]
        self.filled.update((name, _texts(lines)) for name, lines in filled.items())
        return Edit(filled, new, gone)

    def _insert(self, key: Member, held: Held) -> list[tuple[PrefixTree, int]]:
        """Return where chains may be others now."""
        place = _placed(key)
        if place is None or not isinstance(key, DispatchRule):
            self._apart[key] = held
            return []
        has_address, bits = place
        tree = self._by_address if has_address else self._by_port
        leaf = Leaf(bits, key, *held)
        self._leaves[key] = (tree, leaf)
        return [(tree, one.bits) for one in tree.insert(leaf)]

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


def _counted(key: Member, rules: Rules) -> int:
    return len(rules) if isinstance(key, DispatchRule) else 0


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
    return True, int(ip_address(address)) << (PROTOCOL_BITS + PORT_BITS) | bits
