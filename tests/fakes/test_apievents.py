"""The stand-in refuses Events that the API server refuses."""

from __future__ import annotations

import pytest

from tests.fakes.apievents import merged, problem_with_change, problem_with_event

GOOD = {
    "metadata": {"name": "web.17a", "namespace": "shop"},
    "eventTime": "2026-11-20T12:00:00.123456Z",
    "reportingController": "kube-proxy",
    "reportingInstance": "kube-proxy-host",
    "action": "Listen",
    "reason": "FailedToStartServiceHealthcheck",
    "type": "Warning",
    "note": "x" * 1024,
    "regarding": {"kind": "Service", "name": "web", "namespace": "shop"},
}
SERIES = {"count": 2, "lastObservedTime": "2026-11-20T12:00:00.000000Z"}


def test_a_complete_event_is_good():
    assert problem_with_event(GOOD, "shop") is None


def test_one_about_the_cluster_belongs_into_default():
    event = {**GOOD, "metadata": {"name": "node.1"}, "regarding": {"kind": "Node", "name": "node"}}
    assert problem_with_event(event, "default") is None
    assert "involvedObject" in problem_with_event(event, "shop")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metadata": {"name": "Web.1"}}, "metadata.name"),
        ({"metadata": {"name": "web.1", "namespace": "other"}}, "does not match the request"),
        ({"regarding": {"namespace": "other"}}, "involvedObject"),
        ({"eventTime": None}, "eventTime"),
        ({"eventTime": "2026-11-20T12:00:00Z"}, "eventTime"),
        ({"reportingController": ""}, "reportingController"),
        ({"reportingInstance": "x" * 129}, "reportingInstance"),
        ({"action": ""}, "action"),
        ({"reason": "x" * 129}, "reason"),
        ({"note": "ä" * 513}, "message"),
        ({"type": "Error"}, "type"),
        ({"series": {"count": 1}}, "series.count"),
        ({"series": {"count": 2}}, "series.lastObservedTime"),
    ],
)
def test_what_is_refused(change, expected):
    assert expected in problem_with_event({**GOOD, **change}, "shop")


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        pytest.param({"series": SERIES}, None, id="a series begins"),
        pytest.param({"note": "other"}, "note", id="another note"),
        pytest.param({"series": {"count": 1}}, "series.count", id="a series of one"),
    ],
)
def test_only_the_series_may_change(patch, expected):
    problem = problem_with_change(GOOD, merged(GOOD, patch))
    assert problem is None if expected is None else expected in problem


def test_a_merge_patch_merges_objects_and_removes_nulls():
    assert {"a": {"b": 1, "c": 3}, "d": [4]} == merged(
        {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": 5}, {"a": {"c": 3}, "d": [4], "e": None}
    )
