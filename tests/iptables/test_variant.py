from __future__ import annotations

import pytest

from pykubeproxy.errors import Unsupported
from pykubeproxy.iptables.variant import HINT_CHAINS, Evidence, Variant, choose_variant, decides

NFT, LEGACY = Variant.NFT, Variant.LEGACY
ABSENT = Evidence(problem="not installed")
IDLE = Evidence(works=True)
HINTED = Evidence(works=True, hinted=True)
SERVED = Evidence(works=True, served=True)
UNUSED = Evidence(problem="not used on this node so far", absent=True)
LOCKED = "can't open lock file (it takes the node's /run/xtables.lock, mounted writable)"
DENIED = "Permission denied (it takes root with capabilities NET_ADMIN and NET_RAW)"
BROKEN = Evidence(problem=LOCKED)
BROKEN_HINTED = Evidence(hinted=True, problem=LOCKED)
BROKEN_SERVED = Evidence(served=True, problem=LOCKED)
UNREAD = Evidence(problem="nat: denied", unread=DENIED)


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
        pytest.param("auto", IDLE, UNUSED, NFT, id="legacy has no tables"),
        pytest.param("auto", HINTED, BROKEN_HINTED, NFT, id="both have the hint, legacy broken"),
        pytest.param("auto", BROKEN_HINTED, HINTED, LEGACY, id="both have the hint, nft broken"),
        pytest.param("auto", HINTED, UNREAD, NFT, id="nft has the hint, legacy unread"),
        pytest.param("auto", SERVED, BROKEN, NFT, id="a service proxy wrote to the only one"),
        pytest.param("nft", IDLE, BROKEN_HINTED, NFT, id="nft asked for, the hint of a broken one"),
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
        pytest.param(
            *("auto", ABSENT, BROKEN_HINTED, "no working iptables: nft: not installed"),
            id="none, with the hint of one",
        ),
    ],
)
def test_a_variant_that_does_not_work_is_unsupported(override, nft, legacy, expected):
    with pytest.raises(Unsupported, match=expected):
        choose_variant(override, nft, legacy)


@pytest.mark.parametrize(
    ("nft", "legacy", "what", "why", "remedy"),
    [
        pytest.param(
            *(IDLE, BROKEN_HINTED, "kubelet's hint chain is in the legacy tables, and legacy does"),
            *(LOCKED, "choose --iptables-variant=nft"),
            id="legacy has the hint",
        ),
        pytest.param(
            *(SERVED, BROKEN_HINTED, "kubelet's hint chain is in the legacy tables"),
            *(LOCKED, "choose --iptables-variant=nft"),
            id="legacy has the hint, and nft a service proxy",
        ),
        pytest.param(
            *(IDLE, BROKEN_SERVED, "rules of a service proxy are in the legacy tables"),
            *(LOCKED, "choose --iptables-variant=nft"),
            id="legacy has a service proxy",
        ),
        pytest.param(
            *(SERVED, BROKEN_SERVED, "rules of a service proxy are in the legacy tables"),
            *(LOCKED, "choose --iptables-variant=nft"),
            id="both have a service proxy",
        ),
        pytest.param(
            *(IDLE, UNREAD, "legacy tables exist on this node, and cannot be read"),
            *(DENIED, "choose --iptables-variant=nft"),
            id="legacy is unread",
        ),
        pytest.param(
            *(SERVED, UNREAD, "legacy tables exist on this node, and cannot be read"),
            *(DENIED, "choose --iptables-variant=nft"),
            id="legacy is unread, and a service proxy wrote to nft",
        ),
        pytest.param(
            *(BROKEN_HINTED, IDLE, "kubelet's hint chain is in the nft tables, and nft does not"),
            *(LOCKED, "choose --iptables-variant=legacy"),
            id="nft has the hint",
        ),
        pytest.param(
            *(BROKEN_SERVED, SERVED, "rules of a service proxy are in the nft tables"),
            *(LOCKED, "choose --iptables-variant=legacy"),
            id="nft has a service proxy",
        ),
    ],
)
def test_a_variant_that_is_in_use_and_does_not_work_ends_the_start(nft, legacy, what, why, remedy):
    with pytest.raises(Unsupported) as raised:
        choose_variant("auto", nft, legacy)
    said = str(raised.value)
    assert [what, why, remedy] == [part for part in (what, why, remedy) if part in said], said


@pytest.mark.parametrize(
    ("override", "nft", "legacy", "expected"),
    [
        pytest.param("auto", HINTED, IDLE, "hint chain", id="hint"),
        pytest.param("auto", SERVED, IDLE, "service proxy wrote to the nft", id="served"),
        pytest.param("auto", rules(3), rules(9), "nft: 3, legacy: 9", id="counts"),
        pytest.param("auto", IDLE, UNUSED, "no rules in other tables", id="the only tables"),
        pytest.param("auto", IDLE, IDLE, "no rules in other tables", id="no rules in either"),
        pytest.param(
            *("auto", ABSENT, IDLE, "legacy works, and nft does not: not installed"),
            id="what is wrong with nft",
        ),
        pytest.param(
            *("auto", rules(1), Evidence(rules=9, problem="not installed")),
            "nft works, and legacy does not: not installed",
            id="what is wrong with legacy",
        ),
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
