"""What this node is: addresses, node port addresses, and how pods are recognised."""

from __future__ import annotations

import msgspec
import pytest

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import PodCIDR, PodInterface, PodInterfacePrefix
from pykubeproxy.model.objects import Node, NodeAddress, NodeMeta, NodeSpec, NodeStatus
from pykubeproxy.sync.context import describe_node, localhost_serves_nodeports

V4, V6 = Family.IPV4, Family.IPV6
LOCAL = ("127.0.0.1", "192.0.2.10", "198.51.100.7")


def a_node(*addresses: tuple[str, str], pod_cidrs: tuple[str, ...] = ()) -> Node:
    return Node(
        NodeMeta("node"),
        NodeSpec(pod_cidrs=pod_cidrs),
        NodeStatus(tuple(NodeAddress(kind, text) for kind, text in addresses)),
    )


@pytest.mark.parametrize(
    ("addresses", "bind", "family", "expected"),
    [
        pytest.param([], "0.0.0.0", V4, "127.0.0.1", id="unknown is loopback"),
        pytest.param([], "0.0.0.0", V6, "::1", id="unknown is loopback in IPv6"),
        pytest.param(
            [("ExternalIP", "203.0.113.1"), ("InternalIP", "192.0.2.10")],
            "0.0.0.0",
            V4,
            "192.0.2.10",
            id="internal before external",
        ),
        pytest.param(
            [("Hostname", "192.0.2.9"), ("ExternalIP", "203.0.113.1")],
            "0.0.0.0",
            V4,
            "203.0.113.1",
            id="host names are no addresses",
        ),
        pytest.param(
            [("InternalIP", "nonsense"), ("InternalIP", "192.0.2.010")],
            "0.0.0.0",
            V4,
            "192.0.2.10",
            id="unparsable skipped, sloppy accepted",
        ),
        pytest.param(
            [("InternalIP", "192.0.2.10"), ("InternalIP", "2001:DB8::1")],
            "0.0.0.0",
            V6,
            "2001:db8::1",
            id="first of the other family",
        ),
        pytest.param(
            [("InternalIP", "192.0.2.10")], "192.0.2.77", V4, "192.0.2.77", id="bind address wins"
        ),
        pytest.param(
            [("InternalIP", "192.0.2.10")], "2001:db8::7", V4, "192.0.2.10", id="of its family only"
        ),
        pytest.param([("InternalIP", "192.0.2.10")], "::", V4, "192.0.2.10", id="no bind address"),
    ],
)
def test_the_address_of_the_node(addresses, bind, family, expected):
    config = Config(bind_address=bind)
    assert expected == describe_node(config, "n", a_node(*addresses), (), family).address


@pytest.mark.parametrize(
    ("given", "family", "expected"),
    [
        pytest.param((), V4, None, id="nothing given: all"),
        pytest.param(("192.0.2.0/24",), V4, ("192.0.2.10",), id="those in a range"),
        pytest.param(
            ("192.0.2.0/24", "198.51.100.0/24"),
            V4,
            ("192.0.2.10", "198.51.100.7"),
            id="those in any range",
        ),
        pytest.param(("192.0.2.0/24",), V6, None, id="ranges of one family leave the other open"),
        pytest.param(("192.0.2.0/24", "0.0.0.0/0"), V4, None, id="a zero prefix means all"),
        pytest.param(("10.0.0.0/8",), V4, (), id="no address in the range"),
        pytest.param(("primary",), V4, ("192.0.2.10",), id="primary is the node address"),
        pytest.param(("primary",), V6, None, id="primary with an unknown address: all"),
    ],
)
def test_node_port_addresses(given, family, expected):
    config = Config(nodeport_addresses=given)
    node = a_node(("InternalIP", "192.0.2.10"))
    assert expected == describe_node(config, "n", node, LOCAL, family).nodeport_addresses


@pytest.mark.parametrize(
    ("config", "family", "expected"),
    [
        pytest.param(Config(), V4, None, id="no cluster CIDR"),
        pytest.param(
            Config(cluster_cidrs=("10.0.0.0/8", "fd00::/64")),
            V6,
            PodCIDR("fd00::/64"),
            id="V6 CIDR",
        ),
        pytest.param(Config(cluster_cidrs=("10.0.0.0/8",)), V6, None, id="CIDR of one family only"),
        pytest.param(
            Config(detect_local_mode=DetectLocalMode.NODE_CIDR),
            V4,
            PodCIDR("10.244.3.0/24"),
            id="NodeCIDR",
        ),
        pytest.param(
            Config(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, bridge_interface="cni0"),
            V6,
            PodInterface("cni0"),
            id="bridge, both families",
        ),
        pytest.param(
            Config(
                detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX,
                interface_name_prefix="veth",
            ),
            V4,
            PodInterfacePrefix("veth"),
            id="interface prefix",
        ),
    ],
)
def test_how_pods_are_recognised(config, family, expected):
    node = a_node(pod_cidrs=("10.244.3.0/24",))
    assert expected == describe_node(config, "n", node, (), family).pod_traffic


def test_without_a_node_object_the_zone_is_empty():
    assert describe_node(Config(), "n", None, (), V4).zone == ""


@pytest.mark.parametrize(
    ("config", "family", "expected"),
    [
        pytest.param(Config(), V4, True, id="by default"),
        pytest.param(Config(), V6, False, id="never for IPv6"),
        pytest.param(Config(localhost_nodeports=False), V4, False, id="switched off"),
        pytest.param(Config(nodeport_addresses=("primary",)), V4, False, id="primary excludes it"),
        pytest.param(Config(nodeport_addresses=("192.0.2.0/24",)), V4, False, id="excluded"),
        pytest.param(Config(nodeport_addresses=("127.0.0.1/32",)), V4, True, id="inside 127/8"),
        pytest.param(Config(nodeport_addresses=("0.0.0.0/0",)), V4, True, id="holds 127.0.0.0"),
        pytest.param(Config(nodeport_addresses=("fd00::/64",)), V4, True, id="other family only"),
    ],
)
def test_whether_localhost_serves_node_ports(config, family, expected):
    assert expected == localhost_serves_nodeports(config, family)


def test_flags_reach_the_context():
    config = Config(masquerade_all=True, allow_external_ips=False)
    context = describe_node(config, "n", None, (), V4)
    assert (True, False) == (context.masquerade_all, context.allow_external_ips)
    assert context == msgspec.structs.replace(context)
