"""Which source the node's own requests to Service addresses get, while ipvs mode is left.

An address on the device is also the source of what the node sends to it. Taken away, it makes
the node miss the answers to what is under way. So before it goes, a route to it is added beside
the kernel's own, in the table of local addresses, that names another source. The address stays
local: sockets that have it go on, and only new ones get the other.

IPv4 takes the newest of equal routes. In IPv6 the kernel's route to an address of its own ranks
before all that others may add, so it is deleted once ours is there; and ours goes by the loopback
device, since the one of the addresses is down, and has to be deleted by hand.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Collection, Sequence
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

import structlog
from msgspec import Struct

from pykubeproxy.host.netlink import (
    CREATE,
    EXCL,
    HEADER_BYTES,
    ROUTE,
    Netlink,
    Request,
    attribute,
    attributes,
)
from pykubeproxy.ipvs.messages import del_address, new_address
from pykubeproxy.ipvs.node import NOBODY, Channel, Connect, find_device
from pykubeproxy.model.addresses import family_of
from pykubeproxy.model.kinds import Family

__all__ = ["give_back", "remove_routes", "steer_away", "steered"]

log = structlog.get_logger(__name__)

# linux/rtnetlink.h
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
# family, lengths of destination and source, TOS, table, protocol, scope, type, flags
_RTMSG = struct.Struct("=BBBBBBBBI")
_DST, _OIF, _PRIORITY, _PREFSRC = 1, 4, 6, 7
_LOCAL_TABLE, _HOST_SCOPE, _LOCAL = 255, 254, 2
_AF = {Family.IPV4: AF_INET, Family.IPV6: AF_INET6}
_FAMILY: dict[int, Family] = {af: family for family, af in _AF.items()}
_BITS = {Family.IPV4: 32, Family.IPV6: 128}
_KERNEL = 2
_OURS = 110
"""Protocol number of our routes, by which they are found again; nobody is known to use it."""
_LOOPBACK = 1
"""Interface index of lo, the first of every network namespace."""
_NEXT_BEST = attribute(_PRIORITY, struct.pack("=I", 1))


class _Route(Struct, frozen=True):
    """A route of ours."""

    family: Family
    address: str


def steer_away(index: int, addresses: Collection[str], connect: Connect = Netlink) -> None:
    """Make new requests of the node to *addresses*, on device *index*, come from another source.

    From what it has toward the default route; in a family without one all stays as it is. To do
    it again changes nothing. 10,000 addresses of each family take a second.

    Raises:
        OSError: the socket fails.
    """
    with connect(ROUTE) as channel:
        for family in Family:
            ours = [one for one in addresses if family_of(one) is family]
            source = _usual_source(channel, family) if ours else None
            if source is not None and source not in addresses:
                _steer(channel, family, index, ours, source)


def remove_routes(connect: Connect = Netlink) -> None:
    """Delete the routes of `steer_away`: what it was done for is local no longer.

    Raises:
        OSError: the kernel refuses.
    """
    with connect(ROUTE) as channel:
        _check(channel.batch([_del_route(route) for route in _routes(channel)]))


def steered(connect: Connect = Netlink) -> list[str]:
    """Return the addresses that have a route of `steer_away`.

    Raises:
        OSError: the kernel refuses.
    """
    with connect(ROUTE) as channel:
        return [route.address for route in _routes(channel)]


def give_back(connect: Connect = Netlink) -> None:
    """Undo `steer_away`, for an ipvs mode that comes back before it was left for good.

    Nothing is cut: addresses of IPv6, which are made anew for their routes, stay local.

    Raises:
        OSError: the kernel refuses.
    """
    with connect(ROUTE) as channel:
        routes = _routes(channel)
        if not routes:
            return
        device = find_device(channel)
        if device is not None:
            addresses = [r.address for r in routes if r.family is Family.IPV6]
            again = (del_address, new_address)
            # One that was not there by now is a stray: the first pass takes it away.
            channel.batch([make(device.index, one) for one in addresses for make in again])
        _check(channel.batch([_del_route(route) for route in routes]))


def _usual_source(channel: Channel, family: Family) -> str | None:
    """The source toward the default route; ``None`` if there is none."""
    try:
        reply = channel.request(_GETROUTE, 0, _rtmsg(family, NOBODY[family], 0, 0))
    except OSError as error:
        log.info("no default route to take a source from", family=family, reason=str(error))
        return None
    for kind, start, end in attributes(reply, _RTMSG.size, len(reply)):
        if kind == _PREFSRC:
            return inet_ntop(_AF[family], reply[start:end])
    return None


def _steer(
    channel: Channel, family: Family, index: int, addresses: Sequence[str], source: str
) -> None:
    v6 = family is Family.IPV6
    prefer = attribute(_PREFSRC, inet_pton(_AF[family], source))
    extra = _via(_LOOPBACK) + _NEXT_BEST + prefer if v6 else _via(index) + prefer
    # Without EXCL an equal route goes before those that are there; IPv6 has no such order.
    flags = CREATE | EXCL if v6 else CREATE
    errors = channel.batch(
        [(_NEWROUTE, flags, _local(family, one, _OURS) + extra) for one in addresses]
    )
    refused = Counter(error for error in errors if error not in (0, errno.EEXIST))
    for error, count in refused.items():
        # Their requests under way are cut in the end, as if this had not been tried.
        reason = os.strerror(error)
        log.warning("source of own requests not changed", addresses=count, reason=reason)
    log.info("own requests to Service addresses have another source", family=family, source=source)
    if v6:
        # Not where ours is missing: the address would be nobody's.
        steered = [
            one for one, error in zip(addresses, errors, strict=True) if error in (0, errno.EEXIST)
        ]
        via = _via(index)
        channel.batch([(_DELROUTE, 0, _local(family, one, _KERNEL) + via) for one in steered])


def _routes(channel: Channel) -> list[_Route]:
    """All routes of ours; 10,000 cost 0.05 s."""
    found = []
    # All tables: to choose one takes a socket option that changes what other dumps mean.
    for data, start, end in channel.dump(_GETROUTE, bytes(_RTMSG.size)):
        start += HEADER_BYTES
        af, _, _, _, table, protocol, *_ = _RTMSG.unpack_from(data, start)
        if af in _FAMILY and (table, protocol) == (_LOCAL_TABLE, _OURS):
            for kind, first, last in attributes(data, start + _RTMSG.size, end):
                if kind == _DST:
                    found.append(_Route(_FAMILY[af], inet_ntop(af, data[first:last])))
    return found


def _check(errors: Sequence[int]) -> None:
    for error in errors:
        if error not in (0, errno.ESRCH):
            raise OSError(error, os.strerror(error))


def _del_route(route: _Route) -> Request:
    return _DELROUTE, 0, _local(route.family, route.address, _OURS)


def _local(family: Family, address: str, protocol: int) -> bytes:
    return _rtmsg(family, address, _LOCAL_TABLE, protocol, _HOST_SCOPE, _LOCAL)


def _rtmsg(
    family: Family, address: str, table: int, protocol: int, scope: int = 0, kind: int = 0
) -> bytes:
    header = _RTMSG.pack(_AF[family], _BITS[family], 0, 0, table, protocol, scope, kind, 0)
    return header + attribute(_DST, inet_pton(_AF[family], address))


def _via(index: int) -> bytes:
    return attribute(_OIF, struct.pack("=I", index))
