from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.ipvs.messages import fields


@given(st.ip_addresses())
def test_addresses_are_the_same_text_and_bytes_as_in_ipaddress(address):
    assert address.packed == fields.pack_address(str(address))
    expected = str(address)
    if getattr(address, "ipv4_mapped", None) is None:  # newer interpreters write it with dots
        assert expected == fields.address_text(address.packed)


@pytest.mark.parametrize(
    "text",
    [
        *("::", "::1", "1::", "1::8", "0:2:3:4:5:6:7:0", "1:0:3:4:5:6:7:8", "0:0:3::6:7:8"),
        *("1:0:0:4::8", "1::4:0:0:7:8", "10:0:0:1::", "::10:0:0:10", "fd00:96::a"),
    ],
)
def test_the_longest_run_of_zeros_is_left_out(text):
    packed = ip_address(text).packed
    assert packed == fields.pack_address(text)
    assert str(ip_address(text)) == fields.address_text(packed)
