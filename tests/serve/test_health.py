from __future__ import annotations

import http.client
import socket

import pytest
from structlog.testing import capture_logs

from pykubeproxy.errors import HostError
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.objects import Node, NodeMeta
from pykubeproxy.serve import health
from pykubeproxy.serve.health import HealthServer
from pykubeproxy.serve.status import Status

GOOD = Status(stale_after_seconds=60.0).with_node(Node(NodeMeta("n")))


@pytest.fixture
def counted():
    return []


@pytest.fixture
def server(counted):
    server = HealthServer(
        GOOD, Metrics().registry, "iptables", ("0.0.0.0", 0), ("127.0.0.1", 0),
        count=lambda path, code: counted.append((path, code)),
    )  # fmt: skip
    server.start()
    yield server
    server.stop()


def ask(port, path, method="GET", host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/livez?verbose"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_healthy_proxy_says_so(server, path, method):
    status, headers, body = ask(server.ports[0], path, method)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body.startswith(b'{"lastUpdated"')


def test_a_published_status_is_answered_from_then_on(server, counted):
    server.publish(Status(60.0))
    assert [ask(server.ports[0], path)[0] for path in ("/healthz", "/livez")] == [503, 200]
    assert counted == [("healthz", 503), ("livez", 200)]


def test_other_paths_are_not_found(server, counted):
    for port in server.ports:
        assert ask(port, "/other")[::2] == (404, b"404 page not found\n")
    assert counted == []


def test_head_has_no_body(server):
    status, headers, body = ask(server.ports[0], "/livez", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/healthz", b"ok"), ("/healthz/ping", b"ok"), ("/proxyMode", b"iptables")],
)
def test_the_metrics_address_knows_more(server, path, expected):
    assert (200, expected) == ask(server.ports[1], path)[::2]


def test_metrics_are_prometheus_text(server):
    status, headers, body = ask(server.ports[1], "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b"kubeproxy_sync_proxy_rules_service_changes_total 0.0" in body


def test_the_wildcard_is_both_families(server):
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    assert ask(server.ports[0], "/livez", host="::1")[0] == 200


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_taken_port_fails_hard_if_asked_to(taken):
    server = HealthServer(GOOD, Metrics().registry, "iptables", taken.getsockname(), None, True)
    with pytest.raises(HostError, match="cannot listen on the health or metrics address"):
        server.start()


def test_a_taken_port_is_retried(taken, monkeypatch):
    monkeypatch.setattr(health, "RETRY_SECONDS", 0.01)
    address = taken.getsockname()
    server = HealthServer(GOOD, Metrics().registry, "iptables", address, None)
    server.start()
    taken.close()
    server._thread.join(10)  # it ends when all addresses are listened on
    assert ask(address[1], "/livez")[0] == 200
    server.stop()


def test_a_taken_port_is_complained_of_once(taken):
    waits = []

    class Stop:  # the port is free from the third wait on
        def wait(self, seconds):
            waits.append(seconds)
            if len(waits) == 3:
                taken.close()
            return False

        def set(self):
            pass

    address = taken.getsockname()
    server = HealthServer(GOOD, Metrics().registry, "iptables", address, None)
    server._stop = Stop()
    with capture_logs() as logged:
        server.start()
        server._thread.join(10)
    assert waits == [health.RETRY_SECONDS] * 3  # each attempt but the first waits before
    assert [(line["log_level"], line["event"]) for line in logged] == [
        ("error", "cannot listen"),
        ("info", "listening after all"),
    ]
    server.stop()


def test_a_switched_off_health_server_does_not_listen():
    server = HealthServer(GOOD, Metrics().registry, "iptables", None, None)
    server.start()
    assert server.ports == ()
    assert server.is_healthy()
    server.stop()
