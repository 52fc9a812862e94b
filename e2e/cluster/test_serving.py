"""What the daemon tells others: Events, health, metrics, and its exit status."""

from __future__ import annotations

import gzip
import json
import re
import stat
import time
from pathlib import Path

from e2e.cluster.api import ApiUnderTest, StandIn
from e2e.cluster.objects import pod, put_web
from e2e.cluster.process import HEALTH_PORT, METRICS_PORT, ApiDaemon, eventually
from e2e.lab import Lab
from e2e.lab.fetch import Response, connect, fetch
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
    assert re.fullmatch(r"node\.[0-9a-f]+", event["metadata"]["name"])
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


def health_of(daemon: ApiDaemon, path: str) -> Response:
    return fetch(daemon.lab, path, HEALTH_PORT)


def test_readiness_waits_for_lists_and_first_syncs_and_stays(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    stand_in.server.frozen.set()
    daemon.start(wait=False)
    eventually(lambda: listens(daemon.lab, HEALTH_PORT), "the health server listens")
    answer = health_of(daemon, "/readyz")
    waiting = json.loads(answer.body)
    assert (503, False) == (answer.status, waiting["ready"])
    lists = {"Service list", "EndpointSlice list"}
    eventually(
        lambda: lists < set(json.loads(health_of(daemon, "/readyz").body)["waitingFor"]),
        "the lists are named",
    )
    assert {"first sync IPv4", "first sync IPv6"} < set(
        json.loads(health_of(daemon, "/readyz").body)["waitingFor"]
    )
    # The process is fine, it is only not ready: nobody is to kill it for the API's trouble.
    assert 200 == health_of(daemon, "/livez").status

    stand_in.server.frozen.clear()
    eventually(lambda: health_of(daemon, "/readyz").status == 200, "it is ready", 30)
    answer = health_of(daemon, "/readyz")
    assert {"ready": True, "waitingFor": []} == json.loads(answer.body)

    stand_in.server.frozen.set()
    assert 200 == health_of(daemon, "/readyz").status
    stand_in.server.frozen.clear()


def listens(lab: Lab, port: int) -> bool:
    try:
        connect(lab, port).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_change_that_cannot_be_written_makes_the_proxy_unhealthy_until_it_can(
    lab: Lab, stand_in: StandIn, tmp_path: Path
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    broken = tmp_path / "broken"
    tool = tools / "iptables-nft-restore"
    tool.write_text(
        f"""#!/bin/sh
        if [ -e {broken} ]; then echo "out of order" >&2; exit 4; fi
        PATH=${{PATH#*:}} exec iptables-nft-restore "$@"
        """
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    flags = ("--iptables-sync-period=1s", "--iptables-min-sync-period=0s")
    put_web(stand_in, "p1")
    with ApiDaemon(lab, stand_in.kubeconfig, tmp_path, *flags, path=tools) as daemon:
        body = json.loads(health_of(daemon, "/livez").body)
        assert {"IPv4", "IPv6"} == body["status"].keys()
        assert body["lastUpdated"] > body["status"]["IPv4"]["lastUpdated"]

        broken.touch()
        put_web(stand_in, "p2")
        eventually(lambda: health_of(daemon, "/healthz").status == 503, "a change waits too long")
        assert 503 == health_of(daemon, "/livez").status
        body = json.loads(health_of(daemon, "/healthz").body)
        assert (False, True) == (body["healthy"], body["nodeEligible"])
        assert (False, True) == tuple(body["status"][f]["healthy"] for f in ("IPv4", "IPv6"))
        assert body["lastUpdated"] == body["status"]["IPv6"]["lastUpdated"]
        assert 200 == health_of(daemon, "/readyz").status

        broken.unlink()
        eventually(lambda: health_of(daemon, "/healthz").status == 200, "it is written")
        codes = re.findall(
            r'kubeproxy_proxy_(healthz|livez)_total\{code="(\d+)"\}',
            fetch(lab, "/metrics", METRICS_PORT).body,
        )
        assert {("healthz", "200"), ("healthz", "503"), ("livez", "200"), ("livez", "503")} == set(
            codes
        )


def test_everything_at_the_metrics_port_over_one_connection(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    daemon.start()
    connection = connect(daemon.lab, METRICS_PORT)
    ours = connection.sock.getsockname()

    def ask(path: str, method: str = "GET", **headers: str) -> Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=named)
        return Response(connection.getresponse())

    assert "iptables" == ask("/proxyMode").body
    assert "ok" == ask("/healthz").body
    assert "[+]ping ok\nhealthz check passed\n" == ask("/healthz?verbose").body
    configz = json.loads(ask("/configz").body)["kubeproxy.config.k8s.io"]
    assert ("KubeProxyConfiguration", "iptables") == (configz["kind"], configz["mode"])
    flags = ask("/flagz", Accept="application/json;v=v1beta1;g=config.k8s.io;as=Flagz")
    assert "node" == json.loads(flags.body)["flags"]["hostname-override"]
    status = ask("/statusz", Accept="application/yaml;v=v1alpha1;g=config.k8s.io;as=Statusz")
    assert "kind: Statusz" in status.body
    assert status.headers["Warning"].startswith("299 - ")
    assert 406 == ask("/statusz", Accept="application/json").status
    assert "kube-proxy statusz" in ask("/statusz", Accept="*/*").body
    assert 'kubernetes_healthcheck{name="ping",type="healthz"} 1' in ask("/metrics/slis").body
    assert "metrics reset\n" == ask("/metrics/slis", "DELETE").body
    assert "kubernetes_healthcheck{" not in ask("/metrics/slis").body
    page = ask("/metrics", Accept_Encoding="gzip")
    assert b"kubeproxy_sync_proxy_rules_" in gzip.decompress(page.raw)
    started = int(page.headers["Process-Start-Time-Unix"])
    assert started <= time.time()
    for path in ("/", "/debug/pprof/", "/debug/flags/v", "/livez"):
        assert 404 == ask(path).status
    assert ours == connection.sock.getsockname()
    connection.close()


def test_gates_and_profiling_decide_which_pages_there_are(
    lab: Lab, stand_in: StandIn, tmp_path: Path
) -> None:
    flags = ("--feature-gates=ComponentFlagz=false,ComponentStatusz=false", "--profiling")
    with ApiDaemon(lab, stand_in.kubeconfig, tmp_path, *flags) as daemon:
        for path in ("/flagz", "/statusz"):
            assert 404 == fetch(lab, path, METRICS_PORT).status
        stacks = fetch(lab, "/debug/pprof/goroutine?debug=2", METRICS_PORT).body
        assert "thread sync (" in stacks
        put = fetch(lab, "/debug/flags/v", METRICS_PORT, method="PUT", body=b"5")
        assert "successfully set klog.logging.verbosity to 5\n" == put.body
        assert daemon.says("verbosity set", "verbosity=5")


def test_a_port_that_is_taken_ends_the_process_if_asked_to_and_an_event_says_why(
    lab: Lab, stand_in: StandIn, tmp_path: Path
) -> None:
    with ApiDaemon(lab, stand_in.kubeconfig, tmp_path) as first:
        assert first.runs
        later = tmp_path / "later"
        later.mkdir()
        flags = ("--bind-address-hard-fail", "--state-directory=")
        second = ApiDaemon(lab, stand_in.kubeconfig, later, *flags)
        second.start(wait=False)
        eventually(lambda: not second.runs, "it ends", 30)
        assert second.process is not None
        assert 1 == second.process.returncode
        reasons = {event["reason"]: event for event in stand_in.server.events}
        health, metrics = (
            reasons[f"FailedToStart{what}"] for what in ("ProxierHealthcheck", "MetricServer")
        )
        assert (
            "healthz server failed: failed to start proxy healthz on 0.0.0.0:10256: "
            "listen tcp 0.0.0.0:10256: bind: address already in use"
        ) == health["note"]
        assert (
            "starting metrics server failed: listen tcp 127.0.0.1:10249: bind: "
            "address already in use"
        ) == metrics["note"]
        for event in (health, metrics):
            assert ("Warning", "StartKubeProxy") == (event["type"], event["action"])
            assert event["regarding"].items() >= {"kind": "Node", "name": "node"}.items()
        assert second.says("free the port, choose another, or drop --bind-address-hard-fail")


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
    assert daemon.stop() == 0  # which is not patient
    assert daemon.rules() == before
    assert daemon.answered_by(address) == "p1"
    assert daemon.says("stopped; rules stay in place")


def test_sigterm_while_the_server_never_answers_ends_it_soon(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    stand_in.server.frozen.set()
    daemon.start(wait=False)
    stand_in.server.wait_until(lambda: len(stand_in.server.requests) >= 3)
    assert daemon.stop() == 0  # which is not patient
