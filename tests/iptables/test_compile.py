"""Rule text against the reference (its iptables.md); section numbers are its own."""

from __future__ import annotations

from textwrap import dedent

import msgspec
import pytest

from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.objects import Chain, DispatchRule, Jump, Presence, SharedChain, TailRule
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.node import NodeContext, PodCIDR, PodInterface, PodInterfacePrefix
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Endpoint, PortKey, Route
from pykubeproxy.sync.routes import service_routes
from tests.build import endpoint, port, service, slice_, slice_port

SETTINGS = XtablesSettings(random_fully=False, count_invalid=True, count_localhost=True)
SETTINGS6 = msgspec.structs.replace(SETTINGS, localhost_nodeports=False, count_localhost=False)
NODE = NodeContext("node", Family.IPV4, address="192.0.2.1", pod_traffic=PodCIDR("10.1.0.0/16"))
NODE6 = NodeContext("node", Family.IPV6, address="fd00::1", pod_traffic=PodCIDR("fd00:10:1::/48"))

HERE = endpoint("10.1.0.5", node="node")
THERE = endpoint("10.1.1.6", node="other")

# Service shop/web, port http
H = "67NZLRHBNDSAWJRO"
SEP_HERE, SEP_THERE = "KUBE-SEP-UZBLB3XX2HRLVOJ5", "KUBE-SEP-GZ4SFVP2VZPNIGTB"
MATCH = "-m tcp -p tcp -d"


def web(**fields):
    http = port(80, "http", node_port=fields.pop("node_port", None))
    return service(
        "web",
        namespace="shop",
        **{"cluster_ip": "10.96.0.20", "ports": [http], **fields},
    )


def load_balancer(**fields):
    return web(
        **{
            "type": "LoadBalancer",
            "node_port": 30080,
            "vips": ["192.0.2.10"],
            "source_ranges": ["198.51.100.0/24"],
            **fields,
        }
    )


def objects(svc, *endpoints, node=NODE, settings=SETTINGS, total=0):
    slices = [slice_("web", *endpoints, namespace="shop", ports=[slice_port(8080, "http")])]
    compiler = IptablesCompiler(settings)
    compiler.resize(total)
    found = {}
    for route in service_routes(svc, slices, node).routes:
        found |= compiler.compile(route, node)
    return found


def by_chain(compiled):
    """Rules of (table, chain); jumps from built-in chains and bare presences apart."""
    found = {}
    for key, rules in compiled.items():
        match key:
            case Chain(table, name) | DispatchRule(table, name, _) | TailRule(table, name, _):
                found.setdefault((table, name), []).extend(rules)
    return found


def rules(svc, *endpoints, table="nat", chain, **options):
    return by_chain(objects(svc, *endpoints, **options)).get((table, chain), [])


def base(node=NODE, settings=SETTINGS):
    return IptablesCompiler(settings).base(node)


def block(text):
    return dedent(text).strip().splitlines()


# --- §16, the worked example ---

EXAMPLE = """
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-FIREWALL - [0:0]
-A KUBE-FIREWALL -m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-PROXY-FIREWALL -m comment --comment "shop/web:http traffic not accepted by KUBE-FW-67NZLRHBNDSAWJRO" -m tcp -p tcp -d 192.0.2.10 --dport 80 -j DROP
-A KUBE-NODEPORTS -m comment --comment "shop/web:http health check node port" -m tcp -p tcp --dport 31000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -m nfacct --nfacct-name ct_state_invalid_dropped_pkts -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-EXT-67NZLRHBNDSAWJRO - [0:0]
:KUBE-FW-67NZLRHBNDSAWJRO - [0:0]
:KUBE-SVC-67NZLRHBNDSAWJRO - [0:0]
:KUBE-SVL-67NZLRHBNDSAWJRO - [0:0]
:KUBE-SEP-UZBLB3XX2HRLVOJ5 - [0:0]
:KUBE-SEP-GZ4SFVP2VZPNIGTB - [0:0]
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
-A KUBE-SERVICES -m comment --comment "shop/web:http cluster IP" -m tcp -p tcp -d 10.96.0.20 --dport 80 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-SERVICES -m comment --comment "shop/web:http loadbalancer IP" -m tcp -p tcp -d 192.0.2.10 --dport 80 -j KUBE-FW-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -m comment --comment shop/web:http -m tcp -p tcp -d 127.0.0.0/8 --dport 30080 -m nfacct --nfacct-name localhost_nps_accepted_pkts -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-NODEPORTS -m comment --comment shop/web:http -m tcp -p tcp --dport 30080 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http cluster IP" -m tcp -p tcp -d 10.96.0.20 --dport 80 ! -s 10.1.0.0/16 -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "pod traffic for shop/web:http external destinations" -s 10.1.0.0/16 -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "masquerade LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A KUBE-EXT-67NZLRHBNDSAWJRO -m comment --comment "route LOCAL traffic for shop/web:http external destinations" -m addrtype --src-type LOCAL -j KUBE-SVC-67NZLRHBNDSAWJRO
-A KUBE-EXT-67NZLRHBNDSAWJRO -j KUBE-SVL-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http loadbalancer IP" -s 198.51.100.0/24 -j KUBE-EXT-67NZLRHBNDSAWJRO
-A KUBE-FW-67NZLRHBNDSAWJRO -m comment --comment "other traffic to shop/web:http will be dropped by KUBE-PROXY-FIREWALL"
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.1.0.5:8080" -m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-UZBLB3XX2HRLVOJ5
-A KUBE-SVC-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.1.1.6:8080" -j KUBE-SEP-GZ4SFVP2VZPNIGTB
-A KUBE-SVL-67NZLRHBNDSAWJRO -m comment --comment "shop/web:http -> 10.1.0.5:8080" -j KUBE-SEP-UZBLB3XX2HRLVOJ5
-A KUBE-SEP-UZBLB3XX2HRLVOJ5 -m comment --comment shop/web:http -s 10.1.0.5 -j KUBE-MARK-MASQ
-A KUBE-SEP-UZBLB3XX2HRLVOJ5 -m comment --comment shop/web:http -m tcp -p tcp -j DNAT --to-destination 10.1.0.5:8080
-A KUBE-SEP-GZ4SFVP2VZPNIGTB -m comment --comment shop/web:http -s 10.1.1.6 -j KUBE-MARK-MASQ
-A KUBE-SEP-GZ4SFVP2VZPNIGTB -m comment --comment shop/web:http -m tcp -p tcp -j DNAT --to-destination 10.1.1.6:8080
-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""  # noqa: E501 - rule text as it is


def tables_of(restore_text):
    """Rules of (table, chain), and the chains named by chain lines."""
    found, table = {}, ""
    for line in restore_text.strip().splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            found[table, line[1:].split()[0]] = []
        elif line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            found[table, chain].append(rule)
    return found


def example_objects():
    svc = load_balancer(external_policy="Local", health_check_node_port=31000)
    compiled = objects(svc, HERE, THERE)
    fixed = base()
    tails = {key: value for key, value in fixed.items() if isinstance(key, TailRule)}
    return {**{k: v for k, v in fixed.items() if k not in tails}, **compiled, **tails}


@pytest.mark.parametrize(
    ("table", "chain"), tables_of(EXAMPLE), ids=lambda word: word.removeprefix("KUBE-")
)
def test_the_worked_example(table, chain):
    expected = tables_of(EXAMPLE)[table, chain]
    assert expected == by_chain(example_objects()).get((table, chain), [])


def test_the_worked_example_has_no_other_chains():
    chains = {
        (key.table, key.name)
        for key in example_objects()
        if isinstance(key, Chain | SharedChain | Presence) and "CANARY" not in key.name
    }
    assert set(tables_of(EXAMPLE)) == chains


# --- §3, jumps from built-in chains ---


def test_jumps_are_made_in_the_order_of_the_reference():
    portals = '-m comment --comment "kubernetes service portals"'
    outside = '-m comment --comment "kubernetes externally-visible service portals"'
    firewall = '-m comment --comment "kubernetes load balancer firewall"'
    new = "-m conntrack --ctstate NEW"
    found = [(k.table, k.chain, v[0]) for k, v in base().items() if isinstance(k, Jump)]
    assert found == [
        ("filter", "INPUT", f"{new} {outside} -j KUBE-EXTERNAL-SERVICES"),
        ("filter", "FORWARD", f"{new} {outside} -j KUBE-EXTERNAL-SERVICES"),
        (
            "filter",
            "INPUT",
            '-m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS',
        ),
        ("filter", "FORWARD", f"{new} {portals} -j KUBE-SERVICES"),
        ("filter", "OUTPUT", f"{new} {portals} -j KUBE-SERVICES"),
        (
            "filter",
            "FORWARD",
            '-m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        ),
        ("filter", "INPUT", f"{new} {firewall} -j KUBE-PROXY-FIREWALL"),
        ("filter", "OUTPUT", f"{new} {firewall} -j KUBE-PROXY-FIREWALL"),
        ("filter", "FORWARD", f"{new} {firewall} -j KUBE-PROXY-FIREWALL"),
        ("nat", "OUTPUT", f"{portals} -j KUBE-SERVICES"),
        ("nat", "PREROUTING", f"{portals} -j KUBE-SERVICES"),
        (
            "nat",
            "POSTROUTING",
            '-m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
        ),
        ("filter", "INPUT", "-j KUBE-FIREWALL"),
        ("filter", "OUTPUT", "-j KUBE-FIREWALL"),
    ]


@pytest.mark.parametrize("node", [NODE, NODE6], ids=["IPv4", "IPv6"])
def test_the_chain_shared_with_kubelet_exists_without_a_rule_of_ours(node):
    compiled = base(node, SETTINGS6)
    assert (Presence("filter", "KUBE-FIREWALL") in compiled) is True
    assert Chain("filter", "KUBE-FIREWALL") not in compiled


@pytest.mark.parametrize("table", ["mangle", "nat", "filter"])
def test_every_table_has_a_canary(table):
    assert Presence(table, "KUBE-PROXY-CANARY") in base()


# --- §5 and §7, fixed rules ---


@pytest.mark.parametrize(
    ("bit", "expected"),
    [(14, "0x00004000"), (0, "0x00000001"), (31, "0x80000000")],
    ids=["usual", "lowest", "highest"],
)
def test_the_mark_has_eight_digits(bit, expected):
    settings = msgspec.structs.replace(SETTINGS, masquerade_mark=1 << bit)
    assert base(settings=settings)[Chain("nat", "KUBE-MARK-MASQ")] == (
        f"-j MARK --or-mark {expected}",
    )


def test_source_ports_are_randomised_where_the_tool_can():
    settings = msgspec.structs.replace(SETTINGS, random_fully=True)
    assert base(settings=settings)[Chain("nat", "KUBE-POSTROUTING")][2] == (
        '-m comment --comment "kubernetes service traffic requiring SNAT" '
        "-j MASQUERADE --random-fully"
    )


FORWARDED = (
    '-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x00004000/0x00004000 '
    "-j ACCEPT",
    '-m comment --comment "kubernetes forwarding conntrack rule" '
    "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {"count_invalid": False},
            ("-m conntrack --ctstate INVALID -j DROP", *FORWARDED),
            id="no nfacct",
        ),
        pytest.param({"drop_invalid": False}, FORWARDED, id="conntrack is liberal"),
    ],
)
def test_invalid_packets(changes, expected):
    settings = msgspec.structs.replace(SETTINGS, **changes)
    assert expected == base(settings=settings)[Chain("filter", "KUBE-FORWARD")]


TAIL = (
    '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in '
    'this chain" '
)


@pytest.mark.parametrize(
    ("node", "settings", "addresses", "expected"),
    [
        pytest.param(NODE, SETTINGS, None, ["-m addrtype --dst-type LOCAL"], id="all of IPv4"),
        pytest.param(
            NODE,
            SETTINGS6,
            None,
            ["-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8"],
            id="all but loopback",
        ),
        pytest.param(
            NODE6, SETTINGS6, None, ["-m addrtype --dst-type LOCAL ! -d ::1/128"], id="all of IPv6"
        ),
        pytest.param(
            NODE,
            SETTINGS,
            ("192.0.2.1", "127.0.0.1"),
            ["-d 192.0.2.1", "-d 127.0.0.1"],
            id="listed, loopback allowed",
        ),
        pytest.param(
            NODE, SETTINGS6, ("192.0.2.1", "127.0.0.1"), ["-d 192.0.2.1"], id="listed, not loopback"
        ),
        pytest.param(NODE6, SETTINGS6, ("fd00::1", "::1"), ["-d fd00::1"], id="listed, IPv6"),
        pytest.param(NODE, SETTINGS, (), [], id="nowhere"),
    ],
)
def test_where_node_ports_are_served(node, settings, addresses, expected):
    node = msgspec.structs.replace(node, nodeport_addresses=addresses)
    found = [k.rule for k in base(node, settings) if isinstance(k, TailRule)]
    assert [f"{TAIL}{match} -j KUBE-NODEPORTS" for match in expected] == found


def test_shared_chains_are_those_with_rules_of_many_services():
    found = {(k.table, k.name) for k in base() if isinstance(k, SharedChain)}
    assert found == {
        ("filter", "KUBE-SERVICES"),
        ("filter", "KUBE-EXTERNAL-SERVICES"),
        ("filter", "KUBE-NODEPORTS"),
        ("filter", "KUBE-PROXY-FIREWALL"),
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-NODEPORTS"),
    }


# --- §6.1, rules in shared chains ---

CLUSTER_IP = f"{MATCH} 10.96.0.20 --dport 80"
NO_ENDPOINTS = '-m comment --comment "shop/web:http has no endpoints"'
NO_LOCAL = '-m comment --comment "shop/web:http has no local endpoints"'
INTERNAL = '-m comment --comment "shop/web:http cluster IP"'


@pytest.mark.parametrize(
    ("svc", "endpoints", "table", "expected"),
    [
        pytest.param(
            web(), [THERE], "nat", [f"{INTERNAL} {CLUSTER_IP} -j KUBE-SVC-{H}"], id="Cluster"
        ),
        pytest.param(
            web(internal_policy="Local"),
            [HERE],
            "nat",
            [f"{INTERNAL} {CLUSTER_IP} -j KUBE-SVL-{H}"],
            id="Local",
        ),
        pytest.param(web(), [THERE], "filter", [], id="nothing refused"),
        pytest.param(
            web(), [], "filter", [f"{NO_ENDPOINTS} {CLUSTER_IP} -j REJECT"], id="no endpoints"
        ),
        pytest.param(web(), [], "nat", [], id="nothing translated"),
        pytest.param(
            web(internal_policy="Local"),
            [THERE],
            "filter",
            [f"{NO_LOCAL} {CLUSTER_IP} -j DROP"],
            id="Local, only elsewhere",
        ),
        pytest.param(
            web(internal_policy="Local"),
            [],
            "filter",
            [f"{NO_ENDPOINTS} {CLUSTER_IP} -j REJECT"],
            id="Local, no endpoints",
        ),
    ],
)
def test_the_cluster_ip(svc, endpoints, table, expected):
    assert expected == rules(svc, *endpoints, table=table, chain="KUBE-SERVICES")


def dispatch(svc, *endpoints, chain, table="nat", address):
    return [
        rule
        for rule in rules(svc, *endpoints, table=table, chain=chain)
        if f" {address} " in rule and "10.96.0.20" not in rule
    ]


@pytest.mark.parametrize(
    ("fields", "address", "word"),
    [
        pytest.param(
            {"external_ips": ["203.0.113.2"]}, "203.0.113.2", "external IP", id="external IP"
        ),
        pytest.param({"vips": ["192.0.2.10"]}, "192.0.2.10", "loadbalancer IP", id="VIP"),
    ],
)
class TestExternalAddresses:
    def test_served(self, fields, address, word):
        assert dispatch(web(**fields), THERE, chain="KUBE-SERVICES", address=address) == [
            f'-m comment --comment "shop/web:http {word}" {MATCH} {address} --dport 80 '
            f"-j KUBE-EXT-{H}"
        ]

    def test_no_endpoints(self, fields, address, word):
        found = dispatch(
            web(**fields), table="filter", chain="KUBE-EXTERNAL-SERVICES", address=address
        )
        assert found == [f"{NO_ENDPOINTS} {MATCH} {address} --dport 80 -j REJECT"]

    def test_only_elsewhere_is_dropped_for_others(self, fields, address, word):
        svc = web(type="LoadBalancer", external_policy="Local", **fields)
        found = dispatch(
            svc, THERE, table="filter", chain="KUBE-EXTERNAL-SERVICES", address=address
        )
        assert found == [f"{NO_LOCAL} {MATCH} {address} --dport 80 -j DROP"]

    def test_only_elsewhere_is_still_served_for_this_node(self, fields, address, word):
        svc = web(type="LoadBalancer", external_policy="Local", **fields)
        assert len(dispatch(svc, THERE, chain="KUBE-SERVICES", address=address)) == 1


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param(
            [THERE],
            [
                '-m comment --comment "shop/web:http traffic not accepted by '
                f'KUBE-FW-{H}" {MATCH} 192.0.2.10 --dport 80 -j DROP'
            ],
            id="endpoints",
        ),
        pytest.param([], [], id="no endpoints"),
    ],
)
def test_what_the_firewall_does_not_accept_is_dropped(endpoints, expected):
    found = rules(load_balancer(), *endpoints, table="filter", chain="KUBE-PROXY-FIREWALL")
    assert expected == found


def test_a_load_balancer_without_ranges_has_no_firewall():
    found = by_chain(objects(load_balancer(source_ranges=[]), THERE))
    assert ("filter", "KUBE-PROXY-FIREWALL") not in found


NODE_PORT = "-m comment --comment shop/web:http -m tcp -p tcp"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            {},
            [
                f"{NODE_PORT} -d 127.0.0.0/8 --dport 30080 "
                f"-m nfacct --nfacct-name localhost_nps_accepted_pkts -j KUBE-EXT-{H}",
                f"{NODE_PORT} --dport 30080 -j KUBE-EXT-{H}",
            ],
            id="counted on localhost",
        ),
        pytest.param(
            {"count_localhost": False},
            [f"{NODE_PORT} --dport 30080 -j KUBE-EXT-{H}"],
            id="no nfacct",
        ),
        pytest.param(
            {"localhost_nodeports": False},
            [f"{NODE_PORT} --dport 30080 -j KUBE-EXT-{H}"],
            id="not on localhost",
        ),
    ],
)
def test_node_ports(changes, expected):
    settings = msgspec.structs.replace(SETTINGS, **changes)
    svc = web(type="NodePort", node_port=30080)
    assert expected == rules(svc, THERE, chain="KUBE-NODEPORTS", settings=settings)


@pytest.mark.parametrize(
    ("policy", "endpoints", "comment", "verdict"),
    [
        pytest.param(None, [], NO_ENDPOINTS, "REJECT", id="no endpoints"),
        pytest.param("Local", [THERE], NO_LOCAL, "DROP", id="only elsewhere"),
    ],
)
def test_node_ports_without_endpoints(policy, endpoints, comment, verdict):
    svc = web(type="NodePort", node_port=30080, external_policy=policy)
    found = rules(svc, *endpoints, table="filter", chain="KUBE-EXTERNAL-SERVICES")
    assert found == [
        f"{comment} -m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j {verdict}"
    ]


@pytest.mark.parametrize("endpoints", [[HERE], [THERE], []], ids=["here", "elsewhere", "none"])
def test_health_checks_are_let_in_whatever_the_endpoints(endpoints):
    svc = load_balancer(external_policy="Local", health_check_node_port=31000)
    assert rules(svc, *endpoints, table="filter", chain="KUBE-NODEPORTS") == [
        '-m comment --comment "shop/web:http health check node port" '
        "-m tcp -p tcp --dport 31000 -j ACCEPT"
    ]


def test_a_health_check_is_tcp_for_a_udp_port_too():
    svc = load_balancer(
        external_policy="Local", health_check_node_port=31000, ports=[port(53, "dns", "UDP")]
    )
    assert rules(svc, table="filter", chain="KUBE-NODEPORTS") == [
        '-m comment --comment "shop/web:dns health check node port" '
        "-m tcp -p tcp --dport 31000 -j ACCEPT"
    ]


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_protocols_are_written_in_lower_case(protocol):
    svc = service(ports=[port(53, "", protocol)])
    (rule,) = rules(svc, table="filter", chain="KUBE-SERVICES")
    assert f"-m {protocol.lower()} -p {protocol.lower()} -d" in rule


# --- §6.2, service chains ---

EXT, FW, SVC, SVL = f"KUBE-EXT-{H}", f"KUBE-FW-{H}", f"KUBE-SVC-{H}", f"KUBE-SVL-{H}"
TO_HERE = f'-m comment --comment "shop/web:http -> 10.1.0.5:8080" -j {SEP_HERE}'


@pytest.mark.parametrize(
    ("pods", "masquerade_all", "expected"),
    [
        pytest.param(
            PodCIDR("10.1.0.0/16"), False, "! -s 10.1.0.0/16 -j KUBE-MARK-MASQ", id="by address"
        ),
        pytest.param(PodInterface("cbr0"), False, "! -i cbr0 -j KUBE-MARK-MASQ", id="by bridge"),
        pytest.param(
            PodInterfacePrefix("veth"), False, "! -i veth+ -j KUBE-MARK-MASQ", id="by prefix"
        ),
        pytest.param(PodCIDR("10.1.0.0/16"), True, "-j KUBE-MARK-MASQ", id="all"),
        pytest.param(None, True, "-j KUBE-MARK-MASQ", id="all, no detector"),
        pytest.param(None, False, None, id="no detector"),
    ],
)
@pytest.mark.parametrize(("policy", "chain"), [("Cluster", SVC), ("Local", SVL)])
def test_masquerading_at_the_head_of_the_internal_chain(
    policy, chain, pods, masquerade_all, expected
):
    node = msgspec.structs.replace(NODE, pod_traffic=pods, masquerade_all=masquerade_all)
    head = [] if expected is None else [f"{INTERNAL} {CLUSTER_IP} {expected}"]
    assert [*head, TO_HERE] == rules(web(internal_policy=policy), HERE, node=node, chain=chain)


def test_external_traffic_under_cluster_policy_is_always_masqueraded():
    assert rules(load_balancer(), THERE, chain=EXT) == [
        '-m comment --comment "masquerade traffic for shop/web:http external destinations" '
        "-j KUBE-MARK-MASQ",
        f"-j {SVC}",
    ]


def short_circuit(pods):
    name = "shop/web:http external destinations"
    head = [f'-m comment --comment "pod traffic for {name}" {pods} -j {SVC}'] if pods else []
    return [
        *head,
        f'-m comment --comment "masquerade LOCAL traffic for {name}" '
        "-m addrtype --src-type LOCAL -j KUBE-MARK-MASQ",
        f'-m comment --comment "route LOCAL traffic for {name}" '
        f"-m addrtype --src-type LOCAL -j {SVC}",
    ]


@pytest.mark.parametrize(
    ("pods", "endpoints", "expected"),
    [
        pytest.param(
            PodCIDR("10.1.0.0/16"),
            [HERE],
            [*short_circuit("-s 10.1.0.0/16"), f"-j {SVL}"],
            id="here",
        ),
        pytest.param(
            PodCIDR("10.1.0.0/16"), [THERE], short_circuit("-s 10.1.0.0/16"), id="elsewhere"
        ),
        pytest.param(PodInterface("cbr0"), [THERE], short_circuit("-i cbr0"), id="bridge"),
        pytest.param(PodInterfacePrefix("veth"), [THERE], short_circuit("-i veth+"), id="prefix"),
        pytest.param(None, [HERE], [*short_circuit(None), f"-j {SVL}"], id="no detector"),
    ],
)
def test_external_traffic_under_local_policy(pods, endpoints, expected):
    node = msgspec.structs.replace(NODE, pod_traffic=pods)
    svc = load_balancer(external_policy="Local")
    assert expected == rules(svc, *endpoints, node=node, chain=EXT)


@pytest.mark.parametrize(
    ("svc", "endpoints", "expected"),
    [
        pytest.param(web(), [THERE], {SVC}, id="cluster IP"),
        pytest.param(web(internal_policy="Local"), [HERE, THERE], {SVL}, id="internal Local"),
        pytest.param(
            web(internal_policy="Local", node_port=30080),
            [HERE, THERE],
            {SVC, SVL, EXT},
            id="internal Local with a node port",
        ),
        pytest.param(web(node_port=30080), [THERE], {SVC, EXT}, id="node port"),
        pytest.param(
            load_balancer(external_policy="Local"),
            [THERE],
            {SVC, EXT, FW},
            id="external Local, only elsewhere",
        ),
        pytest.param(
            load_balancer(external_policy="Local"),
            [HERE],
            {SVC, SVL, EXT, FW},
            id="external Local, here",
        ),
        pytest.param(load_balancer(), [], set(), id="no endpoints"),
    ],
)
def test_which_chains_a_port_has(svc, endpoints, expected):
    chains = {
        key.name
        for key in objects(svc, *endpoints)
        if isinstance(key, Chain) and not key.name.startswith("KUBE-SEP-")
    }
    assert expected == chains


def test_the_firewall_lets_the_vip_in_where_a_range_holds_the_node():
    svc = load_balancer(source_ranges=["192.0.2.0/24", "198.51.100.0/24"])
    comment = '-m comment --comment "shop/web:http loadbalancer IP"'
    assert rules(svc, THERE, chain=FW) == [
        f"{comment} -s 192.0.2.0/24 -j {EXT}",
        f"{comment} -s 198.51.100.0/24 -j {EXT}",
        f"{comment} -s 192.0.2.10 -j {EXT}",
        '-m comment --comment "other traffic to shop/web:http will be dropped by '
        'KUBE-PROXY-FIREWALL"',
    ]


def test_the_firewall_comes_before_the_external_chain():
    (rule,) = dispatch(load_balancer(), THERE, chain="KUBE-SERVICES", address="192.0.2.10")
    assert rule.endswith(f"-j {FW}")


def test_affinity_is_looked_up_before_any_draw():
    comment = '-m comment --comment "shop/web:http -> '
    half = "-m statistic --mode random --probability 0.5000000000"
    assert rules(web(affinity_seconds=60), HERE, THERE, chain=SVC)[1:] == [
        f'{comment}10.1.0.5:8080" -m recent --name {SEP_HERE} --rcheck --seconds 60 --reap '
        f"-j {SEP_HERE}",
        f'{comment}10.1.1.6:8080" -m recent --name {SEP_THERE} --rcheck --seconds 60 --reap '
        f"-j {SEP_THERE}",
        f'{comment}10.1.0.5:8080" {half} -j {SEP_HERE}',
        f'{comment}10.1.1.6:8080" -j {SEP_THERE}',
    ]


def test_affinity_is_remembered_where_the_address_is_translated():
    assert rules(web(affinity_seconds=60), HERE, chain=SEP_HERE) == [
        "-m comment --comment shop/web:http -s 10.1.0.5 -j KUBE-MARK-MASQ",
        f"-m comment --comment shop/web:http -m recent --name {SEP_HERE} --set -m tcp -p tcp "
        "-j DNAT --to-destination 10.1.0.5:8080",
    ]


def route_of(count, family=Family.IPV4):
    endpoints = tuple(
        Endpoint(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 80, node_local=False)
        for n in range(count)
    )
    return Route(PortKey(ServiceKey("ns", "svc"), "", Protocol.TCP), (), endpoints, ())


def chances(count):
    compiled = IptablesCompiler(SETTINGS).compile(route_of(count), NODE)
    (picks,) = (v for k, v in compiled.items() if k.name.startswith("KUBE-SVC-"))
    return [rule.split("--probability ")[1].split()[0] for rule in picks if "statistic" in rule]


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(1, [], id="one is always taken"),
        pytest.param(2, ["0.5000000000"], id="two"),
        pytest.param(3, ["0.3333333333", "0.5000000000"], id="three"),
        pytest.param(
            7,
            ["0.1428571429", "0.1666666667", "0.2000000000", "0.2500000000", "0.3333333333",
             "0.5000000000"],
            id="seven",
        ),
    ],
)  # fmt: skip
def test_probabilities_have_ten_decimals(count, expected):
    assert expected == chances(count)


def test_one_endpoint_more_is_one_chance_less_even_among_many():
    first, second = chances(100_001)[:2]
    assert (first, second) == ("0.0000099999", "0.0000100000")


def test_topology_keeps_the_chains_of_both_pools():
    # The cluster pool holds r (zone a), the local pool h (zone b).
    hinted = [
        endpoint("10.1.0.5", node="node", zones=["b"]),
        endpoint("10.1.1.6", node="other", zones=["a"]),
    ]
    node = msgspec.structs.replace(NODE, zone="a")
    compiled = by_chain(objects(load_balancer(external_policy="Local"), *hinted, node=node))
    assert {("nat", SEP_HERE), ("nat", SEP_THERE)} <= compiled.keys()


def test_local_traffic_only_needs_chains_of_local_endpoints():
    compiled = by_chain(objects(web(internal_policy="Local"), HERE, THERE))
    assert ("nat", SEP_THERE) not in compiled


# --- §10, large clusters ---


@pytest.mark.parametrize(
    ("total", "commented"), [(1000, True), (1001, False)], ids=["at the limit", "above it"]
)
def test_rules_about_endpoints_lose_their_comments_in_a_large_cluster(total, commented):
    found = by_chain(objects(web(), HERE, total=total))
    expected = f"-j {SEP_HERE}"
    if commented:
        expected = TO_HERE
    assert expected == found["nat", SVC][1]


def test_rules_of_endpoint_chains_lose_their_comments_in_a_large_cluster():
    assert rules(web(), HERE, chain=SEP_HERE, total=1001) == [
        "-s 10.1.0.5 -j KUBE-MARK-MASQ",
        "-m tcp -p tcp -j DNAT --to-destination 10.1.0.5:8080",
    ]


@pytest.mark.parametrize("chain", ["KUBE-SERVICES", "KUBE-NODEPORTS", EXT, FW])
def test_no_other_rule_loses_its_comment_in_a_large_cluster(chain):
    svc = load_balancer(external_policy="Local")
    small = rules(svc, HERE, chain=chain)
    assert small == rules(svc, HERE, chain=chain, total=5000)


# --- IPv6 ---

WEB6 = {
    "cluster_ip": "fd00:96::14",
    "vips": ["2001:db8::10"],
    "source_ranges": ["2001:db8:51::/64"],
}
HERE6 = endpoint("fd00:10:1::5", node="node")


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        pytest.param(
            "KUBE-SERVICES",
            f"{INTERNAL} {MATCH} fd00:96::14 --dport 80 -j {SVC}",
            id="matches are bare",
        ),
        pytest.param(
            SVC,
            f"{INTERNAL} {MATCH} fd00:96::14 --dport 80 ! -s fd00:10:1::/48 -j KUBE-MARK-MASQ",
            id="masquerade",
        ),
        pytest.param(
            FW,
            f'-m comment --comment "shop/web:http loadbalancer IP" -s 2001:db8:51::/64 -j {EXT}',
            id="ranges",
        ),
    ],
)
def test_ipv6_rules(chain, expected):
    svc = load_balancer(**WEB6)
    assert expected == rules(svc, HERE6, node=NODE6, settings=SETTINGS6, chain=chain)[0]


def test_ipv6_endpoints_are_bracketed_where_a_port_follows():
    svc = load_balancer(**WEB6)
    compiled = by_chain(objects(svc, HERE6, node=NODE6, settings=SETTINGS6))
    (found,) = (v for (_, name), v in compiled.items() if name.startswith("KUBE-SEP-"))
    assert found == [
        "-m comment --comment shop/web:http -s fd00:10:1::5 -j KUBE-MARK-MASQ",
        "-m comment --comment shop/web:http -m tcp -p tcp "
        "-j DNAT --to-destination [fd00:10:1::5]:8080",
    ]


# --- §15, cross-checks ---


def count(services):
    compiled = dict(base())
    for svc, endpoints in services:
        compiled |= {(svc.key, key): value for key, value in objects_of(svc, endpoints).items()}
    tables = {"filter": 0, "nat": 0}
    for key, value in compiled.items():
        key = key if not isinstance(key, tuple) else key[1]
        if not isinstance(key, Jump):
            tables[key.table] = tables.get(key.table, 0) + len(value)
    return tables["filter"], tables["nat"]


def objects_of(svc, endpoint_count):
    endpoints = [endpoint(f"10.1.0.{n}", node="other") for n in range(1, endpoint_count + 1)]
    slices = [slice_(svc.key.name, *endpoints)]
    (route,) = service_routes(svc, slices, NODE).routes
    return IptablesCompiler(SETTINGS).compile(route, NODE)


def plain(number):
    return service(f"s{number}", cluster_ip=f"10.96.0.{number}")


BALANCED = service(
    "lb",
    type="LoadBalancer",
    ports=[port(80, node_port=30080)],
    external_ips=["203.0.113.2"],
    vips=["203.0.113.1"],
    source_ranges=["198.51.100.0/24"],
)


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        pytest.param([], (4, 5), id="none"),
        *(
            pytest.param([(plain(1), n)], expected, id=f"1 with {n}")
            for n, expected in [(0, (5, 5)), (1, (4, 10)), (2, (4, 13)), (10, (4, 37))]
        ),
        *(
            pytest.param([(plain(s), n) for s in range(10)], expected, id=f"10 with {n}")
            for n, expected in [(0, (14, 5)), (1, (4, 55)), (2, (4, 85)), (10, (4, 325))]
        ),
        *(
            pytest.param([(BALANCED, n)], expected, id=f"load balancer with {n}")
            for n, expected in [(0, (8, 5)), (1, (5, 18)), (2, (5, 21)), (10, (5, 45))]
        ),
    ],
)
def test_the_number_of_rules(services, expected):
    assert expected == count(services)


# --- keys ---


def test_compiling_twice_gives_the_same_in_the_same_order():
    endpoints = [endpoint(f"10.1.0.{n}", node="node") for n in range(20)]
    svc = load_balancer(external_policy="Local")
    chains = [k.name for k in objects(svc, *endpoints) if isinstance(k, Chain)]
    expected_heads = [EXT, FW, SVC, SVL]
    picks = rules(svc, *endpoints, chain=SVC)
    seps = [rule.split(" -j ")[1] for rule in picks if " -j KUBE-SEP-" in rule]
    assert [*expected_heads, *seps] == chains


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        pytest.param({}, {}, True, id="same address and port"),
        pytest.param({"number": 81}, {}, False, id="another port"),
        pytest.param({"protocol": "UDP"}, {}, False, id="another protocol"),
    ],
)
def test_services_compete_for_address_port_and_protocol(one, other, expected):
    def keys(name, number=80, protocol="TCP"):
        svc = service(
            name,
            cluster_ip=f"10.96.0.{ord(name)}",
            external_ips=["203.0.113.2"],
            ports=[port(number, "", protocol)],
        )
        return {k for k in objects(svc) if IptablesCompiler(SETTINGS).claim(k)}

    assert expected is bool(keys("a", **one) & keys("b", **other))


def test_services_compete_for_node_ports():
    def keys(name):
        svc = service(name, cluster_ip=f"10.96.0.{ord(name)}", ports=[port(80, node_port=30080)])
        return {k for k in objects(svc) if IptablesCompiler(SETTINGS).claim(k)}

    assert len(keys("a") & keys("b")) == 1


def test_the_first_of_two_equal_addresses_of_one_service_keeps_it():
    svc = web(external_ips=["192.0.2.10"], vips=["192.0.2.10"])
    found = dispatch(svc, THERE, chain="KUBE-SERVICES", address="192.0.2.10")
    assert [r.split(" -m tcp")[0] for r in found] == [
        '-m comment --comment "shop/web:http external IP"'
    ]
