"""Servers and clients in every namespace of a lab, all driven by one thread.

A socket belongs for life to the namespace it was made in, so one thread that enters a namespace
just long enough to make a socket can serve and probe everywhere at once: no process per
namespace, no start-up time, nothing left behind when the test process dies.

Servers say who they are and whom they saw: ``name port peer-address``. TCP servers then keep the
connection and echo. UDP servers answer from the address they were asked at. SCTP, where the kernel
has it, is used as TCP is: one association per socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import heapq
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from enum import Enum
from functools import cache
from ipaddress import ip_address
from itertools import count
from typing import Any, NamedTuple

__all__ = [
    "REFUSED",
    "TIMEOUT",
    "Answer",
    "AttendedTime",
    "Burst",
    "Connection",
    "Reply",
    "Silence",
    "Traffic",
    "has_sctp",
]

CLONE_NEWNET = 0x40000000
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IP_PKTINFO = 8
IP_RECVERR = 11
IPV6_RECVERR = 25
_REFUSALS = (
    *(errno.ECONNREFUSED, errno.ECONNRESET),
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES),
)
_SOURCE_PORTS = range(32768, 60000)
_STEP_SECONDS = 0.05
_KINDS = {
    "TCP": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "UDP": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "SCTP": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


@cache
def has_sctp() -> bool:
    """Tell whether this kernel has SCTP sockets; asking loads the module where there is one."""
    try:
        socket.socket(socket.AF_INET, *_KINDS["SCTP"]).close()
    except OSError:
        return False
    return True


class Answer(NamedTuple):
    """Who answered a probe, on which port, and the client address it saw."""

    server: str
    port: int
    source: str


class Silence(Enum):
    """Why there was no answer."""

    REFUSED = "refused"  # at once: RST or ICMP unreachable
    TIMEOUT = "timeout"


REFUSED = Silence.REFUSED
TIMEOUT = Silence.TIMEOUT
Reply = Answer | Silence


class Burst(NamedTuple):
    """What a series of probes met: servers as ``name:port``, sources, and the unanswered."""

    servers: Counter[str]
    sources: Counter[str]
    silent: Counter[Silence]


class Connection:
    """A TCP connection held open through the proxy; `ask` shows that it still works."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self._sock = sock
        self.answer = answer

    def ask(self, text: bytes = b"ping\n", timeout: float = 2.0) -> bytes:
        """Send *text* and return the echo; raises OSError when the connection is dead."""
        self._sock.settimeout(timeout)
        self._sock.sendall(text)
        return self._sock.recv(len(text))

    def close(self) -> None:
        self._sock.close()


class _Libc:
    _lib = ctypes.CDLL(None, use_errno=True)

    @classmethod
    def enter(cls, namespace: int) -> None:
        if cls._lib.setns(namespace, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"entering a network namespace: {os.strerror(code)}")


class AttendedTime:
    """Seconds during which somebody looked: a host that stalls does not use up a timeout.

    Between two looks at most *step* seconds count. A machine that stood still for five seconds
    answered nothing in that time, and lost nothing either.
    """

    def __init__(
        self, step: float = _STEP_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._step = step
        self._clock = clock
        self._seen = clock()
        self._seconds = 0.0

    def look(self) -> float:
        """The attended seconds until now. To be asked at least every *step*."""
        now = self._clock()
        self._seconds += min(now - self._seen, self._step)
        self._seen = now
        return self._seconds


class Traffic:
    """The one thread behind all servers and probes of a lab.

    *namespaces* maps a role to an open file descriptor of its network namespace. Timeouts are in
    `AttendedTime`.
    """

    def __init__(self, namespaces: dict[str, int]) -> None:
        # A table of probes that time out holds its sockets all at once.
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 16), hard))
        self._namespaces = namespaces
        self._selector = selectors.DefaultSelector()
        self._jobs: deque[Callable[[], None]] = deque()
        self._time = AttendedTime()
        self._deadlines: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = count()
        self._source_ports = {role: count() for role in namespaces}
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_r, selectors.EVENT_READ, self._drain_wakeups)
        self._stopping = False
        self._sockets: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, name="lab-traffic", daemon=True)
        self._thread.start()

    # --- used by any thread -------------------------------------------------------------------

    def run_in(self, role: str, work: Callable[[], Any]) -> Any:
        """Run *work* with the network namespace of *role* entered; returns its result."""
        future: Future[Any] = Future()

        def job() -> None:
            try:
                _Libc.enter(self._namespaces[role])
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        self._submit(job)
        return future.result()

    def serve(self, role: str, ports: Iterable[int], protocols: Iterable[str]) -> None:
        """Answer on *ports* of all addresses of *role*, in both families."""

        def work() -> None:
            for protocol in protocols:
                for port in ports:
                    for family in (socket.AF_INET, socket.AF_INET6):
                        self._listen(role, family, protocol, port)

        self.run_in(role, work)

    def start_probe(
        self,
        role: str,
        target: str,
        port: int,
        protocol: str = "TCP",
        source: str | None = None,
        timeout: float = 0.6,
    ) -> Future[Reply]:
        """Begin one probe from a source port that no probe of this lab used lately."""
        future: Future[Reply] = Future()

        def job() -> None:
            try:
                self._probe(role, target, port, protocol, source, timeout, future)
            except BaseException as error:
                future.set_exception(error)

        self._submit(job)
        return future

    def connect(self, role: str, target: str, port: int, timeout: float = 2.0) -> Connection:
        """Open a TCP connection and keep it."""

        def work() -> socket.socket:
            sock = self._socket(_family(target), "TCP")
            self._bind_new_port(role, sock, None)
            self._sockets.discard(sock)
            return sock

        sock: socket.socket = self.run_in(role, work)
        try:
            sock.settimeout(timeout)
            sock.connect((target, port))
            return Connection(sock, _parse(sock.recv(200)))
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """End the thread and close every socket."""
        self._stopping = True
        self._wake()
        self._thread.join()
        for sock in list(self._sockets):
            sock.close()
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    # --- used by the traffic thread only ------------------------------------------------------

    def _submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_w, b".")

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)

    def _run(self) -> None:
        while not self._stopping:
            pause = None
            if self._deadlines:
                pause = min(_STEP_SECONDS, max(0.0, self._deadlines[0][0] - self._time.look()))
            for key, _ in self._selector.select(pause):
                if key.fileobj == self._wake_r or key.fileobj in self._sockets:
                    key.data()
            while self._jobs:
                self._jobs.popleft()()
            now = self._time.look()
            while self._deadlines and self._deadlines[0][0] <= now:
                heapq.heappop(self._deadlines)[2]()

    def _socket(self, family: socket.AddressFamily, protocol: str) -> socket.socket:
        kind, number = _KINDS[protocol]
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, number)
        self._sockets.add(sock)
        return sock

    def _close(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._sockets.discard(sock)
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            sock.close()

    def _listen(self, role: str, family: socket.AddressFamily, protocol: str, port: int) -> None:
        sock = self._socket(family, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        handler: Callable[[], None]
        if protocol == "UDP":
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            handler = lambda: self._answer_datagram(role, sock, port)  # noqa: E731 - one of two
        else:
            handler = lambda: self._accept(role, sock, port)  # noqa: E731 - one of two
        sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
        if protocol != "UDP":
            sock.listen(4096)
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _accept(self, role: str, listener: socket.socket, port: int) -> None:
        while True:
            try:
                sock, peer = listener.accept()
            except OSError:
                return
            sock.setblocking(False)
            self._sockets.add(sock)
            self._selector.register(sock, selectors.EVENT_READ, lambda s=sock: self._echo(s))
            with contextlib.suppress(OSError):
                sock.send(f"{role} {port} {peer[0]}\n".encode())

    def _echo(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
            if data:
                sock.send(data)
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close(sock)

    def _answer_datagram(self, role: str, sock: socket.socket, port: int) -> None:
        while True:
            try:
                _, control, _, peer = sock.recvmsg(2048, 256)
            except OSError:
                return
            reply_from = []
            for level, kind, data in control:
                if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
                    _, local, _ = struct.unpack("I4s4s", data[:12])
                    reply_from = [(level, kind, struct.pack("I4s4s", 0, local, b"\0" * 4))]
                elif level == socket.IPPROTO_IPV6 and kind == IPV6_PKTINFO:
                    reply_from = [(level, kind, data[:16] + struct.pack("I", 0))]
            with contextlib.suppress(OSError):
                sock.sendmsg([f"{role} {port} {peer[0]}\n".encode()], reply_from, 0, peer)

    def _bind_new_port(self, role: str, sock: socket.socket, source: str | None) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wildcard = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"
        for number in self._source_ports[role]:
            port = _SOURCE_PORTS[number % len(_SOURCE_PORTS)]
            try:
                sock.bind((source or wildcard, port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise

    def _probe(
        self,
        role: str,
        target: str,
        port: int,
        protocol: str,
        source: str | None,
        timeout: float,
        future: Future[Reply],
    ) -> None:
        _Libc.enter(self._namespaces[role])
        sock = self._socket(_family(target), protocol)

        def finish(reply: Reply) -> None:
            if not future.done():
                self._close(sock)
                future.set_result(reply)

        def fail(error: OSError) -> None:
            if error.errno in _REFUSALS:
                finish(REFUSED)
            elif error.errno not in (errno.EAGAIN, errno.EINPROGRESS, errno.EPERM):
                self._close(sock)
                future.set_exception(error)
            # EPERM is what a sender on the node sees of a filtered packet; whether it was
            # refused or dropped shows in what follows.

        def readable() -> None:
            try:
                data = sock.recv(200)
            except OSError as error:
                fail(error)
                return
            finish(_parse(data) if data else REFUSED)

        def connected() -> None:
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                fail(OSError(code, os.strerror(code)))
                return
            # Leave by RST: no TIME_WAIT on either side, whatever the number of probes.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._selector.modify(sock, selectors.EVENT_READ, readable)

        try:
            if protocol == "SCTP":  # without it, SCTP keeps ICMP errors to itself
                if sock.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
                else:
                    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
            self._bind_new_port(role, sock, source)
            if protocol == "UDP":
                sock.connect((target, port))
                self._selector.register(sock, selectors.EVENT_READ, readable)
                try:
                    sock.send(b"who\n")
                except OSError as error:
                    fail(error)
            else:
                code = sock.connect_ex((target, port))
                self._selector.register(sock, selectors.EVENT_WRITE, connected)
                if code:
                    fail(OSError(code, os.strerror(code)))
        except OSError as error:
            self._close(sock)
            if not future.done():
                future.set_exception(error)
        heapq.heappush(
            self._deadlines,
            (self._time.look() + timeout, next(self._sequence), lambda: finish(TIMEOUT)),
        )


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def _parse(data: bytes) -> Answer:
    server, port, source = data.decode().split()
    return Answer(server, int(port), str(ip_address(source)))
