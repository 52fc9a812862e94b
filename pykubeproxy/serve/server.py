"""An HTTP/1 server of one thread: any number of ports and clients, nobody waits for anybody.

kube-proxy has a goroutine for each connection and two for each port. Here a selector does it, so
that hundreds of ports cost their sockets only. Answers come from memory and are made on the
server's thread. A client gets seconds for a request, not for each byte of it, and when there are
too many, the one that has been quiet longest goes.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from threading import Lock, Thread

import structlog
from msgspec import Struct, structs

from pykubeproxy.serve.answers import Answer, plain
from pykubeproxy.serve.messages import (
    BAD_REQUEST,
    CLOSES,
    MAX_HEAD_BYTES,
    TOO_LARGE,
    Body,
    Refusal,
    Request,
    head_end,
    http_date,
    read_head,
    response,
)

__all__ = ["HttpServer", "Listening", "Responder", "everywhere", "listen", "listen_error"]

log = structlog.get_logger(__name__)

Responder = Callable[[Request], Answer]

REQUEST_SECONDS = 10.0
"""For a request, from its first byte to its last."""
ANSWER_SECONDS = 30.0
"""For its answer to be taken."""
IDLE_SECONDS = 180.0
"""For a connection on which nothing is under way; load balancers ask every few seconds."""
LINGER_SECONDS = 0.5
"""For what a client still sends after the last answer: to close on it could destroy the answer."""
MAX_CLIENTS = 1024

_RECEIVE_BYTES = 65536
_BACKLOG = 4096  # what net.core.somaxconn is by default; the kernel takes the lesser
_ACCEPTS = 64  # and
_REQUESTS = 16  # in a row, until somebody else has a turn
_SWEEP_SECONDS = 1.0
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SHORTAGE_PAUSE_SECONDS = 0.05
_SERVER_ANSWER = Answer(HTTPStatus.OK, b"")
_EXPECTATION_FAILED = Answer(HTTPStatus.EXPECTATION_FAILED, b"", (CLOSES,))


class Listening(Struct, eq=False):
    """Sockets that listen, and who answers at them."""

    sockets: list[socket.socket]
    responder: Responder


class _Client(Struct, eq=False):
    """A connection. ``unsent`` is what of an answer the client has not taken yet."""

    listening: Listening
    socket: socket.socket
    deadline: float
    received: bytearray
    searched: int = 0  # so far no end of a head in there
    unsent: memoryview = memoryview(b"")
    request: Request | None = None  # its body is under way
    body: Body | None = None
    is_busy: bool = False  # a request has begun and is not answered
    is_last: bool = False  # the connection ends with the answer under way
    lingers: bool = False


class HttpServer:
    """One thread; ports come and go with `add` and `remove`, from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        # The one that was active last is the last.
        self._clients: dict[_Client, None] = {}
        self._unfinished: list[_Client] = []
        self._sweep_at = 0.0
        self._lock = Lock()  # guards what follows
        self._added: list[Listening] = []
        self._removed: list[Listening] = []
        self._stopping = False
        self._thread: Thread | None = None

    def start(self) -> None:
        self._thread = Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all ports and connections and end the thread. Not to be started again."""
        self._stopping = True
        self._wake()
        if self._thread is not None:
            self._thread.join()
        self._take_changes()
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # only sockets are registered
        self._wake_writer.close()
        self._selector.close()

    def add(self, listening: Listening) -> None:
        """Answer at these sockets from now on; they belong to the server."""
        with self._lock:
            self._added.append(listening)
        self._wake()

    def remove(self, listening: Listening) -> None:
        """Nobody can connect there when this returns; connections end soon after."""
        for listener in listening.sockets:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._removed.append(listening)
        self._wake()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full of wakes
            self._wake_writer.send(b".")

    # --- the thread ---

    def _run(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(self._patience()):
                match key.data:
                    case Listening() as listening:
                        self._accept(listening, key.fileobj)
                    case _Client() as client:
                        # Another's turn may have ended this one.
                        if client in self._clients:
                            self._advance(client)
                    case _:
                        self._take_changes()
            unfinished, self._unfinished = self._unfinished, []
            for client in unfinished:
                if client in self._clients:
                    self._guarded(client, self._process)
            self._sweep()

    def _patience(self) -> float | None:
        if self._unfinished:
            return 0
        return _SWEEP_SECONDS if self._clients else None

    def _take_changes(self) -> None:
        # First the wakes, then the changes: the other way round one could be missed between.
        with suppress(BlockingIOError):
            while self._wake_reader.recv(4096):
                pass
        with self._lock:
            added, self._added = self._added, []
            removed, self._removed = self._removed, []
        for listening in added:
            for listener in listening.sockets:
                self._selector.register(listener, selectors.EVENT_READ, listening)
        for listening in removed:
            for listener in listening.sockets:
                self._selector.unregister(listener)
                listener.close()
        if removed:
            gone = set(map(id, removed))
            for client in [c for c in self._clients if id(c.listening) in gone]:
                self._drop(client)

    def _accept(self, listening: Listening, listener: object) -> None:
        assert isinstance(listener, socket.socket)
        for _ in range(_ACCEPTS):
            try:
                connection, _address = listener.accept()
            except OSError as error:
                # Else the client went away, there is none, or the port was just closed.
                if error.errno in _SHORTAGE and not self._drop_quietest():
                    time.sleep(_SHORTAGE_PAUSE_SECONDS)  # others of this process have them all
                return
            connection.setblocking(False)
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if len(self._clients) >= MAX_CLIENTS:
                self._drop_quietest()
            deadline = time.monotonic() + IDLE_SECONDS
            client = _Client(listening, connection, deadline, bytearray())
            self._clients[client] = None
            self._selector.register(connection, selectors.EVENT_READ, client)

    def _advance(self, client: _Client) -> None:
        self._clients[client] = self._clients.pop(client)
        self._guarded(client, self._go_on_sending if client.unsent else self._receive)

    def _guarded(self, client: _Client, step: Callable[[_Client], None]) -> None:
        try:
            step(client)
        except BlockingIOError:
            return
        except OSError:  # the client went away
            self._drop(client)

    def _receive(self, client: _Client) -> None:
        data = client.socket.recv(_RECEIVE_BYTES)
        if not data:
            self._drop(client)
        elif not client.lingers:
            client.received += data
            self._process(client)

    def _go_on_sending(self, client: _Client) -> None:
        if self._send(client):
            self._process(client)

    def _process(self, client: _Client) -> None:
        """Answer what is complete, in order, until there is no more or the client is slow."""
        for _ in range(_REQUESTS):
            if not self._prepare(client) or not self._send(client):
                return
        self._unfinished.append(client)

    def _prepare(self, client: _Client) -> bool:
        """Make what is to be sent for the next request; false: it is not complete."""
        if client.request is None:
            refusal = self._begin(client)
            if refusal is not None:
                return self._refuse(client, refusal)
        request, body = client.request, client.body
        if request is None or body is None:
            return False
        try:
            if not body.take(client.received):
                return False
        except ValueError:
            return self._refuse(client, BAD_REQUEST)
        client.request = client.body = None
        client.is_last = body.is_too_long or not request.keeps_alive
        answer = self._ask(client.listening.responder, request, body.kept)
        date = http_date(int(time.time()))
        client.unsent = memoryview(response(answer, request, date, closes=client.is_last))
        client.deadline = time.monotonic() + ANSWER_SECONDS
        return True

    def _begin(self, client: _Client) -> Refusal | None:
        """Read the next request's head, if it is complete."""
        received = client.received
        while received and received[0] in b"\r\n":
            del received[0]  # some clients end a body with a line of its own
        if received and not client.is_busy:
            client.is_busy = True
            client.deadline = time.monotonic() + REQUEST_SECONDS
        end = head_end(received, client.searched)
        if end > MAX_HEAD_BYTES or (not end and len(received) > MAX_HEAD_BYTES):
            return TOO_LARGE
        client.searched = 0 if end else max(0, len(received) - 2)
        if not end:
            return None
        read = read_head(bytes(received[:end]))
        if isinstance(read, Refusal):
            return read
        del received[:end]
        client.request, client.body = read, Body(read)
        return None

    @staticmethod
    def _refuse(client: _Client, refusal: Refusal) -> bool:
        client.is_last = True
        client.unsent = memoryview(refusal.response)
        return True

    @staticmethod
    def _ask(responder: Responder, request: Request, body: bytes) -> Answer:
        if request.expects_too_much:
            return _EXPECTATION_FAILED
        if request.is_of_the_server:
            return _SERVER_ANSWER
        if body:
            request = structs.replace(request, body=body)
        try:
            return responder(request)
        except Exception as error:  # one page that fails is no reason to end the others
            log.error("request not answered; this is a bug", path=request.path, exc_info=True)
            return plain(
                f"{type(error).__name__}: {error}\n", code=HTTPStatus.INTERNAL_SERVER_ERROR
            )

    def _send(self, client: _Client) -> bool:
        """Send what the client takes now; true when it has all and may ask more."""
        try:
            sent = client.socket.send(client.unsent)
        except BlockingIOError:
            sent = 0
        client.unsent = client.unsent[sent:]
        if client.unsent:
            # What it asks next is not even read until it took this.
            self._selector.modify(client.socket, selectors.EVENT_WRITE, client)
            return False
        self._selector.modify(client.socket, selectors.EVENT_READ, client)
        if client.is_last:
            self._end(client)
            return False
        client.is_busy = False
        client.deadline = time.monotonic() + IDLE_SECONDS
        return True

    def _end(self, client: _Client) -> None:
        """Close; but as the client may still be sending, let it read the answer first."""
        client.lingers = True
        client.deadline = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client, None)
        self._selector.unregister(client.socket)
        client.socket.close()

    def _drop_quietest(self) -> bool:
        for client in self._clients:
            self._drop(client)
            return True
        return False

    def _sweep(self) -> None:
        now = time.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP_SECONDS
        for client in [client for client in self._clients if client.deadline <= now]:
            self._drop(client)


def listen(af: socket.AddressFamily, address: str, port: int, only_v6: bool) -> socket.socket:
    """Open one listening socket.

    Raises:
        OSError: not possible now.
    """
    listener = socket.socket(af, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if af == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        listener.bind((address, port))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def everywhere(host: str, port: int) -> socket.socket:
    """Listen at *host*; ``0.0.0.0`` and ``::`` both mean all addresses of both families.

    Raises:
        OSError: not possible now.
    """
    if host not in ("0.0.0.0", "::"):
        af = socket.AF_INET6 if ":" in host else socket.AF_INET
        return listen(af, host, port, only_v6=True)
    try:
        return listen(socket.AF_INET6, "::", port, only_v6=False)
    except OSError as error:
        # A kernel without IPv6, or where it is switched off.
        if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT):
            raise
        return listen(socket.AF_INET, "0.0.0.0", port, only_v6=False)


def listen_error(network: str, address: str, port: int, error: OSError) -> str:
    """Say what failed in Go's words, which are in Events and in people's searches."""
    shown = f"[{address}]" if ":" in address else address
    reason = (error.strerror or str(error)).lower()
    return f"listen {network} {shown}:{port}: bind: {reason}"
