"""Every metric that there must be, written down by hand from what kube-proxy 1.36 shows.

A table and not a computation: what is compared with it comes from the program, so it must not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["ABSENT", "TABLE", "Expected", "differences", "expected"]

B1 = (
    "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384 "
    "+Inf"
)
B2 = (
    # It begins with a 0 that kube-proxy's source does not name (component-base's MergeBuckets).
    "0 0.25 0.5 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 "
    "31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 65 "
    "70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300 +Inf"
)
LATENCY = "0.005 0.025 0.1 0.25 0.5 1 2 4 8 15 30 60 +Inf"
SIZE = "64 256 512 1024 4096 16384 65536 262144 1.048576e+06 4.194304e+06 1.6777216e+07 +Inf"
AGE = "600 1800 3600 14400 86400 604800 2.592e+06 7.776e+06 1.5552e+07 3.1104e+07 1.24416e+08 +Inf"
FINE = "0.001 0.002 0.005 0.01 0.02 0.05 0.1 0.2 0.5 1 2 5 10 20 30 60 120 300 +Inf"

BOTH = "iptables ipvs"


class Expected(NamedTuple):
    """Type, labels (blank-separated), buckets as they are written, stability, modes."""

    type: str
    labels: str = ""
    buckets: str = ""
    stability: str = ""
    modes: str = BOTH


def _alpha(type_: str, labels: str = "", buckets: str = "", modes: str = BOTH) -> Expected:
    return Expected(type_, labels, buckets, "ALPHA", modes)


def _beta(type_: str, labels: str = "") -> Expected:
    return Expected(type_, labels, stability="BETA")


TABLE = {
    # kube-proxy's own
    "kubeproxy_sync_proxy_rules_duration_seconds": _alpha("histogram", "ip_family", B1),
    "kubeproxy_sync_full_proxy_rules_duration_seconds": _alpha(
        "histogram", "ip_family", B1, "iptables"
    ),
    "kubeproxy_sync_partial_proxy_rules_duration_seconds": _alpha(
        "histogram", "ip_family", B1, "iptables"
    ),
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": _alpha("gauge", "ip_family"),
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": _alpha("gauge", "ip_family"),
    "kubeproxy_network_programming_duration_seconds": _alpha("histogram", "ip_family", B2),
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": _alpha("gauge"),
    "kubeproxy_sync_proxy_rules_endpoint_changes_total": _alpha("counter"),
    "kubeproxy_sync_proxy_rules_service_changes_pending": _alpha("gauge"),
    "kubeproxy_sync_proxy_rules_service_changes_total": _alpha("counter"),
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": _alpha(
        "gauge", "traffic_policy ip_family"
    ),
    "kubeproxy_proxy_healthz_total": _alpha("counter", "code"),
    "kubeproxy_proxy_livez_total": _alpha("counter", "code"),
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total": _alpha("counter", "ip_family"),
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total": _alpha(
        "counter", "ip_family", modes="iptables"
    ),
    "kubeproxy_sync_proxy_rules_iptables_total": _alpha(
        "gauge", "table ip_family", modes="iptables"
    ),
    "kubeproxy_sync_proxy_rules_iptables_last": _alpha(
        "gauge", "table ip_family", modes="iptables"
    ),
    "kubeproxy_conntrack_reconciler_sync_duration_seconds": _alpha("histogram", "ip_family", B1),
    "kubeproxy_conntrack_reconciler_deleted_entries_total": _alpha("counter", "ip_family"),
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total": _alpha(
        "counter", modes="iptables"
    ),
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total": _alpha(
        "counter", modes="iptables"
    ),
    # its client's
    "rest_client_requests_total": _alpha("counter", "code method host"),
    "rest_client_request_duration_seconds": _alpha("histogram", "verb host", LATENCY),
    "rest_client_rate_limiter_duration_seconds": _alpha("histogram", "verb host", LATENCY),
    "rest_client_request_size_bytes": _alpha("histogram", "verb host", SIZE),
    "rest_client_response_size_bytes": _alpha("histogram", "verb host", SIZE),
    "rest_client_request_retries_total": _alpha("counter", "code verb host"),
    "rest_client_exec_plugin_ttl_seconds": _alpha("gauge"),
    "rest_client_exec_plugin_certificate_rotation_age": _alpha("histogram", "", AGE),
    "rest_client_transport_cache_entries": _alpha("gauge"),
    "rest_client_transport_create_calls_total": _alpha("counter", "result"),
    "rest_client_transport_cert_rotation_gc_calls_total": _alpha("counter"),
    # of the process
    "process_cpu_seconds_total": Expected("counter"),
    "process_open_fds": Expected("gauge"),
    "process_max_fds": Expected("gauge"),
    "process_virtual_memory_bytes": Expected("gauge"),
    "process_virtual_memory_max_bytes": Expected("gauge"),
    "process_resident_memory_bytes": Expected("gauge"),
    "process_start_time_seconds": Expected("gauge"),
    "process_network_receive_bytes_total": Expected("counter"),
    "process_network_transmit_bytes_total": Expected("counter"),
    # of the build, and of the registry
    "kubernetes_build_info": _beta(
        "gauge",
        "major minor git_version git_commit git_tree_state build_date go_version compiler platform",
    ),
    "kubernetes_feature_enabled": _beta("gauge", "name stage"),
    "registered_metrics_total": _beta("counter", "stability_level deprecated_version"),
    "disabled_metrics_total": _beta("counter"),
    "hidden_metrics_total": _beta("counter"),
    "cardinality_enforcement_unexpected_categorizations_total": _alpha("counter"),
    # ours
    "pykubeproxy_network_programming_duration_seconds": Expected("histogram", "ip_family", FINE),
    "pykubeproxy_change_duration_seconds": Expected("histogram", "ip_family", FINE),
    "pykubeproxy_sync_stage_duration_seconds": Expected("histogram", "stage ip_family", B1),
    "pykubeproxy_sync_failures_total": Expected("counter", "ip_family"),
    "pykubeproxy_out_of_sync_seconds": Expected("gauge", "ip_family"),
    "pykubeproxy_ready": Expected("gauge"),
    "pykubeproxy_watch_age_seconds": Expected("gauge", "resource"),
    "pykubeproxy_watch_failures": Expected("gauge", "resource"),
    "pykubeproxy_watch_relists_total": Expected("counter", "resource"),
    "pykubeproxy_virtual_servers": Expected("gauge", "ip_family", modes="ipvs"),
    "pykubeproxy_real_servers": Expected("gauge", "ip_family", modes="ipvs"),
    "pykubeproxy_conntrack_deletions_total": Expected("counter", "ip_family"),
    "pykubeproxy_service_health_ports": Expected("gauge", "ip_family"),
    "pykubeproxy_events_total": Expected("counter", "outcome"),
    "pykubeproxy_config_file_valid": Expected("gauge"),
    "pykubeproxy_build_info": Expected("gauge", "version python"),
    "pykubeproxy_proxy_mode": Expected("gauge", "running configured"),
    "pykubeproxy_services_quarantined": Expected("gauge", "ip_family"),
    "pykubeproxy_service_quarantined": Expected("gauge", "namespace service ip_family"),
    "pykubeproxy_xtables_lock_wait_seconds_total": Expected("counter", "ip_family"),
    "pykubeproxy_repairs_total": Expected("counter", "ip_family"),
    "pykubeproxy_services_decided_total": Expected("counter", "ip_family"),
    "pykubeproxy_routes_compiled_total": Expected("counter", "ip_family"),
    "pykubeproxy_objects_compiled_total": Expected("counter", "ip_family"),
    "pykubeproxy_objects_written_total": Expected("counter", "kind ip_family"),
    "pykubeproxy_objects_removed_total": Expected("counter", "kind ip_family"),
    "pykubeproxy_chains_written_total": Expected("counter", "ip_family"),
    "pykubeproxy_rules_written_total": Expected("counter", "ip_family"),
    "pykubeproxy_sent_lines_total": Expected("counter", "ip_family"),
    "pykubeproxy_sent_bytes_total": Expected("counter", "scope ip_family"),
    "pykubeproxy_netlink_messages_total": Expected("counter", "scope ip_family", modes="ipvs"),
    "pykubeproxy_transactions_total": Expected("counter", "outcome ip_family"),
    "pykubeproxy_read_backs_total": Expected("counter", "ip_family"),
    "pykubeproxy_last_sync_services": Expected("gauge", "ip_family"),
    "pykubeproxy_last_sync_objects": Expected("gauge", "ip_family"),
    "pykubeproxy_last_sync_transactions": Expected("gauge", "ip_family"),
    "pykubeproxy_last_sync_bytes": Expected("gauge", "ip_family"),
}

ABSENT = {
    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total": "of a mode that is not here",
    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total": "of a mode that is not here",
    "rest_client_exec_plugin_call_total": "without a plugin there is no series",
    "rest_client_transport_ca_reload_total": "never happens, so there is no series",
    "rest_client_transport_cache_gc_calls_total": "never happens, so there is no series",
    "workqueue_depth": "registered by kube-proxy, normally without series",
    "leader_election_master_status": "registered by kube-proxy, normally without series",
    "go_goroutines": "of another runtime",
}

# Whatever begins like this and is not in the table is invented.
OURS = ("kubeproxy_", "rest_client_", "kubernetes_", "pykubeproxy_")


def expected(mode: str) -> dict[str, Expected]:
    """What there must be in *mode* once everything has happened."""
    return {name: one for name, one in TABLE.items() if mode in one.modes.split()}


def differences(page: str, wanted: dict[str, Expected], unseen: Iterable[str] = ()) -> list[str]:
    """Say what *page* lacks, has too much, or has otherwise; *unseen* may be missing."""
    types = dict(line.split()[2:4] for line in page.splitlines() if line.startswith("# TYPE "))
    helps = {
        parts[2]: parts[3]
        for line in page.splitlines()
        if line.startswith("# HELP ") and len(parts := line.split(" ", 3)) == 4
    }
    labels: dict[str, set[tuple[str, ...]]] = {}
    buckets: dict[str, str] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            name = f"{family.name}_total" if family.type == "counter" else family.name
            found = tuple(sorted(sample.labels.keys() - {"le"}))
            labels.setdefault(name, set()).add(found)
    for name in types:
        bounds = [
            line.partition('le="')[2].partition('"')[0]
            for line in page.splitlines()
            if line.startswith((f"{name}_bucket{{", f"{name}_bucket "))
        ]
        buckets[name] = " ".join(dict.fromkeys(bounds))
    found = [f"{name}: not there" for name in wanted.keys() - types.keys() - set(unseen)]
    found += [
        f"{name}: in no table" for name in types if name.startswith(OURS) and name not in wanted
    ]
    for name, one in wanted.items():
        if name not in types:
            continue
        got = (types[name], buckets[name], helps[name].startswith(f"[{one.stability}] "))
        if got != (one.type, one.buckets, bool(one.stability)):
            found.append(f"{name}: {got}")
        if {tuple(sorted(one.labels.split()))} != labels.get(name):
            found.append(f"{name}: labels {labels.get(name)}")
    return sorted(found)
