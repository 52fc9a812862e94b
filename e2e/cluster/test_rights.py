"""The ClusterRole of deploy/ is enough for the daemon's whole life, and none of it is too much.

The server refuses whatever the role does not allow.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.deployed import ROLE, DeployedDaemon, with_rights
from e2e.cluster.objects import put_web, web, web_slice
from e2e.cluster.process import eventually
from e2e.lab import Lab
from tests.fakes.apirights import Rights, Use
from tests.fakes.apistore import Object

CHECK_PORT = 32100
TROUBLE = "FailedToStartServiceHealthcheck"
RIGHTS = sorted(Rights(ROLE).granted, key=str)


@pytest.fixture
def deployed(lab: Lab, stand_in: StandIn, tmp_path: Path) -> Iterator[DeployedDaemon]:
    daemon = DeployedDaemon(lab, stand_in, tmp_path)
    yield daemon
    assert daemon.stop() == 0, daemon.text()
    assert "Traceback" not in daemon.text(), daemon.text()


def events(api: StandIn, reason: str) -> list[Object]:
    with api.server.changed:
        return [event for event in api.server.events if event["reason"] == reason]


@contextmanager
def port_taken(lab: Lab) -> Iterator[None]:
    """Somebody listens where a Service wants its health check port."""

    def listen() -> socket.socket:
        return socket.create_server(("::", CHECK_PORT), family=socket.AF_INET6, dualstack_ipv6=True)

    with lab.in_namespace("node", listen):
        yield


def have_the_same_trouble_again_and_again(api: StandIn, daemon: DeployedDaemon) -> None:
    """The port is tried again at each sync: an Event, and then more of it."""
    checked = {"external_policy": "Local", "health_check_node_port": CHECK_PORT}
    with port_taken(daemon.lab):
        put_web(api, "p1", name="checked", type="LoadBalancer", vips=["203.0.113.10"], **checked)
        # What follows the last sync may come too late.
        for pod in ("p1", "p2", "p1", "p2"):
            follow_to(pod, api, daemon)


def follow_to(pod: str, api: StandIn, daemon: DeployedDaemon) -> None:
    """Make *pod* the endpoint of Service web, and wait until it answers there."""
    address = put_web(api, pod)
    eventually(lambda: pod == daemon.answered_by(address), f"{pod} answers")


def test_the_role_is_enough_and_nothing_in_it_is_too_much(
    lab: Lab, stand_in: StandIn, deployed: DeployedDaemon
) -> None:
    rights = with_rights(stand_in, ROLE)
    server = stand_in.server
    server.streaming_lists = "error"
    put_web(stand_in, "p2", name="old")

    deployed.start()
    eventually(lambda: events(stand_in, "Starting"), "an Event about the start")

    follow_to("p2", stand_in, deployed)
    stand_in.delete(web(stand_in, "old"))
    stand_in.delete(web_slice(stand_in, name="old"))
    eventually(lambda: not deployed.rules_about("default/old"), "a deletion arrives")

    have_the_same_trouble_again_and_again(stand_in, deployed)
    eventually(lambda: "series" in events(stand_in, TROUBLE)[0], "an Event becomes a series")

    # History expires, so all is listed again.
    server.wait_for_watches(3)
    stand_in.store.compact()
    server.end_watches()
    follow_to("p1", stand_in, deployed)

    deployed.stop()
    server.streaming_lists = "on"
    deployed.start()
    follow_to("p2", stand_in, deployed)

    assert {} == rights.refused
    assert set(RIGHTS) == set(rights.used)


def test_the_role_is_enough_for_a_node_that_cannot_run_ipvs_mode(
    lab: Lab, stand_in: StandIn, tmp_path: Path
) -> None:
    rights = with_rights(stand_in, ROLE)
    address = put_web(stand_in, "p1")
    daemon = DeployedDaemon(lab, stand_in, tmp_path, "ipvs")
    daemon.configure(daemon.configuration().replace("scheduler: rr", "scheduler: doesnotexist"))
    try:
        daemon.start()
        assert "p1" == daemon.answered_by(address)
        eventually(lambda: events(stand_in, "IPVSUnavailable"), "an Event says so")
    finally:
        daemon.stop()
    assert {} == rights.refused


@pytest.mark.parametrize("missing", RIGHTS, ids=str)
def test_a_right_that_is_missing_is_named(
    stand_in: StandIn, deployed: DeployedDaemon, missing: Use
) -> None:
    rights = with_rights(stand_in, without(missing))
    stand_in.server.streaming_lists = "error"
    put_web(stand_in, "p1")
    named = (
        rf"grant verb \"{missing.verb}\" on resource \"{missing.resource}\" "
        rf"in API group \"{missing.group}\""
    )
    # Events are a courtesy: all else goes on without.
    is_needed = missing.resource != "events"
    deployed.start(wait=not is_needed)
    if not is_needed:
        have_the_same_trouble_again_and_again(stand_in, deployed)
    eventually(lambda: deployed.says(named), "the missing right is named")
    assert [missing] == list(rights.refused)


def without(right: Use) -> Object:
    """The role, without this one right."""
    return {
        "rules": [
            {"apiGroups": [use.group], "resources": [use.resource], "verbs": [use.verb]}
            for use in RIGHTS
            if use != right
        ]
    }
