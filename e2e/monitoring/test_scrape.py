"""Prometheus scrapes the running daemon, and every query that we ship has an answer."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.cluster.process import METRICS_PORT
from e2e.kernel.running import eventually
from e2e.lab.fetch import fetch
from e2e.monitoring.files import OF_IPVS_MODE, Query, alerts, metric_names, queries
from e2e.monitoring.prometheus import Prometheus
from e2e.monitoring.scene import Scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything that makes a metric has happened, more than once."""
    with Scene(tmp_path_factory.mktemp("scene")) as scene:
        scene.api.server.streaming_lists = "error"  # then by pages: watches have no duration
        for name in ("bad", "bad-too"):
            scene.refuse_a_service(name)
            scene.flush()
            scene.everyday_life()
            scene.expire_history()
            scene.prometheus.scrape_again()
        yield scene


@pytest.mark.parametrize("query", queries(), ids=str)
def test_a_query_of_the_dashboard_has_an_answer(scene: Scene, query: Query) -> None:
    if metric_names(query.text) <= OF_IPVS_MODE:  # e2e/kernel/ipvs/test_ipvs_metrics.py
        assert [] == scene.prometheus.query(query.text)
        return
    if query.panel == "annotation":  # marks what mostly is not there
        scene.prometheus.query(query.text)
        assert set() == metric_names(query.text) - scene.prometheus.names()
        return
    eventually(
        lambda: any(not math.isnan(s.value) for s in scene.prometheus.query(query.text)),
        f"a number for {query.text}",
        5,
    )


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_the_metrics_of_an_alert_exist(scene: Scene, alert: dict[str, str]) -> None:
    scene.prometheus.query(alert["expr"])
    assert set() == metric_names(alert["expr"]) - scene.prometheus.names()


def test_prometheus_evaluates_every_rule(scene: Scene) -> None:
    def evaluated() -> bool:
        return all(rule["health"] != "unknown" for rule in scene.prometheus.rules())

    eventually(evaluated, "an evaluation of all rules")
    assert {} == {
        rule["name"]: rule.get("lastError")
        for rule in scene.prometheus.rules()
        if rule["health"] != "ok"
    }
    assert len(alerts()) == len(scene.prometheus.rules())


def test_a_target_has_the_names_that_kube_proxy_has(scene: Scene) -> None:
    (up,) = scene.prometheus.query("up")
    assert {"job": "kube-proxy", "instance": "node"}.items() <= up.labels.items()


def test_labels_of_ours_are_not_hidden_by_those_of_the_pod(scene: Scene) -> None:
    refused = scene.prometheus.query('pykubeproxy_service_quarantined{ip_family="IPv4"}')
    labels = [(one.labels["namespace"], one.labels["service"]) for one in refused]
    assert {("default", "bad"), ("default", "bad-too")} == set(labels)


# kubernetes-mixin, dashboards/proxy.libsonnet: the dashboard "Kubernetes / Proxy".
OF_KUBE_PROXY = 'job="kube-proxy", instance=~"node"'
USUAL_QUERIES = [
    'sum(up{job="kube-proxy"})',
    f"sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{{{OF_KUBE_PROXY}}}[1m]))",
    "histogram_quantile(0.99, "
    f"rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{{{OF_KUBE_PROXY}}}[1m]))",
    f"sum(rate(kubeproxy_network_programming_duration_seconds_count{{{OF_KUBE_PROXY}}}[1m]))",
    "histogram_quantile(0.99, sum(rate(kubeproxy_network_programming_duration_seconds_bucket"
    f"{{{OF_KUBE_PROXY}}}[1m])) by (instance, le))",
    f'sum(rate(rest_client_requests_total{{{OF_KUBE_PROXY}, code=~"2.."}}[1m]))',
    "histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket"
    f'{{{OF_KUBE_PROXY}, verb="POST"}}[1m])) by (verb, le))',
    "histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket"
    f'{{{OF_KUBE_PROXY}, verb="GET"}}[1m])) by (verb, le))',
    f"process_resident_memory_bytes{{{OF_KUBE_PROXY}}}",
    f"rate(process_cpu_seconds_total{{{OF_KUBE_PROXY}}}[1m])",
]


@pytest.mark.parametrize("query", USUAL_QUERIES)
def test_the_usual_dashboard_of_kube_proxy_goes_on_working(scene: Scene, query: str) -> None:
    eventually(
        lambda: any(not math.isnan(s.value) for s in scene.prometheus.query(query)), query, 5
    )


def test_the_page_is_as_prometheus_likes_it(scene: Scene) -> None:
    """But for two names that kube-proxy gave to gauges, and that existing dashboards ask for."""
    page = fetch(scene.lab, "/metrics", METRICS_PORT).body
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    complaint = 'non-counter metrics should not have "_total" suffix'
    assert [
        f"kubeproxy_sync_proxy_rules_iptables_total {complaint}",
        f"kubeproxy_sync_proxy_rules_no_local_endpoints_total {complaint}",
    ] == sorted((done.stdout + done.stderr).splitlines())


Series = tuple[tuple[str, str | float], ...]

BY_THE_WAY = ("process_", "python_", "pykubeproxy_watch_age_seconds")
"""What a look at it changes."""


def series(name: str, labels: Mapping[str, str]) -> Series:
    """The name of a series; bounds are numbers, as protobuf has ``1.0`` and text ``1``.

    Prometheus does not keep empty labels.
    """
    parts = {**labels, "__name__": name}
    return tuple(sorted((n, float(v) if n == "le" else v) for n, v in parts.items() if v))


def in_text(scene: Scene) -> dict[Series, float]:
    page = fetch(scene.lab, "/metrics", METRICS_PORT).body
    return {
        series(sample.name, sample.labels): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_prometheus_reads_the_same_in_protobuf(scene: Scene, tmp_path: Path) -> None:
    """As it does where native histograms are switched on."""
    flag = "--enable-feature=native-histograms"
    with Prometheus(scene.lab, tmp_path, (), flag, port=9096) as prometheus:
        eventually(lambda: prometheus.value("up") == 1, "a scrape")
        (up,) = prometheus.query("up")

        def differences() -> list[Series]:
            """What is missing in either, or is another number though it did not change."""
            before = in_text(scene)
            prometheus.scrape_again()
            scraped = {}
            for sample in prometheus.query('{job="kube-proxy"}'):
                labels = dict(sample.labels)
                name = labels.pop("__name__")
                if not name.startswith(("scrape_", "up")):
                    own = {n: v for n, v in labels.items() if up.labels.get(n) != v}
                    scraped[series(name, own)] = sample.value
            after = in_text(scene)
            missing = before.keys() ^ scraped.keys()
            others = (
                one
                for one, value in before.items()
                if value == after.get(one) != scraped.get(one)
                and not str(dict(one)["__name__"]).startswith(BY_THE_WAY)
            )
            return [*missing, *others]

        eventually(lambda: differences() == [], "the same numbers")
        # Text has le="1": this was no text.
        assert prometheus.query('kubeproxy_network_programming_duration_seconds_bucket{le="1.0"}')
