from __future__ import annotations

import pytest

from pykubeproxy.errors import Unsupported
from pykubeproxy.iptables.variant import HINT_CHAINS, Evidence, Variant, choose_variant, decides

NFT, LEGACY = Variant.NFT, Variant.LEGACY
ABSENT = Evidence(problem="not installed")
IDLE = Evidence(works=True)
HINTED = Evidence(works=True, hinted=True)
SERVED = Evidence(works=True, served=True)


def rules(number, **more):
    return Evidence(works=True, rules=number, **more)


@pytest.mark.parametrize(
    ("override", "nft", "legacy", "expected"),
    [
        pytest.param("auto", HINTED, rules(900), NFT, id="nft has the hint"),
        pytest.param("auto", rules(900), HINTED, LEGACY, id="legacy has the hint"),
        pytest.param("auto", HINTED, HINTED, NFT, id="both have the hint"),
        pytest.param("auto", rules(9), SERVED, LEGACY, id="a service proxy wrote to legacy"),
        pytest.param("auto", SERVED, rules(9), NFT, id="a service proxy wrote to nft"),
        pytest.param("auto", SERVED, HINTED, LEGACY, id="the hint before the service proxy"),
        pytest.param(
            "auto", rules(1, served=True), rules(9, served=True), LEGACY, id="it wrote to both"
        ),
        pytest.param("auto", rules(1), rules(9), LEGACY, id="more rules in legacy"),
        pytest.param("auto", rules(9), rules(1), NFT, id="more rules in nft"),
        pytest.param("auto", rules(5), rules(5), NFT, id="as many in both"),
        pytest.param("auto", IDLE, IDLE, NFT, id="no rules anywhere"),
        pytest.param("auto", ABSENT, IDLE, LEGACY, id="only legacy works"),
        pytest.param("auto", IDLE, ABSENT, NFT, id="only nft works"),
        pytest.param("auto", rules(1), Evidence(rules=9), NFT, id="rules of a broken one"),
        pytest.param("auto", IDLE, Evidence(hinted=True), NFT, id="the hint of a broken one"),
        pytest.param("nft", IDLE, HINTED, NFT, id="nft asked for"),
        pytest.param("legacy", HINTED, IDLE, LEGACY, id="legacy asked for"),
    ],
)
def test_the_variant_follows_the_evidence(override, nft, legacy, expected):
    assert expected is choose_variant(override, nft, legacy).variant


@pytest.mark.parametrize(
    ("override", "nft", "legacy", "expected"),
    [
        pytest.param("nft", ABSENT, IDLE, "--iptables-variant=nft: not installed", id="asked for"),
        pytest.param("auto", ABSENT, ABSENT, "no working iptables: nft: not installed", id="none"),
    ],
)
def test_a_variant_that_does_not_work_is_unsupported(override, nft, legacy, expected):
    with pytest.raises(Unsupported, match=expected):
        choose_variant(override, nft, legacy)


@pytest.mark.parametrize(
    ("override", "nft", "legacy", "expected"),
    [
        pytest.param("auto", HINTED, IDLE, "hint chain", id="hint"),
        pytest.param("auto", SERVED, IDLE, "service proxy wrote to the nft", id="served"),
        pytest.param("auto", rules(3), rules(9), "nft: 3, legacy: 9", id="counts"),
        pytest.param("auto", ABSENT, IDLE, "not installed", id="what is wrong with the other"),
        pytest.param("legacy", IDLE, IDLE, "--iptables-variant=legacy", id="flag"),
    ],
)
def test_the_reason_is_fit_for_a_log_line(override, nft, legacy, expected):
    assert expected in choose_variant(override, nft, legacy).reason


@pytest.mark.parametrize(
    ("nft", "legacy", "expected"),
    [
        pytest.param(HINTED, IDLE, True, id="hint"),
        pytest.param(IDLE, SERVED, True, id="served"),
        pytest.param(SERVED, SERVED, False, id="both served"),
        pytest.param(IDLE, IDLE, False, id="neither"),
    ],
)
def test_rules_are_counted_only_where_nothing_else_decides(nft, legacy, expected):
    assert expected is decides(nft, legacy)


def test_the_hint_chains_are_those_of_kubelet():
    assert set(HINT_CHAINS) == {"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}
