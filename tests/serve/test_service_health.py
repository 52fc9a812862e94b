from __future__ import annotations

import http.client
import json
import re
import socket
import threading

import pytest

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.serve.service_health import ServiceHealth

A, B = ServiceKey("ns", "a"), ServiceKey("ns", "b")


@pytest.fixture
def proxy():
    """Tells the health of the proxy; a test may change it."""
    return {"healthy": True}


@pytest.fixture
def failures():
    return []


@pytest.fixture
def servers(proxy, failures):
    servers = ServiceHealth(
        Family.IPV4, ("127.0.0.1",), lambda: proxy["healthy"], lambda *f: failures.append(f)
    )
    servers.start()
    yield servers
    servers.stop()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def ask(port, method="GET", path="/any"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers["X-Load-Balancing-Endpoint-Weight"], body


def is_refused(port, host="127.0.0.1"):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), timeout=60)
    return True


def in_use(port, address="127.0.0.1"):
    return f"listen tcp4 {address}:{port}: bind: address already in use"


@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_every_method_and_path_is_answered(servers, method):
    port = free_port()
    servers.sync({A: (port, 2)})
    status, weight, body = ask(port, method, "/x?y")
    assert (status, weight) == (200, "2")
    assert json.loads(body)["service"] == {"namespace": "ns", "name": "a"}


def test_counts_follow_each_sync(servers):
    port = free_port()
    servers.sync({A: (port, 2)})
    servers.sync({A: (port, 0)})
    assert ask(port)[:2] == (503, "0")


def test_an_unhealthy_proxy_gets_no_traffic(servers, proxy):
    port = free_port()
    servers.sync({A: (port, 2)})
    proxy["healthy"] = False
    assert ask(port)[:2] == (503, "2")


def test_each_service_has_its_port(servers):
    one, two = free_port(), free_port()
    servers.sync({A: (one, 1), B: (two, 2)})
    assert [ask(one)[1], ask(two)[1]] == ["1", "2"]


def test_a_service_that_is_gone_is_refused(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    servers.sync({})
    assert is_refused(port)


def test_a_changed_port_moves(servers):
    old, new = free_port(), free_port()
    servers.sync({A: (old, 1)})
    servers.sync({A: (new, 1)})
    assert ask(new)[0] == 200
    assert is_refused(old)


def test_a_port_can_change_hands(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    servers.sync({B: (port, 1)})
    assert json.loads(ask(port)[2])["service"]["name"] == "b"


def test_a_taken_port_is_reported_and_tried_again(servers, failures):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        servers.sync({A: (port, 1)})
        assert [(A, port, in_use(port))] == failures
    servers.sync({A: (port, 1)})
    assert ask(port)[0] == 200


def test_a_change_leaves_others_as_they_are(servers):
    one, two = free_port(), free_port()
    servers.sync({A: (one, 1), B: (two, 2)})
    servers.update({A: (one, 3)})
    assert ["3", "2"] == [ask(one)[1], ask(two)[1]]
    servers.update({B: None})
    assert is_refused(two)
    assert "3" == ask(one)[1]


def test_a_port_can_change_hands_by_a_change(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    servers.update({B: (port, 2), A: None})
    assert "2" == ask(port)[1]


def test_what_was_refused_is_tried_again_with_any_change(servers, failures):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        servers.update({A: (port, 4)})
        assert [(A, port, in_use(port))] == failures
    servers.update({})
    assert "4" == ask(port)[1]


def test_what_was_refused_and_is_gone_is_not_tried_again(servers, failures):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        servers.update({A: (port, 4)})
        servers.sync({})
        servers.update({})
    assert 1 == len(failures)


BODY = (
    b'{\n\t"service": {\n\t\t"namespace": "ns",\n\t\t"name": "a"\n\t},\n'
    b'\t"localEndpoints": 2,\n\t"serviceProxyHealthy": true\n}'
)
HEADERS = (
    b"Content-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
    b"X-Load-Balancing-Endpoint-Weight: 2\r\nDate: -\r\nContent-Length: 107\r\n"
)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(
            b"GET /any HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Connection: close\r\n\r\n" + BODY, id="HTTP 1.1",
        ),
        pytest.param(
            b"GET / HTTP/1.0\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n" + HEADERS + b"\r\n" + BODY, id="HTTP 1.0",
        ),
        pytest.param(
            b"HEAD / HTTP/1.0\n\n", b"HTTP/1.0 200 OK\r\n" + HEADERS + b"\r\n", id="HEAD",
        ),
        pytest.param(
            b"POST /x HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nabc"
            b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + HEADERS + b"\r\n" + BODY
            + b"HTTP/1.1 200 OK\r\n" + HEADERS + b"Connection: close\r\n\r\n" + BODY,
            id="two at once",
        ),
    ],
)  # fmt: skip
def test_the_answer_to_the_byte(servers, request_, expected):
    port = free_port()
    servers.sync({A: (port, 2)})
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request_)
        received = client.makefile("rb").read()
    assert expected == re.sub(rb"Date: [^\r]+ GMT\r\n", b"Date: -\r\n", received)


def test_a_connection_is_kept_and_hears_of_changes(servers, proxy):
    port = free_port()
    servers.sync({A: (port, 2)})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    before = connection.sock.getsockname()
    answers = []
    for count, healthy in ((2, True), (0, True), (3, False), (3, True)):
        servers.update({A: (port, count)})
        proxy["healthy"] = healthy
        connection.request("GET", "/")
        response = connection.getresponse()
        body = json.loads(response.read())
        answers.append((response.status, body["localEndpoints"], body["serviceProxyHealthy"]))
    assert [(200, 2, True), (503, 0, True), (503, 3, False), (200, 3, True)] == answers
    assert before == connection.sock.getsockname()
    connection.close()


def test_a_slow_client_does_not_hold_up_others(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.send(b"GET / HTTP")
        assert ask(port)[0] == 200


def test_a_port_that_closes_ends_its_connections_and_no_others(servers):
    one, two = free_port(), free_port()
    servers.sync({A: (one, 1), B: (two, 2)})
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for port in (one, two)]
    for connection in connections:
        connection.request("GET", "/")
        connection.getresponse().read()
    servers.update({A: None})
    assert b"" == connections[0].sock.recv(1)
    connections[1].request("GET", "/")
    assert 200 == connections[1].getresponse().status
    for connection in connections:
        connection.close()


def test_a_family_listens_at_its_addresses_only(failures):
    for family, there, elsewhere in (
        (Family.IPV4, "127.0.0.1", "::1"),
        (Family.IPV6, "::1", "127.0.0.1"),
    ):
        servers = ServiceHealth(family, None, lambda: True, lambda *f: failures.append(f))
        servers.start()
        port = free_port()
        servers.sync({A: (port, 1)})
        with socket.create_connection((there, port), timeout=60):
            assert is_refused(port, elsewhere)
        servers.stop()
    assert [] == failures


def test_a_port_that_cannot_be_had_at_one_address_is_open_at_none(failures):
    servers = ServiceHealth(
        Family.IPV4, ("127.0.0.1", "127.0.0.2"), lambda: True, lambda *f: failures.append(f)
    )
    servers.start()
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        servers.sync({A: (port, 1)})
        assert [(A, port, in_use(port, "127.0.0.2"))] == failures
        assert is_refused(port)
        assert 0 == servers.count
    servers.update({})
    assert 1 == servers.count
    for host in ("127.0.0.1", "127.0.0.2"):
        socket.create_connection((host, port), timeout=60).close()
    servers.stop()


def test_no_address_means_no_listener():
    servers = ServiceHealth(Family.IPV4, (), lambda: True, lambda *_: None)
    port = free_port()
    servers.sync({A: (port, 1)})
    assert is_refused(port)
    servers.stop()


def test_one_thread_serves_many_services(servers):
    before = threading.active_count()
    ports = [free_port() for _ in range(200)]
    wanted = {ServiceKey("ns", str(port)): (port, 1) for port in ports}
    servers.sync(wanted)
    assert len(set(ports)) == servers.count
    assert before == threading.active_count()
    assert {200} == {ask(port)[0] for port in ports}
