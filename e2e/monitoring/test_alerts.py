"""What really happens on a node raises the alert that is about it, with words that fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Lab
from e2e.monitoring.files import alerts
from e2e.monitoring.prometheus import Prometheus
from e2e.monitoring.scene import Scene

# kubernetes-mixin, alerts/kube_proxy.libsonnet.
OF_KUBE_PROXY = {
    "KubeProxyDown": 'absent(up{job="kube-proxy"} == 1)',
    "KubeProxyInstanceUnreachable": 'max by (instance) (up{job="kube-proxy"}) == 0',
}
TAKE_LONG = {
    "PykubeproxyOutOfSync": "a minute",
    "PykubeproxyProgrammingSlow": "latencies of ten seconds",
    "PykubeproxyChangesSlow": "latencies of five seconds",
    "PykubeproxyLockContended": "two minutes of waiting, with legacy iptables",
    "PykubeproxyWatchStale": "five minutes",
    "PykubeproxyMemoryHigh": "half a gigabyte",
}
"""Alerts that are tested by promtool alone, since they take too much for a test like this."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("scene")
    rules = directory / "of-kube-proxy.yaml"
    usual = [{"alert": name, "expr": text} for name, text in OF_KUBE_PROXY.items()]
    rules.write_text(yaml.safe_dump({"groups": [{"name": "of-kube-proxy", "rules": usual}]}))
    with Scene(directory, [rules]) as scene:
        yield scene


def raised(prometheus: Prometheus, name: str) -> dict[str, Any]:
    """The alert *name*, as soon as it is pending or firing; its text is complete."""
    eventually(lambda: prometheus.alerts(name), name)
    alert, *_ = prometheus.alerts(name)
    for text in alert["annotations"].values():
        assert "{{" not in text
        assert "error expanding" not in text
        assert "no value" not in text
    return alert


def ends(prometheus: Prometheus, name: str) -> None:
    eventually(lambda: not prometheus.alerts(name), f"{name} ends")


def test_nothing_is_raised_on_a_node_where_all_is_well(scene: Scene) -> None:
    scene.everyday_life()
    names = (*OF_KUBE_PROXY, *(alert["alert"] for alert in alerts()))

    def is_quiet() -> bool:
        return not any(scene.prometheus.alerts(name) for name in names)

    eventually(is_quiet, "no alert, once what the start raised is over")
    scene.prometheus.scrape_again()
    assert is_quiet()


def test_a_refused_service_is_named(scene: Scene) -> None:
    scene.refuse_a_service()
    alert = raised(scene.prometheus, "PykubeproxyServiceQuarantined")
    assert "Service default/bad" in alert["annotations"]["summary"]
    assert "1 node(s) cannot write the IPv4 rules" in alert["annotations"]["description"]
    scene.api.delete(scene.bad)
    ends(scene.prometheus, "PykubeproxyServiceQuarantined")


def test_repeated_flushes_are_a_fight(scene: Scene) -> None:
    scene.flush()
    scene.prometheus.scrape_again()
    assert [] == scene.prometheus.alerts("PykubeproxyRulesRepaired")
    for _ in range(3):
        scene.flush()
    alert = raised(scene.prometheus, "PykubeproxyRulesRepaired")
    assert "firing" == alert["state"]


def test_tools_that_are_killed_make_syncs_fail_and_changes_wait(scene: Scene) -> None:
    scene.armed.touch()
    scene.move_web_somewhere()
    raised(scene.prometheus, "PykubeproxySyncFailing")
    assert scene.prometheus.value("max(pykubeproxy_out_of_sync_seconds)") > 0
    scene.armed.unlink()
    eventually(
        lambda: scene.prometheus.value("max(pykubeproxy_out_of_sync_seconds)") == 0,
        "in sync again",
        40,
    )


def test_lists_again_and_again_are_told(scene: Scene) -> None:
    for _ in range(9):
        scene.expire_history()
        scene.prometheus.scrape_again()
    alert = raised(scene.prometheus, "PykubeproxyWatchRelisting")
    assert alert["labels"]["resource"] in alert["annotations"]["summary"]


def test_a_silent_server_makes_watches_older(scene: Scene) -> None:
    """Five minutes of it are an alert."""
    prometheus = scene.prometheus
    scene.api.stop()
    eventually(lambda: prometheus.value("max(pykubeproxy_watch_failures)") >= 2, "failures")
    aged = prometheus.value("min(pykubeproxy_watch_age_seconds)")
    prometheus.scrape_again()
    assert prometheus.value("min(pykubeproxy_watch_age_seconds)") > aged > 0
    scene.api.start()
    scene.change_everything()
    eventually(lambda: prometheus.value("max(pykubeproxy_watch_failures)") == 0, "an end", 40)


def test_a_daemon_that_may_not_list_is_not_ready(scene: Scene) -> None:
    scene.daemon.stop()
    scene.api.server.forbidden.add("endpointslices")
    try:
        scene.daemon.start(wait=False)
        alert = raised(scene.prometheus, "PykubeproxyNotReady")
        assert "on node has not written its rules" in alert["annotations"]["summary"]
        infinite = 'pykubeproxy_watch_age_seconds{resource="endpointslices"} == Inf'
        eventually(lambda: scene.prometheus.query(infinite), "a watch without an answer")
    finally:
        scene.api.server.forbidden.discard("endpointslices")
    ends(scene.prometheus, "PykubeproxyNotReady")


def test_a_process_that_is_gone_is_down_for_us_and_for_kube_proxys_alerts(scene: Scene) -> None:
    scene.daemon.kill()
    for name in ("PykubeproxyDown", "PykubeproxyAbsent", *OF_KUBE_PROXY):
        raised(scene.prometheus, name)
    assert "node" == raised(scene.prometheus, "PykubeproxyDown")["labels"]["instance"]
    scene.daemon.start()
    for name in ("PykubeproxyDown", "PykubeproxyAbsent", *OF_KUBE_PROXY):
        ends(scene.prometheus, name)


def test_repeated_starts_are_told(scene: Scene) -> None:
    for _ in range(3):
        scene.daemon.stop()
        scene.daemon.start()
        scene.prometheus.scrape_again()
    alert = raised(scene.prometheus, "PykubeproxyRestarting")
    assert "within 30 minutes" in alert["annotations"]["description"]


def test_a_kernel_that_cannot_do_the_configured_mode_is_told(tmp_path: Path) -> None:
    """No kernel has a scheduler of this name."""
    with Scene(tmp_path, (), "--proxy-mode=ipvs", "--ipvs-scheduler=doesnotexist") as scene:
        alert = raised(scene.prometheus, "PykubeproxyModeFallback")
    assert {"running": "iptables", "configured": "ipvs"}.items() <= alert["labels"].items()
    assert "runs in iptables mode instead of ipvs" in alert["annotations"]["summary"]


def test_a_configuration_file_that_is_refused_is_told(tmp_path: Path) -> None:
    config = tmp_path / "config.conf"
    lines = [
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        "kind: KubeProxyConfiguration",
        "conntrack: {maxPerCore: 0}",  # belongs to the machine
    ]
    config.write_text("\n".join(lines))
    with (
        Lab() as lab,
        RunningDaemon(lab, "nft", tmp_path, f"--config={config}"),
        Prometheus(lab, tmp_path) as prometheus,
    ):
        eventually(lambda: prometheus.value("pykubeproxy_config_file_valid") == 1, "a scrape")
        config.write_text("\n".join([*lines, "mode: sorcery"]))
        raised(prometheus, "PykubeproxyConfigRefused")
        config.write_text("\n".join(lines))
        ends(prometheus, "PykubeproxyConfigRefused")


def test_every_alert_is_raised_here_or_has_a_reason_not_to_be() -> None:
    source = Path(__file__).read_text()
    names = {alert["alert"] for alert in alerts()}
    assert set() == {name for name in names if f'"{name}"' not in source}
    assert set() == TAKE_LONG.keys() - names
