"""How long changes wait, and when they were caused."""

from __future__ import annotations

import pytest

from pykubeproxy.sync import backlog as module
from pykubeproxy.sync.backlog import Backlog, causes


def test_every_change_waits_until_it_lands():
    backlog = Backlog()
    backlog.arrived(10.0)
    backlog.arrived(12.0)
    assert 10.0 == backlog.oldest
    assert [5.0, 3.0] == backlog.landed(15.0)
    assert backlog.oldest is None
    assert [] == backlog.landed(16.0)


def test_what_was_lost_makes_the_kernel_behind_and_is_no_change():
    backlog = Backlog()
    backlog.broken(10.0)
    backlog.broken(11.0)
    assert 10.0 == backlog.oldest
    assert [] == backlog.landed(12.0)
    assert backlog.oldest is None


def test_the_oldest_counts_in_whatever_order_they_come():
    backlog = Backlog()
    backlog.arrived(12.0)
    backlog.arrived(11.0)
    assert 11.0 == backlog.oldest


def test_memory_is_bounded_while_nothing_lands(monkeypatch):
    monkeypatch.setattr(module, "MOST", 3)
    backlog = Backlog()
    for moment in range(10):
        backlog.arrived(float(moment))
    assert 0.0 == backlog.oldest
    assert [10.0, 9.0, 8.0] == backlog.landed(10.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-02T03:04:05Z", [1767323045.0]),
        ("2026-01-02T03:04:05.25Z", [1767323045.25]),
        ("2026-01-02T03:04:05.123456789Z", [1767323045.123456]),
        ("2026-01-02T05:04:05+02:00", [1767323045.0]),
        ("", []),
        ("2026-01-02", []),
        ("2026-01-02T03:04:05", []),
        ("2026-01-02 03:04:05Z", []),
        ("2026-02-30T03:04:05Z", []),
        ("2026-01-02T25:04:05Z", []),
        ("yesterday", []),
        ("2026-01-02T03:04:05.1234567890Z", []),
    ],
)
def test_times_are_read_as_kubernetes_writes_them(text, expected):
    assert expected == causes([text], 0.0)


@pytest.mark.parametrize(("since", "expected"), [(1767323044.0, 1), (1767323045.0, 0)])
def test_what_was_caused_before_is_not_counted(since, expected):
    assert expected == len(causes(["2026-01-02T03:04:05Z"], since))
