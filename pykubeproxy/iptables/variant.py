"""Which of the two iptables implementations this node uses; pure, evidence comes from outside.

The kernel keeps two sets of tables: the legacy ones (ip_tables) and those that the iptables-nft
tools keep in nf_tables. Rules in one do not see rules in the other, so a node agent must use the
set that kubelet, CNI and firewall use. The order of evidence is the ecosystem's
(kubernetes-sigs/iptables-wrappers, KEP-3178): kubelet's hint chains, then where rules are, then
what works. Where a service proxy wrote before comes ahead of a count of rules: that takes seconds
on a large node, and mostly counts what it wrote.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from pykubeproxy.errors import Unsupported

__all__ = ["HINT_CHAINS", "Evidence", "Variant", "Verdict", "choose_variant", "decides"]

HINT_CHAINS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains that kubelet makes in the mangle table so that others know which tables it uses."""


class Variant(StrEnum):
    NFT = "nft"
    LEGACY = "legacy"


class Evidence(Struct, frozen=True):
    """What is known of one variant, both families taken together.

    ``works``: its tool is installed and can list a table. ``hinted``: a hint chain is there.
    ``served``: a service proxy has its canary there. ``rules``: number of rules in its tables,
    where the rest does not decide.
    """

    works: bool = False
    hinted: bool = False
    served: bool = False
    rules: int = 0
    problem: str = ""


class Verdict(Struct, frozen=True):
    """The variant to use, and why, fit for a log line."""

    variant: Variant
    reason: str


def decides(nft: Evidence, legacy: Evidence) -> bool:
    """Tell whether it is clear without a count of rules which of two that work is used."""
    return nft.hinted or legacy.hinted or nft.served != legacy.served


def choose_variant(override: str, nft: Evidence, legacy: Evidence) -> Verdict:
    """Choose by *override* (``nft``, ``legacy``, or ``auto``) or by evidence.

    Raises:
        Unsupported: the named variant does not work here, or neither does.
    """
    found = {Variant.NFT: nft, Variant.LEGACY: legacy}
    if override != "auto":
        variant = Variant(override)
        if not found[variant].works:
            raise Unsupported(
                f"--iptables-variant={variant}: {found[variant].problem}; "
                "install the iptables package or leave the choice to the program (auto)"
            )
        return Verdict(variant, f"asked for by --iptables-variant={variant}")
    working = [v for v in Variant if found[v].works]
    if not working:
        raise Unsupported(
            f"no working iptables: nft: {nft.problem}; legacy: {legacy.problem}; "
            "install the iptables package and run with NET_ADMIN"
        )
    for variant in working:
        if found[variant].hinted:
            return Verdict(variant, f"kubelet's hint chain is in the {variant} tables")
    if found[working[0]].served != found[working[-1]].served:
        variant = next(v for v in working if found[v].served)
        return Verdict(variant, f"a service proxy wrote to the {variant} tables before")
    busiest = max(working, key=lambda v: found[v].rules)
    if found[busiest].rules:
        counts = ", ".join(f"{v}: {found[v].rules}" for v in Variant)
        return Verdict(busiest, f"most rules are in its tables ({counts})")
    if working[0] is Variant.NFT:
        return Verdict(Variant.NFT, "no rules in other tables, and nft works")
    return Verdict(Variant.LEGACY, f"no rules that decide, and nft does not work: {nft.problem}")
