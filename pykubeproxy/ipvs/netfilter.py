"""What stands in the kernel whatever Services there are: the sets, and the rules that ask them.

Rules that match a set are there while it is empty, too: packets notice no difference, and the
first load balancer costs no rewrite. All rules are spelled as iptables-save prints them, so
that what a restart finds can be compared as text.
"""

from __future__ import annotations

from msgspec import Struct

from pykubeproxy.iptables.names import FORWARD, MARK_MASQ, POSTROUTING, PROXY_FIREWALL, SERVICES
from pykubeproxy.iptables.objects import Chain, Jump, Rules, SharedChain
from pykubeproxy.iptables.printed import printed
from pykubeproxy.iptables.shared import (
    forward_rules,
    mark_masq_rules,
    pod_match,
    postrouting_rules,
)
from pykubeproxy.ipvs.names import (
    CLUSTER_IP,
    EXTERNAL_IP,
    EXTERNAL_IP_LOCAL,
    FILTER,
    HEALTH_CHECK_NODE_PORT,
    IPVS_IPS,
    LOAD_BALANCER,
    LOAD_BALANCER_FW,
    LOAD_BALANCER_LOCAL,
    LOAD_BALANCER_SOURCE_CIDR,
    LOAD_BALANCER_SOURCE_IP,
    LOOP_BACK,
    NODE_PORT,
    NODE_PORT_LOCAL_SCTP,
    NODE_PORT_LOCAL_TCP,
    NODE_PORT_LOCAL_UDP,
    NODE_PORT_SCTP,
    NODE_PORT_TCP,
    NODE_PORT_UDP,
    OUT_FILTER,
    SCHEDULERS,
    SETS,
    SOURCE_RANGES_FIREWALL,
    set_name,
)
from pykubeproxy.ipvs.objects import IPSet, Key, SetType, Value
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext

__all__ = ["JUMPS", "IpvsSettings", "fixed_rules", "set_types"]


class IpvsSettings(Struct, frozen=True):
    """What the objects depend on besides the node and the routes; settled once at start.

    ``masquerade_mark`` is the bit that carries "needs SNAT" from nat to POSTROUTING.
    ``scheduler`` is for Services that ask for none; the kernel has been seen to have it.
    ``schedulers`` are those that a Service may ask for.
    """

    masquerade_mark: int = 0x4000
    random_fully: bool = True
    scheduler: str = "rr"
    schedulers: frozenset[str] = SCHEDULERS


JUMPS = (
    # In the order of insertion: each goes to the top, so the last one is looked at first.
    ("nat", "OUTPUT", SERVICES, "kubernetes service portals"),
    ("nat", "PREROUTING", SERVICES, "kubernetes service portals"),
    ("nat", "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
    ("filter", "FORWARD", FORWARD, "kubernetes forwarding rules"),
    ("filter", "INPUT", NODE_PORT, "kubernetes health check rules"),
    ("filter", "INPUT", PROXY_FIREWALL, "kube-proxy firewall rules"),
    ("filter", "FORWARD", PROXY_FIREWALL, "kube-proxy firewall rules"),
    ("filter", "INPUT", FILTER, "kubernetes ipvs access filter"),
    ("filter", "OUTPUT", OUT_FILTER, "kubernetes ipvs access filter"),
)
"""Table, built-in chain, our chain and the comment of every way in."""


def set_types(family: Family) -> dict[Key, Value]:
    """Return the sets of *family* and their types."""
    return {IPSet(set_name(name, family)): SetType(kind.type) for name, kind in SETS.items()}


def fixed_rules(settings: IpvsSettings, node: NodeContext) -> dict[Key, Value]:
    """Return the chains, complete but for the shared one, and the jumps to them."""
    mark = settings.masquerade_mark
    family = node.family
    words = _Words(family)
    chains: dict[tuple[str, str], Rules] = {
        ("nat", SERVICES): _services(words, node),
        ("nat", POSTROUTING): (
            words.match(LOOP_BACK, "dst,dst,src", "MASQUERADE"),
            *postrouting_rules(mark, random_fully=settings.random_fully),
        ),
        ("nat", NODE_PORT): _node_ports(words),
        ("nat", LOAD_BALANCER): (
            words.match(LOAD_BALANCER_LOCAL, "dst,dst", "RETURN"),
            f"-j {MARK_MASQ}",
        ),
        ("nat", MARK_MASQ): mark_masq_rules(mark),
        ("filter", FORWARD): forward_rules(mark),
        ("filter", NODE_PORT): (words.match(HEALTH_CHECK_NODE_PORT, "dst", "ACCEPT"),),
        ("filter", PROXY_FIREWALL): (
            words.match(LOAD_BALANCER_FW, "dst,dst", SOURCE_RANGES_FIREWALL),
        ),
        ("filter", SOURCE_RANGES_FIREWALL): (
            words.match(LOAD_BALANCER_SOURCE_CIDR, "dst,dst,src", "RETURN"),
            words.match(LOAD_BALANCER_SOURCE_IP, "dst,dst,src", "RETURN"),
            "-j DROP",
        ),
        ("filter", FILTER): _access_filter(words),
    }
    objects: dict[Key, Value] = {
        Chain(table, name): tuple(printed(rule, family) for rule in rules)
        for (table, name), rules in chains.items()
    }
    objects[SharedChain("filter", OUT_FILTER)] = ()
    for table, chain, target, comment in JUMPS:
        rule = f'-m comment --comment "{comment}" -j {target}'
        objects[Jump(table, chain, target)] = (printed(rule, family),)
    return objects


class _Words(Struct, frozen=True):
    """Rules that match sets of one family, sets being called by their IPv4 names."""

    family: Family

    def match(self, name: str, directions: str, target: str, more: str = "") -> str:
        """A rule with the set's comment."""
        comment = f'-m comment --comment "{SETS[name].comment}"'
        return f"{comment} {self.bare(name, directions, target, more)}"

    def bare(self, name: str, directions: str, target: str, more: str = "") -> str:
        tail = f"{more} -j {target}".strip()
        return f"-m set --match-set {set_name(name, self.family)} {directions} {tail}"


def _services(words: _Words, node: NodeContext) -> Rules:
    loopback = "127.0.0.0/8" if node.family is Family.IPV4 else "::1/128"
    from_elsewhere = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
    to_here = "-m addrtype --dst-type LOCAL"
    return (
        f"-s {loopback} -j RETURN",
        words.match(LOAD_BALANCER, "dst,dst", LOAD_BALANCER),
        _cluster_ips(words, node),
        words.match(EXTERNAL_IP, "dst,dst", MARK_MASQ),
        *(
            words.match(name, "dst,dst", "ACCEPT", more)
            for name in (EXTERNAL_IP, EXTERNAL_IP_LOCAL)
            for more in (from_elsewhere, to_here)
        ),
        f"{to_here} -j {NODE_PORT}",
        words.bare(CLUSTER_IP, "dst,dst", "ACCEPT"),
        words.bare(LOAD_BALANCER, "dst,dst", "ACCEPT"),
    )


def _cluster_ips(words: _Words, node: NodeContext) -> str:
    if node.masquerade_all:
        return words.match(CLUSTER_IP, "dst,dst", MARK_MASQ)
    if node.pod_traffic is not None:
        others = pod_match(node.pod_traffic, inverted=True)
        return words.match(CLUSTER_IP, "dst,dst", MARK_MASQ, others)
    # The node itself sends with the cluster IP as its source, for that is a local address; the
    # answer would not come back to it. Nothing tells the others apart.
    return words.match(CLUSTER_IP, "src,dst", MARK_MASQ)


def _node_ports(words: _Words) -> Rules:
    # A Local port is in both sets: the plain rule must not see it.
    return tuple(
        f"-p {protocol} {words.match(name, directions, target)}"
        for protocol, local, plain, directions in (
            ("tcp", NODE_PORT_LOCAL_TCP, NODE_PORT_TCP, "dst"),
            ("udp", NODE_PORT_LOCAL_UDP, NODE_PORT_UDP, "dst"),
            ("sctp", NODE_PORT_LOCAL_SCTP, NODE_PORT_SCTP, "dst,dst"),
        )
        for name, target in ((local, "RETURN"), (plain, MARK_MASQ))
    )


def _access_filter(words: _Words) -> Rules:
    """Addresses of virtual servers are the node's own: its other ports must not answer there."""
    return (
        *(
            words.bare(name, "dst,dst", "RETURN")
            for name in (LOAD_BALANCER, CLUSTER_IP, EXTERNAL_IP, EXTERNAL_IP_LOCAL)
        ),
        words.bare(HEALTH_CHECK_NODE_PORT, "dst", "RETURN"),
        f"-m conntrack --ctstate NEW {words.bare(IPVS_IPS, 'dst', 'REJECT')}",
    )
