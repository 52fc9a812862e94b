"""Addresses and their notices in a real network namespace."""

from __future__ import annotations

from threading import Event

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from pykubeproxy.host.addresses import AddressMonitor, local_addresses
from pykubeproxy.model.kinds import Family


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


@pytest.mark.parametrize(
    ("family", "added", "expected"),
    [
        (Family.IPV4, ["10.2.0.1/24", "10.10.0.1/32"], ("10.10.0.1", "10.2.0.1", "127.0.0.1")),
        (Family.IPV6, ["fd00::1/64", "fd00::2/64"], ("::1", "fd00::1", "fd00::2")),
        (Family.IPV4, ["10.2.0.1 peer 10.2.0.2"], ("10.2.0.1", "127.0.0.1")),
    ],
    ids=["IPv4", "IPv6", "point to point"],
)
def test_all_interfaces_count_even_those_that_are_down(namespace, family, added, expected):
    for address in added:
        namespace.run("ip", "address", "add", *address.split(), "dev", "d0")
    assert namespace.call(local_addresses, family) == expected


@pytest.mark.parametrize("address", ["10.2.0.1/24", "fd00::1/64"], ids=["IPv4", "IPv6"])
def test_a_change_is_noticed(namespace, address):
    changed = Event()

    def started():
        monitor = AddressMonitor(changed.set)
        monitor.start()
        return monitor

    monitor = namespace.call(started)
    for verb in ("add", "del"):
        changed.clear()
        namespace.run("ip", "address", verb, address, "dev", "d0")
        assert changed.wait(10)
    monitor.stop()
