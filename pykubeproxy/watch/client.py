"""Requests to the API server: connections, headers, deadlines, and what its refusals mean.

Connections are urllib3's, set up by whoever read the credential. What is listed when, and what
follows a failure, is the reflector's business.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import msgspec
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from pykubeproxy.errors import (
    ConfigError,
    StreamCut,
    StreamSilent,
    WatchDenied,
    WatchError,
    WatchThrottled,
)
from pykubeproxy.watch.credentials import Credentials
from pykubeproxy.watch.failures import error_for, explain
from pykubeproxy.watch.login import loader_for
from pykubeproxy.watch.requests import RequestMeasures
from pykubeproxy.watch.resources import EVENTS, Resource
from pykubeproxy.watch.wire import Status, decode_status

__all__ = ["ApiServer", "LineStream"]

CONNECT_SECONDS = 10.0
LIST_READ_SECONDS = 60.0  # the server's own limit for a list
# The server sends a bookmark about every minute; after two of them missed the connection is dead.
STREAM_READ_SECONDS = 150.0
_CHUNK_BYTES = 65536
# As client-go and Go's net package set them: a dead peer is noticed by the kernel in three minutes.
_KEEPALIVE = [
    *HTTPConnection.default_socket_options,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9),
]


class LineStream(Protocol):
    """An open watch."""

    def __iter__(self) -> Iterator[bytes]:
        """Yield complete lines until the server ends the stream; a partial last line is dropped.

        Raises:
            StreamCut: the connection broke.
            StreamSilent: nothing came within the read deadline.
        """

    def set_read_seconds(self, seconds: float) -> None:
        """Change how long the stream may be silent."""

    def close(self) -> None:
        """Give up the connection; safe to call twice."""


class ApiServer:
    """Requests with the credential of the moment; safe to use from several threads.

    A 401 makes the next request load the credential afresh (kubeconfig replaced, exec plugin asked
    again), once per credential. `close` ends every running request at once, and for good.
    """

    def __init__(
        self,
        load: Callable[[], Credentials],
        user_agent: str = "pykubeproxy",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the credential.

        Raises:
            ConfigError: what *load* raises for a kubeconfig that cannot be used.
        """
        self.requests = RequestMeasures()
        self._load = load
        self._user_agent = user_agent
        self._clock = clock
        self._sockets = _Sockets()
        self._lock = threading.Lock()
        self._stale = False
        self._credentials = load()
        self._pool = self._sockets.pool_for(self._credentials)
        self.requests.transport_made(self._credentials.plugin_worked)

    @classmethod
    def from_flags(
        cls, kubeconfig: str | None, master: str | None, context: str | None = None
    ) -> ApiServer:
        """As kube-proxy's ``--kubeconfig`` and ``--master``; neither means in-cluster."""
        return cls(loader_for(kubeconfig, master, context))

    @property
    def server(self) -> str:
        return self._credentials.server

    def list(self, resource: Resource, query: Mapping[str, str]) -> Iterator[bytes]:
        """Ask for a list, and yield its body as it comes; returns when the server has answered.

        Raises:
            WatchError: or one of its subclasses, here or while the body is read; its text names
                the server and what to do.
        """
        headers = {"Accept-Encoding": "gzip"}
        started = self._clock()
        response = self._request(
            "list", resource, "GET", resource.path, query, headers, LIST_READ_SECONDS
        )
        return self._chunks(response, f"list {resource.plural}", started)

    def watch(
        self,
        resource: Resource,
        query: Mapping[str, str],
        read_seconds: float = STREAM_READ_SECONDS,
    ) -> LineStream:
        """Open a watch (``watch=1`` is added); returns when the server has accepted it.

        Raises:
            WatchError: as in `list`.
        """
        query = {"watch": "1", **query}
        response = self._request("watch", resource, "GET", resource.path, query, {}, read_seconds)
        where = f"watching {resource.plural} on {self.server}"
        return _Stream(response, self._sockets.of(response), where)

    def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Post one events.k8s.io/v1 Event.

        Raises:
            WatchError: as in `list`.
        """
        self._write_event("create", "POST", namespace, "", body, "application/json")

    def patch_event(self, namespace: str, name: str, patch: Mapping[str, Any]) -> None:
        """Merge *patch* into one events.k8s.io/v1 Event (RFC 7386).

        Raises:
            WatchError: as in `list`.
        """
        content_type = "application/merge-patch+json"
        self._write_event("patch", "PATCH", namespace, f"/{quote(name)}", patch, content_type)

    def _write_event(
        self,
        verb: str,
        method: str,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        content_type: str,
    ) -> None:
        prefix = f"/apis/{EVENTS.group}/{EVENTS.version}/namespaces/{namespace}"
        path = f"{prefix}/{EVENTS.plural}{name}"
        headers = {"Content-Type": content_type}
        started = self._clock()
        response = self._request(
            verb, EVENTS, method, path, {}, headers, CONNECT_SECONDS, msgspec.json.encode(body)
        )
        answer = self._body(response, f"{verb} events")
        self.requests.read(method, self.server, self._clock() - started, len(answer))

    def close(self) -> None:
        """End every running request, in whatever thread; later ones fail at once."""
        self._sockets.close()

    def _request(
        self,
        verb: str,
        resource: Resource,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        read_seconds: float,
        body: bytes | None = None,
    ) -> urllib3.BaseHTTPResponse:
        doing = f"{verb} {resource.plural}"
        credentials, pool = self._current()
        sent = {"Accept": "application/json", "User-Agent": self._user_agent, **headers}
        authorization = credentials.authorization()
        if authorization is not None:
            sent["Authorization"] = authorization
        url = credentials.server + path
        if query:
            url += "?" + urlencode(query)
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds)
        streams = verb == "watch"
        self.requests.asked(method, credentials.server, None if streams else len(body or b""))
        started = self._clock()
        try:
            response = pool.urlopen(
                method,
                url,
                body=body,
                headers=sent,
                timeout=timeout,
                retries=False,
                preload_content=False,
            )
        except (HTTPError, ValueError) as error:
            self.requests.answered(method, credentials.server, None)
            if not streams:
                self.requests.read(method, credentials.server, self._clock() - started, None)
            advice = credentials.if_unreachable
            raise WatchError(explain(doing, credentials.server, error, advice)) from error
        self.requests.answered(method, credentials.server, response.status)
        if 200 <= response.status < 300:
            return response
        raw = self._body(response, doing)
        if not streams:
            seconds = self._clock() - started
            self.requests.read(method, credentials.server, seconds, len(raw))
        if response.status == 401:
            self._suspect(credentials)
        status = decode_status(raw) or Status(message=raw[:200].decode("utf-8", "replace").strip())
        refusal = error_for(
            status,
            verb,
            resource,
            credentials.server,
            credential=credentials.description,
            code=response.status,
            retry_after=response.headers.get("Retry-After"),
        )
        if isinstance(refusal, WatchThrottled):
            self.requests.will_retry(method, credentials.server, response.status)
        raise refusal

    def _chunks(
        self, response: urllib3.BaseHTTPResponse, doing: str, started: float
    ) -> Iterator[bytes]:
        size = 0
        try:
            for chunk in response.stream(_CHUNK_BYTES, decode_content=True):
                size += len(chunk)
                yield chunk
            self.requests.read("GET", self.server, self._clock() - started, size)
        except (HTTPError, ValueError) as error:
            raise WatchError(explain(doing, self.server, error)) from error
        finally:
            # Read to its end, the connection is back in the pool by now, and this does nothing.
            response.close()

    def _body(self, response: urllib3.BaseHTTPResponse, doing: str) -> bytes:
        try:
            return response.data
        except (HTTPError, ValueError) as error:
            raise WatchError(explain(doing, self.server, error)) from error
        finally:
            response.release_conn()

    def _current(self) -> tuple[Credentials, urllib3.PoolManager]:
        with self._lock:
            if self._stale:
                try:
                    self._credentials = self._load()
                except ConfigError as error:
                    # Good at start and broken since: no reason to end, it may be put right.
                    raise WatchDenied(f"the credential cannot be loaded again: {error}") from error
                # Streams on the old pool live on; it goes when the last of them has ended.
                self._pool = self._sockets.pool_for(self._credentials)
                self.requests.transport_made(self._credentials.plugin_worked)
                self._stale = False
            return self._credentials, self._pool

    def _suspect(self, credentials: Credentials) -> None:
        with self._lock:
            self._stale = self._stale or credentials is self._credentials


class _Stream:
    """A watch response cut into lines."""

    def __init__(
        self, response: urllib3.BaseHTTPResponse, sock: socket.socket | None, where: str
    ) -> None:
        self._response = response
        self._socket = sock
        self._where = where

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        try:
            for chunk in self._chunks():
                *lines, pending = (pending + chunk).split(b"\n")
                yield from filter(None, lines)
        except ReadTimeoutError as error:
            raise StreamSilent(f"{self._where}: nothing came, not even a bookmark") from error
        except (HTTPError, ValueError, OSError) as error:
            # ValueError: http.client's word for a socket that was closed under it.
            raise StreamCut(f"{self._where}: the stream was cut: {error}") from error

    def set_read_seconds(self, seconds: float) -> None:
        if self._socket is not None:
            self._socket.settimeout(seconds)

    def close(self) -> None:
        # Never back to the pool: a stream is not read to its end.
        self._response.close()

    def _chunks(self) -> Iterator[bytes]:
        response = self._response
        if isinstance(response, urllib3.HTTPResponse) and response.chunked:
            yield from response.read_chunked(_CHUNK_BYTES)
            return
        while chunk := response.read1(_CHUNK_BYTES):
            yield chunk


class _Sockets:
    """Every open socket, so that `close` can end reads that block in other threads.

    urllib3's own ``HTTPResponse.shutdown`` comes too late for a server that never answers, and
    needs the response at hand.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[int, socket.socket] = {}
        self._closed = False

    def add(self, sock: socket.socket) -> None:
        with self._lock:
            # Sockets that urllib3 has closed since are forgotten here: it tells nobody.
            self._open = {id(one): one for one in self._open.values() if one.fileno() >= 0}
            self._open[id(sock)] = sock
            if self._closed:
                _shutdown(sock)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for sock in self._open.values():
                _shutdown(sock)

    def of(self, response: urllib3.BaseHTTPResponse) -> socket.socket | None:
        # Not `connection.sock`: http.client lets go of it after a "Connection: close" header.
        sock = getattr(response.connection, "opened", None)
        return sock if isinstance(sock, socket.socket) else None

    def pool_for(self, credentials: Credentials) -> urllib3.PoolManager:
        """The pool that belongs to *credentials*, with our connections in it."""
        pool = credentials.make_pool(_KEEPALIVE)
        sockets = self

        class Plain(HTTPConnection):
            opened: socket.socket | None = None

            def connect(self) -> None:
                super().connect()
                self.opened = self.sock
                sockets.add(self.sock)

        class Secure(HTTPSConnection):
            opened: socket.socket | None = None

            def connect(self) -> None:
                super().connect()
                self.opened = self.sock
                sockets.add(self.sock)

        class PlainPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Secure

        pool.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
        return pool


def _shutdown(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed already
        # Not SSLSocket.shutdown, which takes the TLS object away from the thread that reads it.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
