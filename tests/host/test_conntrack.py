from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from pykubeproxy.host import conntrack
from pykubeproxy.host.conntrack import SMALL_SCOPE, Removed, decoder, remove_stale
from pykubeproxy.host.netlink import attribute, attributes, nested
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.flows import FlowTable, Scope

V4, V6 = Family.IPV4, Family.IPV6
AF = {V4: socket.AF_INET, V6: socket.AF_INET6}


def tuple_attribute(kind, family, proto, src, sport, dst, dport, zone=None):
    first = 1 if family is V4 else 3
    addresses = [socket.inet_pton(AF[family], ip) for ip in (src, dst)]
    ips = (attribute(first + n, ip) for n, ip in enumerate(addresses))
    ports = (attribute(2 + n, struct.pack(">H", port)) for n, port in enumerate((sport, dport)))
    inside = [nested(1, *ips), nested(2, attribute(1, bytes([proto])), *ports)]
    if zone is not None:
        inside.append(attribute(3, struct.pack(">H", zone)))
    return nested(kind, *inside)


def entry(dst, dport, reply, rport, family=V4, proto=17, sport=1000, zone=None, status=0):
    client = "10.9.9.9" if family is V4 else "fd09::9"
    body = bytes([AF[family], 0, 0, 0])
    body += tuple_attribute(1, family, proto, client, sport, dst, dport, zone)
    body += tuple_attribute(2, family, proto, reply, rport, client, sport)
    body += attribute(3, struct.pack(">I", status)) + attribute(12, struct.pack(">I", sport))
    return bytes(16) + body


def ping():
    return bytes(16) + bytes([2, 0, 0, 0]) + nested(1, nested(2, attribute(1, b"\x01"))) + bytes(0)


class Kernel:
    """Stands in for Netlink and the kernel's table behind it: filters, dumps and deletes."""

    def __init__(self, entries, filters=True, interrupted=0, refuse_filter=0, refuse=0, keep=0):
        self.entries = list(entries)
        self.dumps = 0
        self._filters = filters
        self._interrupted = interrupted
        self._refuse_filter = refuse_filter
        self._refuse = refuse
        self._keep = keep

    def __call__(self, _protocol):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def dump(self, _kind, body):
        self.dumps += 1
        dport = self._asked_port(body)
        if self._refuse or (self._refuse_filter and dport is not None):
            code = self._refuse or self._refuse_filter
            raise OSError(code, os.strerror(code))
        decode = decoder(V4 if body[0] == socket.AF_INET else V6)
        found = [
            data for data in self.entries
            if not self._filters or dport is None or decode(data, 0, len(data)).dport == dport
        ]  # fmt: skip
        self._interrupted -= 1
        return Dumped(found, self._interrupted >= 0)

    def request(self, _kind, _flags, body):
        if self._keep:
            raise OSError(self._keep, os.strerror(self._keep))
        (found,) = [data for data in self.entries if conntrack._handle(data, 0, len(data)) ==
                    body[4:]]  # fmt: skip
        self.entries.remove(found)
        return b""

    @staticmethod
    def _asked_port(body):
        for kind, start, end in attributes(body, 4, len(body)):
            if kind == 1:
                leaves = dict(conntrack._leaves(body, start, end))
                port = leaves.get((2, 3))
                return None if port is None else int.from_bytes(port, "big")
        return None


class Dumped:
    def __init__(self, entries, interrupted):
        self._entries = entries
        self.interrupted = interrupted

    def __iter__(self):
        return ((data, 0, len(data)) for data in self._entries)


@pytest.fixture
def install(monkeypatch):
    def install(*entries, **kwargs):
        kernel = Kernel(entries, **kwargs)
        monkeypatch.setattr(conntrack, "Netlink", kernel)
        return kernel

    return install


TABLE = FlowTable({("10.96.0.10", 53): frozenset({"10.1.0.1:53"})}, {})
SCOPE = Scope(addresses=frozenset({("10.96.0.10", 53)}))
ALL = Scope(everything=True)
STALE = entry("10.96.0.10", 53, "10.1.0.9", 53)
GOOD = entry("10.96.0.10", 53, "10.1.0.1", 53, sport=1001)
FOREIGN = entry("8.8.8.8", 99, "8.8.8.8", 99, sport=1002)


@pytest.mark.parametrize("scope", [SCOPE, ALL], ids=["filtered", "everything"])
def test_stale_entries_go_and_others_stay(install, scope):
    kernel = install(STALE, GOOD, FOREIGN)
    removed = remove_stale(V4, TABLE, scope)
    assert kernel.entries == [GOOD, FOREIGN]
    assert (removed.deleted, removed.complete) == (1, True)


@pytest.mark.parametrize(("untranslated", "spared"), [(False, []), (True, [1])])
def test_flows_that_netfilter_redirects_can_be_spared(install, untranslated, spared):
    """IPS_DST_NAT is bit 5; IPVS leaves it alone (seen on 6.1)."""
    by_ipvs, by_netfilter = (
        entry("10.96.0.10", 53, "10.1.0.9", 53, sport=2000 + number, status=status)
        for number, status in enumerate((0x18E, 0x1AE))
    )
    kernel = install(by_ipvs, by_netfilter)
    remove_stale(V4, TABLE, SCOPE, untranslated=untranslated)
    assert [[by_ipvs, by_netfilter][at] for at in spared] == kernel.entries


def test_ipv6(install):
    table = FlowTable({("fd96::a00:1", 53): frozenset({"[::a00:1]:53"})}, {})
    good = entry("fd96::a00:1", 53, "::a00:1", 53, family=V6)
    stale = entry("fd96::a00:1", 53, "::a00:2", 53, family=V6, sport=1001)
    kernel = install(good, stale)
    assert remove_stale(V6, table, ALL).deleted == 1
    assert kernel.entries == [good]


def test_without_a_scope_the_kernel_is_not_asked(monkeypatch):
    monkeypatch.delattr(conntrack, "Netlink")
    assert Removed(0, 0, complete=True) == remove_stale(V4, FlowTable({}, {}), Scope())


def test_node_ports_count_on_every_address(install):
    kernel = install(entry("192.0.2.1", 30053, "10.1.0.9", 53), GOOD)
    table = FlowTable({}, {30053: frozenset({"10.1.0.1:53"})})
    remove_stale(V4, table, Scope(node_ports=frozenset({30053})))
    assert kernel.entries == [GOOD]


def test_a_kernel_that_ignores_the_filter_is_noticed(install):
    kernel = install(FOREIGN, STALE, GOOD, filters=False)
    assert remove_stale(V4, TABLE, SCOPE).deleted == 1
    assert (kernel.dumps, kernel.entries) == (2, [FOREIGN, GOOD])


def test_a_kernel_that_refuses_the_filter_dumps_everything(install):
    kernel = install(FOREIGN, STALE, refuse_filter=errno.EOPNOTSUPP)
    assert remove_stale(V4, TABLE, SCOPE).deleted == 1
    assert kernel.dumps == 2


def test_many_destinations_are_one_dump(install):
    kernel = install(STALE)
    many = frozenset({("10.96.0.10", port) for port in range(SMALL_SCOPE + 1)})
    assert remove_stale(V4, TABLE, Scope(addresses=many)).deleted == 1
    assert kernel.dumps == 1


@pytest.mark.parametrize(("interrupted", "dumps"), [(2, 3), (99, 5)])
def test_an_interrupted_dump_is_repeated_up_to_five_times(install, interrupted, dumps):
    kernel = install(STALE, interrupted=interrupted)
    assert remove_stale(V4, TABLE, ALL).deleted == 1
    assert kernel.dumps == dumps


def test_a_table_that_cannot_be_read_is_only_logged(install):
    install(STALE, refuse=errno.EPERM)
    assert remove_stale(V4, TABLE, ALL) == Removed(0, 0, complete=False)


def test_an_entry_that_ended_by_itself_is_not_counted(install):
    install(STALE, keep=errno.ENOENT)
    assert remove_stale(V4, TABLE, ALL) == Removed(1, 0, complete=True)


def test_an_entry_that_cannot_be_deleted_leaves_the_run_incomplete(install):
    install(STALE, keep=errno.EPERM)
    assert remove_stale(V4, TABLE, ALL) == Removed(1, 0, complete=False)


@pytest.mark.parametrize("family", [V4, V6])
def test_the_fast_and_the_careful_decoder_agree(family):
    address = "10.0.0.1" if family is V4 else "fd00::1"
    plain = entry(address, 53, address, 54, family=family)
    zoned = entry(address, 53, address, 54, family=family, zone=7)
    flows = {decoder(family)(data, 0, len(data)) for data in (plain, zoned)}
    assert flows == {conntrack._walk(plain, 0, len(plain), family)}
    [flow] = flows
    assert (flow.proto, flow.dport, flow.reply_sport) == (17, 53, 54)


def test_an_entry_without_ports_is_skipped():
    assert decoder(V4)(ping(), 0, len(ping())) is None
