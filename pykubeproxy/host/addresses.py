"""The IP addresses of this node, and a notice when they change."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from threading import Thread

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.model.addresses import canonical_ip
from pykubeproxy.model.kinds import Family

__all__ = ["AddressMonitor", "local_addresses"]

log = structlog.get_logger()

# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR and RTMGRP_IPV6_IFADDR
_ADDRESS_GROUPS = 0x10 | 0x100
_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def local_addresses(family: Family) -> tuple[str, ...]:
    """Return the addresses of all interfaces, whatever their state, loopback included.

    Canonical, sorted as text, each once.

    Raises:
        HostError: the kernel does not tell.
    """
    # Late: loading pyroute2 takes 0.2 s, which --help and --version need not pay.
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    found: set[str] = set()
    try:
        with IPRoute() as route:
            for message in route.get_addr(family=_AF[family]):
                # Without IFA_LOCAL (IPv6, no peer) IFA_ADDRESS is ours; with it, the peer's.
                text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                parsed = canonical_ip(text) if text else None
                if parsed is not None:
                    found.add(parsed[1])
    except (NetlinkError, OSError) as error:
        raise HostError(f"listing {family} addresses of this node: {error}") from error
    return tuple(sorted(found))


class AddressMonitor:
    """Calls *on_change* after addresses of either family came or went.

    From a thread of its own; several changes in a row may make one call. Router advertisements
    renew IPv6 lifetimes and are notices too, so compare before acting. Lost notices (a full
    buffer) make a call as well.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._thread: Thread | None = None
        self._stop_reader, self._stop_writer = socket.socketpair()

    def start(self) -> None:
        """Subscribe, then return: no change after this call is missed.

        Raises:
            HostError: the kernel gives no such notices.
        """
        try:
            notices = _subscribe()
        except OSError as error:
            raise HostError(f"following the addresses of this node: {error}") from error
        notices.setblocking(False)
        self._thread = Thread(
            target=self._follow, args=(notices,), name="address-monitor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it; a running callback is finished first."""
        self._stop_writer.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._stop_reader.close()

    def _follow(self, notices: socket.socket) -> None:
        with notices:
            while True:
                ready, _, _ = select.select([notices, self._stop_reader], [], [])
                if self._stop_reader in ready:
                    return
                _drain(notices)
                self._on_change()


def _subscribe() -> socket.socket:
    notices = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    try:
        notices.bind((0, _ADDRESS_GROUPS))
    except OSError:
        notices.close()
        raise
    return notices


def _drain(notices: socket.socket) -> None:
    """Read all that is there; what exactly changed does not matter."""
    while True:
        try:
            notices.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:  # ENOBUFS: notices were lost, the callback looks anyway
            log.info("address notices lost", reason=str(error))
            return
