"""What follows from a pass: health, counters, Events, health check ports, UDP flows."""

from __future__ import annotations

from collections import Counter

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
from pykubeproxy.sync.reconciler import Quarantine, Reconciler, Report
from pykubeproxy.sync.store import Arrivals, Store
from pykubeproxy.watch.events import Happening
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


@pytest.mark.parametrize(
    ("families", "services", "slices", "pending"),
    [
        pytest.param([V4], 2, 3, 2, id="single stack: slices of the family"),
        pytest.param([V4, Family.IPV6], 4, 8, 3, id="dual stack: Services twice"),
    ],
)
def test_arrivals_are_counted_as_each_family_sees_them(rig, families, services, slices, pending):
    arrivals = Arrivals(
        services=2,
        slices=Counter(IPv4=3, IPv6=5, FQDN=7),
        changed_slices=Counter(IPv4=2, IPv6=1, FQDN=1),
    )
    rig.reactions.received(arrivals, families, 2)
    stem = "kubeproxy_sync_proxy_rules"
    assert services == rig.value(f"{stem}_service_changes_total")
    assert slices == rig.value(f"{stem}_endpoint_changes_total")
    assert pending == rig.value(f"{stem}_endpoint_changes_pending")
    assert 2 == rig.value(f"{stem}_service_changes_pending")
    rig.reactions.syncing()
    assert 0 == rig.value(f"{stem}_endpoint_changes_pending")
    assert 0 == rig.value(f"{stem}_service_changes_pending")


def test_the_start_counts_as_an_update_that_was_asked_for(rig):
    rig.reactions.started([V4])
    assert rig.health.status.families[V4].updated is not None
    assert rig.health.status.families[V4].queued is None
    stem = "kubeproxy_sync_proxy_rules_last"
    assert rig.value(f"{stem}_queued_timestamp_seconds", ip_family="IPv4") > 0
    assert rig.value(f"{stem}_timestamp_seconds", ip_family="IPv4") is None


def test_readiness_names_what_is_missing_until_every_family_is_in_sync(rig):
    waiting = [rig.health.status.waiting_for]
    for act in (
        lambda: rig.reactions.started([V4]),
        lambda: rig.reactions.lacking([Kind.NODE, Kind.SERVICE]),
        lambda: rig.reactions.lacking([Kind.SERVICE]),
        lambda: rig.reactions.lacking([]),
        lambda: rig.reactions.awaiting("Node node-0"),
        lambda: rig.reactions.awaiting(""),
    ):
        act()
        waiting.append(rig.health.status.waiting_for)
    assert waiting[1:] == [
        ("first sync IPv4",),
        ("Node list", "Service list", "first sync IPv4"),
        ("Service list", "first sync IPv4"),
        ("first sync IPv4",),
        ("Node node-0", "first sync IPv4"),
        ("first sync IPv4",),
    ]
    rig.kernel.unknowns.append("before")
    rig.run(service("a"))
    assert (False, 0) == (rig.health.status.is_ready, rig.value("pykubeproxy_ready"))
    rig.run()
    assert (True, 1) == (rig.health.status.is_ready, rig.value("pykubeproxy_ready"))


def test_failed_passes_are_counted(rig):
    rig.reactions.started([V4])
    rig.run(service("a"))
    assert 0 == rig.value("pykubeproxy_sync_failures_total", ip_family="IPv4")
    rig.kernel.unknowns.append("before")
    rig.run(service("a", ports=[81]))
    assert 1 == rig.value("pykubeproxy_sync_failures_total", ip_family="IPv4")


def test_stages_are_measured_where_there_were_any(rig):
    def stages():
        name = "pykubeproxy_sync_stage_duration_seconds_count"
        return tuple(
            rig.value(name, ip_family="IPv4", stage=stage)
            for stage in ("decide", "observe", "diff", "write")
        )

    rig.run(service("a"))
    assert (1, 1, 1, 1) == stages()
    rig.run()
    assert (2, 1, 2, 1) == stages()
    rig.run(service("a", ports=[81]))
    assert (3, 1, 3, 2) == stages()


def synced(rig, **fields):
    rig.reactions.synced(rig.reconciler, Report(V4, **fields), 0.1)


@pytest.mark.parametrize(
    ("triggers", "expected"),
    [
        pytest.param((), None, id="none"),
        pytest.param(("2026-01-02T03:04:05.9Z",), (1, 0.1), id="one"),
        pytest.param(("2026-01-02T03:04:05Z",), None, id="before this program"),
        pytest.param(("2026-01-02T03:04:05.6Z",) * 2 + ("x",), (2, 0.8), id="two, one unreadable"),
    ],
)
def test_programming_latency_is_from_the_cause_to_the_kernel(rig, triggers, expected):
    moments = iter([1767323045.5, 1767323046.0])  # of the start of this program, and now
    rig.reactions = Reactions(
        rig.metrics, rig.health, Status(60.0), lambda *_: rig.ports, rig.cleaner,
        rig.happened.append, unix_clock=lambda: next(moments),
    )  # fmt: skip
    synced(rig, triggers=triggers)
    for name in ("kubeproxy_network", "pykubeproxy_network"):
        stem = f"{name}_programming_duration_seconds"
        if expected is None:
            assert rig.value(f"{stem}_count", ip_family="IPv4") is None
        else:
            count, seconds = expected
            assert count == rig.value(f"{stem}_count", ip_family="IPv4")
            assert seconds == pytest.approx(rig.value(f"{stem}_sum", ip_family="IPv4"), abs=1e-4)


def test_a_failed_pass_loses_the_causes_and_changes_wait_on(rig):
    late = "2999-01-02T03:04:05Z"
    synced(rig, succeeded=False, triggers=(late,), waited=[])
    assert rig.value("kubeproxy_network_programming_duration_seconds_count", ip_family="IPv4") is (
        None
    )
    assert rig.value("pykubeproxy_change_duration_seconds_count", ip_family="IPv4") is None


def test_the_time_that_changes_waited_is_measured(rig):
    synced(rig, waited=[0.25, 0.5])
    assert 2 == rig.value("pykubeproxy_change_duration_seconds_count", ip_family="IPv4")
    assert 0.75 == rig.value("pykubeproxy_change_duration_seconds_sum", ip_family="IPv4")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"full": True, "outcomes": {("nat", "rejected"): 1}}, None),
        ({"full": False, "outcomes": {("nat", "applied"): 1}}, None),
        ({"full": False, "outcomes": {("nat", "applied"): 1, ("nat", "rejected"): 2}}, 1),
    ],
)
def test_partial_passes_that_were_refused_something_are_counted(rig, fields, expected):
    synced(rig, **fields)
    name = "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total"
    assert expected == rig.value(name, ip_family="IPv4")


def test_a_service_that_comes_out_of_quarantine_makes_an_event(rig):
    web, left = ServiceKey("default", "a"), ServiceKey("", "(leftover x)")
    synced(rig, recovered=[web, left])
    assert [("ProgrammedService", False, web)] == [
        (h.reason, h.warning, h.service) for h in rig.happened
    ]


def test_a_quarantine_that_lasts_is_the_same_event_each_time(rig):
    a = ServiceKey("default", "a")
    for attempt in (1, 2, 3):
        synced(rig, quarantined=[Quarantine(a, "no such target", attempt, 2.0**attempt, 0.0)])
    assert 1 == len(set(rig.happened))
    assert 3 == len(rig.happened)


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


def test_an_event_on_a_service_has_the_uid_of_that_one(rig):
    rig.reactions.uid_of = {ServiceKey("default", "a"): "1-2-3"}.__getitem__
    rig.kernel.refused.add(ServiceKey("default", "a"))
    rig.run(service("a"))
    rig.reactions.repairing(V4, edited=False)
    assert ["1-2-3", ""] == [happening.service_uid for happening in rig.happened]


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


@pytest.mark.parametrize(
    ("edited", "reason", "what"),
    [(False, "RulesFlushed", "removed"), (True, "RulesEdited", "changed")],
)
def test_a_repair_makes_an_event_and_is_counted(rig, edited, reason, what):
    rig.reactions.repairing(V4, edited=edited)
    assert [reason] == [h.reason for h in rig.happened]
    assert what in rig.happened[0].note
    assert rig.value("pykubeproxy_repairs_total", ip_family="IPv4") == 1


def test_a_cluster_cidr_that_does_not_fit_is_told_on_the_node(rig):
    rig.reactions.mismatched("the IPv4 podCIDRs of this node")
    expected = Happening(
        "ClusterCIDRMismatch", "StartKubeProxy", "the IPv4 podCIDRs of this node", warning=True
    )
    assert [expected] == rig.happened


def test_health_check_ports_follow_a_successful_pass(rig):
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.run(web, slice_("web", endpoint("10.0.0.1", node="node")))
    assert {web.key: (31000, 1)} == rig.ports.wanted
    assert 1 == rig.value("pykubeproxy_service_health_ports", ip_family="IPv4")
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


def test_health_check_ports_of_a_refused_service_wait_until_it_is_written(rig):
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.run(service("other", cluster_ip="10.96.0.9"))
    rig.kernel.refused = {web.key}
    rig.run(web, slice_("web", endpoint("10.0.0.1", node="node")))
    assert 0 == rig.value("pykubeproxy_service_health_ports", ip_family="IPv4")
    rig.reactions.node_described({V4: NodeContext("node", V4, nodeport_addresses=("192.0.2.9",))})
    rig.run(service("other", cluster_ip="10.96.0.9", ports=[81]))
    assert {} == rig.ports.wanted
    rig.kernel.refused.clear()
    rig.run(slice_("web", endpoint("10.0.0.2", node="node")))
    assert [{web.key: (31000, 1)}] == [update for update in rig.ports.updates if update]


def test_a_kernel_that_refuses_everything_fails_the_pass_of_a_single_service(rig):
    rig.run()
    rig.reactions.requested([V4])
    rig.kernel.refuses_all = "Permission denied"
    rig.run(service("a"))
    assert rig.health.status.families[V4].queued is not None
    assert 1 == rig.value("pykubeproxy_sync_failures_total", ip_family="IPv4")
    assert 0 == rig.value("pykubeproxy_services_quarantined", ip_family="IPv4")
    assert [] == rig.happened


def test_new_responders_hear_of_all_ports(rig):
    web = service("web", type="LoadBalancer", external_policy="Local", health_check_node_port=31000)
    rig.run(web)
    rig.ports.wanted = None
    rig.reactions.node_described({V4: NodeContext("node", V4, nodeport_addresses=("192.0.2.9",))})
    rig.run()
    assert {web.key: (31000, 0)} == rig.ports.wanted


def test_a_port_that_cannot_be_opened_makes_an_event(rig):
    rig.reactions.port_refused(ServiceKey("default", "web"), 31000, "in use")
    web = ServiceKey("default", "web")
    note = 'node node failed to start healthcheck "default/web" on port 31000: in use'
    assert [Happening("FailedToStartServiceHealthcheck", "Listen", note, service=web)] == (
        rig.happened
    )


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


def test_a_search_with_nothing_to_look_for_is_counted(rig):
    """As in kube-proxy; the kernel is not asked."""
    cleaner = FlowCleaner(rig.metrics, lambda: 0.0)
    rig.cleaner.submit = cleaner.submit
    rig.run(service("other", cluster_ip="10.96.0.9"))
    rig.run(*dns("10.0.0.1"), *dns())
    rig.store.put(dns("10.0.0.1")[1])
    rig.reconciler.run(rig.store.take(), rig.store, NodeContext("node", V4))
    rig.reconciler.flows.take_scope()
    rig.run(dns()[1])
    cleaner.start()
    cleaner.stop()
    stem = "kubeproxy_conntrack_reconciler"
    assert 1 == rig.value(f"{stem}_sync_duration_seconds_count", ip_family="IPv4")
    assert 0 == rig.value(f"{stem}_deleted_entries_total", ip_family="IPv4")


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


@pytest.mark.parametrize(
    ("removed", "expected"),
    [
        pytest.param(Removed(0, 0, complete=True), 1, id="an empty table"),
        pytest.param(Removed(5, 1, complete=False), 1, id="a deletion failed"),
        pytest.param(Removed(0, 0, complete=False), None, id="the table cannot be read"),
    ],
)
def test_searches_count_that_got_past_listing(rig, monkeypatch, removed, expected):
    monkeypatch.setattr(module, "remove_stale", lambda *_: removed)
    cleaner = FlowCleaner(rig.metrics, lambda: 0.0)
    cleaner.submit(V4, FlowTable({}, {}), Scope())
    cleaner.start()
    cleaner.stop()
    name = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count"
    assert expected == rig.value(name, ip_family="IPv4")


def test_health_check_ports_move_with_the_node_port_addresses(rig):
    def described(*addresses):
        rig.reactions.node_described({V4: NodeContext("node", V4, nodeport_addresses=addresses)})
        return rig.ports.stopped

    assert [1, 1, 2] == [described("192.0.2.1"), described("192.0.2.1"), described("192.0.2.2")]
