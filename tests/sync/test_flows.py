from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Action, FrontendKind, Protocol
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Frontend, PortKey, Route, Verdict
from pykubeproxy.sync.flows import FlowIndex, FlowTable, Scope, flow_table, is_stale, joined

DNS = ServiceKey("kube-system", "dns")
OTHER = ServiceKey("ns", "other")
FORWARD = Verdict(Action.FORWARD)


def route(
    serving=(), addresses=("10.96.0.10",), port=53, node_port=0, owner=DNS, name="dns",
    protocol=Protocol.UDP,
):  # fmt: skip
    fronts = [Frontend(FrontendKind.CLUSTER_IP, a, port, FORWARD, FORWARD) for a in addresses]
    if node_port:
        fronts.append(Frontend(FrontendKind.NODE_PORT, None, node_port, FORWARD, FORWARD))
    return Route(PortKey(owner, name, protocol), tuple(fronts), (), (), frozenset(serving))


TABLE = flow_table([route({"10.1.0.1:5353", "10.1.0.2:5353"}, ["10.96.0.10", "5.5.5.5"],
                          node_port=30053)])  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param((17, "10.96.0.10", 53, "10.1.0.9", 5353), True, id="removed endpoint"),
        pytest.param((17, "10.96.0.10", 53, "10.1.0.1", 53), True, id="old endpoint port"),
        pytest.param((17, "10.96.0.10", 53, "10.96.0.10", 53), True, id="never translated"),
        pytest.param((17, "10.96.0.10", 53, "10.1.0.2", 5353), False, id="serving endpoint"),
        pytest.param((17, "5.5.5.5", 53, "10.1.0.9", 5353), True, id="every address of it"),
        pytest.param((17, "10.96.0.10", 54, "10.1.0.9", 5353), False, id="another port"),
        pytest.param((17, "10.96.0.99", 53, "10.1.0.9", 5353), False, id="another address"),
        pytest.param((6, "10.96.0.10", 53, "10.1.0.9", 5353), False, id="TCP"),
        pytest.param((132, "10.96.0.10", 53, "10.1.0.9", 5353), False, id="SCTP"),
        pytest.param((17, "192.0.2.1", 30053, "10.1.0.9", 5353), True, id="node port"),
        pytest.param((17, "192.0.2.1", 30053, "10.1.0.1", 5353), False, id="node port, serving"),
        pytest.param((17, "8.8.8.8", 30053, "8.8.8.8", 30053), True, id="unrelated, same port"),
    ],
)
def test_the_rule_for_one_entry(entry, expected):
    assert is_stale(TABLE, *entry) is expected


def test_ipv6_endpoints_are_bracketed():
    table = flow_table([route({"[fd00::1]:53"}, ["fd96::a"])])
    assert not is_stale(table, 17, "fd96::a", 53, "fd00::1", 53)
    assert is_stale(table, 17, "fd96::a", 53, "fd00::2", 53)


def test_a_port_that_nobody_serves_is_left_out():
    assert flow_table([route()]) == FlowTable({}, {})


def test_only_udp_counts():
    assert flow_table([route({"10.1.0.1:53"}, protocol=Protocol.TCP)]) == FlowTable({}, {})


def test_two_claims_keep_the_flows_of_both():
    first = route({"10.1.0.1:53"})
    second = route({"10.1.0.2:53"}, owner=OTHER)
    table = flow_table([first, second])
    assert table.by_address == {("10.96.0.10", 53): frozenset({"10.1.0.1:53", "10.1.0.2:53"})}


@pytest.fixture
def index():
    """Knows DNS and has had its first run."""
    index = FlowIndex()
    index.update(DNS, [route({"10.1.0.1:53"}, node_port=30053)])
    index.take_scope()
    return index


def test_the_first_run_looks_at_everything():
    index = FlowIndex()
    index.update(DNS, [route({"10.1.0.1:53"})])
    assert index.take_scope() == Scope(everything=True)
    assert index.take_scope() is None


def test_there_is_no_first_run_without_udp_endpoints():
    index = FlowIndex()
    index.update(DNS, [route(), route({"10.1.0.1:53"}, protocol=Protocol.TCP)])
    assert index.take_scope() is None


def test_a_run_looks_at_what_changed_only(index):
    index.update(OTHER, [route({"10.1.0.7:53"}, ["10.96.0.7"], owner=OTHER)])
    assert index.take_scope() == Scope(addresses=frozenset({("10.96.0.7", 53)}))


def test_changed_endpoints_name_every_destination(index):
    index.update(DNS, [route({"10.1.0.2:53"}, node_port=30053)])
    scope = index.take_scope()
    assert scope == Scope(addresses=frozenset({("10.96.0.10", 53)}), node_ports=frozenset({30053}))


def test_the_same_again_is_no_reason(index):
    index.update(DNS, [route({"10.1.0.1:53"}, node_port=30053)])
    assert index.take_scope() is None


def test_a_slice_change_is_a_reason_even_with_the_same_endpoints(index):
    index.update(DNS, [route({"10.1.0.1:53"})], endpoints_changed=True)
    assert index.take_scope() == Scope(addresses=frozenset({("10.96.0.10", 53)}))


def test_a_service_change_waits_for_the_next_run(index):
    index.update(DNS, [route({"10.1.0.1:53"}, ["10.96.0.10", "5.5.5.5"], node_port=30053)])
    assert index.take_scope() is None
    index.update(OTHER, [route({"10.1.0.7:53"}, ["10.96.0.7"], owner=OTHER)])
    assert index.take_scope() == Scope(
        addresses=frozenset({("10.96.0.7", 53), ("5.5.5.5", 53), ("10.96.0.10", 53)}),
        node_ports=frozenset({30053}),
    )


@pytest.mark.parametrize(
    ("routes", "endpoints_changed", "expected"),
    [
        pytest.param([], None, None, id="deleted"),
        pytest.param([], True, Scope(), id="deleted with its slices"),
        pytest.param([route()], None, Scope(), id="nobody serves it any more"),
        pytest.param([route()], True, Scope(), id="its slice says that nobody serves it any more"),
    ],
)
def test_what_nobody_serves_is_not_looked_for(index, routes, endpoints_changed, expected):
    index.update(DNS, routes, endpoints_changed)
    assert expected == index.take_scope()
    assert index.take_scope() is None
    assert index.table() == FlowTable({}, {})


def test_a_first_run_without_anything_served_has_nothing_to_look_at():
    index = FlowIndex()
    index.update(DNS, [route({"10.1.0.1:53"})])
    index.update(DNS, [])
    assert Scope() == index.take_scope()
    assert index.take_scope() is None


def test_a_failed_run_is_given_back(index):
    index.update(DNS, [route({"10.1.0.2:53"})])
    scope = index.take_scope()
    index.give_back(scope)
    assert index.take_scope() == scope


def test_a_failed_first_run_is_given_back():
    index = FlowIndex()
    index.update(DNS, [route({"10.1.0.1:53"})])
    index.give_back(index.take_scope())
    assert index.take_scope() == Scope(everything=True)


def test_a_table_can_be_cut_to_a_scope(index):
    index.update(OTHER, [route({"10.1.0.7:53"}, ["10.96.0.7"], owner=OTHER)])
    assert index.table(index.take_scope()) == FlowTable(
        {("10.96.0.7", 53): frozenset({"10.1.0.7:53"})}, {}
    )


def test_a_table_is_a_copy(index):
    table = index.table()
    index.update(DNS, [])
    assert table.by_node_port == {30053: frozenset({"10.1.0.1:53"})}


A, B = ("10.96.0.10", 53), ("10.96.0.11", 53)
OLD, NEW = frozenset({"10.1.0.1:53"}), frozenset({"10.1.0.2:53"})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(
            (FlowTable({A: OLD}, {30053: OLD}), Scope(False, frozenset({A}), frozenset({30053}))),
            (FlowTable({A: NEW, B: NEW}, {}), Scope(False, frozenset({A, B}))),
            (
                FlowTable({A: NEW, B: NEW}, {30053: OLD}),
                Scope(False, frozenset({A, B}), frozenset({30053})),
            ),
            id="the newer endpoints count",
        ),
        pytest.param(
            (FlowTable({A: OLD, B: OLD}, {}), Scope(everything=True)),
            (FlowTable({A: NEW}, {}), Scope(False, frozenset({A}))),
            (FlowTable({A: NEW, B: OLD}, {}), Scope(True, frozenset({A}))),
            id="everything was asked for first",
        ),
        pytest.param(
            (FlowTable({A: OLD}, {}), Scope(False, frozenset({A}))),
            (FlowTable({B: NEW}, {}), Scope(everything=True)),
            (FlowTable({B: NEW}, {}), Scope(everything=True)),
            id="everything was asked for last",
        ),
    ],
)
def test_two_runs_become_one(first, second, expected):
    assert expected == joined(*first, *second)
