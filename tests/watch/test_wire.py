"""What can be read is read; what cannot is named and skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pykubeproxy.model.objects import Kind, ObjectKey, Service
from pykubeproxy.watch import wire
from pykubeproxy.watch.wire import (
    BadWire,
    Bookmark,
    Changed,
    Deleted,
    Failure,
    Malformed,
    decode_line,
    decode_list,
    decode_status,
)
from tests.fakes import recordings
from tests.fakes.scripted_api import added, bookmark, deleted, failure, line, listing, service

KINDS = {
    "services-list": Kind.SERVICE,
    "services-rv0": Kind.SERVICE,
    "endpointslices-list": Kind.ENDPOINT_SLICE,
    "nodes-list-one": Kind.NODE,
    "servicecidrs-list": Kind.SERVICE_CIDR,
}


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_recorded_lists_are_read_whole(name: str, kind: Kind) -> None:
    recording = recordings.load(name)
    result = decode_list(kind, [recording.raw()])
    expected = [item["metadata"]["name"] for item in recording.body["items"]]
    assert expected == [obj.metadata.name for obj in result.objects]
    assert result.malformed == ()
    assert recording.body["metadata"]["resourceVersion"] == result.resource_version


def test_a_page_says_where_the_next_one_begins() -> None:
    recording = recordings.load("services-page-1")
    assert (
        recording.body["metadata"]["continue"]
        == decode_list(Kind.SERVICE, [recording.raw()]).continue_token
    )


def test_null_items_are_an_empty_list() -> None:
    body = b'{"kind":"ServiceList","metadata":{"resourceVersion":"5"},"items":null}'
    assert decode_list(Kind.SERVICE, [body]).objects == ()


def with_spec(**changes: Any) -> dict[str, Any]:
    obj = service("bad")
    obj["spec"] |= changes
    return obj


NAMED = ObjectKey("default", "bad")
MALFORMED_SERVICES = [
    pytest.param(service("bad", port="80"), NAMED, "`$.spec.ports[0].port`", id="port as text"),
    pytest.param(service("bad", port=0), NAMED, "port 0 is outside 1-65535", id="port 0"),
    pytest.param(service("bad", port=70000), NAMED, "port 70000 is outside", id="port too large"),
    pytest.param(
        service("bad", port=2**70), NAMED, "$.spec.ports[0].port", id="port beyond 64 bit"
    ),
    pytest.param(
        with_spec(ports=[{"port": 1, "protocol": "ICMP"}]), NAMED, "'ICMP'", id="unknown protocol"
    ),
    pytest.param(
        with_spec(ports=[{"port": 1, "nodePort": 99999}]), NAMED, "nodePort", id="node port"
    ),
    pytest.param(with_spec(healthCheckNodePort=-1), NAMED, "healthCheck", id="health check port"),
    pytest.param(
        with_spec(sessionAffinityConfig={"clientIP": {"timeoutSeconds": 0}}),
        NAMED,
        "timeout 0",
        id="affinity timeout",
    ),
    pytest.param({"metadata": {"name": "bad"}}, None, "namespace", id="no namespace"),
    pytest.param({"metadata": {"namespace": "default"}}, None, "name", id="no name"),
    pytest.param({"metadata": {"name": "", "namespace": "x"}}, None, "name", id="empty name"),
    pytest.param(
        with_spec(ports=[{"port": 1, "name": 'x" -j ACCEPT'}]),
        NAMED,
        "$.spec.ports[0].name",
        id="a name that would end a quotation in a rule",
    ),
    pytest.param(
        {"metadata": {"name": "a\n-A INPUT", "namespace": "x"}},
        ObjectKey("x", "a\n-A INPUT"),
        "$.metadata.name",
        id="a name that would end a line of rules",
    ),
    pytest.param({"spec": {}}, None, "metadata", id="no metadata"),
    pytest.param("text", None, "Expected `object`", id="not an object"),
    pytest.param(with_spec(ports={}), NAMED, "$.spec.ports", id="ports as object"),
]


@pytest.mark.parametrize(("item", "key", "reason"), MALFORMED_SERVICES)
def test_a_malformed_item_is_named_and_the_others_are_read(
    item: Any, key: ObjectKey | None, reason: str
) -> None:
    result = decode_list(Kind.SERVICE, [listing(service("good"), item, service("also"))])
    assert [obj.metadata.name for obj in result.objects] == ["good", "also"]
    assert [key] == [bad.key for bad in result.malformed]
    assert reason in result.malformed[0].reason


@pytest.mark.parametrize(("item", "key", "reason"), MALFORMED_SERVICES)
def test_a_malformed_object_in_a_watch_is_named(
    item: Any, key: ObjectKey | None, reason: str
) -> None:
    result = decode_line(Kind.SERVICE, line("MODIFIED", item))
    assert isinstance(result, Malformed)
    assert key == result.key
    assert reason in result.reason


@pytest.mark.parametrize(
    ("ports", "bad"),
    [
        pytest.param(None, False, id="null ports"),
        pytest.param([{}], False, id="no number means all ports"),
        pytest.param([{"port": 0}], False, id="0 is skipped later"),
        pytest.param([{"port": 65536}], True, id="too large"),
        pytest.param([{"port": -1}], True, id="negative"),
        pytest.param([{"port": 1, "protocol": "TPC"}], True, id="unknown protocol"),
        pytest.param([{"port": 1, "protocol": "SCTP"}], False, id="sctp"),
    ],
)
def test_slice_ports_are_checked(ports: Any, bad: bool) -> None:
    item = {"metadata": {"name": "s", "namespace": "n"}, "endpoints": None, "ports": ports}
    body = {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": [item]}
    assert bad == bool(decode_list(Kind.ENDPOINT_SLICE, [json.dumps(body).encode()]).malformed)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(listing(service("a"))[:-20], id="cut off"),
        pytest.param(b"<html>sign in</html>", id="a web page"),
        pytest.param(b'{"kind":"Status","metadata":{},"code":200}', id="a Status"),
        pytest.param(b'{"kind":"PodList","metadata":{},"items":[]}', id="another kind"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b'{"kind":"ServiceList","metadata":{},"items":3}', id="items no array"),
        pytest.param(b'{"kind":"ServiceList\xff","metadata":{},"items":[]}', id="not UTF-8"),
    ],
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(BadWire):
        decode_list(Kind.SERVICE, [body])


# --- lists that come in pieces -----------------------------------------------------------------


def compact(items: list[Any], **metadata: str) -> bytes:
    """A list as an API server writes it: the items last, no spaces, a newline."""
    head = {"kind": "ServiceList", "apiVersion": "v1"}
    body = {**head, "metadata": {"resourceVersion": "9", **metadata}, "items": items}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


TRICKY = with_spec(externalName='},{"metadata":{') | {
    "status": {"conditions": [{"x": 1}, {"metadata": {"name": "within"}}]}
}


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize(
    "items",
    [
        pytest.param([], id="none"),
        pytest.param([service(f"s-{n}") for n in range(40)], id="good ones"),
        pytest.param([service(f"s-{n}", port=n % 3) for n in range(40)], id="malformed among them"),
        pytest.param([service("a"), TRICKY] * 20, id="what looks like the end of an item"),
        pytest.param([service("a"), "text"] * 20, id="what is no item"),
    ],
)
def test_a_list_reads_the_same_in_pieces(
    monkeypatch: pytest.MonkeyPatch, items: list[Any], size: int
) -> None:
    monkeypatch.setattr(wire, "PIECE_BYTES", 300)
    body = compact(items, **{"continue": "next"})
    assert decode_list(Kind.SERVICE, [body]) == decode_list(Kind.SERVICE, pieces(body, size))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(json.loads(compact([service("a")] * 20))).encode(), id="spaces"),
        pytest.param(
            b'{"items":' + json.dumps([service("a")] * 20, separators=(",", ":")).encode()
            + b',"kind":"ServiceList","metadata":{"resourceVersion":"9"}}',
            id="items first",
        ),
    ],
)  # fmt: skip
def test_a_list_in_another_order_is_read_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(wire, "PIECE_BYTES", 300)
    result = decode_list(Kind.SERVICE, pieces(body, 100))
    assert 20 == len(result.objects)
    assert "9" == result.resource_version


def test_a_long_list_is_never_held_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []

    def noting(kind: Kind, document: bytes) -> Any:
        decoded.append(len(document))
        return decode_page(kind, document)

    decode_page = wire._decode_page
    monkeypatch.setattr(wire, "_decode_page", noting)
    body = compact([service(f"service-{n}") for n in range(20_000)])
    result = decode_list(Kind.SERVICE, pieces(body, 65536))
    assert 20_000 == len(result.objects)
    assert max(decoded) < wire.PIECE_BYTES + 65536 + 1000 < len(body) / 5


@pytest.mark.parametrize("end", [1, 3, 50, 5000])
def test_a_list_that_is_cut_off_after_some_pieces_is_refused(
    monkeypatch: pytest.MonkeyPatch, end: int
) -> None:
    monkeypatch.setattr(wire, "PIECE_BYTES", 300)
    body = compact([service(f"s-{n}") for n in range(60)])[: -end - 1]
    with pytest.raises(BadWire, match="cut off"):
        decode_list(Kind.SERVICE, pieces(body, 100))


def test_a_list_of_another_kind_is_refused_in_its_first_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "PIECE_BYTES", 300)
    body = pieces(compact([service("a")] * 100), 400)
    with pytest.raises(BadWire, match="expected a NodeList"):
        decode_list(Kind.NODE, body)
    assert next(body, None) is not None


def test_lines_of_every_type_are_told_apart() -> None:
    first = decode_line(Kind.SERVICE, added("a", 7))
    assert isinstance(first, Changed)
    assert isinstance(first.object, Service)
    assert first.resource_version == "7"
    assert Deleted(ObjectKey("default", "a"), "8") == decode_line(Kind.SERVICE, deleted("a", 8))
    assert Bookmark("9", False) == decode_line(Kind.SERVICE, bookmark(9))
    assert Bookmark("9", True) == decode_line(Kind.SERVICE, bookmark(9, end=True))
    error = decode_line(Kind.SERVICE, failure(410, "Expired"))
    assert isinstance(error, Failure)
    assert error.status.code == 410


def test_a_deletion_is_read_although_its_object_is_malformed() -> None:
    raw = line("DELETED", service("a", 3, port="broken"))
    assert Deleted(ObjectKey("default", "a"), "3") == decode_line(Kind.SERVICE, raw)


def test_a_malformed_object_still_advances_the_resource_version() -> None:
    result = decode_line(Kind.SERVICE, added("a", 33, port="x"))
    assert isinstance(result, Malformed)
    assert result.resource_version == "33"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(added("a", 1)[:-3], id="cut off"),
        pytest.param(b'{"type":"NEWS","object":{}}', id="unknown type"),
        pytest.param(b'{"object":{}}', id="no type"),
        pytest.param(
            b'{"type":"BOOKMARK","object":{"metadata":{}}}', id="bookmark without version"
        ),
        pytest.param(b"404 page not found", id="text"),
    ],
)
def test_a_line_that_is_no_event_ends_the_trust(raw: bytes) -> None:
    with pytest.raises(BadWire):
        decode_line(Kind.SERVICE, raw)


def test_without_version_only_the_version_is_missing() -> None:
    raw = added("a", 7)
    event = decode_line(Kind.SERVICE, raw)
    assert isinstance(event, Changed)
    assert Changed(event.object, "") == decode_line(Kind.SERVICE, raw, with_version=False)


@pytest.mark.parametrize("name", [n for n in recordings.NAMES if recordings.load(n).is_watch])
def test_recorded_watches_are_read(name: str) -> None:
    kind = Kind.ENDPOINT_SLICE if "endpointslices" in name else Kind.SERVICE
    recording = recordings.load(name)
    for raw in recording.raw().splitlines():
        assert not isinstance(decode_line(kind, raw), Malformed)


def test_a_status_tells_code_reason_and_pause() -> None:
    status = decode_status(recordings.load("services-list-future").raw())
    assert status is not None
    assert (status.code, status.reason, status.retry_after_seconds) == (504, "Timeout", 1)


@pytest.mark.parametrize("body", [b"404 page not found\n", b"{}", b"\xff", b"[1]"])
def test_other_error_bodies_are_no_status(body: bytes) -> None:
    assert decode_status(body) is None
