from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Node, NodeMeta, NodeSpec, Taint
from pykubeproxy.serve.status import Instant, Status

V4, V6 = Family.IPV4, Family.IPV6
NEW = Status(stale_after_seconds=60.0)


def at(seconds, clock_set_by=0.0):
    return Instant(int((1_000_000 + seconds + clock_set_by) * 1e9), seconds)


STARTED = NEW.with_updated(V4, at(-1)).with_updated(V6, at(-1))


def node(taints=(), deleted=None):
    meta = NodeMeta("n", deletion_timestamp=deleted)
    return Node(meta, NodeSpec(taints=tuple(Taint(key) for key in taints)))


@pytest.mark.parametrize(
    ("status", "seconds", "expected"),
    [
        pytest.param(NEW, 999, True, id="nothing reported yet"),
        pytest.param(NEW.with_updated(V4, at(0)), 99999, True, id="nothing to do for long"),
        pytest.param(STARTED.with_queued(V4, at(0)), 59.9, True, id="a change waits"),
        pytest.param(STARTED.with_queued(V4, at(0)), 60, False, id="a change waits too long"),
        pytest.param(
            STARTED.with_queued(V4, at(0)).with_queued(V4, at(50)), 60, False,
            id="the oldest counts",
        ),
        pytest.param(
            STARTED.with_queued(V4, at(0)).with_updated(V4, at(50)), 999, True, id="it was applied"
        ),
        pytest.param(
            STARTED.with_queued(V4, at(0)).with_updated(V4, at(1)).with_queued(V4, at(50)), 60,
            True, id="a later change has its own time",
        ),
        pytest.param(
            STARTED.with_queued(V4, at(0)).with_updated(V6, at(50)), 60, False,
            id="the other family",
        ),
        pytest.param(
            NEW.with_queued(V4, at(0)), 999, True, id="a family that never reported is no trouble"
        ),
    ],
)  # fmt: skip
def test_health_is_about_changes_that_wait(status, seconds, expected):
    assert expected is status.is_healthy(at(seconds))


def test_setting_the_clock_makes_nobody_unhealthy():
    assert STARTED.with_queued(V4, at(0)).is_healthy(at(1, clock_set_by=86400))


def test_families_are_judged_apart():
    status = STARTED.with_queued(V4, at(0)).with_updated(V6, at(0))
    assert not status.family_is_healthy(V4, at(60))
    assert status.family_is_healthy(V6, at(60))


def test_queueing_again_builds_nothing_new():
    status = NEW.with_queued(V4, at(0))
    assert status.with_queued(V4, at(5)) is status


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(None, False, id="never seen"),
        pytest.param(node(), True, id="plain"),
        pytest.param(node(["other"]), True, id="another taint"),
        pytest.param(node(["ToBeDeletedByClusterAutoscaler"]), False, id="autoscaler"),
        pytest.param(node(deleted="2026-01-01T00:00:00Z"), False, id="being deleted"),
    ],
)
def test_a_node_that_leaves_is_not_eligible(seen, expected):
    assert expected is NEW.with_node(seen).node_eligible


def test_a_deleted_node_object_changes_nothing():
    assert NEW.with_node(node()).with_node(None).node_eligible


def test_the_last_update_is_that_of_any_family():
    assert NEW.last_updated() is None
    assert NEW.with_updated(V4, at(5)).with_updated(V6, at(3)).last_updated() == at(5)


def test_only_families_that_were_updated_have_reported():
    assert {} == NEW.with_queued(V4, at(0)).reported
    assert [V4, V6] == list(NEW.with_updated(V6, at(1)).with_updated(V4, at(2)).reported)


def test_it_is_ready_when_it_waits_for_nothing():
    assert not NEW.is_ready
    waiting = NEW.with_waiting(["Service list"])
    assert ("Service list",) == waiting.waiting_for
    assert waiting.with_waiting([]).is_ready
    assert waiting.with_ready().is_ready


def test_once_ready_it_stays_ready():
    assert NEW.with_ready().with_waiting(["Service list"]).is_ready


def test_waiting_for_the_same_builds_nothing_new():
    waiting = NEW.with_waiting(["Service list"])
    assert waiting is waiting.with_waiting(iter(["Service list"]))
