"""As much raw netlink as the hot paths need: attributes, one request, one dump.

pyroute2 spends 66 us on decoding one conntrack entry and loads for 0.2 s; a table of 100 000
entries has to be read in well under a second. Everything rarer goes through pyroute2.
Formats: linux/netlink.h, linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType

__all__ = [
    "ACK",
    "CREATE",
    "EXCL",
    "NETFILTER",
    "Dump",
    "Netlink",
    "attribute",
    "attributes",
    "nested",
]

NETFILTER = 12

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
_ATTRIBUTE = struct.Struct("=HH")  # length, type
_ERRNO = struct.Struct("=i")

# The kernel answers a dump in pieces as large as the largest read so far, up to 32 KiB.
_READ_BYTES = 1 << 16
_RECEIVE_BUFFER_BYTES = 1 << 21
_TIMEOUT_SECONDS = 10.0


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


class Netlink:
    """A socket to one netlink family. For one thread at a time; use as a context manager.

    Every method raises OSError with the kernel's errno, ``TimeoutError`` when it stays silent.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
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

    def receive(self) -> bytes:
        return self._socket.recv(_READ_BYTES)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.sequence += 1
        header = _HEADER.pack(16 + len(body), kind, _REQUEST | flags, self.sequence, 0)
        self._socket.send(header + body)
