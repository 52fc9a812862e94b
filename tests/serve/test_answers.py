from __future__ import annotations

import json
import time

import pytest

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Node, NodeMeta, NodeSpec, ServiceKey, Taint
from pykubeproxy.serve.answers import NOT_FOUND, health, plain, readiness, rfc3339, service_health
from pykubeproxy.serve.status import AUTOSCALER_TAINT, Instant, Status

V4, V6 = Family.IPV4, Family.IPV6
NOW = Instant(1_767_312_245_250_000_000, 100.0)  # 2026-01-02T00:04:05.25Z


def at(steady_seconds):
    seconds = steady_seconds - NOW.steady_seconds
    return Instant(NOW.unix_nanoseconds + int(seconds * 1e9), steady_seconds)


def node(*taints, deleted=None):
    meta = NodeMeta("n", deletion_timestamp=deleted)
    return Node(meta, NodeSpec(taints=tuple(Taint(key) for key in taints)))


NEW = Status(stale_after_seconds=60.0)
KNOWN = NEW.with_node(node())
STARTED = KNOWN.with_updated(V4, at(10)).with_updated(V6, at(20))
LATE = STARTED.with_queued(V4, at(40))


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_body_is_compact_json_in_the_order_of_kube_proxy():
    status = KNOWN.with_updated(V6, NOW).with_updated(V4, Instant(0, 1.0))
    assert (
        b'{"lastUpdated":"2026-01-02T00:04:05.25Z","currentTime":"2026-01-02T00:04:05.25Z",'
        b'"nodeEligible":true,"healthy":true,"status":{'
        b'"IPv4":{"lastUpdated":"1970-01-01T00:00:00Z","healthy":true},'
        b'"IPv6":{"lastUpdated":"2026-01-02T00:04:05.25Z","healthy":true}}}'
    ) == health(status, NOW, with_node=True).body


def test_livez_says_nothing_of_the_node_and_a_proxy_that_starts_nothing_of_families():
    assert (
        b'{"lastUpdated":"2026-01-02T00:04:05.25Z","currentTime":"2026-01-02T00:04:05.25Z",'
        b'"healthy":true}'
    ) == health(NEW, NOW, with_node=False).body


def test_the_headers_are_those_of_kube_proxy():
    expected = (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"))
    assert expected == health(KNOWN, NOW, with_node=True).headers


# http.md §1, each row; with what the body says
@pytest.mark.parametrize(
    ("status", "healthz", "livez", "eligible", "healthy"),
    [
        pytest.param(KNOWN, 200, 200, True, True, id="before the first sync, node known"),
        pytest.param(STARTED, 200, 200, True, True, id="nothing to do for a long time"),
        pytest.param(
            STARTED.with_queued(V6, at(40.5)), 200, 200, True, True, id="a change waits"
        ),
        pytest.param(LATE, 503, 503, True, False, id="a change waits for 2 x syncPeriod"),
        pytest.param(
            LATE.with_updated(V4, at(100)), 200, 200, True, True, id="it was applied at last"
        ),
        pytest.param(
            LATE.with_updated(V6, at(100)), 503, 503, True, False, id="the other family was"
        ),
        pytest.param(
            KNOWN.with_queued(V4, at(0)), 200, 200, True, True, id="its sync loop never started"
        ),
        pytest.param(NEW, 503, 200, False, True, id="node never seen"),
        pytest.param(
            NEW.with_updated(V4, at(1)), 503, 200, False, True, id="node never seen, synced"
        ),
        pytest.param(
            STARTED.with_node(node(deleted="2026-01-01T00:00:00Z")), 503, 200, False, True,
            id="node being deleted",
        ),
        pytest.param(
            STARTED.with_node(node(AUTOSCALER_TAINT)), 503, 200, False, True, id="autoscaler taint"
        ),
        pytest.param(STARTED.with_node(node("other")), 200, 200, True, True, id="another taint"),
        pytest.param(STARTED.with_node(None), 200, 200, True, True, id="node object deleted"),
        pytest.param(
            STARTED.with_node(node(AUTOSCALER_TAINT)).with_node(None), 503, 200, False, True,
            id="node object deleted, ineligible before",
        ),
        pytest.param(
            LATE.with_node(node(AUTOSCALER_TAINT)), 503, 503, False, False, id="both at once"
        ),
    ],
)  # fmt: skip
def test_the_code_combines_health_and_node(status, healthz, livez, eligible, healthy):
    for with_node, code in ((True, healthz), (False, livez)):
        answer = health(status, NOW, with_node)
        body = json.loads(answer.body)
        assert code == answer.code
        assert healthy is body["healthy"]
        assert (eligible if with_node else None) == body.get("nodeEligible")
        # The last update is told only where something is wrong.
        last = status.last_updated() if code == 503 else NOW
        assert rfc3339(last) == body["lastUpdated"]
        assert set(status.reported) == set(body.get("status", {}))


def test_a_failure_tells_the_last_success():
    body = json.loads(health(LATE, NOW, with_node=True).body)
    assert "2026-01-02T00:02:45.25Z" == body["lastUpdated"]
    assert {"lastUpdated": "2026-01-02T00:02:35.25Z", "healthy": False} == body["status"]["IPv4"]
    assert {"lastUpdated": "2026-01-02T00:02:45.25Z", "healthy": True} == body["status"]["IPv6"]


def test_a_failure_without_any_success_tells_the_zero_time():
    body = json.loads(health(NEW, NOW, with_node=True).body)
    assert "0001-01-01T00:00:00Z" == body["lastUpdated"]


@pytest.mark.parametrize(
    ("zone", "nanoseconds", "expected"),
    [
        ("UTC", 123_456_789, "2026-01-02T00:04:05.123456789Z"),
        ("UTC", 120_000_000, "2026-01-02T00:04:05.12Z"),
        ("UTC", 1, "2026-01-02T00:04:05.000000001Z"),
        ("UTC", 0, "2026-01-02T00:04:05Z"),
        ("GMT0", 0, "2026-01-02T00:04:05Z"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", 500_000_000, "2026-01-02T01:04:05.5+01:00"),
        ("IST-5:30", 0, "2026-01-02T05:34:05+05:30"),
        ("NST3:30", 0, "2026-01-01T20:34:05-03:30"),
    ],
)
def test_times_are_local_with_up_to_nanoseconds(monkeypatch, zone, nanoseconds, expected):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    assert expected == rfc3339(Instant(1_767_312_245_000_000_000 + nanoseconds, 0.0))


def test_readiness_names_what_is_missing():
    waiting = NEW.with_waiting(["EndpointSlice list", "first sync IPv6"])
    answer = readiness(waiting)
    assert (503, b'{"ready":false,"waitingFor":["EndpointSlice list","first sync IPv6"]}') == (
        answer.code, answer.body,
    )  # fmt: skip
    assert 503 == readiness(NEW).code
    answer = readiness(waiting.with_ready())
    assert (200, b'{"ready":true,"waitingFor":[]}') == (answer.code, answer.body)


def test_the_body_for_a_load_balancer():
    answer = service_health(ServiceKey("ns", "a"), 2, proxy_healthy=True)
    assert (
        b'{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "a"\n\t},\n'
        b'\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    ) == answer.body
    assert (
        ("Content-Type", "application/json"),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Load-Balancing-Endpoint-Weight", "2"),
    ) == answer.headers


@pytest.mark.parametrize(
    ("count", "healthy", "code"),
    [(1, True, 200), (0, True, 503), (1, False, 503), (0, False, 503), (250, True, 200)],
)
def test_a_load_balancer_gets_200_only_for_a_healthy_node_with_endpoints(count, healthy, code):
    answer = service_health(ServiceKey("ns", "a"), count, healthy)
    assert code == answer.code
    assert ("X-Load-Balancing-Endpoint-Weight", str(count)) in answer.headers
    body = json.loads(answer.body)
    assert (count, healthy) == (body["localEndpoints"], body["serviceProxyHealthy"])


def test_plain_text():
    assert ("Content-Type", "text/plain; charset=utf-8") == plain("x").headers[0]
    assert (404, b"404 page not found\n") == (NOT_FOUND.code, NOT_FOUND.body)
