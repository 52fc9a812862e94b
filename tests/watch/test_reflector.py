"""The reflector keeps the copy complete through every ending of a request."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from structlog.testing import capture_logs

from pykubeproxy.errors import (
    RequestRefused,
    StreamCut,
    StreamSilent,
    VersionAhead,
    WatchDenied,
    WatchError,
    WatchExpired,
    WatchThrottled,
)
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.watch.listwatch import Target
from pykubeproxy.watch.reflector import Reflector
from pykubeproxy.watch.resources import RESOURCES, selectors
from pykubeproxy.watch.source import Gone, Put, Replaced
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
from tests.fakes.sink import RecordingSink

END = bookmark(10, end=True)


class Largest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Clock:
    """Every look at it is two seconds later, so that no stream is suspiciously short."""

    def __init__(self, tick: float = 2.0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def reflector(
    *answers: bytes | ScriptedStream | WatchError,
    kind: Kind = Kind.SERVICE,
    clock: Callable[[], float] | None = None,
) -> tuple[Reflector, ScriptedApi, RecordingSink]:
    api, sink = ScriptedApi(*answers), RecordingSink()
    target = Target(kind, RESOURCES[kind], selectors(kind, "node-0"))
    made = Reflector(
        api, target, sink, wait=lambda _: False, clock=clock or Clock(), rng=Largest(1)
    )
    return made, api, sink


def run(made: Reflector, api: ScriptedApi) -> list[float]:
    """Step until the script is used up; return the pauses asked for."""
    pauses = []
    while api.answers:
        pauses.append(made.step())
    return pauses


def versions(api: ScriptedApi) -> list[str | None]:
    return [query.get("resourceVersion") for _, query in api.asked]


# --- listing and following ---------------------------------------------------------------------


def test_a_streaming_list_is_one_replaced_and_goes_on_live() -> None:
    stream = ScriptedStream(added("a", 1), added("b", 2), END, deleted("a", 11), added("c", 12))
    made, api, sink = reflector(stream)
    assert run(made, api) == [0.0]
    assert [Replaced, Gone, Put] == [type(event) for event in sink.events]
    assert {"b", "c"} == sink.names()
    assert stream.closed
    assert stream.read_seconds == [10.0, 150.0]
    assert (
        made.state.resource_version,
        made.state.synced,
        made.state.lists,
        made.state.relists,
    ) == ("12", True, 1, 0)


def test_an_empty_listing_is_delivered_too() -> None:
    made, api, sink = reflector(ScriptedStream(END))
    run(made, api)
    assert [Replaced(Kind.SERVICE, ())] == sink.events


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(RequestRefused("invalid", 422), id="422"),
        pytest.param(RequestRefused("bad", 400), id="400"),
        pytest.param(ScriptedStream(failure(500, "InternalError")), id="error event"),
        pytest.param(ScriptedStream(added("a", 1), bookmark(3)), id="ignored"),
        pytest.param(ScriptedStream(ending=StreamSilent("quiet")), id="ignored, no objects"),
    ],
)
def test_a_server_without_streaming_lists_is_listed_in_pages_from_then_on(
    refusal: ScriptedStream | WatchError,
) -> None:
    made, api, sink = reflector(
        refusal,
        listing(service("a"), version=10),
        ScriptedStream(added("b", 11), ending=WatchExpired("410")),
        listing(service("c"), version=30),
        ScriptedStream(bookmark(31)),
    )
    run(made, api)
    assert [verb for verb, _ in api.asked] == ["watch", "list", "watch", "list", "watch"]
    # The first page list may come from the server's cache, a later one must be the newest.
    assert versions(api) == [None, "0", "10", None, "30"]
    assert {"c"} == sink.names()
    assert made.state.relists == 1


def test_streaming_is_tried_again_when_the_pages_failed_as_well() -> None:
    made, api, _ = reflector(
        ScriptedStream(ending=StreamSilent("half open")),
        WatchError("network down"),
        ScriptedStream(END),
    )
    run(made, api)
    assert [verb for verb, _ in api.asked] == ["watch", "list", "watch"]


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(None, id="timeout of the server"),
        pytest.param(StreamCut("reset"), id="cut"),
        pytest.param(StreamSilent("half open"), id="silent"),
        pytest.param(WatchError("not an event"), id="garbage"),
        pytest.param(RequestRefused("error event", 500), id="error 500"),
        pytest.param(WatchThrottled("busy", 1.0), id="throttled"),
    ],
)
def test_a_stream_that_ended_is_resumed_without_a_list(ending: WatchError | None) -> None:
    made, api, sink = reflector(
        ScriptedStream(added("a", 1), END, added("b", 11), ending=ending),
        ScriptedStream(added("c", 12)),
    )
    run(made, api)
    assert versions(api) == [None, "11"]
    assert sink.listings() == 1
    assert {"a", "b", "c"} == sink.names()


def test_bookmarks_move_the_place_to_resume_at() -> None:
    made, api, _ = reflector(ScriptedStream(END, bookmark(500)), ScriptedStream())
    run(made, api)
    assert versions(api)[1] == "500"


@pytest.mark.parametrize(
    "expired",
    [
        pytest.param(WatchExpired("410"), id="http status"),
        pytest.param(ScriptedStream(failure(410, "Expired")), id="error event"),
        pytest.param(RequestRefused("what version?", 400), id="version not understood"),
    ],
)
def test_expired_history_leads_to_a_fresh_list_and_vanished_objects_go(
    expired: ScriptedStream | WatchError,
) -> None:
    made, api, sink = reflector(
        ScriptedStream(added("stays", 1), added("vanishes", 2), END),
        expired,
        ScriptedStream(added("stays", 1), added("new", 40), bookmark(50, end=True)),
    )
    run(made, api)
    assert {"stays", "new"} == sink.names()
    assert sink.listings() == 2


def test_a_first_expiry_is_followed_at_once_and_later_ones_slower() -> None:
    made, api, _ = reflector(ScriptedStream(END), *[WatchExpired("410")] * 3)
    pauses = run(made, api)
    assert pauses[1] == 0.0
    assert 0.0 < pauses[2] < pauses[3]


def test_a_watch_that_says_nothing_twice_is_replaced_by_a_list() -> None:
    """A restored server is silent about versions it has not reached: services-watch-future."""
    made, api, _ = reflector(
        ScriptedStream(END, bookmark(99)),
        ScriptedStream(),
        ScriptedStream(ending=StreamSilent("quiet")),
        ScriptedStream(bookmark(7, end=True)),
    )
    run(made, api)
    assert versions(api) == [None, "99", "99", None]
    assert made.state.resource_version == "7"


def test_a_version_ahead_of_the_server_is_given_up_after_a_second_answer() -> None:
    made, api, _ = reflector(
        ScriptedStream(END),
        VersionAhead("504", 1.0),
        VersionAhead("504", 1.0),
        ScriptedStream(bookmark(3, end=True)),
    )
    pauses = run(made, api)
    assert versions(api) == [None, "10", "10", None]
    assert all(pause >= 1.0 for pause in pauses[1:3])


# --- pauses and state --------------------------------------------------------------------------


def test_pauses_grow_to_thirty_seconds_and_start_small_after_a_success() -> None:
    made, api, _ = reflector(
        *[WatchError("refused")] * 8,
        ScriptedStream(END, ending=StreamCut("cut")),
        WatchError("refused"),
    )
    pauses = run(made, api)
    assert pytest.approx(pauses) == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 0.8, 1.6]


@pytest.mark.parametrize("seconds", [2.0, 45.0])
def test_retry_after_is_obeyed(seconds: float) -> None:
    made, api, _ = reflector(WatchThrottled("busy", seconds))
    assert [seconds] == run(made, api)


def test_a_stream_that_ends_at_once_counts_as_a_failure() -> None:
    made, api, _ = reflector(
        ScriptedStream(END), ScriptedStream(), ScriptedStream(), clock=Clock(tick=0.001)
    )
    assert all(pause > 0 for pause in run(made, api))


def test_state_tells_failures_and_their_end() -> None:
    made, api, _ = reflector(WatchError("down"), WatchError("still down"), ScriptedStream(END))
    made.step()
    made.step()
    assert (
        made.state.synced,
        made.state.consecutive_failures,
        made.state.last_error,
    ) == (False, 2, "still down")
    assert made.state.last_contact_seconds is None
    run(made, api)
    assert (
        made.state.synced,
        made.state.consecutive_failures,
        made.state.last_error,
    ) == (True, 0, "")
    assert made.state.last_contact_seconds is not None


def test_trouble_is_logged_once_per_change() -> None:
    made, api, _ = reflector(
        *[WatchError("refused")] * 4,
        *[WatchDenied("grant list")] * 3,
        ScriptedStream(END, ending=StreamCut("cut")),
        ScriptedStream(bookmark(11)),
    )
    with capture_logs() as logs:
        run(made, api)
    told = [entry["event"] for entry in logs if entry["log_level"] != "debug"]
    assert told == ["contact lost", "access denied", "contact regained", "listed"]


def test_a_missing_servicecidr_api_holds_nothing_up() -> None:
    missing = [RequestRefused("404", 404)] * 2
    made, api, sink = reflector(*missing, *missing, kind=Kind.SERVICE_CIDR)
    pauses = run(made, api)
    assert [Replaced(Kind.SERVICE_CIDR, ())] == sink.events
    assert made.state.synced
    assert all(pause > 0 for pause in pauses)


def test_a_missing_services_api_is_waited_for() -> None:
    made, api, sink = reflector(*[RequestRefused("404", 404)] * 2)
    run(made, api)
    assert sink.events == []


# --- malformed objects -------------------------------------------------------------------------


def test_a_malformed_object_of_a_listing_keeps_its_last_value() -> None:
    made, api, sink = reflector(
        ScriptedStream(added("a", 1), added("b", 2), END),
        WatchExpired("410"),
        ScriptedStream(added("a", 20, port="x"), bookmark(30, end=True)),
    )
    run(made, api)
    assert {"a"} == sink.names()
    last = sink.events[-1]
    assert isinstance(last, Replaced)
    assert frozenset({ObjectKey("default", "a")}) == last.unreadable


def test_a_malformed_object_of_a_watch_is_skipped_and_told_once() -> None:
    made, api, sink = reflector(
        ScriptedStream(END, added("a", 11, port="x"), added("b", 12), added("a", 13, port="x")),
        ScriptedStream(added("a", 14), added("a", 15, port="x")),
    )
    with capture_logs() as logs:
        run(made, api)
    assert {"a", "b"} == sink.names()
    told = [entry for entry in logs if entry["event"].startswith("object unreadable")]
    assert [entry["object"] for entry in told] == ["default/a", "default/a"]  # again after a fix
    assert "$.spec.ports[0].port" in told[0]["reason"]
