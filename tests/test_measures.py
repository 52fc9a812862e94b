"""What is counted before and beside Prometheus' library."""

from __future__ import annotations

from threading import Thread

import pytest

from pykubeproxy.measures import Counts, Distribution, Gauges, Spread, Text

PLAIN = Text("x_total", "An x")
LABELLED = Text("x_total", "An x", ("kind",))


@pytest.mark.parametrize("measure", [Counts, Gauges])
def test_without_labels_there_is_a_zero_and_with_labels_nothing(measure):
    assert {(): 0.0} == measure(PLAIN).read()
    assert {} == measure(LABELLED).read()


def test_counts_add_up_by_label():
    counts = Counts(LABELLED)
    counts.add("a")
    counts.add("a", by=2)
    counts.add("b", by=0)
    assert {("a",): 3.0, ("b",): 0.0} == counts.read()


def test_gauges_are_set_moved_and_removed():
    gauges = Gauges(LABELLED)
    gauges.set(5, "a")
    gauges.add(-2, "a")
    gauges.set(1, "b")
    gauges.remove("b")
    gauges.remove("never there")
    assert {("a",): 3.0} == gauges.read()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param([], Spread((0, 0, 0), 0.0), id="nothing"),
        pytest.param([1.0], Spread((1, 1, 1), 1.0), id="a bound belongs to its bucket"),
        pytest.param([1.5], Spread((0, 1, 1), 1.5), id="between"),
        pytest.param([99.0], Spread((0, 0, 1), 99.0), id="beyond"),
        pytest.param([-1.0, 2.0, 3.0], Spread((1, 2, 3), 4.0), id="several"),
    ],
)
def test_a_distribution_counts_up_to_each_bound(values, expected):
    distribution = Distribution(PLAIN, (1.0, 2.0))
    distribution.observe_all(values)
    assert {(): expected} == distribution.read()


def test_series_of_a_distribution_are_apart():
    distribution = Distribution(LABELLED, (1.0,))
    distribution.observe(0.5, "a")
    distribution.observe_all((), "b")
    assert {("a",): Spread((1, 1), 0.5), ("b",): Spread((0, 0), 0.0)} == distribution.read()


def test_nothing_is_lost_between_threads():
    counts = Counts(LABELLED)
    threads = [
        Thread(target=lambda: [counts.add("a") for _ in range(2000)] and None) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {("a",): 8000.0} == counts.read()


def test_what_was_read_does_not_change():
    counts = Counts(PLAIN)
    before = counts.read()
    counts.add()
    assert {(): 0.0} == before
