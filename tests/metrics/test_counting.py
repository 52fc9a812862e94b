from __future__ import annotations

import pytest
from prometheus_client.exposition import generate_latest

from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey

WEB, DB = ServiceKey("shop", "web"), ServiceKey("shop", "db")
V4 = Family.IPV4
FAMILY = {"ip_family": "IPv4"}


def written(metrics, scope):
    metrics.written(V4, scope, rules=3, chains=2, lines=7, sent_bytes=99)


@pytest.mark.parametrize(
    ("act", "name", "labels", "expected"),
    [
        (lambda m: m.sync_ended(V4, 0.5), "kubeproxy_sync_proxy_rules_duration_seconds_sum",
         FAMILY, 0.5),
        (lambda m: m.sync_succeeded(V4, 7.0),
         "kubeproxy_sync_proxy_rules_last_timestamp_seconds", FAMILY, 7.0),
        (lambda m: m.sync_queued(V4, 7.0),
         "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", FAMILY, 7.0),
        (lambda m: m.holds(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_total", {**FAMILY, "table": "nat"}, 9),
        (lambda m: m.holds(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_last", {**FAMILY, "table": "nat"}, 3),
        (lambda m: m.holds(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_last", {**FAMILY, "table": "filter"}, 0),
        (lambda m: m.holds(V4, {"nat": 9, "mangle": 0}, {}),
         "kubeproxy_sync_proxy_rules_iptables_total", {**FAMILY, "table": "mangle"}, None),
        (lambda m: written(m, "nat"), "pykubeproxy_rules_written_total", FAMILY, 3),
        (lambda m: written(m, "nat"), "pykubeproxy_chains_written_total", FAMILY, 2),
        (lambda m: written(m, "nat"), "pykubeproxy_sent_lines_total", FAMILY, 7),
        (lambda m: written(m, "nat"), "pykubeproxy_sent_bytes_total",
         {**FAMILY, "scope": "nat"}, 99),
        (lambda m: written(m, "ipvs"), "pykubeproxy_netlink_messages_total",
         {**FAMILY, "scope": "ipvs"}, 3),
        (lambda m: written(m, "ipvs"), "pykubeproxy_sent_lines_total", FAMILY, None),
        (lambda m: m.decided(V4, 1, 2, 3), "pykubeproxy_services_decided_total", FAMILY, 1),
        (lambda m: m.decided(V4, 1, 2, 3), "pykubeproxy_routes_compiled_total", FAMILY, 2),
        (lambda m: m.decided(V4, 1, 2, 3), "pykubeproxy_objects_compiled_total", FAMILY, 3),
        (lambda m: m.decided(V4, 1, 2, 3), "pykubeproxy_last_sync_services", FAMILY, 1),
        (lambda m: m.objects_changed(V4, {"Chain": 2}, {"Real": 5}),
         "pykubeproxy_objects_written_total", {**FAMILY, "kind": "Chain"}, 2),
        (lambda m: m.objects_changed(V4, {"Chain": 2}, {"Real": 5}),
         "pykubeproxy_objects_removed_total", {**FAMILY, "kind": "Real"}, 5),
        (lambda m: m.objects_changed(V4, {"Chain": 2}, {"Real": 5}),
         "pykubeproxy_last_sync_objects", FAMILY, 7),
        (lambda m: m.last_sync(V4, 2, 99), "pykubeproxy_last_sync_transactions", FAMILY, 2),
        (lambda m: m.last_sync(V4, 2, 99), "pykubeproxy_last_sync_bytes", FAMILY, 99),
        (lambda m: m.read_back(V4), "pykubeproxy_read_backs_total", FAMILY, 1),
        (lambda m: m.transactions(V4, "nat", "unknown", 1),
         "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", FAMILY, 1),
        (lambda m: m.received(services=2, slices=4, changed_slices=3),
         "kubeproxy_sync_proxy_rules_endpoint_changes_total", {}, 4),
        (lambda m: m.received(services=2, slices=4, changed_slices=3),
         "kubeproxy_sync_proxy_rules_endpoint_changes_pending", {}, 3),
        (lambda m: m.received(services=2, slices=4, changed_slices=3),
         "kubeproxy_sync_proxy_rules_service_changes_total", {}, 2),
        (lambda m: m.services_pending(7),
         "kubeproxy_sync_proxy_rules_service_changes_pending", {}, 7),
        (lambda m: m.sync_ended(V4, 0.5, full=True),
         "kubeproxy_sync_full_proxy_rules_duration_seconds_count", FAMILY, 1),
        (lambda m: m.sync_ended(V4, 0.5, full=True),
         "kubeproxy_sync_partial_proxy_rules_duration_seconds_count", FAMILY, None),
        (lambda m: m.sync_ended(V4, 0.5),
         "kubeproxy_sync_partial_proxy_rules_duration_seconds_count", FAMILY, 1),
        (lambda m: m.partial_restore_failed(V4),
         "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", FAMILY, 1),
        (lambda m: m.programmed(V4, [0.1, 0.3]),
         "kubeproxy_network_programming_duration_seconds_bucket", {**FAMILY, "le": "0.25"}, 1),
        (lambda m: m.programmed(V4, [0.1, 0.3]),
         "pykubeproxy_network_programming_duration_seconds_bucket", {**FAMILY, "le": "0.2"}, 1),
        (lambda m: m.programmed(V4, []),
         "kubeproxy_network_programming_duration_seconds_count", FAMILY, None),
        (lambda m: m.changes_landed(V4, [0.004]),
         "pykubeproxy_change_duration_seconds_bucket", {**FAMILY, "le": "0.005"}, 1),
        (lambda m: m.changes_landed(V4, []),
         "pykubeproxy_change_duration_seconds_count", FAMILY, 0),
        (lambda m: m.stage(V4, "diff", 0.5), "pykubeproxy_sync_stage_duration_seconds_sum",
         {**FAMILY, "stage": "diff"}, 0.5),
        (lambda m: m.sync_failed(V4), "pykubeproxy_sync_failures_total", FAMILY, 1),
        (lambda m: m.started(V4), "pykubeproxy_sync_failures_total", FAMILY, 0),
        (lambda m: m.started(V4), "pykubeproxy_repairs_total", FAMILY, 0),
        (lambda m: m.started(V4), "pykubeproxy_services_quarantined", FAMILY, 0),
        (lambda m: m.started(V4), "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
         FAMILY, None),
        (lambda m: m.started(V4), "pykubeproxy_xtables_lock_wait_seconds_total",
         FAMILY, 0),
        (lambda m: None, "pykubeproxy_ready", {}, 0),
        (lambda m: m.ready(), "pykubeproxy_ready", {}, 1),
        (lambda m: m.health_ports(V4, 3), "pykubeproxy_service_health_ports", FAMILY, 3),
        (lambda m: None, "pykubeproxy_config_file_valid", {}, 1),
        (lambda m: m.config_file_valid(False), "pykubeproxy_config_file_valid", {}, 0),
        (lambda m: m.runs_in_mode("iptables", "ipvs"), "pykubeproxy_proxy_mode",
         {"running": "iptables", "configured": "ipvs"}, 1),
        (lambda m: m.features({"NativeHistograms": False}), "kubernetes_feature_enabled",
         {"name": "NativeHistograms", "stage": "ALPHA"}, 0),
        (lambda m: m.no_local_endpoints(V4, 1, 2),
         "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
         {**FAMILY, "traffic_policy": "external"}, 2),
        (lambda m: m.conntrack_ran(V4, 0.1, 0),
         "kubeproxy_conntrack_reconciler_deleted_entries_total", FAMILY, 0),
        (lambda m: m.conntrack_ran(V4, 0.1, 2), "pykubeproxy_conntrack_deletions_total",
         FAMILY, 2),
        (lambda m: m.conntrack_ran(V4, 0.1, 0, listed=False),
         "kubeproxy_conntrack_reconciler_sync_duration_seconds_count", FAMILY, None),
        (lambda m: m.conntrack_ran(V4, 0.1, 0),
         "kubeproxy_conntrack_reconciler_sync_duration_seconds_count", FAMILY, 1),
        (lambda m: m.health_answered("healthz", 503), "kubeproxy_proxy_healthz_total",
         {"code": "503"}, 1),
        (lambda m: m.health_answered("livez", 200), "kubeproxy_proxy_livez_total",
         {"code": "200"}, 1),
        (lambda m: m.health_answered("readyz", 200), "kubeproxy_proxy_livez_total",
         {"code": "200"}, None),
        (lambda m: m.quarantined(V4, {WEB: True, DB: True}),
         "pykubeproxy_services_quarantined", FAMILY, 2),
        (lambda m: m.lock_waited(V4, 0.5), "pykubeproxy_xtables_lock_wait_seconds_total",
         FAMILY, 0.5),
        (lambda m: m.lock_waited(V4, 0.5),
         "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", FAMILY, 1),
        (lambda m: m.repaired(V4), "pykubeproxy_repairs_total", FAMILY, 1),
        (lambda m: m.transactions(V4, "ipvs", "applied", 1), "pykubeproxy_transactions_total",
         {**FAMILY, "outcome": "applied"}, 1),
    ],
)  # fmt: skip
def test_an_event_shows_under_its_name(act, name, labels, expected):
    metrics = Metrics()
    act(metrics)
    assert expected == metrics.registry.get_sample_value(name, labels)


def test_labelled_series_appear_with_their_first_update():
    assert b'ip_family="' not in generate_latest(Metrics().registry)


def test_a_pass_takes_all_that_is_pending():
    metrics = Metrics()
    metrics.received(services=1, slices=1, changed_slices=1)
    metrics.services_pending(1)
    metrics.nothing_pending()
    stem = "kubeproxy_sync_proxy_rules"
    for what in ("endpoint", "service"):
        assert 0 == metrics.registry.get_sample_value(f"{stem}_{what}_changes_pending")


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        ("iptables", "kubeproxy_sync_proxy_rules_iptables_total", True),
        ("iptables", "kubeproxy_sync_proxy_rules_iptables_last", True),
        ("iptables", "kubeproxy_sync_full_proxy_rules_duration_seconds", True),
        ("iptables", "pykubeproxy_virtual_servers", False),
        ("ipvs", "kubeproxy_sync_proxy_rules_iptables_total", False),
        ("ipvs", "kubeproxy_sync_proxy_rules_iptables_last", False),
        ("ipvs", "kubeproxy_sync_full_proxy_rules_duration_seconds", False),
        ("ipvs", "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", False),
        ("ipvs", "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", True),
        ("ipvs", "pykubeproxy_virtual_servers", True),
        ("ipvs", "pykubeproxy_real_servers", True),
    ],
)
def test_some_metrics_belong_to_one_mode(mode, name, expected):
    metrics = Metrics(mode)
    metrics.sync_ended(V4, 0.1, full=True)
    metrics.partial_restore_failed(V4)
    metrics.transactions(V4, "nat", "rejected", 1)
    metrics.holds(V4, {"nat": 1, "virtual": 2, "real": 3}, {})
    assert expected == (f"# TYPE {name} " in generate_latest(metrics.registry).decode())


def test_servers_are_counted_in_ipvs_mode():
    metrics = Metrics("ipvs")
    metrics.holds(V4, {"virtual": 2, "real": 3}, {})
    value = metrics.registry.get_sample_value
    assert (2, 3) == (
        value("pykubeproxy_virtual_servers", FAMILY), value("pykubeproxy_real_servers", FAMILY)
    )  # fmt: skip


def test_the_age_of_the_oldest_change_is_found_out_at_each_scrape():
    metrics = Metrics()
    clock, oldest = [100.0], {V4: None, Family.IPV6: 98.5}
    metrics.follow_changes(lambda: oldest, lambda: clock[0])

    def age(family):
        labels = {"ip_family": family.value}
        return metrics.registry.get_sample_value("pykubeproxy_out_of_sync_seconds", labels)

    assert (0.0, 1.5) == (age(V4), age(Family.IPV6))
    clock[0] = 101.0
    assert 2.5 == age(Family.IPV6)


def test_two_sets_do_not_share_anything():
    one, two = Metrics(), Metrics()
    one.received(services=1, slices=0, changed_slices=0)
    name = "kubeproxy_sync_proxy_rules_service_changes_total"
    assert two.registry.get_sample_value(name) == 0


@pytest.mark.parametrize(("packets", "expected"), [(5, 5), (None, None)])
def test_kernel_counters_are_read_at_each_scrape(packets, expected):
    metrics = Metrics()
    metrics.follow_packets("kubeproxy_x_packets", "text", lambda: packets)
    assert expected == metrics.registry.get_sample_value("kubeproxy_x_packets_total")


def test_a_quarantined_service_is_named_until_it_recovers():
    metrics = Metrics()

    def named(service):
        labels = {"namespace": service.namespace, "service": service.name, "ip_family": "IPv4"}
        return metrics.registry.get_sample_value("pykubeproxy_service_quarantined", labels)

    metrics.quarantined(Family.IPV4, {WEB: True, DB: True})
    metrics.quarantined(Family.IPV4, {WEB: False})
    metrics.quarantined(Family.IPV4, {})
    assert (None, 1) == (named(WEB), named(DB))


def test_a_service_that_came_out_before_anybody_asked_was_never_named():
    metrics = Metrics()
    metrics.quarantined(V4, {WEB: False})
    assert 0 == metrics.registry.get_sample_value("pykubeproxy_services_quarantined", FAMILY)
