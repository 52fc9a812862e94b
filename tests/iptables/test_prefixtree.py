"""Which chains a set of rules amounts to."""

from __future__ import annotations

import pytest

from pykubeproxy.iptables.objects import DispatchRule
from pykubeproxy.iptables.prefixtree import Leaf, PrefixTree


def tree_of(*places: int, address_bits: int = 32, leaf_rules: int = 1) -> PrefixTree:
    tree = PrefixTree("nat X", address_bits, leaf_rules)
    for bits in places:
        tree.insert(leaf(bits))
    return tree


def leaf(bits: int) -> Leaf:
    return Leaf(bits, DispatchRule("nat", "X", str(bits)), None, (f"-j {bits}",))


def at(address: int, protocol: int = 0, port: int = 80) -> int:
    return address << 18 | protocol << 16 | port


def matches(tree: PrefixTree) -> list[list[str]]:
    """The rules of the shared chain and of every other, without where they lead."""
    chains = [tree.top_lines(), *(tree.lines(branch) for _, branch, _ in tree.chains())]
    return [[rule.rpartition("-j ")[0].strip() for _, rule in lines] for lines in chains]


A = 0x0A600000
"""10.96.0.0"""


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        pytest.param([at(A)], [[""]], id="one fits into the shared chain"),
        pytest.param(
            [at(A), at(A + 1)],
            [["-d 10.96.0.0/32", "-d 10.96.0.1/32"], [""], [""]],
            id="a long way without a branch is skipped",
        ),
        pytest.param(
            [at(A), at(A + 0x8000)],
            [["-d 10.96.0.0/17", "-d 10.96.128.0/17"], [""], [""]],
            id="a branch is as short as it can be",
        ),
        pytest.param(
            [at(A), at(A + 1), at(A + 0x8000)],
            [
                ["-d 10.96.0.0/28", "-d 10.96.128.0/17"],
                ["-d 10.96.0.0/32", "-d 10.96.0.1/32"],
                *([""], [""], [""]),
            ],
            id="and four bits at once where there are more",
        ),
        pytest.param(
            [at(A), at(A, 1), at(A, 2)],
            [
                [f"-m {p} -p {p} -d 10.96.0.0/32" for p in ("tcp", "udp", "sctp")],
                *([""], [""], [""]),
            ],
            id="protocols of one address",
        ),
        pytest.param(
            [at(A, 0, 80), at(A, 0, 81), at(A, 0, 8080)],
            [
                [f"-m tcp -p tcp -d 10.96.0.0/32 --dport {d}" for d in ("80:95", "4096:8191")],
                [f"-m tcp -p tcp -d 10.96.0.0/32 --dport {d}" for d in ("80", "81")],
                *([""], [""], [""]),
            ],
            id="ports of one address",
        ),
    ],
)
def test_shapes(places: list[int], expected: list[list[str]]) -> None:
    assert expected == matches(tree_of(*places))


def test_without_an_address_there_are_protocols_and_ports() -> None:
    tree = tree_of(30000, 30001, 1 << 16 | 30000, address_bits=0)
    assert ["-m tcp -p tcp --dport 30000:30015", "-m udp -p udp"] == matches(tree)[0]


def test_every_order_gives_the_same_chains() -> None:
    places = [at(A + n * 37) for n in range(40)]
    expected = matches(tree_of(*places, leaf_rules=4))
    assert expected == matches(tree_of(*reversed(places), leaf_rules=4))


@pytest.mark.parametrize("leaf_rules", [1, 4, 100])
def test_all_at_once_is_the_same_as_one_by_one(leaf_rules: int) -> None:
    places = [at(A + n * n * 37, n % 3, 80 + n % 7) for n in range(60)] + [at(A)] * 9
    tree = tree_of(leaf_rules=leaf_rules)
    tree.fill(map(leaf, places))
    assert matches(tree_of(*places, leaf_rules=leaf_rules)) == matches(tree)


def test_what_was_removed_leaves_no_trace() -> None:
    kept = [at(A + n * 37) for n in range(40)]
    tree = tree_of(*kept, *(at(A + n * 41 + 7) for n in range(40)), leaf_rules=4)
    for n in range(40):
        tree.remove(leaf(at(A + n * 41 + 7)))
    assert matches(tree_of(*kept, leaf_rules=4)) == matches(tree)


def test_chains_that_become_one_leaf_are_named() -> None:
    tree = tree_of(at(A), at(A + 1), at(A + 0x8000), leaf_rules=2)
    before = {name for name, *_ in tree.chains()}
    gone = tree.remove(leaf(at(A + 1)))
    assert before <= gone
    assert [] == list(tree.chains())
