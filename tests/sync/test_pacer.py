from __future__ import annotations

import pytest

from pykubeproxy.sync.pacer import Pacer


def fixed(min_interval=1.0, retry=30.0, resync=3600.0):
    return Pacer(min_interval, retry, resync)


def after(cost, pacer=None, at=100.0):
    """A pacer that knows what a pass costs."""
    pacer = pacer or Pacer(None, 30.0)
    pacer.finished(at, cost, succeeded=True)
    return pacer


def asked(cost, *times):
    pacer = after(cost)
    for at in times:
        pacer.request(at)
    return pacer


def spread(first, last):
    """Two milliseconds apart."""
    return [first + 0.002 * n for n in range(round((last - first) / 0.002) + 1)]


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
    pacer.finished(100.0, cost_seconds=0.0, succeeded=True)
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
        pytest.param(0.15, 100.02, id="a first pass is within what was not used"),
        pytest.param(1.5, 100.5, id="a long one is not"),
        pytest.param(30.0, 101.0, id="never more than a second"),
    ],
)
def test_an_adaptive_pause_follows_the_cost(cost, expected):
    pacer = Pacer(None, 30.0)
    pacer.finished(100.0, cost, succeeded=True)
    pacer.request(90.0)
    assert expected == pytest.approx(pacer.next_at)


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        pytest.param(0.0, 200.0, id="nothing known of the cost"),
        pytest.param(0.008, 200.0008, id="a tenth of it"),
        pytest.param(0.75, 200.02, id="never more than 20 ms"),
    ],
)
def test_a_change_waits_a_little_for_its_like(cost, expected):
    assert expected == pytest.approx(asked(cost, 200.0).next_at)


@pytest.mark.parametrize(
    ("cost", "at", "expected"),
    [
        pytest.param(0.15, (200.0, 200.01), 200.025, id="a second one puts the start off"),
        pytest.param(0.15, (200.0, 200.02), 200.015, id="one that comes later does not"),
        pytest.param(0.15, spread(200, 200.5), 200.15, id="no longer than a pass takes"),
        pytest.param(0.75, spread(200, 200.4), 200.42, id="long enough for a burst"),
        pytest.param(5.0, spread(200, 203), 200.5, id="never more than half a second"),
        pytest.param(0.15, (300.0, 200.0), 200.015, id="one that was asked for later"),
        pytest.param(0.15, (200.0, 300.0), 200.015, id="one to come"),
    ],
)
def test_changes_that_keep_coming_put_the_start_off(cost, at, expected):
    assert expected == pytest.approx(asked(cost, *at).next_at)


def test_passes_with_nothing_to_do_hardly_change_what_is_expected():
    pacer = after(0.15)
    pacer.finished(150.0, 0.0001, succeeded=True)
    pacer.request(200.0)
    assert pytest.approx(200.0075) == pacer.next_at


def test_what_is_broken_waits_for_nothing():
    pacer = after(30.0)
    pacer.urge(100.1)
    assert pacer.due(100.1)


# --- storms, played through ---

NFT, LEGACY, SMALL = 0.15, 0.75, 0.008
"""What a pass costs in seconds: 10 000 Services with either variant, and a small cluster."""
COSTS = pytest.mark.parametrize("cost", [NFT, LEGACY, SMALL], ids=["nft", "legacy", "small"])


class Played:
    """What came of *arrivals* when a pass costs *cost* and 0.2 ms for each change it writes."""

    def __init__(self, cost, arrivals, min_interval=None):
        self.visible_after = {}
        self.passes = []
        pacer = after(cost, Pacer(min_interval, 30.0), at=arrivals[0] - 100)
        now, waiting, coming = 0.0, [], list(reversed(arrivals))
        while coming or waiting:
            if coming and (not waiting or coming[-1] <= max(now, pacer.next_at)):
                waiting.append(coming.pop())
                now = max(now, waiting[-1])
                pacer.request(now)
                continue
            started = max(now, pacer.next_at)
            now = started + cost + 0.0002 * len(waiting)
            self.passes.append((started, now))
            self.visible_after |= {at: now - at for at in waiting}
            waiting.clear()
            pacer.finished(now, now - started, succeeded=True)

    def busy_share(self):
        """Of the time from the first start to the last, which part was spent in passes."""
        starts = [start for start, _ in self.passes]
        busy = sum(end - start for start, end in self.passes[:-1])
        return busy / (starts[-1] - starts[0])


@COSTS
@pytest.mark.parametrize("gap", [1.75, 2.0, 10.0])
def test_single_changes_go_out_at_once(cost, gap):
    played = Played(cost, [gap * n for n in range(100)])
    assert max(played.visible_after.values()) < cost + 0.021


@COSTS
@pytest.mark.parametrize("gap", [0.002, 0.01, 0.03, 0.1, 0.4])
def test_a_long_storm_takes_half_of_the_time_at_most(cost, gap):
    played = Played(cost, [gap * n for n in range(int(60 / gap))])
    assert played.busy_share() < 0.51 + 0.5 / 60


@COSTS
def test_in_any_stretch_half_of_it_is_busy_and_half_a_second_more(cost):
    played = Played(cost, spread(0, 3))
    for begin, _ in played.passes:
        for _, end in played.passes:
            busy = sum(min(e, end) - max(s, begin) for s, e in played.passes if begin <= s < end)
            assert busy <= 0.5 * max(0.0, end - begin) + 0.5 + cost + 0.1


@pytest.mark.parametrize(
    ("cost", "expected"),
    [(NFT, 0.4), (LEGACY, 0.9), (SMALL, 0.1)],
    ids=["nft", "legacy", "small"],
)
def test_the_last_change_of_a_burst_shows_soon(cost, expected):
    """200 changes in 0.4 s: the pause that is left, and one pass."""
    arrivals = spread(0, 0.4)
    assert Played(cost, arrivals).visible_after[arrivals[-1]] < expected


@COSTS
def test_no_change_waits_longer_than_a_pass_its_pause_and_its_own_pass(cost):
    played = Played(cost, [0.003 * n for n in range(10000)])
    longest_pass = max(end - start for start, end in played.passes)
    assert max(played.visible_after.values()) < 2 * longest_pass + 1.0 + 0.02


@COSTS
def test_a_service_and_its_endpoints_are_written_together(cost):
    """They come by two streams, some milliseconds apart: here as far as a tenth of a pass."""
    played = Played(cost, [0.0, 0.09 * min(cost, 0.2)])
    assert 1 == len(played.passes)


def test_a_given_interval_is_kept_in_a_storm():
    played = Played(NFT, [0.002 * n for n in range(5000)], min_interval=1.0)
    starts, ends = zip(*played.passes, strict=True)
    pauses = [start - end for start, end in zip(starts[1:], ends, strict=False)]
    assert all(1.0 <= pause + 1e-9 < 1.03 for pause in pauses)


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
