from __future__ import annotations

import errno
import socket
import struct
from threading import Event

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host import addresses
from pykubeproxy.host.addresses import (
    AddressBook,
    DeviceNotice,
    is_link_local,
    is_loopback,
    node_addresses,
)
from pykubeproxy.host.netlink import attribute
from pykubeproxy.model.kinds import Family

V4, V6 = Family.IPV4, Family.IPV6
NEWLINK, DELLINK, NEWADDR, DELADDR = 16, 17, 20, 21
LO, ETH0, ETH1, DEVICE = 1, 2, 3, 4
NAME = "kube-ipvs0"


def packed(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def message(kind, body):
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def address(kind, index, text, prefix=None, peer=None):
    """A notice as the kernel writes it: IPv6 has no IFA_LOCAL unless there is a peer."""
    af, host = (socket.AF_INET6, 128) if ":" in text else (socket.AF_INET, 32)
    body = struct.pack("=BBBBI", af, host if prefix is None else prefix, 0, 0, index)
    body += attribute(1, packed(peer or text))
    if peer or af == socket.AF_INET:
        body += attribute(2, packed(text))
    return message(kind, body + attribute(3, b"label\0"))


def link(kind, index, name, af=socket.AF_UNSPEC):
    return message(
        kind, struct.pack("=BxHiII", af, 1, index, 0, 0) + attribute(3, name.encode() + b"\0")
    )


def new(*args, **kwargs):
    return address(NEWADDR, *args, **kwargs)


def gone(*args, **kwargs):
    return address(DELADDR, *args, **kwargs)


class Kernel:
    """The other end of the notice socket, what a list would say, and who was called back."""

    def __init__(self, monkeypatch):
        self.end, self.notices = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listing = b""
        self.lists = 0
        self.refusals = []
        self.indexes = {}
        monkeypatch.setattr(addresses, "_subscribe", lambda groups: self.notices)
        monkeypatch.setattr(addresses, "_list", self._list)
        monkeypatch.setattr(socket, "if_nametoindex", self._index)
        self.changes = 0
        self.device = []
        self.heard = Event()

    def _list(self, netlink, device):
        self.lists += 1
        if self.refusals:
            raise self.refusals.pop()
        ledger = addresses._Ledger(device)
        for kind, start, end in addresses._messages(self.listing):
            ledger.fold(self.listing, kind, start, end)
        return ledger

    def _index(self, name):
        if name not in self.indexes:
            raise OSError(errno.ENODEV, "No such device")
        return self.indexes[name]

    def changed(self):
        self.changes += 1
        self.heard.set()

    def device_changed(self, notices):
        self.device += notices
        self.heard.set()

    def tell(self, *messages):
        """Send *messages* as one read, and wait until somebody was called back."""
        self.heard.clear()
        self.end.send(b"".join(messages))
        assert self.heard.wait(60)


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.end.close()
    kernel.notices.close()


@pytest.fixture
def book(kernel):
    """A book that was started with some addresses there; the device is interface 4."""
    kernel.listing = b"".join(
        [new(LO, "127.0.0.1", 8), new(ETH0, "192.0.2.7", 24), new(DEVICE, "10.96.0.1")]
    )
    kernel.indexes = {NAME: DEVICE}
    book = AddressBook(NAME)
    book.start(kernel.changed, kernel.device_changed)
    yield book
    book.stop()


def test_the_list_is_split_by_family_and_device(book, kernel):
    assert ("127.0.0.1", "192.0.2.7") == book.addresses(V4)
    assert () == book.addresses(V6)
    assert frozenset({"10.96.0.1"}) == book.device_addresses(V4)
    assert frozenset() == book.device_addresses(V6)
    assert DEVICE == book.device_index
    assert (0, []) == (kernel.changes, kernel.device)


def test_without_a_device_all_addresses_count(kernel):
    kernel.listing = new(ETH0, "192.0.2.7") + new(DEVICE, "10.96.0.1")
    book = AddressBook()
    book.start(kernel.changed)
    assert ("10.96.0.1", "192.0.2.7") == book.addresses(V4)
    assert book.device_index is None
    kernel.tell(gone(DEVICE, "10.96.0.1"))
    assert ("192.0.2.7",) == book.addresses(V4)
    book.stop()


@pytest.mark.parametrize(
    ("notice", "family", "expected"),
    [
        pytest.param(
            new(ETH1, "192.0.2.10"), V4, ("127.0.0.1", "192.0.2.10", "192.0.2.7"), id="sorted"
        ),
        pytest.param(new(ETH1, "FD00::0:1", 64), V6, ("fd00::1",), id="IPv6"),
        pytest.param(new(ETH1, "fd00::1", peer="fd00::2"), V6, ("fd00::1",), id="IPv6 with peer"),
        pytest.param(
            new(ETH1, "10.2.0.1", peer="10.2.0.2"),
            V4,
            ("10.2.0.1", "127.0.0.1", "192.0.2.7"),
            id="IPv4 with peer",
        ),
        pytest.param(gone(ETH0, "192.0.2.7", 24), V4, ("127.0.0.1",), id="gone"),
        pytest.param(link(DELLINK, ETH0, "eth0"), V4, ("127.0.0.1",), id="gone with its interface"),
    ],
)
def test_a_change_elsewhere_is_told(book, kernel, notice, family, expected):
    kernel.tell(notice)
    assert expected == book.addresses(family)
    assert (1, [], 1) == (kernel.changes, kernel.device, kernel.lists)


@pytest.mark.parametrize(
    "notice",
    [
        pytest.param(new(ETH0, "192.0.2.7", 24), id="a renewed lifetime"),
        pytest.param(new(ETH1, "192.0.2.7"), id="the same address on a second interface"),
        pytest.param(new(ETH0, "192.0.2.7", 16), id="the same address with another prefix"),
        pytest.param(gone(ETH1, "10.9.9.9"), id="gone before the list"),
        pytest.param(link(DELLINK, ETH0, "eth0", socket.AF_BRIDGE), id="out of its bridge"),
        pytest.param(
            message(NEWADDR, struct.pack("=BBBBI", 45, 8, 0, 0, ETH0) + attribute(2, b"\1")),
            id="another address family",
        ),
        pytest.param(new(ETH1, "::ffff:10.0.0.1"), id="IPv4-mapped"),
        pytest.param(b"torn", id="no message"),
    ],
)
def test_what_changes_no_address_is_not_told(book, kernel, notice):
    kernel.end.send(notice)
    kernel.tell(new(ETH1, "10.3.3.3"))
    assert (1, []) == (kernel.changes, kernel.device)
    assert ("10.3.3.3", "127.0.0.1", "192.0.2.7") == book.addresses(V4)


def test_an_address_stays_until_it_is_nowhere(book, kernel):
    kernel.end.send(new(ETH1, "192.0.2.7"))
    kernel.end.send(gone(ETH0, "192.0.2.7", 24))
    kernel.tell(new(ETH1, "10.3.3.3"))
    assert "192.0.2.7" in book.addresses(V4)
    kernel.tell(gone(ETH1, "192.0.2.7"))
    assert "192.0.2.7" not in book.addresses(V4)


def test_changes_on_the_device_are_told_apart(book, kernel):
    kernel.tell(new(DEVICE, "10.96.0.2"), gone(DEVICE, "10.96.0.1"), new(DEVICE, "fd00::1"))
    assert [
        DeviceNotice(V4, "10.96.0.2", present=True),
        DeviceNotice(V4, "10.96.0.1", present=False),
        DeviceNotice(V6, "fd00::1", present=True),
    ] == kernel.device
    assert frozenset({"10.96.0.2"}) == book.device_addresses(V4)
    assert frozenset({"fd00::1"}) == book.device_addresses(V6)
    assert 0 == kernel.changes


def test_there_and_back_is_no_change(book, kernel):
    kernel.end.send(gone(DEVICE, "10.96.0.1") + new(DEVICE, "10.96.0.1"))
    kernel.tell(new(ETH1, "10.3.3.3"))
    assert [] == kernel.device


def test_a_device_made_anew_has_another_index(book, kernel):
    kernel.tell(link(DELLINK, DEVICE, NAME))
    assert book.device_index is None
    kernel.tell(link(NEWLINK, 9, NAME), new(9, "10.96.0.2"))
    assert 9 == book.device_index
    assert [
        DeviceNotice(V4, "10.96.0.1", present=False),
        DeviceNotice(V4, "10.96.0.2", present=True),
    ] == kernel.device
    assert 0 == kernel.changes


def test_a_renamed_device_is_an_interface_like_any_other(book, kernel):
    kernel.tell(link(NEWLINK, DEVICE, "other"))
    assert ("10.96.0.1", "127.0.0.1", "192.0.2.7") == book.addresses(V4)
    assert [DeviceNotice(V4, "10.96.0.1", present=False)] == kernel.device
    assert 1 == kernel.changes


def test_lost_notices_make_a_new_list(book, kernel, monkeypatch):
    kernel.listing = new(ETH0, "192.0.2.8") + new(DEVICE, "10.96.0.2")
    kernel.refusals = [OSError(errno.ENOBUFS, "No buffer space available")]
    monkeypatch.setattr(addresses, "RETRY_SECONDS", 0.001)
    reads = iter([False])
    read = book._read
    monkeypatch.setattr(book, "_read", lambda notices: read(notices) and next(reads, True))
    kernel.tell(new(ETH1, "10.3.3.3"))
    while book.addresses(V4) != ("192.0.2.8",):
        kernel.heard.wait(0.01)
    assert frozenset({"10.96.0.2"}) == book.device_addresses(V4)
    book.stop()
    assert [
        DeviceNotice(V4, "10.96.0.1", present=False),
        DeviceNotice(V4, "10.96.0.2", present=True),
    ] == kernel.device
    assert 3 == kernel.lists


def test_after_a_loss_all_is_read_before_the_list():
    class Notices:
        def __init__(self):
            self.answers = [
                new(ETH0, "192.0.2.7"),
                OSError(errno.ENOBUFS, "No buffer space available"),
                *[new(ETH0, "192.0.2.8")] * (addresses._NOTICES_PER_ROUND + 1),
                BlockingIOError(),
            ]

        def recv(self, size):
            answer = self.answers.pop(0)
            if isinstance(answer, OSError):
                raise answer
            return answer

    book, notices = AddressBook(), Notices()
    assert not book._read(notices)
    assert [] == notices.answers
    book.stop()


def test_a_broken_socket_is_not_hidden():
    class Notices:
        def recv(self, size):
            raise OSError(errno.EBADF, "Bad file descriptor")

    book = AddressBook()
    with pytest.raises(OSError, match="Bad file descriptor"):
        book._read(Notices())
    book.stop()


@pytest.mark.parametrize("broken", ["_subscribe", "_list"])
def test_a_kernel_that_does_not_tell_is_a_host_error(kernel, monkeypatch, broken):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(addresses, broken, refuse)
    book = AddressBook()
    with pytest.raises(HostError, match=r"following the addresses of this node: .*not permitted"):
        book.start(kernel.changed)
    book.stop()


def test_a_book_that_never_started_is_empty_and_stops():
    book = AddressBook()
    assert () == book.addresses(V4)
    book.stop()


def test_the_addresses_of_this_machine():
    book = AddressBook("lo")
    book.start(lambda: None)
    assert "127.0.0.1" in book.device_addresses(V4)
    assert "127.0.0.1" not in book.addresses(V4)
    book.stop()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", (True, False)),
        ("127.255.0.1", (True, False)),
        ("12.7.0.1", (False, False)),
        ("::1", (True, False)),
        ("::127", (False, False)),
        ("fe80::1", (False, True)),
        ("febf::1", (False, True)),
        ("fec0::1", (False, False)),
        ("fe8::1", (False, False)),
        ("169.254.0.1", (False, False)),
    ],
)
def test_loopback_and_link_local(address, expected):
    assert expected == (is_loopback(address), is_link_local(address))


def test_node_addresses_leave_out_both():
    given = ("127.0.0.1", "169.254.20.10", "192.0.2.7", "::1", "fd00::1", "fe80::1")
    assert ("169.254.20.10", "192.0.2.7", "fd00::1") == node_addresses(given)
