"""As much raw netlink as the hot paths need: attributes, one request, one dump, one batch.

pyroute2 spends 66 us on decoding one conntrack entry and loads for 0.2 s; a table of 100 000
entries has to be read in well under a second. It writes what is rare: links.
Formats: linux/netlink.h, linux/genetlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple

__all__ = [
    "ACK",
    "CREATE",
    "EXCL",
    "GENERIC",
    "HEADER_BYTES",
    "NETFILTER",
    "ROUTE",
    "SMALL_READ",
    "Dump",
    "Netlink",
    "Refusal",
    "Request",
    "attribute",
    "attributes",
    "nested",
    "reason",
    "why",
]

ROUTE, NETFILTER, GENERIC = 0, 12, 16

Request = tuple[int, int, bytes]
"""Message type, flags beyond NLM_F_REQUEST and NLM_F_ACK, body without the netlink header."""

ACK = 0x4
CREATE = 0x400
EXCL = 0x200
_REQUEST = 0x1
_DUMP = 0x300
_DUMP_INTERRUPTED = 0x10
_NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_MSG_ERROR, _MSG_DONE = 2, 3

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
HEADER_BYTES = _HEADER.size
"""In front of the body of each message of a `Dump`."""
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ERRNO = struct.Struct("=i")

_SEQUENCE_MASK = 0xFFFFFFFF

# linux/genetlink.h
_GENERIC_CONTROL, _GET_FAMILY, _CONTROL_VERSION = 0x10, 3, 1
_FAMILY_ID, _FAMILY_NAME = 1, 2

# The kernel makes the pieces of a dump as large as the largest read so far, up to 32 KiB. Other
# messages are small, but for a refusal that repeats the request.
_READ_BYTES = 1 << 16
SMALL_READ = 1 << 13
"""What the kernel itself takes for the smallest safe read of a dump."""

_WRITE_BYTES = 48 << 10  # below what a socket may send at once: net.core.wmem_default, 208 KiB
_WRITE_MESSAGES = 256  # each may be refused, and an answer takes about 1 KiB of receive buffer
_RECEIVE_BUFFER_BYTES = 1 << 21
_TIMEOUT_SECONDS = 10.0

# Not in the socket module: asm-generic/socket.h, linux/netlink.h
_SO_RCVBUFFORCE = 33
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    padding = -len(payload) % 4
    return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(padding)


def nested(kind: int, *inner: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(inner))


def attributes(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the payload of each attribute in ``data[start:end]``."""
    while start + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > end:
            return
        yield kind & _TYPE_MASK, start + 4, start + length
        start += (length + 3) & ~3


class Dump:
    """One dump in progress. Iterate for the messages; then `interrupted` tells if it is whole."""

    def __init__(self, source: Netlink) -> None:
        self._source = source
        self.interrupted = False  # the table changed under the kernel's feet: EINTR

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield buffer, start and end of each message, netlink header included.

        Raises:
            OSError: the kernel refused or broke off.
        """
        while True:
            data = self._source.receive()
            position = 0
            while position < len(data):
                length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
                end = position + length
                if sequence == self._source.sequence:
                    if flags & _DUMP_INTERRUPTED:
                        self.interrupted = True
                    if kind in (_MSG_DONE, _MSG_ERROR):
                        self._finish(data, position)
                        return
                    yield data, position, end
                position += (length + 3) & ~3

    def _finish(self, data: bytes, position: int) -> None:
        (code,) = _ERRNO.unpack_from(data, position + 16)
        if code == -errno.EINTR:
            self.interrupted = True
        elif code < 0:
            raise OSError(-code, os.strerror(-code))


class Refusal(NamedTuple):
    """Why one request of several was refused, and what of it the kernel sent back."""

    errno: int
    body: bytes
    """Empty, or the request's own body: ipset writes into it which line was wrong."""


def reason(error: Exception) -> str:
    """Say in words why a request failed, and what helps where rights are missing."""
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return "not permitted; run as root (NET_ADMIN)"
    return why(error) if isinstance(error, OSError) else str(error)


def why(error: OSError) -> str:
    """Say it in the system's words."""
    return error.strerror or str(error)


class Netlink:
    """A socket to one netlink family. For one thread at a time; use as a context manager.

    *read_bytes* bounds one read. `SMALL_READ` makes many small dumps cheaper, since the kernel
    prepares as much memory for each as the largest read so far could have taken.

    Every method raises OSError with the kernel's errno, ``TimeoutError`` when it stays silent.
    """

    def __init__(self, protocol: int, read_bytes: int = _READ_BYTES) -> None:
        self._read_bytes = read_bytes
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        _grow_receive_buffer(self._socket)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.settimeout(_TIMEOUT_SECONDS)
        self._socket.bind((0, 0))
        self.sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes) -> bytes:
        """Send one request and return the body of the reply; empty for an acknowledgement."""
        self._send(kind, flags, body)
        while True:
            data = self.receive()
            length, answer, _, sequence, _ = _HEADER.unpack_from(data, 0)
            if sequence != self.sequence:
                continue  # the rest of an earlier request that was given up
            if answer != _MSG_ERROR:
                return data[16:length]
            (code,) = _ERRNO.unpack_from(data, 16)
            if code < 0:
                raise OSError(-code, os.strerror(-code))
            return b""

    def dump(self, kind: int, body: bytes) -> Dump:
        """Ask for a table; iterate over the result before the next request."""
        self._send(kind, _DUMP, body)
        return Dump(self)

    def batch(self, requests: Sequence[Request]) -> list[int]:
        """Send many requests in few writes; return one errno per request, 0 for what is done.

        The kernel works through them in this order and does not stop at a refusal. When the
        socket itself fails (ENOBUFS: answers were lost), an exception is raised and it is
        unknown which requests were done: look at the kernel's tables before trying again.
        """
        refusals = self.refusals(requests)
        errors = [0] * len(requests)
        for index, refusal in refusals.items():
            errors[index] = refusal.errno
        return errors

    def refusals(self, requests: Sequence[Request]) -> Mapping[int, Refusal]:
        """Like `batch`, but return what was refused by its position in *requests*.

        A request that carries many entries is refused at its first wrong one: those before it
        are done, those after it are not. `Refusal.body` tells which one it was.
        """
        found: dict[int, Refusal] = {}
        start = 0
        while start < len(requests):
            start = self._write(requests, start, found)
        return found

    def family_id(self, name: str) -> int:
        """Return the message type of a generic netlink family; the socket must be `GENERIC`.

        The kernel gives the number out when the family appears, so it differs between boots.

        Raises:
            OSError: ENOENT: there is no such family; its module may not be loaded.
        """
        body = bytes((_GET_FAMILY, _CONTROL_VERSION, 0, 0))
        body += attribute(_FAMILY_NAME, name.encode() + b"\0")
        reply = self.request(_GENERIC_CONTROL, 0, body)
        for kind, start, end in attributes(reply, 4, len(reply)):
            if kind == _FAMILY_ID:
                return int.from_bytes(reply[start:end], sys.byteorder)
        raise OSError(errno.ENOENT, f"generic netlink family {name} has no id")

    def receive(self) -> bytes:
        return self._socket.recv(self._read_bytes)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.sequence = (self.sequence + 1) & _SEQUENCE_MASK
        header = _HEADER.pack(16 + len(body), kind, _REQUEST | flags, self.sequence, 0)
        self._socket.send(header + body)

    def _write(self, requests: Sequence[Request], start: int, refusals: dict[int, Refusal]) -> int:
        """Write as many requests as go together and read the answers; return where to go on.

        Only the last asks for an acknowledgement: the kernel answers in order, within the write,
        and tells of every refusal unasked.
        """
        end = _write_end(requests, start)
        first = self.sequence + 1
        parts: list[bytes] = []
        for index in range(start, end):
            kind, flags, body = requests[index]
            flags |= _REQUEST if index < end - 1 else _REQUEST | ACK
            self.sequence = (self.sequence + 1) & _SEQUENCE_MASK
            parts.append(_HEADER.pack(16 + len(body), kind, flags, self.sequence, 0))
            parts.append(body + bytes(-len(body) & 3))
        self._socket.send(b"".join(parts))
        while True:
            position, refusal = self._answer(first)
            if position < end - start:
                if refusal is not None:
                    refusals[start + position] = refusal
                if position == end - start - 1:
                    return end

    def _answer(self, first: int) -> tuple[int, Refusal | None]:
        """Read one answer: how far behind sequence number *first* it is, and if it is a refusal."""
        try:
            data = self.receive()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._empty()
            raise
        length, _, _, sequence, _ = _HEADER.unpack_from(data, 0)
        (code,) = _ERRNO.unpack_from(data, 16)
        # Behind the errno: the header of the request, then its body if the kernel repeats it.
        refusal = Refusal(-code, data[36:length]) if code < 0 else None
        return (sequence - first) & _SEQUENCE_MASK, refusal

    def _empty(self) -> None:
        """Read until nothing is left; until then an overrun socket gets no more answers."""
        self._socket.setblocking(False)
        try:
            while True:
                try:
                    self.receive()
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
        finally:
            self._socket.settimeout(_TIMEOUT_SECONDS)


def _write_end(requests: Sequence[Request], start: int) -> int:
    """Return the position behind the last request that goes into one write with *start*."""
    size = 0
    for end in range(start, min(start + _WRITE_MESSAGES, len(requests))):
        size += 16 + len(requests[end][2])
        if size > _WRITE_BYTES and end > start:
            return end
    return min(start + _WRITE_MESSAGES, len(requests))


def _grow_receive_buffer(target: socket.socket) -> None:
    """Ask for room beyond net.core.rmem_max; without CAP_NET_ADMIN take what that allows."""
    try:
        target.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
    except PermissionError:
        target.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
