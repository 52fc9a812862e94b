"""What follows from a pass: health, counters, Events, health check ports, UDP flows."""

from __future__ import annotations

import pytest

from pykubeproxy import reactions as module
from pykubeproxy.host.conntrack import Removed
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import Kind, ObjectKey, ServiceKey
from pykubeproxy.reactions import FlowCleaner, Reactions
from pykubeproxy.serve.status import Status
from pykubeproxy.sync.flows import FlowTable, Scope
from pykubeproxy.sync.reconciler import Reconciler, Report
from pykubeproxy.sync.store import Store
from pykubeproxy.watch.source import Put, Replaced
from tests.build import endpoint, node, port, service, slice_, slice_port
from tests.fakes.dataplane import MemoryDataplane, PlainCompiler

V4 = Family.IPV4
DNS = ServiceKey("default", "dns")


class Health:
    """Takes what is published."""

    status: Status

    def publish(self, status):
        self.status = status


class Ports:
    """Takes which health check ports are wanted."""

    wanted: dict | None = None
    updates = ()
    stopped = 0

    def stop(self):
        self.stopped += 1

    def sync(self, wanted):
        self.wanted = dict(wanted)

    def update(self, changes):
        self.updates = (*self.updates, changes)


class Rig:
    def __init__(self):
        self.metrics = Metrics()
        self.health = Health()
        self.ports = Ports()
        self.cleaner = FlowCleaner(self.metrics, lambda: 0.0)
        self.submitted = []
        self.cleaner.submit = lambda *job: self.submitted.append(job)
        self.happened = []
        self.reactions = Reactions(
            self.metrics, self.health, Status(60.0), lambda *_: self.ports, self.cleaner,
            self.happened.append,
        )  # fmt: skip
        self.reactions.node_described({V4: NodeContext("node", V4)})
        self.kernel = MemoryDataplane()
        self.reconciler = Reconciler(V4, PlainCompiler(), self.kernel, lambda: 0.0)
        self.store = Store()

    def run(self, *objects):
        for obj in objects:
            self.store.put(obj)
        report = self.reconciler.run(self.store.take(), self.store, NodeContext("node", V4))
        self.reactions.synced(self.reconciler, report, 0.1)
        return report

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def rig():
    return Rig()


def dns(*addresses):
    return (
        service("dns", cluster_ip="10.96.0.10", ports=[port(53, "dns", "UDP")]),
        slice_("dns", *map(endpoint, addresses), ports=[slice_port(53, "dns", "UDP")]),
    )


def test_the_node_decides_about_eligibility(rig):
    assert not rig.health.status.node_eligible
    rig.reactions.node_changed(node())
    assert rig.health.status.node_eligible


def test_a_waiting_change_is_pending_until_a_pass_succeeds(rig):
    rig.reactions.requested([V4])
    assert rig.health.status.families[V4].queued is not None
    rig.run()
    assert rig.health.status.families[V4].queued is None


def test_a_failed_pass_leaves_the_change_pending(rig):
    rig.reactions.requested([V4])
    rig.kernel.unknowns.append("before")
    rig.run(service("a"))
    assert rig.health.status.families[V4].queued is not None
    assert rig.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv4") is None


def test_events_are_counted_by_kind(rig):
    rig.reactions.received(Replaced(Kind.SERVICE, (service("a"), service("b"))))
    rig.reactions.received(Put(Kind.ENDPOINT_SLICE, slice_("a", endpoint("10.0.0.1"))))
    rig.reactions.received(Put(Kind.NODE, node()))
    assert rig.value("kubeproxy_sync_proxy_rules_service_changes_total") == 2
    assert rig.value("kubeproxy_sync_proxy_rules_endpoint_changes_total") == 1


def test_transactions_are_counted_by_outcome(rig):
    rig.kernel.refused.add(ServiceKey("default", "a"))
    rig.run(service("a"), service("b", cluster_ip="10.96.0.2"))
    name, labels = "pykubeproxy_transactions_total", {"ip_family": "IPv4"}
    assert rig.value(name, outcome="rejected", **labels) == 3
    assert rig.value(name, outcome="applied", **labels) == 2
    assert rig.value("pykubeproxy_services_quarantined", **labels) == 1


def test_a_quarantine_makes_an_event_on_the_service(rig):
    rig.kernel.refused.add(ServiceKey("default", "a"))
    rig.run(service("a"))
    assert [(ServiceKey("default", "a"), "FailedToProgramService")] == [
        (h.service, h.reason) for h in rig.happened
    ]


def test_a_problem_makes_one_event_on_the_service_for_both_families(rig):
    problem = (ServiceKey("default", "a"), "another scheduler is used")
    for family in Family:
        for _ in range(2):
            rig.reactions.synced(rig.reconciler, Report(family, problems=[problem]), 0.1)
    assert [("ServiceNotAsConfigured", *problem)] == [
        (h.reason, h.service, h.note) for h in rig.happened
    ]


def test_different_problems_make_an_event_each(rig):
    a, b = ServiceKey("default", "a"), ServiceKey("default", "b")
    problems = [(a, "one"), (a, "two"), (b, "one")]
    rig.reactions.synced(rig.reconciler, Report(V4, problems=problems), 0.1)
    assert problems == [(h.service, h.note) for h in rig.happened]


def test_a_problem_is_told_although_the_pass_failed(rig):
    problem = (ServiceKey("default", "a"), "another scheduler is used")
    rig.reactions.synced(rig.reconciler, Report(V4, succeeded=False, problems=[problem]), 0.1)
    assert [problem] == [(h.service, h.note) for h in rig.happened]


def test_problems_of_very_many_services_take_bounded_memory(rig):
    for n in range(3 * module.REMEMBERED_PROBLEMS):
        problem = (ServiceKey("default", f"s{n}"), "x")
        rig.reactions.synced(rig.reconciler, Report(V4, problems=[problem]), 0.1)
    assert len(rig.reactions._told) <= module.REMEMBERED_PROBLEMS


def test_a_repair_makes_an_event_and_is_counted(rig):
    rig.reactions.repairing(V4)
    assert ["RulesFlushed"] == [h.reason for h in rig.happened]
    assert rig.value("pykubeproxy_repairs_total", ip_family="IPv4") == 1


def test_health_check_ports_follow_a_successful_pass(rig):
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.run(web, slice_("web", endpoint("10.0.0.1", node="node")))
    assert {web.key: (31000, 1)} == rig.ports.wanted
    rig.run(service("other", cluster_ip="10.96.0.9"))
    rig.run(slice_("web", endpoint("10.0.0.1")))
    rig.store.drop(Kind.SERVICE, ObjectKey(*web.key))
    rig.run()
    assert ({}, {web.key: (31000, 0)}, {web.key: None}) == rig.ports.updates


def test_health_check_ports_wait_for_a_pass_that_succeeds(rig):
    rig.run()
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.kernel.unknowns.append("before")
    rig.run(web, slice_("web", endpoint("10.0.0.1", node="node")))
    assert () == rig.ports.updates
    rig.run()
    assert ({web.key: (31000, 1)},) == rig.ports.updates


def test_new_responders_hear_of_all_ports(rig):
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.run(web)
    rig.ports.wanted = None
    rig.reactions.node_described({V4: NodeContext("node", V4, nodeport_addresses=("192.0.2.9",))})
    rig.run()
    assert {web.key: (31000, 0)} == rig.ports.wanted


def test_a_port_that_cannot_be_opened_makes_an_event(rig):
    rig.reactions.port_refused(ServiceKey("default", "web"), 31000, "in use")
    assert ["FailedToStartServiceHealthcheck"] == [h.reason for h in rig.happened]
    assert "31000" in rig.happened[0].note


def test_what_other_modes_left_goes_once_everything_is_in_sync():
    rig = Rig()
    calls = []
    rig.reactions = Reactions(
        rig.metrics, rig.health, Status(60.0), lambda *_: rig.ports, rig.cleaner,
        rig.happened.append, lambda: calls.append(1),
    )  # fmt: skip
    rig.reactions.node_described({V4: NodeContext("node", V4)})
    rig.kernel.unknowns.append("before")
    rig.run(service("a"))
    assert calls == []
    rig.run()
    rig.run(service("b"))
    assert calls == [1]


def test_stale_flows_are_looked_for_after_udp_endpoints_changed(rig):
    rig.run(*dns("10.0.0.1"))
    assert [(V4, Scope(everything=True))] == [(f, scope) for f, _, scope in rig.submitted]
    rig.submitted.clear()
    rig.run(*dns("10.0.0.2"))
    family, table, scope = rig.submitted[0]
    assert (V4, frozenset({("10.96.0.10", 53)})) == (family, scope.addresses)
    assert {("10.96.0.10", 53): frozenset({"10.0.0.2:53"})} == dict(table.by_address)


def test_what_is_asked_for_meanwhile_is_done_in_one_go(rig, monkeypatch):
    """By what is known last, so that no flow is cut that may stay by now."""
    a, b = ("10.96.0.10", 53), ("10.96.0.11", 53)
    runs = []

    def remove(family, table, scope):
        runs.append((family, dict(table.by_address), scope.addresses))
        return Removed(0, 0, complete=True)

    monkeypatch.setattr(module, "remove_stale", remove)
    cleaner = FlowCleaner(rig.metrics, lambda: 0.0)
    one, two = frozenset({"10.0.0.1:53"}), frozenset({"10.0.0.2:53"})
    cleaner.submit(V4, FlowTable({a: one}, {}), Scope(addresses=frozenset({a})))
    cleaner.submit(Family.IPV6, FlowTable({}, {}), Scope())
    cleaner.submit(V4, FlowTable({b: one}, {}), Scope(addresses=frozenset({b})))
    cleaner.submit(V4, FlowTable({a: two}, {}), Scope(addresses=frozenset({a})))
    cleaner.start()
    cleaner.stop()
    expected = [(V4, {a: two, b: one}, frozenset({a, b})), (Family.IPV6, {}, frozenset())]
    assert expected == runs


def test_a_failed_search_is_asked_for_again(rig, monkeypatch):
    answers = [Removed(5, 2, complete=False)]
    monkeypatch.setattr(module, "remove_stale", lambda *_: answers.pop(0))
    cleaner = FlowCleaner(rig.metrics, lambda: 0.0)
    cleaner.start()
    scope = Scope(addresses=frozenset({("10.96.0.10", 53)}))
    cleaner.submit(V4, FlowTable({}, {}), scope)
    cleaner.stop()
    assert [scope] == cleaner.take_failed(V4)
    assert cleaner.take_failed(V4) == []
    deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total"
    assert rig.value(deleted, ip_family="IPv4") == 2


def test_health_check_ports_move_with_the_node_port_addresses(rig):
    def described(*addresses):
        rig.reactions.node_described({V4: NodeContext("node", V4, nodeport_addresses=addresses)})
        return rig.ports.stopped

    assert [1, 1, 2] == [described("192.0.2.1"), described("192.0.2.1"), described("192.0.2.2")]
