from __future__ import annotations

import http.client
import json
import socket

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
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers["X-Load-Balancing-Endpoint-Weight"], body


def is_refused(port):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    return True


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
        assert failures == [(A, port, "Address already in use")]
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
        assert [(A, port, "Address already in use")] == failures
    servers.update({})
    assert "4" == ask(port)[1]


def test_what_was_refused_and_is_gone_is_not_tried_again(servers, failures):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        servers.update({A: (port, 4)})
        servers.sync({})
        servers.update({})
    assert 1 == len(failures)


def test_a_slow_client_does_not_hold_up_others(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.send(b"GET / HTTP")
        assert ask(port)[0] == 200


def test_a_request_in_pieces_is_answered(servers):
    port = free_port()
    servers.sync({A: (port, 1)})
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.send(b"HEAD / HTTP/1.1\r\n")
        client.send(b"\r\n")
        response = client.makefile("rb").read()
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\n")


def test_no_address_means_no_listener():
    servers = ServiceHealth(Family.IPV4, (), lambda: True, lambda *_: None)
    port = free_port()
    servers.sync({A: (port, 1)})
    assert is_refused(port)
    servers.stop()


def test_one_thread_serves_many_services(servers):
    ports = [free_port() for _ in range(50)]
    wanted = {ServiceKey("ns", str(port)): (port, 1) for port in ports}
    servers.sync(wanted)
    assert {200} == {ask(port)[0] for port in ports}
