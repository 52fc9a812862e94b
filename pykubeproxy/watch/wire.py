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
from typing import Any, assert_never

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


class BadWire(ValueError):
    """Bytes that are not what was asked for: cut off, not JSON, or another kind of document."""


class Cause(Struct, frozen=True):
    reason: str | None = None
    message: str | None = None


class StatusDetails(Struct, frozen=True):
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
_RAW_LIST = msgspec.json.Decoder(_RawList)
_LINE = msgspec.json.Decoder(_Line)
_IDENTIFIED = msgspec.json.Decoder(_Identified)
_BOOKMARK = msgspec.json.Decoder(_BookmarkObject)
_STATUS = msgspec.json.Decoder(Status)


def type_of(kind: Kind) -> type[WireObject]:
    """The struct that objects of *kind* decode to."""
    return _TYPES[kind]


def key_of(obj: WireObject) -> ObjectKey:
    """The identity of any object, as a plain `ObjectKey` (a Service's own key is another type)."""
    return ObjectKey(*obj.key)


def decode_list(kind: Kind, body: bytes) -> Listing:
    """Decode a page of a list.

    The common case is one typed decode of the whole body; only a page with a malformed object is
    read a second time, item by item.

    Raises:
        BadWire: *body* is cut off, not JSON, or not a list of *kind*.
    """
    objects: tuple[WireObject, ...] = ()
    malformed: tuple[Malformed, ...] = ()
    try:
        page = _LISTS[kind].decode(body)
        objects = page.items or ()
        # Checking all first keeps the common case free of building a second tuple.
        if any(problem_with(item) for item in objects):
            objects, malformed = _split(kind, _RAW_LIST.decode(body).items or ())
    except msgspec.ValidationError:
        try:
            page = _RAW_LIST.decode(body)
        except msgspec.MsgspecError as error:
            raise BadWire(f"not a list of {kind} objects: {error}") from error
        objects, malformed = _split(kind, page.items or ())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadWire(f"a list of {kind} objects that is cut off or not JSON: {error}") from error
    if page.kind != f"{kind}List":
        raise BadWire(f"expected a {kind}List, got {page.kind or 'a document without kind'}")
    return Listing(objects, malformed, page.metadata.resource_version, page.metadata.continue_token)


def decode_line(kind: Kind, line: bytes) -> WatchLine:
    """Decode one line of a watch.

    Raises:
        BadWire: the line is not a watch event at all; the stream cannot be trusted any more.
    """
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
    names = {
        "$.metadata.name": service.metadata.name,
        "$.metadata.namespace": service.metadata.namespace,
    }
    for index, port in enumerate(service.spec.ports or ()):
        names[f"$.spec.ports[{index}].name"] = port.name or "unnamed"
    for at, name in names.items():
        if not _NAME.fullmatch(name):
            return f"{name!r} is no name: letters, digits, '-', '.' and '_' only - at `{at}`"
    return None


def _service_problem(service: Service) -> str | None:
    spec = service.spec
    for index, port in enumerate(spec.ports or ()):
        at = f"$.spec.ports[{index}]"
        if not 1 <= port.port <= MAX_PORT:
            return f"port {port.port} is outside 1-{MAX_PORT} - at `{at}.port`"
        if port.protocol not in PROTOCOLS:
            return f"unknown protocol {port.protocol!r} - at `{at}.protocol`"
        if port.node_port is not None and not 0 <= port.node_port <= MAX_PORT:
            return f"node port {port.node_port} is outside 1-{MAX_PORT} - at `{at}.nodePort`"
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


def _name_of(kind: Kind, raw: Raw) -> ObjectKey | None:
    try:
        meta = _IDENTIFIED.decode(raw).metadata
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not meta.name or (kind in NAMESPACED and not meta.namespace):
        return None
    return ObjectKey(meta.namespace, meta.name)
