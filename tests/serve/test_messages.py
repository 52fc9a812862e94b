from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.serve.answers import Answer
from pykubeproxy.serve.messages import Body, Refusal, Request, head_end, read_head, response

DATE = "Fri, 02 Jan 2026 03:04:05 GMT"


def head(line="GET / HTTP/1.1", *fields, host=True):
    lines = [line, *(["Host: n"] if host else []), *fields, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (b"", 0),
        (b"GET / HTTP/1.1\r\n", 0),
        (b"GET / HTTP/1.1\r\nHost: n\r\n\r", 0),
        (b"GET / HTTP/1.1\r\n\r\n", 18),
        (b"GET / HTTP/1.0\n\n", 16),
        (b"GET / HTTP/1.0\n\r\nmore", 17),
    ],
)
def test_a_head_ends_with_a_blank_line(received, expected):
    assert expected == head_end(received)


@pytest.mark.parametrize("start", range(17))
def test_the_end_is_found_wherever_the_pieces_meet(start):
    assert 18 == head_end(b"GET / HTTP/1.1\r\n\r\n", max(0, start - 2))


@pytest.mark.parametrize(
    ("line", "method", "path", "query"),
    [
        ("GET /healthz HTTP/1.1", "GET", "/healthz", ""),
        ("BREW /pot?milk=1 HTTP/1.1", "BREW", "/pot", "milk=1"),
        ("GET /%68ealthz HTTP/1.1", "GET", "/healthz", ""),
        ("GET http://n:10256/livez?x HTTP/1.1", "GET", "/livez", "x"),
        ("GET http://n HTTP/1.1", "GET", "/", ""),
        ("OPTIONS * HTTP/1.1", "OPTIONS", "*", ""),
        ("CONNECT n:443 HTTP/1.1", "CONNECT", "", ""),
    ],
)
def test_the_request_line(line, method, path, query):
    read = read_head(head(line))
    assert (method, path, query) == (read.method, read.path, read.query)


def test_headers_are_read_by_lower_case_name_and_the_first_counts():
    read = read_head(head("GET / HTTP/1.1", "ACCEPT:  a ", "Accept: b", "X-Long: one", "  two"))
    assert {"host": "n", "accept": "a", "x-long": "one two"} == read.headers


def test_lines_may_end_without_carriage_return():
    assert "/x" == read_head(b"GET /x HTTP/1.1\nHost: n\n\n").path


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ("GET / HTTP/1.1", [], True),
        ("GET / HTTP/1.1", ["Connection: close"], False),
        ("GET / HTTP/1.1", ["Connection: x, CLOSE"], False),
        ("GET / HTTP/1.1", ["Connection: keep-alive"], True),
        ("GET / HTTP/1.0", [], False),
        ("GET / HTTP/1.0", ["Connection: Keep-Alive"], True),
        ("POST / HTTP/1.1", ["Content-Length: 10", "Expect: 100-continue"], False),
        ("POST / HTTP/1.1", ["Content-Length: 262145"], False),
        ("GET / HTTP/1.1", ["Expect: 100-Continue"], True),
        ("GET / HTTP/1.1", ["Expect: foo"], False),
        ("GET / HTTP/1.1", ["Expect:"], True),
    ],
)
def test_who_ends_the_connection(line, fields, expected):
    assert expected is read_head(head(line, *fields)).keeps_alive


@pytest.mark.parametrize(
    ("expectation", "expected"),
    [
        ("foo", True),
        ("100-continued", True),
        ("x100-continue", True),
        ("100-Continue", False),
        ("a, 100-continue", False),
        ("", False),
    ],
)
def test_nobody_knows_but_one_expectation(expectation, expected):
    assert expected is read_head(head("GET / HTTP/1.1", f"Expect: {expectation}")).expects_too_much


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (head("GET /"), "400 Bad Request"),
        (head("G ET / HTTP/1.1"), "400 Bad Request"),
        (head("G@T / HTTP/1.1"), "400 Bad Request"),
        (head("GET healthz HTTP/1.1"), "400 Bad Request"),
        (head("GET /%zz HTTP/1.1"), "400 Bad Request"),
        (head("GET / HTTP/x"), "400 Bad Request"),
        (head("GET / HTTP/2.0"), "505 HTTP Version Not Supported: unsupported protocol version"),
        (head(host=False), "400 Bad Request: missing required Host header"),
        (head("GET / HTTP/1.1", "Host: again"), "400 Bad Request: too many Host headers"),
        (head("GET / HTTP/1.1", "Host: a b", host=False), "400 Bad Request: malformed Host header"),
        (head("GET / HTTP/1.1", "X: a\x01"), "400 Bad Request: invalid header value"),
        (head("GET / HTTP/1.1", "no colon"), "400 Bad Request"),
        (head("GET / HTTP/1.1", "X : a"), "400 Bad Request"),
        (head("POST / HTTP/1.1", "Content-Length: -1"), "400 Bad Request"),
        (head("POST / HTTP/1.1", "Content-Length: 1", "Content-Length: 2"), "400 Bad Request"),
    ],
)
def test_what_is_no_request_is_refused_as_go_does(data, expected):
    refusal = read_head(data)
    assert isinstance(refusal, Refusal)
    assert (
        f"HTTP/1.1 {expected}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Connection: close\r\n\r\n{expected}"
    ).encode() == refusal.response


def test_an_unknown_coding_is_not_implemented():
    refusal = read_head(head("POST / HTTP/1.1", "Transfer-Encoding: gzip"))
    assert refusal.response.startswith(b"HTTP/1.1 501 Not Implemented\r\n")
    assert refusal.response.endswith(b"\r\n\r\nUnsupported transfer encoding")


def test_http_1_0_needs_no_host():
    assert read_head(head("GET / HTTP/1.0", host=False)).http_1_0


def taken(request, *pieces):
    body, received = Body(request), bytearray()
    done = False
    for piece in pieces:
        assert not done
        received += piece
        done = body.take(received)
    return done, body.kept, bytes(received)


CHUNKED = Request("PUT", "/", body_bytes=None)


@pytest.mark.parametrize(
    ("request_", "pieces", "expected"),
    [
        (Request("GET", "/"), [b"GET"], (True, b"", b"GET")),
        (Request("PUT", "/", body_bytes=3), [b"abcGET"], (True, b"abc", b"GET")),
        (Request("PUT", "/", body_bytes=3), [b"a", b"b"], (False, b"ab", b"")),
        (Request("PUT", "/", body_bytes=3), [b"a", b"b", b"cG"], (True, b"abc", b"G")),
        (CHUNKED, [b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\nGET"], (True, b"abcd", b"GET")),
        (CHUNKED, [b"3\r", b"\nab", b"c\r", b"\n0\r\nT: x\r\n", b"\r\n"], (True, b"abc", b"")),
        (CHUNKED, [b"3\r\nabc\r\n"], (False, b"abc", b"")),
    ],
)
def test_a_body_is_taken_out_of_what_comes(request_, pieces, expected):
    assert expected == taken(request_, *pieces)


def test_of_a_long_body_the_beginning_is_kept():
    done, kept, left = taken(Request("PUT", "/", body_bytes=100_000), b"x" * 100_000 + b"G")
    assert (True, 4096, b"G") == (done, len(kept), left)


@pytest.mark.parametrize("data", [b"x\r\n", b"\xff\r\n", b"-1\r\n", b"1" * 5000])
def test_what_is_no_chunk_is_an_error(data):
    with pytest.raises(ValueError, match="chunk"):
        taken(CHUNKED, data)


def test_a_body_without_end_is_not_waited_for():
    body = Body(CHUNKED)
    assert body.take(bytearray(b"50000\r\n" + b"x" * 300_000))
    assert body.is_too_long
    body = Body(Request("PUT", "/", body_bytes=1 << 30))
    assert body.take(bytearray())
    assert body.is_too_long


ANSWER = Answer(503, b"body", (("X-Content-Type-Options", "nosniff"), ("Content-Type", "a/b")))


@pytest.mark.parametrize(
    ("request_", "closes", "expected"),
    [
        pytest.param(Request("GET", "/"), False, (b"1.1", b"", b"body"), id="keep-alive"),
        pytest.param(
            Request("GET", "/"), True, (b"1.1", b"Connection: close\r\n", b"body"), id="it closes"
        ),
        pytest.param(
            Request("GET", "/", keeps_alive=False), False,
            (b"1.1", b"Connection: close\r\n", b"body"), id="the client does",
        ),
        pytest.param(Request("HEAD", "/"), False, (b"1.1", b"", b""), id="HEAD"),
        pytest.param(
            Request("GET", "/", http_1_0=True, keeps_alive=False), False, (b"1.0", b"", b"body"),
            id="HTTP 1.0",
        ),
        pytest.param(
            Request("GET", "/", http_1_0=True), False,
            (b"1.0", b"Connection: keep-alive\r\n", b"body"), id="HTTP 1.0 that keeps alive",
        ),
    ],
)  # fmt: skip
def test_an_answer_is_written_as_go_writes_it(request_, closes, expected):
    version, connection, body = expected
    assert (
        b"HTTP/" + version + b" 503 Service Unavailable\r\n"
        b"Content-Type: a/b\r\nX-Content-Type-Options: nosniff\r\n"
        b"Date: Fri, 02 Jan 2026 03:04:05 GMT\r\nContent-Length: 4\r\n" + connection + b"\r\n"
    ) + body == response(ANSWER, request_, DATE, closes)


def test_an_empty_answer_to_head_has_no_length():
    empty = response(Answer(200, b""), Request("HEAD", "/"), DATE)
    assert b"HTTP/1.1 200 OK\r\nDate: Fri, 02 Jan 2026 03:04:05 GMT\r\n\r\n" == empty


WORDS = [
    b"GET", b"PUT", b" ", b"/", b"*", b"?", b"%", b"%4", b"http://", b"HTTP/1.1", b"HTTP/1.0",
    b"\r\n", b"\n", b":", b"Host", b"Content-Length", b"Transfer-Encoding", b"chunked", b"close",
    b"Connection", b"Expect", b"100-continue", b"0", b"-1", b"5", b"\t", b"\x00", b"\xff",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=4)).map(b"".join))
def test_any_bytes_are_a_request_or_refused(data):
    read = read_head(data + b"\r\n\r\n")
    if isinstance(read, Refusal):
        assert read.response.startswith(b"HTTP/1.1 ")
        return
    assert response(ANSWER, read, DATE).startswith(b"HTTP/1.")
    assert read.parameters is not None


@given(st.lists(st.sampled_from(WORDS) | st.binary(max_size=4)))
def test_any_bytes_are_a_body_or_none(pieces):
    body, received = Body(CHUNKED), bytearray()
    with suppress(ValueError):  # what it says is tested above
        for piece in pieces:
            received += piece
            if body.take(received):
                break
    assert len(body.kept) <= 4096
