"""Sets: nfnetlink's ipset, see linux/netfilter/ipset/ip_set.h."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct

from pykubeproxy.host.netlink import HEADER_BYTES, Request, attribute, attributes, nested
from pykubeproxy.ipvs.messages.fields import (
    AF,
    AF_INET,
    FAMILIES,
    NESTED,
    NET_ORDER,
    PROTOCOL_NUMBERS,
    U32,
    DumpRequest,
    address_text,
    attribute_header,
    attributes_of,
    pack_address,
    string,
)
from pykubeproxy.model.kinds import Family

__all__ = [
    "ENTRIES_PER_MESSAGE",
    "REVISIONS",
    "Listing",
    "SetHeader",
    "add_entries",
    "create_set",
    "decode_listing",
    "decode_protocol",
    "decode_type",
    "del_entries",
    "destroy_set",
    "get_protocol",
    "get_type",
    "list_headers",
    "list_set",
    "refused_line",
    "set_error",
]

_IPSET = 6 << 8
_PROTOCOL_CMD, _CREATE_CMD, _DESTROY, _LIST, _ADD, _DEL, _TYPE = 1, 2, 3, 7, 9, 10, 13
_NFGEN = bytes((AF_INET, 0, 0, 0))  # the family here is not the set's, and not looked at

_VERSION, _SETNAME, _TYPENAME, _REVISION, _SET_FAMILY, _FLAGS = 1, 2, 3, 4, 5, 6
_DATA, _ADT, _LINENO, _VERSION_MIN = 7, 8, 9, 10
_IP, _PORT, _PORT_TO, _PROTO_NUMBER, _IP2, _CIDR2 = 1, 4, 5, 7, 20, 21
_HASHSIZE, _MAXELEM, _ELEMENTS, _REFERENCES = 18, 19, 24, 25
_IPADDR = {4: 1, 16: 2}

_LIST_HEADER = 1 << 2
_OLDEST_PROTOCOL = 6  # ipset 6.0, Linux 2.6.39; 7 adds commands and changes none of these
_HASH_SIZE, _MAX_ELEMENTS = 1024, 65536

REVISIONS: Mapping[str, int] = {
    "bitmap:port": 3,
    "hash:ip": 4,
    "hash:ip,port": 5,
    "hash:ip,port,ip": 5,
    "hash:ip,port,net": 7,
}
"""Of each type, the revision of Linux 3.18 and ipset 6.23.

All have SCTP. With the kernel's newest, an older ``ipset`` program could not list our sets.
"""

ENTRIES_PER_MESSAGE = 500
"""At most 84 bytes each: below the 64 KiB of an attribute and what one write takes."""


class SetHeader(Struct, frozen=True, gc=False):
    """What a set is. ``family`` is ``None`` for sets of no family, like ``bitmap:port``."""

    type: str
    family: Family | None
    revision: int
    max_elements: int  # 0 for bitmaps
    elements: int | None  # before Linux 4.9 the kernel does not tell
    references: int  # rules that use it; it cannot be destroyed before they go


class Listing(Struct, frozen=True, gc=False):
    """One message of a listing. Large sets take several; only the first has the header."""

    set: str
    header: SetHeader | None
    entries: list[str]


def get_protocol() -> Request:
    return _ipset(_PROTOCOL_CMD)


def decode_protocol(reply: bytes) -> tuple[int, int]:
    """Read the reply to `get_protocol`: the oldest and newest version the kernel speaks."""
    found = dict(attributes_of(reply, len(_NFGEN), len(reply)))
    newest = found[_VERSION][0]
    return found.get(_VERSION_MIN, found[_VERSION])[0], newest


def get_type(set_type: str, family: Family) -> Request:
    """Ask which revisions of a set type there are; the kernel loads its module.

    Refused with IPSET_ERR_FIND_TYPE (see `set_error`) where there is no such type.
    """
    return _ipset(_TYPE, _text(_TYPENAME, set_type), _set_family(set_type, family))


def decode_type(reply: bytes) -> tuple[int, int]:
    """Read the reply to `get_type`: the oldest and newest revision."""
    found = dict(attributes_of(reply, len(_NFGEN), len(reply)))
    newest = found[_REVISION][0]
    return found.get(_VERSION_MIN, found[_REVISION])[0], newest


def create_set(name: str, set_type: str, family: Family, revision: int | None = None) -> Request:
    """Create an empty set; done as well where one with the same type and limits exists.

    Another one under that name: EEXIST. *revision* is that of `REVISIONS` unless given.
    """
    if set_type.startswith("bitmap:"):
        parameters = _number(_PORT, 0, 2) + _number(_PORT_TO, 65535, 2)
    else:
        parameters = _number(_HASHSIZE, _HASH_SIZE, 4) + _number(_MAXELEM, _MAX_ELEMENTS, 4)
    return _ipset(
        _CREATE_CMD,
        _text(_SETNAME, name),
        _text(_TYPENAME, set_type),
        _set_family(set_type, family),
        attribute(_REVISION, bytes((REVISIONS[set_type] if revision is None else revision,))),
        nested(_DATA, parameters),
    )


def destroy_set(name: str) -> Request:
    """Destroy a set and its entries; used by a rule: IPSET_ERR_BUSY.

    An absent one: ENOENT, or done (Linux 6.1).
    """
    return _ipset(_DESTROY, _text(_SETNAME, name))


def add_entries(name: str, entries: Sequence[str]) -> Request:
    """Add up to `ENTRIES_PER_MESSAGE` entries; those already there are no error.

    At the first that is refused the kernel stops: see `refused_line`.
    """
    return _ipset(_ADD, *_entries(name, entries))


def del_entries(name: str, entries: Sequence[str]) -> Request:
    """Delete entries; absent ones are no error. Otherwise like `add_entries`."""
    return _ipset(_DEL, *_entries(name, entries))


def refused_line(body: bytes) -> int | None:
    """Return which of the entries was refused, from 0, given the `Refusal.body`.

    Those before it are done, those behind it not looked at. ``None``: the request as a whole was
    refused (no such set), and nothing is done.
    """
    for kind, start, _ in attributes(body, len(_NFGEN), len(body)):
        if kind == _LINENO:
            (line,) = U32.unpack_from(body, start)
            return int(line) - 1 if line else None
    return None


def list_set(name: str) -> DumpRequest:
    """Ask for one set with its entries, see `decode_listing`; absent: ENOENT."""
    kind, _, body = _ipset(_LIST, _text(_SETNAME, name))
    return kind, body


def list_headers() -> DumpRequest:
    """Ask for all sets without their entries, see `decode_listing`."""
    kind, _, body = _ipset(_LIST, _number(_FLAGS, _LIST_HEADER, 4))
    return kind, body


def decode_listing(data: bytes, start: int, end: int) -> Listing:
    """Read one message of a listing.

    Raises:
        ValueError: an entry has none of the parts that this backend's sets are made of.
    """
    spans = {
        kind: (first, last)
        for kind, first, last in attributes(data, start + HEADER_BYTES + len(_NFGEN), end)
    }
    found = {kind: data[first:last] for kind, (first, last) in spans.items() if kind != _ADT}
    header = None
    if _TYPENAME in found:
        parameters = dict(attributes_of(data, *spans[_DATA])) if _DATA in spans else {}
        elements = parameters.get(_ELEMENTS)
        header = SetHeader(
            type=string(found[_TYPENAME]),
            family=FAMILIES.get(found[_SET_FAMILY][0]),
            revision=found[_REVISION][0],
            max_elements=int.from_bytes(parameters.get(_MAXELEM, b""), "big"),
            elements=None if elements is None else int.from_bytes(elements, "big"),
            references=int.from_bytes(parameters.get(_REFERENCES, b""), "big"),
        )
    entries = _decode_entries(data, *spans[_ADT]) if _ADT in spans else []
    return Listing(string(found[_SETNAME]), header, entries)


def set_error(code: int, set_type: str = "") -> str:
    """Say what the kernel means by the errno of an ipset request."""
    if set_type.startswith("bitmap:") and code == _HASH_FULL:
        return "out of the range of the set"
    return _SET_ERRORS.get(code) or errno.errorcode.get(code, f"error {code}")


# linux/netfilter/ipset/ip_set.h and ip_set_hash.h
_HASH_FULL = 4352
_SET_ERRORS: Mapping[int, str] = {
    errno.ENOENT: "there is no such set",
    errno.EEXIST: "a set of this name exists with another type or other parameters",
    4097: "the kernel cannot read the request: a part is malformed, or of the other family",
    4098: "the kernel has no such set type, or not in this revision",
    4099: "the kernel holds as many sets as it can",
    4100: "in use by a rule or another set",
    4101: "the new name is taken",
    4102: "the sets are of different types",
    4103: "the entry is already there, or to be deleted and not there",
    4104: "invalid prefix length; 0 is none, write the net as two halves",
    4105: "invalid netmask",
    4106: "the set type does not know this family",
    4107: "timeouts are not enabled in this set",
    4108: "referred to by a rule or another set",
    4109: "an IPv4 address is wanted",
    4110: "an IPv6 address is wanted",
    4111: "counters are not enabled in this set",
    4112: "comments are not enabled in this set",
    4113: "invalid mark mask",
    4114: "packet metadata is not enabled in this set",
    _HASH_FULL: f"the set is full: it takes {_MAX_ELEMENTS} entries",
    4353: "an empty value cannot be an entry",
    4354: "invalid protocol",
    4355: "a protocol is wanted",
    4356: "ranges are not supported",
    4357: "invalid range",
}


def _ipset(command: int, *parts: bytes) -> Request:
    version = attribute(_VERSION, bytes((_OLDEST_PROTOCOL,)))
    # Without EXCL among the flags what is already so is no error.
    return _IPSET | command, 0, b"".join((_NFGEN, version, *parts))


def _entries(name: str, entries: Sequence[str]) -> tuple[bytes, ...]:
    if len(entries) > ENTRIES_PER_MESSAGE:
        raise ValueError(f"{len(entries)} entries for {name}, at most {ENTRIES_PER_MESSAGE}")
    # The kernel writes into the first line number, which must be there, what those inside say.
    return (
        _text(_SETNAME, name),
        attribute(_LINENO, bytes(4)),
        nested(_ADT, *(_entry(entry, line) for line, entry in enumerate(entries, 1))),
    )


def _entry(entry: str, line: int) -> bytes:
    """Encode ``ip``, ``port``, ``ip,proto:port`` or ``ip,proto:port,ip-or-net``."""
    line_number = _LINE_HEADER + U32.pack(line)
    ip, comma, rest = entry.partition(",")
    if not comma:
        if ip.isdecimal():
            return nested(_DATA, _port(int(ip)), line_number)
        return nested(_DATA, _ip(_IP, ip), line_number)
    service, comma, other = rest.partition(",")
    protocol, _, port = service.partition(":")
    parts = _ip(_IP, ip) + _port(int(port)) + _proto(protocol) + line_number
    if comma:
        other, slash, length = other.partition("/")
        parts += _ip(_IP2, other)
        if slash:
            parts += attribute(_CIDR2, bytes((int(length),)))
    return nested(_DATA, parts)


@lru_cache(maxsize=1 << 12)
def _ip(kind: int, address: str) -> bytes:
    packed = pack_address(address)
    return nested(kind, attribute(_IPADDR[len(packed)] | NET_ORDER, packed))


def _port(port: int) -> bytes:
    return _PORT_HEADER + (port << 16).to_bytes(4, "big")


@lru_cache(maxsize=8)
def _proto(name: str) -> bytes:
    return attribute(_PROTO_NUMBER, bytes((_NUMBERS.get(name) or int(name),)))


def _number(kind: int, value: int, size: int) -> bytes:
    return attribute(kind | NET_ORDER, value.to_bytes(size, "big"))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _set_family(set_type: str, family: Family) -> bytes:
    number = 0 if set_type.startswith("bitmap:") else AF[family]
    return attribute(_SET_FAMILY, bytes((number,)))


_LINE_HEADER = attribute_header(_LINENO, 4)
_PORT_HEADER = attribute_header(_PORT | NET_ORDER, 2)
_NUMBERS = {protocol.lower(): number for protocol, number in PROTOCOL_NUMBERS.items()}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def _decode_entries(data: bytes, start: int, end: int) -> list[str]:
    for shape in _SHAPES:
        texts = shape.read(data, start, end)
        if texts is not None:
            return texts
    return [
        _entry_text(dict(attributes_of(data, *span))) for _, *span in attributes(data, start, end)
    ]


def _entry_text(found: Mapping[int, bytes]) -> str:
    """Return the text of an entry in whatever order its parts came."""
    parts: list[str] = []
    if _IP in found:
        parts.append(address_text(found[_IP][4:]))
    if _PORT in found:
        port = int.from_bytes(found[_PORT], "big")
        protocol = found.get(_PROTO_NUMBER)
        parts.append(_service_text(protocol[0], port) if protocol else str(port))
    if _IP2 in found:
        parts.append(_net_text(found[_IP2][4:], found[_CIDR2][0] if _CIDR2 in found else None))
    if not parts:
        raise ValueError("a set entry without address and port")
    return ",".join(parts)


class _Shape:
    """Entries of one type and family as the kernel writes them: all of the same layout."""

    def __init__(self, address_bytes: int, parts: Sequence[int], text: Callable[..., str]) -> None:
        fields: list[tuple[bytes, str]] = []
        for part in parts:
            if part in (_IP, _IP2):
                inner = attribute_header(_IPADDR[address_bytes], address_bytes)
                outer = attribute_header(part | NESTED, 4 + address_bytes)
                fields.append((outer + inner, f"{address_bytes}s"))
            elif part == _PORT:
                fields.append((_PORT_HEADER, "H2x"))
            else:
                fields.append((attribute_header(part, 1), "B3x"))
        size = sum(len(header) + struct.calcsize(">" + value) for header, value in fields)
        fields[0] = (attribute_header(_DATA | NESTED, size) + fields[0][0], fields[0][1])
        layout = "".join(f"{len(header)}s{value}" for header, value in fields)
        self._layout = struct.Struct(">" + layout)
        self._headers = tuple(header for header, _ in fields)
        self._text = text

    def read(self, data: bytes, start: int, end: int) -> list[str] | None:
        """Return the texts of all entries; ``None`` if they are not of this shape."""
        if (end - start) % self._layout.size or not data.startswith(self._headers[0], start):
            return None
        headers, text = self._headers, self._text
        texts = []
        for row in self._layout.iter_unpack(memoryview(data)[start:end]):
            if row[::2] != headers:
                return None
            texts.append(text(*row[1::2]))
        return texts


def _ip_text(ip: bytes) -> str:
    return address_text(ip)


def _ip_port_text(ip: bytes, port: int, protocol: int) -> str:
    return f"{address_text(ip)},{_service_text(protocol, port)}"


def _ip_port_ip_text(ip: bytes, ip2: bytes, port: int, protocol: int) -> str:
    return f"{address_text(ip)},{_service_text(protocol, port)},{address_text(ip2)}"


def _ip_port_net_text(ip: bytes, ip2: bytes, port: int, length: int, protocol: int) -> str:
    return f"{address_text(ip)},{_service_text(protocol, port)},{_net_text(ip2, length)}"


def _service_text(protocol: int, port: int) -> str:
    return f"{_NAMES.get(protocol, protocol)}:{port}"


def _net_text(packed: bytes, length: int | None) -> str:
    text = address_text(packed)
    return text if length in (None, len(packed) * 8) else f"{text}/{length}"


_SHAPES = [
    _Shape(address_bytes, parts, text)
    for address_bytes in (4, 16)
    for parts, text in (
        ((_IP, _PORT, _PROTO_NUMBER), _ip_port_text),
        ((_IP, _IP2, _PORT, _PROTO_NUMBER), _ip_port_ip_text),
        ((_IP, _IP2, _PORT, _CIDR2, _PROTO_NUMBER), _ip_port_net_text),
        ((_IP,), _ip_text),
        ((_PORT,), str),
    )
]
