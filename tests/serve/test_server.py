from __future__ import annotations

import errno
import http.client
import re
import socket

import pytest
from structlog.testing import capture_logs

from pykubeproxy.serve import server as module
from pykubeproxy.serve.answers import Answer
from pykubeproxy.serve.server import HttpServer, Listening, everywhere, listen, listen_error

PLAIN = (("Content-Type", "text/plain"),)
LARGE = b"x" * 8_000_000


def respond(request):
    match request.path:
        case "/large":
            return Answer(200, LARGE, PLAIN)
        case "/bug":
            raise KeyError("missing")
        case "/body":
            return Answer(200, request.body, PLAIN)
    return Answer(200, f"{request.method} {request.path}".encode(), PLAIN)


@pytest.fixture
def server():
    server = HttpServer("test")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def listening(server):
    listening = Listening([listen(socket.AF_INET, "127.0.0.1", 0, only_v6=True)], respond)
    server.add(listening)
    return listening


@pytest.fixture
def port(listening):
    return listening.sockets[0].getsockname()[1]


def connect(port):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def get(path="/", version="1.1", *fields):
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: n", *fields, "", ""]).encode()


def everything(client):
    """Read until the server ends the connection."""
    with client.makefile("rb") as stream:
        return stream.read()


def shape(data):
    """*data* without what differs from time to time."""
    return re.sub(rb"Date: [^\r]+ GMT\r\n", b"Date: -\r\n", data)


def one_answer(client):
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def test_an_answer_to_the_byte(port):
    with connect(port) as client:
        client.sendall(get("/a", "1.1", "Connection: close"))
        assert (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nDate: -\r\nContent-Length: 6\r\n"
            b"Connection: close\r\n\r\nGET /a"
        ) == shape(everything(client))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_nobody_can_fulfil_ends_the_connection(port, version):
    with connect(port) as client:
        client.sendall(get("/a", version, "Expect: foo") + get("/b"))
        assert (
            f"HTTP/{version} 417 Expectation Failed\r\nConnection: close\r\nDate: -\r\n"
            "Content-Length: 0\r\n\r\n"
        ).encode() == shape(everything(client))


def test_several_requests_on_one_connection(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.connect()
    before = connection.sock.getsockname()
    for method in ("GET", "HEAD", "POST", "BREW"):
        connection.request(method, "/a", body=b"body" if method == "POST" else None)
        response = connection.getresponse()
        expected = b"" if method == "HEAD" else f"{method} /a".encode()
        assert (200, expected) == (response.status, response.read())
        assert len(f"{method} /a") == int(response.headers["Content-Length"])
        assert before == connection.sock.getsockname()
    connection.close()


def test_http_1_0_ends_the_connection_unless_asked_not_to(port):
    with connect(port) as client:
        client.sendall(get("/a", "1.0"))
        assert (
            b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nDate: -\r\nContent-Length: 6\r\n\r\n"
            b"GET /a"
        ) == shape(everything(client))
    with connect(port) as client:
        client.sendall(get("/a", "1.0", "Connection: keep-alive") + get("/b", "1.0"))
        data = everything(client)
        assert 1 == data.count(b"Connection: keep-alive")
        assert data.endswith(b"GET /b")


def test_requests_sent_at_once_are_answered_in_order(port):
    with connect(port) as client:
        paths = [f"/{number}" for number in range(100)]
        client.sendall(b"".join(map(get, paths)) + get("/last", "1.1", "Connection: close"))
        data = everything(client)
    assert [*paths, "/last"] == [text.decode() for text in re.findall(rb"GET (/[a-z0-9]+)", data)]


def test_a_request_in_pieces_is_answered(port):
    with connect(port) as client:
        for byte in get("/a", "1.1", "Connection: close"):
            client.send(bytes([byte]))
        assert everything(client).endswith(b"GET /a")


def test_what_follows_a_body_is_the_next_request(port):
    with connect(port) as client:
        put = b"PUT /body HTTP/1.1\r\nHost: n\r\n"
        client.sendall(put + b"Content-Length: 3\r\n\r\nabc\r\n")
        client.sendall(put + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n")
        client.sendall(get("/last", "1.1", "Connection: close"))
        data = everything(client)
    assert [b"abc", b"de", b"GET /last"] == re.findall(rb"\r\n\r\n(abc|de|GET /last)", data)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(b"nonsense\r\n\r\n", b"400", id="no request"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"400", id="no host"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"431", id="endless head"),
        pytest.param(
            b"PUT / HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400",
            id="no chunk",
        ),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_ends_the_connection(port, sent, code):
    with connect(port) as client:
        client.sendall(sent + get("/after"))
        data = everything(client)
    assert data.startswith(b"HTTP/1.1 " + code)
    assert b"/after" not in data


def test_a_body_that_nobody_waits_for_ends_the_connection(port):
    with connect(port) as client:
        client.sendall(b"PUT /a HTTP/1.1\r\nHost: n\r\nContent-Length: 1000000\r\n\r\n")
        data = everything(client)
    assert data.startswith(b"HTTP/1.1 200 OK")
    assert b"Connection: close" in data


def test_options_of_the_server_itself(port):
    with connect(port) as client:
        client.sendall(b"OPTIONS * HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n")
        assert (
            b"HTTP/1.1 200 OK\r\nDate: -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ) == shape(everything(client))


def test_a_large_answer_to_a_slow_reader_holds_up_nobody(port):
    with connect(port) as slow, connect(port) as other:
        slow.sendall(get("/large") + get("/after", "1.1", "Connection: close"))
        assert slow.recv(1)  # it is under way, and does not fit into what the kernel buffers
        for _ in range(3):
            other.sendall(get("/a"))
            assert (200, b"GET /a") == one_answer(other)
        data = everything(slow)
    assert LARGE in data
    assert data.endswith(b"GET /after")


def test_silent_and_slow_clients_hold_up_nobody(port):
    crowd = [connect(port) for _ in range(50)]
    for client in crowd[:25]:
        client.sendall(b"GET / HTTP/1.1\r\nHo")
    with connect(port) as other:
        other.sendall(get("/a"))
        assert (200, b"GET /a") == one_answer(other)
    for client in crowd:
        client.close()


def test_two_hundred_clients_at_once(port):
    clients = [connect(port) for _ in range(200)]
    for _ in range(3):
        for number, client in enumerate(clients):
            client.sendall(get(f"/{number}"))
        for number, client in enumerate(clients):
            assert (200, f"GET /{number}".encode()) == one_answer(client)
    for client in clients:
        client.close()


@pytest.mark.parametrize(
    ("limit", "sent"),
    [("IDLE_SECONDS", b""), ("REQUEST_SECONDS", b"GET / HTTP/1.1\r\n")],
    ids=["silent", "never ready"],
)
def test_a_client_gets_its_time_and_not_more(monkeypatch, port, limit, sent):
    monkeypatch.setattr(module, limit, 0.0)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.01)
    with connect(port) as client:
        client.sendall(sent)
        assert b"" == everything(client)


def test_who_sends_byte_by_byte_has_no_more_time(monkeypatch, port):
    monkeypatch.setattr(module, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(module, "_SWEEP_SECONDS", 0.01)
    with connect(port) as client:
        client.sendall(b"GET /")
        client.settimeout(0.01)
        for _ in range(2000):  # far more than it has time for
            try:
                client.sendall(b"a")
                if client.recv(1) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    pytest.fail("it could go on and on")


def test_one_client_too_many_is_the_end_of_the_quietest(monkeypatch, port):
    monkeypatch.setattr(module, "MAX_CLIENTS", 3)
    clients = [connect(port) for _ in range(3)]
    for client in (*clients, clients[0]):  # so that the second is the quietest
        client.sendall(get())
        assert 200 == one_answer(client)[0]
    with connect(port) as more:
        more.sendall(get())
        assert 200 == one_answer(more)[0]
        assert b"" == clients[1].recv(1)
        for client in (clients[0], clients[2]):
            client.sendall(get())
            assert 200 == one_answer(client)[0]
    for client in clients:
        client.close()


class Short(socket.socket):
    """Has no descriptor left at first."""

    def accept(self):
        if not hasattr(self, "tried"):
            self.tried = True
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_without_descriptors_it_goes_on_when_there_are_some(server):
    listener = Short(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    server.add(Listening([listener], respond))
    with connect(listener.getsockname()[1]) as client:
        client.sendall(get())
        assert 200 == one_answer(client)[0]


def test_an_answer_that_fails_is_told_and_others_go_on(port):
    with capture_logs() as logged, connect(port) as client:
        client.sendall(get("/bug"))
        assert (500, b"KeyError: 'missing'\n") == one_answer(client)
        client.sendall(get("/a"))
        assert (200, b"GET /a") == one_answer(client)
    assert ["request not answered; this is a bug"] == [line["event"] for line in logged]


def test_a_removed_port_is_refused_and_its_connections_end(server, listening, port):
    with connect(port) as client:
        client.sendall(get())
        assert 200 == one_answer(client)[0]
        server.remove(listening)
        with pytest.raises(ConnectionRefusedError):
            connect(port)
        assert b"" == client.recv(1)


def test_a_port_may_come_and_go_before_the_thread_looks():
    server = HttpServer("test")
    listening = Listening([listen(socket.AF_INET, "127.0.0.1", 0, only_v6=True)], respond)
    server.add(listening)
    server.remove(listening)
    server.start()
    server.stop()
    assert -1 == listening.sockets[0].fileno()


def test_stopping_ends_ports_and_connections():
    server = HttpServer("test")
    listening = Listening([listen(socket.AF_INET, "127.0.0.1", 0, only_v6=True)], respond)
    port = listening.sockets[0].getsockname()[1]
    server.add(listening)
    server.start()
    with connect(port) as client:
        client.sendall(get())
        assert 200 == one_answer(client)[0]
        server.stop()
        assert b"" == client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(port)


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("0.0.0.0", {"127.0.0.1": True, "::1": True}),
        ("::", {"127.0.0.1": True, "::1": True}),
        ("127.0.0.1", {"127.0.0.1": True, "127.0.0.2": False, "::1": False}),
        ("::1", {"127.0.0.1": False, "::1": True}),
    ],
)
def test_the_unspecified_address_is_both_families_and_others_are_one_address(host, answers):
    with everywhere(host, 0) as listener:
        port = listener.getsockname()[1]
        for address, expected in answers.items():
            try:
                socket.create_connection((address, port), timeout=60).close()
                answered = True
            except ConnectionRefusedError:
                answered = False
            assert expected is answered, address


def test_without_ipv6_the_unspecified_address_is_that_of_ipv4(monkeypatch):
    def fail(af, *rest, **more):
        if af == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return listen(af, *rest, **more)

    monkeypatch.setattr(module, "listen", fail)
    with everywhere("::", 0) as listener:
        assert "0.0.0.0" == listener.getsockname()[0]


def test_a_taken_port_is_an_error_and_no_reason_to_take_half_of_it():
    with everywhere("0.0.0.0", 0) as taken, pytest.raises(OSError, match="in use"):
        everywhere("0.0.0.0", taken.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0", "listen tcp4 0.0.0.0:80: bind: address already in use"),
        ("fd00::1", "listen tcp4 [fd00::1]:80: bind: address already in use"),
    ],
)
def test_a_failure_reads_as_in_go(address, expected):
    error = OSError(errno.EADDRINUSE, "Address already in use")
    assert expected == listen_error("tcp4", address, 80, error)
