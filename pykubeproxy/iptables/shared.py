"""Rules that every mode writes alike: the masquerade mark, its SNAT, forwarding, telling pods."""

from __future__ import annotations

from pykubeproxy.iptables.objects import Rules
from pykubeproxy.model.node import PodCIDR, PodInterface, PodInterfacePrefix, PodTraffic

__all__ = ["forward_rules", "mark_masq_rules", "pod_match", "postrouting_rules"]


def postrouting_rules(mark: int, *, random_fully: bool) -> Rules:
    """The rules that masquerade what carries *mark*, and nothing else."""
    text = _hex(mark)
    return (
        f"-m mark ! --mark {text}/{text} -j RETURN",
        # Cleared first: a packet may come by again, with another verdict.
        f"-j MARK --xor-mark {text}",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE'
        + (" --random-fully" if random_fully else ""),
    )


def mark_masq_rules(mark: int) -> Rules:
    """The rule that sets *mark* on what POSTROUTING shall masquerade."""
    return (f"-j MARK --or-mark {_hex(mark)}",)


def forward_rules(mark: int) -> Rules:
    """The rules that let service traffic through a FORWARD chain that drops by default."""
    text = _hex(mark)
    return (
        '-m comment --comment "kubernetes forwarding rules" '
        f"-m mark --mark {text}/{text} -j ACCEPT",
        '-m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )


def pod_match(pods: PodTraffic, *, inverted: bool) -> str:
    """The words that match packets of *pods*, or all others."""
    no = "! " if inverted else ""
    match pods:
        case PodCIDR(cidr):
            return f"{no}-s {cidr}"
        case PodInterface(name):
            return f"{no}-i {name}"
        case PodInterfacePrefix(prefix):
            return f"{no}-i {prefix}+"


def _hex(mark: int) -> str:
    return f"0x{mark:08x}"
