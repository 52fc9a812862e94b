"""What is told of something that keeps happening, and how much of it."""

from __future__ import annotations

import pytest

from pykubeproxy.watch import series as module
from pykubeproxy.watch.series import (
    BURST,
    FINISH_SECONDS,
    REFILL_SECONDS,
    REFRESH_SECONDS,
    Budgets,
    Series,
    Verdict,
)

CREATE, EXTEND, COUNT, DROP = Verdict


def happened(series, *moments, key="k", source="s"):
    return [series.happened(key, source, moment) for moment in moments]


def test_the_first_is_an_event_the_second_a_series_the_others_are_counted():
    series = Series()
    assert [CREATE, EXTEND] == happened(series, 0, 1)
    series.told("k", 1)
    assert [COUNT, COUNT] == happened(series, 2, 3)
    assert 4 == series.known("k").count


def test_after_a_while_it_is_a_new_event():
    series = Series()
    assert [CREATE, EXTEND] == happened(series, 0, FINISH_SECONDS)
    assert [CREATE] == happened(series, 2 * FINISH_SECONDS + 1)
    assert 1 == series.known("k").count


def test_other_things_are_apart():
    series = Series()
    assert [CREATE] == happened(series, 0, key="a")
    assert [CREATE] == happened(series, 0, key="b")
    assert 2 == len(series)


def test_a_series_is_told_again_until_somebody_heard_of_it():
    series = Series()
    assert [CREATE, EXTEND, EXTEND] == happened(series, 0, 1, 2)


def test_what_is_forgotten_was_never_there():
    series = Series()
    happened(series, 0)
    series.forget("k")
    assert [CREATE] == happened(series, 1)


@pytest.mark.parametrize(
    ("moments", "now", "expected"),
    [
        pytest.param((0,), FINISH_SECONDS + 1, [], id="happened once"),
        pytest.param((0, 1), FINISH_SECONDS, [], id="told, and may go on"),
        pytest.param((0, 1, 2), FINISH_SECONDS, [], id="may go on"),
        pytest.param((0, 1, 2), FINISH_SECONDS + 3, [3], id="over"),
        pytest.param((0, 1), FINISH_SECONDS + 3, [], id="over, and told"),
        pytest.param((0, 1, *range(300, 1800, 300), 1799), 1802, [8], id="goes on for long"),
    ],
)
def test_more_is_told_when_it_is_over_or_goes_on_for_long(moments, now, expected):
    series = Series()
    for count, moment in enumerate(moments, start=1):
        happened(series, moment)
        if count == 2:
            series.told("k", moment)
    assert expected == [known.count for known in series.due(now)]


def test_what_is_over_is_forgotten():
    series = Series()
    happened(series, 0)
    series.due(FINISH_SECONDS + 1)
    assert 0 == len(series)


def test_a_long_series_is_told_now_and_then():
    series = Series()
    happened(series, 0, 1)
    series.told("k", 1)
    happened(series, REFRESH_SECONDS / 10)
    moment = REFRESH_SECONDS + 1
    series.known("k").last = moment
    assert [3] == [known.count for known in series.due(moment)]
    series.told("k", moment)
    assert [] == series.due(moment + 1)


def test_one_object_has_a_budget():
    series = Series()
    verdicts = [series.happened(f"k{n}", "s", 0) for n in range(BURST + 2)]
    assert [CREATE] * BURST + [DROP, DROP] == verdicts
    assert [CREATE] == happened(series, 0, source="another")


def test_the_budget_is_refilled():
    budgets = Budgets()
    assert [True] * BURST + [False] == [budgets.spend("s", 0) for _ in range(BURST + 1)]
    assert not budgets.spend("s", REFILL_SECONDS - 1)
    assert budgets.spend("s", REFILL_SECONDS + 1)
    assert not budgets.spend("s", REFILL_SECONDS + 2)


def test_a_series_without_budget_is_only_counted():
    series = Series()
    happened(series, 0)
    for n in range(BURST):
        series.happened(f"other {n}", "s", 0)
    assert [COUNT] == happened(series, 1)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    series = Series()
    for n in range(10):
        series.happened(f"k{n}", f"s{n}", 0)
    assert 3 == len(series)
    assert 3 == len(series._budgets._left)
    assert series.known("k9") is not None
