from __future__ import annotations

import pytest

from pykubeproxy.ipvs.names import CHAINS, DEVICE, MAX_SET_NAME, SETS, set_name
from pykubeproxy.model.kinds import Family

CUT = {
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": "KUBE-6-LOAD-BALANCER-SOURCE-CID",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
}


@pytest.mark.parametrize("name", SETS)
def test_names_of_sets_fit_the_kernel(name):
    assert name == set_name(name, Family.IPV4)
    assert CUT.get(name, f"KUBE-6-{name[5:]}") == set_name(name, Family.IPV6)
    assert max(len(set_name(name, family)) for family in Family) <= MAX_SET_NAME


def test_no_two_sets_share_a_name():
    assert 2 * len(SETS) == len({set_name(name, family) for name in SETS for family in Family})


def test_sets_are_found_by_their_own_names():
    assert list(SETS) == [kind.name for kind in SETS.values()]


@pytest.mark.parametrize("kind", SETS.values(), ids=lambda kind: kind.name)
def test_comments_can_be_quoted_in_a_rule(kind):
    assert '"' not in kind.comment
    assert len(kind.comment) < 256


def test_names_fit_where_they_go():
    assert len(DEVICE) <= 15
    assert all(len(name) <= 28 for names in CHAINS.values() for name in names)
