from __future__ import annotations

import json

import pytest

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Node, NodeMeta, ServiceKey
from pykubeproxy.serve.answers import Answer, health, http_bytes, plain, service_health
from pykubeproxy.serve.status import Instant, Status

NOW = Instant(1_767_312_245.25, 100.0)  # 2026-01-02T00:04:05.25Z
FRESH = Status(stale_after_seconds=60.0).with_node(Node(NodeMeta("n")))
LATE = FRESH.with_queued(Family.IPV4, Instant(NOW.unix_seconds - 60, 40.0))


def test_the_body_is_compact_json_in_the_order_of_kube_proxy():
    status = FRESH.with_updated(Family.IPV6, NOW).with_updated(Family.IPV4, Instant(0.0, 1.0))
    assert health(status, NOW, with_node=True).body == (
        b'{"lastUpdated":"2026-01-02T00:04:05.25Z","currentTime":"2026-01-02T00:04:05.25Z",'
        b'"nodeEligible":true,"healthy":true,"status":{'
        b'"IPv4":{"lastUpdated":"1970-01-01T00:00:00Z","healthy":true},'
        b'"IPv6":{"lastUpdated":"2026-01-02T00:04:05.25Z","healthy":true}}}'
    )


def test_the_headers_are_those_of_kube_proxy():
    assert health(FRESH, NOW, with_node=True).headers == (
        ("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "with_node", "code", "fields"),
    [
        pytest.param(FRESH, True, 200, {"nodeEligible": True, "healthy": True}, id="before sync"),
        pytest.param(FRESH, False, 200, {"healthy": True}, id="livez knows no node"),
        pytest.param(LATE, True, 503, {"nodeEligible": True, "healthy": False}, id="late"),
        pytest.param(LATE, False, 503, {"healthy": False}, id="late, livez"),
        pytest.param(
            Status(60.0), True, 503, {"nodeEligible": False, "healthy": True}, id="no node",
        ),
        pytest.param(Status(60.0), False, 200, {"healthy": True}, id="no node, livez"),
    ],
)  # fmt: skip
def test_the_code_combines_health_and_node(status, with_node, code, fields):
    answer = health(status, NOW, with_node)
    body = json.loads(answer.body)
    shown = {name: body[name] for name in ("nodeEligible", "healthy") if name in body}
    assert (code, fields) == (answer.code, shown)


def test_a_failure_tells_the_last_success():
    body = json.loads(health(LATE, NOW, with_node=True).body)
    assert body["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_the_body_for_a_load_balancer():
    answer = service_health(ServiceKey("ns", "a"), 2, proxy_healthy=True)
    assert answer.body == (
        b'{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "a"\n\t},\n'
        b'\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
    )
    assert ("X-Load-Balancing-Endpoint-Weight", "2") in answer.headers


@pytest.mark.parametrize(
    ("count", "healthy", "code"), [(1, True, 200), (0, True, 503), (1, False, 503)]
)
def test_a_load_balancer_gets_200_only_for_a_healthy_node_with_endpoints(count, healthy, code):
    assert service_health(ServiceKey("ns", "a"), count, healthy).code == code


def test_a_response_is_complete_http():
    answer = Answer(200, b"ok", (("Content-Type", "text/plain"),))
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\n"
    )
    assert http_bytes(answer) == head + b"ok"
    assert http_bytes(answer, head_only=True) == head


def test_plain_text():
    assert plain("x").headers[0] == ("Content-Type", "text/plain; charset=utf-8")
