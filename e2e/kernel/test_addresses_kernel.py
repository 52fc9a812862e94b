"""Addresses and their notices in a real network namespace."""

from __future__ import annotations

import socket
import struct
from queue import Queue

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from pykubeproxy.host import addresses
from pykubeproxy.host.addresses import AddressBook, DeviceNotice
from pykubeproxy.model.kinds import Family

V4, V6 = Family.IPV4, Family.IPV6
OWN = "own0"


@pytest.fixture
def namespace():
    namespace = Namespace()
    try:
        namespace.run("ip", "link", "set", "lo", "up")
        # Both stay down, so IPv6 adds no link-local address of its own.
        namespace.run("ip", "link", "add", "d0", "type", "veth", "peer", "name", "d1")
        yield namespace
    finally:
        namespace.remove()


class Reader:
    """A book in a namespace, and what it called back."""

    def __init__(self, namespace):
        self.heard = Queue()
        self.book = AddressBook(OWN)
        namespace.call(self._start)

    def _start(self):
        self.book.start(lambda: self.heard.put("elsewhere"), self.heard.put)

    def next(self):
        return self.heard.get(timeout=60)


@pytest.fixture
def reader(namespace):
    """A book that was started before anything was added."""
    reader = Reader(namespace)
    yield reader
    reader.book.stop()


def add_own(namespace):
    namespace.run("ip", "link", "add", OWN, "type", "veth", "peer", "name", "own1")


@pytest.mark.parametrize(
    ("family", "added", "expected"),
    [
        (V4, ["10.2.0.1/24", "10.10.0.1/32"], ("10.10.0.1", "10.2.0.1", "127.0.0.1")),
        (V6, ["fd00::1/64", "fd00::2/64"], ("::1", "fd00::1", "fd00::2")),
        (V4, ["10.2.0.1 peer 10.2.0.2"], ("10.2.0.1", "127.0.0.1")),
        (V6, ["fd00::1 peer fd00::2"], ("::1", "fd00::1")),
        (V4, ["10.2.0.1/24", "10.2.0.1/16"], ("10.2.0.1", "127.0.0.1")),
    ],
    ids=["IPv4", "IPv6", "point to point", "point to point, IPv6", "two prefixes"],
)
def test_all_interfaces_count_even_those_that_are_down(namespace, family, added, expected):
    for address in added:
        namespace.run("ip", "address", "add", *address.split(), "dev", "d0")
    reader = Reader(namespace)
    assert expected == reader.book.addresses(family)
    for address in added:
        namespace.run("ip", "address", "del", *address.split(), "dev", "d0")
    while any(a.startswith(("10.", "fd")) for a in reader.book.addresses(family)):
        assert "elsewhere" == reader.next()
    reader.book.stop()


@pytest.mark.parametrize("address", ["10.2.0.1/24", "fd00::1/64"], ids=["IPv4", "IPv6"])
def test_a_change_is_noticed(namespace, reader, address):
    for verb in ("add", "del"):
        namespace.run("ip", "address", verb, address, "dev", "d0")
        assert "elsewhere" == reader.next()


def test_addresses_go_with_their_interface(namespace, reader):
    namespace.run("ip", "address", "add", "10.2.0.1/24", "dev", "d0")
    assert "elsewhere" == reader.next()
    namespace.run("ip", "link", "del", "d0")
    assert "elsewhere" == reader.next()
    assert ("127.0.0.1",) == reader.book.addresses(V4)


def test_leaving_a_bridge_takes_no_address_along(namespace, reader):
    namespace.run("ip", "link", "add", "br0", "type", "bridge")
    namespace.run("ip", "link", "set", "d0", "master", "br0")
    namespace.run("ip", "address", "add", "10.2.0.1/24", "dev", "d0")
    assert "elsewhere" == reader.next()
    namespace.run("ip", "link", "set", "d0", "nomaster")
    namespace.run("ip", "address", "add", "10.2.0.2/24", "dev", "d1")
    assert "elsewhere" == reader.next()
    assert ("10.2.0.1", "10.2.0.2", "127.0.0.1") == reader.book.addresses(V4)


def test_the_device_is_followed_wherever_it_goes(namespace, reader):
    for octet in (1, 2):  # the second has another index
        add_own(namespace)
        namespace.run("ip", "address", "add", f"10.96.0.{octet}/32", "dev", OWN)
        assert [DeviceNotice(V4, f"10.96.0.{octet}", present=True)] == reader.next()
        assert frozenset({f"10.96.0.{octet}"}) == reader.book.device_addresses(V4)
        namespace.run("ip", "link", "del", OWN)
        assert [DeviceNotice(V4, f"10.96.0.{octet}", present=False)] == reader.next()
    assert reader.heard.empty()
    assert ("127.0.0.1",) == reader.book.addresses(V4)


def test_many_addresses_on_the_device_come_in_few_calls(namespace, reader):
    add_own(namespace)
    many = 2000
    batch = [
        f"address add 10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}/32 dev {OWN}"
        for n in range(many)
    ]
    namespace.run("ip", "-batch", "-", stdin="\n".join(batch))
    count = 0
    while count < many:
        notices = reader.next()
        assert all(notice.present for notice in notices)
        count += len(notices)
    assert many == len(reader.book.device_addresses(V4))
    assert ("127.0.0.1",) == reader.book.addresses(V4)


def test_a_full_buffer_makes_a_new_list(namespace, monkeypatch):
    def small(groups):
        notices = subscribe(groups)
        notices.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return notices

    subscribe = addresses._subscribe
    monkeypatch.setattr(addresses, "_subscribe", small)
    add_own(namespace)
    many = 500
    with_peer = struct.Struct("!I")
    texts = [socket.inet_ntoa(with_peer.pack(0x0A600000 + n)) for n in range(many)]
    reader = Reader(namespace)
    namespace.run(
        "ip", "-batch", "-", stdin="\n".join(f"address add {t}/32 dev {OWN}" for t in texts)
    )
    seen = set()
    while len(seen) < many:
        seen |= {notice.address for notice in reader.next()}
    assert set(texts) == seen == reader.book.device_addresses(V4)
    reader.book.stop()
