"""Which of the two iptables implementations this node uses; pure, evidence comes from outside.

The kernel keeps two sets of tables: the legacy ones (ip_tables) and those that the iptables-nft
tools keep in nf_tables. Rules in one do not see rules in the other, so a node agent must use the
set that kubelet, CNI and firewall use. The order of evidence is the ecosystem's
(kubernetes-sigs/iptables-wrappers, KEP-3178): kubelet's hint chains, then where rules are, then
what works.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

from pykubeproxy.errors import Unsupported

__all__ = ["HINT_CHAINS", "Evidence", "Variant", "Verdict", "choose_variant"]

HINT_CHAINS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains that kubelet makes in the mangle table so that others know which tables it uses."""


class Variant(StrEnum):
    NFT = "nft"
    LEGACY = "legacy"


class Evidence(Struct, frozen=True):
    """What is known of one variant, both families taken together.

    ``works``: its tool is installed and can list a table. ``hinted``: a hint chain is there.
    ``rules``: number of rules in its tables.
    """

    works: bool = False
    hinted: bool = False
    rules: int = 0
    problem: str = ""


class Verdict(Struct, frozen=True):
    """The variant to use, and why, fit for a log line."""

    variant: Variant
    reason: str


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
    busiest = max(working, key=lambda v: found[v].rules)
    if found[busiest].rules:
        counts = ", ".join(f"{v}: {found[v].rules}" for v in Variant)
        return Verdict(busiest, f"most rules are in its tables ({counts})")
    if working[0] is Variant.NFT:
        return Verdict(Variant.NFT, "no rules anywhere yet, and nft works")
    return Verdict(Variant.LEGACY, f"no rules anywhere yet, and nft does not work: {nft.problem}")
