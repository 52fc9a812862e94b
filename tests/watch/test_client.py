"""Requests carry the credential of the moment, and every failure says what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from pykubeproxy.errors import (
    RequestRefused,
    StreamCut,
    StreamSilent,
    WatchDenied,
    WatchError,
    WatchExpired,
    WatchThrottled,
)
from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.events import Happening, event_body, series_patch
from pykubeproxy.watch.resources import RESOURCES
from pykubeproxy.watch.wire import decode_list
from tests.fakes import recordings
from tests.fakes.apiserver import Answer, FakeApiServer
from tests.fakes.scripted_api import service

SERVICES = RESOURCES[Kind.SERVICE]
SLICES = RESOURCES[Kind.ENDPOINT_SLICE]


def read(client: ApiServer) -> bytes:
    return b"".join(client.list(SERVICES, {}))


def put(fake: FakeApiServer, name: str) -> None:
    fake.store.put({"kind": "Service", **service(name)})


def test_a_list_is_the_body(fake: FakeApiServer, client: ApiServer) -> None:
    put(fake, "a")
    body = client.list(SERVICES, {"limit": "500"})
    assert len(decode_list(Kind.SERVICE, body).objects) == 1
    request = fake.requests[0]
    assert request.query == {"limit": "500"}
    assert request.headers["authorization"] == "Bearer proxy-token"
    assert request.headers["user-agent"].startswith("pykubeproxy")


def test_large_lists_are_compressed_on_the_way(fake: FakeApiServer, client: ApiServer) -> None:
    for n in range(1500):
        put(fake, f"service-with-a-long-name-{n}")
    body = client.list(SERVICES, {})
    assert fake.requests[0].headers["accept-encoding"] == "gzip"
    assert len(decode_list(Kind.SERVICE, body).objects) == 1500


def test_a_watch_yields_lines_as_they_are_sent(fake: FakeApiServer, client: ApiServer) -> None:
    put(fake, "a")
    stream = client.watch(SERVICES, {"sendInitialEvents": "true"})
    lines = iter(stream)
    assert json.loads(next(lines))["object"]["metadata"]["name"] == "a"
    assert json.loads(next(lines))["type"] == "BOOKMARK"
    put(fake, "b")
    assert json.loads(next(lines))["object"]["metadata"]["name"] == "b"
    fake.wait_for_watches(1)
    fake.end_watches()
    assert list(lines) == []
    stream.close()


@pytest.mark.parametrize("pieces", [[1], [3, 7], [1000]])
def test_lines_are_whole_however_they_are_cut_on_the_way(
    fake: FakeApiServer, client: ApiServer, pieces: list[int]
) -> None:
    stream = client.watch(SERVICES, {})
    fake.wait_for_watches(1)
    text, at, n = b'{"a":1}\n{"b":2}\n{"c":3}\n', 0, 0
    while at < len(text):
        size = pieces[n % len(pieces)]
        fake.send_line(text[at : at + size])
        at, n = at + size, n + 1
    fake.end_watches()
    assert list(stream) == [b'{"a":1}', b'{"b":2}', b'{"c":3}']


def test_a_cut_in_mid_line_drops_the_partial_line(fake: FakeApiServer, client: ApiServer) -> None:
    stream = client.watch(SERVICES, {})
    fake.wait_for_watches(1)
    fake.send_line(b'{"whole":1}\n')
    lines = iter(stream)
    assert next(lines) == b'{"whole":1}'
    fake.cut(in_mid_line=True)
    with pytest.raises(StreamCut):
        next(lines)


def test_a_partial_line_before_a_clean_end_is_dropped(
    fake: FakeApiServer, client: ApiServer
) -> None:
    fake.answer_next(Answer(200, b'{"whole":1}\n{"half":', {"Content-Type": "application/json"}))
    assert list(client.watch(SERVICES, {})) == [b'{"whole":1}']


def test_a_half_open_stream_is_noticed(fake: FakeApiServer, client: ApiServer) -> None:
    put(fake, "a")
    stream = client.watch(SERVICES, {})
    lines = iter(stream)
    next(lines)
    fake.frozen.set()
    stream.set_read_seconds(0.05)
    with pytest.raises(StreamSilent, match="bookmark"):
        next(lines)


def test_the_first_read_deadline_is_given_with_the_request(
    fake: FakeApiServer, client: ApiServer
) -> None:
    fake.frozen.set()
    with pytest.raises(WatchError, match="hangs"):
        client.watch(SERVICES, {}, read_seconds=0.1)


def test_a_cut_list_is_an_error(fake: FakeApiServer, client: ApiServer) -> None:
    fake.answer_next(Answer(200, recordings.load("services-list").raw(), cut=3000))
    with pytest.raises(WatchError, match="list services on https"):
        read(client)


# --- refusals ----------------------------------------------------------------------------------


def test_a_missing_right_is_spelled_out(fake: FakeApiServer, client: ApiServer) -> None:
    fake.forbidden.add("endpointslices")
    with pytest.raises(WatchDenied) as caught:
        client.watch(SLICES, {})
    for word in ('"watch"', '"endpointslices"', '"discovery.k8s.io"', "system:kube-proxy"):
        assert word in str(caught.value)


def test_a_refused_credential_is_named(fake: FakeApiServer, client: ApiServer) -> None:
    fake.tokens.clear()
    with pytest.raises(WatchDenied, match="the token of user proxy"):
        read(client)


@pytest.mark.parametrize(
    ("code", "headers", "more", "expected"),
    [
        pytest.param(410, {}, {}, WatchExpired, id="410"),
        pytest.param(429, {"Retry-After": "3"}, {}, WatchThrottled, id="429"),
        pytest.param(
            503, {}, {"details": {"retryAfterSeconds": 3}}, WatchThrottled, id="pause in status"
        ),
        pytest.param(500, {}, {}, RequestRefused, id="500"),
        pytest.param(301, {"Location": "https://elsewhere.test"}, {}, RequestRefused, id="301"),
    ],
)
def test_error_answers_map_to_errors(
    fake: FakeApiServer,
    client: ApiServer,
    code: int,
    headers: dict[str, str],
    more: dict[str, object],
    expected: type[WatchError],
) -> None:
    fake.fail_next(1, code, "Reason", "because", headers, **more)
    with pytest.raises(expected, match="because") as caught:
        read(client)
    if isinstance(caught.value, WatchThrottled):
        assert caught.value.retry_after_seconds == 3


@pytest.mark.parametrize("name", [n for n in recordings.NAMES if recordings.load(n).status >= 400])
def test_recorded_refusals_are_told_in_their_own_words(
    fake: FakeApiServer, client: ApiServer, name: str
) -> None:
    recording = recordings.load(name)
    fake.answer_next(Answer(recording.status, recording.raw(), dict(recording.headers)))
    with pytest.raises(WatchError) as caught:
        read(client)
    body = recording.body
    expected = body["message"] if isinstance(body, dict) else body
    assert expected.strip().rstrip(".") in str(caught.value)


def test_a_server_that_is_not_there(fake: FakeApiServer, client: ApiServer) -> None:
    fake.stop()
    with pytest.raises(WatchError, match="check that the API server runs"):
        read(client)


def test_a_certificate_of_nobody_we_know(fake: FakeApiServer, tmp_path: Path) -> None:
    path = fake.write_kubeconfig(tmp_path)
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    stranger = ApiServer.from_flags(str(path), None)
    with pytest.raises(WatchError, match="certificate-authority"):
        read(stranger)


# --- rotation ----------------------------------------------------------------------------------


def test_a_rotated_token_file_is_presented_by_the_next_request(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("proxy-token\n")
    path = fake.write_kubeconfig(tmp_path, user={"tokenFile": "token"})
    client = ApiServer.from_flags(str(path), None)
    read(client)
    fake.tokens = {"fresh": "system:kube-proxy"}
    (tmp_path / "token").write_text("fresh\n")
    read(client)
    client.close()
    assert [request.headers["authorization"] for request in fake.requests] == [
        "Bearer proxy-token",
        "Bearer fresh",
    ]


def test_a_replaced_kubeconfig_is_read_after_a_401(fake: FakeApiServer, tmp_path: Path) -> None:
    client = ApiServer.from_flags(str(fake.write_kubeconfig(tmp_path)), None)
    fake.tokens = {"fresh": "system:kube-proxy"}
    fake.write_kubeconfig(tmp_path, user={"token": "fresh"})
    with pytest.raises(WatchDenied):
        read(client)
    read(client)
    client.close()


def test_a_kubeconfig_that_broke_since_is_an_error_of_the_request(
    fake: FakeApiServer, tmp_path: Path
) -> None:
    path = fake.write_kubeconfig(tmp_path)
    client = ApiServer.from_flags(str(path), None)
    fake.tokens.clear()
    path.write_text("[")
    for _ in range(2):
        with pytest.raises(WatchDenied):
            read(client)
    client.close()


def test_master_overrides_the_server_of_the_kubeconfig(fake: FakeApiServer, tmp_path: Path) -> None:
    path = fake.write_kubeconfig(tmp_path, cluster={"server": "https://nowhere.test"})
    client = ApiServer.from_flags(str(path), fake.url)
    read(client)
    client.close()


# --- events and closing ------------------------------------------------------------------------


STARTING = event_body(
    Happening("Starting", "StartKubeProxy", warning=False), "node", "host", datetime.now(UTC), 17
)
EVENTS_PATH = "/apis/events.k8s.io/v1/namespaces/default/events"


def test_an_event_is_posted(fake: FakeApiServer, client: ApiServer) -> None:
    client.create_event("default", STARTING)
    assert ("POST", EVENTS_PATH) == (fake.requests[0].method, fake.requests[0].path)
    assert fake.events[0]["reason"] == "Starting"


def test_an_event_becomes_a_series_by_a_merge_patch(fake: FakeApiServer, client: ApiServer) -> None:
    client.create_event("default", STARTING)
    patch = series_patch(2, datetime(2026, 11, 20, 12, tzinfo=UTC))
    client.patch_event("default", "node.11", patch)
    request = fake.requests[1]
    assert ("PATCH", f"{EVENTS_PATH}/node.11") == (request.method, request.path)
    assert "application/merge-patch+json" == request.headers["content-type"]
    assert patch["series"] == fake.events[0]["series"]
    assert "Starting" == fake.events[0]["reason"]


def test_an_event_that_is_gone_cannot_be_patched(client: ApiServer) -> None:
    with pytest.raises(RequestRefused) as caught:
        client.patch_event("default", "node.11", series_patch(2, datetime.now(UTC)))
    assert 404 == caught.value.code


# --- counting ----------------------------------------------------------------------------------


def counted(client: ApiServer, name: str) -> dict[tuple[str, ...], Any]:
    """The series of a measure, with the server's address left out."""
    [measure] = [m for m in client.requests.measures() if m.text.name == f"rest_client_{name}"]
    host = client.server.removeprefix("https://")
    return {
        tuple(label for label in labels if label != host): value
        for labels, value in measure.read().items()
    }


def test_requests_are_counted_by_code_and_method(fake: FakeApiServer, client: ApiServer) -> None:
    read(client)
    client.watch(SERVICES, {}).close()
    client.create_event("default", STARTING)
    fake.fail_next(1, 403, "Forbidden", "no")
    with pytest.raises(WatchDenied):
        read(client)
    assert {("200", "GET"): 2.0, ("201", "POST"): 1.0, ("403", "GET"): 1.0} == (
        counted(client, "requests_total")
    )


def test_a_request_without_an_answer_is_counted(fake: FakeApiServer, client: ApiServer) -> None:
    fake.stop()
    with pytest.raises(WatchError):
        read(client)
    assert {("<error>", "GET"): 1.0} == counted(client, "requests_total")


def test_sizes_and_durations_are_those_of_whole_answers(
    fake: FakeApiServer, client: ApiServer
) -> None:
    put(fake, "a")
    body = read(client)
    assert len(body) == counted(client, "response_size_bytes")["GET",].total
    assert 0 == counted(client, "request_size_bytes")["GET",].total
    assert 1 == counted(client, "request_duration_seconds")["GET",].cumulative[-1]


def test_being_asked_to_come_back_is_a_retry(fake: FakeApiServer, client: ApiServer) -> None:
    fake.fail_next(1, 429, headers={"Retry-After": "1"})
    with pytest.raises(WatchThrottled):
        read(client)
    assert {("429", "GET"): 1.0} == counted(client, "request_retries_total")


def test_an_event_that_is_asked_to_wait_counts_as_one_that_is_tried_again(
    fake: FakeApiServer, client: ApiServer
) -> None:
    fake.fail_next(1, 429, headers={"Retry-After": "1"})
    with pytest.raises(WatchThrottled):
        client.create_event("default", {})
    assert {("429", "POST"): 1.0} == counted(client, "request_retries_total")


def test_every_credential_makes_its_connections(fake: FakeApiServer, client: ApiServer) -> None:
    fake.fail_next(1, 401, "Unauthorized", "who?")
    with pytest.raises(WatchDenied):
        read(client)
    read(client)
    assert {("miss",): 2.0} == counted(client, "transport_create_calls_total")


def test_a_refused_event_is_an_error(fake: FakeApiServer, client: ApiServer) -> None:
    fake.fail_next(1, 403, "Forbidden", "no events for you")
    with pytest.raises(WatchDenied, match='verb "create" on resource "events"'):
        client.create_event("default", {})


@pytest.fixture
def hanging(fake: FakeApiServer) -> Iterator[FakeApiServer]:
    fake.frozen.set()
    yield fake
    fake.frozen.clear()


def test_close_ends_requests_that_wait_for_an_answer(
    hanging: FakeApiServer, client: ApiServer
) -> None:
    errors: list[WatchError] = []

    def ask() -> None:
        try:
            read(client)
        except WatchError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    hanging.wait_until(lambda: bool(hanging.requests))
    client.close()
    thread.join(60)
    assert len(errors) == 1


def test_requests_after_close_fail(client: ApiServer) -> None:
    client.close()
    with pytest.raises(WatchError):
        read(client)
