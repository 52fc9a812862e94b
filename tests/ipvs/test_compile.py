"""What a Service becomes: virtual servers (as ipvsadm lists them), addresses, entries, rules."""

from __future__ import annotations

from textwrap import dedent

import msgspec
import pytest

from pykubeproxy.iptables.objects import Chain, DispatchRule, Jump, SharedChain
from pykubeproxy.ipvs.compile import (
    IpvsCompiler,
    IpvsSettings,
    scheduler_problem,
)
from pykubeproxy.ipvs.names import SCHEDULERS, SETS
from pykubeproxy.ipvs.netfilter import fixed_rules, set_types
from pykubeproxy.ipvs.objects import (
    MH_PORT,
    PERSISTENT,
    BoundAddress,
    IPSet,
    Present,
    Real,
    SetEntry,
    Virtual,
    VirtualConfig,
)
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.sync.routes import service_routes
from tests.build import endpoint, port, service, slice_, slice_port

SETTINGS = IpvsSettings()
NODE = NodeContext(
    "node",
    Family.IPV4,
    address="192.0.2.1",
    addresses=("10.1.0.1", "192.0.2.1"),
    pod_traffic=PodCIDR("10.1.0.0/16"),
)
NODE6 = NodeContext(
    "node",
    Family.IPV6,
    address="2001:db8::1",
    addresses=("2001:db8::1",),
    pod_traffic=PodCIDR("fd00:10:1::/48"),
)

HERE = endpoint("10.1.0.5", node="node")
THERE = endpoint("10.1.1.6", node="other")


def web(**fields):
    protocol = fields.pop("protocol", "TCP")
    http = port(80, "http", protocol, node_port=fields.pop("node_port", None))
    return service("web", **{"cluster_ip": "10.96.0.20", "ports": [http], **fields})


def load_balancer(**fields):
    return web(**{"type": "LoadBalancer", "vips": ["203.0.113.1"], **fields})


def routes_of(svc, *endpoints, node=NODE, protocol="TCP"):
    slices = [slice_("web", *endpoints, ports=[slice_port(8080, "http", protocol)])]
    return service_routes(svc, slices, node).routes


def objects(svc, *endpoints, node=NODE, settings=SETTINGS, protocol="TCP"):
    compiler = IpvsCompiler(settings)
    found = {}
    for route in routes_of(svc, *endpoints, node=node, protocol=protocol):
        found |= compiler.compile(route, node)
    return found


def dump(compiled):
    """Virtual servers with their real servers in order, addresses, entries by set, rules."""
    servers = []
    for virtual, config in compiled.items():
        if isinstance(virtual, Virtual):
            servers.append(f"{virtual} {config.scheduler}")
            servers += [
                f"  -> {real.address}:{real.port} weight {weight}"
                for real, weight in compiled.items()
                if isinstance(real, Real) and real.virtual == virtual
            ]
    addresses = [str(key) for key in compiled if isinstance(key, BoundAddress)]
    entries = sorted(f"{k.set} {k.entry}" for k in compiled if isinstance(k, SetEntry))
    rules = [
        f"{key.table} -A {key.chain} {rule}"
        for key, value in compiled.items()
        if isinstance(key, DispatchRule)
        for rule in value
    ]
    return [*servers, *addresses, *entries, *rules]


def text(block):
    return dedent(block).strip().splitlines()


def entries(compiled, *names):
    return sorted(
        f"{key.set} {key.entry}"
        for key in compiled
        if isinstance(key, SetEntry) and (not names or key.set in names)
    )


def reals(compiled, address):
    return [
        key.address for key in compiled if isinstance(key, Real) and key.virtual.address == address
    ]


# --- one Service of each kind ---


def test_a_cluster_ip():
    assert dump(objects(web(), HERE, THERE)) == text("""
        tcp 10.96.0.20:80 rr
          -> 10.1.0.5:8080 weight 1
          -> 10.1.1.6:8080 weight 1
        address 10.96.0.20
        KUBE-CLUSTER-IP 10.96.0.20,tcp:80
        KUBE-IPVS-IPS 10.96.0.20
        KUBE-LOOP-BACK 10.1.0.5,tcp:8080,10.1.0.5
    """)


def test_external_ips():
    assert dump(objects(web(external_ips=["203.0.113.2"]), THERE)) == text("""
        tcp 10.96.0.20:80 rr
          -> 10.1.1.6:8080 weight 1
        tcp 203.0.113.2:80 rr
          -> 10.1.1.6:8080 weight 1
        address 10.96.0.20
        address 203.0.113.2
        KUBE-CLUSTER-IP 10.96.0.20,tcp:80
        KUBE-EXTERNAL-IP 203.0.113.2,tcp:80
        KUBE-IPVS-IPS 10.96.0.20
        KUBE-IPVS-IPS 203.0.113.2
    """)


def test_a_node_port():
    assert dump(objects(web(type="NodePort", node_port=30080), THERE)) == text("""
        tcp 10.96.0.20:80 rr
          -> 10.1.1.6:8080 weight 1
        tcp 10.1.0.1:30080 rr
          -> 10.1.1.6:8080 weight 1
        tcp 192.0.2.1:30080 rr
          -> 10.1.1.6:8080 weight 1
        address 10.96.0.20
        KUBE-CLUSTER-IP 10.96.0.20,tcp:80
        KUBE-IPVS-IPS 10.96.0.20
        KUBE-NODE-PORT-TCP 30080
    """)


def test_a_load_balancer_with_a_local_policy():
    svc = load_balancer(
        node_port=30080,
        external_ips=["203.0.113.2"],
        external_policy="Local",
        health_check_node_port=31000,
    )
    assert dump(objects(svc, HERE, THERE)) == text("""
        tcp 10.96.0.20:80 rr
          -> 10.1.0.5:8080 weight 1
          -> 10.1.1.6:8080 weight 1
        tcp 203.0.113.2:80 rr
          -> 10.1.0.5:8080 weight 1
        tcp 203.0.113.1:80 rr
          -> 10.1.0.5:8080 weight 1
        tcp 10.1.0.1:30080 rr
          -> 10.1.0.5:8080 weight 1
        tcp 192.0.2.1:30080 rr
          -> 10.1.0.5:8080 weight 1
        address 10.96.0.20
        address 203.0.113.2
        address 203.0.113.1
        KUBE-CLUSTER-IP 10.96.0.20,tcp:80
        KUBE-EXTERNAL-IP-LOCAL 203.0.113.2,tcp:80
        KUBE-HEALTH-CHECK-NODE-PORT 31000
        KUBE-IPVS-IPS 10.96.0.20
        KUBE-IPVS-IPS 203.0.113.1
        KUBE-IPVS-IPS 203.0.113.2
        KUBE-LOAD-BALANCER 203.0.113.1,tcp:80
        KUBE-LOAD-BALANCER-LOCAL 203.0.113.1,tcp:80
        KUBE-LOOP-BACK 10.1.0.5,tcp:8080,10.1.0.5
        KUBE-NODE-PORT-LOCAL-TCP 30080
        KUBE-NODE-PORT-TCP 30080
    """)


def test_a_load_balancer_with_source_ranges():
    svc = load_balancer(source_ranges=["198.51.100.0/24", "198.51.101.7/32"])
    assert dump(objects(svc)) == text("""
        tcp 10.96.0.20:80 rr
        tcp 203.0.113.1:80 rr
        address 10.96.0.20
        address 203.0.113.1
        KUBE-CLUSTER-IP 10.96.0.20,tcp:80
        KUBE-IPVS-IPS 10.96.0.20
        KUBE-IPVS-IPS 203.0.113.1
        KUBE-LOAD-BALANCER 203.0.113.1,tcp:80
        KUBE-LOAD-BALANCER-FW 203.0.113.1,tcp:80
        KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.1,tcp:80,198.51.100.0/24
        KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.1,tcp:80,198.51.101.7
        filter -A KUBE-IPVS-OUT-FILTER -s 203.0.113.1/32 -m ipvs --vproto 6 --vaddr 203.0.113.1 --vport 80 -j DROP
    """)  # fmt: skip  # noqa: E501


def test_ipv6():
    svc = load_balancer(
        cluster_ip="fd00:96::14",
        vips=["2001:db8:1::1"],
        source_ranges=["2001:db8:51::7/128"],
        node_port=30080,
    )
    pod = endpoint("fd00:10:1::5", node="node")
    assert dump(objects(svc, pod, node=NODE6)) == text("""
        tcp [fd00:96::14]:80 rr
          -> fd00:10:1::5:8080 weight 1
        tcp [2001:db8:1::1]:80 rr
          -> fd00:10:1::5:8080 weight 1
        tcp [2001:db8::1]:30080 rr
          -> fd00:10:1::5:8080 weight 1
        address fd00:96::14
        address 2001:db8:1::1
        KUBE-6-CLUSTER-IP fd00:96::14,tcp:80
        KUBE-6-IPVS-IPS 2001:db8:1::1
        KUBE-6-IPVS-IPS fd00:96::14
        KUBE-6-LOAD-BALANCER 2001:db8:1::1,tcp:80
        KUBE-6-LOAD-BALANCER-FW 2001:db8:1::1,tcp:80
        KUBE-6-LOAD-BALANCER-SOURCE-CID 2001:db8:1::1,tcp:80,2001:db8:51::7
        KUBE-6-LOOP-BACK fd00:10:1::5,tcp:8080,fd00:10:1::5
        KUBE-6-NODE-PORT-TCP 30080
        filter -A KUBE-IPVS-OUT-FILTER -s 2001:db8:1::1/128 -m ipvs --vproto 6 --vaddr 2001:db8:1::1 --vport 80 -j DROP
    """)  # fmt: skip  # noqa: E501


# --- endpoints ---


@pytest.mark.parametrize(
    "svc",
    [
        pytest.param(web(), id="no policy"),
        pytest.param(web(internal_policy="Local"), id="internal Local"),
        pytest.param(load_balancer(external_policy="Local"), id="external Local"),
    ],
)
def test_a_virtual_server_stands_without_endpoints(svc):
    compiled = objects(svc)
    assert any(isinstance(key, Virtual) for key in compiled)
    assert not any(isinstance(key, Real | DispatchRule) for key in compiled)


VIP = "203.0.113.1"


@pytest.mark.parametrize(
    ("svc", "address", "endpoints", "expected"),
    [
        pytest.param(
            load_balancer(external_policy="Local"), VIP, [HERE, THERE], ["10.1.0.5"],
            id="external Local, here",
        ),
        pytest.param(
            load_balancer(external_policy="Local"), VIP, [THERE], ["10.1.1.6"],
            id="external Local, only elsewhere",
        ),
        pytest.param(
            load_balancer(external_policy="Local"), "10.96.0.20", [HERE, THERE],
            ["10.1.0.5", "10.1.1.6"], id="the cluster IP beside it",
        ),
        pytest.param(
            web(internal_policy="Local"), "10.96.0.20", [HERE, THERE], ["10.1.0.5"],
            id="internal Local, here",
        ),
        pytest.param(
            web(internal_policy="Local"), "10.96.0.20", [THERE], [],
            id="internal Local, only elsewhere",
        ),
        pytest.param(
            load_balancer(internal_policy="Local"), "10.96.0.20", [THERE], ["10.1.1.6"],
            id="internal Local, only elsewhere, but reachable from outside",
        ),
        pytest.param(
            load_balancer(internal_policy="Local"), VIP, [HERE, THERE],
            ["10.1.0.5", "10.1.1.6"], id="the load balancer beside it",
        ),
    ],
)  # fmt: skip
def test_local_policies_fall_back_to_all_endpoints(svc, address, endpoints, expected):
    assert expected == reals(objects(svc, *endpoints), address)


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param({}, id="ready"),
        pytest.param({"ready": False}, id="not ready"),
        pytest.param({"ready": False, "serving": False, "terminating": True}, id="gone"),
    ],
)
def test_every_endpoint_here_may_meet_itself_whatever_its_condition(conditions):
    svc = web(protocol="UDP")
    pods = [endpoint("10.1.0.5", node="node", **conditions), THERE]
    found = entries(objects(svc, *pods, protocol="UDP"), "KUBE-LOOP-BACK")
    assert ["KUBE-LOOP-BACK 10.1.0.5,udp:8080,10.1.0.5"] == found


# --- addresses ---


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"external_ips": ["192.0.2.1"]}, id="external IP"),
        pytest.param({"vips": ["192.0.2.1"], "type": "LoadBalancer"}, id="load balancer"),
    ],
)
def test_an_address_of_another_interface_is_served_but_not_bound(fields):
    compiled = objects(web(**fields), THERE)
    assert VirtualConfig("rr") == compiled[Virtual(Protocol.TCP, "192.0.2.1", 80)]
    assert BoundAddress("192.0.2.1") not in compiled
    assert ["KUBE-IPVS-IPS 10.96.0.20"] == entries(compiled, "KUBE-IPVS-IPS")


def test_a_cluster_ip_is_bound_even_if_another_interface_has_it():
    node = msgspec.structs.replace(NODE, addresses=("10.96.0.20",))
    compiled = objects(web(), node=node)
    assert Present() == compiled[BoundAddress("10.96.0.20")]
    assert ["KUBE-IPVS-IPS 10.96.0.20"] == entries(compiled, "KUBE-IPVS-IPS")


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        pytest.param(NODE, ["10.1.0.1", "192.0.2.1"], id="every address"),
        pytest.param(
            msgspec.structs.replace(NODE, nodeport_addresses=("192.0.2.1",)),
            ["192.0.2.1"],
            id="listed ones",
        ),
        pytest.param(
            msgspec.structs.replace(NODE, nodeport_addresses=("127.0.0.1", "192.0.2.1")),
            ["192.0.2.1"],
            id="never loopback",
        ),
        pytest.param(
            msgspec.structs.replace(NODE, nodeport_addresses=("127.0.0.1",)), [], id="none"
        ),
        pytest.param(
            msgspec.structs.replace(NODE6, nodeport_addresses=("::1", "2001:db8::1")),
            ["2001:db8::1"],
            id="never loopback, IPv6",
        ),
    ],
)
def test_where_node_ports_are_served(node, expected):
    cluster_ip = "10.96.0.20" if node.family is Family.IPV4 else "fd00:96::14"
    compiled = objects(web(type="NodePort", node_port=30080, cluster_ip=cluster_ip), node=node)
    found = [k.address for k in compiled if isinstance(k, Virtual) and k.port == 30080]
    assert expected == found
    assert not any(BoundAddress(address) in compiled for address in expected)


@pytest.mark.parametrize(
    ("addresses", "node_port", "expected"),
    [
        pytest.param(("192.0.2.1",), 30080, True, id="a node address"),
        pytest.param((), 30080, False, id="no node address"),
        pytest.param((), None, True, id="no node address, but no node port either"),
    ],
)
def test_load_balancers_see_a_node_only_if_its_node_port_is_served(addresses, node_port, expected):
    svc = load_balancer(node_port=node_port, external_policy="Local", health_check_node_port=31000)
    node = msgspec.structs.replace(NODE, addresses=addresses)
    compiled = objects(svc, HERE, node=node)
    sets = ("KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-NODE-PORT-TCP", "KUBE-NODE-PORT-LOCAL-TCP")
    served = node_port is not None and addresses
    assert [
        *(["KUBE-HEALTH-CHECK-NODE-PORT 31000"] if expected else []),
        *(["KUBE-NODE-PORT-LOCAL-TCP 30080", "KUBE-NODE-PORT-TCP 30080"] if served else []),
    ] == entries(compiled, *sets)


# --- sets ---


@pytest.mark.parametrize(
    ("protocol", "policy", "expected"),
    [
        pytest.param("TCP", "Cluster", ["KUBE-NODE-PORT-TCP 30080"], id="TCP"),
        pytest.param(
            "TCP", "Local", ["KUBE-NODE-PORT-LOCAL-TCP 30080", "KUBE-NODE-PORT-TCP 30080"],
            id="TCP, Local",
        ),
        pytest.param("UDP", "Cluster", ["KUBE-NODE-PORT-UDP 30080"], id="UDP"),
        pytest.param(
            "UDP", "Local", ["KUBE-NODE-PORT-LOCAL-UDP 30080", "KUBE-NODE-PORT-UDP 30080"],
            id="UDP, Local",
        ),
        pytest.param(
            "SCTP", "Cluster",
            [
                "KUBE-NODE-PORT-SCTP-HASH 10.1.0.1,sctp:30080",
                "KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30080",
            ],
            id="SCTP",
        ),
        pytest.param(
            "SCTP", "Local",
            [
                "KUBE-NODE-PORT-LOCAL-SCTP-HASH 10.1.0.1,sctp:30080",
                "KUBE-NODE-PORT-LOCAL-SCTP-HASH 192.0.2.1,sctp:30080",
                "KUBE-NODE-PORT-SCTP-HASH 10.1.0.1,sctp:30080",
                "KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30080",
            ],
            id="SCTP, Local",
        ),
    ],
)  # fmt: skip
def test_sets_of_node_ports(protocol, policy, expected):
    svc = web(type="NodePort", node_port=30080, protocol=protocol, external_policy=policy)
    compiled = objects(svc, protocol=protocol)
    assert expected == [e for e in entries(compiled) if e.startswith("KUBE-NODE-PORT")]


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_entries_name_the_protocol(protocol):
    compiled = objects(web(protocol=protocol), protocol=protocol)
    expected = f"KUBE-CLUSTER-IP 10.96.0.20,{protocol.lower()}:80"
    assert [expected] == entries(compiled, "KUBE-CLUSTER-IP")


def out_filter(compiled):
    return {key.match: value for key, value in compiled.items() if isinstance(key, DispatchRule)}


def test_a_range_that_holds_the_node_lets_the_vip_in_and_drops_nothing_here():
    svc = load_balancer(source_ranges=["192.0.2.0/24"], vips=[VIP, "203.0.113.9"])
    compiled = objects(svc)
    assert [
        "KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.1,tcp:80,192.0.2.0/24",
        "KUBE-LOAD-BALANCER-SOURCE-CIDR 203.0.113.9,tcp:80,192.0.2.0/24",
        "KUBE-LOAD-BALANCER-SOURCE-IP 203.0.113.1,tcp:80,203.0.113.1",
        "KUBE-LOAD-BALANCER-SOURCE-IP 203.0.113.9,tcp:80,203.0.113.9",
    ] == entries(compiled, "KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-LOAD-BALANCER-SOURCE-IP")
    assert {} == out_filter(compiled)


@pytest.mark.parametrize(("protocol", "number"), [("TCP", 6), ("UDP", 17), ("SCTP", 132)])
def test_ranges_without_the_node_drop_what_it_sends_itself(protocol, number):
    svc = load_balancer(protocol=protocol, source_ranges=["198.51.100.0/24"])
    assert {
        f"{protocol.lower()} 203.0.113.1 80": (
            f"-s 203.0.113.1/32 -m ipvs --vproto {number} --vaddr 203.0.113.1 --vport 80 -j DROP",
        )
    } == out_filter(objects(svc, protocol=protocol))


def test_ranges_guard_nothing_but_load_balancers():
    svc = load_balancer(source_ranges=["198.51.100.0/24"], external_ips=["203.0.113.2"])
    assert ["KUBE-LOAD-BALANCER-FW 203.0.113.1,tcp:80"] == entries(
        objects(svc), "KUBE-LOAD-BALANCER-FW"
    )


def test_a_range_of_everybody_is_none():
    (route,) = routes_of(load_balancer(source_ranges=["198.51.100.0/24"]))
    frontends = tuple(
        msgspec.structs.replace(f, source_ranges=("198.51.100.0/24", "0.0.0.0/0"))
        for f in route.frontends
    )
    compiled = IpvsCompiler(SETTINGS).compile(
        msgspec.structs.replace(route, frontends=frontends), NODE
    )
    assert not [e for e in entries(compiled) if "SOURCE" in e or "FW" in e]
    assert {} == out_filter(compiled)


# --- one address for two purposes ---


def test_the_first_of_two_equal_addresses_of_one_service_keeps_it():
    svc = load_balancer(external_ips=["10.96.0.20"], vips=["10.96.0.20"], external_policy="Local")
    compiled = objects(svc, HERE, THERE)
    assert ["10.1.0.5", "10.1.1.6"] == reals(compiled, "10.96.0.20")
    assert [
        "KUBE-CLUSTER-IP 10.96.0.20,tcp:80",
        "KUBE-EXTERNAL-IP-LOCAL 10.96.0.20,tcp:80",
        "KUBE-IPVS-IPS 10.96.0.20",
        "KUBE-LOAD-BALANCER 10.96.0.20,tcp:80",
        "KUBE-LOAD-BALANCER-LOCAL 10.96.0.20,tcp:80",
        "KUBE-LOOP-BACK 10.1.0.5,tcp:8080,10.1.0.5",
    ] == entries(compiled)


VIRTUAL = Virtual(Protocol.TCP, "10.96.0.20", 80)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(VIRTUAL, VIRTUAL, id="virtual server"),
        pytest.param(Real(VIRTUAL, "10.1.0.5", 80), VIRTUAL, id="real server"),
        pytest.param(BoundAddress("10.96.0.20"), BoundAddress("10.96.0.20"), id="address"),
        pytest.param(SetEntry("S", "80"), SetEntry("S", "80"), id="entry"),
        pytest.param(
            DispatchRule("filter", "KUBE-IPVS-OUT-FILTER", "tcp 203.0.113.1 80"),
            DispatchRule("filter", "KUBE-IPVS-OUT-FILTER", "tcp 203.0.113.1 80"),
            id="rule",
        ),
        pytest.param(IPSet("S"), None, id="set"),
        pytest.param(Chain("nat", "KUBE-SERVICES"), None, id="chain"),
        pytest.param(SharedChain("filter", "KUBE-IPVS-OUT-FILTER"), None, id="shared chain"),
        pytest.param(Jump("nat", "OUTPUT", "KUBE-SERVICES"), None, id="jump"),
    ],
)
def test_what_services_compete_for(key, expected):
    assert expected == IpvsCompiler(SETTINGS).claim(key)


# --- how a virtual server chooses ---


def config(settings=SETTINGS, **fields):
    return objects(web(**fields), settings=settings)[VIRTUAL]


@pytest.mark.parametrize(
    ("default", "fields", "expected"),
    [
        pytest.param("rr", {}, VirtualConfig("rr"), id="default"),
        pytest.param("wlc", {}, VirtualConfig("wlc"), id="configured"),
        pytest.param("rr", {"scheduler": "lc"}, VirtualConfig("lc"), id="asked for"),
        pytest.param("mh", {}, VirtualConfig("mh", MH_PORT), id="mh counts ports"),
        pytest.param("rr", {"scheduler": "mh"}, VirtualConfig("mh", MH_PORT), id="mh asked for"),
        pytest.param("mh", {"scheduler": "rr"}, VirtualConfig("rr"), id="mh not asked for"),
        pytest.param(
            "rr",
            {"affinity_seconds": 60},
            VirtualConfig("rr", PERSISTENT, 60),
            id="persistent",
        ),
        pytest.param(
            "mh",
            {"affinity_seconds": 60},
            VirtualConfig("mh", PERSISTENT | MH_PORT, 60),
            id="persistence and ports are independent",
        ),
        pytest.param("rr", {"scheduler": "best"}, VirtualConfig("rr"), id="unknown"),
        pytest.param("own", {"scheduler": "best"}, VirtualConfig("own"), id="unknown default"),
    ],
)
def test_scheduler_flags_and_timeout(default, fields, expected):
    assert expected == config(IpvsSettings(scheduler=default), **fields)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        pytest.param("", "", id="none"),
        pytest.param("rr", "", id="the default"),
        pytest.param("lc", "", id="one that the node has"),
        pytest.param(
            "sed", "IPVS scheduler 'sed' is not available on this node; rr is used instead",
            id="one that it has not",
        ),
        pytest.param(
            "RR", "IPVS scheduler 'RR' does not exist; rr is used instead", id="in capitals"
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_scheduler(scheduler, expected):
    settings = IpvsSettings(schedulers=frozenset({"lc"}))
    assert expected == scheduler_problem(scheduler, settings)
    (route,) = routes_of(web(scheduler=scheduler))
    assert ((expected,) if expected else ()) == IpvsCompiler(settings).problems(route)
    assert config(settings, scheduler=scheduler).scheduler == (
        "rr" if expected or not scheduler else scheduler
    )


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_every_scheduler_of_linux_may_be_asked_for(scheduler):
    assert scheduler == config(scheduler=scheduler).scheduler


# --- what cannot be ---


@pytest.mark.parametrize("number", [0, -1, 65536])
def test_what_is_no_port_is_passed_over_and_named(number):
    svc = web(ports=[port(number, "http", node_port=30080)])
    (route,) = routes_of(svc, HERE)
    compiler = IpvsCompiler(SETTINGS)
    assert (f"{number} is no port number",) == compiler.problems(route)
    assert {30080} == {k.port for k in compiler.compile(route, NODE) if isinstance(k, Virtual)}


def test_an_endpoint_without_a_usable_port_is_passed_over_and_named():
    slices = [slice_("web", HERE, ports=[slice_port(70000, "http")])]
    (route,) = service_routes(web(), slices, NODE).routes
    compiler = IpvsCompiler(SETTINGS)
    assert ("70000 is no port number",) == compiler.problems(route)
    compiled = compiler.compile(route, NODE)
    assert [] == reals(compiled, "10.96.0.20")
    assert [] == entries(compiled, "KUBE-LOOP-BACK")


# --- the node ---


def test_a_new_node_is_noticed():
    compiler = IpvsCompiler(SETTINGS)
    (route,) = routes_of(web(external_ips=["192.0.2.9"]))
    before = compiler.compile(route, NODE)
    after = compiler.compile(route, msgspec.structs.replace(NODE, addresses=("192.0.2.9",)))
    assert {BoundAddress("192.0.2.9"), SetEntry("KUBE-IPVS-IPS", "192.0.2.9")} == (
        before.keys() - after.keys()
    )


def test_what_is_there_without_services():
    base = IpvsCompiler(SETTINGS).base(NODE)
    assert {**set_types(Family.IPV4), **fixed_rules(SETTINGS, NODE)} == base
    assert len(SETS) == sum(isinstance(key, IPSet) for key in base)


def test_the_size_of_the_cluster_changes_nothing():
    compiler = IpvsCompiler(SETTINGS)
    (route,) = routes_of(web(), HERE)
    before = compiler.compile(route, NODE)
    compiler.resize(100_000)
    assert before == compiler.compile(route, NODE)


def test_every_entry_is_for_a_set_that_exists():
    svc = load_balancer(
        node_port=30080,
        external_ips=["203.0.113.2"],
        external_policy="Local",
        health_check_node_port=31000,
        source_ranges=["192.0.2.0/24"],
    )
    compiled = objects(svc, HERE)
    names = {key.name for key in IpvsCompiler(SETTINGS).base(NODE) if isinstance(key, IPSet)}
    assert {key.set for key in compiled if isinstance(key, SetEntry)} <= names
