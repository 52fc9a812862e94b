"""What a read-back or the books say about what is wanted; `test_kernel` has the rest."""

from __future__ import annotations

import pytest

from pykubeproxy.iptables.fingerprints import Fingerprints, chain_mark, mark
from pykubeproxy.iptables.listing import Listing
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.observation import (
    XtablesObservation,
    fingerprints,
    kernel_objects,
    object_mark,
    target_of,
    verdict,
)
from pykubeproxy.model.kinds import Family

SVC = Chain("nat", "KUBE-SVC-A")
SERVICES = SharedChain("nat", "KUBE-SERVICES")
RULE = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
OTHER = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.2 80")
TAIL = TailRule("nat", "KUBE-SERVICES", "-j KUBE-NODEPORTS")
JUMP = Jump("nat", "OUTPUT", "KUBE-SERVICES")
PRESENT = Presence("filter", "KUBE-FIREWALL")
WANTED = {
    SVC: ("-s 10.0.0.1/32 -j KUBE-MARK-MASQ", "-j KUBE-SEP-A"),
    SERVICES: (),
    RULE: ("-d 10.96.0.1/32 -j KUBE-SVC-A",),
    TAIL: ("-j KUBE-NODEPORTS",),
    JUMP: ("-j KUBE-SERVICES",),
    PRESENT: (),
}
OUTPUT = b"""\
*nat
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-A
-A KUBE-SERVICES -j KUBE-NODEPORTS
-A KUBE-SVC-A -s 10.0.0.1/32 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -j KUBE-SEP-A
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
COMMIT
"""
EDITED = OUTPUT.replace(b"10.0.0.1/32", b"10.0.0.9/32")


def no_trees(_shared, _members):
    return None


def table(objects=WANTED):
    """What is known when each chain printed as its mark."""
    rows = fingerprints(kernel_objects([objects], no_trees), Fingerprints())
    return Fingerprints((of, content, printed or of) for of, content, printed in rows)


def never(*_):
    raise AssertionError("the kernel was asked")


def observation(output=None, known=None, members=(), read=never):
    known = Fingerprints() if known is None else known
    listing = None if output is None else Listing.of(output, known.printed)
    return XtablesObservation(listing, known, dict(members), never, Family.IPV4, read)


# --- what objects amount to ---


def test_objects_become_chains_with_the_keys_that_they_vouch_for():
    found = kernel_objects([WANTED], no_trees)
    assert {
        ("nat", "KUBE-SVC-A"): (SVC,),
        ("nat", "KUBE-SERVICES"): (SERVICES, RULE, TAIL),
    } == {place: chain.keys for place, chain in found.chains.items()}
    assert ({JUMP: WANTED[JUMP]}, {PRESENT: ()}) == (found.jumps, found.presences)


def test_of_two_values_the_later_counts():
    found = kernel_objects([{SVC: ("-j A",)}, {SVC: ("-j B",)}], no_trees)
    assert ("-j B",) == found.chains["nat", "KUBE-SVC-A"].rules


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-s 10.0.0.1/32 -j X", "X"),
        ("-j DNAT --to-destination 10.0.0.1:80", "DNAT"),
        ("-p tcp", ""),
        ('-m comment --comment "a -j b" -j C', "C"),
    ],
)
def test_the_target_is_behind_the_last_jump(rule, expected):
    assert expected == target_of(rule)


# --- from the books alone ---


@pytest.mark.parametrize("key", WANTED, ids=lambda key: type(key).__name__)
def test_the_books_vouch_for_everything_in_them(key):
    found = observation(known=table())
    assert {} == found.strays([WANTED])
    assert found.holds(key, WANTED[key])


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        pytest.param({**WANTED, SVC: ("-j DROP",)}, {SVC}, id="a chain differs"),
        pytest.param({**WANTED, Chain("nat", "KUBE-SVC-B"): ()}, {Chain("nat", "KUBE-SVC-B")},
                     id="a chain more"),
        pytest.param({**WANTED, OTHER: ("-j KUBE-SVC-B",)}, {SERVICES, RULE, OTHER, TAIL},
                     id="a list is right as a whole or not at all"),
        pytest.param({**WANTED, JUMP: ("-m comment -j KUBE-SERVICES",)}, {JUMP}, id="a jump"),
    ],
)  # fmt: skip
def test_what_differs_from_the_books_is_not_held_and_nothing_is_read(wanted, missing):
    found = observation(known=table())
    assert {} == found.strays([wanted])
    assert missing == {key for key, value in wanted.items() if not found.holds(key, value)}


@pytest.mark.parametrize("gone", [SVC, JUMP, PRESENT], ids=lambda key: type(key).__name__)
def test_what_is_to_go_is_looked_for_in_the_kernel(gone):
    wanted = {key: value for key, value in WANTED.items() if key != gone}
    known = table()
    reads = []

    def read():
        reads.append(1)
        return Listing.of(OUTPUT, known.printed)

    found = observation(known=known, read=read)
    strays = found.strays([wanted])
    assert [1] == reads
    expected = {SVC: [SVC], JUMP: [DispatchRule("nat", "OUTPUT", "-j KUBE-SERVICES")]}
    if gone is SVC:
        assert expected[gone] == list(strays)
    assert all(found.holds(key, value) for key, value in wanted.items())


# --- what a read-back says about what was written ---


def judged(output, *, known=None, accepted=frozenset(), is_ours=False, applied=WANTED):
    known = Fingerprints() if known is None else known
    listing = Listing.of(output, known.printed)
    found = XtablesObservation(listing, known, {}, lambda *_: False, Family.IPV4)
    return verdict(
        found, listing, [applied], no_trees, known=known, is_ours=is_ours, accepted=accepted
    )


def test_what_reads_as_written_is_believed_with_its_print():
    found = judged(OUTPUT)
    assert ([], frozenset()) == (found.wrong, found.odd)
    of = chain_mark("nat", "KUBE-SVC-A")
    text = b"-A KUBE-SVC-A -s 10.0.0.1/32 -j KUBE-MARK-MASQ\n-A KUBE-SVC-A -j KUBE-SEP-A\n"
    assert mark(text) == Fingerprints(found.rows()).printed(of)
    assert {chain_mark("nat", "KUBE-SERVICES")} == found.shared
    assert {("nat", "KUBE-SERVICES"): {k: WANTED[k] for k in (SERVICES, RULE, TAIL)}} == (
        found.members
    )
    assert {object_mark(key) for key in (SVC, JUMP, PRESENT)} < {row[0] for row in found.rows()}


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        pytest.param(EDITED, ["nat KUBE-SVC-A"], id="an edit that keeps the targets"),
        pytest.param(
            OUTPUT.replace(b"-A KUBE-SVC-A -j KUBE-SEP-A\n", b""),
            ["nat KUBE-SVC-A"],
            id="a rule less",
        ),
        pytest.param(
            OUTPUT.replace(b"-A OUTPUT -j KUBE-SERVICES\n", b""), [str(JUMP)], id="no jump"
        ),
        pytest.param(
            OUTPUT.replace(b":KUBE-SVC-A", b":KUBE-SVC-B - [0:0]\n:KUBE-SVC-A"),
            ["nat KUBE-SVC-B"],
            id="a chain too many",
        ),
    ],
)
def test_what_was_edited_is_named(output, wrong):
    assert wrong == judged(output).wrong


def test_after_nobody_elses_commit_every_print_is_believed():
    assert [] == judged(EDITED, is_ours=True).wrong


def test_an_odd_print_that_was_odd_before_is_believed():
    first = judged(EDITED)
    assert [] == judged(EDITED, accepted=first.odd).wrong
    assert ["nat KUBE-SVC-A"] == judged(
        EDITED.replace(b"0.9/32", b"0.8/32"), accepted=first.odd
    ).wrong


def test_a_known_print_of_something_else_is_wrong():
    known = Fingerprints(judged(OUTPUT).rows())
    assert [] == judged(OUTPUT, known=known).wrong
    changed = {**WANTED, SVC: ("-j KUBE-SEP-B",)}
    assert ["nat KUBE-SVC-A"] == judged(OUTPUT, known=known, applied=changed).wrong
