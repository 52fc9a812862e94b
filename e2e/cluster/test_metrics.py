"""The metrics of the running daemon: every name that existing dashboards and alerts may ask for."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from e2e.cluster.api import StandIn
from e2e.cluster.objects import put_web, web_slice
from e2e.cluster.process import HEALTH_PORT, METRICS_PORT, ApiDaemon, eventually
from e2e.lab.fetch import fetch
from tests.build import endpoint, manifest, port, service, slice_, slice_port
from tests.metrics.names import ABSENT, differences, expected

TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"

FAULTS = {
    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
    "pykubeproxy_service_quarantined",
    "rest_client_request_retries_total",
}
"""Series that a fault begins; tests/metrics/test_names.py provokes each."""

OF_THE_KERNEL = {
    "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
    "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
}
"""Only where the kernel has nfacct."""


def page_of(daemon: ApiDaemon) -> str:
    return str(fetch(daemon.lab, "/metrics", METRICS_PORT).body)


def value(daemon: ApiDaemon, name: str) -> float:
    """The sum of all series of a name."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page_of(daemon))
        for sample in family.samples
        if sample.name == name
    )


def put_caused_now(stand_in: StandIn, *pods: str) -> None:
    """Change the endpoints of ``web`` as the endpoints controller does, with the time of it."""
    document = manifest(web_slice(stand_in, *pods))
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    document["metadata"]["annotations"] = {TRIGGER: now}
    stand_in.put(document)


def test_every_metric_of_kube_proxy_is_there(stand_in: StandIn, daemon: ApiDaemon) -> None:
    stand_in.server.streaming_lists = "invalid"  # so that lists are requests that end
    put_web(stand_in, "p1")
    stand_in.put(service("dns", cluster_ip="10.96.0.53", ports=[port(53, "dns", "UDP")]))
    stand_in.put(slice_("dns", endpoint("10.244.0.12"), ports=[slice_port(53, "dns", "UDP")]))
    daemon.start()
    assert fetch(daemon.lab, "/healthz", HEALTH_PORT).status == 200
    assert fetch(daemon.lab, "/livez", HEALTH_PORT).status == 200

    put_caused_now(stand_in, "p1", "r1")
    latency = "kubeproxy_network_programming_duration_seconds_count"
    eventually(lambda: value(daemon, latency) == 1, "the latency of a change is measured")
    other = put_web(stand_in, "p1", name="other")
    eventually(lambda: daemon.answered_by(other) == "p1", "another Service is served")
    stand_in.delete(web_slice(stand_in, name="other"))
    eventually(
        lambda: value(daemon, "pykubeproxy_objects_removed_total") >= 1, "something is removed"
    )
    for table in ("nat", "filter", "mangle"):
        daemon.lab.run("node", "iptables-nft", "-t", table, "-F")
        daemon.lab.run("node", "iptables-nft", "-t", table, "-X")
    eventually(lambda: value(daemon, "pykubeproxy_repairs_total") >= 1, "a flush is repaired", 60)

    page = page_of(daemon)
    assert [] == differences(page, expected("iptables"), FAULTS | OF_THE_KERNEL)
    assert [] == [name for name in ABSENT if f"# TYPE {name} " in page]


def test_what_the_figures_say_is_so(stand_in: StandIn, daemon: ApiDaemon) -> None:
    put_web(stand_in, "p1")
    daemon.start()
    before = value(daemon, "kubeproxy_sync_proxy_rules_endpoint_changes_total")
    put_caused_now(stand_in, "p1", "r1")
    eventually(
        lambda: value(daemon, "kubeproxy_sync_proxy_rules_endpoint_changes_total") == before + 1,
        "one event of one family",
    )
    stem = "kubeproxy_sync_proxy_rules"
    eventually(lambda: value(daemon, f"{stem}_endpoint_changes_pending") == 0, "written")
    eventually(lambda: value(daemon, "pykubeproxy_out_of_sync_seconds") == 0, "in sync")
    # The list of one Service, for each of both families.
    assert 2 == value(daemon, f"{stem}_service_changes_total")
    assert 1 == value(daemon, "pykubeproxy_ready")
    assert 0 == value(daemon, "pykubeproxy_sync_failures_total")
    assert 0 <= value(daemon, "pykubeproxy_watch_age_seconds") < 3 * 60
    seconds = value(daemon, "pykubeproxy_network_programming_duration_seconds_sum")
    assert 0 < seconds < 30


def test_a_watch_that_gets_no_answer_shows(stand_in: StandIn, daemon: ApiDaemon) -> None:
    daemon.start()
    stand_in.stop()
    eventually(lambda: value(daemon, "pykubeproxy_watch_failures") >= 3, "all three watches fail")
    eventually(lambda: 'code="<error>"' in page_of(daemon), "requests without an answer count")
    stand_in.start()
    eventually(lambda: value(daemon, "pykubeproxy_watch_failures") == 0, "they work again", 60)
