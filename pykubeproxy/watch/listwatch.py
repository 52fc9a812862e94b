"""The list and watch protocol as small functions over an API that can be replaced in tests.

Nothing here keeps state, waits or retries: these functions ask once, and either return a complete
answer or raise what went wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from msgspec import Struct

from pykubeproxy.errors import RequestRefused, StreamCut, StreamSilent, WatchError, WatchExpired
from pykubeproxy.model.objects import Kind, ObjectKey, WireObject
from pykubeproxy.watch.client import LineStream
from pykubeproxy.watch.failures import error_for
from pykubeproxy.watch.resources import Resource
from pykubeproxy.watch.wire import (
    BadWire,
    Bookmark,
    Changed,
    Deleted,
    Failure,
    Listing,
    Malformed,
    WatchLine,
    decode_line,
    decode_list,
    key_of,
)

__all__ = [
    "Api",
    "StreamingRefused",
    "Target",
    "events",
    "initial_listing",
    "list_in_pages",
    "open_streaming_list",
    "open_watch",
]

PAGE_OBJECTS = 500  # as client-go's pager
# Until the initial events are complete; afterwards the client's own, longer deadline holds.
INITIAL_SILENCE_SECONDS = 10.0
INITIAL_TOTAL_SECONDS = 60.0
HEADERS_SECONDS = 60.0
_REFUSALS = frozenset({400, 404, 405, 406, 415, 422, 500, 501})


class Api(Protocol):
    """The two requests a reflector makes; `pykubeproxy.watch.client.ApiServer` has them."""

    @property
    def server(self) -> str: ...

    def list(self, resource: Resource, query: Mapping[str, str]) -> Iterator[bytes]: ...

    def watch(
        self, resource: Resource, query: Mapping[str, str], read_seconds: float = ...
    ) -> LineStream: ...


class Target(Struct, frozen=True):
    """What one reflector follows."""

    kind: Kind
    resource: Resource
    selectors: dict[str, str]


class StreamingRefused(WatchError):
    """The server does not do streaming lists (KEP-3157); ask for pages instead."""


def list_in_pages(api: Api, target: Target, resource_version: str | None) -> Listing:
    """List everything, in pages; the result is one consistent snapshot.

    *resource_version* ``"0"`` takes what the server has in its cache (and it then ignores the page
    size), ``None`` the newest state.

    Raises:
        WatchError: nothing was delivered.
    """
    query = {**target.selectors, "limit": str(PAGE_OBJECTS)}
    if resource_version is not None:
        query["resourceVersion"] = resource_version
    objects: list[WireObject] = []
    malformed: list[Malformed] = []
    page = _page(api, target, query)
    while page.continue_token:
        objects += page.objects
        malformed += page.malformed
        # The server refuses a resourceVersion beside a continue token, which holds its own.
        query = {**target.selectors, "limit": str(PAGE_OBJECTS), "continue": page.continue_token}
        try:
            page = _page(api, target, query)
        except WatchExpired:
            # The token outlived the server's history. Its Status offers to go on inconsistently;
            # a deletion could be missed that way. One unpaged list cannot expire half-way.
            return _page(api, target, dict(target.selectors))
    return Listing(
        (*objects, *page.objects), (*malformed, *page.malformed), page.resource_version, ""
    )


def open_streaming_list(api: Api, target: Target, timeout_seconds: int) -> LineStream:
    """Ask for a streaming list of the newest state, which then goes on as a watch.

    Raises:
        StreamingRefused: the server knows no such thing, and said so.
        WatchError: any other failure.
    """
    query = {
        **target.selectors,
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(timeout_seconds),
    }
    try:
        stream = api.watch(target.resource, query, HEADERS_SECONDS)
    except RequestRefused as error:
        if error.code in _REFUSALS:
            raise StreamingRefused(str(error)) from error
        raise
    stream.set_read_seconds(INITIAL_SILENCE_SECONDS)
    return stream


def open_watch(api: Api, target: Target, resource_version: str, timeout_seconds: int) -> LineStream:
    """Ask for everything after *resource_version*.

    Raises:
        WatchError: as in `Api.watch`.
    """
    query = {
        **target.selectors,
        "resourceVersion": resource_version,
        "allowWatchBookmarks": "true",
        "timeoutSeconds": str(timeout_seconds),
    }
    return api.watch(target.resource, query)


def initial_listing(
    api: Api, target: Target, lines: Iterator[bytes], clock: Callable[[], float]
) -> Listing:
    """Read the initial events of a streaming list up to the bookmark that ends them.

    Takes no line beyond that bookmark, so the caller goes on with *lines*. Changes may be mixed
    in before it: the server sends them as they happen.

    Raises:
        StreamingRefused: the server ignores ``sendInitialEvents`` (releases before 1.27 do so
            silently), as shown by an ordinary bookmark, by silence, or by the deadline.
        StreamCut: the stream ended early.
        WatchError: an ERROR event.
    """
    deadline = clock() + INITIAL_TOTAL_SECONDS
    objects: dict[ObjectKey, WireObject] = {}
    malformed: dict[ObjectKey, Malformed] = {}
    nameless: list[Malformed] = []
    where = f"streaming list of {target.resource.plural} on {api.server}"
    try:
        for line in lines:
            match _line(api, target, line, with_version=False):
                case Changed(object=obj):
                    key = key_of(obj)
                    objects[key] = obj
                    malformed.pop(key, None)
                case Deleted(key=gone):
                    objects.pop(gone, None)
                    malformed.pop(gone, None)
                case Malformed(key=None) as bad:
                    nameless.append(bad)
                case Malformed(key=ObjectKey() as named) as bad:
                    objects.pop(named, None)
                    malformed[named] = bad
                case Bookmark(ends_initial_events=True, resource_version=version):
                    bad_ones = (*malformed.values(), *nameless)
                    return Listing(tuple(objects.values()), bad_ones, version, "")
                case Bookmark():
                    raise StreamingRefused(f"{where}: an ordinary bookmark came first")
                case Failure(status=status):
                    error = error_for(status, "watch", target.resource, api.server)
                    if isinstance(error, RequestRefused) and error.code in _REFUSALS:
                        raise StreamingRefused(str(error))
                    raise error
            if clock() > deadline:
                raise StreamingRefused(f"{where}: no end after {INITIAL_TOTAL_SECONDS:g} s")
    except StreamSilent as silence:
        raise StreamingRefused(f"{where}: silence before its end") from silence
    raise StreamCut(f"{where}: the stream ended before the list was complete")


def events(
    api: Api, target: Target, lines: Iterator[bytes]
) -> Iterator[Changed | Deleted | Bookmark | Malformed]:
    """Decode a live watch until the server ends it.

    Raises:
        WatchError: an ERROR event (410 as `WatchExpired`), a line that is no event, or a cut.
    """
    for line in lines:
        event = _line(api, target, line)
        if isinstance(event, Failure):
            raise error_for(event.status, "watch", target.resource, api.server)
        yield event


def _page(api: Api, target: Target, query: dict[str, str]) -> Listing:
    try:
        return decode_list(target.kind, api.list(target.resource, query))
    except BadWire as error:
        raise _not_an_api(f"list {target.resource.plural}", api, error) from error


def _line(api: Api, target: Target, line: bytes, *, with_version: bool = True) -> WatchLine:
    try:
        return decode_line(target.kind, line, with_version=with_version)
    except BadWire as error:
        raise _not_an_api(f"watch {target.resource.plural}", api, error) from error


def _not_an_api(doing: str, api: Api, error: BadWire) -> WatchError:
    return WatchError(f"{doing} on {api.server}: {error}; does something in between answer?")
