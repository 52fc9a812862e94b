from __future__ import annotations

import pytest

from pykubeproxy.sync.pacer import Pacer


def fixed(min_interval=1.0, retry=30.0, resync=3600.0):
    return Pacer(min_interval, retry, resync)


def test_nothing_is_due_before_it_is_asked_for():
    assert not fixed().due(1e9)


def test_a_first_request_runs_at_once():
    pacer = fixed()
    pacer.request(100.0)
    assert pacer.due(100.0)


def test_the_pause_counts_from_the_end_of_a_pass():
    pacer = fixed(min_interval=1.0)
    pacer.finished(105.0, cost_seconds=5.0, succeeded=True)
    pacer.request(105.5)
    assert pacer.next_at == 106.0


def test_requests_within_the_pause_are_one_and_not_lost():
    pacer = fixed(min_interval=1.0)
    pacer.finished(100.0, cost_seconds=0.1, succeeded=True)
    for at in (100.1, 100.5, 100.9):
        pacer.request(at)
    assert pacer.next_at == 101.0


def test_a_request_after_the_pause_runs_at_once():
    pacer = fixed(min_interval=1.0)
    pacer.finished(100.0, cost_seconds=0.1, succeeded=True)
    pacer.request(150.0)
    assert pacer.next_at == 150.0


def test_an_idle_proxy_waits_for_the_resync():
    pacer = fixed(resync=3600.0)
    pacer.finished(100.0, cost_seconds=0.1, succeeded=True)
    assert pacer.next_at == 3700.0


def test_a_later_request_does_not_move_an_earlier_one():
    pacer = fixed()
    pacer.request(100.0)
    pacer.request(200.0)
    assert pacer.next_at == 100.0


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        pytest.param(0.001, 100.02, id="never less than the floor"),
        pytest.param(0.1, 100.2, id="twice the cost"),
        pytest.param(30.0, 101.0, id="never more than a second"),
    ],
)
def test_an_adaptive_pause_follows_the_cost(cost, expected):
    pacer = Pacer(None, 30.0)
    pacer.finished(100.0, cost, succeeded=True)
    pacer.request(100.0)
    assert pacer.next_at == pytest.approx(expected)


def test_failures_are_retried_with_growing_delays():
    pacer = fixed(min_interval=0.0, retry=3.0)
    delays = []
    for _ in range(6):
        pacer.finished(100.0, 0.0, succeeded=False)
        delays.append(pacer.next_at - 100.0)
    assert delays == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_retry_never_comes_before_the_pause_is_over():
    pacer = fixed(min_interval=5.0)
    pacer.finished(100.0, 0.0, succeeded=False)
    assert pacer.next_at == 105.0


def test_a_success_forgets_the_failures():
    pacer = fixed(min_interval=0.0)
    for succeeded in (False, False, False, True, False):
        pacer.finished(100.0, 0.0, succeeded=succeeded)
    assert pacer.next_at == 100.25


def test_a_pass_cancels_the_retry_before_it():
    pacer = fixed(min_interval=0.0, resync=3600.0)
    pacer.finished(100.0, 0.0, succeeded=False)
    pacer.finished(100.1, 0.0, succeeded=True)
    assert pacer.next_at == 3700.1


def test_many_failures_do_not_overflow():
    pacer = fixed(retry=30.0)
    for _ in range(5000):
        pacer.finished(100.0, 0.0, succeeded=False)
    assert pacer.next_at == 130.0


def test_a_resync_more_often_than_the_pause_allows_is_refused():
    with pytest.raises(ValueError, match="resync interval"):
        Pacer(10.0, 30.0, resync_seconds=5.0)
