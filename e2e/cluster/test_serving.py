"""What the daemon tells others: Events, health, metrics, and its exit status."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

from e2e.cluster.api import ApiUnderTest, StandIn
from e2e.cluster.objects import pod, put_web
from e2e.cluster.process import HEALTH_PORT, METRICS_PORT, ApiDaemon, eventually
from e2e.lab import Lab
from e2e.lab.fetch import fetch
from pykubeproxy.serve.status import AUTOSCALER_TAINT
from tests.build import node, port
from tests.fakes import recordings

FILLED_IN = {
    "deprecatedSource",
    "deprecatedFirstTimestamp",
    "deprecatedLastTimestamp",
}


def test_the_start_is_an_event_as_kube_proxy_writes_it(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    daemon.start()
    stand_in.server.wait_until(lambda: bool(stand_in.server.events))
    recorded = recordings.load("event-create").body
    event = stand_in.server.events[0]
    for field in recorded.keys() - FILLED_IN - {"metadata"}:
        assert field in event, field
    for field in ("apiVersion", "kind", "action", "reason", "type", "reportingController"):
        assert event[field] == recorded[field], field
    assert event["regarding"].items() >= {"kind": "Node", "name": "node"}.items()
    assert event["metadata"]["generateName"] == "node-"
    assert event["reportingInstance"].startswith("kube-proxy-")


def test_a_refused_service_gets_an_event(lab: Lab, stand_in: StandIn, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    tool = tools / "iptables-nft-restore"
    tool.write_text(
        f"""#!/bin/sh
        cat >{tmp_path}/input
        if grep -q default/bad {tmp_path}/input; then echo "no: failed" >&2; exit 1; fi
        PATH=${{PATH#*:}} exec iptables-nft-restore "$@" <{tmp_path}/input
        """
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    good = put_web(stand_in, "p1", name="good")
    daemon = ApiDaemon(lab, stand_in.kubeconfig, tmp_path, path=tools)
    with daemon:
        put_web(stand_in, "p1", name="bad")
        stand_in.server.wait_until(
            lambda: any(e["regarding"]["kind"] == "Service" for e in stand_in.server.events)
        )
        assert daemon.answered_by(good) == "p1"
    event = next(e for e in stand_in.server.events if e["regarding"]["kind"] == "Service")
    assert (event["type"], event["reason"]) == ("Warning", "FailedToProgramService")
    assert (event["metadata"]["namespace"], event["regarding"]["name"]) == ("default", "bad")
    assert "no: failed" in event["note"]


def test_health_follows_the_node(stand_in: StandIn, daemon: ApiDaemon) -> None:
    daemon.start()
    assert fetch(daemon.lab, "/healthz", HEALTH_PORT).status == 200
    assert fetch(daemon.lab, "/livez", HEALTH_PORT).status == 200

    stand_in.put(node(zone="zone-a", taints=[AUTOSCALER_TAINT]))
    eventually(
        lambda: fetch(daemon.lab, "/healthz", HEALTH_PORT).status == 503, "a leaving node is unfit"
    )
    assert json.loads(fetch(daemon.lab, "/healthz", HEALTH_PORT).body)["nodeEligible"] is False
    assert fetch(daemon.lab, "/livez", HEALTH_PORT).status == 200

    stand_in.put(node(zone="zone-a"))
    eventually(lambda: fetch(daemon.lab, "/healthz", HEALTH_PORT).status == 200, "it is fit again")


def test_metrics_count_what_was_received_and_written(api: ApiUnderTest, daemon: ApiDaemon) -> None:
    put_web(api, "p1")
    daemon.start()
    assert daemon.transactions() >= 2
    page = fetch(daemon.lab, "/metrics", METRICS_PORT).body
    for name in ("service_changes_total", "endpoint_changes_total", "duration_seconds_count"):
        assert f"kubeproxy_sync_proxy_rules_{name}" in page


def test_a_health_check_node_port_tells_how_many_endpoints_are_here(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    node_address = daemon.lab.address("node")
    options = {
        "type": "LoadBalancer",
        "ports": [port(80, "http", node_port=30080)],
        "external_policy": "Local",
        "health_check_node_port": 30500,
    }
    put_web(stand_in, "p1", "r1", **options)
    daemon.start()
    there = fetch(daemon.lab, "/", 30500, node_address, role="client")
    assert (there.status, json.loads(there.body)["localEndpoints"]) == (200, 1)
    assert pod("r1").node_name == "far"
    put_web(stand_in, "r1", **options)
    eventually(
        lambda: fetch(daemon.lab, "/", 30500, node_address, role="client").status == 503,
        "no endpoint is here",
    )


def test_sigterm_during_a_watch_ends_it_soon_and_rules_stay(
    api: ApiUnderTest, daemon: ApiDaemon
) -> None:
    address = put_web(api, "p1")
    daemon.start()
    eventually(lambda: daemon.answered_by(address) == "p1", "served")
    before = daemon.rules()
    asked = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - asked < 2
    assert daemon.rules() == before
    assert daemon.answered_by(address) == "p1"
    assert daemon.says("stopped; rules stay in place")


def test_sigterm_while_the_server_never_answers_ends_it_soon(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    stand_in.server.frozen.set()
    daemon.start(wait=False)
    stand_in.server.wait_until(lambda: len(stand_in.server.requests) >= 3)
    asked = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - asked < 2
