from __future__ import annotations

import pytest

from pykubeproxy.iptables import render as xtables
from pykubeproxy.iptables.objects import Chain, DispatchRule
from pykubeproxy.ipvs.objects import IPSet
from pykubeproxy.ipvs.render import plan, rules_in
from pykubeproxy.sync.outcome import BASE
from tests.ipvs.rig import A, B, bound, change, entry, put, real, tcp

WEB, API = tcp("10.96.0.1"), tcp("10.96.0.2")
SET, MEMBER, ADDRESS = (
    IPSet("KUBE-IPVS-IPS"),
    entry("KUBE-IPVS-IPS", "10.96.0.1"),
    bound("10.96.0.1"),
)
CHAIN = {Chain("nat", "KUBE-SERVICES"): ("-j RETURN",)}
RULE = {DispatchRule("filter", "KUBE-IPVS-OUT-FILTER", "a"): ("-s 203.0.113.1 -j DROP",)}
# Given in the worst order.
ALL = {**RULE, **CHAIN, **put(ADDRESS, real(WEB, 1), WEB, MEMBER, SET)}


def plan_rules(changes):
    return xtables.plan(changes, None)


def planned(*changes):
    """Scope, put keys and dropped keys of each transaction, by its changes."""
    return [
        (t.scope, [(c.owner, list(c.put), list(c.drop)) for c in t.changes])
        for t in plan(changes, plan_rules)
    ]


def scopes(*changes):
    """Scopes in order, the tables of iptables as one."""
    tables = dict.fromkeys(("nat", "filter"), "rules")
    return list(dict.fromkeys(tables.get(scope, scope) for scope, _ in planned(*changes)))


OLD_CHAIN = {Chain("nat", "KUBE-SVC-AAAAAAAAAAAAAAAA"): ()}


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([], ["ipset", "ipvs", "rules", "addresses"], id="nobody else serves"),
        pytest.param(
            [change(B, drops=OLD_CHAIN)],
            ["ipset", "ipvs", "addresses", "rules"],
            id="rules of iptables mode still serve",
        ),
    ],
)
def test_new_objects_come_from_the_packets_end_to_its_beginning(others, expected):
    assert expected == scopes(change(A, ALL), *others)


def test_a_whole_comes_before_its_parts():
    by_scope = dict(planned(change(A, ALL)))
    assert [(A, [SET, MEMBER], [])] == by_scope["ipset"]
    assert [(A, [WEB, real(WEB, 1)], [])] == by_scope["ipvs"]


def test_objects_go_in_the_opposite_order():
    assert ["rules", "addresses", "ipvs", "ipset"] == scopes(change(A, drops=ALL))


def test_everything_new_is_in_before_anything_goes():
    both = planned(change(A, put(WEB, ADDRESS), put(API, MEMBER)))
    assert ["ipvs", "addresses", "ipvs", "ipset"] == [scope for scope, _ in both]


def test_the_base_comes_first():
    changes = change(A, put(MEMBER)), change(BASE, put(SET)), change(B, put(entry("S", "1")))
    ((_, parts),) = planned(*changes)
    assert [BASE, A, B] == [owner for owner, _, _ in parts]


def test_all_owners_of_one_kind_go_together():
    changes = [change((f"ns{n}", "x"), put(tcp(f"10.96.1.{n}"))) for n in range(200)]
    ((scope, parts),) = planned(*changes)
    assert ("ipvs", 200) == (scope, len(parts))


@pytest.mark.parametrize("drops", [False, True])
def test_what_is_replaced_is_told_with_what_replaces_it(drops):
    old = {WEB: "before", ADDRESS: "another kind"}
    first, *_ = plan([change(A, put(WEB), put(API) if drops else {}, old)], plan_rules)
    assert [{WEB: "before"}] == [c.old for c in first.changes]


def test_nothing_makes_no_transaction():
    assert [] == planned()
    assert [] == planned(change(A))


def test_rules_are_those_of_the_iptables_backend():
    assert {**CHAIN, **RULE} == rules_in(ALL)
