from __future__ import annotations

import pytest

from pykubeproxy.model.addresses import (
    canonical_cidr,
    canonical_ip,
    contains,
    family_of,
    prefix_length,
)
from pykubeproxy.model.kinds import Family

V4, V6 = Family.IPV4, Family.IPV6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("10.0.0.1", (V4, "10.0.0.1"), id="canonical IPv4"),
        pytest.param("0.0.0.0", (V4, "0.0.0.0"), id="unspecified IPv4"),
        pytest.param("255.255.255.255", (V4, "255.255.255.255"), id="highest IPv4"),
        pytest.param("172.30.0.041", (V4, "172.30.0.41"), id="leading zero is decimal"),
        pytest.param("000010.0.0.00", (V4, "10.0.0.0"), id="many leading zeros"),
        pytest.param("2001:DB8:0:0:0:0:0:1", (V6, "2001:db8::1"), id="IPv6 is shortened"),
        pytest.param("2001:db8:0:1:1:1:1:1", (V6, "2001:db8:0:1:1:1:1:1"), id="one zero stays"),
        pytest.param("1:0:0:2:0:0:0:3", (V6, "1:0:0:2::3"), id="longest run of zeros"),
        pytest.param("1:0:0:2:0:0:3:4", (V6, "1::2:0:0:3:4"), id="first run of equal length"),
        pytest.param("::", (V6, "::"), id="unspecified IPv6"),
        pytest.param("::ffff:10.0.0.1", (V4, "10.0.0.1"), id="mapped is IPv4"),
        pytest.param("::FFFF:a00:1", (V4, "10.0.0.1"), id="mapped in hex is IPv4"),
        pytest.param("::ffff:010.0.0.01", (V4, "10.0.0.1"), id="mapped and sloppy"),
        pytest.param("64:ff9b::192.0.2.1", (V6, "64:ff9b::c000:201"), id="IPv4 tail, not mapped"),
    ],
)
def test_an_address_has_one_canonical_form(text, expected):
    assert canonical_ip(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "10.0.0", "10.0.0.1.2", "10.0.0.256", "10.0.0.1 ", "10.0.0.1\n", "10.0.0.x", "a",
     "10.0.0.1/32", "fe80::1%eth0", ":::", "1::2::3", "12345::", "::ffff:10.0.0.256", "-1.0.0.1",
     "٣.0.0.1", "10.0.0.", "0x0a.0.0.1", "[::1]", "99999999999999999999.0.0.1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(text):
    assert canonical_ip(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("10.0.0.0/8", (V4, "10.0.0.0/8"), id="canonical"),
        pytest.param("203.0.113.000/025", (V4, "203.0.113.0/25"), id="sloppy"),
        pytest.param("10.1.2.3/16", (V4, "10.1.0.0/16"), id="host bits cleared"),
        pytest.param("0.0.0.0/0", (V4, "0.0.0.0/0"), id="everything"),
        pytest.param("10.1.2.3/32", (V4, "10.1.2.3/32"), id="one address"),
        pytest.param("FD00::1/64", (V6, "fd00::/64"), id="IPv6"),
        pytest.param("::/0", (V6, "::/0"), id="all of IPv6"),
        pytest.param("::ffff:10.1.2.3/104", (V4, "10.0.0.0/8"), id="mapped network"),
        pytest.param("::ffff:10.1.2.3/64", (V6, "::/64"), id="wider than the mapped range"),
    ],
)
def test_a_cidr_has_one_canonical_form(text, expected):
    assert canonical_cidr(text) == expected


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "/8",
             "::/129", "10.0.0.0/8/8", "10.0.0.0/ 8", "fe80::1%eth0/64", "10.0.0.0/255.0.0.0"],
)  # fmt: skip
def test_what_is_no_cidr_is_refused(text):
    assert canonical_cidr(text) is None


@pytest.mark.parametrize(
    ("cidr", "ip", "expected"),
    [
        pytest.param("10.0.0.0/8", "10.255.0.1", True, id="inside"),
        pytest.param("10.0.0.0/8", "11.0.0.0", False, id="outside"),
        pytest.param("0.0.0.0/0", "1.2.3.4", True, id="everything"),
        pytest.param("10.0.0.1/32", "10.0.0.1", True, id="itself"),
        pytest.param("10.0.0.1", "10.0.0.1", True, id="a bare address holds itself"),
        pytest.param("10.0.0.1", "10.0.0.2", False, id="a bare address holds nothing else"),
        pytest.param("fd00::/64", "fd00::1:2", True, id="IPv6"),
        pytest.param("::/0", "10.0.0.1", False, id="families do not mix"),
        pytest.param("0.0.0.0/0", "::1", False, id="families do not mix, the other way"),
    ],
)
def test_containment(cidr, ip, expected):
    assert contains(cidr, ip) is expected


def test_containment_of_nonsense_is_an_error():
    with pytest.raises(ValueError, match="'nonsense' is not an IP address"):
        contains("10.0.0.0/8", "nonsense")


@pytest.mark.parametrize(
    ("cidr", "expected"),
    [("10.0.0.0/8", 8), ("fd00::/64", 64), ("10.0.0.1", 32), ("::1", 128)],
)
def test_prefix_length(cidr, expected):
    assert prefix_length(cidr) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("10.0.0.1", Family.IPV4), ("fd00::/8", Family.IPV6)]
)
def test_a_canonical_address_tells_its_family(text, expected):
    assert expected is family_of(text)
