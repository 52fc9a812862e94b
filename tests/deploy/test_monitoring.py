"""Prometheus finds the daemons by what deploy/monitoring/ says of them."""

from __future__ import annotations

import re
from typing import Any

import jsonschema
import pytest

from tests.deploy.manifests import DEPLOY, Object, kustomized, load, the

MONITORING = DEPLOY / "monitoring"
TEXT = {"type": "string"}
LABELS = {"type": "object", "additionalProperties": TEXT}


def mapping(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


# As much of the resource definition of monitoring.coreos.com/v1 as is used here.
POD_MONITOR = mapping(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "monitoring.coreos.com/v1"},
    kind={"const": "PodMonitor"},
    metadata=mapping(("name",), name=TEXT, namespace=TEXT, labels=LABELS),
    spec=mapping(
        ("selector", "podMetricsEndpoints"),
        selector=mapping(matchLabels=LABELS),
        namespaceSelector=mapping(matchNames={"type": "array", "items": TEXT}),
        podMetricsEndpoints={
            "type": "array",
            "items": mapping(
                port=TEXT,
                path=TEXT,
                interval={"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$"},
                honorLabels={"type": "boolean"},
                relabelings={
                    "type": "array",
                    "items": mapping(
                        sourceLabels={"type": "array", "items": TEXT},
                        targetLabel=TEXT,
                        replacement=TEXT,
                        action={"enum": ["replace", "keep", "drop"]},
                    ),
                },
            ),
        },
    ),
)


@pytest.fixture
def template() -> Object:
    daemon_set: Object = the(load(DEPLOY / "daemonset.yaml"), "DaemonSet")
    return {**daemon_set["spec"]["template"], "namespace": daemon_set["metadata"]["namespace"]}


def ports(template: Object) -> dict[str, int]:
    [container] = template["spec"]["containers"]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


@pytest.fixture
def pod_monitor() -> Object:
    [found] = load(MONITORING / "podmonitor.yaml")
    return found


@pytest.fixture
def service() -> Object:
    [found] = load(MONITORING / "service.yaml")
    return found


def test_the_pod_monitor_is_one(pod_monitor: Object) -> None:
    jsonschema.validate(pod_monitor, POD_MONITOR)


def test_the_pod_monitor_selects_the_pods_and_their_port(
    pod_monitor: Object, template: Object
) -> None:
    spec, labels = pod_monitor["spec"], template["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert [template["namespace"]] == spec["namespaceSelector"]["matchNames"]
    [endpoint] = spec["podMetricsEndpoints"]
    assert "metrics" == endpoint["port"]
    assert endpoint["port"] in ports(template)


def test_the_pod_monitor_gives_the_job_that_existing_alerts_look_for(pod_monitor: Object) -> None:
    [endpoint] = pod_monitor["spec"]["podMetricsEndpoints"]
    given = {one["targetLabel"]: one.get("replacement") for one in endpoint["relabelings"]}
    assert "kube-proxy" == given["job"]


@pytest.mark.parametrize(
    ("kept", "name"),
    [
        pytest.param(True, "pykubeproxy", id="ours"),
        # kubeadm's answers on 127.0.0.1 only: a target that is down on every node.
        pytest.param(False, "kube-proxy", id="kube-proxy"),
    ],
)
def test_the_example_configuration_scrapes_pods_of_ours_alone(
    template: Object, kept: bool, name: str
) -> None:
    [content] = load(MONITORING / "prometheus.yml")
    [job] = content["scrape_configs"]
    label = "__meta_kubernetes_pod_label_k8s_app"
    [keep] = [one for one in job["relabel_configs"] if one.get("source_labels") == [label]]
    assert "keep" == keep["action"]
    assert kept is bool(re.fullmatch(keep["regex"], name))
    assert "pykubeproxy" == template["metadata"]["labels"]["k8s-app"]


def test_the_service_selects_the_pods_and_their_port(service: Object, template: Object) -> None:
    assert template["namespace"] == service["metadata"]["namespace"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    [port] = service["spec"]["ports"]
    assert ports(template)[port["targetPort"]] == port["port"]


def test_the_service_is_for_finding_and_takes_no_address(service: Object) -> None:
    assert ("None", True) == (
        service["spec"]["clusterIP"],
        service["spec"]["publishNotReadyAddresses"],
    )


def test_all_of_it_can_be_applied_at_once() -> None:
    kinds = [manifest["kind"] for manifest in kustomized(MONITORING)]
    assert ["Service", "PodMonitor", "PrometheusRule"] == kinds
