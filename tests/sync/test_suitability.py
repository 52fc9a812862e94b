"""Whether the configuration suits the node: the table of kube-proxy, and the cluster CIDR."""

from __future__ import annotations

import pytest

from pykubeproxy.config import Config, DetectLocalMode, IpvsConfig
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.suitability import cluster_cidr_mismatch, doubts, primary_family
from tests.build import node

V4, V6 = Family.IPV4, Family.IPV6
BOTH = (V4, V6)
V4_ONLY = ("192.0.2.10",)
NODE_CIDR = DetectLocalMode.NODE_CIDR


@pytest.mark.parametrize(
    ("bind", "addresses", "expected"),
    [
        pytest.param("0.0.0.0", (), None, id="unknown"),
        pytest.param("0.0.0.0", ("192.0.2.1", "2001:db8::1"), V4, id="that of the first"),
        pytest.param("0.0.0.0", ("2001:db8::1", "192.0.2.1"), V6, id="IPv6 first"),
        pytest.param("::", ("192.0.2.1",), V4, id="any address says nothing"),
        pytest.param("2001:db8::7", ("192.0.2.1",), V6, id="the bind address wins"),
        pytest.param("192.0.2.7", (), V4, id="the bind address, without a node"),
    ],
)
def test_the_primary_family(bind, addresses, expected):
    assert expected is primary_family(Config(bind_address=bind), node(addresses=addresses))


def test_without_a_node_the_primary_family_is_unknown():
    assert primary_family(Config(), None) is None


def found(config, served=BOTH, primary=V4, **of):
    """Whether it is fatal, by how each doubt begins; nodePortAddresses being all right."""
    return {d.text: d.fatal for d in doubts(config, node(**of), primary, served)}


RIGHT = Config(nodeport_addresses=("0.0.0.0/0", "::/0"))


def but(**fields):
    return Config(**{"nodeport_addresses": ("0.0.0.0/0", "::/0"), **fields})


@pytest.mark.parametrize(
    ("config", "served", "primary", "of", "expected"),
    [
        pytest.param(RIGHT, BOTH, V4, {}, {}, id="nothing"),
        pytest.param(
            RIGHT,
            (V4,),
            V6,
            {},
            {'no support for primary IP family "IPv6": this node can serve IPv4': True},
            id="the primary family cannot be served",
        ),
        pytest.param(
            Config(),
            BOTH,
            V4,
            {},
            {
                "nodePortAddresses is unset; NodePort connections will be accepted on all local "
                "IPs. Consider using `--nodeport-addresses primary`": False
            },
            id="node ports everywhere",
        ),
        pytest.param(
            Config(nodeport_addresses=("192.0.2.0/24",), cluster_cidrs=("10.0.0.0/8", "fd00::/8")),
            BOTH,
            V4,
            {},
            {
                "cluster appears to be dual-stack but nodePortAddresses contains only IPv4 "
                "addresses; NodePort connections will be accepted on all local IPv6 IPs": False
            },
            id="node ports of one family, and the other is in use",
        ),
        pytest.param(
            Config(nodeport_addresses=("192.0.2.0/24",)),
            BOTH,
            V4,
            {},
            {},
            id="node ports of one family, and nothing tells of the other",
        ),
        pytest.param(
            Config(nodeport_addresses=("2001:db8::/64",)),
            BOTH,
            V4,
            {},
            {
                "cluster appears to be IPv4-primary but nodePortAddresses contains only IPv6 "
                "addresses; NodePort connections will be accepted on all local IPv4 IPs": False
            },
            id="node ports of the other family only",
        ),
        pytest.param(Config(nodeport_addresses=("primary",)), BOTH, V4, {}, {}, id="primary"),
        pytest.param(
            Config(nodeport_addresses=("primary",)),
            BOTH,
            V4,
            {"addresses": V4_ONLY, "pod_cidrs": ("10.244.0.0/24", "fd00::/64")},
            {
                "cluster appears to be dual-stack but nodePortAddresses contains only IPv4 "
                "addresses; NodePort connections will be accepted on all local IPv6 IPs": False
            },
            id="primary, of a node with one address",
        ),
        pytest.param(
            but(cluster_cidrs=("fd00::/8",)),
            BOTH,
            V4,
            {},
            {"cluster is IPv4-primary but clusterCIDRs contains only IPv6 addresses": False},
            id="cluster CIDR of the other family, dual stack",
        ),
        pytest.param(
            but(cluster_cidrs=("fd00::/8",)),
            (V4,),
            V4,
            {},
            {"cluster is IPv4-only but clusterCIDRs contains only IPv6 addresses": True},
            id="cluster CIDR of the other family, single stack",
        ),
        pytest.param(
            but(detect_local_mode=NODE_CIDR),
            BOTH,
            V4,
            {"pod_cidrs": ("fd00::/64",)},
            {"cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses": True},
            id="podCIDRs of the other family, NodeCIDR, dual stack",
        ),
        pytest.param(
            but(detect_local_mode=NODE_CIDR, metrics_address=("::1", 10249)),
            (V6,),
            V6,
            {"pod_cidrs": ("10.0.0.0/24",)},
            {"cluster is IPv6-only but node.spec.podCIDRs contains only IPv4 addresses": True},
            id="podCIDRs of the other family, NodeCIDR, single stack",
        ),
        pytest.param(
            RIGHT,
            BOTH,
            V4,
            {"pod_cidrs": ("fd00::/64",)},
            {"cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses": False},
            id="podCIDRs of the other family, another mode",
        ),
        pytest.param(
            but(
                ipvs=IpvsConfig(exclude_cidrs=("fd00::/8",)),
                healthz_address=("::1", 10256),
                metrics_address=("2001:db8::1", 10249),
            ),
            (V4,),
            V4,
            {},
            {
                "cluster is IPv4-only but ipvs.excludeCIDRs contains only IPv6 addresses": False,
                "cluster is IPv4-only but healthzBindAddress is IPv6": False,
                "cluster is IPv4-only but metricsBindAddress is IPv6": False,
            },
            id="what matters to a single stack only",
        ),
        pytest.param(
            but(
                ipvs=IpvsConfig(exclude_cidrs=("fd00::/8",)),
                healthz_address=("::1", 10256),
                metrics_address=("2001:db8::1", 10249),
            ),
            BOTH,
            V4,
            {},
            {},
            id="and not to two",
        ),
        pytest.param(
            but(healthz_address=("::", 10256), metrics_address=("::", 10249)),
            (V4,),
            V4,
            {},
            {},
            id="any address is of either family",
        ),
        pytest.param(but(healthz_address=None), (V6,), V4, {}, None, id="fatal comes alone"),
    ],
)
def test_what_does_not_suit_the_node(config, served, primary, of, expected):
    told = found(config, served, primary, **of)
    if expected is None:
        assert [True] == list(told.values())
    else:
        assert expected == told


@pytest.mark.parametrize(
    ("cluster", "pods", "families"),
    [
        pytest.param(("10.0.0.0/8",), ("10.244.3.0/24",), [], id="within"),
        pytest.param(("10.244.3.0/24",), ("10.244.3.0/24",), [], id="the same"),
        pytest.param(("10.244.3.0/24",), ("10.244.0.0/16",), ["IPv4"], id="larger"),
        pytest.param(("10.0.0.0/8",), ("172.16.0.0/24",), ["IPv4"], id="elsewhere"),
        pytest.param(
            ("10.0.0.0/8",), ("172.16.0.0/24", "10.1.0.0/24"), [], id="one of several within"
        ),
        pytest.param(
            ("10.0.0.0/8", "fd00::/16"),
            ("172.16.0.0/24", "fe00::/64"),
            ["IPv4", "IPv6"],
            id="both families",
        ),
        pytest.param(("10.0.0.0/8", "fd00::/16"), ("10.1.0.0/24", "fd00:0:1::/64"), [], id="fine"),
        pytest.param(("fd00::/16",), ("10.1.0.0/24",), [], id="nothing to compare with"),
        pytest.param((), ("10.1.0.0/24",), [], id="no cluster CIDR"),
        pytest.param(("10.0.0.0/8",), (), [], id="no podCIDRs"),
        pytest.param(("10.0.0.0/8",), ("nonsense",), [], id="unreadable podCIDRs"),
    ],
)
def test_a_cluster_cidr_without_the_nodes_pods(cluster, pods, families):
    told = cluster_cidr_mismatch(Config(cluster_cidrs=cluster), node(pod_cidrs=pods))
    assert len(families) == len(told)
    for family, text in zip(families, told, strict=True):
        assert f"the {family} podCIDRs of this node ({pods[-1 if family == 'IPv6' else 0]})" in text
        assert "masqueraded" in text
        assert "NetworkPolicies" in text


def test_the_cluster_cidr_matters_where_pods_are_told_by_it():
    config = Config(cluster_cidrs=("10.0.0.0/8",), detect_local_mode=NODE_CIDR)
    assert () == cluster_cidr_mismatch(config, node(pod_cidrs=("172.16.0.0/24",)))
    assert () == cluster_cidr_mismatch(Config(cluster_cidrs=("10.0.0.0/8",)), None)
