from __future__ import annotations

import msgspec
import pytest

from pykubeproxy.model.kinds import Action, Family, FrontendKind, Masquerade, Pool, Protocol
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import LoadBalancerIngress
from pykubeproxy.model.route import Verdict
from pykubeproxy.sync.routes import service_routes
from tests.build import endpoint, port, service, slice_, slice_port

PODS = PodCIDR("10.244.0.0/16")
NODE = NodeContext("node", Family.IPV4, address="192.0.2.10", pod_traffic=PODS)
NODE6 = NodeContext("node", Family.IPV6, address="2001:db8::10", pod_traffic=PodCIDR("fd00::/16"))
UNCONFIGURED = msgspec.structs.replace(NODE, pod_traffic=None)

HERE = endpoint("10.244.0.1", node="node")
THERE = endpoint("10.244.1.1", node="other")
DRAINING_THERE = endpoint("10.244.1.1", node="other", ready=False, terminating=True)
UNREADY_THERE = endpoint("10.244.1.1", node="other", ready=False)

VIP, EXTERNAL = "203.0.113.1", "203.0.113.2"


def routes(svc, *endpoints, node=NODE, ports=(8080,)):
    return service_routes(svc, [slice_("web", *endpoints, ports=ports)], node)


def only_route(svc, *endpoints, node=NODE):
    (route,) = routes(svc, *endpoints, node=node).routes
    return route


def frontend(svc, *endpoints, kind, node=NODE):
    return next(f for f in only_route(svc, *endpoints, node=node).frontends if f.kind is kind)


# --- what is a route at all ---


@pytest.mark.parametrize(
    "svc",
    [
        pytest.param(service(cluster_ip="None"), id="headless"),
        pytest.param(service(cluster_ip=""), id="no cluster IP yet"),
        pytest.param(service(cluster_ip=None), id="cluster IP unset"),
        pytest.param(service(type="ExternalName"), id="ExternalName with a cluster IP"),
        pytest.param(service(cluster_ip="fd00::1"), id="other family"),
        pytest.param(
            service(cluster_ip="fd00::1", cluster_ips=["fd00::1"], ip_families=["IPv6"]),
            id="other family, spelled out",
        ),
        pytest.param(
            service(cluster_ips=["10.96.0.1"], ip_families=["IPv6", "IPv4"]), id="no such index"
        ),
        pytest.param(service(cluster_ip="nonsense"), id="no address"),
        pytest.param(service(ports=()), id="no ports"),
        pytest.param(
            service(cluster_ip="fd00::1", external_ips=[EXTERNAL], vips=[VIP], type="LoadBalancer"),
            id="external addresses need a cluster IP of their family",
        ),
    ],
)
def test_some_services_have_no_routes(svc):
    assert routes(svc, HERE).routes == ()


@pytest.mark.parametrize(
    ("svc", "node", "expected"),
    [
        pytest.param(service(cluster_ip="10.96.0.1"), NODE, "10.96.0.1", id="no families listed"),
        pytest.param(service(cluster_ip="010.096.0.001"), NODE, "10.96.0.1", id="canonical"),
        pytest.param(
            service(cluster_ips=["10.96.0.1", "FD00::1"], ip_families=["IPv4", "IPv6"]),
            NODE6,
            "fd00::1",
            id="second of two families",
        ),
        pytest.param(
            service(
                cluster_ip="fd00::1",
                cluster_ips=["fd00::1", "10.96.0.9"],
                ip_families=["IPv6", "IPv4"],
            ),
            NODE,
            "10.96.0.9",
            id="by index, not by position of the family",
        ),
    ],
)
def test_the_cluster_ip_of_the_family_is_used(svc, node, expected):
    assert expected == only_route(svc, node=node).frontends[0].address


def test_ports_join_by_name_and_protocol():
    svc = service(ports=[port(80, "http"), port(53, "dns", "UDP"), port(53, "dns", "TCP")])
    ports = [slice_port(8080, "http"), slice_port(5353, "dns", "UDP")]
    found = {
        (r.key.port_name, r.key.protocol): [str(e) for e in r.cluster_endpoints]
        for r in routes(svc, HERE, ports=ports).routes
    }
    assert found == {
        ("http", Protocol.TCP): ["10.244.0.1:8080"],
        ("dns", Protocol.UDP): ["10.244.0.1:5353"],
        ("dns", Protocol.TCP): [],
    }


def test_an_unknown_protocol_is_passed_over_and_named():
    found = routes(service(ports=[port(80, "x", "QUIC"), port(81, "y")]), HERE)
    assert ([r.key.port_name for r in found.routes], found.problems) == (
        ["y"],
        ("spec.ports[x].protocol 'QUIC'",),
    )


# --- frontends ---


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "LoadBalancer"])
def test_every_kind_of_address_counts_for_every_type(kind):
    svc = service(type=kind, ports=[port(80, node_port=30080)], external_ips=[EXTERNAL], vips=[VIP])
    found = [(f.kind, f.address, f.port) for f in only_route(svc, HERE).frontends]
    assert found == [
        (FrontendKind.CLUSTER_IP, "10.96.0.1", 80),
        (FrontendKind.EXTERNAL_IP, EXTERNAL, 80),
        (FrontendKind.LOAD_BALANCER, VIP, 80),
        (FrontendKind.NODE_PORT, None, 30080),
    ]


@pytest.mark.parametrize(
    ("svc", "node", "kind", "expected"),
    [
        pytest.param(
            service(external_ips=["203.0.113.02", "fd00::9", " ", "x"]),
            NODE,
            FrontendKind.EXTERNAL_IP,
            ["203.0.113.2"],
            id="external IPs of the family, canonical",
        ),
        pytest.param(
            service(external_ips=[EXTERNAL]),
            msgspec.structs.replace(NODE, allow_external_ips=False),
            FrontendKind.EXTERNAL_IP,
            [],
            id="external IPs switched off",
        ),
        pytest.param(
            service(vips=[LoadBalancerIngress(VIP, "VIP"), LoadBalancerIngress(EXTERNAL, "Proxy")]),
            NODE,
            FrontendKind.LOAD_BALANCER,
            [VIP],
            id="ipMode Proxy makes nothing",
        ),
        pytest.param(
            service(vips=[LoadBalancerIngress(), "fd00::9", VIP]),
            NODE,
            FrontendKind.LOAD_BALANCER,
            [VIP],
            id="hostnames and the other family make nothing",
        ),
    ],
)
def test_addresses_that_count(svc, node, kind, expected):
    found = [f.address for f in only_route(svc, HERE, node=node).frontends if f.kind is kind]
    assert expected == found


@pytest.mark.parametrize(
    ("svc", "expected"),
    [
        pytest.param(
            service(external_ips=["x", " "]),
            ("spec.externalIPs: 'x' is no IP address",),
            id="external IP, but not a blank one",
        ),
        pytest.param(
            service(source_ranges=["10.0.0.1"], vips=[VIP]),
            ("spec.loadBalancerSourceRanges: '10.0.0.1' is no CIDR",),
            id="source range",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_named(svc, expected):
    assert expected == routes(svc, HERE).problems


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        pytest.param([], (), id="none"),
        pytest.param(["198.51.100.0/24"], ("198.51.100.0/24",), id="one"),
        pytest.param([" 198.51.100.7/24 "], ("198.51.100.0/24",), id="trimmed and masked"),
        pytest.param(["198.51.100.000/024"], ("198.51.100.0/24",), id="leading zeros"),
        pytest.param(["198.51.100.0/24", "0.0.0.0/0"], (), id="everybody"),
        pytest.param(["fd00::/64"], (), id="only the other family's"),
        pytest.param(
            ["198.51.100.0/24", "::/0"], ("198.51.100.0/24",), id="everybody of the other family"
        ),
        pytest.param(["bad"], (), id="only invalid ones"),
        pytest.param(
            ["192.0.2.0/24"], ("192.0.2.0/24", VIP, "203.0.113.9"), id="this node comes as the VIP"
        ),
    ],
)
def test_source_ranges_of_load_balancer_addresses(ranges, expected):
    svc = service(type="LoadBalancer", vips=[VIP, "203.0.113.9"], source_ranges=ranges)
    assert expected == frontend(svc, HERE, kind=FrontendKind.LOAD_BALANCER).source_ranges


@pytest.mark.parametrize(
    "kind", [FrontendKind.CLUSTER_IP, FrontendKind.EXTERNAL_IP, FrontendKind.NODE_PORT]
)
def test_source_ranges_guard_nothing_but_load_balancer_addresses(kind):
    svc = service(
        ports=[port(80, node_port=30080)],
        external_ips=[EXTERNAL],
        vips=[VIP],
        source_ranges=["198.51.100.0/24"],
    )
    assert frontend(svc, HERE, kind=kind).source_ranges == ()


# --- verdicts ---

REJECT, DROP = Verdict(Action.REJECT), Verdict(Action.DROP)


def to(pool, masquerade):
    return Verdict(Action.FORWARD, pool, masquerade)


@pytest.mark.parametrize(
    ("policy", "endpoints", "node", "expected"),
    [
        pytest.param(None, [], NODE, REJECT, id="nobody"),
        pytest.param(None, [UNREADY_THERE], NODE, REJECT, id="nobody ready"),
        pytest.param(None, [THERE], NODE, to(Pool.CLUSTER, Masquerade.NOT_PODS), id="anywhere"),
        pytest.param(
            "Cluster", [THERE], NODE, to(Pool.CLUSTER, Masquerade.NOT_PODS), id="spelled out"
        ),
        pytest.param(
            None, [THERE], UNCONFIGURED, to(Pool.CLUSTER, Masquerade.NEVER), id="no detector"
        ),
        pytest.param(
            None,
            [THERE],
            msgspec.structs.replace(UNCONFIGURED, masquerade_all=True),
            to(Pool.CLUSTER, Masquerade.ALWAYS),
            id="masquerade all",
        ),
        pytest.param("Local", [HERE], NODE, to(Pool.LOCAL, Masquerade.NOT_PODS), id="Local"),
        pytest.param("Local", [THERE], NODE, DROP, id="Local, only elsewhere"),
        pytest.param("Local", [DRAINING_THERE], NODE, DROP, id="Local, only draining elsewhere"),
        pytest.param("Local", [UNREADY_THERE], NODE, REJECT, id="Local, nobody anywhere"),
    ],
)
def test_cluster_ip_traffic(policy, endpoints, node, expected):
    svc = service(internal_policy=policy)
    found = frontend(svc, *endpoints, kind=FrontendKind.CLUSTER_IP, node=node)
    assert (expected, expected) == (found.inside, found.outside)


ANYWHERE = to(Pool.CLUSTER, Masquerade.ALWAYS)
SHORT = to(Pool.CLUSTER, Masquerade.NODE)


@pytest.mark.parametrize(
    ("policy", "endpoints", "outside", "inside"),
    [
        pytest.param(None, [], REJECT, REJECT, id="nobody"),
        pytest.param(None, [THERE], ANYWHERE, ANYWHERE, id="anywhere"),
        pytest.param("Local", [], REJECT, REJECT, id="Local, nobody"),
        pytest.param("Local", [HERE], to(Pool.LOCAL, Masquerade.NEVER), SHORT, id="Local"),
        pytest.param("Local", [THERE], DROP, SHORT, id="Local, only elsewhere"),
        pytest.param("Local", [DRAINING_THERE], DROP, SHORT, id="Local, draining elsewhere"),
    ],
)
@pytest.mark.parametrize(
    "kind", [FrontendKind.EXTERNAL_IP, FrontendKind.LOAD_BALANCER, FrontendKind.NODE_PORT]
)
def test_traffic_from_outside(kind, policy, endpoints, outside, inside):
    svc = service(
        type="LoadBalancer",
        ports=[port(80, node_port=30080)],
        external_ips=[EXTERNAL],
        vips=[VIP],
        external_policy=policy,
    )
    found = frontend(svc, *endpoints, kind=kind)
    assert (outside, inside) == (found.outside, found.inside)


@pytest.mark.parametrize("masquerade_all", [False, True])
def test_masquerading_everything_changes_nothing_for_external_addresses(masquerade_all):
    node = msgspec.structs.replace(NODE, masquerade_all=masquerade_all)
    svc = service(type="LoadBalancer", vips=[VIP], external_policy="Local")
    found = frontend(svc, HERE, kind=FrontendKind.LOAD_BALANCER, node=node)
    assert found.outside == to(Pool.LOCAL, Masquerade.NEVER)


@pytest.mark.parametrize(
    ("svc", "counts"),
    [
        pytest.param(
            service(type="NodePort", ports=[port(80, node_port=30080)], external_policy="Local"),
            True,
            id="NodePort",
        ),
        pytest.param(
            service(type="ClusterIP", external_ips=[EXTERNAL], external_policy="Local"),
            True,
            id="ClusterIP with an external IP",
        ),
        pytest.param(
            service(type="ClusterIP", vips=[VIP], external_policy="Local"),
            False,
            id="ClusterIP without one",
        ),
        pytest.param(
            service(type="ClusterIP", ports=[port(80, node_port=30080)], external_policy="Local"),
            False,
            id="ClusterIP with a leftover node port",
        ),
    ],
)
def test_when_an_external_local_policy_counts(svc, counts):
    found = only_route(svc, THERE).frontends[-1]
    assert counts is (found.outside.action is Action.DROP)


def test_a_leftover_external_policy_on_a_plain_cluster_ip_has_no_effect():
    plain = only_route(service(), HERE, THERE)
    assert plain == only_route(service(external_policy="Local"), HERE, THERE)


def test_internal_local_alone_needs_no_cluster_pool():
    assert only_route(service(internal_policy="Local"), HERE, THERE).cluster_endpoints == ()


def test_internal_local_with_a_node_port_keeps_the_cluster_pool():
    svc = service(type="NodePort", internal_policy="Local", ports=[port(80, node_port=30080)])
    found = only_route(svc, HERE, THERE)
    assert (len(found.cluster_endpoints), len(found.local_endpoints)) == (2, 1)


def test_external_ips_that_are_switched_off_still_count_as_a_way_in():
    node = msgspec.structs.replace(NODE, allow_external_ips=False)
    svc = service(internal_policy="Local", external_ips=[EXTERNAL])
    assert len(only_route(svc, HERE, THERE, node=node).cluster_endpoints) == 2


# --- the rest ---


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        pytest.param(None, 0, id="no affinity"),
        pytest.param(60, 60, id="given"),
    ],
)
def test_affinity(seconds, expected):
    assert expected == only_route(service(affinity_seconds=seconds), HERE).affinity_seconds


def test_affinity_without_a_timeout_has_the_default_of_the_api():
    svc = service()
    spec = msgspec.structs.replace(svc.spec, session_affinity="ClientIP")
    assert only_route(msgspec.structs.replace(svc, spec=spec), HERE).affinity_seconds == 10800


@pytest.mark.parametrize(
    ("kind", "policy", "given", "expected"),
    [
        pytest.param("LoadBalancer", "Local", 31000, 31000, id="load balancer, Local"),
        pytest.param("LoadBalancer", "Cluster", 31000, 0, id="load balancer, Cluster"),
        pytest.param("NodePort", "Local", 31000, 0, id="another type"),
        pytest.param("LoadBalancer", "Local", None, 0, id="not given"),
    ],
)
def test_the_health_check_port(kind, policy, given, expected):
    svc = service(type=kind, vips=[VIP], external_policy=policy, health_check_node_port=given)
    assert expected == routes(svc, HERE).health_check_port


def test_a_missing_health_check_port_is_named():
    svc = service(type="LoadBalancer", vips=[VIP], external_policy="Local")
    assert "spec.healthCheckNodePort is 0" in routes(svc, HERE).problems[0]


def test_a_service_without_ports_has_no_health_check_port():
    svc = service(
        type="LoadBalancer", external_policy="Local", health_check_node_port=31000, ports=[]
    )
    assert 0 == routes(svc, HERE).health_check_port


def test_the_health_check_port_is_on_every_port_even_without_local_endpoints():
    svc = service(
        type="LoadBalancer",
        vips=[VIP],
        ports=[port(80, "a"), port(81, "b")],
        external_policy="Local",
        health_check_node_port=31000,
    )
    assert [r.health_check_port for r in routes(svc, THERE).routes] == [31000, 31000]


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([], 0, id="none"),
        pytest.param([HERE], 1, id="a pod with two ports counts once"),
        pytest.param([HERE, endpoint("10.244.0.2", node="node"), THERE], 2, id="here only"),
        pytest.param(
            [endpoint("10.244.0.2", node="node", ready=False, terminating=True)],
            0,
            id="a draining one does not count",
        ),
    ],
)
def test_the_health_check_counts_ready_addresses_here(endpoints, expected):
    svc = service(
        type="LoadBalancer",
        vips=[VIP],
        ports=[port(80, "a"), port(81, "b")],
        external_policy="Local",
        health_check_node_port=31000,
    )
    ports = [slice_port(8080, "a"), slice_port(8081, "b")]
    assert expected == routes(svc, *endpoints, ports=ports).local_ready


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([], (0, 0), id="nobody anywhere does not count"),
        pytest.param([HERE], (0, 0), id="somebody here"),
        pytest.param([THERE], (1, 1), id="somebody elsewhere"),
    ],
)
def test_ports_that_a_local_policy_leaves_empty_are_counted(endpoints, expected):
    svc = service(
        type="NodePort",
        ports=[port(80, node_port=30080)],
        internal_policy="Local",
        external_policy="Local",
    )
    found = routes(svc, *endpoints)
    assert expected == (found.no_local_internal, found.no_local_external)


def test_endpoints_of_any_condition_are_counted_per_port():
    svc = service(ports=[port(80, "a"), port(81, "b")])
    ports = [slice_port(8080, "a"), slice_port(8081, "b"), slice_port(8082, "unused")]
    assert routes(svc, HERE, UNREADY_THERE, ports=ports).endpoint_count == 4


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        pytest.param("UDP", frozenset({"10.244.0.1:8080", "10.244.1.1:8080"}), id="UDP"),
        pytest.param("TCP", frozenset(), id="TCP"),
    ],
)
def test_udp_flows_may_stay_on_whatever_serves(protocol, expected):
    svc = service(internal_policy="Local", ports=[port(80, protocol=protocol)])
    gone = endpoint("10.244.1.9", node="other", ready=False, serving=False, terminating=True)
    (route,) = routes(
        svc, HERE, DRAINING_THERE, gone, ports=[slice_port(8080, "", protocol)]
    ).routes
    assert expected == route.serving_endpoints


def test_endpoints_come_in_the_order_of_their_text():
    found = only_route(service(), *(endpoint(f"10.0.0.{n}") for n in (2, 10, 1)))
    assert [e.address for e in found.cluster_endpoints] == ["10.0.0.10", "10.0.0.1", "10.0.0.2"]


def test_zone_hints_count_with_the_zone_of_the_node():
    node = msgspec.structs.replace(NODE, zone="a")
    found = only_route(
        service(), endpoint("10.0.0.1", zones=["a"]), endpoint("10.0.0.2", zones=["b"]), node=node
    )
    assert [e.address for e in found.cluster_endpoints] == ["10.0.0.1"]


def test_an_endpoint_address_that_is_none_is_named_and_the_others_serve():
    slices = [slice_("web", endpoint("10.0.0.1"), endpoint("nonsense"), endpoint("fd00::1"))]
    found = service_routes(service("web"), slices, NodeContext("node", Family.IPV4))
    assert [["10.0.0.1"]] == [[e.address for e in r.cluster_endpoints] for r in found.routes]
    assert found.problems == (
        "EndpointSlice web-1: 'nonsense' is no IPv4 address",
        "EndpointSlice web-1: 'fd00::1' is no IPv4 address",
    )
