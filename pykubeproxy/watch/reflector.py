"""Keeps a copy of the cluster's objects flowing: list once, watch on, recover from anything.

Decides what follows each ending of a request: resume, list afresh, wait, and for how long. How the
protocol reads is in `listwatch`, how requests are made in `client`.

Which list: a streaming list where the server has it (newest state, one request). Else pages: the
first with ``resourceVersion=0``, as client-go does, because every node of a cluster may start at
once and the server then answers from memory; later ones without, so that a server lagging behind
never takes us back in time. See the API concepts page, "Resource versions".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import Protocol, assert_never

import structlog
from msgspec import Struct
from msgspec.structs import replace

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
from pykubeproxy.measures import Labels, Measure, Readings, Text
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.watch.backoff import Backoff
from pykubeproxy.watch.client import STREAM_READ_SECONDS, LineStream
from pykubeproxy.watch.listwatch import (
    Api,
    StreamingRefused,
    Target,
    events,
    initial_listing,
    list_in_pages,
    open_streaming_list,
    open_watch,
)
from pykubeproxy.watch.resources import RESOURCES, selectors
from pykubeproxy.watch.source import Gone, Put, Replaced, Sink
from pykubeproxy.watch.wire import Bookmark, Changed, Deleted, Listing, Malformed, key_of

__all__ = ["ClosableApi", "KubernetesSource", "Reflector", "ReflectorState"]

log = structlog.get_logger(__name__)

WATCH_SECONDS = (300, 600)  # timeoutSeconds, drawn at random as client-go does to spread the load
# Not in servers before 1.33; without it, "none" is the right answer.
OPTIONAL = frozenset({Kind.SERVICE_CIDR})


MUTE_STREAMS = 2
AHEAD_ANSWERS = 2
SHORTEST_STREAM_SECONDS = 1.0

_Opened = tuple[LineStream, Iterator[bytes]]


class ClosableApi(Api, Protocol):
    """An `Api` whose running requests can be ended from another thread."""

    def close(self) -> None: ...


class ReflectorState(Struct, frozen=True):
    """How one reflector is doing; a fresh value at each change, so that any thread may look.

    *last_contact_seconds* is on the reflector's clock (monotonic): when the server last answered or
    sent a line. *last_error* is empty while nothing is wrong. *follows* while a watch is open,
    whether or not it has said anything yet.
    """

    kind: Kind
    synced: bool = False
    follows: bool = False
    last_contact_seconds: float | None = None
    resource_version: str = ""
    lists: int = 0
    relists: int = 0
    consecutive_failures: int = 0
    last_error: str = ""


class Reflector:
    """Follows one resource on the thread that calls `run`."""

    def __init__(
        self,
        api: Api,
        target: Target,
        sink: Sink,
        *,
        wait: Callable[[float], bool],
        clock: Callable[[], float] = time.monotonic,
        rng: Random | None = None,
    ) -> None:
        """*wait* sleeps for seconds and returns true when it is time to end."""
        self._api = api
        self._target = target
        self._sink = sink
        self._wait = wait
        self._clock = clock
        self._rng = rng or Random()
        self._backoff = Backoff(self._rng)
        self._streaming = True
        self._version: str | None = None  # where to resume; None: list afresh
        self._mute_streams = 0
        self._ahead = 0
        self._trouble = ""
        self._reported: dict[ObjectKey | None, str] = {}
        self._log = log.bind(kind=str(target.kind), server=api.server)
        self.state = ReflectorState(target.kind)

    def run(self) -> None:
        """List and watch until *wait* or the closed client says that it is over."""
        pause = 0.0
        while not self._wait(pause):
            pause = self.step()

    def step(self) -> float:
        """List or resume, and follow the stream to its end; return the seconds to wait then."""
        try:
            opened = self._list() if self._version is None else self._resume(self._version)
            if opened is not None:
                stream, lines = opened
                self._set(follows=True)
                try:
                    self._follow(lines)
                finally:
                    self._set(follows=False)
                    stream.close()
        except WatchError as error:
            if self._wait(0.0):
                return 0.0  # stopping: the closed client made this error
            return self._after(error)
        return 0.0

    def _list(self) -> _Opened | None:
        """Deliver a complete listing; return the stream to go on with, if it came by one."""
        if self._streaming:
            try:
                return self._list_by_stream()
            except StreamingRefused as refusal:
                reason = str(refusal)
        try:
            listing = list_in_pages(self._api, self._target, None if self.state.lists else "0")
        except RequestRefused as error:
            if error.code == 404 and self._target.kind in OPTIONAL and not self.state.synced:
                self._sink.put(Replaced(self._target.kind, ()))
                self._set(synced=True)
            raise
        if self._streaming:
            # Remembered only now: had the pages failed too, the network would be to blame.
            self._streaming = False
            self._log.info("streaming lists not available, listing in pages", reason=reason)
        self._accept(listing)
        return None

    def _list_by_stream(self) -> _Opened:
        stream = open_streaming_list(self._api, self._target, self._watch_seconds())
        self._set(last_contact_seconds=self._clock())
        lines = iter(stream)
        complete = False
        try:
            listing = initial_listing(self._api, self._target, lines, self._clock)
            complete = True
        finally:
            if not complete:
                stream.close()
        stream.set_read_seconds(STREAM_READ_SECONDS)
        self._accept(listing)
        return stream, lines

    def _resume(self, version: str) -> _Opened:
        stream = open_watch(self._api, self._target, version, self._watch_seconds())
        self._set(last_contact_seconds=self._clock())
        return stream, iter(stream)

    def _accept(self, listing: Listing) -> None:
        """Deliver a listing, and remember where it ends."""
        kind = self._target.kind
        stale, self._reported = self._reported, {}
        for bad in listing.malformed:
            self._report(bad, stale.get(bad.key))
        unreadable = frozenset(bad.key for bad in listing.malformed if bad.key is not None)
        self._sink.put(Replaced(kind, listing.objects, unreadable))
        self._version = listing.resource_version
        self._succeeded()
        self._set(
            synced=True,
            resource_version=listing.resource_version,
            lists=self.state.lists + 1,
            relists=self.state.lists,
        )
        self._log.info(
            "listed",
            objects=len(listing.objects),
            unreadable=len(listing.malformed),
            resource_version=listing.resource_version,
        )

    def _follow(self, lines: Iterator[bytes]) -> None:
        began = self._clock()
        heard = False
        try:
            for event in events(self._api, self._target, lines):
                if not heard:
                    heard = True
                    self._mute_streams = 0
                self._deliver(event)
        except StreamSilent as silence:
            # Half-open, or a server without bookmarks: asking again tells, and costs little.
            self._log.debug("watch fell silent, resuming", reason=str(silence))
        if heard:
            return
        self._mute_streams += 1
        if self._mute_streams >= MUTE_STREAMS:
            # Not even bookmarks: a server restored from a backup keeps quiet like this about
            # resourceVersions it has not reached yet, possibly for days.
            self._log.info("watch says nothing, listing again", resource_version=self._version)
            self._version = None
            self._mute_streams = 0
        if self._clock() - began < SHORTEST_STREAM_SECONDS:
            target = self._target.resource.plural
            raise StreamCut(f"watch {target} on {self._api.server}: the stream ended at once")

    def _deliver(self, event: Changed | Deleted | Bookmark | Malformed) -> None:
        kind = self._target.kind
        match event:
            case Changed(object=obj):
                self._reported.pop(key_of(obj), None)
                self._sink.put(Put(kind, obj))
            case Deleted(key=key):
                self._reported.pop(key, None)
                self._sink.put(Gone(kind, key))
            case Malformed():
                self._report(event, self._reported.get(event.key))
            case Bookmark():
                pass
            case _:
                assert_never(event)
        if event.resource_version:
            self._version = event.resource_version
        self._succeeded()
        self._set(resource_version=self._version or "")

    def _after(self, error: WatchError) -> float:
        """Decide from an error where to go on and how long to wait first."""
        trouble = "contact lost"
        pause = self._backoff.next_seconds()
        match error:
            case WatchExpired():
                self._version = None
                trouble = "history expired, listing again"
                if not self.state.consecutive_failures:
                    pause = 0.0
            case WatchDenied():
                trouble = "access denied"
            case WatchThrottled():
                trouble = "asked to wait"
                pause = max(pause, error.retry_after_seconds)
                if isinstance(error, VersionAhead):
                    self._ahead += 1
                    if self._ahead >= AHEAD_ANSWERS:
                        # A lagging server catches up in seconds; this one was restored.
                        self._version = None
            case StreamCut() if not self.state.consecutive_failures:
                trouble = self._trouble  # everyday: resumed in a moment, and told if that fails
                self._log.debug("watch cut, resuming", reason=str(error))
            case RequestRefused(code=400 | 422) if self._version is not None:
                self._version = None  # our resourceVersion means nothing to this server
        self._set(consecutive_failures=self.state.consecutive_failures + 1, last_error=str(error))
        if trouble != self._trouble:
            self._log.warning(trouble, reason=str(error), retry_seconds=round(pause, 1))
            self._trouble = trouble
        return pause

    def _succeeded(self) -> None:
        if self._trouble:
            self._log.info("contact regained", after=self._trouble)
            self._trouble = ""
        if self.state.consecutive_failures:
            self._set(consecutive_failures=0, last_error="")
            self._backoff.reset()
        self._ahead = 0
        self._set(last_contact_seconds=self._clock())

    def _report(self, bad: Malformed, known: str | None) -> None:
        self._reported[bad.key] = bad.reason
        if bad.reason != known:
            name = str(bad.key) if bad.key else "(nameless)"
            self._log.warning("object unreadable, kept as it was", object=name, reason=bad.reason)

    def _watch_seconds(self) -> int:
        return self._rng.randint(*WATCH_SECONDS)

    def _set(self, **changes: object) -> None:
        self.state = replace(self.state, **changes)


class KubernetesSource:
    """A `Source` that follows *kinds* on one API server; only the node *node_name* is followed."""

    def __init__(
        self,
        client: ClosableApi,
        node_name: str,
        kinds: Iterable[Kind],
        rng: Random | None = None,
    ) -> None:
        """Take over *client*: `stop` closes it, for every user of it.

        *rng* spreads pauses and the lengths of watches.
        """
        self.kinds = frozenset(kinds)
        self._client = client
        self._node_name = node_name
        self._rng = rng
        self._stopping = threading.Event()
        self._reflectors: tuple[Reflector, ...] = ()
        self._threads: tuple[threading.Thread, ...] = ()

    def start(self, sink: Sink) -> None:
        """Begin delivering to *sink*, on one thread per kind; returns at once."""
        self._reflectors = tuple(
            Reflector(
                self._client,
                Target(kind, RESOURCES[kind], selectors(kind, self._node_name)),
                sink,
                wait=self._stopping.wait,
                rng=self._rng,
            )
            for kind in sorted(self.kinds)
        )
        self._threads = tuple(
            threading.Thread(target=one.run, name=f"reflector-{one.state.kind}", daemon=True)
            for one in self._reflectors
        )
        for thread in self._threads:
            thread.start()

    def measures(self, clock: Callable[[], float] = time.monotonic) -> tuple[Measure, ...]:
        """How every watch is doing, found out when asked; *clock* is that of the reflectors."""

        def age(state: ReflectorState) -> float:
            heard = state.last_contact_seconds
            return float("inf") if heard is None else max(0.0, clock() - heard)

        def told(name: str, text: str, tell: Callable[[ReflectorState], float]) -> Readings:
            is_counter = name.endswith("_total")
            what = Text(f"pykubeproxy_watch_{name}", text, ("resource",))
            return Readings(what, lambda: self._by_resource(tell), counter=is_counter)

        return (
            told("age_seconds", "Time since the server last said anything on this watch", age),
            told(
                "failures",
                "Requests that failed since this watch was last open",
                # One that was opened again may have nothing to say for a minute.
                lambda state: 0 if state.follows else state.consecutive_failures,
            ),
            told(
                "relists_total",
                "Complete lists after the first one",
                lambda state: state.relists,
            ),
        )

    def _by_resource(self, tell: Callable[[ReflectorState], float]) -> dict[Labels, float]:
        states = [reflector.state for reflector in self._reflectors]
        return {(RESOURCES[state.kind].plural,): float(tell(state)) for state in states}

    def stop(self) -> None:
        """End all threads and connections, the blocked ones too; returns when they are gone."""
        self._stopping.set()
        self._client.close()
        for thread in self._threads:
            thread.join()
