"""The interfaces of a fake kernel and their addresses: as much of rtnetlink as ipvs mode uses."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import ip_address

from msgspec import Struct

from tests.fakes.attributes import Attributes, Refused, address_text, put, put_nested

__all__ = ["Link", "Links"]

NEWLINK, DELLINK, GETLINK, NEWADDR, DELADDR, GETADDR = 16, 17, 18, 20, 21, 22
_WRITES = {NEWLINK, DELLINK, NEWADDR, DELADDR}
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, interface, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
IFNAME, LINKINFO, INFO_KIND = 3, 18, 1
ADDRESS, LOCAL = 1, 2
_CREATE, _EXCL = 0x400, 0x200
_UP, _LOOPBACK = 0x1, 0x8


class Link(Struct):
    """``addresses`` are text with a prefix length, in the order of their coming."""

    name: str
    kind: str
    flags: int = 0
    addresses: dict[str, int] = {}
    """Scope: 0 global, 253 link, 254 host."""


class Links:
    def __init__(self) -> None:
        self.links: dict[int, Link] = {1: Link("lo", "", _UP | _LOOPBACK)}
        self.links[1].addresses.update({"127.0.0.1/8": 254, "::1/128": 254})
        self.kinds = {"dummy"}

    def add(self, name: str, kind: str = "", addresses: Iterable[str] = ()) -> int:
        """Add an interface that is up, as the administrator would; return its index."""
        index = max(self.links) + 1
        self.links[index] = Link(name, kind, _UP, dict.fromkeys(addresses, 0))
        return index

    def named(self, name: str) -> Link | None:
        return next((link for link in self.links.values() if link.name == name), None)

    def addresses(self, name: str) -> list[str]:
        """The addresses of one interface, without prefix lengths, sorted."""
        link = self.named(name)
        return sorted(_bare(each) for each in link.addresses) if link else []

    # --- requests ---

    def modifies(self, kind: int) -> bool:
        return kind in _WRITES

    def do(self, kind: int, flags: int, body: bytes) -> bytes:
        match kind:
            case _ if kind in (NEWADDR, DELADDR):
                self._write_address(kind, flags, body)
            case _ if kind in (NEWLINK, DELLINK, GETLINK):
                return self._link(kind, flags, body)
            case _:
                raise Refused(errno.EOPNOTSUPP)
        return b""

    def dump(self, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        if kind == GETLINK:
            return [(NEWLINK, self._link_message(index)) for index in self.links]
        if kind != GETADDR:
            raise Refused(errno.EOPNOTSUPP)
        family = body[0]
        return [
            (NEWADDR, _address_message(index, address, scope))
            for index, link in self.links.items()
            for address, scope in link.addresses.items()
            if family in (0, _family(address))
        ]

    def _write_address(self, kind: int, flags: int, body: bytes) -> None:
        family, length, _, scope, index = _IFADDRMSG.unpack_from(body)
        given = Attributes(body[_IFADDRMSG.size :])
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise Refused(errno.EOPNOTSUPP)
        size = 4 if family == socket.AF_INET else 16
        wanted = given.get(LOCAL) or (given.get(ADDRESS) if size == 16 else None)
        if wanted is None or length > size * 8:
            raise Refused(errno.EINVAL)
        if len(wanted.payload) < size:
            raise Refused(errno.ERANGE)
        link = self.links.get(index)
        if link is None:
            raise Refused(errno.ENODEV)
        bare = address_text(wanted.payload[:size])
        if size == 16 and (ip_address(bare).is_multicast or ip_address(bare).is_unspecified):
            raise Refused(errno.EADDRNOTAVAIL)
        address = f"{bare}/{length}"
        if kind == DELADDR:
            if link.addresses.pop(address, None) is None:
                raise Refused(errno.EADDRNOTAVAIL)
        else:
            same = {_bare(each) for each in link.addresses} if size == 16 else ()
            if address in link.addresses or bare in same:
                raise Refused(errno.EEXIST)
            link.addresses[address] = scope

    def _link(self, kind: int, flags: int, body: bytes) -> bytes:
        _, _, index, _, _ = _IFINFOMSG.unpack_from(body)
        given = Attributes(body[_IFINFOMSG.size :])
        name = given[IFNAME].text(15) if IFNAME in given else ""
        found = next(
            (i for i, link in self.links.items() if (i == index if index else link.name == name)),
            None,
        )
        if kind == GETLINK:
            if found is None:
                raise Refused(errno.ENODEV)
            return self._link_message(found)
        if kind == DELLINK:
            if found is None:
                raise Refused(errno.ENODEV)
            if not self.links[found].kind:
                raise Refused(errno.EOPNOTSUPP)
            del self.links[found]
            return b""
        if found is not None:
            if flags & _EXCL:
                raise Refused(errno.EEXIST)
            raise Refused(errno.EOPNOTSUPP)  # changes of links are not imitated
        if not flags & _CREATE:
            raise Refused(errno.ENODEV)
        info = Attributes(given[LINKINFO].payload) if LINKINFO in given else Attributes(b"")
        link_kind = info[INFO_KIND].payload.rstrip(b"\0").decode() if INFO_KIND in info else ""
        if link_kind not in self.kinds or not name:
            raise Refused(errno.EOPNOTSUPP if name else errno.EINVAL)
        self.links[max(self.links) + 1] = Link(name, link_kind)
        return b""

    def _link_message(self, index: int) -> bytes:
        link = self.links[index]
        head = _IFINFOMSG.pack(0, 1, index, link.flags, 0) + put(IFNAME, link.name.encode() + b"\0")
        if not link.kind:
            return head
        return head + put_nested(LINKINFO, put(INFO_KIND, link.kind.encode() + b"\0"))


def _bare(address: str) -> str:
    return address.partition("/")[0]


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _address_message(index: int, address: str, scope: int) -> bytes:
    bare, _, length = address.partition("/")
    packed = ip_address(bare).packed
    head = _IFADDRMSG.pack(_family(bare), int(length), 0x80, scope, index)
    # IPv6 without a peer has no IFA_LOCAL.
    return head + put(ADDRESS, packed) + (put(LOCAL, packed) if len(packed) == 4 else b"")
