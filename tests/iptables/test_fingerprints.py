"""Marks, tables of them, and their file."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pykubeproxy.iptables.fingerprints import (
    Fingerprint,
    Fingerprints,
    chain_mark,
    decode,
    encode,
    jump_mark,
    mark,
    members_mark,
    rules_mark,
)
from pykubeproxy.iptables.objects import DispatchRule, Jump, SharedChain, TailRule

ROWS = [(3, 30, 300), (1, 10, 100), (2, 20, 0)]
TABLE = Fingerprints(ROWS)

# --- marks ---


def test_marks_are_the_same_in_every_process():
    program = "from pykubeproxy.iptables.fingerprints import mark; print(mark(b'x'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert str(mark(b"x")) == done.stdout.decode().strip()


def test_different_things_have_different_marks():
    marks = [
        chain_mark("nat", "KUBE-SERVICES"),
        chain_mark("filter", "KUBE-SERVICES"),
        jump_mark(Jump("nat", "OUTPUT", "KUBE-SERVICES")),
        jump_mark(Jump("nat", "PREROUTING", "KUBE-SERVICES")),
        rules_mark(()),
        rules_mark(("-j A",)),
        rules_mark(("-j A", "-j B")),
        rules_mark(("-j B", "-j A")),
    ]
    assert len(marks) == len(set(marks))
    assert 0 not in marks


A = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
B = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.2 80")
TAIL = TailRule("nat", "KUBE-SERVICES", "-j X")
SHARED = SharedChain("nat", "KUBE-SERVICES")


def test_members_have_no_order_among_each_other():
    one = {SHARED: (), A: ("-j A",), B: ("-j B",)}
    assert members_mark(one) == members_mark(dict(reversed(one.items())))


@pytest.mark.parametrize(
    "members",
    [
        pytest.param({}, id="empty"),
        pytest.param({SHARED: ()}, id="no member"),
        pytest.param({SHARED: (), A: ("-j A",)}, id="one missing"),
        pytest.param({SHARED: (), A: ("-j B",), B: ("-j A",)}, id="exchanged"),
        pytest.param({SHARED: (), A: ("-j A",), TAIL: ("-j B",)}, id="tail"),
        pytest.param({SHARED: (), A: ("-j A", "-j B")}, id="joined"),
    ],
)
def test_other_members_have_another_mark(members):
    assert members_mark({SHARED: (), A: ("-j A",), B: ("-j B",)}) != members_mark(members)


# --- tables ---


@pytest.mark.parametrize(
    ("of", "expected"),
    [(1, Fingerprint(10, 100)), (2, Fingerprint(20, 0)), (0, None), (4, None)],
)
def test_a_fingerprint_is_found_by_its_mark(of, expected):
    assert expected == TABLE.get(of)
    assert (expected.printed if expected else 0) == TABLE.printed(of)


@pytest.mark.parametrize(("content", "expected"), [(10, 100), (11, 0)])
def test_a_print_belongs_to_one_content(content, expected):
    assert expected == TABLE.print_of(1, content)


def test_of_several_with_one_mark_the_last_counts():
    assert Fingerprint(11, 111) == Fingerprints([*ROWS, (1, 11, 111)]).get(1)


def test_missing_prints_are_counted():
    assert (3, 1) == (len(TABLE), TABLE.without_print)


def test_a_changed_table_is_another_one():
    changes = {1: None, 3: Fingerprint(30, 0), 2: Fingerprint(21, 0), 4: Fingerprint(40, 400)}
    assert [(2, 21, 0), (3, 30, 300), (4, 40, 400)] == list(TABLE.changed(changes))
    assert sorted(ROWS) == list(TABLE)


# --- the file ---


@pytest.mark.parametrize("generation", [None, 0, 1, 2**32 - 1])
@pytest.mark.parametrize("table", [Fingerprints(), TABLE], ids=["empty", "three"])
def test_what_is_stored_is_read_again(generation, table):
    found, rows = decode(b"here", encode(b"here", generation, table))
    assert (generation, list(table)) == (found, list(rows))


def test_a_row_takes_24_bytes():
    assert 72 == len(encode(b"here", 1, TABLE)) - len(encode(b"here", 1, Fingerprints()))


@pytest.mark.parametrize("identity", [b"", b"her", b"there", b"here "])
def test_a_file_of_another_place_is_refused(identity):
    with pytest.raises(ValueError, match="of another boot"):
        decode(identity, encode(b"here", 7, TABLE))


def test_a_damaged_file_is_refused_wherever_it_is_damaged():
    content = encode(b"here", 7, TABLE)
    for at in range(len(content)):
        spoilt = bytearray(content)
        spoilt[at] ^= 1
        with pytest.raises(ValueError, match=r"damaged|another form"):
            decode(b"here", bytes(spoilt))


def test_a_truncated_file_is_refused_wherever_it_ends():
    content = encode(b"here", 7, TABLE)
    for end in range(len(content)):
        with pytest.raises(ValueError, match=r"damaged|another form"):
            decode(b"here", content[:end])


def test_rows_that_are_not_whole_are_refused():
    with pytest.raises(ValueError, match="whole number"):
        Fingerprints.from_bytes(bytes(23))
    with pytest.raises(ValueError, match="whole number"):
        Fingerprints.from_bytes(bytes(12))
