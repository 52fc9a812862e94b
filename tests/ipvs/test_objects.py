from __future__ import annotations

import pytest

from pykubeproxy.ipvs.objects import (
    BoundAddress,
    IPSet,
    Real,
    SetEntry,
    Virtual,
    servers_by_kind,
)
from pykubeproxy.model.kinds import Protocol

V4 = Virtual(Protocol.TCP, "10.96.0.1", 443)
V6 = Virtual(Protocol.UDP, "fd00::a", 53)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (V4, "tcp 10.96.0.1:443"),
        (V6, "udp [fd00::a]:53"),
        (Real(V4, "10.1.0.5", 8443), "10.1.0.5:8443 of tcp 10.96.0.1:443"),
        (Real(V6, "fd00::5", 53), "[fd00::5]:53 of udp [fd00::a]:53"),
        (BoundAddress("10.96.0.1"), "address 10.96.0.1"),
        (IPSet("KUBE-CLUSTER-IP"), "ipset KUBE-CLUSTER-IP"),
        (
            SetEntry("KUBE-CLUSTER-IP", "10.96.0.1,tcp:443"),
            "10.96.0.1,tcp:443 in ipset KUBE-CLUSTER-IP",
        ),
    ],
    ids=str,
)
def test_keys_in_words(key, expected):
    assert expected == str(key)


def test_real_servers_of_two_virtual_servers_are_two():
    other = Virtual(Protocol.TCP, "10.96.0.2", 443)
    assert 2 == len({Real(V4, "10.1.0.5", 80), Real(other, "10.1.0.5", 80)})


def test_servers_are_counted_by_kind():
    reals = (Real(V4, "10.1.0.5", 80), Real(V4, "10.1.0.6", 80))
    assert {"virtual": 1, "real": 2} == servers_by_kind([V4, *reals, BoundAddress("10.96.0.1")])
    assert {"virtual": 0, "real": 0} == servers_by_kind([])
