"""The IP addresses of this node, and a notice when they change."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock, Thread

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.host.netlink import ROUTE, Netlink, attributes
from pykubeproxy.model.addresses import canonical_ip, contains
from pykubeproxy.model.kinds import Family

__all__ = ["AddressBook", "DeviceNotice", "is_link_local", "is_loopback", "node_addresses"]

log = structlog.get_logger()

# linux/rtnetlink.h
_NEWLINK, _DELLINK, _NEWADDR, _DELADDR, _GETADDR = 16, 17, 20, 21, 22
_LINK_GROUP, _ADDRESS_GROUPS = 0x1, 0x10 | 0x100  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, …IPV6…
_IFA_ADDRESS, _IFA_LOCAL, _IFLA_IFNAME = 1, 2, 3
_HEADER = struct.Struct("=IH10x")  # length, type
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, interface, flags, change
_FAMILIES = {socket.AF_INET: Family.IPV4, socket.AF_INET6: Family.IPV6}
_AF = {family: af for af, family in _FAMILIES.items()}

# Every address that the proxy binds is a notice of about 1 KiB in the kernel's books, and 10,000
# of them come faster than they are read. Nothing is set aside before it is needed.
_NOTICE_BUFFER_BYTES = 1 << 24
_SO_RCVBUFFORCE = 33
_READ_BYTES = 1 << 16
_NOTICES_PER_ROUND = 4096
_LIST_ATTEMPTS = 5
RETRY_SECONDS = 1.0
GATHER_SECONDS = 0.02
"""How long to let notices gather: one wake-up for each of 10,000 costs six times as much."""


class DeviceNotice(Struct, frozen=True, gc=False):
    """An address came to the device (``present``) or went from it, whoever did that."""

    family: Family
    address: str
    present: bool


class AddressBook:
    """Which addresses this node has, without asking the kernel again: one list, then notices.

    Interfaces count whatever their state. The one called *device*, which may come later, go, or
    be made anew, is kept apart: it holds thousands of addresses that only its owner cares for.
    Every method may be called from any thread. 10,000 addresses are listed in 0.05 s.
    """

    def __init__(self, device: str = "") -> None:
        self._device = device
        self._ledger = _Ledger(device)
        self._lock = Lock()
        self._elsewhere: dict[Family, tuple[str, ...]] = dict.fromkeys(Family, ())
        self._thread: Thread | None = None
        self._stop_reader, self._stop_writer = socket.socketpair()

    def start(
        self,
        on_change: Callable[[], None],
        on_device: Callable[[Sequence[DeviceNotice]], None] = lambda notices: None,
    ) -> None:
        """Subscribe, list, and return: from here on no change is missed.

        *on_change* is called after addresses on other interfaces than the device came or went;
        a renewed lifetime or the same address on a second interface is no change. *on_device* is
        called with what came and went on the device, own changes included. Both on a thread of
        the book, which must not be kept waiting; several changes in a row may make one call.

        Raises:
            HostError: the kernel does not tell.
        """
        try:
            notices = _subscribe(_ADDRESS_GROUPS | (_LINK_GROUP if self._device else 0))
            try:
                self._relist()
            except OSError:
                notices.close()
                raise
        except OSError as error:
            raise HostError(f"following the addresses of this node: {error}") from error
        notices.setblocking(False)
        self._elsewhere = self._ledger.elsewhere()
        self._ledger.settle()
        self._thread = Thread(
            target=self._follow,
            args=(notices, on_change, on_device),
            name="address-book",
            daemon=True,
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; a running callback is finished first."""
        self._stop_writer.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stop_reader.close()

    def addresses(self, family: Family) -> tuple[str, ...]:
        """All addresses of all interfaces but the device, loopback included.

        Canonical, sorted as text, each once.
        """
        return self._elsewhere[family]

    def device_addresses(self, family: Family) -> frozenset[str]:
        """The addresses on the device; 10,000 of them cost about 10 ms."""
        with self._lock:
            held = [own for own in self._ledger.on_device() if len(own) == _BYTES[family]]
        return frozenset(text for own in held if (text := _text(own)) is not None)

    @property
    def device_index(self) -> int | None:
        """The interface index of the device, ``None`` while there is none."""
        return self._ledger.device_index

    # --- on the thread of the book ---

    def _follow(
        self,
        notices: socket.socket,
        on_change: Callable[[], None],
        on_device: Callable[[Sequence[DeviceNotice]], None],
    ) -> None:
        lost = False
        with notices:
            while True:
                # A listing that failed is tried again, notice or not.
                timeout = RETRY_SECONDS if lost else None
                ready, _, _ = select.select([notices, self._stop_reader], [], [], timeout)
                if not ready or notices in ready:
                    ready, _, _ = select.select([self._stop_reader], [], [], GATHER_SECONDS)
                if self._stop_reader in ready:
                    return
                with self._lock:
                    lost = not self._read(notices) or lost
                if lost:
                    lost = not self._list_again()
                self._publish(on_change, on_device)

    def _read(self, notices: socket.socket) -> bool:
        """Take in what is there; return whether nothing was lost.

        After a loss all of it: the kernel drops further notices, and says so only once, until
        nothing is left to be read. So what is listed before that would be out of date.
        """
        whole = True
        count = 0
        while not whole or count < _NOTICES_PER_ROUND:
            count += 1
            try:
                data = notices.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                whole = False
                continue
            for kind, start, end in _messages(data):
                self._ledger.fold(data, kind, start, end)
        return whole

    def _list_again(self) -> bool:
        log.info("address notices were lost, listing all")
        try:
            self._relist()
        except OSError as error:
            log.warning("addresses of this node not listed, will be", reason=str(error))
            return False
        return True

    def _relist(self) -> None:
        index = None
        if self._device:
            with suppress(OSError):  # there is none yet
                index = socket.if_nametoindex(self._device)
        with Netlink(ROUTE) as netlink:
            listed = _list(netlink, self._device)
        listed.follow_device(index)
        with self._lock:
            listed.take_over(self._ledger)
            self._ledger = listed

    def _publish(
        self,
        on_change: Callable[[], None],
        on_device: Callable[[Sequence[DeviceNotice]], None],
    ) -> None:
        with self._lock:
            elsewhere = self._ledger.elsewhere() if self._ledger.moved else self._elsewhere
            notices = self._ledger.settle()
        changed = elsewhere != self._elsewhere
        self._elsewhere = elsewhere
        if notices:
            on_device(notices)
        if changed:
            on_change()


class _Ledger:
    """What is known of addresses; pure. One may be on an interface several times, by prefixes."""

    def __init__(self, device: str) -> None:
        self._name = device.encode()
        self._interfaces: dict[int, dict[bytes, tuple[bytes, ...]]] = {}
        self._before: dict[bytes, bool] = {}  # of the device, what the owner was last told
        self.device_index: int | None = None
        self.moved = False
        """Addresses off the device may have changed since `settle`."""

    def fold(self, data: bytes, kind: int, start: int, end: int) -> None:
        """Take in the message whose body (behind the netlink header) is ``data[start:end]``."""
        if kind in (_NEWADDR, _DELADDR):
            self._fold_address(data, kind, start, end)
        elif kind in (_NEWLINK, _DELLINK):
            self._fold_link(data, kind, start, end)

    def follow_device(self, index: int | None) -> None:
        """Say which interface is the device now."""
        if index == self.device_index:
            return
        for own in (*self.on_device(), *self._interfaces.get(index or 0, ())):
            self._before.setdefault(own, own in self.on_device())
        self.device_index = index
        self.moved = True

    def on_device(self) -> Mapping[bytes, object]:
        return self._interfaces.get(self.device_index or 0, {})

    def elsewhere(self) -> dict[Family, tuple[str, ...]]:
        found: dict[Family, set[str]] = {family: set() for family in Family}
        for index, held in self._interfaces.items():
            if index != self.device_index:
                for own in held:
                    text = _text(own)
                    if text is not None:
                        found[_family(own)].add(text)
        return {family: tuple(sorted(texts)) for family, texts in found.items()}

    def settle(self) -> list[DeviceNotice]:
        """Return what changed on the device since the last call, ends only, in order."""
        held = self.on_device()
        notices = [
            DeviceNotice(_family(own), text, own in held)
            for own, before in self._before.items()
            if before != (own in held) and (text := _text(own)) is not None
        ]
        self._before.clear()
        self.moved = False
        return notices

    def take_over(self, old: _Ledger) -> None:
        """Remember what the owner was told by *old*, in whose place this one comes."""
        told = dict.fromkeys(old.on_device(), True) | old._before
        self._before = {own: told.get(own, False) for own in (*told, *self.on_device())}
        self.moved = True

    def _fold_address(self, data: bytes, kind: int, start: int, end: int) -> None:
        af, prefix, _, _, index = _IFADDRMSG.unpack_from(data, start)
        if af not in _FAMILIES:
            return
        local = peer = b""
        for attribute, first, last in attributes(data, start + _IFADDRMSG.size, end):
            if attribute == _IFA_ADDRESS:
                peer = data[first:last]
            elif attribute == _IFA_LOCAL:
                local = data[first:last]
        # Without IFA_LOCAL (IPv6, no peer) IFA_ADDRESS is ours; with it, the peer's.
        own = local or peer
        form = peer + bytes((prefix,))
        held = self._interfaces.setdefault(index, {})
        forms = held.get(own, ())
        if (form in forms) == (kind == _NEWADDR):
            return  # a renewed lifetime, or a notice from before the list
        forms = (*forms, form) if kind == _NEWADDR else tuple(f for f in forms if f != form)
        if bool(forms) != (own in held):
            if index == self.device_index:
                self._before.setdefault(own, own in held)
            else:
                self.moved = True
        if forms:
            held[own] = forms
        else:
            del held[own]

    def _fold_link(self, data: bytes, kind: int, start: int, end: int) -> None:
        af, _, index, _, _ = _IFINFOMSG.unpack_from(data, start)
        if af != socket.AF_UNSPEC:
            return  # AF_BRIDGE says "deleted" of an interface that only left its bridge
        gone = kind == _DELLINK
        name = b""
        for attribute, first, last in attributes(data, start + _IFINFOMSG.size, end):
            if attribute == _IFLA_IFNAME:
                name = data[first:last].rstrip(b"\0")
                break
        if name == self._name and not gone:
            self.follow_device(index)
        elif index == self.device_index:
            self.follow_device(None)
        if gone and self._interfaces.pop(index, {}):
            self.moved = True


def is_loopback(address: str) -> bool:
    """Tell whether a canonical address is of 127.0.0.0/8, or ``::1``."""
    return address.startswith("127.") or address == "::1"


def is_link_local(address: str) -> bool:
    """Tell whether a canonical address is a link-local one of IPv6; IPv4 has none that matter."""
    return address.startswith("fe") and contains("fe80::/10", address)


def node_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return those *addresses* at which others reach this node, in the same order."""
    return tuple(a for a in addresses if not is_loopback(a) and not is_link_local(a))


# --- the kernel ---


def _subscribe(groups: int) -> socket.socket:
    notices = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        notices.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NOTICE_BUFFER_BYTES)
        with suppress(PermissionError):  # then it is as large as the system allows
            notices.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _NOTICE_BUFFER_BYTES)
        notices.bind((0, groups))
    except OSError:
        notices.close()
        raise
    return notices


def _list(netlink: Netlink, device: str = "") -> _Ledger:
    """Read all addresses by a `ROUTE` socket; which index the device has is yet to be said.

    Raises:
        OSError: the kernel refuses, or the addresses never keep still.
    """
    for _ in range(_LIST_ATTEMPTS):
        ledger = _Ledger(device)
        dump = netlink.dump(_GETADDR, _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
        for data, start, end in dump:
            ledger.fold(data, _NEWADDR, start + 16, end)
        if not dump.interrupted:
            return ledger
    raise OSError(errno.EINTR, "the addresses change faster than they can be listed")


def _messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the body of each message in one read."""
    position = 0
    while position + _HEADER.size <= len(data):
        length, kind = _HEADER.unpack_from(data, position)
        if length < _HEADER.size:
            return
        yield kind, position + _HEADER.size, min(position + length, len(data))
        position += (length + 3) & ~3


_BYTES = {Family.IPV4: 4, Family.IPV6: 16}


def _family(own: bytes) -> Family:
    return Family.IPV4 if len(own) == 4 else Family.IPV6


def _text(own: bytes) -> str | None:
    """The canonical text; ``None`` for an IPv4-mapped IPv6 address, which is of neither use."""
    family = _family(own)
    parsed = canonical_ip(socket.inet_ntop(_AF[family], own))
    return parsed[1] if parsed is not None and parsed[0] is family else None
