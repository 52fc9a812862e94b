"""Kubernetes Events about what this proxy did or could not do.

Events are a courtesy: they are queued without waiting, posted from a thread of their own, told as
a series where they repeat (`pykubeproxy.watch.series`), kept for two minutes while the API is away
as client-go does, and lost without consequences when it stays away or there are too many.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from random import uniform
from threading import Event as StopEvent
from threading import Thread
from typing import Any, Protocol
from uuid import uuid4

import structlog
from msgspec import Struct

from pykubeproxy.errors import (
    NamespaceGone,
    RequestRefused,
    WatchDenied,
    WatchError,
    WatchThrottled,
)
from pykubeproxy.measures import Counts, Measure, Text
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.watch.series import Open, Series, Verdict

__all__ = ["EventRecorder", "Happening", "event_body", "event_name", "series_patch"]

log = structlog.get_logger(__name__)

CONTROLLER = "kube-proxy"
QUEUE_LENGTH = 1000
NOTE_BYTES = 1024  # the API's limit
LOOK_SECONDS = 60.0
"""How often it is looked whether a series is over, while there are any."""
TRIES, RETRY_SECONDS = 12, 10.0
"""Of a request that nobody answers, as in client-go."""
NOT_FOUND, CONFLICT = 404, 409
# RFC 1123, as the API checks names; 253 characters are checked apart.
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Poster(Protocol):
    """Whoever can write Events: `pykubeproxy.watch.client.ApiServer`."""

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None: ...

    def patch_event(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None: ...


class Happening(Struct, frozen=True):
    """Something worth an Event. ``service`` is ``None`` for what concerns the whole node.

    Two that are equal are the same thing again.
    """

    reason: str
    action: str
    note: str = ""
    warning: bool = True
    service: ServiceKey | None = None
    service_uid: str = ""  # of that very one; "kubectl describe" finds its Events by it


def event_name(about: str, unix_nanoseconds: int) -> str:
    """Name an Event as client-go does: after its object, with the time in hexadecimal digits."""
    name = f"{about}.{unix_nanoseconds:x}"
    if len(name) <= 253 and _SUBDOMAIN.fullmatch(name):
        return name
    return f"{uuid4()}.{unix_nanoseconds:x}"


def event_body(
    happening: Happening, node: str, instance: str, now: datetime, unix_nanoseconds: int
) -> dict[str, Any]:
    """Return the events.k8s.io/v1 object, as kube-proxy fills it."""
    about: dict[str, str] = {"kind": "Node", "apiVersion": "v1", "name": node}
    namespace = "default"  # where Events about cluster-scoped objects go
    if happening.service is not None:
        namespace = happening.service.namespace
        about = {
            "kind": "Service",
            "apiVersion": "v1",
            "name": happening.service.name,
            "namespace": namespace,
        }
        if happening.service_uid:
            about["uid"] = happening.service_uid
    body = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": event_name(about["name"], unix_nanoseconds),
            "namespace": namespace,
        },
        "eventTime": _time(now),
        "reportingController": CONTROLLER,
        "reportingInstance": f"{CONTROLLER}-{instance}"[:128],  # the API's limit
        "type": "Warning" if happening.warning else "Normal",
        "reason": happening.reason,
        "action": happening.action,
        "regarding": about,
    }
    if happening.note:
        note = happening.note.encode(errors="replace")[:NOTE_BYTES].decode(errors="ignore")
        body["note"] = note
    return body


def series_patch(count: int, last: datetime) -> dict[str, Any]:
    """What makes an Event a series, or says how far it has gone; nothing else may be changed."""
    return {"series": {"count": count, "lastObservedTime": _time(last)}}


class EventRecorder:
    """Posts happenings about *node*; *instance* is this host's name."""

    def __init__(
        self,
        poster: Poster,
        node: str,
        instance: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        """*wait* sleeps for seconds and returns true when it is time to end."""
        self._poster = poster
        self._node = node
        self._instance = instance
        self._now = now
        self._queue: SimpleQueue[tuple[Happening, datetime] | StopEvent | None] = SimpleQueue()
        self._stop = StopEvent()
        self._wait = wait or self._stop.wait
        self._thread = Thread(target=self._run, name="events", daemon=True)
        self._series: Series[Happening] = Series()
        self._bodies: dict[Happening, dict[str, Any]] = {}
        self._last_nanoseconds = 0
        self._looked_at = now().timestamp()
        self._denied = False
        self._failing = False
        self._counts = Counts(
            Text(
                "pykubeproxy_events_total",
                "Events: posted, merged into a series, dropped as too many or as their namespace "
                "goes, or failed to be posted",
                ("outcome",),
            )
        )

    def measures(self) -> tuple[Measure, ...]:
        """What became of Events so far."""
        return (self._counts,)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop what is still queued and end the thread."""
        self._stop.set()
        self._queue.put(None)
        self._thread.join()

    @property
    def waiting(self) -> int:
        """How many Events are still to be posted."""
        return self._queue.qsize()

    def flush(self, seconds: float) -> bool:
        """Wait until all that is queued by now was posted or failed; false: not in this time."""
        done = StopEvent()
        self._queue.put(done)
        return done.wait(seconds)

    def record(self, happening: Happening) -> None:
        """Queue an Event; never waits, any thread."""
        if self._queue.qsize() < QUEUE_LENGTH:
            self._queue.put((happening, self._now()))
        else:
            self._dropped(happening)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._queue.get(timeout=LOOK_SECONDS if self._series else None)
            except Empty:
                self._guarded(self.look)
                continue
            if isinstance(found, StopEvent):
                found.set()
            elif found is not None and not self._stop.is_set():
                self._guarded(partial(self._handle, *found))
                if self._now().timestamp() - self._looked_at >= LOOK_SECONDS:
                    self._guarded(self.look)

    def _guarded(self, step: Callable[[], None]) -> None:
        """An Event that cannot be told is no reason for the process to end."""
        try:
            step()
        except Exception:
            self._counts.add("failed")
            log.error("Event not told; this is a bug", exc_info=True)

    def _handle(self, happening: Happening, now: datetime) -> None:
        """*now* is when it happened."""
        source = happening.service or self._node
        match self._series.happened(happening, source, now.timestamp()):
            case Verdict.CREATE:
                self._create(happening, now)
            case Verdict.EXTEND:
                self._counts.add("merged")
                known = self._series.known(happening)
                if known is not None:
                    self._extend(known, now)
            case Verdict.COUNT:
                self._counts.add("merged")
            case Verdict.DROP:
                self._dropped(happening)

    def look(self) -> None:
        """Tell of series that are over, or have gone on for long; on the thread of this object."""
        now = self._now()
        self._looked_at = now.timestamp()
        for known in self._series.due(self._looked_at):
            self._extend(known, now)
        for key in [key for key in self._bodies if self._series.known(key) is None]:
            del self._bodies[key]

    def _create(self, happening: Happening, now: datetime) -> None:
        # Later than the last one, so that no two have one name, whatever the clock does.
        nanoseconds = int(now.timestamp()) * 10**9 + now.microsecond * 1000
        self._last_nanoseconds = max(self._last_nanoseconds + 1, nanoseconds)
        body = event_body(happening, self._node, self._instance, now, self._last_nanoseconds)
        if self._post(happening, body):
            self._bodies[happening] = body

    def _post(self, happening: Happening, body: Mapping[str, Any]) -> bool:
        create = partial(self._poster.create_event, body["metadata"]["namespace"], body)
        error = self._ask(create)
        # A conflict: it was taken, and the answer got lost.
        if error is not None and not _is_refused(error, CONFLICT):
            self._series.forget(happening)
            self._bodies.pop(happening, None)
            self._failed(error)
            return False
        self._counts.add("posted")
        self._failing = False
        return True

    def _ask(self, request: Callable[[], None]) -> WatchError | None:
        """Make *request*, again while nobody answers it; return why it failed, if it did.

        All other Events wait meanwhile: they would fare no better.
        """
        for left in reversed(range(TRIES)):
            try:
                request()
            except WatchError as error:
                if isinstance(error, WatchDenied | RequestRefused) or not left:
                    return error
                self._complain(error)
                asked = error.retry_after_seconds if isinstance(error, WatchThrottled) else 0.0
                if self._wait(max(asked, RETRY_SECONDS * uniform(1, 1.25))):
                    return error
            else:
                break
        return None

    def _extend(self, known: Open[Happening], now: datetime) -> None:
        """Say how often it was by now; an Event that has expired is written anew."""
        body = self._bodies.get(known.key)
        if body is None:
            return
        last = datetime.fromtimestamp(known.last, UTC)
        patch = series_patch(known.count, last)
        namespace, name = body["metadata"]["namespace"], body["metadata"]["name"]
        error = self._ask(partial(self._poster.patch_event, namespace, name, patch))
        if error is not None:
            if not _is_refused(error, NOT_FOUND):
                self._failed(error)
            elif self._post(known.key, {**body, **patch}):
                self._series.told(known.key, now.timestamp())
            return
        self._series.told(known.key, now.timestamp())
        self._failing = False

    def _failed(self, error: WatchError) -> None:
        if isinstance(error, NamespaceGone):
            # The end of its Service, of which there may have been something to tell.
            self._counts.add("dropped")
            log.debug("event dropped, its namespace goes", reason=str(error))
            return
        self._counts.add("failed")
        self._complain(error)

    def _complain(self, error: WatchError) -> None:
        """Say it once: for good where the right is missing, else until it works again."""
        if not (self._denied or self._failing):
            log.warning("Event not posted; later failures are not shown", reason=str(error))
        refused = isinstance(error, WatchDenied) or _is_refused(error, NOT_FOUND)
        self._denied = self._denied or refused
        self._failing = True

    def _dropped(self, happening: Happening) -> None:
        self._counts.add("dropped")
        log.debug("event dropped, too many of them", reason=happening.reason)


def _is_refused(error: WatchError, code: int) -> bool:
    return isinstance(error, RequestRefused) and error.code == code


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
