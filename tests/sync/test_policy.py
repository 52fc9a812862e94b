from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.sync.endpoints import candidates_by_port
from pykubeproxy.sync.policy import TrafficPolicy, usable_endpoints
from tests.build import endpoint, slice_

CLUSTER = TrafficPolicy()
INTERNAL_LOCAL = TrafficPolicy(internal_local=True)
EXTERNAL_LOCAL = TrafficPolicy(external_local=True, externally_accessible=True)
BOTH_LOCAL = TrafficPolicy(internal_local=True, external_local=True, externally_accessible=True)


def here(number, **conditions):
    return endpoint(f"10.0.0.{number}", node="node", **conditions)


def there(number, **conditions):
    return endpoint(f"10.0.0.{number}", node="other", **conditions)


DRAINING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
UNREADY = {"ready": False, "serving": True, "terminating": False}


def pools(endpoints, policy=CLUSTER, zone=""):
    """Last digits of the addresses in the two pools, and whether anybody serves."""
    candidates = candidates_by_port([slice_("s", *endpoints)], Family.IPV4, "node")
    found = usable_endpoints(candidates.get(("", Protocol.TCP), []), policy, "node", zone)
    return (
        [int(c.endpoint.address[7:]) for c in found.cluster],
        [int(c.endpoint.address[7:]) for c in found.local],
        found.has_any,
    )


def cluster(endpoints, zone=""):
    return pools(endpoints, zone=zone)[0]


@pytest.mark.parametrize(
    ("policy", "cluster_used", "local_used"),
    [
        pytest.param(CLUSTER, True, False, id="cluster IP only"),
        pytest.param(INTERNAL_LOCAL, False, True, id="internal Local, no external address"),
        pytest.param(
            TrafficPolicy(internal_local=True, externally_accessible=True),
            True,
            True,
            id="internal Local with an external address",
        ),
        pytest.param(EXTERNAL_LOCAL, True, True, id="external Local"),
        pytest.param(
            TrafficPolicy(external_local=True), True, False, id="external Local without a way in"
        ),
        pytest.param(BOTH_LOCAL, True, True, id="both Local"),
        pytest.param(TrafficPolicy(externally_accessible=True), True, False, id="external Cluster"),
    ],
)
def test_which_pools_a_policy_uses(policy, cluster_used, local_used):
    assert (cluster_used, local_used) == (policy.uses_cluster, policy.uses_local)


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([], ([], [], False), id="no endpoints"),
        pytest.param([there(1), here(2)], ([1, 2], [], True), id="ready ones"),
        pytest.param([there(1), there(2, **DRAINING)], ([1], [], True), id="ready before draining"),
        pytest.param(
            [there(1, **DRAINING), there(2, **GONE)], ([1], [], True), id="draining when none ready"
        ),
        pytest.param([there(1, **GONE)], ([], [], False), id="not serving any more"),
        pytest.param([there(1, **UNREADY)], ([], [], False), id="unready is never used"),
    ],
)
def test_cluster_traffic_goes_to_ready_endpoints_first(endpoints, expected):
    assert expected == pools(endpoints)


@pytest.mark.parametrize(
    ("endpoints", "policy", "expected"),
    [
        pytest.param([here(1), there(2)], INTERNAL_LOCAL, ([], [1], True), id="internal"),
        pytest.param([there(2)], INTERNAL_LOCAL, ([], [], True), id="internal, none here"),
        pytest.param(
            [there(2, **DRAINING)], INTERNAL_LOCAL, ([], [], True), id="draining elsewhere counts"
        ),
        pytest.param(
            [there(2, **UNREADY)], INTERNAL_LOCAL, ([], [], False), id="unready elsewhere does not"
        ),
        pytest.param([here(1), there(2)], EXTERNAL_LOCAL, ([1, 2], [1], True), id="external"),
        pytest.param(
            [here(1, **DRAINING), there(2)],
            EXTERNAL_LOCAL,
            ([2], [1], True),
            id="each pool falls back on its own",
        ),
        pytest.param(
            [here(1, **DRAINING), here(2)], EXTERNAL_LOCAL, ([2], [2], True), id="ready here first"
        ),
        pytest.param([here(1, **UNREADY)], EXTERNAL_LOCAL, ([], [], False), id="nobody serves"),
        pytest.param([here(1), there(2)], BOTH_LOCAL, ([1, 2], [1], True), id="both"),
    ],
)
def test_local_traffic_stays_on_this_node(endpoints, policy, expected):
    assert expected == pools(endpoints, policy)


A, B = {"zones": ["a"]}, {"zones": ["b"]}


@pytest.mark.parametrize(
    ("endpoints", "zone", "expected"),
    [
        pytest.param([there(1, **A), there(2, **B)], "a", [1], id="zone hints"),
        pytest.param([there(1, zones=["b", "a"]), there(2, **B)], "a", [1], id="several zones"),
        pytest.param([there(1, **A), there(2)], "a", [1, 2], id="one without a zone hint"),
        pytest.param([there(1, **B), there(2, **B)], "a", [1, 2], id="nobody for this zone"),
        pytest.param([there(1, **A), there(2, **B)], "", [1, 2], id="a node without zone"),
        pytest.param(
            [there(1, zones=[""]), there(2, **B)], "", [1, 2], id="an empty zone matches nothing"
        ),
        pytest.param(
            [there(1, **A), there(2, ready=False), there(3, **B)],
            "a",
            [1],
            id="unready ones need no hint",
        ),
        pytest.param(
            [there(1, ready=False, **A), there(2, **B)], "a", [2], id="unready ones do not hint"
        ),
        pytest.param(
            [there(1, nodes=["node"]), there(2, nodes=["other"])], "", [1], id="node hints"
        ),
        pytest.param(
            [there(1, nodes=["node"], **B), there(2, nodes=["x"], **A)],
            "a",
            [1],
            id="node hints come first",
        ),
        pytest.param(
            [there(1, nodes=["node"], **B), there(2, **A)],
            "a",
            [2],
            id="one without a node hint leaves it to zones",
        ),
        pytest.param(
            [there(1, nodes=["x"], **B), there(2, nodes=["y"], **A)],
            "a",
            [2],
            id="nobody for this node leaves it to zones",
        ),
        pytest.param(
            [there(1, nodes=["x"]), there(2, nodes=["y"])], "a", [1, 2], id="no kind of hint helps"
        ),
        pytest.param(
            [there(1, **DRAINING, **A), there(2, **DRAINING, **B)],
            "a",
            [1, 2],
            id="draining ones ignore hints",
        ),
    ],
)
def test_hints_narrow_the_cluster_pool(endpoints, zone, expected):
    assert expected == cluster(endpoints, zone)


def test_hints_never_narrow_the_local_pool():
    endpoints = [here(1, **B), there(2, **A), here(3, **A)]
    assert pools(endpoints, EXTERNAL_LOCAL, zone="a") == ([2, 3], [1, 3], True)
