from __future__ import annotations

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from pykubeproxy.host.netlink import CREATE, EXCL
from pykubeproxy.ipvs.messages import (
    Address,
    decode_address,
    del_address,
    get_addresses,
    new_address,
)
from pykubeproxy.model.kinds import Family
from tests.ipvs.messages.reading import body_of, whole

V4, V6 = Family.IPV4, Family.IPV6


def address_message(address, *more):
    message = ifaddrmsg()
    message["family"], message["prefixlen"] = (10, 128) if ":" in address else (2, 32)
    message["index"] = 7
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), *more]
    return body_of(message)


NEVER_PREFERRED = ("IFA_CACHEINFO", {"ifa_preferred": 0, "ifa_valid": 0xFFFFFFFF})


@pytest.mark.parametrize(
    ("address", "more"), [("10.96.0.1", []), ("fd00:96::1", [NEVER_PREFERRED])], ids=["v4", "v6"]
)
def test_addresses_are_written_like_pyroute2_writes_them(address, more):
    assert (20, CREATE | EXCL, address_message(address, *more)) == new_address(7, address)
    assert (21, 0, address_message(address)) == del_address(7, address)
    message = bytearray(address_message(address))
    message[1] = 20
    assert (21, 0, bytes(message)) == del_address(7, address, 20)


@pytest.mark.parametrize(("family", "number"), [(None, 0), (V4, 2), (V6, 10)], ids=str)
def test_addresses_are_asked_for_by_family(family, number):
    assert (22, bytes([number, 0, 0, 0, 0, 0, 0, 0])) == get_addresses(family)


def test_addresses_are_read():
    assert [
        Address(True, 1, V4, "127.0.0.1", 8, 254),
        Address(True, 2, V4, "10.96.0.1", 32, 0),
        Address(True, 1, V6, "::1", 128, 254),
        Address(True, 2, V6, "fd00::1", 128, 0),
    ] == [decode_address(*message) for message in whole("addresses")]


def test_notices_say_whether_an_address_came_or_went():
    assert [
        (True, "10.96.0.3"),
        (True, "fd00::3"),
        (False, "10.96.0.3"),
        (False, "fd00::3"),
    ] == [(a.present, a.address) for a in (decode_address(*m) for m in whole("address notices"))]


def test_what_is_no_address_message_is_skipped():
    data = bytearray(whole("addresses")[0][0])
    data[4] = 16  # RTM_NEWLINK
    assert decode_address(bytes(data), 0, len(data)) is None
