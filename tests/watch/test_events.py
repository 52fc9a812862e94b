"""Events: what is in them, when they are told, and that they never hold anything up."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from pykubeproxy.errors import (
    NamespaceGone,
    RequestRefused,
    WatchDenied,
    WatchError,
    WatchThrottled,
)
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.watch.events import (
    LOOK_SECONDS,
    QUEUE_LENGTH,
    RETRY_SECONDS,
    TRIES,
    EventRecorder,
    Happening,
    event_body,
    event_name,
    series_patch,
)
from pykubeproxy.watch.series import BURST, FINISH_SECONDS
from tests.fakes.apievents import merged, problem_with_change, problem_with_event
from tests.fakes.recordings import load

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, UTC)
WEB = ServiceKey("shop", "web")
STARTING = Happening("Starting", "StartKubeProxy", warning=False)


class Api:
    """Takes Events as strictly as the API server; `troubles` are raised by the next requests."""

    def __init__(self):
        self.events = {}
        self.troubles = []
        self.requests = 0
        self._changed = threading.Condition()

    def create_event(self, namespace, body):
        self._request()
        name = body["metadata"]["name"]
        assert problem_with_event(body, namespace) is None
        assert (namespace, name) not in self.events
        self.events[namespace, name] = dict(body)

    def patch_event(self, namespace, name, patch):
        self._request()
        if (namespace, name) not in self.events:
            raise RequestRefused("no such Event", 404)
        old = self.events[namespace, name]
        new = merged(old, patch)
        assert problem_with_change(old, new) is None
        self.events[namespace, name] = new

    def _request(self):
        with self._changed:
            self.requests += 1
            self._changed.notify_all()
        if self.troubles:
            raise self.troubles.pop(0)

    def wait_for(self, requests):
        with self._changed:
            assert self._changed.wait_for(lambda: self.requests >= requests, 10)

    @property
    def told(self):
        """Reason and how often, of each Event."""
        return [
            (event["reason"], event.get("series", {}).get("count", 1))
            for event in self.events.values()
        ]


class Rig:
    """A recorder whose thread is the test's, with a clock."""

    def __init__(self):
        self.api = Api()
        self.now = NOW
        self.pauses = []
        self.recorder = EventRecorder(self.api, "node", "host", lambda: self.now, self._wait)

    def _wait(self, seconds):
        self.pauses.append(seconds)
        return False

    def happen(self, *happenings, seconds=1.0):
        for happening in happenings:
            self.now += timedelta(seconds=seconds)
            self.recorder._handle(happening, self.now)

    def look(self, seconds):
        self.now += timedelta(seconds=seconds)
        self.recorder.look()

    @property
    def counts(self):
        [measure] = self.recorder.measures()
        return {outcome: count for (outcome,), count in measure.read().items()}


@pytest.fixture
def rig():
    return Rig()


# --- what is in them ---


def body_of(happening, node="node", unix_nanoseconds=0x17A):
    return event_body(happening, node, "host", NOW, unix_nanoseconds)


def test_the_starting_event_has_the_fields_that_kube_proxy_writes():
    recorded = load("event-create").body
    body = event_body(STARTING, "node-0", "node-0", NOW, 0x17A)
    server_side = {"uid", "resourceVersion", "creationTimestamp", "managedFields", "generateName"}
    assert body["metadata"]["namespace"] == recorded["metadata"]["namespace"]
    assert set(recorded["metadata"]) - server_side == set(body["metadata"])
    for field in ("reportingController", "reportingInstance", "action", "reason", "type"):
        assert recorded[field] == body[field]
    assert recorded["regarding"].items() <= body["regarding"].items()
    assert body["eventTime"] == "2026-11-20T12:00:00.123456Z"
    assert "note" not in body


def test_an_event_about_the_node_has_no_uid_and_lives_in_default():
    body = body_of(STARTING)
    assert {"kind": "Node", "apiVersion": "v1", "name": "node"} == body["regarding"]
    assert {"name": "node.17a", "namespace": "default"} == body["metadata"]


def test_an_event_about_a_service_lives_in_its_namespace():
    body = body_of(Happening("R", "A", "note", service=WEB))
    assert {"name": "web.17a", "namespace": "shop"} == body["metadata"]
    assert body["regarding"] == {
        "kind": "Service",
        "apiVersion": "v1",
        "name": "web",
        "namespace": "shop",
    }
    assert body["type"] == "Warning"


def test_an_event_about_a_service_is_found_by_its_uid():
    body = body_of(Happening("R", "A", "note", service=WEB, service_uid="1-2-3"))
    assert "1-2-3" == body["regarding"]["uid"]


@pytest.mark.parametrize(
    "happening",
    [
        pytest.param(STARTING, id="no note"),
        pytest.param(Happening("R", "A", "x" * 5000), id="a long note"),
        pytest.param(Happening("R", "A", "ä" * 5000), id="a long note of other letters"),
        pytest.param(Happening("R", "A", "x", service=WEB), id="about a Service"),
    ],
)
def test_the_api_takes_every_event(happening):
    body = body_of(happening)
    assert problem_with_event(body, body["metadata"]["namespace"]) is None
    assert body.get("note", "") == happening.note[: len(body.get("note", ""))]


def test_a_note_that_is_no_text_is_told_as_far_as_it_is():
    assert "a?b" == body_of(Happening("R", "A", "a\udcffb"))["note"]


def test_a_long_host_name_is_cut_to_what_the_api_takes():
    body = event_body(STARTING, "node", "h" * 250, NOW, 1)
    assert problem_with_event(body, "default") is None


def test_the_name_has_the_time_in_hexadecimal_digits():
    assert "web.18798a1e1c2b3d4f" == event_name("web", 0x18798A1E1C2B3D4F)


@pytest.mark.parametrize("about", ["UPPER", "a" * 250, "under_score"])
def test_a_name_that_the_api_would_refuse_is_replaced(about):
    name = event_name(about, 0x17A)
    assert name.endswith(".17a")
    assert not name.startswith(about)
    assert len(name) < 253


# --- repetitions ---


def test_what_repeats_is_one_event(rig):
    rig.happen(*[STARTING] * 5)
    assert [("Starting", 2)] == rig.api.told
    assert {"posted": 1, "merged": 4} == rig.counts
    rig.look(FINISH_SECONDS + 1)
    assert [("Starting", 5)] == rig.api.told


def test_the_last_time_is_told(rig):
    rig.happen(STARTING, STARTING, STARTING)
    last = rig.now
    rig.look(FINISH_SECONDS + 1)
    [event] = rig.api.events.values()
    assert series_patch(3, last)["series"] == event["series"]


@pytest.mark.parametrize(
    "other",
    [
        Happening("Stopping", "StartKubeProxy", warning=False),
        Happening("Starting", "Other", warning=False),
        Happening("Starting", "StartKubeProxy", "note", warning=False),
        Happening("Starting", "StartKubeProxy"),
        Happening("Starting", "StartKubeProxy", warning=False, service=WEB),
    ],
)
def test_what_differs_in_anything_is_another_event(rig, other):
    rig.happen(STARTING, other)
    assert [("Starting", 1), (other.reason, 1)] == rig.api.told


def test_the_same_long_after_is_another_event(rig):
    rig.happen(STARTING)
    rig.happen(STARTING, seconds=FINISH_SECONDS + 1)
    assert [("Starting", 1)] * 2 == rig.api.told


def test_an_expired_event_is_written_anew_with_its_series(rig):
    rig.happen(STARTING)
    rig.api.events.clear()
    rig.happen(STARTING)
    assert [("Starting", 2)] == rig.api.told


def test_two_of_one_moment_have_two_names(rig):
    rig.happen(Happening("a", "A"), Happening("b", "A"), seconds=0)
    assert 2 == len(rig.api.events)


def test_an_object_in_trouble_has_a_budget(rig):
    rig.happen(*[Happening("R", "A", f"{n}", service=WEB) for n in range(BURST + 5)])
    assert BURST == len(rig.api.events)
    assert {"posted": BURST, "dropped": 5} == rig.counts


def test_what_is_over_takes_no_memory(rig):
    rig.happen(STARTING)
    rig.look(FINISH_SECONDS + 1)
    assert {} == rig.recorder._bodies


# --- refusals ---


REFUSED = RequestRefused("not today", 500)
AWAY = WatchError("connection refused")


def test_a_refused_event_is_lost_and_the_next_one_arrives(rig):
    rig.api.troubles = [REFUSED]
    rig.happen(Happening("first", "A"), Happening("second", "A"))
    assert [("second", 1)] == rig.api.told
    assert {"failed": 1, "posted": 1} == rig.counts


def test_what_was_refused_is_created_when_it_happens_again(rig):
    rig.api.troubles = [REFUSED]
    rig.happen(STARTING, STARTING)
    assert [("Starting", 1)] == rig.api.told


def test_a_refused_series_is_told_later(rig):
    rig.happen(STARTING)
    rig.api.troubles = [REFUSED]
    rig.happen(STARTING, STARTING)
    assert [("Starting", 3)] == rig.api.told


def test_while_nobody_answers_it_is_tried_again_as_client_go_does(rig):
    rig.api.troubles = [AWAY] * (TRIES - 1)
    rig.happen(STARTING)
    assert [("Starting", 1)] == rig.api.told
    assert {"posted": 1} == rig.counts
    assert TRIES - 1 == len(rig.pauses)
    assert all(RETRY_SECONDS <= pause <= 1.25 * RETRY_SECONDS for pause in rig.pauses)


def test_what_nobody_answers_for_two_minutes_is_lost(rig):
    rig.api.troubles = [AWAY] * TRIES
    rig.happen(Happening("first", "A"), Happening("second", "A"))
    assert [("second", 1)] == rig.api.told
    assert {"failed": 1, "posted": 1} == rig.counts


def test_a_server_that_asks_to_wait_is_given_the_time(rig):
    rig.api.troubles = [WatchThrottled("429", 60.0)]
    rig.happen(STARTING)
    assert [60.0] == rig.pauses
    assert [("Starting", 1)] == rig.api.told


def test_a_series_is_told_once_somebody_answers(rig):
    rig.happen(STARTING)
    rig.api.troubles = [AWAY]
    rig.happen(STARTING)
    assert [("Starting", 2)] == rig.api.told


def test_an_event_whose_answer_was_lost_is_posted(rig):
    rig.api.troubles = [AWAY, RequestRefused("already exists", 409)]
    rig.happen(STARTING)
    assert {"posted": 1} == rig.counts


def warnings(logs):
    return [line["reason"] for line in logs if line["log_level"] == "warning"]


@pytest.mark.parametrize("denial", [WatchDenied("403"), RequestRefused("404", 404)])
def test_a_missing_right_is_told_once_for_good(rig, denial):
    with capture_logs() as logs:
        for n in range(3):
            rig.api.troubles = [denial]
            rig.happen(Happening("refused", "A", f"{n}"), Happening("posted", "A", f"{n}"))
    assert [str(denial)] == warnings(logs)


@pytest.mark.parametrize("code", [403, 404])
def test_an_event_whose_namespace_goes_is_dropped_and_later_failures_are_told(rig, code):
    denial = WatchDenied("403, a right is missing")
    with capture_logs() as logs:
        rig.api.troubles = [NamespaceGone("shop is being deleted", code)]
        rig.happen(Happening("first", "A", service=WEB))
        assert [("debug", "shop is being deleted")] == [
            (line["log_level"], line["reason"]) for line in logs
        ]
        rig.api.troubles = [denial]
        rig.happen(Happening("second", "A"))
    assert [str(denial)] == warnings(logs)
    assert {"dropped": 1, "failed": 1} == rig.counts


def test_a_series_whose_namespace_went_is_dropped(rig):
    rig.happen(Happening("first", "A", service=WEB))
    rig.api.events.clear()
    rig.api.troubles = [RequestRefused("no such Event", 404), NamespaceGone("shop", 404)]
    with capture_logs() as logs:
        rig.happen(Happening("first", "A", service=WEB))
    assert [] == warnings(logs)
    assert {"posted": 1, "merged": 1, "dropped": 1} == rig.counts


def test_an_outage_is_told_once_until_it_is_over(rig):
    with capture_logs() as logs:
        for outage in ("first", "second"):
            rig.api.troubles = [WatchError(outage)] * 3 * TRIES
            rig.happen(*[Happening(f"{outage} {n}", "A") for n in range(4)])
    assert ["first", "second"] == warnings(logs)


# --- the thread ---


@pytest.fixture
def running():
    rig = Rig()
    rig.recorder.start()
    yield rig
    rig.recorder.stop()  # once more does no harm


def test_an_event_tells_when_it_happened_and_not_when_it_was_posted():
    rig = Rig()
    rig.recorder.record(STARTING)
    rig.now += timedelta(seconds=50)
    rig.recorder.start()
    rig.api.wait_for(requests=1)
    rig.recorder.stop()
    [event] = rig.api.events.values()
    assert "2026-11-20T12:00:00.123456Z" == event["eventTime"]


def test_what_cannot_even_be_sent_does_not_end_the_thread(running):
    running.api.troubles = [KeyError("a bug")]
    running.recorder.record(Happening("first", "A"))
    running.recorder.record(Happening("second", "A"))
    running.api.wait_for(requests=2)
    running.recorder.stop()
    assert [("second", 1)] == running.api.told
    assert {"failed": 1, "posted": 1} == running.counts


def test_the_end_does_not_wait_for_an_api_that_is_away():
    api = Api()
    api.troubles = [AWAY] * TRIES
    recorder = EventRecorder(api, "node", "host")
    recorder.start()
    recorder.record(STARTING)
    api.wait_for(requests=1)
    recorder.stop()
    assert 1 == api.requests


def test_recorded_events_are_posted(running):
    running.recorder.record(STARTING)
    running.api.wait_for(requests=1)
    running.recorder.record(STARTING)
    running.api.wait_for(requests=2)


def test_series_are_looked_after_while_other_things_happen(running):
    for happening in (STARTING, STARTING, STARTING, Happening("one", "A")):
        running.recorder.record(happening)
    running.api.wait_for(requests=3)
    running.now += timedelta(seconds=FINISH_SECONDS + LOOK_SECONDS)
    running.recorder.record(Happening("another", "A"))
    running.api.wait_for(requests=5)
    running.recorder.stop()
    assert [("Starting", 3), ("one", 1), ("another", 1)] == running.api.told


def test_the_end_does_not_wait_for_what_is_queued():
    api = Api()
    recorder = EventRecorder(api, "node", "host")
    for number in range(10):
        recorder.record(Happening(str(number), "A"))
    recorder._stop.set()
    recorder.start()
    recorder.stop()
    assert 0 == api.requests


def test_a_flood_is_dropped_rather_than_waited_for():
    recorder = EventRecorder(Api(), "node", "host")  # not started, so nothing is taken out
    for number in range(QUEUE_LENGTH + 50):
        recorder.record(Happening(str(number), "A"))
    assert recorder.waiting == QUEUE_LENGTH
    [counts] = recorder.measures()
    assert {("dropped",): 50} == counts.read()


def test_flushing_waits_for_what_was_recorded(running):
    running.recorder.record(STARTING)
    assert running.recorder.flush(20)
    assert 1 == running.api.requests


def test_flushing_ends_when_nobody_posts():
    assert not EventRecorder(Api(), "node", "host").flush(0.01)  # not started
