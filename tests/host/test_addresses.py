from __future__ import annotations

import socket
from threading import Event

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host import addresses
from pykubeproxy.host.addresses import AddressMonitor, local_addresses
from pykubeproxy.model.kinds import Family


def test_loopback_is_among_the_local_addresses():
    assert "127.0.0.1" in local_addresses(Family.IPV4)


def test_addresses_are_sorted_and_of_one_family():
    for family, mark in ((Family.IPV4, "."), (Family.IPV6, ":")):
        found = local_addresses(family)
        assert list(found) == sorted(set(found))
        assert all(mark in address for address in found)


def test_a_monitor_stops_without_any_change():
    monitor = AddressMonitor(lambda: None)
    monitor.start()
    monitor.stop()


def test_a_monitor_that_never_started_stops():
    AddressMonitor(lambda: None).stop()


@pytest.fixture
def kernel(monkeypatch):
    """The other end of the notice socket."""
    kernel, notices = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.setattr(addresses, "_subscribe", lambda: notices)
    yield kernel
    kernel.close()


def test_a_notice_calls_back(kernel):
    changed = Event()
    monitor = AddressMonitor(changed.set)
    monitor.start()
    kernel.send(b"notice")
    assert changed.wait(10)
    monitor.stop()


def test_a_kernel_without_notices_is_a_host_error(monkeypatch):
    def refuse():
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(addresses, "_subscribe", refuse)
    monitor = AddressMonitor(lambda: None)
    with pytest.raises(HostError, match="following the addresses of this node"):
        monitor.start()
    monitor.stop()
