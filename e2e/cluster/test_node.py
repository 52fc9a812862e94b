"""What the Node object tells: waited for at the start, and followed from then on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.objects import put_web
from e2e.cluster.process import ApiDaemon, eventually
from e2e.lab import Lab
from pykubeproxy.model.objects import Node
from tests.build import node


@pytest.fixture
def by_node_cidr(lab: Lab, stand_in: StandIn, tmp_path: Path) -> Iterator[ApiDaemon]:
    """A daemon that tells pods by the podCIDRs of its node; not started yet."""
    daemon = ApiDaemon(lab, stand_in.kubeconfig, tmp_path, "--detect-local-mode=NodeCIDR")
    yield daemon
    daemon.stop()


def forget_node(stand_in: StandIn) -> None:
    stand_in.delete(node())


@contextmanager
def starting(daemon: ApiDaemon) -> Iterator[ApiDaemon]:
    daemon.start(wait=False)
    yield daemon
    assert 0 == daemon.stop(), daemon.text()


def rules_of_masquerading(daemon: ApiDaemon) -> str:
    return "\n".join(daemon.rules_about("default/web:http cluster IP"))


@pytest.mark.parametrize(
    ("first", "missing"),
    [
        pytest.param(None, "Node node", id="no object"),
        pytest.param(node(addresses=()), "addresses of Node node", id="no address"),
    ],
)
def test_a_start_waits_for_what_the_node_object_tells(
    stand_in: StandIn, daemon: ApiDaemon, first: Node | None, missing: str
) -> None:
    forget_node(stand_in)
    if first is not None:
        stand_in.put(first)
    address = put_web(stand_in, "p1")
    with starting(daemon):
        eventually(lambda: daemon.says(f'missing="{missing}"', "seconds_left="), "the wait")
        assert not daemon.says(" synced ")
        stand_in.put(node())
        eventually(lambda: daemon.answered_by(address) == "p1", "served when it is there", 10)
    assert not daemon.says("going on without")


def test_pod_cidrs_are_waited_for_and_followed(stand_in: StandIn, by_node_cidr: ApiDaemon) -> None:
    daemon = by_node_cidr
    address = put_web(stand_in, "p1")
    with starting(daemon):
        eventually(lambda: daemon.says('missing="podCIDRs of Node node"'), "the wait")
        assert not daemon.says(" synced ")
        stand_in.put(node(pod_cidrs=("10.244.0.0/24",)))
        eventually(lambda: daemon.answered_by(address) == "p1", "served when they are there", 10)
        assert "! -s 10.244.0.0/24" in rules_of_masquerading(daemon)

        assert daemon.process is not None
        pid = daemon.process.pid
        stand_in.put(node(pod_cidrs=("10.244.0.0/16",)))
        eventually(lambda: "! -s 10.244.0.0/16" in rules_of_masquerading(daemon), "followed")
        assert pid == daemon.process.pid
        assert daemon.runs


def test_pod_cidrs_of_the_wrong_family_end_the_start(
    stand_in: StandIn, by_node_cidr: ApiDaemon
) -> None:
    daemon = by_node_cidr
    stand_in.put(node(pod_cidrs=("fd00:244::/64",)))
    daemon.start(wait=False)
    assert daemon.process is not None
    try:
        status = daemon.process.wait(60)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it goes on: {daemon.text()}")
    assert 1 == status
    said = "cluster is IPv4-primary but node.spec.podCIDRs contains only IPv6 addresses"
    assert said in daemon.text().splitlines()[-1]
    assert not daemon.says("Traceback")


def test_a_cluster_cidr_that_does_not_hold_the_nodes_pods_is_told(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    stand_in.put(node(pod_cidrs=("10.99.0.0/24",)))
    put_web(stand_in, "p1")
    daemon.start()

    def events() -> list[str]:
        found = list(stand_in.server.events)
        return [str(e["note"]) for e in found if e["reason"] == "ClusterCIDRMismatch"]

    eventually(events, "an Event")
    (note,) = events()
    assert "10.99.0.0/24" in note
    assert "masqueraded" in note
    assert daemon.says("clusterCIDR and podCIDRs do not fit", "10.99.0.0/24")

    stand_in.put(node(pod_cidrs=("10.98.0.0/24",)))
    eventually(lambda: daemon.says("do not fit", "10.98.0.0/24"), "it is told again")
    stand_in.put(node(pod_cidrs=("10.244.0.0/24",)))
    eventually(lambda: daemon.says("clusterCIDR and podCIDRs fit now"), "and what is right")
