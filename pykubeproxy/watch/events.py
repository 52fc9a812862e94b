"""Kubernetes Events about what this proxy did or could not do.

Events are a courtesy: they are queued without waiting, posted from a thread of their own, and
lost without consequences when the API is away or there are too many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event as StopEvent
from threading import Thread
from typing import Any, Protocol

import structlog
from msgspec import Struct

from pykubeproxy.errors import WatchError
from pykubeproxy.model.objects import ServiceKey

__all__ = ["EventRecorder", "Happening", "event_body"]

log = structlog.get_logger(__name__)

CONTROLLER = "kube-proxy"
QUEUE_LENGTH = 100


class Poster(Protocol):
    """Whoever can create an Event: `pykubeproxy.watch.client.ApiServer`."""

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None: ...


class Happening(Struct, frozen=True):
    """Something worth an Event. ``service`` is ``None`` for what concerns the whole node."""

    reason: str
    action: str
    note: str = ""
    warning: bool = True
    service: ServiceKey | None = None


def event_body(happening: Happening, node: str, instance: str, now: datetime) -> dict[str, Any]:
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
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": f"{about['name']}-", "namespace": namespace},
        "eventTime": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": f"{CONTROLLER}-{instance}",
        "type": "Warning" if happening.warning else "Normal",
        "reason": happening.reason,
        "action": happening.action,
        "note": happening.note[:1024],  # the API's limit
        "regarding": about,
    }


class EventRecorder:
    """Posts happenings about *node*; *instance* is this host's name."""

    def __init__(
        self,
        poster: Poster,
        node: str,
        instance: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._poster = poster
        self._node = node
        self._instance = instance
        self._now = now
        self._queue: SimpleQueue[Happening | None] = SimpleQueue()
        self._stop = StopEvent()
        self._thread = Thread(target=self._run, name="events", daemon=True)
        self._complained = False

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

    def record(self, happening: Happening) -> None:
        """Queue an Event; never waits, any thread."""
        if self._queue.qsize() < QUEUE_LENGTH:
            self._queue.put(happening)
        else:
            log.debug("event dropped, too many are waiting", reason=happening.reason)

    def _run(self) -> None:
        while (happening := self._queue.get()) is not None and not self._stop.is_set():
            body = event_body(happening, self._node, self._instance, self._now())
            try:
                self._poster.create_event(body["metadata"]["namespace"], body)
            except WatchError as error:
                if not self._complained:
                    log.warning("Event not posted; later failures are not shown", reason=str(error))
                self._complained = True
