"""The reflector keeps the copy complete through every ending of a request."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from pykubeproxy.errors import WatchDenied, WatchError, WatchExpired, WatchThrottled
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.failures import RequestRefused, StreamCut, StreamSilent, VersionAhead
from pykubeproxy.watch.listwatch import Target
from pykubeproxy.watch.reflector import KubernetesSource, Reflector
from pykubeproxy.watch.resources import RESOURCES, selectors
from pykubeproxy.watch.source import Gone, Put, Replaced
from tests.fakes import recordings
from tests.fakes.apiserver import Answer, FakeApiServer, Request
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

pytestmark = pytest.mark.timeout(60)

END = bookmark(10, end=True)


class Largest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Hasty(Random):
    """Draws next to nothing, so that no test waits out a backoff."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


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
    assert [0.0] == run(made, api)
    assert [Replaced, Gone, Put] == [type(event) for event in sink.events]
    assert {"b", "c"} == sink.names()
    assert stream.closed
    assert [10.0, 150.0] == stream.read_seconds
    assert ("12", True, 1, 0) == (
        made.state.resource_version,
        made.state.synced,
        made.state.lists,
        made.state.relists,
    )


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
    assert ["watch", "list", "watch", "list", "watch"] == [verb for verb, _ in api.asked]
    # The first page list may come from the server's cache, a later one must be the newest.
    assert [None, "0", "10", None, "30"] == versions(api)
    assert {"c"} == sink.names()
    assert 1 == made.state.relists


def test_streaming_is_tried_again_when_the_pages_failed_as_well() -> None:
    made, api, _ = reflector(
        ScriptedStream(ending=StreamSilent("half open")),
        WatchError("network down"),
        ScriptedStream(END),
    )
    run(made, api)
    assert ["watch", "list", "watch"] == [verb for verb, _ in api.asked]


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
    assert [None, "11"] == versions(api)
    assert 1 == sink.listings()
    assert {"a", "b", "c"} == sink.names()


def test_bookmarks_move_the_place_to_resume_at() -> None:
    made, api, _ = reflector(ScriptedStream(END, bookmark(500)), ScriptedStream())
    run(made, api)
    assert "500" == versions(api)[1]


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
    assert 2 == sink.listings()


def test_a_first_expiry_is_followed_at_once_and_later_ones_slower() -> None:
    made, api, _ = reflector(ScriptedStream(END), *[WatchExpired("410")] * 3)
    pauses = run(made, api)
    assert 0.0 == pauses[1]
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
    assert [None, "99", "99", None] == versions(api)
    assert "7" == made.state.resource_version


def test_a_version_ahead_of_the_server_is_given_up_after_a_second_answer() -> None:
    made, api, _ = reflector(
        ScriptedStream(END),
        VersionAhead("504", 1.0),
        VersionAhead("504", 1.0),
        ScriptedStream(bookmark(3, end=True)),
    )
    pauses = run(made, api)
    assert [None, "10", "10", None] == versions(api)
    assert all(pause >= 1.0 for pause in pauses[1:3])


# --- pauses and state --------------------------------------------------------------------------


def test_pauses_grow_to_thirty_seconds_and_start_small_after_a_success() -> None:
    made, api, _ = reflector(
        *[WatchError("refused")] * 8,
        ScriptedStream(END, ending=StreamCut("cut")),
        WatchError("refused"),
    )
    pauses = run(made, api)
    assert [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 0.8, 1.6] == pytest.approx(pauses)


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
    assert (False, 2, "still down") == (
        made.state.synced,
        made.state.consecutive_failures,
        made.state.last_error,
    )
    assert made.state.last_contact_seconds is None
    run(made, api)
    assert (True, 0, "") == (
        made.state.synced,
        made.state.consecutive_failures,
        made.state.last_error,
    )
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
    assert ["contact lost", "access denied", "contact regained", "listed"] == told


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
    assert [] == sink.events


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
    assert ["default/a", "default/a"] == [entry["object"] for entry in told]  # again after a fix
    assert "$.spec.ports[0].port" in told[0]["reason"]


# --- against a server --------------------------------------------------------------------------


def put(fake: FakeApiServer, name: str, **metadata: Any) -> None:
    obj = {"kind": "Service", **service(name)}
    obj["metadata"] |= metadata
    fake.store.put(obj)


@pytest.fixture
def running(
    fake: FakeApiServer, client: ApiServer
) -> Iterator[Callable[..., tuple[KubernetesSource, RecordingSink]]]:
    sources = []

    def start(*kinds: Kind) -> tuple[KubernetesSource, RecordingSink]:
        sink = RecordingSink()
        source = KubernetesSource(client, "node-0", kinds or [Kind.SERVICE], Hasty())
        sources.append(source)
        source.start(sink)
        return source, sink

    yield start
    for source in sources:
        source.stop()


Start = Callable[..., tuple[KubernetesSource, RecordingSink]]


def test_all_kinds_are_listed_and_followed(fake: FakeApiServer, running: Start) -> None:
    put(fake, "a")
    fake.store.put({"kind": "Node", "metadata": {"name": "node-0"}})
    fake.store.put({"kind": "Node", "metadata": {"name": "node-1"}})
    source, sink = running(*Kind)
    sink.wait_until(lambda: all(sink.listings(kind) for kind in Kind))
    assert {"node-0"} == sink.names(Kind.NODE)
    put(fake, "b")
    sink.wait_until(lambda: {"a", "b"} == sink.names())
    assert "Service" in {str(state.kind) for state in source.states() if state.synced}


def test_a_service_that_gets_another_proxy_goes(fake: FakeApiServer, running: Start) -> None:
    put(fake, "a")
    _, sink = running()
    sink.wait_until(lambda: {"a"} == sink.names())
    put(fake, "a", labels={"service.kubernetes.io/service-proxy-name": "other"})
    sink.wait_until(lambda: not sink.names())


@pytest.mark.parametrize("mode", ["error", "invalid"])
def test_old_servers_are_listed_in_pages(fake: FakeApiServer, running: Start, mode: str) -> None:
    fake.streaming_lists = mode
    for n in range(1200):
        put(fake, f"s{n}")
    _, sink = running()
    sink.wait_until(lambda: 1200 == len(sink.names()))
    fake.wait_for_watches(1)
    fake.store.compact()
    put(fake, "late")
    sink.wait_until(lambda: "late" in sink.names())
    assert 1 == sink.listings()


def test_pages_of_a_relist_are_read_to_the_last(fake: FakeApiServer, running: Start) -> None:
    fake.streaming_lists = "error"
    for n in range(1200):
        put(fake, f"s{n}")
    _, sink = running()
    sink.wait_until(lambda: 1 == sink.listings())
    fake.wait_for_watches(1)
    fake.fail_next(1, 410, "Expired", "too old", matches=lambda r: r.is_watch)
    fake.store.delete("Service", "default", "s7")
    fake.end_watches()
    sink.wait_until(lambda: 2 == sink.listings())
    assert 1199 == len(sink.names())
    assert 2 <= fake.count(lambda r: "continue" in r.query)


def test_a_cut_in_mid_line_loses_and_repeats_nothing(fake: FakeApiServer, running: Start) -> None:
    put(fake, "a")
    _, sink = running()
    fake.wait_for_watches(1)
    fake.cut(in_mid_line=True)
    put(fake, "b")
    fake.store.delete("Service", "default", "a")
    sink.wait_until(lambda: {"b"} == sink.names())
    assert [Replaced, Put, Gone] == [type(event) for event in sink.events]


def test_objects_that_vanish_during_an_outage_go_after_the_relist(
    fake: FakeApiServer, running: Start
) -> None:
    put(fake, "a")
    put(fake, "b")
    _, sink = running()
    fake.wait_for_watches(1)
    fake.stop()
    fake.store.delete("Service", "default", "a")
    fake.store.compact()
    fake.start()
    sink.wait_until(lambda: {"b"} == sink.names())
    assert 2 == sink.listings()


def test_a_restored_server_with_older_versions_is_listed_again(
    fake: FakeApiServer, running: Start
) -> None:
    fake.store.advance(5000)
    put(fake, "after-the-backup")
    _, sink = running()
    fake.wait_for_watches(1)
    fake.second = 0.0005  # the silent watches end after a fraction of a second
    fake.stop()
    fake.store.replace_all([{"kind": "Service", **service("before")}], version=20)
    fake.start()
    sink.wait_until(lambda: {"before"} == sink.names(), 30)


@pytest.mark.parametrize(
    ("code", "reason", "more"),
    [
        pytest.param(429, "TooManyRequests", {"headers": {"Retry-After": "0"}}, id="429"),
        pytest.param(500, "InternalError", {}, id="500"),
        pytest.param(503, "ServiceUnavailable", {}, id="503"),
        pytest.param(401, "Unauthorized", {}, id="401"),
        pytest.param(403, "Forbidden", {}, id="403"),
    ],
)
def test_refusals_are_survived(
    fake: FakeApiServer, running: Start, code: int, reason: str, more: dict[str, Any]
) -> None:
    put(fake, "a")
    fake.fail_next(2, code, reason, **more)
    source, sink = running()
    fake.wait_for_watches(1)
    put(fake, "b")  # delivered after the listing has been booked
    sink.wait_until(lambda: {"a", "b"} == sink.names())
    assert 0 == source.states()[0].consecutive_failures


def test_stop_ends_a_quiet_watch_at_once(fake: FakeApiServer, running: Start) -> None:
    source, _ = running(*Kind)
    fake.wait_for_watches(4)
    source.stop()  # the test's timeout is the assertion


def test_stop_ends_requests_that_a_hanging_server_never_answers(
    fake: FakeApiServer, running: Start
) -> None:
    fake.frozen.set()
    source, sink = running(*Kind)
    fake.wait_until(lambda: 4 == len(fake.requests))
    source.stop()
    assert [] == sink.events


@pytest.mark.parametrize("name", recordings.NAMES)
def test_every_recorded_answer_is_survived(
    fake: FakeApiServer, running: Start, name: str
) -> None:
    """Whatever the real server once said, said to the first request: the next one helps."""
    recording = recordings.load(name)
    kind = Kind.ENDPOINT_SLICE if "endpointslices" in name else Kind.SERVICE
    fake.store.advance(300)  # the recorded cluster stood between 205 and 371
    put(fake, "a")
    fake.store.put({"kind": "EndpointSlice", "metadata": {"namespace": "d", "name": "a"}})
    content = {k: v for k, v in recording.headers.items() if k.startswith(("Content-T", "Retry"))}

    def first_of_its_sort(request: Request) -> bool:
        return request.is_watch == recording.is_watch

    fake.answer_next(
        Answer(recording.status, recording.raw(), content, matches=first_of_its_sort)
    )
    if not recording.is_watch:
        fake.streaming_lists = "error"
    _, sink = running(kind)
    fake.wait_until(lambda: not fake.script)
    sink.wait_until(lambda: bool(sink.listings(kind)))
    fake.store.advance(1000)
    put(fake, "later")
    fake.store.put({"kind": "EndpointSlice", "metadata": {"namespace": "d", "name": "later"}})
    sink.wait_until(lambda: "later" in sink.names(kind))


def test_a_malformed_object_on_the_wire_does_not_stop_the_others(
    fake: FakeApiServer, running: Start, tmp_path: Path
) -> None:
    _, sink = running()
    fake.wait_for_watches(1)
    bad = {"kind": "Service", **service("bad", port="eighty")}
    fake.store.put(json.loads(json.dumps(bad)))
    put(fake, "good")
    sink.wait_until(lambda: {"good"} == sink.names())
