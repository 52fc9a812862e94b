from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR, PodInterface, PodInterfacePrefix

NODE = NodeContext("n", Family.IPV4)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(NodeContext("m", Family.IPV4), id="name"),
        pytest.param(NodeContext("n", Family.IPV6), id="family"),
        pytest.param(NodeContext("n", Family.IPV4, zone="z"), id="zone"),
        pytest.param(NodeContext("n", Family.IPV4, address="10.0.0.1"), id="address"),
        pytest.param(NodeContext("n", Family.IPV4, nodeport_addresses=()), id="node ports nowhere"),
        pytest.param(NodeContext("n", Family.IPV4, pod_traffic=PodCIDR("10.0.0.0/8")), id="pods"),
        pytest.param(NodeContext("n", Family.IPV4, masquerade_all=True), id="masquerade"),
        pytest.param(NodeContext("n", Family.IPV4, allow_external_ips=False), id="external IPs"),
    ],
)
def test_a_context_that_differs_in_anything_is_another_one(other):
    assert other != NODE


def test_equal_content_is_the_same_node():
    assert NodeContext("n", Family.IPV4) == NODE


def test_ways_to_tell_pods_are_never_equal_across_kinds():
    assert len({PodCIDR("x"), PodInterface("x"), PodInterfacePrefix("x")}) == 3
