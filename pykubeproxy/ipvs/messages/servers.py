"""Virtual servers, real servers and timeouts: the generic netlink family IPVS.

Formats: linux/ip_vs.h and net/netfilter/ipvs/ip_vs_ctl.c.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from msgspec import Struct

from pykubeproxy.host.netlink import HEADER_BYTES, Request, attribute, attributes, nested
from pykubeproxy.ipvs.messages.fields import (
    AF_INET,
    AF_INET6,
    NESTED,
    PROTOCOL_NUMBERS,
    PROTOCOLS,
    U16,
    U32,
    DumpRequest,
    address_field,
    attribute_header,
    native,
    pack_address,
)
from pykubeproxy.ipvs.objects import Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Protocol

__all__ = [
    "HASHED",
    "SCHED_1",
    "SCHED_2",
    "Dest",
    "Timeouts",
    "decode_config",
    "decode_dest",
    "decode_service",
    "del_dest",
    "del_service",
    "get_config",
    "get_dests",
    "get_services",
    "new_dest",
    "new_service",
    "set_config",
    "set_dest",
    "set_service",
]

HASHED = 0x2  # set by the kernel on every service; decoders clear it
SCHED_1 = 0x8  # sh and mh: fall back to another server when the chosen one has weight 0
SCHED_2 = 0x10  # sh and mh: hash the source port as well

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
    body = b"".join(attribute(kind, U32.pack(seconds)) for kind, seconds in wanted if seconds)
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
        PROTOCOLS[native(found[_SVC_PROTOCOL])],
        address_field(native(found[_SVC_AF]), found[_SVC_ADDR]),
        int.from_bytes(found[_SVC_PORT], "big"),
    )
    config = VirtualConfig(
        found[_SVC_SCHED].rstrip(b"\0").decode(),
        native(found[_SVC_FLAGS][:4]) & ~HASHED,
        native(found[_SVC_TIMEOUT]),
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
                address_field(af, address),
                int.from_bytes(port, "big"),
                weight,
                method,
                active,
                inactive,
            )
    found = {kind: data[first:last] for kind, first, last in attributes(data, start, end)}
    numbers = (_DEST_WEIGHT, _DEST_METHOD, _DEST_ACTIVE, _DEST_INACTIVE)
    return Dest(
        address_field(native(found.get(_DEST_AF, b"")), found[_DEST_ADDR]),
        int.from_bytes(found[_DEST_PORT], "big"),
        *(native(found[kind]) for kind in numbers),
    )


def decode_config(reply: bytes) -> Timeouts:
    """Read the reply to `get_config`."""
    found = {
        kind: native(reply[first:last])
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
        + attribute(_SVC_FLAGS, U32.pack(config.flags) + U32.pack(every_flag))
        + attribute(_SVC_TIMEOUT, U32.pack(config.timeout_seconds))
        + attribute(_SVC_NETMASK, U32.pack(netmask))
    )


@lru_cache(maxsize=16)  # its real servers come one after the other
def _selector(virtual: Virtual) -> bytes:
    return nested(_SERVICE, _identity(virtual))


def _identity(virtual: Virtual) -> bytes:
    packed = pack_address(virtual.address)
    return (
        _kind(virtual.protocol, len(packed))
        + attribute(_SVC_ADDR, packed)
        + attribute(_SVC_PORT, virtual.port.to_bytes(2, "big"))
    )


@lru_cache(maxsize=6)
def _kind(protocol: Protocol, address_bytes: int) -> bytes:
    af = AF_INET if address_bytes == 4 else AF_INET6
    return attribute(_SVC_AF, U16.pack(af)) + attribute(
        _SVC_PROTOCOL, U16.pack(PROTOCOL_NUMBERS[protocol])
    )


def _dest(real: Real, weight: int) -> bytes:
    packed = pack_address(real.address)
    padded_port = (real.port << 16).to_bytes(4, "big")
    return _dest_head(weight, len(packed)) + packed + _DEST_PORT_HEADER + padded_port


@lru_cache(maxsize=64)
def _dest_head(weight: int, address_bytes: int) -> bytes:
    """All that is before the address: few real servers differ in it."""
    af = AF_INET if address_bytes == 4 else AF_INET6
    numbers = ((_DEST_METHOD, _NAT), (_DEST_WEIGHT, weight), (_DEST_UPPER, 0), (_DEST_LOWER, 0))
    inner = (
        attribute(_DEST_AF, U16.pack(af))
        + b"".join(attribute(kind, U32.pack(value)) for kind, value in numbers)
        + attribute_header(_DEST_ADDR, address_bytes)
    )
    return attribute_header(_DEST | NESTED, len(inner) + address_bytes + 8) + inner


_DEST_PORT_HEADER = attribute_header(_DEST_PORT, 2)

# As ip_vs_genl_fill_dest writes it since Linux 5.3; headers and values take turns.
_USUAL_DEST = struct.Struct("=4s16s 4s2s2x 4sI4sI 4sB3x4sH2x4sH2x 4sI4sI4sI4sI4sI 4sH2x")
_USUAL_DEST_HEADERS = (
    attribute_header(_DEST_ADDR, 16),
    attribute_header(_DEST_PORT, 2),
    attribute_header(_DEST_METHOD, 4),
    attribute_header(_DEST_WEIGHT, 4),
    attribute_header(_DEST_TUN_TYPE, 1),
    attribute_header(_DEST_TUN_PORT, 2),
    attribute_header(_DEST_TUN_FLAGS, 2),
    attribute_header(_DEST_UPPER, 4),
    attribute_header(_DEST_LOWER, 4),
    attribute_header(_DEST_ACTIVE, 4),
    attribute_header(_DEST_INACTIVE, 4),
    attribute_header(_DEST_PERSISTENT, 4),
    attribute_header(_DEST_AF, 2),
)
