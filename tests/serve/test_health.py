from __future__ import annotations

import http.client
import json
import socket

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pykubeproxy.errors import HostError
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Node, NodeMeta
from pykubeproxy.serve import health
from pykubeproxy.serve.health import HealthServer
from pykubeproxy.serve.pages import Pages
from pykubeproxy.serve.status import Instant, Status

GOOD = Status(stale_after_seconds=60.0).with_node(Node(NodeMeta("n")))
HERE = ("127.0.0.1", 0)


@pytest.fixture
def pages():
    return Pages(CollectorRegistry(), "iptables", version="0.1.0")


@pytest.fixture
def counted():
    return []


@pytest.fixture
def server(pages, counted):
    server = HealthServer(
        GOOD, pages, ("0.0.0.0", 0), HERE, count=lambda path, code: counted.append((path, code))
    )
    server.start()
    yield server
    server.stop()


def ask(port, path, method="GET", host="127.0.0.1"):
    connection = http.client.HTTPConnection(host, port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/livez?verbose"])
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_a_healthy_proxy_says_so(server, path, method):
    status, headers, body = ask(server.ports[0], path, method)
    assert (200, "application/json") == (status, headers["Content-Type"])
    assert body.startswith(b'{"lastUpdated"')


def test_a_published_status_is_answered_from_then_on(server, counted):
    server.publish(Status(60.0))
    assert [503, 200] == [ask(server.ports[0], path)[0] for path in ("/healthz", "/livez")]
    assert [("healthz", 503), ("livez", 200)] == counted


def test_readiness_is_told_and_not_counted(server, counted):
    answers = []
    for status in (GOOD, GOOD.with_waiting(["Service list"]), GOOD.with_ready()):
        server.publish(status)
        code, _, body = ask(server.ports[0], "/readyz")
        answers.append((code, json.loads(body)["waitingFor"]))
    assert [
        (503, ["start of the sync loop"]), (503, ["Service list"]), (200, []),
    ] == answers  # fmt: skip
    assert [] == counted


REDIRECT = "307 Temporary Redirect"
HTML = "Content-Type: text/html; charset=utf-8"


def raw(port, method, target):
    """The status, the headers without Date, and the body that the server sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        fields = "Host: n\r\nConnection: close"
        client.sendall(f"{method} {target} HTTP/1.1\r\n{fields}\r\n\r\n".encode())
        head, _, body = client.makefile("rb").read().decode().partition("\r\n\r\n")
    status, *fields = head.split("\r\n")
    fields = [field for field in fields if not field.startswith("Date: ")]
    assert "Connection: close" == fields.pop()
    return status.removeprefix("HTTP/1.1 "), fields, body


@pytest.mark.parametrize(
    ("target", "location", "link"),
    [
        ("//healthz", "/healthz", "/healthz"),
        ("/a/../healthz?verbose", "/healthz?verbose", "/healthz?verbose"),
        ("/./livez/?a=1&b='", "/livez/?a=1&b='", "/livez/?a=1&amp;b=&#39;"),
        ("/livez/..", "/", "/"),
        ("/../..//readyz/.", "/readyz", "/readyz"),
        ("/livez//", "/livez/", "/livez/"),
        ("http://n//healthz", "/healthz", "/healthz"),
        pytest.param("//%68ealthz", "/%2568ealthz", "/%2568ealthz", id="escaped twice, as in Go"),
        pytest.param('//a"b', "/a%2522b", "/a%2522b", id="escaped for being wrong"),
    ],
)
def test_an_unclean_path_is_redirected_as_by_go(server, counted, target, location, link):
    body = f'<a href="{link}">Temporary Redirect</a>.\n\n'
    where = f"Location: {location}"
    port = server.ports[0]
    length = f"Content-Length: {len(body)}"
    assert (REDIRECT, [HTML, where, length], body) == raw(port, "GET", target)
    assert (REDIRECT, [HTML, where], "") == raw(port, "HEAD", target)
    assert (REDIRECT, [where, "Content-Length: 0"], "") == raw(port, "POST", target)
    assert [] == counted


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", "/%68ealthz", "200 OK"),
        ("GET", "/%2e/healthz", "404 Not Found"),
        ("GET", "/healthz%2f..", "404 Not Found"),
        ("GET", '/a"b', "404 Not Found"),
        ("GET", "*", "404 Not Found"),
        ("CONNECT", "/healthz", "200 OK"),
        ("CONNECT", "//healthz", "404 Not Found"),
        ("CONNECT", "n:443", "404 Not Found"),
    ],
)
def test_what_is_no_unclean_path(server, method, target, expected):
    assert expected == raw(server.ports[0], method, target)[0]


def test_paths_of_the_metrics_address_are_taken_as_they_are(server):
    assert "404 Not Found" == raw(server.ports[1], "GET", "//healthz")[0]


@pytest.mark.parametrize("path", ["/other", "/", "/healthz/", "/livez/x", "/metrics"])
def test_other_paths_are_not_found(server, counted, path):
    status, headers, body = ask(server.ports[0], path)
    assert (404, b"404 page not found\n") == (status, body)
    assert "text/plain; charset=utf-8" == headers["Content-Type"]
    assert "nosniff" == headers["X-Content-Type-Options"]
    assert [] == counted


def test_head_has_no_body(server):
    status, headers, body = ask(server.ports[0], "/livez", "HEAD")
    assert (200, b"") == (status, body)
    assert 0 < int(headers["Content-Length"])


def test_the_headers_are_in_the_order_of_go(server):
    with socket.create_connection(("127.0.0.1", server.ports[0]), timeout=60) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        head = client.makefile("rb").read().partition(b"\r\n\r\n")[0].decode()
    assert [
        "HTTP/1.1 200 OK", "Content-Type", "X-Content-Type-Options", "Date", "Content-Length",
        "Connection",
    ] == [line.partition(":")[0] for line in head.split("\r\n")]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/healthz", b"ok"), ("/healthz/ping", b"ok"), ("/proxyMode", b"iptables")],
)
def test_the_metrics_address_has_pages_of_its_own(server, path, expected):
    assert (200, expected) == ask(server.ports[1], path)[::2]


def test_the_wildcard_is_both_families(server):
    for host in ("127.0.0.1", "::1"):
        assert 200 == ask(server.ports[0], "/livez", host=host)[0], host


def test_the_metrics_address_is_that_address_only(server):
    with pytest.raises(ConnectionRefusedError):
        ask(server.ports[1], "/healthz", host="127.0.0.2")


def test_health_is_about_what_waits(pages):
    moment = Instant(0, 100.0)
    server = HealthServer(GOOD, pages, HERE, None, clock=lambda: moment)
    started = GOOD.with_updated(Family.IPV4, Instant(0, 0.0))
    for queued, expected in ((41.0, True), (40.0, False)):
        server.publish(started.with_queued(Family.IPV4, Instant(0, queued)))
        assert expected is server.is_healthy()


def test_without_a_health_server_the_proxy_counts_as_healthy(pages):
    late = GOOD.with_updated(Family.IPV4, Instant(0, 0.0)).with_queued(Family.IPV4, Instant(0, 0.0))
    server = HealthServer(late, pages, None, None, clock=lambda: Instant(0, 1000.0))
    server.start()
    assert () == server.ports
    assert server.is_healthy()
    server.stop()


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.mark.parametrize(
    ("is_health", "name", "explanation"),
    [
        (True, "healthz", "healthz server failed: failed to start proxy healthz on {0}: "),
        (False, "metrics", "starting metrics server failed: "),
    ],
    ids=["healthz", "metrics"],
)
def test_a_taken_port_fails_hard_if_asked_to(pages, taken, is_health, name, explanation):
    there = taken.getsockname()
    shown = f"127.0.0.1:{there[1]}"
    failures = []
    server = HealthServer(
        GOOD, pages, *((there, HERE) if is_health else (HERE, there)), hard_fail=True,
        on_failure=lambda *failure: failures.append(failure),
    )  # fmt: skip
    reason = f"{explanation.format(shown)}listen tcp {shown}: bind: address already in use"
    with pytest.raises(HostError) as raised, capture_logs() as logged:
        server.start()
    assert str(raised.value).startswith(f"{reason}; free the port")
    (line,) = logged
    assert ("cannot listen", False) == (line["event"], "retry_seconds" in line)
    assert [(name, reason)] == failures
    assert () == server.ports  # the other one was closed again


def test_a_taken_port_is_retried(pages, taken, monkeypatch):
    monkeypatch.setattr(health, "RETRY_SECONDS", 0.01)
    address = taken.getsockname()
    server = HealthServer(
        GOOD, pages, address, None, on_failure=lambda *_: pytest.fail("only a hard failure")
    )
    server.start()
    taken.close()
    server._thread.join(60)  # it ends when all addresses are listened on
    assert 200 == ask(address[1], "/livez")[0]
    server.stop()


@pytest.mark.parametrize("health_is_taken", [True, False])
def test_one_taken_port_does_not_keep_the_other_closed(pages, taken, health_is_taken):
    addresses = (taken.getsockname(), HERE) if health_is_taken else (HERE, taken.getsockname())
    server = HealthServer(GOOD, pages, *addresses)
    server.start()
    (port,) = server.ports
    assert 200 == ask(port, "/healthz")[0]
    server.stop()


def test_a_taken_port_is_complained_of_once(pages, taken):
    waits = []

    class Stop:  # the port is free from the third wait on
        def wait(self, seconds):
            waits.append(seconds)
            if len(waits) == 3:
                taken.close()
            return False

        def set(self):
            pass

    server = HealthServer(GOOD, pages, taken.getsockname(), None)
    server._stop = Stop()
    with capture_logs() as logged:
        server.start()
        server._thread.join(60)
    assert [5.0] * 3 == waits  # each attempt but the first waits before
    assert [("error", "cannot listen", 5.0), ("info", "listening after all", None)] == [
        (line["log_level"], line["event"], line.get("retry_seconds")) for line in logged
    ]
    server.stop()


def test_a_client_of_metrics_does_not_hold_up_health(server):
    with socket.create_connection(("127.0.0.1", server.ports[1]), timeout=60) as silent:
        silent.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert 200 == ask(server.ports[0], "/livez")[0]
        assert 200 == ask(server.ports[1], "/healthz")[0]
