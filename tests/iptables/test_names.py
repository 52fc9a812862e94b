from __future__ import annotations

from base64 import b32encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.names import (
    BASE_CHAINS,
    CANARY_TABLES,
    FIREWALL,
    IPVS_CHAINS,
    chain_hashes,
    index_chain,
    index_depth,
    is_own_chain,
    is_service_chain,
)
from pykubeproxy.iptables.objects import Chain, SharedChain
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import PortKey

P80 = PortKey(ServiceKey("ns1", "svc1"), "p80", Protocol.TCP)


def port_hash(key):
    return chain_hashes(str(key), key.protocol.lower(), [])[0]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param(P80, "XPGD46QRK7WJZT7O", id="named port"),
        pytest.param(
            PortKey(ServiceKey("default", "kubernetes"), "https", Protocol.TCP),
            "NPX46M4PTMTKRN6Y",
            id="the API",
        ),
        pytest.param(
            PortKey(ServiceKey("ns", "svc"), "", Protocol.UDP),
            "HMYKOXKBMOZPKJU5",
            id="unnamed port",
        ),
    ],
)
def test_a_port_has_the_hash_that_kube_proxy_gives_it(key, expected):
    assert expected == port_hash(key)


def test_every_endpoint_has_the_hash_it_would_have_alone():
    texts = ["10.180.0.1:80", "[fd00:10:180::1]:80", ""]
    alone = [chain_hashes("ns1/svc1:p80", "tcp", [text])[1][0] for text in texts]
    assert alone == chain_hashes("ns1/svc1:p80", "tcp", texts)[1]


@given(endpoint=st.text(max_size=60))
def test_a_hash_is_the_beginning_of_base32_over_sha256(endpoint):
    digest = sha256(f"ns1/svc1:p80tcp{endpoint}".encode()).digest()
    _, (found,) = chain_hashes("ns1/svc1:p80", "tcp", [endpoint])
    assert b32encode(digest).decode()[:16] == found


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        pytest.param("10.180.0.1:80", "SXIVWICOYRO3J4NJ", id="IPv4"),
        pytest.param("[fd00:10:180::1]:80", "OGYCNMB4EMRUSJ6N", id="IPv6 with its brackets"),
    ],
)
def test_an_endpoint_has_the_hash_that_kube_proxy_gives_it(endpoint, expected):
    assert [expected] == chain_hashes(str(P80), "tcp", [endpoint])[1]


def test_ports_that_differ_in_protocol_only_have_chains_of_their_own():
    assert port_hash(P80) != port_hash(P80._replace(protocol=Protocol.UDP))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("KUBE-SVC-XPGD46QRK7WJZT7O", True),
        ("KUBE-SVL-XPGD46QRK7WJZT7O", True),
        ("KUBE-SEP-XPGD46QRK7WJZT7O", True),
        ("KUBE-EXT-XPGD46QRK7WJZT7O", True),
        ("KUBE-FW-XPGD46QRK7WJZT7O", True),
        ("KUBE-SERVICES", False),
        ("KUBE-FIREWALL", False),
        ("KUBE-FORWARD", False),
        ("KUBE-NODEPORTS", False),
        ("KUBE-KUBELET-CANARY", False),
        ("KUBE-IPTABLES-HINT", False),
        ("CNI-SVC-1", False),
    ],
)
def test_which_chains_belong_to_services(name, expected):
    assert expected is is_service_chain(name)


@pytest.mark.parametrize("prefix", ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"])
def test_chain_names_fit_the_kernel(prefix):
    assert len(prefix + port_hash(P80)) <= 28


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        pytest.param(
            "nat",
            {"KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ",
             "KUBE-PROXY-CANARY", "KUBE-NODE-PORT", "KUBE-LOAD-BALANCER"},
            id="nat",
        ),
        pytest.param(
            "filter",
            {"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS",
             "KUBE-PROXY-FIREWALL", "KUBE-PROXY-CANARY", "KUBE-NODE-PORT",
             "KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER", "KUBE-IPVS-OUT-FILTER"},
            id="filter",
        ),
        pytest.param("mangle", {"KUBE-PROXY-CANARY"}, id="mangle"),
    ],
)  # fmt: skip
def test_the_chains_that_are_ours_to_remove(table, expected):
    assert expected == set(BASE_CHAINS[table])


@pytest.mark.parametrize(
    "name", [FIREWALL, "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY", "KUBE-IPTABLES-HINT"]
)
def test_the_chain_shared_with_kubelet_is_not_ours_to_remove(name):
    assert not any(name in chains for chains in BASE_CHAINS.values())


def test_chains_of_ipvs_mode_have_names_of_their_own():
    """What is in this list is written by no other mode, so finding one tells which mode ran."""
    compiled = IptablesCompiler(XtablesSettings()).base(NodeContext("node", Family.IPV4))
    wanted = {(key.table, key.name) for key in compiled if isinstance(key, Chain | SharedChain)}
    assert set() == wanted & {(table, c) for table, names in IPVS_CHAINS.items() for c in names}


def test_canaries_are_made_in_the_order_in_which_they_are_looked_for():
    assert CANARY_TABLES == ("mangle", "nat", "filter")


def test_chains_of_an_index_are_told_by_their_names():
    name = index_chain("nat KUBE-SERVICES address 2998", 20)
    assert len(name) == 28
    assert name.startswith("KUBE-SVC-IDX020-")
    assert index_depth(name) == 20
    assert index_chain("nat KUBE-SERVICES address 2998", 19)[15:] == name[15:]
    assert index_chain("nat KUBE-SERVICES address 2999", 20) != name
    assert is_service_chain(name), "so kube-proxy removes it"


@pytest.mark.parametrize(
    "name", ["KUBE-SVC-IDXABCDEFGHIJKLM", "KUBE-SERVICES", "KUBE-SEP-IDX020-A", "KUBE-SVC-IDXabc-A"]
)
def test_other_chains_are_of_no_index(name):
    assert index_depth(name) is None


@pytest.mark.parametrize(
    ("table", "name", "own"),
    [
        pytest.param("nat", "KUBE-SERVICES", True, id="fixed"),
        pytest.param("nat", "KUBE-SVC-ABCDEFGHIJKLMNOP", True, id="of a Service"),
        pytest.param("filter", "KUBE-SVC-ABCDEFGHIJKLMNOP", False, id="those are in nat only"),
        pytest.param("filter", index_chain("x", 7), True, id="of an index"),
        pytest.param("filter", "KUBE-FIREWALL", False, id="the kubelet's too"),
        pytest.param("raw", "KUBE-SERVICES", False, id="a table that is not ours"),
    ],
)
def test_own_chains(table, name, own):
    assert own == is_own_chain(table, name)
