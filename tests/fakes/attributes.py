"""Netlink attributes for the fake kernel, read and written without the code under test.

Formats: linux/netlink.h. Reading is stricter than the kernel's: what does not add up is refused
with EINVAL, not skipped.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import ip_address
from typing import NamedTuple

__all__ = ["Attribute", "Attributes", "Refused", "address_text", "put", "put_nested"]

NESTED, NET_ORDER = 0x8000, 0x4000


class Refused(Exception):
    """The kernel's answer to a request. *body* is what it sends back of the request."""

    def __init__(self, error: int, body: bytes = b"") -> None:
        super().__init__(errno.errorcode.get(error, str(error)))
        self.errno = error
        self.body = body


class Attribute(NamedTuple):
    flags: int
    payload: bytes

    @property
    def nested(self) -> bool:
        return bool(self.flags & NESTED)

    @property
    def net_order(self) -> bool:
        return bool(self.flags & NET_ORDER)

    def number(self, size: int) -> int:
        """In the machine's byte order."""
        if len(self.payload) < size:
            raise Refused(errno.ERANGE)
        return int.from_bytes(self.payload[:size], "little" if _LITTLE else "big")

    def network_number(self, size: int) -> int:
        if len(self.payload) < size:
            raise Refused(errno.ERANGE)
        return int.from_bytes(self.payload[:size], "big")

    def text(self, most: int) -> str:
        """A string that ends in NUL, of at most *most* characters."""
        text, nul, _ = self.payload.partition(b"\0")
        if not nul or len(text) > most:
            raise Refused(errno.EINVAL)
        return text.decode()


_LITTLE = struct.pack("=H", 1) == b"\1\0"


class Attributes:
    """The attributes of one message or of one nested attribute; of equal ones the last counts."""

    def __init__(self, data: bytes) -> None:
        self.list = list(_read(data))
        self._by_kind = dict(self.list)

    def __contains__(self, kind: int) -> bool:
        return kind in self._by_kind

    def __getitem__(self, kind: int) -> Attribute:
        return self._by_kind[kind]

    def get(self, kind: int) -> Attribute | None:
        return self._by_kind.get(kind)

    def has(self, *kinds: int) -> bool:
        return all(kind in self._by_kind for kind in kinds)


def _read(data: bytes) -> list[tuple[int, Attribute]]:
    found: list[tuple[int, Attribute]] = []
    at = 0
    while at < len(data):
        if len(data) - at < 4:
            raise Refused(errno.EINVAL)
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            raise Refused(errno.EINVAL)
        flags = kind & (NESTED | NET_ORDER)
        found.append((kind & 0x3FFF, Attribute(flags, data[at + 4 : at + length])))
        at += (length + 3) & ~3
    return found


def put(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def put_nested(kind: int, *parts: bytes) -> bytes:
    return put(kind | NESTED, b"".join(parts))


def address_text(packed: bytes) -> str:
    return str(ip_address(packed))
