"""`KubernetesSource` and `ApiServer` together, against the stand-in API server over HTTPS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.reflector import KubernetesSource
from pykubeproxy.watch.source import Gone, Put, Replaced
from tests.fakes import recordings
from tests.fakes.apiserver import Answer, FakeApiServer, Request
from tests.fakes.scripted_api import service
from tests.fakes.sink import RecordingSink


class Hasty(Random):
    """Draws next to nothing, so that no test waits out a backoff."""

    def uniform(self, a: float, b: float) -> float:
        return 0.01


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
    _, sink = running(*Kind)
    sink.wait_until(lambda: all(sink.listings(kind) for kind in Kind))
    assert {"node-0"} == sink.names(Kind.NODE)
    put(fake, "b")
    sink.wait_until(lambda: {"a", "b"} == sink.names())


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
    sink.wait_until(lambda: len(sink.names()) == 1200)
    fake.wait_for_watches(1)
    fake.store.compact()
    put(fake, "late")
    sink.wait_until(lambda: "late" in sink.names())
    assert sink.listings() == 1


def test_pages_of_a_relist_are_read_to_the_last(fake: FakeApiServer, running: Start) -> None:
    fake.streaming_lists = "error"
    for n in range(1200):
        put(fake, f"s{n}")
    _, sink = running()
    sink.wait_until(lambda: sink.listings() == 1)
    fake.wait_for_watches(1)
    fake.fail_next(1, 410, "Expired", "too old", matches=lambda r: r.is_watch)
    fake.store.delete("Service", "default", "s7")
    fake.end_watches()
    sink.wait_until(lambda: sink.listings() == 2)
    assert len(sink.names()) == 1199
    assert fake.count(lambda r: "continue" in r.query) >= 2


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
    assert sink.listings() == 2


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
    _, sink = running()
    fake.wait_for_watches(1)
    put(fake, "b")
    sink.wait_until(lambda: {"a", "b"} == sink.names())


def test_stop_ends_a_quiet_watch_at_once(fake: FakeApiServer, running: Start) -> None:
    source, _ = running(*Kind)
    fake.wait_for_watches(4)
    source.stop()  # the test's timeout is the assertion


def test_stop_ends_requests_that_a_hanging_server_never_answers(
    fake: FakeApiServer, running: Start
) -> None:
    fake.frozen.set()
    source, sink = running(*Kind)
    fake.wait_until(lambda: len(fake.requests) == 4)
    source.stop()
    assert sink.events == []


@pytest.mark.parametrize("name", recordings.NAMES)
def test_every_recorded_answer_is_survived(fake: FakeApiServer, running: Start, name: str) -> None:
    """Whatever the real server once said, said to the first request: the next one helps."""
    recording = recordings.load(name)
    kind = Kind.ENDPOINT_SLICE if "endpointslices" in name else Kind.SERVICE
    fake.store.advance(300)  # the recorded cluster stood between 205 and 371
    put(fake, "a")
    fake.store.put({"kind": "EndpointSlice", "metadata": {"namespace": "d", "name": "a"}})
    content = {k: v for k, v in recording.headers.items() if k.startswith(("Content-T", "Retry"))}

    def first_of_its_sort(request: Request) -> bool:
        return request.is_watch == recording.is_watch

    fake.answer_next(Answer(recording.status, recording.raw(), content, matches=first_of_its_sort))
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


def test_how_a_watch_does_is_told_when_asked(fake: FakeApiServer, running: Start) -> None:
    source, sink = running(Kind.SERVICE, Kind.NODE)
    sink.wait_until(lambda: len(sink.events) >= 2)
    fake.wait_for_watches(2)
    age, failures, relists = (measure.read() for measure in source.measures(lambda: 1e12))
    assert [("nodes",), ("services",)] == sorted(age)
    assert all(0 < seconds < float("inf") for seconds in age.values())
    assert {("nodes",): 0.0, ("services",): 0.0} == failures == relists


def test_a_watch_that_never_worked_is_infinitely_old(fake: FakeApiServer, running: Start) -> None:
    fake.forbidden.add("services")
    source, _ = running(Kind.SERVICE)
    fake.wait_until(lambda: len(fake.requests) >= 3)
    age, failures, relists = (measure.read() for measure in source.measures())
    assert {("services",): float("inf")} == age
    assert failures["services",] >= 1
    assert {("services",): 0.0} == relists


def test_watches_that_have_not_begun_tell_nothing(client: ApiServer) -> None:
    source = KubernetesSource(client, "node-0", [Kind.SERVICE])
    assert [{}, {}, {}] == [measure.read() for measure in source.measures()]


def test_a_watch_that_is_open_again_does_not_fail_though_it_says_nothing(
    fake: FakeApiServer, running: Start
) -> None:
    put(fake, "a")
    source, sink = running(Kind.SERVICE)
    sink.wait_until(lambda: bool(sink.listings()))
    fake.wait_for_watches(1)
    _, failures, _ = source.measures()
    fake.stop()
    while not failures.read()["services",]:
        fake.wait_until(lambda: True)
    fake.start()
    fake.wait_for_watches(1)
    while failures.read()["services",]:
        fake.wait_until(lambda: True)
