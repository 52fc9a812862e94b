from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Family, FrontendKind, Protocol


@pytest.mark.parametrize(
    ("family", "expected"), [(Family.IPV4, 32), (Family.IPV6, 128)], ids=["IPv4", "IPv6"]
)
def test_a_family_knows_the_length_of_its_addresses(family, expected):
    assert expected == family.host_prefix


@pytest.mark.parametrize("family", Family)
def test_the_other_family_of_the_other_is_the_first(family):
    assert family == family.other.other


def test_families_are_spelled_as_the_api_spells_them():
    assert [str(f) for f in Family] == ["IPv4", "IPv6"]


def test_protocols_are_spelled_as_the_api_spells_them():
    assert [str(p) for p in Protocol] == ["TCP", "UDP", "SCTP"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("TCP", Protocol.TCP, id="TCP"),
        pytest.param("UDP", Protocol.UDP, id="UDP"),
        pytest.param("SCTP", Protocol.SCTP, id="SCTP"),
        pytest.param(None, Protocol.TCP, id="absent"),
        pytest.param("", Protocol.TCP, id="empty"),
        pytest.param("tcp", None, id="lower case"),
        pytest.param("DCCP", None, id="unknown"),
    ],
)
def test_a_protocol_is_read_as_the_api_means_it(text, expected):
    assert expected is Protocol.of(text)


def test_frontend_kinds_carry_the_words_of_rule_comments():
    assert [kind.value for kind in FrontendKind] == [
        "cluster IP",
        "external IP",
        "loadbalancer IP",
        "node port",
    ]
