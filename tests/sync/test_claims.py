from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.claims import Claims

A, B, C = (ServiceKey("ns", name) for name in "abc")
RANKS = {A: ("2024", A), B: ("2025", B), C: ("2026", C)}


def claimed(*owners):
    claims = Claims()
    for owner in owners:
        claims.take("x", RANKS[owner])
    return claims


@pytest.mark.parametrize("order", [(A, B, C), (C, B, A), (B, C, A)])
def test_the_smallest_rank_has_it_in_any_order(order):
    assert claimed(*order).holder("x") == A


@pytest.mark.parametrize("order", [(A, B, C), (C, B, A), (B, C, A)])
def test_the_others_wait_by_rank(order):
    assert claimed(*order).waiting("x") == [B, C]


def test_whoever_loses_it_is_named():
    assert claimed(B).take("x", RANKS[A]) == B


@pytest.mark.parametrize("owner", [A, B], ids=["again", "later"])
def test_nobody_loses_it_to_an_equal_or_later_one(owner):
    assert claimed(A).take("x", RANKS[owner]) is None


def test_the_heir_is_named():
    assert claimed(A, C, B).give_up("x", RANKS[A]) == B


@pytest.mark.parametrize("owner", [B, C], ids=["waiting", "never claimed"])
def test_nobody_inherits_from_one_who_did_not_have_it(owner):
    assert claimed(A, B).give_up("x", RANKS[owner]) is None


def test_losers_know_what_they_wait_for():
    claims = claimed(A, B)
    assert (set(), {"x"}) == (set(claims.lost(A)), set(claims.lost(B)))


def test_an_heir_waits_no_longer():
    claims = claimed(A, B)
    claims.give_up("x", RANKS[A])
    assert set() == set(claims.lost(B))


def test_contested_is_what_somebody_waits_for():
    claims = claimed(A, B)
    claims.take("y", RANKS[A])
    assert {"x"} == set(claims.contested({"x", "y", "z"}))


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, C]), st.sampled_from("xy"))))
def test_any_history_ends_as_its_result_says(history):
    claims, wanted = Claims(), set()
    for takes, owner, claim in history:
        if takes:
            claims.take(claim, RANKS[owner])
            wanted.add((claim, RANKS[owner]))
        else:
            claims.give_up(claim, RANKS[owner])
            wanted.discard((claim, RANKS[owner]))
    for claim in "xy":
        owners = [rank[1] for name, rank in sorted(wanted) if name == claim]
        if owners:
            assert (owners[0], owners[1:]) == (claims.holder(claim), claims.waiting(claim))
    assert bool(wanted) is bool(claims)
    for owner in RANKS:
        lost = {c for c, rank in wanted if rank[1] == owner and claims.holder(c) != owner}
        assert lost == set(claims.lost(owner))
