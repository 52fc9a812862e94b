"""Pauses double up to a limit, are spread at random, and start small after a success."""

from __future__ import annotations

from random import Random

import pytest

from pykubeproxy.watch.backoff import Backoff


class Largest(Random):
    """Always draws the upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_limit_doubles_up_to_the_largest_pause() -> None:
    backoff = Backoff(Largest(), first_seconds=1.0, limit_seconds=30.0)
    assert [backoff.next_seconds() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_reset_starts_small_again() -> None:
    backoff = Backoff(Largest(), first_seconds=1.0)
    backoff.next_seconds()
    backoff.next_seconds()
    backoff.reset()
    assert backoff.next_seconds() == 1


@pytest.mark.parametrize("attempt", [0, 3, 2000])
def test_jitter_stays_between_nothing_and_the_limit(attempt: int) -> None:
    backoff = Backoff(Random(1))
    pauses = [backoff.next_seconds() for _ in range(attempt + 1)]
    assert all(0 <= pause <= 30 for pause in pauses)
