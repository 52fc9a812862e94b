"""Puts ipvs mode together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import structlog

from pykubeproxy.backend import Backend, Surroundings
from pykubeproxy.config import IpvsConfig
from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.host.addresses import AddressBook, DeviceNotice, node_addresses
from pykubeproxy.host.beside import Beside
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
from pykubeproxy.ipvs.node import IPVS, apply_timeouts, ensure_device, find_device, parameters
from pykubeproxy.ipvs.objects import servers_by_kind
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.ipvs.sources import give_back
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
    _set_up(config.ipvs)
    _take_back()
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
            *(tools.family, IpvsCompiler(settings), dataplane, around.clock),
            counts_services=True,
            counts_of=servers_by_kind,
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


def _set_up(config: IpvsConfig) -> None:
    """Set what is forgotten when the IPVS module goes. Raises HostError."""
    sysctls.ensure(parameters(config.strict_arp))
    apply_timeouts(
        config.tcp_timeout_seconds, config.tcp_fin_timeout_seconds, config.udp_timeout_seconds
    )


def _take_back() -> None:
    """Be what the node's own requests come from again, if another mode was about to change that."""
    try:
        give_back(Netlink)
    except OSError as error:
        # They are served all the same; addresses that go later may stay local.
        log.warning("routes of a change of mode not removed", reason=str(error))


def _dataplane(around: Surroundings, tools: Tools, parts: ExitStack) -> IpvsDataplane:
    family, config = tools.family, around.config.ipvs
    beside = Beside()
    try:
        channel = parts.enter_context(Netlink(GENERIC))
        reader = parts.enter_context(Netlink(GENERIC, SMALL_READ))
        sets = parts.enter_context(Netlink(NETFILTER))
        route = parts.enter_context(Netlink(ROUTE))
        generic, netfilter, own_route = (
            parts.enter_context(Netlink(protocol)) for protocol in (GENERIC, NETFILTER, ROUTE)
        )
        ipvs = _Ipvs(channel, partial(_set_up, config))
    except OSError as error:
        raise HostError(f"netlink: {error}; run as root (NET_ADMIN)") from error
    parts.callback(beside.close)
    servers = Servers(
        family,
        channel,
        reader,
        ipvs.family_id,
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
        beside.run,
        (generic, netfilter, own_route),
    )


class _Ipvs:
    """The number of the kernel's IPVS, a new one each time the module is loaded."""

    def __init__(self, channel: Netlink, set_up: Callable[[], None]) -> None:
        self._channel = channel
        self._set_up = set_up
        self._number = channel.family_id(IPVS)

    def family_id(self) -> int:
        """Ask for it, which loads the module where it is gone; a new one is set up first.

        Raises:
            OSError: there is none.
            HostError: it cannot be set up.
        """
        number = self._channel.family_id(IPVS)
        if number != self._number:
            log.warning("the kernel's IPVS was loaded anew")
            self._set_up()
            self._number = number
        return number


def _device(channel: Netlink) -> int:
    """The index of the device, which is made if it is not there."""
    for _ in range(2):
        try:
            found = find_device(channel)
        except OSError as error:
            raise HostError(f"looking for device {DEVICE}: {error}") from error
        if found is not None and found.is_dummy:
            return found.index
        ensure_device()  # raises for a link of another kind
    raise HostError(f"device {DEVICE} was made and is gone again; does somebody delete it?")


def _addresses(book: AddressBook, family: Family) -> tuple[str, ...]:
    return node_addresses(book.addresses(family))


def _noticed(dataplanes: Mapping[Family, IpvsDataplane], notices: Sequence[DeviceNotice]) -> None:
    for notice in notices:
        dataplane = dataplanes.get(notice.family)
        if dataplane is not None:
            dataplane.address_noticed(notice.address, notice.present)
