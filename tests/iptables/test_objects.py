from __future__ import annotations

from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    SharedChain,
    TailRule,
    rules_by_table,
)


def test_keys_of_different_kinds_are_never_equal():
    keys = [
        Chain("nat", "X"),
        SharedChain("nat", "X"),
        Presence("nat", "X"),
        DispatchRule("nat", "X", "r"),
        TailRule("nat", "X", "r"),
        Jump("nat", "X", "r"),
    ]
    assert len(set(keys)) == len(keys)


def test_the_same_name_in_another_table_is_another_chain():
    assert Chain("nat", "KUBE-NODEPORTS") != Chain("filter", "KUBE-NODEPORTS")


def test_a_dispatch_rule_reads_well_in_a_report_of_conflicts():
    key = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 443")
    assert str(key) == "tcp 10.96.0.1 443 in nat KUBE-SERVICES"


def test_rules_are_counted_by_table():
    objects = {
        Chain("nat", "X"): ("-j A", "-j B"),
        DispatchRule("nat", "Y", "r"): ("-j X",),
        SharedChain("filter", "Y"): (),
        Jump("filter", "INPUT", "Y"): ("-j Y",),
    }
    assert {"nat": 3, "filter": 1} == rules_by_table(objects)
