"""The virtual and real servers of a fake kernel: net/netfilter/ipvs/ip_vs_ctl.c, without packets.

Numbers and order of checks: linux/ip_vs.h and the kernel's source (6.1).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from msgspec import Struct

from tests.fakes.attributes import Attribute, Attributes, Refused, address_text, put

__all__ = ["SCHEDULERS", "Destination", "Servers", "Service", "ServiceId"]

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf")

NEW_SERVICE, SET_SERVICE, DEL_SERVICE, GET_SERVICE = 1, 2, 3, 4
NEW_DEST, SET_DEST, DEL_DEST, GET_DEST = 5, 6, 7, 8
SET_CONFIG, GET_CONFIG, FLUSH = 12, 13, 17
_WRITES = {NEW_SERVICE, SET_SERVICE, DEL_SERVICE, NEW_DEST, SET_DEST, DEL_DEST, SET_CONFIG, FLUSH}

SERVICE, DEST, TCP_SECONDS, TCP_FIN_SECONDS, UDP_SECONDS = 1, 2, 4, 5, 6

AF, PROTOCOL, ADDR, PORT, FWMARK, SCHED, FLAGS, TIMEOUT, NETMASK, STATS = range(1, 11)
D_ADDR, D_PORT, D_METHOD, D_WEIGHT, D_UPPER, D_LOWER = 1, 2, 3, 4, 5, 6
D_ACTIVE, D_INACTIVE, D_PERSISTENT, D_STATS, D_AF = 7, 8, 9, 10, 11

PERSISTENT, HASHED = 0x1, 0x2
_METHODS = 7
_INT_MAX = 2**31 - 1
_HZ = 100
_PROTOCOLS = {6: "TCP", 17: "UDP", 132: "SCTP"}


class ServiceId(NamedTuple):
    protocol: str
    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.protocol} {_joined(self.address, self.port)}"


class Destination(Struct):
    weight: int
    method: int = 0
    active: int = 0
    inactive: int = 0


class Service(Struct):
    """``netmask`` is a mask in IPv4 and a length in IPv6, as the kernel keeps it."""

    scheduler: str
    flags: int
    timeout: int
    netmask: int
    destinations: dict[tuple[str, int], Destination] = {}

    @property
    def persistent(self) -> bool:
        return bool(self.flags & PERSISTENT)


class Servers:
    """The table, and the requests that change it."""

    def __init__(self, schedulers: Iterable[str] = SCHEDULERS) -> None:
        self.schedulers = set(schedulers)
        self.services: dict[ServiceId | int, Service] = {}  # a number is a firewall mark
        self.marks: dict[int, int] = {}  # address family of each mark
        self.timeouts = {TCP_SECONDS: 900, TCP_FIN_SECONDS: 120, UDP_SECONDS: 300}

    # --- requests ---

    def modifies(self, body: bytes) -> bool:
        return body[0] in _WRITES

    def do(self, body: bytes) -> bytes:
        """Carry out one request (behind the netlink header) and return its reply."""
        if len(body) < 4:
            raise Refused(errno.EINVAL)
        command, given = body[0], Attributes(body[4:])
        match command:
            case _ if command == FLUSH:
                self.services.clear()
            case _ if command == GET_CONFIG:
                seconds = (put(kind, struct.pack("=I", n)) for kind, n in self.timeouts.items())
                return bytes((SET_CONFIG, 1, 0, 0)) + b"".join(seconds)
            case _ if command == SET_CONFIG:
                self._set_timeouts(given)
            case _ if command in _WRITES:
                self._write(command, given)
            case _ if command == GET_SERVICE:
                key = self._key(given.get(SERVICE))
                if key not in self.services:
                    raise Refused(errno.ESRCH)
                return self._service_message(key)
            case _:
                raise Refused(errno.EOPNOTSUPP)
        return b""

    def dump(self, body: bytes) -> list[bytes]:
        command, given = body[0], Attributes(body[4:])
        if command == GET_SERVICE:
            return [self._service_message(key) for key in self.services]
        if command != GET_DEST:
            raise Refused(errno.EOPNOTSUPP)
        try:
            service = self.services.get(self._key(given.get(SERVICE)))
        except Refused:
            service = None  # the kernel's dump swallows every error
        return [_dest_message(*item) for item in service.destinations.items()] if service else []

    def _set_timeouts(self, given: Attributes) -> None:
        wanted = {kind: given[kind].number(4) for kind in self.timeouts if kind in given}
        if any(seconds > _INT_MAX // _HZ for seconds in wanted.values()):
            raise Refused(errno.EINVAL)
        self.timeouts.update({kind: seconds for kind, seconds in wanted.items() if seconds})

    def _write(self, command: int, given: Attributes) -> None:
        key = self._key(given.get(SERVICE))
        service = self.services.get(key)
        full = command in (NEW_SERVICE, SET_SERVICE)
        wanted = self._parsed(given[SERVICE], service) if full else None
        if service is None:
            if command != NEW_SERVICE or wanted is None:
                raise Refused(errno.ESRCH)
            self._check(wanted, given[SERVICE])
            wanted.flags |= HASHED
            self.services[key] = wanted
            return
        match command:
            case _ if command == NEW_SERVICE:
                raise Refused(errno.EEXIST)
            case _ if command == SET_SERVICE:
                assert wanted is not None
                self._check(wanted, given[SERVICE])
                wanted.flags |= HASHED
                wanted.destinations = service.destinations
                self.services[key] = wanted
            case _ if command == DEL_SERVICE:
                del self.services[key]
            case _:
                self._write_dest(command, key, service, given.get(DEST))

    def _key(self, attribute: Attribute | None) -> ServiceId | int:
        """Read what identifies a service."""
        if attribute is None:
            raise Refused(errno.EINVAL)
        given = Attributes(attribute.payload)
        if AF not in given or not (FWMARK in given or given.has(PORT, PROTOCOL, ADDR)):
            raise Refused(errno.EINVAL)
        family = given[AF].number(2)
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise Refused(errno.EAFNOSUPPORT)
        if FWMARK in given:
            mark = given[FWMARK].number(4)
            self.marks[mark] = family
            return mark
        number = given[PROTOCOL].number(2)
        address = _address(family, given[ADDR])
        port = given[PORT].network_number(2)
        return ServiceId(_PROTOCOLS.get(number, str(number)), address, port)

    def _parsed(self, attribute: Attribute, existing: Service | None) -> Service:
        given = Attributes(attribute.payload)
        if not given.has(SCHED, FLAGS, TIMEOUT, NETMASK):
            raise Refused(errno.EINVAL)
        if len(given[FLAGS].payload) > 8:
            raise Refused(errno.ERANGE)
        flags, mask = struct.unpack("=II", given[FLAGS].payload.ljust(8, b"\0"))
        before = existing.flags if existing else 0
        return Service(
            scheduler=given[SCHED].text(15),
            flags=(before & ~mask) | (flags & mask),
            timeout=given[TIMEOUT].number(4),
            netmask=given[NETMASK].number(4),
        )

    def _check(self, wanted: Service, attribute: Attribute) -> None:
        if wanted.scheduler not in self.schedulers | {"none"}:
            raise Refused(errno.ENOENT)
        family = Attributes(attribute.payload)[AF].number(2)
        if family == socket.AF_INET6 and not 1 <= wanted.netmask <= 128:
            raise Refused(errno.EINVAL)

    def _write_dest(
        self, command: int, key: ServiceId | int, service: Service, attribute: Attribute | None
    ) -> None:
        if attribute is None:
            raise Refused(errno.EINVAL)
        given = Attributes(attribute.payload)
        if not given.has(D_ADDR, D_PORT):
            raise Refused(errno.EINVAL)
        full = command != DEL_DEST
        if full and not given.has(D_METHOD, D_WEIGHT, D_UPPER, D_LOWER):
            raise Refused(errno.EINVAL)
        own = self.marks[key] if isinstance(key, int) else _family(key.address)
        family = given[D_AF].number(2) if D_AF in given else own
        if (family or own) != own and full:
            raise Refused(errno.EINVAL)
        place = (_address(family or own, given[D_ADDR]), given[D_PORT].network_number(2))
        if command == DEL_DEST:
            if service.destinations.pop(place, None) is None:
                raise Refused(errno.ENOENT)
            return
        weight = given[D_WEIGHT].number(4)
        if weight > _INT_MAX or given[D_LOWER].number(4) > given[D_UPPER].number(4):
            raise Refused(errno.ERANGE)
        method = given[D_METHOD].number(4) & _METHODS
        existing = service.destinations.get(place)
        if command == NEW_DEST:
            if existing is not None:
                raise Refused(errno.EEXIST)
            _check_unicast(place[0])
            service.destinations[place] = Destination(weight, method)
        elif existing is None:
            raise Refused(errno.ENOENT)
        else:
            existing.weight, existing.method = weight, method

    # --- answers ---

    def _service_message(self, key: ServiceId | int) -> bytes:
        service = self.services[key]
        if isinstance(key, int):
            who = [
                put(AF, struct.pack("=H", self.marks[key])),
                put(FWMARK, struct.pack("=I", key)),
            ]
        else:
            number = next((n for n, name in _PROTOCOLS.items() if name == key.protocol), None)
            who = [
                put(AF, struct.pack("=H", _family(key.address))),
                put(PROTOCOL, struct.pack("=H", int(key.protocol) if number is None else number)),
                put(ADDR, _packed(key.address)),
                put(PORT, struct.pack("!H", key.port)),
            ]
        return bytes((NEW_SERVICE, 1, 0, 0)) + put(
            SERVICE,
            b"".join(
                [
                    *who,
                    put(SCHED, service.scheduler.encode() + b"\0"),
                    put(FLAGS, struct.pack("=II", service.flags, 0xFFFFFFFF)),
                    put(TIMEOUT, struct.pack("=I", service.timeout)),
                    put(NETMASK, struct.pack("=I", service.netmask)),
                    put(STATS, b""),
                ]
            ),
        )

    # --- looks ---

    def listed(self) -> Iterator[str]:
        """The lines of ``ipvsadm -Ln`` below its three headings, services sorted."""
        for key, service in sorted(self.services.items(), key=lambda item: str(item[0])):
            name = f"FWM  {key}" if isinstance(key, int) else _row(key)
            flags = f" persistent {service.timeout}" if service.persistent else ""
            named = _sched_flags(service.scheduler)
            extra = ",".join(text for bit, text in named if service.flags & bit)
            yield f"{name} {service.scheduler}{f' ({extra})' if extra else ''}{flags}"
            for place, dest in sorted(service.destinations.items()):
                host = _joined(*place)
                method = {0: "Masq", 1: "Local", 2: "Tunnel", 3: "Route"}.get(dest.method, "?")
                counts = f"{dest.weight:<6} {dest.active:<10} {dest.inactive:<10}"
                yield f"  -> {host:<28} {method:<7} {counts}".rstrip()


def _row(key: ServiceId) -> str:
    return f"{key.protocol:<4} {_joined(key.address, key.port)}"


def _sched_flags(scheduler: str) -> list[tuple[int, str]]:
    named = scheduler in ("sh", "mh")
    names = (f"{scheduler}-fallback", f"{scheduler}-port") if named else ("flag-1", "flag-2")
    return [(0x8, names[0]), (0x10, names[1]), (0x20, "flag-3")]


def _dest_message(place: tuple[str, int], dest: Destination) -> bytes:
    address, port = place
    numbers = (
        (D_METHOD, dest.method),
        (D_WEIGHT, dest.weight),
        (D_UPPER, 0),
        (D_LOWER, 0),
        (D_ACTIVE, dest.active),
        (D_INACTIVE, dest.inactive),
        (D_PERSISTENT, 0),
    )
    return bytes((NEW_DEST, 1, 0, 0)) + put(
        DEST,
        put(D_ADDR, _packed(address))
        + put(D_PORT, struct.pack("!H", port))
        + b"".join(put(kind, struct.pack("=I", number)) for kind, number in numbers)
        + put(D_AF, struct.pack("=H", _family(address)))
        + put(D_STATS, b""),
    )


def _address(family: int, attribute: Attribute) -> str:
    size = 4 if family == socket.AF_INET else 16
    if len(attribute.payload) > 16:
        raise Refused(errno.ERANGE)
    return address_text(attribute.payload.ljust(16, b"\0")[:size])


def _packed(address: str) -> bytes:
    """As the kernel sends it: room for IPv6, whatever the family."""
    return ip_address(address).packed.ljust(16, b"\0")


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _check_unicast(address: str) -> None:
    parsed = ip_address(address)
    odd = parsed.is_multicast or parsed.is_unspecified or str(parsed) == "255.255.255.255"
    if odd or (isinstance(parsed, IPv6Address) and parsed.is_link_local):
        raise Refused(errno.EINVAL)


def _joined(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
