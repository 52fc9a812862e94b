from __future__ import annotations

import pytest

from pykubeproxy.ipvs.audit import MOST_AT_ONCE, PAUSE_SECONDS, ROUND_SECONDS, Audit
from pykubeproxy.ipvs.objects import BoundAddress
from tests.ipvs.rig import RR, A, change, put, real, tcp

WEB = tcp("10.96.0.1")
ONE, TWO = real(WEB, 1), real(WEB, 2)


def servers(count):
    return [tcp(f"10.96.{n >> 8}.{n & 255}") for n in range(count)]


@pytest.fixture
def audit():
    """It knows of WEB with ONE and TWO."""
    audit = Audit()
    audit.note(change(A, put(WEB, ONE, TWO)))
    return audit


# --- what is expected ---


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        pytest.param({ONE: 1, TWO: 1}, True, id="as written"),
        pytest.param({TWO: 1, ONE: 1}, True, id="in another order"),
        pytest.param({ONE: 1}, False, id="one is missing"),
        pytest.param({}, False, id="all are missing"),
        pytest.param({ONE: 1, TWO: 2}, False, id="another weight"),
        pytest.param({ONE: 0, TWO: 0}, False, id="two changed alike"),
        pytest.param({ONE: 1, TWO: 1, real(WEB, 3): 1}, False, id="one more"),
        pytest.param({ONE: 1, real(WEB, 2, 8081): 1}, False, id="another port"),
    ],
)
def test_what_agrees_with_what_was_written(audit, found, agrees):
    assert agrees is audit.agrees(WEB, found)


@pytest.mark.parametrize(
    ("later", "found"),
    [
        pytest.param(change(A, drops=put(TWO)), {ONE: 1}, id="dropped"),
        pytest.param(change(A, {TWO: 5}, old=put(TWO)), {ONE: 1, TWO: 5}, id="changed"),
        pytest.param(change(A, put(WEB), old=put(WEB)), {ONE: 1, TWO: 1}, id="virtual changed"),
        pytest.param(
            change(A, {BoundAddress("10.96.0.1"): RR}), {ONE: 1, TWO: 1}, id="something else"
        ),
    ],
)
def test_what_is_expected_follows_what_is_written(audit, later, found):
    audit.note(later)
    assert audit.agrees(WEB, found)
    assert not audit.agrees(WEB, {**found, real(WEB, 9): 1})


@pytest.mark.parametrize("weight", [0, 1, 7])
@pytest.mark.parametrize(
    "repair",
    [
        pytest.param(lambda weight: change(A, {TWO: 1}), id="written over"),
        pytest.param(lambda weight: change(A, drops={TWO: weight}), id="dropped"),
    ],
)
def test_what_a_read_back_finds_wrong_is_expected_to_be_repaired(weight, repair):
    audit = Audit()
    audit.expect(WEB, {ONE: 1, TWO: weight})
    assert audit.agrees(WEB, {ONE: 1, TWO: weight})
    later = repair(weight)
    if weight == 1 and later.put:
        return  # nothing is wrong, so nothing is written
    audit.note(later)
    assert audit.agrees(WEB, {ONE: 1, **dict.fromkeys(later.put, 1)})


def test_a_virtual_server_that_went_is_not_looked_at(audit):
    audit.note(change(A, drops=put(WEB, ONE, TWO)))
    assert audit.next_at(0) is None
    assert audit.agrees(WEB, {})


def test_nothing_is_expected_of_what_was_forgotten(audit):
    audit.forget()
    assert audit.agrees(WEB, {})
    assert audit.next_at(0) is None


# --- who is looked at ---


def looks(count, seconds):
    """The virtual servers looked at in some time, one list for each look."""
    audit = Audit()
    audit.note(change(A, put(*servers(count))))
    now, found = 0.0, []
    while (due := audit.next_at(now)) <= seconds:
        now = due
        found.append(audit.take(now))
    return found


@pytest.mark.parametrize("count", [1, 2, 59, 60, 61, 100, 600, 960])
def test_everybody_is_looked_at_in_a_round(count):
    seen = {virtual for taken in looks(count, ROUND_SECONDS + PAUSE_SECONDS) for virtual in taken}
    assert set(servers(count)) == seen


def test_a_round_over_very_many_takes_longer():
    number = sum(map(len, looks(5000, ROUND_SECONDS)))
    assert MOST_AT_ONCE * ROUND_SECONDS == number


@pytest.mark.parametrize("count", [1, 60, 600, 5000])
def test_a_look_is_at_few_and_at_each_once(count):
    for taken in looks(count, 3 * ROUND_SECONDS):
        assert len(taken) == len(set(taken)) <= min(count, MOST_AT_ONCE)


def test_nobody_is_looked_at_early(audit):
    due = audit.next_at(10)
    assert 10 + PAUSE_SECONDS == due == audit.next_at(10.5)
    assert [] == audit.take(due - 0.1)
    assert [WEB] == audit.take(due)
    assert due + ROUND_SECONDS == audit.next_at(due)


def test_who_comes_is_looked_at_in_the_next_round(audit):
    audit.take(audit.next_at(0))
    other = tcp("10.96.0.2")
    audit.note(change(A, put(other)))
    seen, now = set(), 0.0
    for _ in range(4):
        now = audit.next_at(now)
        seen |= set(audit.take(now))
    assert {WEB, other} == seen


def test_many_who_come_need_not_wait_as_long_as_few(audit):
    audit.take(audit.next_at(0))
    audit.note(change(A, put(*servers(60))))
    assert PAUSE_SECONDS + ROUND_SECONDS / 60 == audit.next_at(PAUSE_SECONDS)
