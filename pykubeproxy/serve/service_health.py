"""Answers load balancers at every Service's healthCheckNodePort: has this node endpoints for it.

One thread with a selector serves all ports of a family, however many Services have one. Each
connection gets one answer and is closed; the request is not looked at beyond its end, since every
path and method gets the same answer.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock, Thread

import structlog
from msgspec import Struct

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.serve.answers import http_bytes, service_health

__all__ = ["ServiceHealth"]

log = structlog.get_logger()

_CLIENT_TIMEOUT_SECONDS = 5.0
_MAX_REQUEST_BYTES = 16384
_MAX_CLIENTS = 1024
_BACKLOG = 128


class _Listener(Struct, eq=False):
    """The sockets of one Service and what they tell."""

    key: ServiceKey
    port: int
    sockets: list[socket.socket]
    local_endpoints: int = 0


class _Client(Struct, eq=False):
    """A connection whose request or response is under way."""

    listener: _Listener
    socket: socket.socket
    deadline: float
    request: bytes = b""
    response: bytes = b""


class ServiceHealth:
    """The responders of one family.

    *addresses* are the node addresses to listen on; ``None`` means all of the family, an empty
    tuple none. *proxy_healthy* is asked at every request. *on_failure* gets the Service, its
    port and the reason when a port cannot be opened; the next `sync` or `update` tries again.
    """

    def __init__(
        self,
        family: Family,
        addresses: tuple[str, ...] | None,
        proxy_healthy: Callable[[], bool],
        on_failure: Callable[[ServiceKey, int, str], None],
    ) -> None:
        self._af = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
        everything = "0.0.0.0" if family is Family.IPV4 else "::"
        self._addresses = (everything,) if addresses is None else addresses
        self._family = family
        self._proxy_healthy = proxy_healthy
        self._on_failure = on_failure
        self._listeners: dict[ServiceKey, _Listener] = {}
        self._refused: dict[ServiceKey, tuple[int, int]] = {}
        self._clients: set[_Client] = set()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        # Guards the listeners between `sync` and the thread; held for a few system calls.
        self._lock = Lock()
        self._closed: list[_Listener] = []
        self._opened: list[_Listener] = []
        self._stopping = False
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = Thread(
            target=self._serve, name=f"service-health-{self._family.value}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close every port and end the thread. Not to be started again."""
        self.sync({})
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        else:
            self._take_changes()
        for open_socket in (self._wake_reader, self._wake_writer):
            open_socket.close()
        self._selector.close()

    def sync(self, wanted: Mapping[ServiceKey, tuple[int, int]]) -> None:
        """Serve exactly *wanted*: each Service's port and number of local ready endpoints."""
        others = (self._listeners.keys() | self._refused.keys()) - wanted.keys()
        self.update({**dict.fromkeys(others), **wanted})

    def update(self, changes: Mapping[ServiceKey, tuple[int, int] | None]) -> None:
        """Serve what *changes* says, ``None``: no more; all other Services stay as they are.

        When it returns, ports to be closed are closed and new ones listen. Costs as much as
        changes, and what was refused before. One calling thread.
        """
        wanted = {**self._refused, **changes}
        self._refused.clear()
        failures: list[tuple[ServiceKey, int, str]] = []
        with self._lock:
            # Closing comes first: a port may change hands.
            for key, check in wanted.items():
                known = self._listeners.get(key)
                if known is not None and (check is None or check[0] != known.port):
                    self._close(self._listeners.pop(key))
            for key, check in wanted.items():
                if check is None:
                    continue
                port, count = check
                known = self._listeners.get(key)
                if known is None:
                    try:
                        known = self._open(key, port)
                    except OSError as error:
                        self._refused[key] = check
                        failures.append((key, port, error.strerror or str(error)))
                        continue
                    self._listeners[key] = known
                known.local_endpoints = count
            changed = bool(self._opened or self._closed)
        if changed:
            self._wake()
        for failure in failures:
            self._on_failure(*failure)

    def _open(self, key: ServiceKey, port: int) -> _Listener:
        listener = _Listener(key, port, [])
        try:
            for address in self._addresses:
                listener.sockets.append(self._listen(address, port))
        except OSError:
            for opened in listener.sockets:
                opened.close()
            raise
        self._opened.append(listener)
        return listener

    def _listen(self, address: str, port: int) -> socket.socket:
        listening = socket.socket(self._af, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._af == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind((address, port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        return listening

    def _close(self, listener: _Listener) -> None:
        """Stop listening at once; the thread drops the descriptors from its selector."""
        for listening in listener.sockets:
            listening.shutdown(socket.SHUT_RDWR)
        self._closed.append(listener)

    def _wake(self) -> None:
        self._wake_writer.send(b".")

    # --- the thread ---------------------------------------------------------------------------

    def _serve(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(self._next_deadline()):
                match key.data:
                    case _Listener() as listener:
                        self._accept(listener, key.fileobj)
                    case _Client() as client:
                        self._advance(client)
                    case _:
                        self._take_changes()
            self._drop_late_clients()
        self._take_changes()
        for client in list(self._clients):
            self._drop(client)

    def _take_changes(self) -> None:
        # First the wake-up, then the changes: the other way round one could be lost between.
        with suppress(BlockingIOError):
            self._wake_reader.recv(4096)
        with self._lock:
            opened, self._opened = self._opened, []
            closed, self._closed = self._closed, []
        for listener in opened:
            for listening in listener.sockets:
                self._selector.register(listening, selectors.EVENT_READ, listener)
        for listener in closed:
            for listening in listener.sockets:
                self._selector.unregister(listening)
                listening.close()

    def _accept(self, listener: _Listener, listening: object) -> None:
        assert isinstance(listening, socket.socket)
        try:
            connection, _ = listening.accept()
        except OSError:  # the client went away, or the port was just closed
            return
        if len(self._clients) >= _MAX_CLIENTS:
            connection.close()
            return
        connection.setblocking(False)
        client = _Client(listener, connection, time.monotonic() + _CLIENT_TIMEOUT_SECONDS)
        self._clients.add(client)
        self._selector.register(connection, selectors.EVENT_READ, client)

    def _advance(self, client: _Client) -> None:
        """Read until the request's head is complete, then write the answer and close."""
        try:
            if not client.response:
                data = client.socket.recv(_MAX_REQUEST_BYTES)
                client.request += data
                if not data or len(client.request) > _MAX_REQUEST_BYTES:
                    self._drop(client)
                    return
                if b"\r\n\r\n" not in client.request:
                    return
                client.response = self._answer(client)
                self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
            sent = client.socket.send(client.response)
            client.response = client.response[sent:]
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        if not client.response:
            self._drop(client)

    def _answer(self, client: _Client) -> bytes:
        listener = client.listener
        answer = service_health(listener.key, listener.local_endpoints, self._proxy_healthy())
        return http_bytes(answer, head_only=client.request.startswith(b"HEAD "))

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        self._selector.unregister(client.socket)
        client.socket.close()

    def _next_deadline(self) -> float | None:
        if not self._clients:
            return None
        return max(0.0, min(client.deadline for client in self._clients) - time.monotonic())

    def _drop_late_clients(self) -> None:
        if self._clients:
            late = time.monotonic()
            for client in [client for client in self._clients if client.deadline <= late]:
                self._drop(client)
