"""How long a start waits for the Node object; time is a number."""

from __future__ import annotations

import pytest

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.errors import NodeTimeout
from pykubeproxy.model.objects import Node, NodeAddress, NodeMeta, NodeStatus
from pykubeproxy.sync.nodewait import NODE_SECONDS, POD_CIDR_SECONDS, NodeWait
from tests.build import node

API = Config()
NODE_CIDR = Config(detect_local_mode=DetectLocalMode.NODE_CIDR)
MANIFESTS = Config(manifests="/manifests")
MANIFESTS_NODE_CIDR = Config(manifests="/m", detect_local_mode=DetectLocalMode.NODE_CIDR)

NAMELESS = Node(NodeMeta("node"), status=NodeStatus((NodeAddress("Hostname", "192.0.2.1"),)))
WHOLE = node(pod_cidrs=("10.244.0.0/24",))


def missing(wait, now, of):
    waiting = wait.look(now, of)
    return None if waiting is None else waiting.missing


@pytest.mark.parametrize(
    ("config", "of", "expected"),
    [
        pytest.param(API, None, "Node n", id="no object"),
        pytest.param(API, NAMELESS, "addresses of Node n", id="no address"),
        pytest.param(API, node(addresses=["nonsense"]), "addresses of Node n", id="none that is"),
        pytest.param(API, node(), None, id="all there is"),
        pytest.param(NODE_CIDR, None, "Node n", id="NodeCIDR, no object"),
        pytest.param(NODE_CIDR, node(), "podCIDRs of Node n", id="NodeCIDR, none"),
        pytest.param(NODE_CIDR, WHOLE, None, id="NodeCIDR, all there is"),
        pytest.param(MANIFESTS, None, None, id="manifests need no Node"),
        pytest.param(MANIFESTS_NODE_CIDR, None, "Node n", id="manifests, NodeCIDR, no object"),
        pytest.param(MANIFESTS_NODE_CIDR, WHOLE, None, id="manifests, NodeCIDR, all there is"),
    ],
)
def test_what_is_waited_for(config, of, expected):
    assert expected == missing(NodeWait(config, "n"), 100.0, of)


@pytest.mark.parametrize("of", [None, NAMELESS], ids=["no object", "no address"])
def test_half_a_minute_from_the_first_look_on(of):
    wait = NodeWait(API, "n")
    first = wait.look(100.0, of)
    assert first is not None
    assert 100.0 + NODE_SECONDS == first.until
    assert wait.look(129.9, of) is not None
    assert wait.look(130.0, of) is None
    assert wait.lacking(of) is not None
    assert wait.lacking(node()) is None


def test_what_comes_ends_the_wait():
    wait = NodeWait(API, "n")
    assert [("Node n"), ("addresses of Node n"), None] == [
        missing(wait, now, of) for now, of in ((0.0, None), (1.0, NAMELESS), (2.0, node()))
    ]


@pytest.mark.parametrize(
    ("of", "moments", "text"),
    [
        pytest.param(None, (0.0, 30.0), 'timeout waiting for node "n" to exist', id="no object"),
        pytest.param(
            node(),
            (0.0,),
            'timeout waiting for PodCIDR allocation on node "n"',
            id="no podCIDRs",
        ),
        pytest.param(
            NAMELESS,
            (0.0, 30.0),
            'timeout waiting for PodCIDR allocation on node "n"',
            id="no podCIDRs, after the wait for an address",
        ),
    ],
)
def test_without_pod_cidrs_the_wait_ends_the_start(of, moments, text):
    wait = NodeWait(NODE_CIDR, "n")
    waiting = [wait.look(now, of) for now in moments][-1]
    assert waiting is not None
    assert moments[-1] + POD_CIDR_SECONDS == waiting.until
    assert wait.look(waiting.until - 0.1, of) is not None
    with pytest.raises(NodeTimeout) as timeout:
        wait.look(waiting.until, of)
    assert text in str(timeout.value)


def test_pod_cidrs_may_come_at_the_last_moment():
    wait = NodeWait(NODE_CIDR, "n")
    assert "Node n" == missing(wait, 0.0, None)
    assert "Node n" == missing(wait, 31.0, None)
    assert "podCIDRs of Node n" == missing(wait, 330.0, node())
    assert missing(wait, 330.9, WHOLE) is None


def test_manifests_are_waited_for_without_an_end():
    wait = NodeWait(MANIFESTS_NODE_CIDR, "n")
    for now in (0.0, 1e6):
        waiting = wait.look(now, None)
        assert waiting is not None
        assert waiting.until is None
