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


def test_frontend_kinds_carry_the_words_of_rule_comments():
    assert [kind.value for kind in FrontendKind] == [
        "cluster IP",
        "external IP",
        "loadbalancer IP",
        "node port",
    ]
