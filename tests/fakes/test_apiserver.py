"""The stand-in API server says what the real one said, recording by recording."""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPResponse, HTTPSConnection

import pytest

from tests.fakes import recordings
from tests.fakes.apiserver import FakeApiServer, certificate_authority
from tests.fakes.apistore import BY_KIND, RESOURCES, ApiResource, Object
from tests.fakes.recordings import Recording


@pytest.fixture
def fake() -> Iterator[FakeApiServer]:
    with FakeApiServer(second=0.02) as server:
        yield server


def ask(
    fake: FakeApiServer, method: str, target: str, token: str = "admin-token", body: bytes = b""
) -> tuple[HTTPResponse, bytes]:
    context = ssl.create_default_context()
    certificate_authority().configure_trust(context)
    connection = HTTPSConnection("127.0.0.1", fake.port, context=context, timeout=60)
    try:
        connection.request(method, target, body or None, {"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def load(fake: FakeApiServer, *names: str) -> None:
    """Put the objects of these listings into the stand-in, with their own resourceVersions."""
    for name in names:
        recording = recordings.load(name)
        kind = recording.body["kind"].removesuffix("List")
        for item in recording.body["items"]:
            version = int(item["metadata"]["resourceVersion"])
            fake.store.put({"kind": kind, **item}, version=version)


LISTS = ("services-list", "endpointslices-list", "nodes-list-one", "servicecidrs-list")
# What the real server had done before each of these exchanges.
MOVES = {
    "services-continue-expired": "compact",
    "services-list-exact-too-old-410": "compact",
    "services-watch-too-old-410": "compact",
    "services-watchlist-unsupported": "streaming off",
}
CREDENTIALS = {"services-unauthorized": "unknown", "nodes-forbidden": "proxy-token"}


def prepare(fake: FakeApiServer, name: str) -> None:
    fake.store.version = 0
    load(fake, *LISTS)
    fake.store.advance(317)
    match MOVES.get(name):
        case "compact":
            fake.store.compact()
        case "streaming off":
            fake.streaming_lists = "error"


def live(fake: FakeApiServer, recording: Recording) -> None:
    """Make the changes that the recorded watch saw, while it is open."""
    fake.wait_for_watches(1)
    past_initial = not any(ends_initial(line) for line in recording.lines)
    for line in recording.lines:
        if not past_initial:
            past_initial = ends_initial(line)
            continue
        obj = line["object"]
        if line["type"] in ("ADDED", "MODIFIED"):
            fake.store.put(obj)
        elif line["type"] == "DELETED":
            metadata = obj["metadata"]
            fake.store.delete(obj["kind"], metadata["namespace"], metadata["name"])


def ends_initial(line: Object) -> bool:
    annotations = line["object"]["metadata"].get("annotations", {})
    return line["type"] == "BOOKMARK" and "k8s.io/initial-events-end" in annotations


def shape(value: object) -> object:
    """Keys and types of an answer; of a list the first element stands for all."""
    if isinstance(value, dict):
        return {key: shape(child) for key, child in value.items() if key != "managedFields"}
    if isinstance(value, list):
        return [shape(child) for child in value[:1]]
    return type(value).__name__


def without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", text)


@pytest.mark.parametrize("name", [n for n in recordings.NAMES if not recordings.load(n).is_watch])
def test_answers_have_the_recorded_status_headers_and_shape(fake: FakeApiServer, name: str) -> None:
    recording = recordings.load(name)
    prepare(fake, name)
    body = json.dumps(recording.body).encode() if recording.method == "POST" else b""
    token = CREDENTIALS.get(name, "admin-token")

    response, raw = ask(fake, recording.method, recording.target, token, body)

    assert recording.status == response.status
    for header in ("Content-Type", "Cache-Control", "Retry-After"):
        assert recording.headers.get(header) == response.headers.get(header), header
    for header in ("Content-Length", "Transfer-Encoding"):
        # The stand-in's version document is shorter, and stays below the chunking threshold too.
        assert (header in recording.headers) == (header in response.headers), header
    if isinstance(recording.body, str):
        assert recording.body == raw.decode()
        return
    answer = json.loads(raw)
    if name == "version":
        assert recording.body["gitVersion"] == answer["gitVersion"]
        return
    if recording.body.get("kind") == "Status":
        assert shape(recording.body) == shape(answer)
        assert recording.body.get("reason") == answer.get("reason")
        said, expected = answer["message"], recording.body["message"]
        if name == "services-bad-continue":  # ends in the words of Go's JSON parser
            said, expected = said[:50], expected[:50]
        assert without_numbers(expected) == without_numbers(said)
        return
    if "items" in recording.body:
        names = [item["metadata"]["name"] for item in recording.body["items"]]
        assert names == [item["metadata"]["name"] for item in answer["items"]]
        assert recording.body["items"] == answer["items"]
        assert recording.body["metadata"].keys() == answer["metadata"].keys()
        remaining = recording.body["metadata"].get("remainingItemCount")
        assert remaining == answer["metadata"].get("remainingItemCount")
        assert recording.body["kind"] == answer["kind"]
        return
    assert recording.body.keys() == answer.keys()


@pytest.mark.parametrize("name", [n for n in recordings.NAMES if recordings.load(n).is_watch])
def test_watches_say_the_recorded_lines(fake: FakeApiServer, name: str) -> None:
    recording = recordings.load(name)
    if name == "services-watch-too-old":  # a replay of history, so history has to be made first
        fake.store.version = 0
        for line in recording.lines[:-1]:
            obj = line["object"]
            version = int(obj["metadata"]["resourceVersion"])
            fake.store.advance(version - 1)
            if line["type"] == "DELETED":
                fake.store.delete(
                    obj["kind"], obj["metadata"]["namespace"], obj["metadata"]["name"]
                )
            else:
                fake.store.put(obj, version=version)
        changes = None
    else:
        prepare(fake, name)
        if name == "endpointslices-watch":
            fake.store.advance(328)
        changes = threading.Thread(target=live, args=(fake, recording), daemon=True)
    target = recording.target
    if name == "services-watchlist":  # the recording's cluster had one more object than the list
        target = target.replace("timeoutSeconds=4", "timeoutSeconds=20")
    if changes is not None and recording.lines and recording.lines[0]["type"] != "ERROR":
        changes.start()

    response, raw = ask(fake, "GET", target)

    assert recording.status == response.status
    assert response.headers["Transfer-Encoding"] == "chunked"
    lines = [json.loads(line) for line in raw.splitlines()]
    assert [one["type"] for one in recording.lines] == [one["type"] for one in lines]
    for expected, got in zip(recording.lines, lines, strict=True):
        assert expected["object"].keys() == got["object"].keys()
        if expected["type"] in ("BOOKMARK", "ERROR"):
            assert shape(expected) == shape(got)
        else:
            assert expected["object"]["metadata"]["name"] == got["object"]["metadata"]["name"]
    errors = [one["object"] for one in lines if one["type"] == "ERROR"]
    for expected, error in zip(recording.lines, errors, strict=False):
        assert expected["object"]["code"] == error["code"]
        assert without_numbers(expected["object"]["message"]) == without_numbers(error["message"])


def test_an_object_that_stops_matching_is_sent_as_deleted(fake: FakeApiServer) -> None:
    service: Object = {
        "kind": "Service",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {},
    }
    since = fake.store.put(service)
    service["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    fake.store.put(service)
    query = "watch=1&labelSelector=%21service.kubernetes.io%2Fservice-proxy-name&timeoutSeconds=1"

    _, raw = ask(fake, "GET", f"/api/v1/services?{query}&resourceVersion={since}")

    assert [json.loads(line)["type"] for line in raw.splitlines()] == ["DELETED"]


def test_a_change_amid_the_initial_events_follows_them(
    fake: FakeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bookmark that ends them does not claim that it was told."""
    fake.store.put({"kind": "Service", "metadata": {"name": "first"}, "spec": {}})
    state = fake.store.state

    def changed_right_after(resource: ApiResource) -> dict[tuple[str, str], Object]:
        objects = state(resource)
        fake.store.put({"kind": "Service", "metadata": {"name": "second"}, "spec": {}})
        return objects

    monkeypatch.setattr(fake.store, "state", changed_right_after)
    query = "watch=1&sendInitialEvents=true&allowWatchBookmarks=true&timeoutSeconds=20"

    _, raw = ask(fake, "GET", f"/api/v1/services?{query}")

    lines = [json.loads(line) for line in raw.splitlines()]
    told = [(line["type"], line["object"]["metadata"].get("name")) for line in lines]
    assert [("ADDED", "first"), ("BOOKMARK", None), ("ADDED", "second")] == told[:3]


def test_pages_are_one_snapshot_although_objects_change_in_between(fake: FakeApiServer) -> None:
    load(fake, "services-list")
    _, first = ask(fake, "GET", "/api/v1/services?limit=4")
    fake.store.delete("Service", "kube-system", "dns")
    token = json.loads(first)["metadata"]["continue"]
    _, second = ask(fake, "GET", f"/api/v1/services?limit=40&continue={token}")

    names = [
        i["metadata"]["name"] for i in json.loads(first)["items"] + json.loads(second)["items"]
    ]

    assert [i["metadata"]["name"] for i in recordings.load("services-list").body["items"]] == names
    assert (
        json.loads(first)["metadata"]["resourceVersion"]
        == (json.loads(second)["metadata"]["resourceVersion"])
    )


def test_every_resource_is_found_by_kind_and_path() -> None:
    assert {resource.kind for resource in RESOURCES} == set(BY_KIND)
    assert BY_KIND["EndpointSlice"].path == "/apis/discovery.k8s.io/v1/endpointslices"
