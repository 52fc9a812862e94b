"""The bytes of three kernel tables: virtual servers (ip_vs), sets (ipset), and addresses.

Encoders make requests for `pykubeproxy.host.netlink`; decoders read one message of a dump, its
netlink header included, or one reply. Nothing here talks to the kernel or remembers anything.

Not by pyroute2, to which 10,000 virtual servers with five real ones each are 23 s of encoding and
7 s of decoding (380 us and 110 us per message; here 5 us each). Nor can it say the netmask of an
IPv6 service, or add many entries to a set with one message.

Formats: linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c, linux/netfilter/ipset/ip_set.h,
linux/if_addr.h. Numbers in ip_vs and rtnetlink attributes are in the machine's order, ports and
all of ipset in network order.
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct

from pykubeproxy.host.netlink import (
    CREATE,
    EXCL,
    HEADER_BYTES,
    Request,
    attribute,
    attributes,
    nested,
)
from pykubeproxy.ipvs.objects import Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol

__all__ = [
    "ENTRIES_PER_MESSAGE",
    "HASHED",
    "REVISIONS",
    "SCHED_1",
    "SCHED_2",
    "Address",
    "Dest",
    "DumpRequest",
    "Listing",
    "SetHeader",
    "Timeouts",
    "add_entries",
    "create_set",
    "decode_address",
    "decode_config",
    "decode_dest",
    "decode_listing",
    "decode_protocol",
    "decode_service",
    "decode_type",
    "del_address",
    "del_dest",
    "del_entries",
    "del_service",
    "destroy_set",
    "get_addresses",
    "get_config",
    "get_dests",
    "get_protocol",
    "get_services",
    "get_type",
    "list_headers",
    "list_set",
    "new_address",
    "new_dest",
    "new_service",
    "refused_line",
    "set_config",
    "set_dest",
    "set_error",
    "set_service",
]

DumpRequest = tuple[int, bytes]
"""Message type and body, as `Netlink.dump` takes them."""

HASHED = 0x2  # set by the kernel on every service; decoders clear it
SCHED_1 = 0x8  # sh and mh: fall back to another server when the chosen one has weight 0
SCHED_2 = 0x10  # sh and mh: hash the source port as well

_AF_INET, _AF_INET6 = 2, 10
_AF = {Family.IPV4: _AF_INET, Family.IPV6: _AF_INET6}
_FAMILY = {number: family for family, number in _AF.items()}
_PROTO = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
_PROTOCOL = {number: protocol for protocol, number in _PROTO.items()}

_NESTED, _NET_ORDER = 0x8000, 0x4000  # NLA_F_NESTED, NLA_F_NET_BYTEORDER
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")


def _header(kind: int, payload_bytes: int) -> bytes:
    return _U16.pack(payload_bytes + 4) + _U16.pack(kind)


# ip_vs ---------------------------------------------------------------------------------------

_NEW_SERVICE, _SET_SERVICE, _DEL_SERVICE, _GET_SERVICE = 1, 2, 3, 4
_NEW_DEST, _SET_DEST, _DEL_DEST, _GET_DEST = 5, 6, 7, 8
_SET_CONFIG, _GET_CONFIG = 12, 13
_GENL = [bytes((command, 1, 0, 0)) for command in range(_GET_CONFIG + 1)]
_GENL_BYTES = 4

_SERVICE, _DEST, _TCP_SECONDS, _TCP_FIN_SECONDS, _UDP_SECONDS = 1, 2, 4, 5, 6
_SVC_AF, _SVC_PROTOCOL, _SVC_ADDR, _SVC_PORT, _SVC_FWMARK = 1, 2, 3, 4, 5
_SVC_SCHED, _SVC_FLAGS, _SVC_TIMEOUT, _SVC_NETMASK = 6, 7, 8, 9
_DEST_ADDR, _DEST_PORT, _DEST_METHOD, _DEST_WEIGHT, _DEST_UPPER, _DEST_LOWER = 1, 2, 3, 4, 5, 6
_DEST_ACTIVE, _DEST_INACTIVE, _DEST_PERSISTENT, _DEST_AF = 7, 8, 9, 11
_DEST_TUN_TYPE, _DEST_TUN_PORT, _DEST_TUN_FLAGS = 13, 14, 15

_NAT = 0  # IP_VS_CONN_F_MASQ


class Dest(Struct, frozen=True, gc=False):
    """A real server as the kernel tells it. ``method`` 0 is masquerading (NAT)."""

    address: str
    port: int
    weight: int
    method: int
    active: int  # connections
    inactive: int


class Timeouts(Struct, frozen=True, gc=False):
    """Seconds until an idle connection is forgotten. 0 keeps what the kernel has."""

    tcp: int = 0
    tcp_fin: int = 0
    udp: int = 0


def new_service(family_id: int, virtual: Virtual, config: VirtualConfig) -> Request:
    """Refused with EEXIST where it exists, with ENOENT for an unknown scheduler."""
    return family_id, 0, _GENL[_NEW_SERVICE] + _service(virtual, config)


def set_service(family_id: int, virtual: Virtual, config: VirtualConfig) -> Request:
    """Change scheduler, flags and timeout of a service, all of them; absent: ESRCH."""
    return family_id, 0, _GENL[_SET_SERVICE] + _service(virtual, config)


def del_service(family_id: int, virtual: Virtual) -> Request:
    """Delete a service with its real servers; absent: ESRCH."""
    return family_id, 0, _GENL[_DEL_SERVICE] + _selector(virtual)


def new_dest(family_id: int, real: Real, weight: int) -> Request:
    """Refused with EEXIST where it exists, with ESRCH without the service."""
    return family_id, 0, _GENL[_NEW_DEST] + _selector(real.virtual) + _dest(real, weight)


def set_dest(family_id: int, real: Real, weight: int) -> Request:
    """Change the weight; an absent real server: ENOENT."""
    return family_id, 0, _GENL[_SET_DEST] + _selector(real.virtual) + _dest(real, weight)


def del_dest(family_id: int, real: Real) -> Request:
    """Delete a real server; absent: ENOENT. Its connections go nowhere from then on."""
    return family_id, 0, _GENL[_DEL_DEST] + _selector(real.virtual) + _dest(real, 0)


def get_services(family_id: int) -> DumpRequest:
    """Ask for the services of both families, see `decode_service`."""
    return family_id, _GENL[_GET_SERVICE]


def get_dests(family_id: int, virtual: Virtual) -> DumpRequest:
    """Ask for the real servers of one service, see `decode_dest`; none for an absent service."""
    return family_id, _GENL[_GET_DEST] + _selector(virtual)


def get_config(family_id: int) -> Request:
    return family_id, 0, _GENL[_GET_CONFIG]


def set_config(family_id: int, timeouts: Timeouts) -> Request:
    wanted = (
        (_TCP_SECONDS, timeouts.tcp),
        (_TCP_FIN_SECONDS, timeouts.tcp_fin),
        (_UDP_SECONDS, timeouts.udp),
    )
    body = b"".join(attribute(kind, _U32.pack(seconds)) for kind, seconds in wanted if seconds)
    return family_id, 0, _GENL[_SET_CONFIG] + body


def decode_service(data: bytes, start: int, end: int) -> tuple[Virtual, VirtualConfig] | None:
    """Read one message of a service dump; ``None`` for what is chosen by a firewall mark."""
    found: dict[int, bytes] = {}
    # The first attribute is the service, and all there is.
    for kind, first, last in attributes(data, start + HEADER_BYTES + _GENL_BYTES + 4, end):
        found[kind] = data[first:last]
        if kind == _SVC_NETMASK:
            break  # statistics follow
    if _SVC_FWMARK in found:
        return None
    virtual = Virtual(
        _PROTOCOL[_native(found[_SVC_PROTOCOL])],
        _address(_native(found[_SVC_AF]), found[_SVC_ADDR]),
        int.from_bytes(found[_SVC_PORT], "big"),
    )
    config = VirtualConfig(
        found[_SVC_SCHED].rstrip(b"\0").decode(),
        _native(found[_SVC_FLAGS][:4]) & ~HASHED,
        _native(found[_SVC_TIMEOUT]),
    )
    return virtual, config


def decode_dest(data: bytes, start: int, end: int) -> Dest:
    """Read one message of a dump of real servers."""
    start += HEADER_BYTES + _GENL_BYTES + 4  # the first attribute is the real server
    if end - start >= _USUAL_DEST.size:
        fields = _USUAL_DEST.unpack_from(data, start)
        if fields[::2] == _USUAL_DEST_HEADERS:
            address, port, method, weight, _, _, _, _, _, active, inactive, _, af = fields[1::2]
            return Dest(
                _address(af, address), int.from_bytes(port, "big"), weight, method, active, inactive
            )
    found = {kind: data[first:last] for kind, first, last in attributes(data, start, end)}
    numbers = (_DEST_WEIGHT, _DEST_METHOD, _DEST_ACTIVE, _DEST_INACTIVE)
    return Dest(
        _address(_native(found.get(_DEST_AF, b"")), found[_DEST_ADDR]),
        int.from_bytes(found[_DEST_PORT], "big"),
        *(_native(found[kind]) for kind in numbers),
    )


def decode_config(reply: bytes) -> Timeouts:
    """Read the reply to `get_config`."""
    found = {
        kind: _native(reply[first:last])
        for kind, first, last in attributes(reply, _GENL_BYTES, len(reply))
    }
    return Timeouts(
        found.get(_TCP_SECONDS, 0), found.get(_TCP_FIN_SECONDS, 0), found.get(_UDP_SECONDS, 0)
    )


def _service(virtual: Virtual, config: VirtualConfig) -> bytes:
    return nested(_SERVICE, _identity(virtual), _config(config, ":" in virtual.address))


@lru_cache(maxsize=64)
def _config(config: VirtualConfig, ipv6: bool) -> bytes:
    # Persistence of single clients: the netmask of a group of them is 32 ones, or 128 counted.
    netmask = 128 if ipv6 else 0xFFFFFFFF
    every_flag = 0xFFFFFFFF  # the mask: flags not set in `config` are cleared
    return (
        attribute(_SVC_SCHED, config.scheduler.encode() + b"\0")
        + attribute(_SVC_FLAGS, _U32.pack(config.flags) + _U32.pack(every_flag))
        + attribute(_SVC_TIMEOUT, _U32.pack(config.timeout_seconds))
        + attribute(_SVC_NETMASK, _U32.pack(netmask))
    )


@lru_cache(maxsize=16)  # its real servers come one after the other
def _selector(virtual: Virtual) -> bytes:
    return nested(_SERVICE, _identity(virtual))


def _identity(virtual: Virtual) -> bytes:
    packed = _packed(virtual.address)
    return (
        _kind(virtual.protocol, len(packed))
        + attribute(_SVC_ADDR, packed)
        + attribute(_SVC_PORT, virtual.port.to_bytes(2, "big"))
    )


@lru_cache(maxsize=6)
def _kind(protocol: Protocol, address_bytes: int) -> bytes:
    af = _AF_INET if address_bytes == 4 else _AF_INET6
    return attribute(_SVC_AF, _U16.pack(af)) + attribute(_SVC_PROTOCOL, _U16.pack(_PROTO[protocol]))


def _dest(real: Real, weight: int) -> bytes:
    packed = _packed(real.address)
    padded_port = (real.port << 16).to_bytes(4, "big")
    return _dest_head(weight, len(packed)) + packed + _DEST_PORT_HEADER + padded_port


@lru_cache(maxsize=64)
def _dest_head(weight: int, address_bytes: int) -> bytes:
    """All that is before the address: few real servers differ in it."""
    af = _AF_INET if address_bytes == 4 else _AF_INET6
    numbers = ((_DEST_METHOD, _NAT), (_DEST_WEIGHT, weight), (_DEST_UPPER, 0), (_DEST_LOWER, 0))
    inner = (
        attribute(_DEST_AF, _U16.pack(af))
        + b"".join(attribute(kind, _U32.pack(value)) for kind, value in numbers)
        + _header(_DEST_ADDR, address_bytes)
    )
    return _header(_DEST | _NESTED, len(inner) + address_bytes + 8) + inner


_DEST_PORT_HEADER = _header(_DEST_PORT, 2)

# As ip_vs_genl_fill_dest writes it since Linux 5.3; headers and values take turns.
_USUAL_DEST = struct.Struct("=4s16s 4s2s2x 4sI4sI 4sB3x4sH2x4sH2x 4sI4sI4sI4sI4sI 4sH2x")
_USUAL_DEST_HEADERS = (
    _header(_DEST_ADDR, 16),
    _header(_DEST_PORT, 2),
    _header(_DEST_METHOD, 4),
    _header(_DEST_WEIGHT, 4),
    _header(_DEST_TUN_TYPE, 1),
    _header(_DEST_TUN_PORT, 2),
    _header(_DEST_TUN_FLAGS, 2),
    _header(_DEST_UPPER, 4),
    _header(_DEST_LOWER, 4),
    _header(_DEST_ACTIVE, 4),
    _header(_DEST_INACTIVE, 4),
    _header(_DEST_PERSISTENT, 4),
    _header(_DEST_AF, 2),
)


# ipset ---------------------------------------------------------------------------------------

_IPSET = 6 << 8
_PROTOCOL_CMD, _CREATE_CMD, _DESTROY, _LIST, _ADD, _DEL, _TYPE = 1, 2, 3, 7, 9, 10, 13
_NFGEN = bytes((_AF_INET, 0, 0, 0))  # the family here is not the set's, and not looked at

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
    found = dict(_found(reply, len(_NFGEN), len(reply)))
    newest = found[_VERSION][0]
    return found.get(_VERSION_MIN, found[_VERSION])[0], newest


def get_type(set_type: str, family: Family) -> Request:
    """Ask which revisions of a set type there are; the kernel loads its module.

    Refused with IPSET_ERR_FIND_TYPE (see `set_error`) where there is no such type.
    """
    return _ipset(_TYPE, _text(_TYPENAME, set_type), _set_family(set_type, family))


def decode_type(reply: bytes) -> tuple[int, int]:
    """Read the reply to `get_type`: the oldest and newest revision."""
    found = dict(_found(reply, len(_NFGEN), len(reply)))
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
            (line,) = _U32.unpack_from(body, start)
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
        parameters = dict(_found(data, *spans[_DATA])) if _DATA in spans else {}
        elements = parameters.get(_ELEMENTS)
        header = SetHeader(
            type=_string(found[_TYPENAME]),
            family=_FAMILY.get(found[_SET_FAMILY][0]),
            revision=found[_REVISION][0],
            max_elements=int.from_bytes(parameters.get(_MAXELEM, b""), "big"),
            elements=None if elements is None else int.from_bytes(elements, "big"),
            references=int.from_bytes(parameters.get(_REFERENCES, b""), "big"),
        )
    entries = _decode_entries(data, *spans[_ADT]) if _ADT in spans else []
    return Listing(_string(found[_SETNAME]), header, entries)


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
    line_number = _LINE_HEADER + _U32.pack(line)
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
    packed = _packed(address)
    return nested(kind, attribute(_IPADDR[len(packed)] | _NET_ORDER, packed))


def _port(port: int) -> bytes:
    return _PORT_HEADER + (port << 16).to_bytes(4, "big")


@lru_cache(maxsize=8)
def _proto(name: str) -> bytes:
    return attribute(_PROTO_NUMBER, bytes((_NUMBERS.get(name) or int(name),)))


def _number(kind: int, value: int, size: int) -> bytes:
    return attribute(kind | _NET_ORDER, value.to_bytes(size, "big"))


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _set_family(set_type: str, family: Family) -> bytes:
    number = 0 if set_type.startswith("bitmap:") else _AF[family]
    return attribute(_SET_FAMILY, bytes((number,)))


_LINE_HEADER = _header(_LINENO, 4)
_PORT_HEADER = _header(_PORT | _NET_ORDER, 2)
_NUMBERS = {protocol.lower(): number for protocol, number in _PROTO.items()}
_NAMES = {number: name for name, number in _NUMBERS.items()}


def _decode_entries(data: bytes, start: int, end: int) -> list[str]:
    for shape in _SHAPES:
        texts = shape.read(data, start, end)
        if texts is not None:
            return texts
    return [_entry_text(dict(_found(data, *span))) for _, *span in attributes(data, start, end)]


def _entry_text(found: Mapping[int, bytes]) -> str:
    """Return the text of an entry in whatever order its parts came."""
    parts: list[str] = []
    if _IP in found:
        parts.append(_address_text(found[_IP][4:]))
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
                inner = _header(_IPADDR[address_bytes], address_bytes)
                outer = _header(part | _NESTED, 4 + address_bytes)
                fields.append((outer + inner, f"{address_bytes}s"))
            elif part == _PORT:
                fields.append((_PORT_HEADER, "H2x"))
            else:
                fields.append((_header(part, 1), "B3x"))
        size = sum(len(header) + struct.calcsize(">" + value) for header, value in fields)
        fields[0] = (_header(_DATA | _NESTED, size) + fields[0][0], fields[0][1])
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
    return _address_text(ip)


def _ip_port_text(ip: bytes, port: int, protocol: int) -> str:
    return f"{_address_text(ip)},{_service_text(protocol, port)}"


def _ip_port_ip_text(ip: bytes, ip2: bytes, port: int, protocol: int) -> str:
    return f"{_address_text(ip)},{_service_text(protocol, port)},{_address_text(ip2)}"


def _ip_port_net_text(ip: bytes, ip2: bytes, port: int, length: int, protocol: int) -> str:
    return f"{_address_text(ip)},{_service_text(protocol, port)},{_net_text(ip2, length)}"


def _service_text(protocol: int, port: int) -> str:
    return f"{_NAMES.get(protocol, protocol)}:{port}"


def _net_text(packed: bytes, length: int | None) -> str:
    text = _address_text(packed)
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


# Addresses -----------------------------------------------------------------------------------

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
    return _RTM_GETADDR, _IFADDRMSG.pack(0 if family is None else _AF[family], 0, 0, 0, 0)


def decode_address(data: bytes, start: int, end: int) -> Address | None:
    """Read one message of a dump or a notice; ``None`` if it is about something else."""
    kind = int.from_bytes(data[start + 4 : start + 6], sys.byteorder)
    start += HEADER_BYTES
    if kind not in (_RTM_NEWADDR, _RTM_DELADDR) or end - start < _IFADDRMSG.size:
        return None
    af, prefix_length, _, scope, index = _IFADDRMSG.unpack_from(data, start)
    found = dict(_found(data, start + _IFADDRMSG.size, end))
    # Without IFA_LOCAL (IPv6, no peer) IFA_ADDRESS is the interface's own; with it, the peer's.
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    family = _FAMILY.get(af)
    if packed is None or family is None:
        return None
    text = _address_text(packed)
    return Address(kind == _RTM_NEWADDR, index, family, text, prefix_length, scope)


def _address_request(
    kind: int, index: int, address: str, prefix_length: int | None = None
) -> Request:
    packed = _packed(address)
    af = _AF_INET if len(packed) == 4 else _AF_INET6
    length = len(packed) * 8 if prefix_length is None else prefix_length
    body = (
        _IFADDRMSG.pack(af, length, 0, 0, index)
        + attribute(_IFA_LOCAL, packed)
        + attribute(_IFA_ADDRESS, packed)
    )
    return kind, 0, body


# Shared --------------------------------------------------------------------------------------

_WORDS = struct.Struct(">8H")
_ZEROS = [":" + "0:" * count for count in range(8, 1, -1)]


@lru_cache(maxsize=1 << 12)
def _packed(address: str) -> bytes:
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
def _address_text(packed: bytes) -> str:
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


def _address(af: int, field: bytes) -> str:
    """Read a field that has room for either family."""
    return _address_text(field[:4] if af == _AF_INET else field[:16])


def _native(number: bytes) -> int:
    return int.from_bytes(number, sys.byteorder)


def _string(field: bytes) -> str:
    return field.rstrip(b"\0").decode()


def _found(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    for kind, first, last in attributes(data, start, end):
        yield kind, data[first:last]
