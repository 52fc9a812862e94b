"""Which of the two iptables implementations this node uses; pure, evidence comes from outside.

The kernel keeps two sets of tables: the legacy ones (ip_tables) and those that the iptables-nft
tools keep in nf_tables. Rules in one do not see rules in the other, so a node agent must use the
set that kubelet, CNI and firewall use. The order of evidence is the ecosystem's
(kubernetes-sigs/iptables-wrappers, KEP-3178): kubelet's hint chains, then where rules are, then
what works. Where a service proxy wrote before comes ahead of a count of rules: that takes seconds
on a large node, and mostly counts what it wrote.

A variant that evidence speaks for and that does not work is no reason to take the other: the rules
of the kubelet or of an earlier proxy would stay in force beside ours, and nobody could remove them.
That ends the start, as do tables that may hold such evidence and cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    where the rest does not decide. ``absent``: it has no tables on this node, so nothing is asked.
    ``unread``: why the tables that it has cannot be read, where that is for want of a right.
    """

    works: bool = False
    hinted: bool = False
    served: bool = False
    rules: int = 0
    problem: str = ""
    absent: bool = False
    unread: str = ""


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
        Unsupported: the named variant does not work here, or neither does, or the one that does
            not work is in use, or may be.
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
    for variant in Variant:
        if variant not in working:
            _must_not_be_in_use(variant, found[variant])
    if len(working) == 1:
        return _the_only_one(working[0], found)
    if nft.served != legacy.served:
        variant = next(v for v in Variant if found[v].served)
        return Verdict(variant, f"a service proxy wrote to the {variant} tables before")
    busiest = max(Variant, key=lambda v: found[v].rules)
    if found[busiest].rules:
        counts = ", ".join(f"{v}: {found[v].rules}" for v in Variant)
        return Verdict(busiest, f"most rules are in its tables ({counts})")
    return Verdict(Variant.NFT, _NO_OTHERS)


_NO_OTHERS = "no rules in other tables, and nft works"


def _the_only_one(variant: Variant, found: Mapping[Variant, Evidence]) -> Verdict:
    """The verdict for *variant*, where the other does not work and nothing speaks for that one."""
    if found[variant].served:
        return Verdict(variant, f"a service proxy wrote to the {variant} tables before")
    other = _other(variant)
    if found[other].absent:
        return Verdict(variant, _NO_OTHERS)
    return Verdict(variant, f"{variant} works, and {other} does not: {found[other].problem}")


def _must_not_be_in_use(variant: Variant, evidence: Evidence) -> None:
    """Raises Unsupported where *variant*, which does not work, is in use or may be."""
    if evidence.hinted:
        what, why = f"kubelet's hint chain is in the {variant} tables", evidence.problem
    elif evidence.served:
        what, why = f"rules of a service proxy are in the {variant} tables", evidence.problem
    elif evidence.unread:
        what, why = f"{variant} tables exist on this node", evidence.unread
    else:
        return
    cannot = "cannot be read" if why == evidence.unread else f"{variant} does not work"
    raise Unsupported(
        f"--iptables-variant=auto: {what}, and {cannot}: {why}. Give the program what it lacks; "
        f"or, if nothing on this node uses the {variant} tables any more, empty them (--cleanup "
        "with those rights removes the rules of proxies, a restart of the node removes all) and "
        f"choose --iptables-variant={_other(variant)}"
    )


def _other(variant: Variant) -> Variant:
    return Variant.LEGACY if variant is Variant.NFT else Variant.NFT
