"""Rules in a tree by address, protocol and port, and the chains that such a tree amounts to.

A prefix under which there are more rules than a leaf chain takes is divided by its next bit; a
chain branches by up to four such bits at once, and paths without a branch are skipped. So the
shape is a function of the rules alone, whatever the order in which they came and went.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from itertools import islice

import msgspec
from msgspec import Struct

from pykubeproxy.iptables.names import index_chain
from pykubeproxy.iptables.objects import DispatchRule, Rules
from pykubeproxy.model.objects import ServiceKey

__all__ = ["Branch", "Leaf", "Line", "PrefixTree"]

BRANCH_BITS = 4
PROTOCOLS = ("tcp", "udp", "sctp")
PROTOCOL_BITS = 2
PORT_BITS = 16

Line = tuple[ServiceKey | None, str]
"""A rule body and who wants it; a jump within the tree is nobody's."""


class Leaf(Struct, frozen=True, gc=False):
    """A dispatch rule at its place in a tree."""

    bits: int
    key: DispatchRule
    owner: ServiceKey | None
    rules: Rules


class Node(Struct):
    """All leaves under one prefix: few in a list, more in children by the next digit."""

    count: int = 0
    leaves: list[Leaf] = msgspec.field(default_factory=list)
    children: dict[int, Node] | None = None


class Branch(Struct, frozen=True):
    depth: int
    prefix: int
    node: Node


class PrefixTree:
    """Leaves by address (if *address_bits*), protocol and port."""

    def __init__(self, label: str, address_bits: int, leaf_rules: int) -> None:
        self._label = label
        self._address_bits = address_bits
        self.width = address_bits + PROTOCOL_BITS + PORT_BITS
        self._leaf_rules = leaf_rules
        self.root = Node()

    # --- shape ---

    def fill(self, leaves: Iterable[Leaf]) -> None:
        """Take *leaves* in place of all before: a tenth of the time that one by one would take."""
        self.root = self._grown(sorted(leaves, key=_bits), 0)

    def _grown(self, leaves: list[Leaf], depth: int) -> Node:
        count = sum([len(leaf.rules) for leaf in leaves])
        if count <= self._leaf_rules or depth >= self.width:
            return Node(count, leaves)
        children: dict[int, Node] = {}
        start = 0
        while start < len(leaves):
            bits = leaves[start].bits
            digit, below = self._digit(bits, depth)
            shift = self.width - below
            end = bisect_left(leaves, ((bits >> shift) + 1) << shift, start, key=_bits)
            children[digit] = self._grown(leaves[start:end], below)
            start = end
        return Node(count, children=children)

    def insert(self, leaf: Leaf) -> list[Leaf]:
        """Return the leaves that may be in another chain now, *leaf* among them."""
        node, depth = self.root, 0
        while node.children is not None:
            node.count += len(leaf.rules)
            digit, depth = self._digit(leaf.bits, depth)
            node = node.children.setdefault(digit, Node())
        node.count += len(leaf.rules)
        node.leaves.append(leaf)
        moved = node.leaves
        while node.count > self._leaf_rules and depth < self.width:
            # One level only would do for one leaf, and a crowd under one long prefix goes deeper.
            children: dict[int, Node] = {}
            for one in node.leaves:
                digit, below = self._digit(one.bits, depth)
                child = children.setdefault(digit, Node())
                child.leaves.append(one)
                child.count += len(one.rules)
            node.leaves, node.children = [], children
            node = max(children.values(), key=lambda child: child.count)
            depth = below
        return moved

    def remove(self, leaf: Leaf) -> set[str]:
        """Return the names of chains that went because one leaf chain is enough for all of them."""
        node, depth = self.root, 0
        path: list[tuple[Node, int, int]] = []
        while node.children is not None:
            digit, below = self._digit(leaf.bits, depth)
            path.append((node, depth, digit))
            node, depth = node.children[digit], below
        node.leaves.remove(leaf)
        node.count -= len(leaf.rules)
        gone: set[str] = set()
        for above, depth, digit in reversed(path):
            assert above.children is not None
            above.count -= len(leaf.rules)
            if not above.children[digit].count:
                del above.children[digit]
            if above.count <= self._leaf_rules:
                prefix = leaf.bits >> (self.width - depth)
                gone.update(name for name, _, _ in self._under(Branch(depth, prefix, above), None))
                above.leaves = [one for child in above.children.values() for one in _all(child)]
                above.children = None
        return gone

    def _digit(self, bits: int, depth: int) -> tuple[int, int]:
        """The digit of *bits* at *depth*, and the depth below it: a protocol is one digit."""
        below = depth + (PROTOCOL_BITS if depth == self._address_bits else 1)
        return (bits >> (self.width - below)) & ((1 << (below - depth)) - 1), below

    # --- chains ---

    def name(self, branch: Branch) -> str:
        return index_chain(f"{self._label} {branch.prefix:x}", branch.depth)

    def chains(self) -> Iterator[tuple[str, Branch, str | None]]:
        """Every chain but the shared one: name, what it is for, and the name of the one above."""
        for branch in self.tops():
            yield from self._under(branch, None)

    def path(self, bits: int) -> Iterator[tuple[str, Branch]]:
        """The chains, from the top, that lead where *bits* is or would be."""
        branches = self.tops()
        while branches:
            for branch in branches:
                if bits >> (self.width - branch.depth) == branch.prefix:
                    yield self.name(branch), branch
                    branches = self.branches(branch)
                    break
            else:
                return

    def has(self, branch: Branch) -> bool:
        """Tell whether *branch* is one of a chain."""
        found = self.path(branch.prefix << (self.width - branch.depth))
        return any((b.depth, b.prefix) == (branch.depth, branch.prefix) for _, b in found)

    def inline(self) -> list[Leaf]:
        """The leaves that need no chain of their own, because all of them fit into one."""
        return self.root.leaves

    def tops(self) -> list[Branch]:
        """Where the shared chain branches to."""
        if self.root.children is None:
            return []
        top = self._resolved(Branch(0, 0, self.root))
        return [top] if top.node.children is None else self.branches(top)

    def top_lines(self) -> Iterator[Line]:
        """What the shared chain has of this tree."""
        yield from _rules(self.root)
        for branch in self.tops():
            yield None, self.jump(branch)

    def branches(self, branch: Branch) -> list[Branch]:
        return [self._resolved(below) for below in self._window(branch)]

    def jump(self, branch: Branch) -> str:
        """The rule that leads to the chain of *branch*."""
        parts = []
        at = self._address_bits
        beyond = branch.depth - at - PROTOCOL_BITS
        if beyond >= 0:
            protocol = PROTOCOLS[branch.prefix >> beyond & ((1 << PROTOCOL_BITS) - 1)]
            parts.append(f"-m {protocol} -p {protocol}")
        length = min(branch.depth, at)
        if length:
            number = branch.prefix >> (branch.depth - length) << (at - length)
            address = IPv4Address(number) if at == 32 else IPv6Address(number)
            parts.append(f"-d {address}/{length}")
        if beyond > 0:
            low = (branch.prefix & ((1 << beyond) - 1)) << (PORT_BITS - beyond)
            high = low + (1 << (PORT_BITS - beyond)) - 1
            parts.append(f"--dport {low}" if low == high else f"--dport {low}:{high}")
        parts.append(f"-j {self.name(branch)}")
        return " ".join(parts)

    def lines(self, branch: Branch) -> Iterator[Line]:
        yield from _rules(branch.node)
        for below in self.branches(branch):
            yield None, self.jump(below)

    def _under(self, branch: Branch, above: str | None) -> Iterator[tuple[str, Branch, str | None]]:
        name = self.name(branch)
        yield name, branch, above
        for below in self.branches(branch):
            yield from self._under(below, name)

    def _resolved(self, branch: Branch) -> Branch:
        """Skip chains that would have one branch."""
        while True:
            below = list(islice(self._window(branch), 2))
            if len(below) != 1:
                return branch
            branch = below[0]

    def _window(self, branch: Branch) -> Iterator[Branch]:
        """What a chain for *branch* branches to: leaves, and nodes at the next few bits' end."""
        at = self._address_bits
        if branch.depth < at:
            end = min(branch.depth - branch.depth % BRANCH_BITS + BRANCH_BITS, at)
        elif branch.depth == at:
            end = at + PROTOCOL_BITS
        else:
            done = branch.depth - at - PROTOCOL_BITS
            end = branch.depth - done % BRANCH_BITS + BRANCH_BITS
        return self._within(branch, end)

    def _within(self, branch: Branch, end: int) -> Iterator[Branch]:
        children = branch.node.children
        if children is None:
            return
        for digit in sorted(children):
            below = branch.depth + (PROTOCOL_BITS if branch.depth == self._address_bits else 1)
            prefix = branch.prefix << (below - branch.depth) | digit
            child = Branch(below, prefix, children[digit])
            if child.node.children is None or below == end:
                yield child
            else:
                yield from self._within(child, end)


def _rules(node: Node) -> Iterator[Line]:
    for leaf in sorted(node.leaves, key=_by_place):
        for rule in leaf.rules:
            yield leaf.owner, rule


def _all(node: Node) -> Iterator[Leaf]:
    yield from node.leaves
    for child in (node.children or {}).values():
        yield from _all(child)


def _bits(leaf: Leaf) -> int:
    return leaf.bits


def _by_place(leaf: Leaf) -> tuple[int, str]:
    return leaf.bits, leaf.key.match
