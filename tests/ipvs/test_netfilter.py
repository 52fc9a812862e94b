"""The fixed rules against the reference (its ipvs.md, section 7), and the sets of section 6.

e2e/kernel/test_printed_rules.py proves on the real tools that the text is theirs.
"""

from __future__ import annotations

from textwrap import dedent

import msgspec
import pytest

from pykubeproxy.iptables.objects import Chain, DispatchRule, Jump, SharedChain
from pykubeproxy.iptables.printed import printed
from pykubeproxy.ipvs.names import CHAINS, SETS
from pykubeproxy.ipvs.netfilter import JUMPS, IpvsSettings, fixed_rules, set_types
from pykubeproxy.ipvs.objects import IPSet, SetType
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR, PodInterface, PodInterfacePrefix

SETTINGS = IpvsSettings()
NODE = NodeContext("node", Family.IPV4, pod_traffic=PodCIDR("10.1.0.0/16"))
NODE6 = NodeContext("node", Family.IPV6, pod_traffic=PodCIDR("fd00:10:1::/48"))


def chains(node=NODE, settings=SETTINGS):
    """All rules in the order of the dump of a table, chain by chain."""
    return {
        (key.table, key.name): value
        for key, value in fixed_rules(settings, node).items()
        if isinstance(key, Chain | SharedChain)
    }


def dump(table, node=NODE):
    return [
        f"-A {name} {rule}"
        for (of, name), rules in chains(node).items()
        if of == table
        for rule in rules
    ]


def text(block):
    return dedent(block).strip().splitlines()


def test_the_rules_of_the_nat_table():
    assert dump("nat") == text("""
        -A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
        -A KUBE-SERVICES -m comment --comment "Kubernetes service lb portal" -m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
        -A KUBE-SERVICES ! -s 10.1.0.0/16 -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
        -A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set KUBE-EXTERNAL-IP dst,dst -j KUBE-MARK-MASQ
        -A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set KUBE-EXTERNAL-IP dst,dst -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT
        -A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port for masquerade and filter purpose" -m set --match-set KUBE-EXTERNAL-IP dst,dst -m addrtype --dst-type LOCAL -j ACCEPT
        -A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port with externalTrafficPolicy=local" -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL -j ACCEPT
        -A KUBE-SERVICES -m comment --comment "Kubernetes service external ip + port with externalTrafficPolicy=local" -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -m addrtype --dst-type LOCAL -j ACCEPT
        -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
        -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
        -A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT
        -A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
        -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
        -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
        -A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
        -A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port with externalTrafficPolicy=local" -m set --match-set KUBE-NODE-PORT-LOCAL-TCP dst -j RETURN
        -A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
        -A KUBE-NODE-PORT -p udp -m comment --comment "Kubernetes nodeport UDP port with externalTrafficPolicy=local" -m set --match-set KUBE-NODE-PORT-LOCAL-UDP dst -j RETURN
        -A KUBE-NODE-PORT -p udp -m comment --comment "Kubernetes nodeport UDP port for masquerade purpose" -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ
        -A KUBE-NODE-PORT -p sctp -m comment --comment "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type \\'hash ip:port\\'" -m set --match-set KUBE-NODE-PORT-LOCAL-SCTP-HASH dst,dst -j RETURN
        -A KUBE-NODE-PORT -p sctp -m comment --comment "Kubernetes nodeport SCTP port for masquerade purpose with type \\'hash ip:port\\'" -m set --match-set KUBE-NODE-PORT-SCTP-HASH dst,dst -j KUBE-MARK-MASQ
        -A KUBE-LOAD-BALANCER -m comment --comment "Kubernetes service load balancer ip + port with externalTrafficPolicy=local" -m set --match-set KUBE-LOAD-BALANCER-LOCAL dst,dst -j RETURN
        -A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
        -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
    """)  # fmt: skip  # noqa: E501


def test_the_rules_of_the_filter_table():
    assert dump("filter") == text("""
        -A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
        -A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
        -A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
        -A KUBE-PROXY-FIREWALL -m comment --comment "Kubernetes service load balancer ip + port for load balancer with sourceRange" -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
        -A KUBE-SOURCE-RANGES-FIREWALL -m comment --comment "Kubernetes service load balancer ip + port + source cidr for packet filter purpose" -m set --match-set KUBE-LOAD-BALANCER-SOURCE-CIDR dst,dst,src -j RETURN
        -A KUBE-SOURCE-RANGES-FIREWALL -m comment --comment "Kubernetes service load balancer ip + port + source IP for packet filter purpose" -m set --match-set KUBE-LOAD-BALANCER-SOURCE-IP dst,dst,src -j RETURN
        -A KUBE-SOURCE-RANGES-FIREWALL -j DROP
        -A KUBE-IPVS-FILTER -m set --match-set KUBE-LOAD-BALANCER dst,dst -j RETURN
        -A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
        -A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP dst,dst -j RETURN
        -A KUBE-IPVS-FILTER -m set --match-set KUBE-EXTERNAL-IP-LOCAL dst,dst -j RETURN
        -A KUBE-IPVS-FILTER -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j RETURN
        -A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT --reject-with icmp-port-unreachable
    """)  # fmt: skip  # noqa: E501


def test_what_is_different_in_ipv6():
    def in_ipv4(line):
        for old, new in (
            ("KUBE-6-LOAD-BALANCER-SOURCE-CID ", "KUBE-LOAD-BALANCER-SOURCE-CIDR "),
            ("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS ", "KUBE-NODE-PORT-LOCAL-SCTP-HASH "),
            ("KUBE-6-", "KUBE-"),
            ("::1/128", "127.0.0.0/8"),
            ("fd00:10:1::/48", "10.1.0.0/16"),
            ("icmp6-", "icmp-"),
        ):
            line = line.replace(old, new)
        return line

    for table in CHAINS:
        assert dump(table) == [in_ipv4(line) for line in dump(table, NODE6)]


CLUSTER = '-m comment --comment "Kubernetes service cluster ip + port for masquerade purpose"'


@pytest.mark.parametrize(
    ("pods", "masquerade_all", "before", "directions"),
    [
        pytest.param(PodCIDR("10.1.0.0/16"), False, "! -s 10.1.0.0/16 ", "dst,dst", id="CIDR"),
        pytest.param(PodInterface("cbr0"), False, "! -i cbr0 ", "dst,dst", id="bridge"),
        pytest.param(PodInterfacePrefix("veth"), False, "! -i veth+ ", "dst,dst", id="prefix"),
        pytest.param(None, False, "", "src,dst", id="nothing tells pods"),
        pytest.param(PodCIDR("10.1.0.0/16"), True, "", "dst,dst", id="everything"),
        pytest.param(None, True, "", "dst,dst", id="everything, nothing tells pods"),
    ],
)
def test_which_traffic_to_cluster_ips_is_masqueraded(pods, masquerade_all, before, directions):
    node = msgspec.structs.replace(NODE, pod_traffic=pods, masquerade_all=masquerade_all)
    found = [r for r in chains(node)["nat", "KUBE-SERVICES"] if CLUSTER in r]
    expected = f"{before}{CLUSTER} -m set --match-set KUBE-CLUSTER-IP {directions}"
    assert [f"{expected} -j KUBE-MARK-MASQ"] == found


@pytest.mark.parametrize("protocol", ["tcp", "udp", "sctp"])
def test_local_node_ports_leave_before_the_plain_set_marks_them(protocol):
    rules = [r for r in chains()["nat", "KUBE-NODE-PORT"] if r.startswith(f"-p {protocol} ")]
    assert ["RETURN", "KUBE-MARK-MASQ"] == [rule.rpartition(" ")[2] for rule in rules]


def test_new_connections_to_other_ports_of_bound_addresses_are_refused_last():
    rules = chains()["filter", "KUBE-IPVS-FILTER"]
    assert ["RETURN"] * 5 == [rule.rpartition(" ")[2] for rule in rules[:-1]]
    assert rules[-1] == (
        "-m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst "
        "-j REJECT --reject-with icmp-port-unreachable"
    )


def test_the_mark_and_random_ports_are_settings():
    found = chains(settings=IpvsSettings(masquerade_mark=0x8000, random_fully=False))
    assert found["nat", "KUBE-MARK-MASQ"] == ("-j MARK --set-xmark 0x8000/0x8000",)
    assert found["nat", "KUBE-POSTROUTING"][1:] == (
        "-m mark ! --mark 0x8000/0x8000 -j RETURN",
        "-j MARK --set-xmark 0x8000/0x0",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE',
    )
    assert "0x8000/0x8000" in found["filter", "KUBE-FORWARD"][0]


def test_the_jumps_in_the_order_of_insertion():
    found = [
        (f"{key.table} {key.chain}", *value)
        for key, value in fixed_rules(SETTINGS, NODE).items()
        if isinstance(key, Jump)
    ]
    comment = "-m comment --comment"
    assert found == [
        ("nat OUTPUT", f'{comment} "kubernetes service portals" -j KUBE-SERVICES'),
        ("nat PREROUTING", f'{comment} "kubernetes service portals" -j KUBE-SERVICES'),
        ("nat POSTROUTING", f'{comment} "kubernetes postrouting rules" -j KUBE-POSTROUTING'),
        ("filter FORWARD", f'{comment} "kubernetes forwarding rules" -j KUBE-FORWARD'),
        ("filter INPUT", f'{comment} "kubernetes health check rules" -j KUBE-NODE-PORT'),
        ("filter INPUT", f'{comment} "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'),
        ("filter FORWARD", f'{comment} "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'),
        ("filter INPUT", f'{comment} "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER'),
        ("filter OUTPUT", f'{comment} "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER'),
    ]


@pytest.mark.parametrize("node", [NODE, NODE6], ids=["IPv4", "IPv6"])
def test_every_chain_is_known_and_there_is_no_other(node):
    assert {(table, name) for table, names in CHAINS.items() for name in names} == set(chains(node))
    targets = {(table, target) for table, _, target, _ in JUMPS}
    assert targets <= set(chains(node))


def test_only_the_drops_of_vips_have_several_owners():
    objects = fixed_rules(SETTINGS, NODE)
    assert [SharedChain("filter", "KUBE-IPVS-OUT-FILTER")] == [
        key for key in objects if isinstance(key, SharedChain | DispatchRule)
    ]


@pytest.mark.parametrize("node", [NODE, NODE6], ids=["IPv4", "IPv6"])
def test_rules_are_spelled_as_they_are_printed(node):
    for rules in fixed_rules(SETTINGS, node).values():
        assert rules == tuple(printed(rule, node.family) for rule in rules)


@pytest.mark.parametrize("family", list(Family))
def test_every_set_that_a_rule_matches_exists_and_is_used(family):
    node = NODE if family is Family.IPV4 else NODE6
    matched = {
        rule.split("--match-set ")[1].split()[0]
        for rules in fixed_rules(SETTINGS, node).values()
        for rule in rules
        if "--match-set" in rule
    }
    assert {key.name for key in set_types(family)} == matched


def test_the_types_of_sets():
    types = set_types(Family.IPV6)
    assert len(SETS) == len(types)
    assert SetType("hash:ip,port,net") == types[IPSet("KUBE-6-LOAD-BALANCER-SOURCE-CID")]
    assert SetType("bitmap:port") == types[IPSet("KUBE-6-NODE-PORT-TCP")]
