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
        (lambda m: m.iptables_rules(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_total", {**FAMILY, "table": "nat"}, 9),
        (lambda m: m.iptables_rules(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_last", {**FAMILY, "table": "nat"}, 3),
        (lambda m: m.iptables_rules(V4, {"nat": 9}, {"nat": 3}),
         "kubeproxy_sync_proxy_rules_iptables_last", {**FAMILY, "table": "filter"}, 0),
        (lambda m: m.iptables_rules(V4, {"nat": 9, "mangle": 0}, {}),
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
        (lambda m: m.endpoint_changes(4), "kubeproxy_sync_proxy_rules_endpoint_changes_total",
         {}, 4),
        (lambda m: m.service_changes(), "kubeproxy_sync_proxy_rules_service_changes_total", {}, 1),
        (lambda m: m.no_local_endpoints(V4, 1, 2),
         "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
         {**FAMILY, "traffic_policy": "external"}, 2),
        (lambda m: m.conntrack_ran(V4, 0.1, 0),
         "kubeproxy_conntrack_reconciler_deleted_entries_total", FAMILY, 0),
        (lambda m: m.conntrack_ran(V4, 0.1, 0),
         "kubeproxy_conntrack_reconciler_sync_duration_seconds_count", FAMILY, 1),
        (lambda m: m.health_answered("healthz", 503), "kubeproxy_proxy_healthz_total",
         {"code": "503"}, 1),
        (lambda m: m.health_answered("livez", 200), "kubeproxy_proxy_livez_total",
         {"code": "200"}, 1),
        (lambda m: m.quarantined(V4, {WEB: True, DB: True}),
         "pykubeproxy_services_quarantined", FAMILY, 2),
        (lambda m: m.lock_waited(V4, 0.5), "pykubeproxy_xtables_lock_wait_seconds_total",
         FAMILY, 0.5),
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


def test_two_sets_do_not_share_anything():
    one, two = Metrics(), Metrics()
    one.service_changes()
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
