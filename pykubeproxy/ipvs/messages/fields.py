"""What the attributes of all three tables are made of: numbers, names, addresses."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from functools import lru_cache

from pykubeproxy.host.netlink import attributes
from pykubeproxy.model.kinds import Family, Protocol

__all__ = [
    "AF",
    "AF_INET",
    "AF_INET6",
    "FAMILIES",
    "NESTED",
    "NET_ORDER",
    "PROTOCOLS",
    "PROTOCOL_NUMBERS",
    "U16",
    "U32",
    "DumpRequest",
    "address_field",
    "address_text",
    "attribute_header",
    "attributes_of",
    "native",
    "pack_address",
    "string",
]

DumpRequest = tuple[int, bytes]
"""Message type and body, as `Netlink.dump` takes them."""

AF_INET, AF_INET6 = 2, 10
AF = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
FAMILIES = {number: family for family, number in AF.items()}
PROTOCOL_NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
PROTOCOLS = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}

NESTED, NET_ORDER = 0x8000, 0x4000  # NLA_F_NESTED, NLA_F_NET_BYTEORDER
U16, U32 = struct.Struct("=H"), struct.Struct("=I")


def attribute_header(kind: int, payload_bytes: int) -> bytes:
    return U16.pack(payload_bytes + 4) + U16.pack(kind)


_WORDS = struct.Struct(">8H")
_ZEROS = [":" + "0:" * count for count in range(8, 1, -1)]


@lru_cache(maxsize=1 << 12)
def pack_address(address: str) -> bytes:
    """Return the bytes of a canonical address; three times as fast as `ipaddress`."""
    if ":" not in address:
        a, b, c, d = address.split(".")
        return bytes((int(a), int(b), int(c), int(d)))
    head, gap, tail = address.partition("::")
    words = head.split(":") if head else []
    if gap:
        last = tail.split(":") if tail else []
        words += ["0"] * (8 - len(words) - len(last)) + last
    return _WORDS.pack(*(int(word, 16) for word in words))


@lru_cache(maxsize=1 << 12)
def address_text(packed: bytes) -> str:
    """Return the canonical text: IPv6 as in RFC 5952."""
    if len(packed) == 4:
        a, b, c, d = packed
        return f"{a}.{b}.{c}.{d}"
    text = ":%x:%x:%x:%x:%x:%x:%x:%x:" % _WORDS.unpack(packed)  # noqa: UP031 twice as fast
    for zeros in _ZEROS:
        if zeros in text:
            text = text.replace(zeros, "::", 1)
            break
    # The outer colons go, unless they are half of the double one.
    return text[not text.startswith("::") : len(text) - (not text.endswith("::"))]


def address_field(af: int, field: bytes) -> str:
    """Read a field that has room for either family."""
    return address_text(field[:4] if af == AF_INET else field[:16])


def native(number: bytes) -> int:
    return int.from_bytes(number, sys.byteorder)


def string(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


def attributes_of(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    for kind, first, last in attributes(data, start, end):
        yield kind, data[first:last]
