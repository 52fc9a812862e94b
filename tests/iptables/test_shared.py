from __future__ import annotations

import pytest

from pykubeproxy.iptables.shared import (
    forward_rules,
    mark_masq_rules,
    pod_match,
    postrouting_rules,
)
from pykubeproxy.model.node import PodCIDR, PodInterface, PodInterfacePrefix


def test_only_marked_packets_are_masqueraded_and_the_mark_goes():
    assert postrouting_rules(0x4000, random_fully=False) == (
        "-m mark ! --mark 0x00004000/0x00004000 -j RETURN",
        "-j MARK --xor-mark 0x00004000",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE',
    )


@pytest.mark.parametrize(("random_fully", "expected"), [(True, 1), (False, 0)])
def test_source_ports_are_random_where_the_tool_can_say_so(random_fully, expected):
    *_, masquerade = postrouting_rules(0x4000, random_fully=random_fully)
    assert expected == masquerade.count(" -j MASQUERADE --random-fully")


def test_the_mark_is_added_to_others():
    assert mark_masq_rules(0x80000000) == ("-j MARK --or-mark 0x80000000",)


def test_marked_packets_and_their_answers_are_forwarded():
    assert forward_rules(1) == (
        '-m comment --comment "kubernetes forwarding rules" '
        "-m mark --mark 0x00000001/0x00000001 -j ACCEPT",
        '-m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        (PodCIDR("10.1.0.0/16"), "-s 10.1.0.0/16"),
        (PodInterface("cbr0"), "-i cbr0"),
        (PodInterfacePrefix("veth"), "-i veth+"),
    ],
)
def test_how_pods_are_told(pods, expected):
    assert expected == pod_match(pods, inverted=False)
    assert f"! {expected}" == pod_match(pods, inverted=True)
