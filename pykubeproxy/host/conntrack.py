"""Finds and deletes stale UDP entries of the kernel's connection tracking table.

What is stale is decided by `pykubeproxy.sync.flows`. Here is the cheapest way to look: for a few
destinations the kernel filters its own dump (CTA_FILTER, Linux 5.8); otherwise one dump of all
UDP entries is read with a decoder that knows the usual layout. Format: linux/netfilter/
nfnetlink_conntrack.h and net/netfilter/nf_conntrack_netlink.c.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator

import structlog
from msgspec import Struct

from pykubeproxy.host.netlink import (
    ACK,
    HEADER_BYTES,
    NETFILTER,
    Netlink,
    attribute,
    attributes,
    nested,
    why,
)
from pykubeproxy.model.addresses import canonical_ip
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.flows import UDP, FlowTable, Scope, is_stale

__all__ = ["Flow", "Removed", "remove_stale"]

log = structlog.get_logger()

# A filtered dump still walks the kernel's whole table (100 000 entries: 27 ms), while reading one
# dump of all of them costs 260 ms here (Linux 6.18). Beyond this many the one dump is cheaper.
SMALL_SCOPE = 8
_DUMP_ATTEMPTS = 5

_SUBSYSTEM = 1 << 8
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_ORIG, _REPLY, _STATUS, _ID, _ZONE, _FILTER = 1, 2, 3, 12, 18, 25
_DST_NAT = 1 << 5  # IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
_IP, _PROTO = 1, 2  # inside a tuple; also the numbers inside a filter: orig and reply flags
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_MATCH_DST, _MATCH_PROTO, _MATCH_DST_PORT = 1 << 1, 1 << 3, 1 << 5

_AF = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_IP_BYTES = {Family.IPV4: 4, Family.IPV6: 16}
_SRC_DST = {Family.IPV4: (1, 2), Family.IPV6: (3, 4)}
_BODY = HEADER_BYTES + 4  # and nfgenmsg


class Removed(Struct, frozen=True):
    """What a run did. ``complete`` is ``False`` when something failed and should be run again."""

    listed: int  # entries read
    deleted: int
    complete: bool


class Flow(Struct, frozen=True, gc=False):
    """What is needed to judge an entry; addresses as the kernel's bytes."""

    proto: int
    dst: bytes
    dport: int
    reply_src: bytes
    reply_sport: int


def remove_stale(
    family: Family, table: FlowTable, scope: Scope, *, untranslated: bool = False
) -> Removed:
    """Delete the entries of *family* that are stale by *table*, looking only where *scope* says.

    *untranslated*: spare those to which netfilter itself gave their destination; what went by IPVS
    does not have that mark. Opens its own sockets, so any thread may call it. Never raises for
    what the kernel does: a failure is logged, and `Removed.complete` is ``False``. Where *scope*
    is empty the kernel is not asked at all.
    """
    if scope == Scope():
        return Removed(0, 0, complete=True)
    try:
        with Netlink(NETFILTER) as netlink:
            return _Run(netlink, family, table, untranslated).remove(scope)
    except OSError as error:
        log.warning("stale UDP flows not looked for", family=family.value, reason=why(error))
        return Removed(0, 0, complete=False)


class _Run:
    def __init__(
        self, netlink: Netlink, family: Family, table: FlowTable, untranslated: bool
    ) -> None:
        self._netlink = netlink
        self._untranslated = untranslated
        self._family = family
        self._af = _AF[family]
        self._table = table
        self._decode = decoder(family)
        self._listed = 0
        self._complete = True
        self._keys = {(socket.inet_pton(self._af, ip), port) for ip, port in table.by_address}

    def remove(self, scope: Scope) -> Removed:
        stale: dict[bytes, Flow] = {}  # by handle
        destinations = self._destinations(scope)
        few = not scope.everything and len(destinations) <= SMALL_SCOPE
        if not few or not self._scan_each(destinations, stale):
            self._scan(_filter(self._family), stale)
        deleted = sum(self._delete(handle, flow) for handle, flow in stale.items())
        return Removed(self._listed, deleted, self._complete)

    def _destinations(self, scope: Scope) -> set[tuple[bytes | None, int]]:
        """Return what to filter by: address and port, or a port alone."""
        destinations: set[tuple[bytes | None, int]] = {(None, port) for port in scope.node_ports}
        for address, port in scope.addresses:
            # The kernel compares IPv6 addresses the wrong way round and hands over all entries
            # but those asked for (ctnetlink_filter_match_tuple, ipv6_addr_cmp without == 0; seen
            # on 6.18). So IPv6 is filtered by port only.
            by_address = self._family is Family.IPV4
            destinations.add((socket.inet_pton(self._af, address) if by_address else None, port))
        return destinations

    def _scan_each(
        self, destinations: set[tuple[bytes | None, int]], stale: dict[bytes, Flow]
    ) -> bool:
        """Scan destination by destination; ``False`` if the kernel turns out not to filter."""
        for dst, port in destinations:
            try:
                filtered = self._scan(_filter(self._family, dst, port), stale, (dst, port))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                filtered = False
            if not filtered:
                return False
        return True

    def _scan(
        self,
        body: bytes,
        stale: dict[bytes, Flow],
        only: tuple[bytes | None, int] | None = None,
    ) -> bool:
        """Add the stale entries of one dump; ``False`` as soon as one does not match *only*.

        A dump that the kernel had to interrupt may lack entries: it is repeated a few times, and
        what all attempts together showed is used.
        """
        for _ in range(_DUMP_ATTEMPTS):
            dump = self._netlink.dump(_GET, body)
            matches = True
            for data, start, end in dump:
                self._listed += 1
                flow = self._decode(data, start, end)
                if flow is None:
                    continue
                if only is not None and (
                    flow.proto != UDP
                    or flow.dport != only[1]
                    or (only[0] is not None and flow.dst != only[0])
                ):
                    matches = False  # read on: the socket must be empty for the next request
                elif self._is_stale(flow) and not (
                    self._untranslated and _is_translated(data, start, end)
                ):
                    stale[_handle(data, start, end)] = flow
            if not matches:
                return False
            if not dump.interrupted:
                return True
        log.info("conntrack table changed while it was listed", family=self._family.value)
        return True

    def _is_stale(self, flow: Flow) -> bool:
        if (flow.dst, flow.dport) not in self._keys and flow.dport not in self._table.by_node_port:
            return False
        dst, src = self._text(flow.dst), self._text(flow.reply_src)
        return is_stale(self._table, flow.proto, dst, flow.dport, src, flow.reply_sport)

    def _text(self, address: bytes) -> str:
        text = socket.inet_ntop(self._af, address)
        # inet_ntop writes ::10.0.0.1 where RFC 5952 and our tables have ::a00:1.
        parsed = canonical_ip(text) if self._family is Family.IPV6 else None
        return parsed[1] if parsed else text

    def _delete(self, handle: bytes, flow: Flow) -> bool:
        try:
            self._netlink.request(_DELETE, ACK, _generic_header(self._family) + handle)
        except OSError as error:
            if error.errno == errno.ENOENT:  # it ended by itself meanwhile
                return False
            self._complete = False
            log.warning(
                "stale UDP flow not deleted",
                destination=f"{self._text(flow.dst)} port {flow.dport}",
                reason=why(error),
            )
            return False
        return True


def _is_translated(data: bytes, start: int, end: int) -> bool:
    """Tell whether netfilter changes the destination (IPS_DST_NAT; IPVS does not say so)."""
    for kind, first, last in attributes(data, start + _BODY, end):
        if kind == _STATUS:
            return bool(int.from_bytes(data[first:last], "big") & _DST_NAT)
    return False


def decoder(family: Family) -> Callable[[bytes, int, int], Flow | None]:
    """Return a function that decodes the message in ``data[start:end]``; ``None``: no ports.

    The kernel writes both tuples first and, without a directional zone, of fixed size: one unpack
    and a comparison of the attribute headers settle that. Anything else is walked.
    """
    size = _IP_BYTES[family]
    ip_src, ip_dst = _SRC_DST[family]
    layout = struct.Struct(
        f">12s{size}x4s{size}s8sB3x4s4x4sH2x"  # original: destination address, protocol, port
        f"12s{size}s4s{size}x8sx3x4sH2x4s4x"  # reply: source address and port
    )

    def headers(kind: int) -> tuple[bytes, ...]:
        ip_length, proto_length = 4 + 2 * (4 + size), 4 + 3 * 8
        return (
            _header(kind, 4 + ip_length + proto_length, nest=True)
            + _header(_IP, ip_length, nest=True)
            + _header(ip_src, 4 + size),
            _header(ip_dst, 4 + size),
            _header(_PROTO, proto_length, nest=True) + _header(_PROTO_NUM, 5),
            _header(_SRC_PORT, 6),
            _header(_DST_PORT, 6),
        )

    usual = headers(_ORIG) + headers(_REPLY)
    fixed_size = _BODY + layout.size

    def decode(data: bytes, start: int, end: int) -> Flow | None:
        if end - start < fixed_size:
            return _walk(data, start, end, family)
        o1, o2, dst, o3, proto, o4, o5, dport, r1, src, r2, r3, r4, sport, r5 = layout.unpack_from(
            data, start + _BODY
        )
        if (o1, o2, o3, o4, o5, r1, r2, r3, r4, r5) != usual:
            return _walk(data, start, end, family)
        return Flow(proto, dst, dport, src, sport)

    return decode


def _header(kind: int, length: int, nest: bool = False) -> bytes:
    return struct.pack("=HH", length, kind | (0x8000 if nest else 0))


def _walk(data: bytes, start: int, end: int, family: Family) -> Flow | None:
    """Decode attribute by attribute, whatever their order."""
    tuples = {
        kind: dict(_leaves(data, first, last))
        for kind, first, last in attributes(data, start + _BODY, end)
        if kind in (_ORIG, _REPLY)
    }
    original, reply = tuples.get(_ORIG, {}), tuples.get(_REPLY, {})
    src, dst = _SRC_DST[family]
    try:
        return Flow(
            original[_PROTO, _PROTO_NUM][0],
            original[_IP, dst],
            int.from_bytes(original[_PROTO, _DST_PORT], "big"),
            reply[_IP, src],
            int.from_bytes(reply[_PROTO, _SRC_PORT], "big"),
        )
    except KeyError:  # a protocol without ports
        return None


def _leaves(data: bytes, start: int, end: int) -> Iterator[tuple[tuple[int, int], bytes]]:
    for section, first, last in attributes(data, start, end):
        if section in (_IP, _PROTO):
            for kind, begin, finish in attributes(data, first, last):
                yield (section, kind), data[begin:finish]


def _handle(data: bytes, start: int, end: int) -> bytes:
    """Return what names the entry in a delete request: its original tuple, zone and id.

    The id covers both tuples and the entry's place in memory, so an entry that took over the same
    addresses meanwhile survives (the kernel answers ENOENT).
    """
    return b"".join(
        attribute(kind | (0x8000 if kind == _ORIG else 0), data[first:last])
        for kind, first, last in attributes(data, start + _BODY, end)
        if kind in (_ORIG, _ZONE, _ID)
    )


def _filter(family: Family, dst: bytes | None = None, dport: int | None = None) -> bytes:
    """Return a dump request for UDP entries, towards *dst* and *dport* where given.

    Kernels before 5.8 do not know the filter and dump everything, which the caller notices.
    """
    flags = _MATCH_PROTO
    inner_ip, inner_proto = b"", attribute(_PROTO_NUM, bytes([UDP]))
    if dst is not None:
        flags |= _MATCH_DST
        inner_ip = nested(_IP, attribute(_SRC_DST[family][1], dst))
    if dport is not None:
        flags |= _MATCH_DST_PORT
        inner_proto += attribute(_DST_PORT, struct.pack(">H", dport))
    return (
        _generic_header(family)
        + nested(_ORIG, inner_ip, nested(_PROTO, inner_proto))
        + nested(
            _FILTER, attribute(1, struct.pack("=I", flags)), attribute(2, struct.pack("=I", 0))
        )
    )


def _generic_header(family: Family) -> bytes:
    return bytes([_AF[family], 0, 0, 0])
