from __future__ import annotations

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import BASE, Change, Transaction, is_leftover, leftover

A, B, C = (ServiceKey("ns", name) for name in "abc")


def change(owner, **put):
    return Change(owner, put, {}, {})


def test_a_transaction_names_each_owner_once_in_order():
    assert Transaction("nat", (change(B), change(A), change(B, x=1))).owners == (B, A)


def test_a_transaction_can_be_cut_to_some_owners():
    whole = Transaction("nat", (change(A), change(B), change(C), change(B, x=1)))
    assert whole.only(frozenset({B})) == Transaction("nat", (change(B), change(B, x=1)))


def test_no_service_can_be_taken_for_the_base_or_strays():
    # Namespaces are never empty in the API.
    assert [owner.namespace for owner in (BASE, leftover("x"))] == ["", ""]
    assert [False, True, False] == [is_leftover(o) for o in (BASE, leftover("x"), A)]


def test_the_base_sorts_before_strays_and_services():
    assert sorted([A, leftover("x"), BASE]) == [BASE, leftover("x"), A]
