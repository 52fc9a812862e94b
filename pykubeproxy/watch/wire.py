"""From the bytes an API server sends to typed objects.

Decides what is readable: JSON types (msgspec's work) and the few value rules without which a proxy
could not go on (names, port numbers, protocols). One malformed object never costs the others: it
is reported with its name and the path of the fault, and skipped. What to do about it is the
caller's business, and so is everything that needs a connection.

Formats: Kubernetes API concepts, "Efficient detection of changes" (list, watch, bookmarks, 410),
and KEP-3157 for the bookmark that ends a streaming list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, assert_never

import msgspec
from msgspec import Raw, Struct, field

from pykubeproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectKey,
    Service,
    ServiceCIDR,
    WireObject,
)

__all__ = [
    "BadWire",
    "Bookmark",
    "Changed",
    "Deleted",
    "Failure",
    "Listing",
    "Malformed",
    "Status",
    "WatchLine",
    "decode_line",
    "decode_list",
    "decode_status",
    "key_of",
    "problem_with",
    "type_of",
]

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9._]{0,252}")
PROTOCOLS = frozenset({None, "", "TCP", "UDP", "SCTP"})  # absent and empty mean TCP
MAX_PORT = 65535
NAMESPACED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE})
PIECE_BYTES = 256 * 1024
"""How much of a list is gathered before it is decoded. Larger ones are not faster."""
# How Go writes a list: the items last, and each begins with its metadata.
_ITEMS = b'"items":['
_NEXT_ITEM = b'},{"metadata":{'


class BadWire(ValueError):
    """Bytes that are not what was asked for: cut off, not JSON, or another kind of document."""


class Cause(Struct, frozen=True):
    reason: str | None = None
    message: str | None = None


class StatusDetails(Struct, frozen=True):
    kind: str | None = None
    retry_after_seconds: int | None = field(name="retryAfterSeconds", default=None)
    causes: tuple[Cause, ...] | None = None


class Status(Struct, frozen=True):
    """meta/v1 Status: how the API server says no."""

    kind: str | None = None
    code: int | None = None
    reason: str | None = None
    message: str | None = None
    details: StatusDetails | None = None

    @property
    def retry_after_seconds(self) -> int | None:
        return self.details.retry_after_seconds if self.details else None


class Malformed(Struct, frozen=True):
    """An object that exists but cannot be used.

    *key* is ``None`` where not even the name can be read; *reason* holds the path of the fault in
    the object; *resource_version* is empty where it is unknown or does not matter (lists).
    """

    kind: Kind
    key: ObjectKey | None
    reason: str
    resource_version: str = ""


class Listing(Struct, frozen=True):
    """One page of a list, or the whole."""

    objects: tuple[WireObject, ...]
    malformed: tuple[Malformed, ...]
    resource_version: str
    continue_token: str


class Changed(Struct, frozen=True):
    """ADDED or MODIFIED. After a resume the two cannot be told apart, so nobody should try."""

    object: WireObject
    resource_version: str


class Deleted(Struct, frozen=True):
    """DELETED: removed, or no longer matching the selector."""

    key: ObjectKey
    resource_version: str


class Bookmark(Struct, frozen=True):
    """Everything up to *resource_version* has been sent."""

    resource_version: str
    ends_initial_events: bool


class Failure(Struct, frozen=True):
    """ERROR: the stream is over and says why."""

    status: Status


WatchLine = Changed | Deleted | Bookmark | Failure | Malformed


class _ListMeta(Struct, frozen=True):
    resource_version: str = field(name="resourceVersion", default="")
    continue_token: str = field(name="continue", default="")


class _ServiceList(Struct, frozen=True):
    metadata: _ListMeta
    kind: str = ""
    items: tuple[Service, ...] | None = None


class _SliceList(Struct, frozen=True):
    metadata: _ListMeta
    kind: str = ""
    items: tuple[EndpointSlice, ...] | None = None


class _NodeList(Struct, frozen=True):
    metadata: _ListMeta
    kind: str = ""
    items: tuple[Node, ...] | None = None


class _CIDRList(Struct, frozen=True):
    metadata: _ListMeta
    kind: str = ""
    items: tuple[ServiceCIDR, ...] | None = None


class _RawList(Struct, frozen=True):
    metadata: _ListMeta
    kind: str = ""
    items: tuple[Raw, ...] | None = None


class _Meta(Struct, frozen=True):
    name: str = ""
    namespace: str = ""
    resource_version: str = field(name="resourceVersion", default="")


class _BookmarkMeta(Struct, frozen=True):
    resource_version: str = field(name="resourceVersion")
    annotations: dict[str, str] | None = None


class _Identified(Struct, frozen=True):
    metadata: _Meta


class _BookmarkObject(Struct, frozen=True):
    metadata: _BookmarkMeta


class _Line(Struct, frozen=True):
    type: str
    object: Raw


class _IdentifiedLine(Struct, frozen=True):
    object: _Identified


class _ServiceLine(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED"]
    object: Service


class _SliceLine(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED"]
    object: EndpointSlice


class _NodeLine(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED"]
    object: Node


class _CIDRLine(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED"]
    object: ServiceCIDR


_TYPES: dict[Kind, type[WireObject]] = {
    Kind.SERVICE: Service,
    Kind.ENDPOINT_SLICE: EndpointSlice,
    Kind.NODE: Node,
    Kind.SERVICE_CIDR: ServiceCIDR,
}
_OBJECTS: dict[Kind, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(type_) for kind, type_ in _TYPES.items()
}
_LISTS: dict[Kind, msgspec.json.Decoder[Any]] = {
    Kind.SERVICE: msgspec.json.Decoder(_ServiceList),
    Kind.ENDPOINT_SLICE: msgspec.json.Decoder(_SliceList),
    Kind.NODE: msgspec.json.Decoder(_NodeList),
    Kind.SERVICE_CIDR: msgspec.json.Decoder(_CIDRList),
}
_LINES: dict[Kind, msgspec.json.Decoder[Any]] = {
    Kind.SERVICE: msgspec.json.Decoder(_ServiceLine),
    Kind.ENDPOINT_SLICE: msgspec.json.Decoder(_SliceLine),
    Kind.NODE: msgspec.json.Decoder(_NodeLine),
    Kind.SERVICE_CIDR: msgspec.json.Decoder(_CIDRLine),
}
_RAW_LIST = msgspec.json.Decoder(_RawList)
_LINE = msgspec.json.Decoder(_Line)
_IDENTIFIED_LINE = msgspec.json.Decoder(_IdentifiedLine)
_IDENTIFIED = msgspec.json.Decoder(_Identified)
_BOOKMARK = msgspec.json.Decoder(_BookmarkObject)
_STATUS = msgspec.json.Decoder(Status)


def type_of(kind: Kind) -> type[WireObject]:
    """The struct that objects of *kind* decode to."""
    return _TYPES[kind]


def key_of(obj: WireObject) -> ObjectKey:
    """The identity of any object, as a plain `ObjectKey` (a Service's own key is another type)."""
    return ObjectKey(*obj.key)


def decode_list(kind: Kind, body: Iterable[bytes]) -> Listing:
    """Decode a page of a list while its *body* comes in.

    Of the text no more is kept than `PIECE_BYTES` and what came last: a server without streaming
    lists sends everything in one body.

    Raises:
        BadWire: *body* is cut off, not JSON, or not a list of *kind*.
    """
    objects: list[WireObject] = []
    malformed: list[Malformed] = []
    head, rest = b"", bytearray()
    enough = PIECE_BYTES
    for chunk in body:
        rest += chunk
        if len(rest) < enough:
            continue
        if not head:
            head = _head_of(rest)
            del rest[: len(head)]
        # Whole items between the list's own beginning and an end are a list again. Were the cut
        # in another place (a string, a nested array), the brackets would not match.
        end = rest.rfind(_NEXT_ITEM) + 1 if head else 0
        try:
            piece = _decode_page(kind, head + rest[:end] + b"]}") if end else None
        except _NotJson:
            piece = None
        if piece is None:
            enough = 2 * len(rest)  # at worst the whole body, in few tries
            continue
        objects += piece.objects
        malformed += piece.malformed
        del rest[: end + 1]
        enough = PIECE_BYTES
    last = _decode_page(kind, head + rest)
    return Listing(
        (*objects, *last.objects),
        (*malformed, *last.malformed),
        last.resource_version,
        last.continue_token,
    )


def decode_line(kind: Kind, line: bytes, *, with_version: bool = True) -> WatchLine:
    """Decode one line of a watch.

    Without *with_version*, an object's ``resource_version`` stays empty, for a quarter less time:
    what a listing takes its version from is the bookmark at its end.

    Raises:
        BadWire: the line is not a watch event at all; the stream cannot be trusted any more.
    """
    # Nearly every line is a good object. It is read in one go; 10,000 slices of 5 endpoints take
    # 0.15 s that way, and 0.25 s if the event, the object and its version are read one by one.
    try:
        obj: WireObject = _LINES[kind].decode(line).object
        if problem_with(obj) is None:
            return Changed(obj, _version_of(line) if with_version else "")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    try:
        event = _LINE.decode(line)
        match event.type:
            case "ADDED" | "MODIFIED":
                return _changed(kind, event.object)
            case "DELETED":
                meta = _IDENTIFIED.decode(event.object).metadata
                return Deleted(ObjectKey(meta.namespace, meta.name), meta.resource_version)
            case "BOOKMARK":
                mark = _BOOKMARK.decode(event.object).metadata
                ends = (mark.annotations or {}).get(INITIAL_EVENTS_END) == "true"
                return Bookmark(mark.resource_version, ends)
            case "ERROR":
                return Failure(_STATUS.decode(event.object))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadWire(f"a {kind} watch sent a line that is no event: {error}") from error
    raise BadWire(f"a {kind} watch sent an event of unknown type {event.type!r}")


def decode_status(body: bytes) -> Status | None:
    """Decode the body of an error response; ``None`` where it is something else (plain text)."""
    try:
        status = _STATUS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return status if status.kind == "Status" else None


def problem_with(obj: WireObject) -> str | None:
    """Say what makes a well-typed object unusable, with its path, or ``None``.

    Only what a proxy could not go on with; anything the API merely forbids is let through.
    """
    metadata = obj.metadata
    if not metadata.name:
        return "name is empty - at `$.metadata.name`"
    match obj:
        case Service():
            if not obj.metadata.namespace:
                return "namespace is missing - at `$.metadata.namespace`"
            return _unprintable_name(obj) or _service_problem(obj)
        case EndpointSlice():
            if not obj.metadata.namespace:
                return "namespace is missing - at `$.metadata.namespace`"
            return _slice_problem(obj)
        case Node() | ServiceCIDR():
            return None
        case _:
            assert_never(obj)


def _unprintable_name(service: Service) -> str | None:
    """Names go into rule comments: what could end a quotation or a line must not get there."""
    metadata = service.metadata
    if not _NAME.fullmatch(metadata.name):
        return _no_name(metadata.name, "$.metadata.name")
    if not _NAME.fullmatch(metadata.namespace):
        return _no_name(metadata.namespace, "$.metadata.namespace")
    for index, port in enumerate(service.spec.ports or ()):
        if port.name and not _NAME.fullmatch(port.name):
            return _no_name(port.name, f"$.spec.ports[{index}].name")
    return None


def _no_name(text: str, at: str) -> str:
    return f"{text!r} is no name: letters, digits, '-', '.' and '_' only - at `{at}`"


def _service_problem(service: Service) -> str | None:
    spec = service.spec
    for index, port in enumerate(spec.ports or ()):
        at = "`$.spec.ports"
        if not 1 <= port.port <= MAX_PORT:
            return f"port {port.port} is outside 1-{MAX_PORT} - at {at}[{index}].port`"
        if port.protocol not in PROTOCOLS:
            return f"unknown protocol {port.protocol!r} - at {at}[{index}].protocol`"
        if port.node_port is not None and not 0 <= port.node_port <= MAX_PORT:
            return (
                f"node port {port.node_port} is outside 1-{MAX_PORT} - at {at}[{index}].nodePort`"
            )
    health = spec.health_check_node_port
    if health is not None and not 0 <= health <= MAX_PORT:
        return f"node port {health} is outside 1-{MAX_PORT} - at `$.spec.healthCheckNodePort`"
    config = spec.session_affinity_config
    if config is not None and config.client_ip is not None:
        seconds = config.client_ip.timeout_seconds
        # The API's own limits (core/v1 ClientIPConfig): one second to one day.
        if seconds is not None and not 0 < seconds <= 86400:
            at = "$.spec.sessionAffinityConfig.clientIP.timeoutSeconds"
            return f"timeout {seconds} is outside 1-86400 - at `{at}`"
    return None


def _slice_problem(slice_: EndpointSlice) -> str | None:
    for index, port in enumerate(slice_.ports or ()):
        # No number, or 0, is legal: that port is skipped further on.
        if port.port is not None and not 0 <= port.port <= MAX_PORT:
            return f"port {port.port} is outside 1-{MAX_PORT} - at `$.ports[{index}].port`"
        if port.protocol not in PROTOCOLS:
            return f"unknown protocol {port.protocol!r} - at `$.ports[{index}].protocol`"
    return None


def _head_of(text: bytearray) -> bytes:
    """The beginning of a list up to its first item; empty where the items do not come last."""
    head = bytes(text[: text.find(_ITEMS) + len(_ITEMS)])
    try:
        return head if _RAW_LIST.decode(head + b"]}").kind else b""
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""


class _NotJson(BadWire):
    """Cut off, or no JSON at all."""


def _decode_page(kind: Kind, document: bytes) -> Listing:
    """Decode a complete list.

    The common case is one typed decode of the whole; only a page with a malformed object is read
    a second time, item by item.
    """
    objects: tuple[WireObject, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    try:
        page = _LISTS[kind].decode(document)
        objects = page.items or ()
        # Checking all first keeps the common case free of building a second tuple.
        if any(problem_with(item) for item in objects):
            objects, malformed = _split(kind, _RAW_LIST.decode(document).items or ())
    except msgspec.ValidationError:
        try:
            page = _RAW_LIST.decode(document)
        except msgspec.ValidationError as error:
            raise BadWire(f"not a list of {kind} objects: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _NotJson(f"not a list of {kind} objects: {error}") from error
        objects, malformed = _split(kind, page.items or ())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _NotJson(f"a list of {kind} objects that is cut off or not JSON: {error}") from error
    if page.kind != f"{kind}List":
        raise BadWire(f"expected a {kind}List, got {page.kind or 'a document without kind'}")
    return Listing(objects, malformed, page.metadata.resource_version, page.metadata.continue_token)


def _split(
    kind: Kind, items: tuple[Raw, ...]
) -> tuple[tuple[WireObject, ...], tuple[Malformed, ...]]:
    good: list[WireObject] = []
    bad: list[Malformed] = []
    for item in items:
        decoded = _object(kind, item)
        if isinstance(decoded, Malformed):
            bad.append(decoded)
        else:
            good.append(decoded)
    return tuple(good), tuple(bad)


def _object(kind: Kind, raw: Raw) -> WireObject | Malformed:
    try:
        obj: WireObject = _OBJECTS[kind].decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Malformed(kind, _name_of(kind, raw), str(error))
    problem = problem_with(obj)
    if problem is not None:
        return Malformed(kind, _name_of(kind, raw), problem)
    return obj


def _changed(kind: Kind, raw: Raw) -> Changed | Malformed:
    decoded = _object(kind, raw)
    try:
        version = _IDENTIFIED.decode(raw).metadata.resource_version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        version = ""
    if isinstance(decoded, Malformed):
        return msgspec.structs.replace(decoded, resource_version=version)
    return Changed(decoded, version)


def _version_of(line: bytes) -> str:
    try:
        return _IDENTIFIED_LINE.decode(line).object.metadata.resource_version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def _name_of(kind: Kind, raw: Raw) -> ObjectKey | None:
    try:
        meta = _IDENTIFIED.decode(raw).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not meta.name or (kind in NAMESPACED and not meta.namespace):
        return None
    return ObjectKey(meta.namespace, meta.name)
