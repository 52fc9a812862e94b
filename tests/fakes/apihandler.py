"""The HTTP half of the stand-in API server: one connection's requests and their answers."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.apianswers import Answer, Request, status_body
from tests.fakes.apievents import MERGE_PATCH, merged, problem_with_change, problem_with_event
from tests.fakes.apirights import asked_by, refusal
from tests.fakes.apistore import (
    RESOURCES,
    ApiResource,
    Object,
    decode_token,
    encode_token,
    selector,
    typed,
    untyped,
)

if TYPE_CHECKING:
    from tests.fakes.apiserver import Server

SMALL_BODY_BYTES = 2048  # Go's net/http sends a larger one in chunks
GZIP_FROM_BYTES = 128 * 1024
UNSUPPORTED = (
    "a watch stream was requested by the client but the required storage feature "
    "RequestWatchProgress is disabled"
)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        self.ended = threading.Event()
        self.mutex = threading.RLock()
        self.sent_version = 0
        self.resource: ApiResource = RESOURCES[0]
        self.match: Callable[[Object], bool] = lambda _: True

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PATCH(self) -> None:
        self._handle()

    def _handle(self) -> None:
        fake = self.server.fake
        split = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length) if length else b""
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, split.path, query, headers, body)
        with fake.changed:
            fake.requests.append(request)
            answer = next((a for a in fake.script if a.matches(request)), None)
            if answer is not None:
                fake.script.remove(answer)
            fake.changed.notify_all()
        self._hold()
        if answer is not None:
            self._scripted(answer)
        else:
            self._route(request)

    # --- routing --------------------------------------------------------------------------------

    def _route(self, request: Request) -> None:
        fake = self.server.fake
        token = request.headers.get("authorization", "").partition(" ")[2]
        user = fake.tokens.get(token)
        if user is None:
            return self._status(401, "Unauthorized", "Unauthorized")
        asked = asked_by(request)
        rights = fake.rights.get(user)
        if rights is None:
            allowed = user == "admin" or asked.resource not in fake.forbidden
        else:
            allowed = rights.allows(asked)
        if not allowed:
            return self._json(403, refusal(user, asked))
        match request.path:
            case "/readyz" | "/livez" | "/healthz":
                return self._text(200, "ok")
            case "/version":
                return self._json(200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"})
        if request.path.startswith("/apis/events.k8s.io/v1/namespaces/"):
            answer = self._patch_event if request.method == "PATCH" else self._create_event
            return answer(request)
        for resource in RESOURCES:
            if resource.plural in fake.unserved or not request.path.startswith(resource.path):
                continue
            rest = request.path[len(resource.path) :].strip("/")
            self.resource = resource
            if rest:
                return self._get(resource, rest)
            return self._watch(request) if request.is_watch else self._list(request)
        return self._text(404, "404 page not found\n")

    def _get(self, resource: ApiResource, name: str) -> None:
        obj = self.server.fake.store.state(resource).get(("", name))
        if obj is None:
            message = f'{resource.plural} "{name}" not found'
            details = {"name": name, "kind": resource.plural}
            return self._status(404, "NotFound", message, details=details)
        return self._json(200, typed(resource, obj))

    def _create_event(self, request: Request) -> None:
        fake = self.server.fake
        event = json.loads(request.body)
        namespace = request.path.split("/")[5]
        problem = problem_with_event(event, namespace)
        if problem is not None:
            return self._status(422, "Invalid", f'Event.events.k8s.io "" is invalid: {problem}')
        metadata = event.setdefault("metadata", {})
        metadata.setdefault("name", metadata.get("generateName", "") + "x7k2p")
        metadata["namespace"] = namespace
        fake.store.advance()
        metadata |= {"uid": "0", "resourceVersion": str(fake.store.version)}
        metadata |= {"creationTimestamp": "2026-11-20T00:00:00Z", "managedFields": []}
        with fake.changed:
            if self._event(namespace, metadata["name"]) is not None:
                message = f'events.events.k8s.io "{metadata["name"]}" already exists'
                return self._status(409, "AlreadyExists", message)
            fake.events.append(event)
            fake.changed.notify_all()
        return self._json(201, _full_event(event))

    def _patch_event(self, request: Request) -> None:
        fake = self.server.fake
        namespace, _, name = request.path.split("/")[5:8]
        if request.headers.get("content-type") != MERGE_PATCH:
            message = "the body of the request was in an unknown format"
            return self._status(415, "UnsupportedMediaType", message)
        with fake.changed:
            old = self._event(namespace, name)
            if old is None:
                return self._status(404, "NotFound", f'events.events.k8s.io "{name}" not found')
            new = merged(old, json.loads(request.body))
            problem = problem_with_change(old, new)
            if problem is not None:
                message = f'Event.events.k8s.io "{name}" is invalid: {problem}'
                return self._status(422, "Invalid", message)
            fake.events[fake.events.index(old)] = new
            fake.changed.notify_all()
        return self._json(200, _full_event(new))

    def _event(self, namespace: str, name: str) -> Object | None:
        """The Event of this name, if there is one."""
        for event in self.server.fake.events:
            if (event["metadata"]["namespace"], event["metadata"]["name"]) == (namespace, name):
                return event
        return None

    # --- lists ----------------------------------------------------------------------------------

    def _version(self, query: dict[str, str]) -> int | None:
        """The asked resourceVersion; ``None`` after an answer about a bad one."""
        text = query.get("resourceVersion", "") or "0"
        if text.isdigit():
            return int(text)
        message = (
            f'invalid resource version: resourceVersion: Invalid value: "{text}": '
            f'strconv.ParseUint: parsing "{text}": invalid syntax'
        )
        self._status(400, "BadRequest", message)
        return None

    def _list(self, request: Request) -> None:
        store, query = self.server.fake.store, request.query
        with store.changed:
            asked, current, compacted = self._version(query), store.version, store.compacted
        if asked is None:
            return None
        snapshot, start = current, ""
        if "continue" in query:
            try:
                snapshot, start = decode_token(query["continue"])
            except (ValueError, KeyError, TypeError) as error:
                message = f"invalid continue token: continue key is not valid: {error}"
                return self._status(400, "BadRequest", message)
            if snapshot == -1:
                snapshot = current
            elif snapshot < compacted:
                return self._continue_expired(start)
        elif asked > current:
            return self._too_large(asked, current)
        elif query.get("resourceVersionMatch") == "Exact":
            snapshot = asked
            if asked < compacted:
                message = "The resourceVersion for the provided list is too old."
                return self._status(410, "Expired", message)
        match = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        state = store.state(self.resource, snapshot)
        found = [(k, o) for k, o in state.items() if match(o) and _after(k, start)]
        metadata: Object = {"resourceVersion": str(snapshot)}
        # From the watch cache ("0") everything comes at once, whatever the limit.
        limit = int(query.get("limit", 0)) if query.get("resourceVersion") != "0" else 0
        if limit and len(found) > limit:
            metadata["continue"] = encode_token(snapshot, found[limit - 1][0])
            if not (query.get("labelSelector") or query.get("fieldSelector")):
                metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        return self._json(
            200,
            {
                "kind": f"{self.resource.kind}List",
                "apiVersion": self.resource.api_version,
                "metadata": metadata,
                "items": [untyped(obj) for _, obj in found],
            },
        )

    def _continue_expired(self, start: str) -> None:
        message = (
            "The provided continue parameter is too old to display a consistent list result. You "
            "can start a new list without the continue parameter, or use the continue token in "
            "this response to retrieve the remainder of the results. Continuing with the provided "
            "token results in an inconsistent list - objects that were created, modified, or "
            "deleted between the time the first chunk was returned and now may show up in the list."
        )
        token = encode_token(-1, ("", start.rstrip("\0")))
        self._status(410, "Expired", message, metadata={"continue": token})

    def _too_large(self, asked: int, current: int) -> None:
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        body = status_body(
            504,
            "Timeout",
            f"Timeout: Too large resource version: {asked}, current: {current}",
            details={"causes": [cause], "retryAfterSeconds": 1},
        )
        self._json(504, body, {"Retry-After": "1"})

    # --- watches --------------------------------------------------------------------------------

    def _watch(self, request: Request) -> None:
        fake, query = self.server.fake, request.query
        store = fake.store
        asked = self._version(query)
        if asked is None:
            return None
        self.ended.clear()  # a kept connection may have had a watch that was ended
        streaming = query.get("sendInitialEvents") == "true"
        if streaming and fake.streaming_lists == "invalid":
            message = (
                'ListOptions.meta.k8s.io "" is invalid: sendInitialEvents: Forbidden: '
                "sendInitialEvents is forbidden for watch unless the WatchList feature gate is "
                "enabled"
            )
            return self._status(422, "Invalid", message)
        self._begin_stream(200, {"Content-Type": "application/json"})
        self.allows_bookmarks = fake.bookmarks and query.get("allowWatchBookmarks") == "true"
        if streaming and fake.streaming_lists == "error":
            self._send_event("ERROR", status_body(500, "InternalError", UNSUPPORTED))
            return self._end_stream()
        if asked and asked < store.compacted:
            message = f"too old resource version: {asked} ({store.compacted})"
            self._send_event("ERROR", status_body(410, "Expired", message))
            return self._end_stream()
        match = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""))
        self.match = match
        self.sent_version = asked
        if not asked:
            with store.changed:
                self.sent_version = store.version
                objects = list(store.state(self.resource).values())
            for obj in objects:
                if match(obj):
                    self._send_event("ADDED", typed(self.resource, obj))
            if streaming and fake.streaming_lists == "on":
                self.send_bookmark({"k8s.io/initial-events-end": "true"})
        with fake.changed:
            fake._watches.add(self)
            fake.changed.notify_all()
        try:
            self._live(match, float(query.get("timeoutSeconds", 1800)))
        finally:
            with fake.changed:
                fake._watches.discard(self)
                fake.changed.notify_all()
        return self._end_stream()

    def _live(self, match: Callable[[Object], bool], seconds: float) -> None:
        fake = self.server.fake
        store = fake.store
        ends = time.monotonic() + seconds * fake.second
        # The cacher sends a bookmark two seconds before the end, and one each minute.
        bookmark_at = ends - 2 * fake.second
        while not self.ended.is_set() and time.monotonic() < ends:
            for version, kind, obj in store.events(self.resource, self.sent_version, match):
                with self.mutex:
                    self._send_event(kind, typed(self.resource, obj))
                    self.sent_version = version
            now = time.monotonic()
            if now >= bookmark_at:
                bookmark_at = ends + 1
                self.send_bookmark()
            with store.changed:
                pending = any(
                    c.version > self.sent_version and c.resource is self.resource
                    for c in store.log
                    if match(c.new or {"metadata": {}}) or match(c.old or {"metadata": {}})
                )
                if not pending and not self.ended.is_set():
                    store.changed.wait(max(0.001, min(bookmark_at, ends) - now))

    def send_bookmark(self, annotations: dict[str, str] | None = None) -> None:
        """Say how far this watch has come: never beyond a change that it has not been told.

        With *annotations* it is the one that ends the initial events.
        """
        store = self.server.fake.store
        with self.mutex:
            with store.changed:
                version = self.sent_version
                untold = any(store.events(self.resource, version, self.match))
                if not annotations and (not self.allows_bookmarks or version > store.version):
                    return  # the client waits for a future that this server has not seen
                if not annotations and not untold:
                    version = store.version
            self.sent_version = version
            metadata: Object = {"resourceVersion": str(version)}
            if annotations:
                metadata["annotations"] = annotations
            bare = {**self.resource.empty, "metadata": metadata}
            self._send_event("BOOKMARK", typed(self.resource, bare))

    def _send_event(self, kind: str, obj: Object) -> None:
        self.send_chunk(_dump({"type": kind, "object": obj}) + b"\n")

    # --- replies --------------------------------------------------------------------------------

    def send_chunk(self, data: bytes) -> None:
        self._hold()
        with self.mutex:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

    def _hold(self) -> None:
        fake = self.server.fake
        while fake.frozen.is_set() and fake._server is not None:
            time.sleep(0.01)

    def _begin_stream(self, code: int, headers: dict[str, str]) -> None:
        self.send_response_only(code)
        self.send_header("Cache-Control", "no-cache, private")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def _status(self, code: int, reason: str, message: str, **more: Any) -> None:
        body = status_body(code, reason, message, **more)
        self._json(code, body, {"Retry-After": "1"} if code == 429 else {})

    def _text(self, code: int, text: str) -> None:
        self._send(code, text.encode(), {"Content-Type": "text/plain; charset=utf-8"})

    def _json(self, code: int, body: Object, headers: dict[str, str] | None = None) -> None:
        content = {"Content-Type": "application/json", **(headers or {})}
        self._send(code, _dump(body) + b"\n", content)

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        if len(body) > GZIP_FROM_BYTES and "gzip" in self.headers.get("Accept-Encoding", ""):
            body, headers = gzip.compress(body, 1), {**headers, "Content-Encoding": "gzip"}
        if len(body) > SMALL_BODY_BYTES:
            self._begin_stream(code, headers)
            for part in _pieces(body, 16384):
                self.send_chunk(part)
            return self._end_stream()
        self.send_response_only(code)
        headers = {"Cache-Control": "no-cache, private", **headers}
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        return None

    def _scripted(self, answer: Answer) -> None:
        if not answer.hang and answer.cut is None:
            return self._send(answer.status, answer.body, answer.headers)
        self._begin_stream(answer.status, answer.headers)
        body = answer.body if answer.cut is None else answer.body[: answer.cut]
        for part in _pieces(body, 16384):
            self.send_chunk(part)
        if answer.hang:
            self.ended.wait(60)
        self.close_connection = True
        return None


def _after(key: tuple[str, str], start: str) -> bool:
    return not start or "/".join(part for part in key if part) + "\0" > start


def _pieces(body: bytes, size: int) -> Iterable[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


def _dump(body: Object) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def _full_event(event: Object) -> Object:
    """With what the server fills in."""
    return {
        "kind": "Event",
        "apiVersion": "events.k8s.io/v1",
        **event,
        "deprecatedSource": {},
        "deprecatedFirstTimestamp": None,
        "deprecatedLastTimestamp": None,
    }
