"""Takes out what ipvs mode made: all of it on request, gently after a change of mode.

The iptables rules of ipvs mode are for `pykubeproxy.iptables.node`, and have to go first: the
kernel keeps a set as long as a rule asks it.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.host.conntrack import remove_stale
from pykubeproxy.host.netlink import EXCL, GENERIC, NETFILTER, ROUTE, Netlink, why
from pykubeproxy.host.sockets import talking_from
from pykubeproxy.ipvs.messages import (
    decode_address,
    decode_dest,
    decode_listing,
    del_service,
    destroy_set,
    get_addresses,
    get_dests,
    list_set,
    set_error,
)
from pykubeproxy.ipvs.names import (
    CLUSTER_IP,
    DEVICE,
    EXTERNAL_IP,
    EXTERNAL_IP_LOCAL,
    LOAD_BALANCER,
    NODE_PORT_SCTP,
    NODE_PORT_TCP,
    NODE_PORT_UDP,
    SETS,
    set_name,
)
from pykubeproxy.ipvs.node import (
    IPVS,
    Channel,
    Connect,
    delete_device,
    find_device,
    must_be_dummy,
    services,
)
from pykubeproxy.ipvs.objects import Virtual
from pykubeproxy.ipvs.sources import remove_routes, steer_away, steered
from pykubeproxy.model.addresses import contains, family_of
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.sync.flows import FlowTable, Scope

__all__ = ["Removal", "clean_up", "plan_removal", "remove_leftovers"]

log = structlog.get_logger(__name__)

IP_VS = Path("/proc/net/ip_vs")
IP_SET = Path("/sys/module/ip_set")
"""Both exist while the kernel has what they are named after; to ask it would load modules."""

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 1.0

_DESTINATIONS = (CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL, LOAD_BALANCER, NODE_PORT_SCTP)
"""Sets that name virtual servers in full, those on addresses of other interfaces included."""
_NODE_PORTS = {NODE_PORT_TCP: Protocol.TCP, NODE_PORT_UDP: Protocol.UDP}

Forget = Callable[[Family, FlowTable, Scope], object]
_FORGET: Forget = partial(remove_stale, untranslated=True)
Talking = Callable[[Collection[str]], int]
"""How many sockets of this node have one of these addresses at their own end, and a peer."""


class Removal(Struct):
    """What was removed, by what it is, and a sentence for each thing that was not."""

    removed: dict[str, int]
    problems: list[str]

    def count(self, what: str, number: int) -> None:
        if number:
            self.removed[what] = self.removed.get(what, 0) + number


def clean_up(exclude_cidrs: Sequence[str] = (), connect: Connect = Netlink) -> Removal:
    """Remove virtual servers, the device and the sets, at once; connections are cut.

    Virtual servers in *exclude_cidrs* (canonical) and those chosen by firewall marks stay. What
    the kernel has no module for is not there, and none is loaded to find out.
    """
    removal = Removal({}, [])
    try:
        with _Ipvs.opened(connect) as ipvs:
            ipvs.delete(_servers(ipvs, exclude_cidrs), removal)
    except OSError as error:
        removal.problems.append(f"virtual servers: {why(error)}; run as root (NET_ADMIN)")
    _remove_device_and_sets(connect, removal)
    return removal


def plan_removal(
    exclude_cidrs: Sequence[str] = (), connect: Connect = Netlink
) -> tuple[list[str], list[str]]:
    """Return a line on each thing that `clean_up` would remove, and what could not be looked at.

    Changes nothing.
    """
    found: list[str] = []
    problems = []
    for what, look in (
        ("virtual servers", partial(_see_servers, exclude_cidrs)),
        (f"device {DEVICE}", _see_device),
        (f"routes to addresses of {DEVICE}", _see_routes),
        ("ipsets", _see_sets),
    ):
        try:
            found += look(connect)
        except OSError as error:
            problems.append(f"{what}: {why(error)}; it takes root with capability NET_ADMIN")
        except HostError as error:
            problems.append(str(error))
    return found, problems


def _servers(ipvs: _Ipvs, exclude_cidrs: Sequence[str]) -> list[Virtual]:
    return [virtual for virtual in ipvs.listed() if not _excluded(virtual, exclude_cidrs)]


def _see_servers(exclude_cidrs: Sequence[str], connect: Connect) -> list[str]:
    with _Ipvs.opened(connect) as ipvs:
        return [f"virtual server {virtual}" for virtual in _servers(ipvs, exclude_cidrs)]


def _see_device(connect: Connect) -> list[str]:
    with connect(ROUTE) as channel:
        device = find_device(channel)
        if device is None:
            return []
        must_be_dummy(device)
        dumped = (decode_address(*message) for message in channel.dump(*get_addresses()))
        bound = [a.address for a in dumped if a is not None and a.index == device.index]
    return [*(f"address {one} on device {DEVICE}" for one in bound), f"device {DEVICE}"]


def _see_routes(connect: Connect) -> list[str]:
    return [f"route to {address} by another source" for address in steered(connect)]


def _see_sets(connect: Connect) -> list[str]:
    if not IP_SET.exists():
        return []
    with connect(NETFILTER) as channel:
        names = [set_name(name, family) for family in Family for name in SETS]
        held = [(name, _entries(channel, name)) for name in names]
    return [
        f"ipset {name} with {len(entries)} entr{'y' if len(entries) == 1 else 'ies'}"
        for name, entries in held
        if entries is not None
    ]


def remove_leftovers(
    exclude_cidrs: Sequence[str],
    wait: Callable[[float], bool],
    clock: Callable[[], float],
    connect: Connect = Netlink,
    forget: Forget = _FORGET,
    talking: Talking = talking_from,
) -> Removal:
    """Remove what ipvs mode, ours or kube-proxy's, left, once the rules of another mode serve.

    New connections no longer reach the virtual servers then, and those of the node itself no
    longer come from addresses that are about to go (`ipvs.sources`). Established ones of either
    sort get `PATIENCE_SECONDS` to end. *wait* sleeps for some seconds and returns whether to give
    up: what is left then is found again at the next start.

    Of the virtual servers only those go that ipvs mode made as far as its device and sets tell;
    others of this host, and those in *exclude_cidrs* (canonical), stay. Without device and sets
    nothing was left, and finding that out costs next to nothing.
    """
    removal = Removal({}, [])
    try:
        traces = _traces(connect)
        if traces is None:
            return removal
        with _Ipvs.opened(connect) as ipvs:
            ours = [
                virtual
                for virtual in ipvs.listed()
                if traces.cover(virtual) and not _excluded(virtual, exclude_cidrs)
            ]
            if traces.device is not None and traces.bound:
                steer_away(traces.device, traces.bound, connect)
            if not _let_end(ipvs, ours, partial(talking, traces.bound), removal, wait, clock):
                return removal
    except OSError as error:
        removal.problems.append(f"leftovers of ipvs mode: {why(error)}")
        return removal
    _forget_flows(ours, forget)
    _remove_device_and_sets(connect, removal)
    return removal


class _Ipvs:
    """The virtual servers of this host; none where the kernel has no such module."""

    def __init__(self, channel: Channel | None) -> None:
        self._channel = channel
        self._family_id = 0 if channel is None else channel.family_id(IPVS)

    @staticmethod
    @contextmanager
    def opened(connect: Connect) -> Iterator[_Ipvs]:
        if not IP_VS.exists():
            yield _Ipvs(None)
            return
        with connect(GENERIC) as channel:
            yield _Ipvs(channel)

    def listed(self) -> list[Virtual]:
        if self._channel is None:
            return []
        return [virtual for virtual, _ in services(self._channel, self._family_id)]

    def delete(self, virtuals: Sequence[Virtual], removal: Removal) -> None:
        if self._channel is None or not virtuals:
            return
        errors = self._channel.batch([del_service(self._family_id, v) for v in virtuals])
        removal.count("virtual servers", errors.count(0))
        for virtual, error in zip(virtuals, errors, strict=True):
            if error not in (0, errno.ESRCH):
                removal.problems.append(f"virtual server {virtual}: {os.strerror(error)}")

    def delete_idle(self, virtuals: Sequence[Virtual], removal: Removal) -> dict[Virtual, int]:
        """Delete those of *virtuals* that nobody is connected to; return how many others have."""
        connections = {virtual: self._connections(virtual) for virtual in virtuals}
        self.delete([v for v, count in connections.items() if not count], removal)
        return {virtual: count for virtual, count in connections.items() if count}

    def _connections(self, virtual: Virtual) -> int:
        if self._channel is None:
            return 0
        dump = self._channel.dump(*get_dests(self._family_id, virtual))
        return sum(decode_dest(*message).active for message in dump)


def _let_end(
    ipvs: _Ipvs,
    virtuals: Sequence[Virtual],
    talking: Callable[[], int],
    removal: Removal,
    wait: Callable[[float], bool],
    clock: Callable[[], float],
) -> bool:
    """Delete each of *virtuals* when nobody is connected, and wait for *talking* sockets.

    Returns ``False`` when asked to give up.
    """
    deadline = clock() + PATIENCE_SECONDS
    waiting = virtuals
    # Nobody sees if a UDP socket without a peer expects an answer; give it time for one.
    first = True
    while True:
        connections = ipvs.delete_idle(waiting, removal)
        waiting = list(connections)
        sockets = talking()
        if not (first or waiting or sockets):
            return True
        first = False
        if clock() >= deadline:
            log.warning(
                "connections of ipvs mode are cut",
                virtual_servers=len(waiting),
                connections=sum(connections.values()),
                own_sockets=sockets,
                waited_seconds=PATIENCE_SECONDS,
            )
            ipvs.delete(waiting, removal)
            return True
        if wait(POLL_SECONDS):
            return False


class _Traces(Struct):
    """What tells virtual servers of ipvs mode from those of others."""

    device: int | None  # interface index, unless it is somebody else's
    bound: set[str]
    elsewhere: set[str]
    destinations: set[Virtual]
    node_ports: set[tuple[Family, Protocol, int]]

    def cover(self, virtual: Virtual) -> bool:
        return (
            virtual.address in self.bound
            or virtual in self.destinations
            or (
                virtual.address in self.elsewhere
                and (family_of(virtual.address), virtual.protocol, virtual.port) in self.node_ports
            )
        )


def _traces(connect: Connect) -> _Traces | None:
    """Look for the device and the sets; ``None`` if there are none.

    Raises:
        OSError: the kernel refuses.
    """
    found = _Traces(None, set(), set(), set(), set())
    with connect(ROUTE) as channel:
        device = find_device(channel)
    if device is not None and device.is_dummy:
        found.device = device.index
    any_set = _read_sets(connect, found)
    if device is None and not any_set:
        return None
    index = None if device is None else device.index
    with connect(ROUTE) as channel:
        for message in channel.dump(*get_addresses()):
            address = decode_address(*message)
            if address is not None:
                (found.bound if address.index == index else found.elsewhere).add(address.address)
    return found


def _read_sets(connect: Connect, found: _Traces) -> bool:
    """Read the sets that tell of virtual servers; return whether there is any of all."""
    if not IP_SET.exists():
        return False
    any_set = False
    with connect(NETFILTER) as channel:
        for family in Family:
            for name in SETS:
                entries = _entries(channel, set_name(name, family))
                any_set = any_set or entries is not None
                for entry in entries or ():
                    if name in _DESTINATIONS:
                        found.destinations |= _virtual(entry)
                    elif name in _NODE_PORTS:
                        found.node_ports.add((family, _NODE_PORTS[name], int(entry)))
    return any_set


def _entries(channel: Channel, name: str) -> list[str] | None:
    try:
        return [e for m in channel.dump(*list_set(name)) for e in decode_listing(*m).entries]
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


def _virtual(entry: str) -> set[Virtual]:
    """Read ``10.96.0.1,tcp:80``; nothing for a protocol that no virtual server has."""
    address, _, service = entry.partition(",")
    name, _, port = service.partition(":")
    return {Virtual(p, address, int(port)) for p in Protocol if p.lower() == name}


def _forget_flows(virtuals: Iterable[Virtual], forget: Forget) -> None:
    """Make UDP flows that went through *virtuals* look for a way anew.

    The kernel knows them as established, so the rules that replace the virtual servers would not
    see them, and to an address that nobody has they go nowhere until they are idle for minutes.
    Flows that the rules serve already are let alone.
    """
    flows: dict[Family, set[tuple[str, int]]] = defaultdict(set)
    for virtual in virtuals:
        if virtual.protocol is Protocol.UDP:
            flows[family_of(virtual.address)].add((virtual.address, virtual.port))
    for family, destinations in flows.items():
        table = FlowTable(dict.fromkeys(destinations, frozenset()), {})
        forget(family, table, Scope(addresses=frozenset(destinations)))


def _remove_device_and_sets(connect: Connect, removal: Removal) -> None:
    try:
        removal.count(f"device {DEVICE}", int(delete_device(connect)))
    except HostError as error:
        removal.problems.append(str(error))
    try:
        # Only now: with an address and no route the node would choose it, and get no answers.
        remove_routes(connect)
    except OSError as error:
        removal.problems.append(f"routes to addresses of {DEVICE}: {why(error)}")
    if not IP_SET.exists():
        return
    names = [set_name(name, family) for family in Family for name in SETS]
    try:
        with connect(NETFILTER) as channel:
            # EXCL makes an absent set a refusal, to tell it from one that was there.
            requests = [destroy_set(name) for name in names]
            errors = channel.batch([(kind, EXCL, body) for kind, _, body in requests])
    except OSError as error:
        removal.problems.append(f"ipsets: {why(error)}; run as root (NET_ADMIN)")
        return
    removal.count("ipsets", errors.count(0))
    for name, refused in zip(names, errors, strict=True):
        if refused not in (0, errno.ENOENT):
            removal.problems.append(f"ipset {name}: {set_error(refused)}")


def _excluded(virtual: Virtual, cidrs: Iterable[str]) -> bool:
    return any(contains(cidr, virtual.address) for cidr in cidrs)
