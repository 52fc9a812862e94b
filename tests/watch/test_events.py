"""Events: what is in them, and that they never hold anything up."""

from __future__ import annotations

from datetime import UTC, datetime
from threading import Event

import pytest

from pykubeproxy.errors import WatchError
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.watch.events import QUEUE_LENGTH, EventRecorder, Happening, event_body
from tests.fakes.recordings import load

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, UTC)


class Poster:
    """Takes Events, or refuses them; `arrived` is set at each."""

    def __init__(self, refuse: int = 0) -> None:
        self.refuse = refuse
        self.posted: list[tuple[str, dict]] = []
        self.arrived = Event()

    def create_event(self, namespace, body):
        if self.refuse:
            self.refuse -= 1
            raise WatchError("no API today")
        self.posted.append((namespace, dict(body)))
        self.arrived.set()


def test_the_starting_event_has_the_fields_that_kube_proxy_writes():
    recorded = load("event-create").body
    body = event_body(
        Happening("Starting", "StartKubeProxy", warning=False), "node-0", "node-0", NOW
    )
    server_side = {"uid", "resourceVersion", "creationTimestamp", "managedFields", "name"}
    assert body["metadata"]["namespace"] == recorded["metadata"]["namespace"]
    assert set(recorded["metadata"]) - server_side <= set(body["metadata"])
    for field in ("reportingController", "reportingInstance", "action", "reason", "type"):
        assert recorded[field] == body[field]
    assert recorded["regarding"].items() <= body["regarding"].items()
    assert body["eventTime"] == "2026-11-20T12:00:00.123456Z"


def test_an_event_about_a_service_lives_in_its_namespace():
    happening = Happening("R", "A", "note", service=ServiceKey("shop", "web"))
    body = event_body(happening, "node", "host", NOW)
    assert body["metadata"]["namespace"] == "shop"
    assert body["regarding"] == {
        "kind": "Service",
        "apiVersion": "v1",
        "name": "web",
        "namespace": "shop",
    }
    assert body["type"] == "Warning"


def test_a_long_note_is_cut_to_what_the_api_takes():
    assert len(event_body(Happening("R", "A", "x" * 5000), "n", "h", NOW)["note"]) == 1024


@pytest.fixture
def recorder_for():
    started = []

    def make(poster: Poster) -> EventRecorder:
        recorder = EventRecorder(poster, "node", "host", now=lambda: NOW)
        started.append(recorder)
        recorder.start()
        return recorder

    yield make
    for recorder in started:
        recorder.stop()


def test_recorded_events_are_posted(recorder_for):
    poster = Poster()
    recorder_for(poster).record(Happening("Starting", "StartKubeProxy"))
    assert poster.arrived.wait(5)
    assert [("default", "Starting")] == [(ns, body["reason"]) for ns, body in poster.posted]


def test_a_refused_event_is_lost_and_the_next_one_arrives(recorder_for):
    poster = Poster(refuse=1)
    recorder = recorder_for(poster)
    recorder.record(Happening("first", "A"))
    recorder.record(Happening("second", "A"))
    assert poster.arrived.wait(5)
    assert ["second"] == [body["reason"] for _, body in poster.posted]


def test_a_flood_is_dropped_rather_than_waited_for():
    recorder = EventRecorder(Poster(), "node", "host")  # not started, so nothing is taken out
    for number in range(QUEUE_LENGTH + 50):
        recorder.record(Happening(str(number), "A"))
    assert recorder.waiting == QUEUE_LENGTH
