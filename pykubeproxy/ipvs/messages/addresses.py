"""Addresses of interfaces: rtnetlink, see linux/if_addr.h."""

from __future__ import annotations

import struct
import sys

from msgspec import Struct

from pykubeproxy.host.netlink import CREATE, EXCL, HEADER_BYTES, Request, attribute
from pykubeproxy.ipvs.messages.fields import (
    AF,
    AF_INET,
    AF_INET6,
    FAMILIES,
    DumpRequest,
    address_text,
    attributes_of,
    pack_address,
)
from pykubeproxy.model.kinds import Family

__all__ = ["Address", "decode_address", "del_address", "get_addresses", "new_address"]

_RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 20, 21, 22
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface index
_IFA_ADDRESS, _IFA_LOCAL, _IFA_CACHEINFO = 1, 2, 6
_NEVER_PREFERRED = attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, 0xFFFFFFFF, 0, 0))
"""Preferred for 0 seconds, valid for ever; two timestamps that the kernel fills in."""


class Address(Struct, frozen=True, gc=False):
    """An address of an interface: one of a dump, or a notice that it came or went."""

    present: bool  # False: a notice that it is gone
    index: int
    family: Family
    address: str
    prefix_length: int
    scope: int  # 0 global, 253 link, 254 host


def new_address(index: int, address: str) -> Request:
    """Add a single address (/32, /128) to an interface; EEXIST where it has it.

    One of IPv6 is deprecated from the start (RFC 4862): it is served, and answers come from it,
    but nobody picks it as a source. Else MASQUERADE would, on devices without an address.
    """
    kind, _, body = _address_request(_RTM_NEWADDR, index, address)
    if ":" in address:
        body += _NEVER_PREFERRED
    # Not REPLACE, which sends a notice to every follower for what has not changed.
    return kind, CREATE | EXCL, body


def del_address(index: int, address: str, prefix_length: int | None = None) -> Request:
    """Take an address, by default a single one, from an interface; absent: EADDRNOTAVAIL."""
    return _address_request(_RTM_DELADDR, index, address, prefix_length)


def get_addresses(family: Family | None = None) -> DumpRequest:
    """Ask for the addresses of all interfaces, see `decode_address`."""
    return _RTM_GETADDR, _IFADDRMSG.pack(0 if family is None else AF[family], 0, 0, 0, 0)


def decode_address(data: bytes, start: int, end: int) -> Address | None:
    """Read one message of a dump or a notice; ``None`` if it is about something else."""
    kind = int.from_bytes(data[start + 4 : start + 6], sys.byteorder)
    start += HEADER_BYTES
    if kind not in (_RTM_NEWADDR, _RTM_DELADDR) or end - start < _IFADDRMSG.size:
        return None
    af, prefix_length, _, scope, index = _IFADDRMSG.unpack_from(data, start)
    found = dict(attributes_of(data, start + _IFADDRMSG.size, end))
    # Without IFA_LOCAL (IPv6, no peer) IFA_ADDRESS is the interface's own; with it, the peer's.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    family = FAMILIES.get(af)
    if packed is None or family is None:
        return None
    text = address_text(packed)
    return Address(kind == _RTM_NEWADDR, index, family, text, prefix_length, scope)


def _address_request(
    kind: int, index: int, address: str, prefix_length: int | None = None
) -> Request:
    packed = pack_address(address)
    af = AF_INET if len(packed) == 4 else AF_INET6
    length = len(packed) * 8 if prefix_length is None else prefix_length
    body = (
        _IFADDRMSG.pack(af, length, 0, 0, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )
    return kind, 0, body
