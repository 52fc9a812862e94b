"""A refusal becomes the exception that tells the operator what to do."""

from __future__ import annotations

import email.utils
import time

import pytest
from urllib3.exceptions import ConnectTimeoutError, ProtocolError, SSLError

from pykubeproxy.errors import (
    NamespaceGone,
    RequestRefused,
    VersionAhead,
    WatchDenied,
    WatchError,
    WatchExpired,
    WatchThrottled,
)
from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.failures import error_for, explain
from pykubeproxy.watch.resources import EVENTS, RESOURCES
from pykubeproxy.watch.wire import Status, StatusDetails, decode_status
from tests.fakes import recordings

SLICES = RESOURCES[Kind.ENDPOINT_SLICE]
SERVER = "https://api.test:6443"


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        pytest.param(401, WatchDenied, ["the token of me", "renew"], id="401"),
        pytest.param(
            403,
            WatchDenied,
            ['verb "list"', '"endpointslices"', '"discovery.k8s.io"', "node-proxier"],
            id="403",
        ),
        pytest.param(404, RequestRefused, [SLICES.path], id="404"),
        pytest.param(410, WatchExpired, ["fresh list"], id="410"),
        pytest.param(422, RequestRefused, ["check"], id="422"),
        pytest.param(429, WatchThrottled, ["wait"], id="429"),
        pytest.param(500, RequestRefused, ["log"], id="500"),
        pytest.param(503, RequestRefused, ["log"], id="503"),
    ],
)
def test_codes_map_to_errors_with_advice(
    code: int, expected: type[WatchError], words: list[str]
) -> None:
    status = Status(message="because")
    error = error_for(status, "list", SLICES, SERVER, credential="the token of me", code=code)
    assert type(error) is expected
    for word in [*words, SERVER, "because", str(code)]:
        assert word in str(error)


TERMINATING = b"""{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
"message":"events.events.k8s.io \\"web.17a\\" is forbidden: unable to create new content in\
 namespace shop because it is being terminated","reason":"Forbidden","details":{"name":"web.17a",
"group":"events.k8s.io","kind":"events","causes":[{"reason":"NamespaceTerminating",
"message":"namespace shop is being terminated","field":"metadata.namespace"}]},"code":403}"""
GONE = b"""{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
"message":"namespaces \\"shop\\" not found","reason":"NotFound",
"details":{"name":"shop","kind":"namespaces"},"code":404}"""
NO_EVENT = GONE.replace(b"namespaces", b"events").replace(b"shop", b"web.17a")
NO_RIGHT = TERMINATING.replace(b"NamespaceTerminating", b"Other")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        pytest.param(TERMINATING, NamespaceGone, id="the namespace is being deleted"),
        pytest.param(GONE, NamespaceGone, id="the namespace is not there"),
        pytest.param(NO_EVENT, RequestRefused, id="the Event is not there"),
        pytest.param(NO_RIGHT, WatchDenied, id="another 403"),
    ],
)
def test_a_namespace_that_goes_is_no_missing_right(raw: bytes, expected: type[WatchError]) -> None:
    status = decode_status(raw)
    assert status is not None
    error = error_for(status, "create", EVENTS, SERVER)
    assert expected is type(error)
    assert (expected is WatchDenied) == ("grant verb" in str(error))
    assert (expected is NamespaceGone) == ("nothing stays" in str(error))


@pytest.mark.parametrize(
    ("header", "in_status", "expected"),
    [
        pytest.param("7", None, 7.0, id="header"),
        pytest.param(None, 3, 3.0, id="status"),
        pytest.param("7", 3, 7.0, id="header wins"),
        pytest.param("86400", None, 300.0, id="capped at five minutes"),
        pytest.param("-5", 2, 2.0, id="nonsense header"),
        pytest.param("soon", None, 1.0, id="unreadable"),
        pytest.param(email.utils.formatdate(time.time() - 50), None, 0.0, id="past date"),
    ],
)
def test_pauses_are_read_from_header_and_status(
    header: str | None, in_status: int | None, expected: float
) -> None:
    status = Status(details=StatusDetails(retry_after_seconds=in_status))
    error = error_for(status, "list", SLICES, SERVER, code=429, retry_after=header)
    assert isinstance(error, WatchThrottled)
    assert expected == error.retry_after_seconds


def test_a_pause_is_obeyed_whatever_the_code() -> None:
    assert isinstance(
        error_for(Status(), "list", SLICES, SERVER, code=503, retry_after="2"), WatchThrottled
    )


def test_a_version_the_server_has_not_reached_is_told_apart() -> None:
    status = decode_status(recordings.load("services-list-future").raw())
    assert status is not None
    error = error_for(status, "list", SLICES, SERVER)
    assert isinstance(error, VersionAhead)
    assert error.retry_after_seconds == 1.0


@pytest.mark.parametrize(
    ("error", "word"),
    [
        pytest.param(SSLError("certificate verify failed"), "certificate-authority", id="tls"),
        pytest.param(ProtocolError("reset"), "lost", id="reset"),
    ],
)
def test_connection_errors_say_what_to_check(error: Exception, word: str) -> None:
    text = explain("list services", SERVER, error)
    assert word in text
    assert SERVER in text


@pytest.mark.parametrize(
    ("error", "given"),
    [
        pytest.param(ConnectTimeoutError("timed out"), True, id="nobody answers"),
        pytest.param(ProtocolError("reset"), False, id="somebody did"),
    ],
)
def test_what_is_known_of_the_address_is_said_where_nobody_answers(
    error: Exception, given: bool
) -> None:
    text = explain("list services", SERVER, error, "give another one")
    assert given == ("give another one" in text)
