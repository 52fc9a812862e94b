"""The container of the DaemonSet finds what a pod has, and answers the kubelet's probes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from e2e.cluster.api import StandIn
from e2e.cluster.deployed import (
    NODE_PROXIER,
    ROLE,
    SERVICE_ADDRESS,
    USER,
    DeployedDaemon,
    KubeadmsDaemon,
    with_rights,
)
from e2e.cluster.objects import put_web
from e2e.cluster.process import eventually
from e2e.kernel.running import Customers
from e2e.lab import Lab
from e2e.lab.addresses import address_of
from e2e.lab.fetch import fetch
from tests.fakes.apiserver import Answer, certificate_authority
from tests.fakes.apistore import BY_KIND

CLOSE_WAIT = "net/netfilter/nf_conntrack_tcp_timeout_close_wait"


@pytest.fixture
def deployed(lab: Lab, stand_in: StandIn, tmp_path: Path) -> Iterator[DeployedDaemon]:
    with_rights(stand_in, ROLE)
    daemon = DeployedDaemon(lab, stand_in, tmp_path)
    yield daemon
    assert daemon.stop() == 0, daemon.text()
    assert "Traceback" not in daemon.text(), daemon.text()


def probe(daemon: DeployedDaemon, name: str) -> int:
    """As the kubelet asks: no host is given, so it is the pod's address, which is the node's."""
    get = daemon.container[name]["httpGet"]
    assert "host" not in get
    [port] = [p for p in daemon.container["ports"] if p["name"] == get["port"]]
    address = address_of("node", 4)
    try:
        return fetch(daemon.lab, get["path"], port["containerPort"], address).status
    except ConnectionRefusedError:
        return 0


def test_services_are_served_with_the_token_of_the_account(
    stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    address = put_web(stand_in, "p1")
    deployed.start()
    assert "p1" == deployed.answered_by(address)
    assert not deployed.says("notice")


def test_every_probe_is_answered(stand_in: StandIn, deployed: DeployedDaemon) -> None:
    put_web(stand_in, "p1")
    deployed.start()
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        eventually(lambda name=name: 200 == probe(deployed, name), name)  # type: ignore[misc]


def test_it_lives_but_is_not_ready_before_the_first_lists(
    stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    silence = Answer(200, b"", hang=True, matches=lambda r: r.path.endswith("endpointslices"))
    stand_in.server.answer_next(*[silence] * 9)
    deployed.start(wait=False)
    eventually(lambda: 200 == probe(deployed, "livenessProbe"), "it lives")
    assert 503 == probe(deployed, "readinessProbe")
    stand_in.server.script.clear()
    stand_in.server.cut()
    eventually(lambda: 200 == probe(deployed, "readinessProbe"), "it is ready")


def test_a_drained_node_keeps_its_proxy(stand_in: StandIn, deployed: DeployedDaemon) -> None:
    deployed.start()
    node = dict(stand_in.store.state(BY_KIND["Node"])["", "node"])
    node["spec"] = {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}
    stand_in.store.put({"kind": "Node", **node})
    eventually(
        lambda: 503 == fetch(deployed.lab, "/healthz", 10256).status, "load balancers are told"
    )
    assert (200, 200) == (probe(deployed, "livenessProbe"), probe(deployed, "readinessProbe"))


def test_metrics_are_served_at_the_nodes_address(
    stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    deployed.start()
    [port] = [p for p in deployed.container["ports"] if p["name"] == "metrics"]
    address = address_of("node", 4)
    page = fetch(deployed.lab, "/metrics", port["containerPort"], address, "far")
    assert 200 == page.status
    assert "kubeproxy_sync_proxy_rules_duration_seconds" in page.body


def test_a_token_that_the_kubelet_renewed_is_used(
    stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    put_web(stand_in, "p1")
    deployed.start()
    stand_in.server.wait_for_watches(3)
    stand_in.server.tokens = {"renewed": USER}
    deployed.rotate_token("renewed")
    stand_in.server.cut()
    address = put_web(stand_in, "p2", name="later")
    eventually(lambda: "p2" == deployed.answered_by(address), "a later change arrives")


def test_a_rolling_update_fails_no_connection_and_makes_up_for_what_it_missed(
    lab: Lab, stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    address = put_web(stand_in, "p1")
    deployed.start()
    with Customers(lab, ("p3", address, 80, "TCP"), timeout=0.9) as customers:
        customers.go_on()
        deployed.stop()
        customers.go_on()
        put_web(stand_in, "p2")
        # The init container of the new pod is among what they meet.
        deployed.start()
        eventually(lambda: 200 == probe(deployed, "readinessProbe"), "the rollout goes on")
        assert "p2" == deployed.answered_by(address)
        customers.go_on()
    assert [] == customers.failures


def test_a_timeout_that_somebody_changed_is_told_when_the_container_starts_anew(
    lab: Lab, stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    address = put_web(stand_in, "p1")
    deployed.start()
    deployed.stop()
    lab.sysctl("node", {CLOSE_WAIT: "61"})
    deployed.start_container()
    assert "p1" == deployed.answered_by(address)
    found = f"/proc/sys/{CLOSE_WAIT} is 61, must be 3600 (Read-only file system)"
    assert deployed.says("ERROR", "connections are tracked with the values found", found)

    def notes() -> list[str]:
        events = list(stand_in.server.events)
        return [str(e["note"]) for e in events if e["reason"] == "KernelParameterNotSet"]

    eventually(notes, "an Event")
    (note,) = notes()
    assert found in note


def test_an_authority_that_the_kubelet_brought_anew_is_trusted(
    stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    address = put_web(stand_in, "p1")
    deployed.trust(trustme.CA().cert_pem.bytes())
    deployed.start(wait=False)
    eventually(lambda: deployed.says("contact lost", "certificate"), "the server is not believed")
    deployed.trust(certificate_authority().cert_pem.bytes())
    eventually(lambda: "p1" == deployed.answered_by(address), "it is, without a restart")


def test_a_service_address_that_nobody_serves_is_named_with_the_remedy(
    lab: Lab, stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    address = put_web(stand_in, "p1")
    lab.run("node", "ip", "route", "add", "unreachable", SERVICE_ADDRESS)
    deployed.find_server_at(SERVICE_ADDRESS, 443)
    deployed.start(wait=False)
    eventually(
        lambda: deployed.says(
            "contact lost",
            f"{SERVICE_ADDRESS} is the address of a Service",
            "ConfigMap pykubeproxy-api-server",
        ),
        "the log says what to do",
    )
    deployed.stop()
    # The ConfigMap is there now, and the pod was started anew.
    deployed.find_server_at("127.0.0.1", stand_in.server.port)
    deployed.start()
    assert "p1" == deployed.answered_by(address)


def test_kubeadms_daemon_set_runs_with_another_image(
    lab: Lab, stand_in: StandIn, tmp_path: Path
) -> None:
    rights = with_rights(stand_in, NODE_PROXIER)
    address = put_web(stand_in, "p1")
    daemon = KubeadmsDaemon(lab, stand_in, tmp_path)
    try:
        daemon.start()
        assert "p1" == daemon.answered_by(address)
        assert "iptables" == fetch(lab, "/proxyMode", 10249).body
        assert 200 == fetch(lab, "/healthz", 10256, address_of("node", 4), "client").status
        eventually(lambda: stand_in.server.events, "an Event")
    finally:
        assert 0 == daemon.stop()
    assert {} == rights.refused
    assert not daemon.says("unknown field")
