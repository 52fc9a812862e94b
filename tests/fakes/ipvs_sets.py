"""The sets of a fake kernel: net/netfilter/ipset, for the types that a service proxy uses.

Numbers and order of checks: linux/netfilter/ipset/ip_set.h and the kernel's source (6.1).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from msgspec import Struct

from tests.fakes.attributes import (
    NET_ORDER,
    Attribute,
    Attributes,
    Refused,
    address_text,
    put,
    put_nested,
)

__all__ = ["FakeSet", "Sets"]

PROTOCOL_CMD, CREATE, DESTROY, FLUSH, LIST, ADD, DEL, TYPE = 1, 2, 3, 4, 7, 9, 10, 13
_WRITES = {CREATE, DESTROY, FLUSH, ADD, DEL}
VERSION, SETNAME, TYPENAME, REVISION, FAMILY, FLAGS, DATA, ADT, LINENO, VERSION_MIN = range(1, 11)
IP, PORT, PORT_TO, PROTO, IP2, CIDR2 = 1, 4, 5, 7, 20, 21
HASHSIZE, MAXELEM, ELEMENTS, REFERENCES, MEMSIZE = 18, 19, 24, 25, 26
IPADDR = {4: 1, 6: 2}
LIST_SETNAME, LIST_HEADER = 1 << 1, 1 << 2
_NLM_EXCL = 0x200
_ENTRIES_PER_MESSAGE = 40

# linux/netfilter/ipset/ip_set.h, ip_set_hash.h, ip_set_bitmap.h
E_PROTOCOL, E_FIND_TYPE, E_BUSY, E_EXIST, E_INVALID_CIDR = 4097, 4098, 4100, 4103, 4104
E_INVALID_FAMILY = 4106
E_FULL, E_ELEM, E_INVALID_PROTO, E_MISSING_PROTO, E_BITMAP_RANGE = 4352, 4353, 4354, 4355, 4352

REVISIONS = {
    "bitmap:port": (0, 3),
    "hash:ip": (0, 5),
    "hash:ip,port": (0, 6),
    "hash:ip,port,ip": (0, 6),
    "hash:ip,port,net": (0, 8),
}
_WITH_PORTS = {6: "tcp", 17: "udp", 132: "sctp", 136: "udplite"}


class FakeSet(Struct):
    """``version`` is 4 or 6, or 0 for a set of numbers."""

    type: str
    version: int
    revision: int
    max_elements: int
    first_port: int = 0
    last_port: int = 65535
    entries: dict[str, tuple[object, ...]] = {}


class Sets:
    def __init__(self) -> None:
        self.sets: dict[str, FakeSet] = {}
        self.references: list[Callable[[str], int]] = []
        """Each counts the rules of one family that use a set."""

    def version_of(self, name: str) -> int | None:
        """The family of a set, for the tools that make rules; ``None`` if there is none."""
        found = self.sets.get(name)
        return None if found is None else found.version

    def in_use(self, name: str) -> int:
        return sum(count(name) for count in self.references)

    # --- requests ---

    def modifies(self, kind: int) -> bool:
        return kind & 0xFF in _WRITES

    def do(self, kind: int, flags: int, body: bytes) -> bytes:
        command, given = self._opened(kind, body)
        match command:
            case _ if command == PROTOCOL_CMD:
                return body[:4] + put(VERSION, b"\7") + put(VERSION_MIN, b"\6")
            case _ if command == TYPE:
                return self._type(given, body)
            case _ if command == CREATE:
                self._create(given, flags)
            case _ if command == DESTROY:
                self._destroy(given)
            case _ if command == FLUSH:
                for one in [self._named(given)] if SETNAME in given else self.sets.values():
                    one.entries.clear()
            case _ if command in (ADD, DEL):
                self._change(command, given, flags, body)
            case _:
                raise Refused(errno.EINVAL)
        return b""

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        command, given = self._opened(kind, body)
        if command != LIST:
            raise Refused(errno.EINVAL)
        flags = given[FLAGS].network_number(4) if FLAGS in given else 0
        if SETNAME in given:
            self._named(given)
            names = [given[SETNAME].text(31)]
        else:
            names = list(self.sets)
        return [m for name in names for m in self._list(name, flags)]

    def _opened(self, kind: int, body: bytes) -> tuple[int, Attributes]:
        if kind >> 8 != 6 or len(body) < 4:
            raise Refused(errno.EINVAL)
        given = Attributes(body[4:])
        if VERSION not in given or given[VERSION].payload[0] not in (6, 7):
            raise Refused(E_PROTOCOL)
        return kind & 0xFF, given

    def _type(self, given: Attributes, body: bytes) -> bytes:
        if not given.has(TYPENAME, FAMILY):
            raise Refused(E_PROTOCOL)
        name = given[TYPENAME].text(31)
        if name not in REVISIONS:
            raise Refused(E_FIND_TYPE)
        oldest, newest = REVISIONS[name]
        return (
            body[:4]
            + put(VERSION, b"\6")
            + put(TYPENAME, name.encode() + b"\0")
            + put(FAMILY, given[FAMILY].payload[:1])
            + put(REVISION, bytes((newest,)))
            + put(VERSION_MIN, bytes((oldest,)))
        )

    def _create(self, given: Attributes, flags: int) -> None:
        if not given.has(SETNAME, TYPENAME, REVISION, FAMILY):
            raise Refused(E_PROTOCOL)
        data = given.get(DATA)
        if data is not None and not data.nested:
            raise Refused(E_PROTOCOL)
        name, type_ = given[SETNAME].text(31), given[TYPENAME].text(31)
        oldest, newest = REVISIONS.get(type_, (1, 0))
        revision = given[REVISION].payload[0]
        if not oldest <= revision <= newest:
            raise Refused(E_FIND_TYPE)
        made = _made(
            type_, given[FAMILY].payload[0], revision, Attributes(data.payload if data else b"")
        )
        existing = self.sets.get(name)
        if existing is None:
            self.sets[name] = made
        elif flags & _NLM_EXCL or not _same(existing, made):
            raise Refused(errno.EEXIST)

    def _destroy(self, given: Attributes) -> None:
        if SETNAME not in given:
            if any(self.in_use(name) for name in self.sets):
                raise Refused(E_BUSY)
            self.sets.clear()
            return
        self._named(given)
        name = given[SETNAME].text(31)
        if self.in_use(name):
            raise Refused(E_BUSY)
        del self.sets[name]

    def _named(self, given: Attributes) -> FakeSet:
        name = given[SETNAME].text(31)
        if name not in self.sets:
            raise Refused(errno.ENOENT)
        return self.sets[name]

    def _change(self, command: int, given: Attributes, flags: int, body: bytes) -> None:
        data, entries = given.get(DATA), given.get(ADT)
        if SETNAME not in given or (data is None) == (entries is None):
            raise Refused(E_PROTOCOL)
        if not (data or entries or Attribute(0, b"")).nested or (entries and LINENO not in given):
            raise Refused(E_PROTOCOL)
        into = self._named(given)
        if data is not None:
            inner = [data]
        else:
            assert entries is not None
            listed = Attributes(entries.payload).list
            if any(kind != DATA or not one.nested for kind, one in listed):
                raise Refused(E_PROTOCOL)
            inner = [one for _, one in listed]
        for one in inner:
            parts = Attributes(one.payload)
            try:
                _write(command, into, parts, exclusive=bool(flags & _NLM_EXCL))
            except Refused as refused:
                line = parts.get(LINENO)
                if line is None or not line.number(4) or LINENO not in given:
                    raise
                raise Refused(refused.errno, _with_line(body, line.payload)) from refused

    # --- answers ---

    def _list(self, name: str, flags: int) -> list[bytes]:
        one = self.sets[name]
        head = bytes((2, 0, 0, 0)) + put(VERSION, b"\6") + put(SETNAME, name.encode() + b"\0")
        if flags & LIST_SETNAME:
            return [head]
        parameters = [
            _number(REFERENCES, self.in_use(name)),
            _number(MEMSIZE, 200),
            _number(ELEMENTS, len(one.entries)),
        ]
        if one.version:
            parameters = [_number(HASHSIZE, 1024), _number(MAXELEM, one.max_elements), *parameters]
        else:
            ports = struct.pack("!H", one.first_port), struct.pack("!H", one.last_port)
            parameters = [
                put(PORT | NET_ORDER, ports[0]),
                put(PORT_TO | NET_ORDER, ports[1]),
                *parameters,
            ]
        header = (
            put(TYPENAME, one.type.encode() + b"\0")
            + put(FAMILY, bytes(({4: 2, 6: 10}.get(one.version, 0),)))
            + put(REVISION, bytes((one.revision,)))
            + put_nested(DATA, *parameters)
        )
        if flags & LIST_HEADER:
            return [head + header]
        entries = [_entry(one.version, parts) for parts in one.entries.values()]
        step = _ENTRIES_PER_MESSAGE
        chunks = [entries[at : at + step] for at in range(0, len(entries), step)] or [[]]
        return [
            head + (b"" if at else header) + put_nested(ADT, *chunk)
            for at, chunk in enumerate(chunks)
        ]


def _same(one: FakeSet, other: FakeSet) -> bool:
    """What the kernel compares; the family of a hash is not among it."""
    if one.type != other.type:
        return False
    if one.version:
        return one.max_elements == other.max_elements
    return (one.first_port, one.last_port) == (other.first_port, other.last_port)


def _made(type_: str, family: int, revision: int, data: Attributes) -> FakeSet:
    if type_ == "bitmap:port":
        first, last = data.get(PORT), data.get(PORT_TO)
        if first is None or last is None or not (first.net_order and last.net_order):
            raise Refused(E_PROTOCOL)
        low, high = first.network_number(2), last.network_number(2)
        return FakeSet(type_, 0, revision, 0, min(low, high), max(low, high))
    if family not in (2, 10):
        raise Refused(E_INVALID_FAMILY)
    for kind in (HASHSIZE, MAXELEM):
        if kind in data and not data[kind].net_order:
            raise Refused(E_PROTOCOL)
    limit = data[MAXELEM].network_number(4) if MAXELEM in data else 65536
    return FakeSet(type_, 4 if family == 2 else 6, revision, limit)


def _write(command: int, into: FakeSet, given: Attributes, *, exclusive: bool) -> None:
    text, parts = _parsed(into, given)
    if command == DEL:
        if into.entries.pop(text, None) is None and exclusive:
            raise Refused(E_EXIST)
    elif text in into.entries:
        if exclusive:
            raise Refused(E_EXIST)
    elif into.version and len(into.entries) >= into.max_elements:
        raise Refused(E_FULL)
    else:
        into.entries[text] = parts


def _parsed(into: FakeSet, given: Attributes) -> tuple[str, tuple[object, ...]]:
    """The text of an entry as ``ipset list`` prints it, and its parts."""
    port = given.get(PORT)
    if into.type == "bitmap:port":
        if port is None or not port.net_order:
            raise Refused(E_PROTOCOL)
        number = port.network_number(2)
        if not into.first_port <= number <= into.last_port:
            raise Refused(E_BITMAP_RANGE)
        return str(number), (number,)
    first = given.get(IP)
    needs = into.type.removeprefix("hash:").split(",")
    second = given.get(IP2)
    if first is None or (len(needs) == 3 and second is None):
        raise Refused(E_PROTOCOL)
    if len(needs) > 1 and (port is None or not port.net_order):
        raise Refused(E_PROTOCOL)
    address = _address(into.version, first)
    if needs == ["ip"]:
        if address == "0.0.0.0":
            raise Refused(E_ELEM)
        return address, (address,)
    assert port is not None
    number = port.network_number(2)
    other = _address(into.version, second) if len(needs) == 3 and second else ""
    length = 32 if into.version == 4 else 128
    if needs[-1] == "net":
        if CIDR2 in given:
            asked = given[CIDR2].payload[0]
            if not 1 <= asked <= length:
                raise Refused(E_INVALID_CIDR)
            length = asked
        other = str(ip_network(f"{other}/{length}", strict=False).network_address)
    if PROTO not in given:
        raise Refused(E_MISSING_PROTO)
    protocol = given[PROTO].payload[0]
    if protocol == 0:
        raise Refused(E_INVALID_PROTO)
    if protocol not in _WITH_PORTS:
        number = 0
    text = f"{address},{_WITH_PORTS.get(protocol, protocol)}:{number}"
    parts: tuple[object, ...] = (address, protocol, number)
    if len(needs) == 3:
        shown = other if length == ip_address(other).max_prefixlen else f"{other}/{length}"
        text += f",{shown}"
        parts = (*parts, other, length if needs[-1] == "net" else None)
    return text, parts


def _address(version: int, attribute: Attribute) -> str:
    if not attribute.nested:
        raise Refused(E_PROTOCOL)
    inner = Attributes(attribute.payload).get(IPADDR[version])
    if inner is None or not inner.net_order:
        raise Refused(E_PROTOCOL)
    size = 4 if version == 4 else 16
    if len(inner.payload) < size:
        raise Refused(E_PROTOCOL)
    return address_text(inner.payload[:size])


def _with_line(body: bytes, line: bytes) -> bytes:
    """The request with the number of the line that was refused in its own LINENO."""
    at = 4
    while at < len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if kind & 0x3FFF == LINENO:
            return body[: at + 4] + line + body[at + 8 :]
        at += (length + 3) & ~3
    raise Refused(E_PROTOCOL)


def _entry(version: int, parts: tuple[object, ...]) -> bytes:
    if not version:
        return put_nested(DATA, put(PORT | NET_ORDER, struct.pack("!H", parts[0])))

    def ip(kind: int, address: object) -> bytes:
        packed = ip_address(str(address)).packed
        return put_nested(kind, put(IPADDR[version] | NET_ORDER, packed))

    if len(parts) == 1:
        return put_nested(DATA, ip(IP, parts[0]))
    address, protocol, port, *rest = parts
    fields = [ip(IP, address)]
    if rest:
        fields.append(ip(IP2, rest[0]))
    fields.append(put(PORT | NET_ORDER, struct.pack("!H", port)))
    if rest and rest[1] is not None:
        fields.append(put(CIDR2, struct.pack("B", rest[1])))
    fields.append(put(PROTO, struct.pack("B", protocol)))
    return put_nested(DATA, *fields)


def _number(kind: int, value: int) -> bytes:
    return put(kind | NET_ORDER, struct.pack("!I", value))
