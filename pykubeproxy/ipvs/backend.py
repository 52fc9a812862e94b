"""Puts ipvs mode together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Lock, Thread

import structlog

from pykubeproxy.backend import Backend, Surroundings
from pykubeproxy.errors import HostError
from pykubeproxy.host.addresses import AddressBook, DeviceNotice, node_addresses
from pykubeproxy.host.netlink import GENERIC, NETFILTER, ROUTE, SMALL_READ, Netlink
from pykubeproxy.iptables.backend import rules_dataplane
from pykubeproxy.iptables.node import random_fully
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.ipvs.compile import IpvsCompiler
from pykubeproxy.ipvs.drain import Drain
from pykubeproxy.ipvs.kernel import IpvsDataplane
from pykubeproxy.ipvs.names import DEVICE
from pykubeproxy.ipvs.netfilter import IpvsSettings
from pykubeproxy.ipvs.node import IPVS, apply_sysctls, apply_timeouts, ensure_device, find_device
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.loop import FamilyProxy
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.reconciler import Reconciler

__all__ = ["build"]

log = structlog.get_logger(__name__)


def build(around: Surroundings) -> Backend:
    """Set the kernel up for ipvs mode, once it is known to be able to (`ipvs.node`).

    Raises:
        HostError: a kernel parameter or a socket is refused.
    """
    config = around.config
    problems = apply_sysctls(config.ipvs.strict_arp)
    if problems:
        raise HostError("; ".join(problems))
    apply_timeouts(
        config.ipvs.tcp_timeout_seconds,
        config.ipvs.tcp_fin_timeout_seconds,
        config.ipvs.udp_timeout_seconds,
    )
    parts = ExitStack()
    book = AddressBook(DEVICE)
    dataplanes: dict[Family, IpvsDataplane] = {}
    families = []
    for tools in around.tools.values():
        dataplanes[tools.family] = dataplane = _dataplane(around, tools, parts)
        settings = IpvsSettings(
            masquerade_mark=1 << config.masquerade_bit,
            random_fully=random_fully(tools, around.ask),
            scheduler=config.ipvs.scheduler,
        )
        reconciler = Reconciler(
            tools.family, IpvsCompiler(settings), dataplane, around.clock, counts_services=True
        )
        addresses = partial(_addresses, book, tools.family)
        families.append(
            FamilyProxy(tools.family, reconciler, dataplane, addresses, every_address=True)
        )

    def start(on_change: Callable[[], None]) -> None:
        book.start(on_change, partial(_noticed, dataplanes))

    def close() -> None:
        book.stop()
        parts.close()

    return Backend(families, start, close)


def _dataplane(around: Surroundings, tools: Tools, parts: ExitStack) -> IpvsDataplane:
    family, config = tools.family, around.config.ipvs
    try:
        channel = parts.enter_context(Netlink(GENERIC))
        reader = parts.enter_context(Netlink(GENERIC, SMALL_READ))
        sets = parts.enter_context(Netlink(NETFILTER))
        route = parts.enter_context(Netlink(ROUTE))
        lookers = parts.enter_context(Netlink(GENERIC)), parts.enter_context(Netlink(NETFILTER))
        family_id = channel.family_id(IPVS)
    except OSError as error:
        raise HostError(f"netlink: {error}; run as root (NET_ADMIN)") from error
    servers = Servers(
        family,
        channel,
        reader,
        family_id,
        config.scheduler,
        config.exclude_cidrs,
        Drain(config.drain_seconds),
        around.clock,
    )
    return IpvsDataplane(
        servers,
        Sets(family, sets),
        BoundAddresses(family, route, partial(_device, route)),
        rules_dataplane(around, tools),
        partial(around.suspicions.add, family),
        _Beside().run,
        lookers,
    )


class _Beside:
    """Runs jobs beside the sync thread, one at a time."""

    def __init__(self) -> None:
        self._lock = Lock()

    def run(self, job: Callable[[], None]) -> None:
        Thread(target=self._run, args=(job,), name="look", daemon=True).start()

    def _run(self, job: Callable[[], None]) -> None:
        with self._lock:
            job()


def _device(channel: Netlink) -> int:
    """The index of the device, which is made if it is not there."""
    for _ in range(2):
        try:
            found = find_device(channel)
        except OSError as error:
            raise HostError(f"looking for device {DEVICE}: {error}") from error
        if found is not None:
            return found.index
        ensure_device()
    raise HostError(f"device {DEVICE} was made and is gone again; does somebody delete it?")


def _addresses(book: AddressBook, family: Family) -> tuple[str, ...]:
    return node_addresses(book.addresses(family))


def _noticed(dataplanes: Mapping[Family, IpvsDataplane], notices: Sequence[DeviceNotice]) -> None:
    for notice in notices:
        dataplane = dataplanes.get(notice.family)
        if dataplane is not None:
            dataplane.address_noticed(notice.address, notice.present)
