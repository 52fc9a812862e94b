"""The protocol, one request at a time: complete answers or an error that says which."""

from __future__ import annotations

import pytest

from pykubeproxy.errors import (
    RequestRefused,
    StreamCut,
    StreamSilent,
    WatchError,
    WatchExpired,
    WatchThrottled,
)
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.watch.listwatch import (
    StreamingRefused,
    Target,
    events,
    initial_listing,
    list_in_pages,
    open_streaming_list,
    open_watch,
)
from pykubeproxy.watch.resources import RESOURCES, selectors
from pykubeproxy.watch.wire import Bookmark, Changed, Deleted, Malformed
from tests.fakes import recordings
from tests.fakes.scripted_api import (
    ScriptedApi,
    ScriptedStream,
    added,
    bookmark,
    deleted,
    failure,
    listing,
    service,
)

TARGET = Target(Kind.SERVICE, RESOURCES[Kind.SERVICE], selectors(Kind.SERVICE, "node-0"))


def still() -> float:
    return 0.0


def test_pages_are_put_together_and_only_the_first_names_a_version() -> None:
    api = ScriptedApi(listing(service("a"), token="next"), listing(service("b")))
    result = list_in_pages(api, TARGET, "0")
    assert [obj.metadata.name for obj in result.objects] == ["a", "b"]
    first, second = (query for _, query in api.asked)
    assert {**TARGET.selectors, "limit": "500", "resourceVersion": "0"} == first
    assert {**TARGET.selectors, "limit": "500", "continue": "next"} == second


def test_an_expired_continue_token_leads_to_one_unpaged_list() -> None:
    api = ScriptedApi(
        listing(service("gone-meanwhile"), token="old"),
        WatchExpired("410"),
        listing(service("b"), version=20),
    )
    result = list_in_pages(api, TARGET, None)
    assert [obj.metadata.name for obj in result.objects] == ["b"]
    assert result.resource_version == "20"
    assert TARGET.selectors == api.asked[-1][1]


def test_malformed_items_of_all_pages_are_reported() -> None:
    api = ScriptedApi(listing(service("a", port="x"), token="n"), listing(service("b", port=0)))
    result = list_in_pages(api, TARGET, None)
    assert [bad.key.name for bad in result.malformed if bad.key] == ["a", "b"]


def test_a_cut_body_delivers_nothing() -> None:
    api = ScriptedApi(listing(service("a"))[:-10])
    with pytest.raises(WatchError, match="cut off"):
        list_in_pages(api, TARGET, None)


@pytest.mark.parametrize("code", [400, 422, 500])
def test_a_refused_streaming_list_is_told_apart(code: int) -> None:
    api = ScriptedApi(RequestRefused("no", code))
    with pytest.raises(StreamingRefused):
        open_streaming_list(api, TARGET, 400)


@pytest.mark.parametrize("code", [502, 503])
def test_an_unwell_server_is_no_refusal(code: int) -> None:
    api = ScriptedApi(RequestRefused("no", code))
    with pytest.raises(RequestRefused):
        open_streaming_list(api, TARGET, 400)


def test_a_streaming_list_is_asked_for_as_kep_3157_says() -> None:
    stream = ScriptedStream()
    api = ScriptedApi(stream)
    open_streaming_list(api, TARGET, 400)
    assert {
        **TARGET.selectors,
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": "400",
    } == api.asked[0][1]
    assert stream.read_seconds == [10.0]


def test_a_watch_resumes_with_bookmarks() -> None:
    api = ScriptedApi(ScriptedStream())
    open_watch(api, TARGET, "77", 400)
    assert api.asked[0][1]["resourceVersion"] == "77"
    assert api.asked[0][1]["allowWatchBookmarks"] == "true"


def test_initial_events_end_with_their_bookmark_and_leave_the_rest() -> None:
    lines = iter([added("a", 1), added("b", 2), bookmark(9, end=True), added("live", 10)])
    result = initial_listing(ScriptedApi(), TARGET, lines, still)
    assert [obj.metadata.name for obj in result.objects] == ["a", "b"]
    assert result.resource_version == "9"
    assert [added("live", 10)] == list(lines)


def test_changes_among_initial_events_are_folded_in() -> None:
    lines = iter(
        [added("a", 1), added("b", 2), deleted("a", 3), added("c", 4, port="x"), bookmark(9, True)]
    )
    result = initial_listing(ScriptedApi(), TARGET, lines, still)
    assert [obj.metadata.name for obj in result.objects] == ["b"]
    assert [ObjectKey("default", "c")] == [bad.key for bad in result.malformed]


@pytest.mark.parametrize(
    ("lines", "ending", "expected"),
    [
        pytest.param([added("a", 1), bookmark(2)], None, StreamingRefused, id="plain bookmark"),
        pytest.param([added("a", 1)], StreamSilent("quiet"), StreamingRefused, id="silence"),
        pytest.param([added("a", 1)], StreamCut("cut"), StreamCut, id="cut"),
        pytest.param([added("a", 1)], None, StreamCut, id="early end"),
        pytest.param([failure(500, "InternalError")], None, StreamingRefused, id="error 500"),
        pytest.param([failure(410, "Expired")], None, WatchExpired, id="error 410"),
        pytest.param(
            [failure(429, details={"retryAfterSeconds": 2})], None, WatchThrottled, id="error 429"
        ),
        pytest.param([b"what?"], None, WatchError, id="no event"),
    ],
)
def test_initial_events_that_do_not_end_well(
    lines: list[bytes], ending: WatchError | None, expected: type[WatchError]
) -> None:
    with pytest.raises(expected):
        initial_listing(ScriptedApi(), TARGET, iter(ScriptedStream(*lines, ending=ending)), still)


def test_initial_events_have_a_deadline() -> None:
    times = iter([0.0, 1.0, 61.0])
    lines = iter([added("a", 1), added("b", 2), added("c", 3)])
    with pytest.raises(StreamingRefused, match="60 s"):
        initial_listing(ScriptedApi(), TARGET, lines, lambda: next(times))


def test_live_events_are_decoded_in_order() -> None:
    lines = iter([added("a", 1), deleted("a", 2), bookmark(3), added("b", 4, port="x")])
    kinds = [type(one) for one in events(ScriptedApi(), TARGET, lines)]
    assert [Changed, Deleted, Bookmark, Malformed] == kinds


def test_an_error_event_ends_the_stream_with_its_meaning() -> None:
    raw = recordings.load("services-watch-too-old-410").raw()
    with pytest.raises(WatchExpired, match="too old resource version"):
        list(events(ScriptedApi(), TARGET, iter(raw.splitlines())))
