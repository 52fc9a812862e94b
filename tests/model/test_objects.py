from __future__ import annotations

import gc
import json

import msgspec
import pytest

from pykubeproxy.model.objects import (
    Conditions,
    EndpointSlice,
    LoadBalancerIngress,
    Node,
    NodeAddress,
    ObjectKey,
    Service,
    ServiceCIDR,
    ServiceKey,
)
from tests.build import endpoint, node, port, service, service_cidr, slice_, slice_port, to_json


def decoded(kind, **fields):
    return msgspec.json.decode(json.dumps(fields).encode(), type=kind)


META = {"name": "web", "namespace": "shop"}


@pytest.mark.parametrize(
    "obj",
    [
        pytest.param(
            service(
                type="LoadBalancer",
                cluster_ips=["10.96.0.1", "fd00::1"],
                ip_families=["IPv4", "IPv6"],
                ports=[port(80, "http", node_port=30080), port(53, "dns", "UDP")],
                affinity_seconds=60,
                external_policy="Local",
                internal_policy="Local",
                external_ips=["1.2.3.4"],
                vips=["192.0.2.1", LoadBalancerIngress("192.0.2.2", "Proxy")],
                source_ranges=[" 10.0.0.0/8 "],
                health_check_node_port=31000,
                proxy_name="other",
            ),
            id="service",
        ),
        pytest.param(
            slice_(
                "web",
                endpoint(
                    "10.1.0.1",
                    node="a",
                    ready=False,
                    serving=True,
                    terminating=True,
                    zones=["z"],
                    nodes=["a"],
                ),
                ports=[slice_port(8080, "http")],
                headless="",
            ),
            id="slice",
        ),
        pytest.param(node(zone="z", pod_cidrs=["10.1.0.0/24"], taints=["gone"]), id="node"),
        pytest.param(service_cidr("kubernetes", "10.96.0.0/12"), id="service CIDR"),
    ],
)
def test_every_field_that_is_read_has_the_name_it_has_on_the_wire(obj):
    assert obj == msgspec.json.decode(to_json(obj), type=type(obj))


@pytest.mark.parametrize(
    ("noise"),
    [
        pytest.param({"metadata": {"resourceVersion": "2"}}, id="resource version"),
        pytest.param({"metadata": {"managedFields": [{"manager": "x"}]}}, id="managed fields"),
        pytest.param({"metadata": {"annotations": {"a": "b"}}}, id="annotation"),
        pytest.param({"metadata": {"labels": {"app": "x"}}}, id="label"),
        pytest.param({"spec": {"selector": {"app": "x"}}}, id="selector"),
        pytest.param({"spec": {"publishNotReadyAddresses": True}}, id="publishNotReadyAddresses"),
        pytest.param({"spec": {"trafficDistribution": "PreferClose"}}, id="trafficDistribution"),
        pytest.param({"spec": {"loadBalancerIP": "1.2.3.4"}}, id="loadBalancerIP"),
        pytest.param({"spec": {"ports": [{"port": 80, "targetPort": "x"}]}}, id="target port"),
        pytest.param({"spec": {"ports": [{"port": 80, "appProtocol": "x"}]}}, id="appProtocol"),
        pytest.param({"status": {"conditions": []}, "spec": {}}, id="conditions"),
    ],
)
def test_services_that_differ_in_what_no_proxy_reads_are_equal(noise):
    def with_noise(noise):
        return decoded(
            Service,
            metadata={**META, "labels": {}, **noise.get("metadata", {})},
            spec={"clusterIP": "10.0.0.1", "ports": [{"port": 80}], **noise.get("spec", {})},
            status={"loadBalancer": {}, **noise.get("status", {})},
        )

    assert with_noise({}) == with_noise(noise)


@pytest.mark.parametrize(
    "noise",
    [
        pytest.param({"zone": "z"}, id="zone"),
        pytest.param({"targetRef": {"name": "pod"}}, id="target"),
        pytest.param({"hostname": "h"}, id="hostname"),
        pytest.param({"deprecatedTopology": {"a": "b"}}, id="topology"),
    ],
)
def test_endpoints_that_differ_in_what_no_proxy_reads_are_equal(noise):
    def with_noise(noise):
        return decoded(
            EndpointSlice,
            metadata=META,
            addressType="IPv4",
            endpoints=[{"addresses": ["10.0.0.1"], **noise}],
        )

    assert with_noise({}) == with_noise(noise)


def test_a_node_heartbeat_is_no_change():
    def beat(time):
        return decoded(
            Node,
            metadata={"name": "n", "resourceVersion": time},
            status={"conditions": [{"type": "Ready", "lastHeartbeatTime": time}]},
        )

    assert beat("1") == beat("2")


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param(EndpointSlice, {"endpoints": None, "ports": None}, id="null lists"),
        pytest.param(EndpointSlice, {}, id="absent lists"),
        pytest.param(
            EndpointSlice,
            {
                "endpoints": [
                    {
                        "addresses": None,
                        "conditions": None,
                        "nodeName": None,
                        "hints": None,
                    },
                    {
                        "addresses": [],
                        "conditions": {"ready": None, "serving": None, "terminating": None},
                        "hints": {"forZones": None, "forNodes": None},
                    },
                ],
                "ports": [{"name": None, "port": None, "protocol": None}],
            },
            id="null fields of endpoints",
        ),
        pytest.param(Service, {"spec": {"ports": None, "clusterIPs": None}}, id="service lists"),
        pytest.param(Service, {"status": None}, id="no status"),
        pytest.param(Service, {"status": {"loadBalancer": None}}, id="no load balancer"),
        pytest.param(
            Service,
            {"spec": {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": None}}}},
            id="no timeout",
        ),
        pytest.param(Node, {"spec": {"taints": None, "podCIDRs": None}}, id="bare node"),
        pytest.param(ServiceCIDR, {"spec": {"cidrs": None}}, id="bare service CIDR"),
    ],
)
def test_null_and_absent_are_legal_on_the_wire(kind, fields):
    assert decoded(kind, metadata={**META, "labels": None}, **fields).metadata.name == "web"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        pytest.param(None, (), id="no status"),
        pytest.param({"loadBalancer": None}, (), id="no load balancer"),
        pytest.param({"loadBalancer": {"ingress": None}}, (), id="no ingress"),
        pytest.param(
            {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
            (LoadBalancerIngress("1.2.3.4"),),
            id="an address",
        ),
        pytest.param(
            {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}},
            (LoadBalancerIngress(),),
            id="a hostname has no address",
        ),
    ],
)
def test_ingress_is_always_a_list(status, expected):
    assert expected == decoded(Service, metadata=META, status=status).ingress


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(None, None, id="no labels"),
        pytest.param({}, None, id="no such label"),
        pytest.param({"kubernetes.io/service-name": ""}, None, id="empty label"),
        pytest.param({"kubernetes.io/service-name": "web"}, ServiceKey("shop", "web"), id="named"),
    ],
)
def test_a_slice_belongs_to_the_service_of_its_label(labels, expected):
    slice_object = decoded(EndpointSlice, metadata={**META, "name": "x", "labels": labels})
    assert expected == slice_object.service


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param(None, "", id="no labels"),
        pytest.param({"topology.kubernetes.io/zone": None}, "", id="null"),
        pytest.param({"topology.kubernetes.io/zone": ""}, "", id="empty"),
        pytest.param({"topology.kubernetes.io/zone": "a"}, "a", id="set"),
    ],
)
def test_a_missing_zone_label_is_an_empty_one(labels, expected):
    assert expected == decoded(Node, metadata={"name": "n", "labels": labels}).zone


def test_a_node_without_status_has_no_addresses():
    assert decoded(Node, metadata={"name": "n"}).addresses == ()


def test_addresses_of_a_node_keep_their_order_and_type():
    found = decoded(
        Node,
        metadata={"name": "n"},
        status={
            "addresses": [
                {"type": "Hostname", "address": "n"},
                {"type": "InternalIP", "address": "10.0.0.1"},
            ]
        },
    )
    assert found.addresses == (NodeAddress("Hostname", "n"), NodeAddress("InternalIP", "10.0.0.1"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(service("a", namespace="ns").key, "ns/a", id="service"),
        pytest.param(slice_("a", namespace="ns").key, "ns/a-1", id="slice"),
        pytest.param(node("n").key, "n", id="node"),
        pytest.param(service_cidr("c").key, "c", id="service CIDR"),
        pytest.param(ObjectKey("ns", "x"), "ns/x", id="any"),
    ],
)
def test_keys_read_as_namespace_and_name(key, expected):
    assert expected == str(key)


def test_unset_conditions_stay_unset():
    assert Conditions() == Conditions(None, None, None)


@pytest.mark.parametrize("obj", [service(), slice_("web", endpoint("10.0.0.1")), node()])
def test_values_from_the_watch_cannot_be_changed(obj):
    with pytest.raises(AttributeError):
        obj.metadata = None


# --- memory ---


def received(obj):
    return msgspec.json.decode(to_json(obj), type=type(obj))


WEB = service(
    "web", ports=[port(80, "http")], cluster_ips=("10.96.0.1",), ip_families=("IPv4",), type="x" * 9
)
WEB_SLICE = slice_("web-1", endpoint("10.0.0.1", node="n1"), ports=[slice_port(80, "http")])


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        pytest.param(WEB, lambda o: o.metadata.namespace, id="namespace of a Service"),
        pytest.param(WEB, lambda o: o.spec.type, id="type"),
        pytest.param(WEB, lambda o: o.spec.ip_families, id="families"),
        pytest.param(WEB, lambda o: o.spec.ports[0].name, id="port of a Service"),
        pytest.param(WEB, lambda o: o.spec.ports[0].protocol, id="protocol of a Service"),
        pytest.param(WEB_SLICE, lambda o: o.metadata.namespace, id="namespace of a slice"),
        pytest.param(WEB_SLICE, lambda o: o.address_type, id="address type"),
        pytest.param(WEB_SLICE, lambda o: o.endpoints[0].node_name, id="node"),
        pytest.param(WEB_SLICE, lambda o: o.endpoints[0].conditions, id="conditions"),
        pytest.param(WEB_SLICE, lambda o: o.ports[0].name, id="port of a slice"),
        pytest.param(WEB_SLICE, lambda o: o.ports[0].protocol, id="protocol of a slice"),
    ],
)
def test_what_many_objects_repeat_is_held_once(obj, path):
    first, second = received(obj), received(obj)
    assert path(obj) == path(first)
    assert path(first) is path(second)


def test_the_first_cluster_ip_is_held_once():
    spec = received(WEB).spec
    assert spec.cluster_ips[0] is spec.cluster_ip


@pytest.mark.parametrize("obj", [WEB, WEB_SLICE, node()], ids=lambda o: type(o).__name__)
def test_the_garbage_collector_does_not_visit_what_was_received(obj):
    assert not gc.is_tracked(received(obj))


# --- the time of a cause ---


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"endpoints.kubernetes.io/last-change-trigger-time": "t"}, "t"),
        ({"other": "x"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_the_time_of_its_cause_is_taken_from_a_slice_once(annotations, expected):
    metadata = {"name": "web-1", "namespace": "default", "annotations": annotations}
    slice_ = msgspec.convert({"metadata": metadata}, EndpointSlice)
    assert expected == slice_.take_trigger_time()
    assert slice_.take_trigger_time() is None
    assert msgspec.convert({"metadata": {**metadata, "annotations": None}}, EndpointSlice) == slice_
