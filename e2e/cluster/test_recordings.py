"""Every recorded answer of a real kube-apiserver is taken as it should be, and survived."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.objects import put_web
from e2e.cluster.process import ApiDaemon, eventually
from e2e.cluster.replay import Replay, Scene
from e2e.lab import Lab
from tests.fakes import recordings
from tests.fakes.apiserver import certificate_authority

AT_ONCE = 6
LISTED = "default/webapp"  # a Service that every recorded listing has
# Lists of Services as they should be, told in answer to that question.
PLAIN_LISTS = {"services-list", "services-list-selector", "services-rv0"}
# What is told elsewhere in the conversation, or is no answer that the daemon could get.
SCENES: dict[str, Scene] = {
    "services-page-1": {"list": "services-page-1"},
    "services-page-2": {"list": "services-page-1"},
    "services-continue-expired": {"list": "services-page-1", "page": "services-continue-expired"},
    "services-bad-continue": {"list": "services-page-1", "page": "services-bad-continue"},
    "services-watch": {"watch": "services-watch"},
    "services-watch-future": {},
    "services-watch-too-old": {"watch": "services-watch-too-old"},
    "services-watch-too-old-410": {"watch": "services-watch-too-old-410"},
    "services-watchlist": {"stream": "services-watchlist"},
    "services-watchlist-unsupported": {},
    "endpointslices-list": {},
    "endpointslices-watch": {"slices-watch": "endpointslices-watch"},
    "nodes-list-one": {},
    "event-create": {},
}
# Refusals, and answers that are no list of Services: until a good one comes nothing is written.
NO_LIST = {
    "node-get",
    "node-missing",
    "nodes-forbidden",
    "not-a-path",
    "readyz",
    "servicecidrs-list",
    "services-bad-continue",
    "services-bad-rv",
    "services-list-exact-too-old-410",
    "services-list-future",
    "services-unauthorized",
    "version",
}


def test_every_recording_has_its_place() -> None:
    assert PLAIN_LISTS | set(SCENES) | NO_LIST == set(recordings.NAMES)
    assert PLAIN_LISTS.isdisjoint(set(SCENES) | NO_LIST)


@pytest.fixture(scope="module")
def fates(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """The chosen recordings, several at a time: most of it is waiting for a daemon's retry."""
    chosen = [
        item.callspec.params["name"]
        for item in request.session.items
        if "fates" in getattr(item, "fixturenames", ()) and isinstance(item, pytest.Function)
    ]
    directories = {name: tmp_path_factory.mktemp(name) for name in chosen}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(replay_to_a_daemon, name, directories[name]) for name in chosen}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", recordings.NAMES)
def test_a_recorded_answer_is_survived(fates: dict[str, Future[None]], name: str) -> None:
    fates[name].result()


def replay_to_a_daemon(name: str, directory: Path) -> None:
    with Lab() as lab:
        stand_in = StandIn(lab, directory)
        stand_in.stop()
        scene = SCENES.get(name, {"list": name})
        port, authority = stand_in.server.port, certificate_authority()
        replay: Replay = lab.in_namespace("node", lambda: Replay(scene, authority, port))
        daemon = ApiDaemon(lab, stand_in.kubeconfig, directory, "--hostname-override=node-0")
        try:
            daemon.start(wait=name not in NO_LIST)
            replay.wait_for_reaction(name)
            if name in NO_LIST:
                assert not daemon.synced()
                assert "KUBE-SERVICES" not in daemon.chains()
            else:
                assert daemon.rules_about(LISTED)
            replay.close()
            a_good_server_takes_over(stand_in, daemon)
        finally:
            replay.close()
            daemon.stop()
            stand_in.close()


def a_good_server_takes_over(stand_in: StandIn, daemon: ApiDaemon) -> None:
    """The same cluster, later: another Service, and history up to here is gone."""
    stand_in.store.advance(10_000)
    address = put_web(stand_in, "p1", cluster_ip="10.96.0.200")
    stand_in.store.compact()
    stand_in.start()
    eventually(lambda: daemon.answered_by(address) == "p1", "a good server is followed", 40)
    eventually(lambda: not daemon.rules_about(LISTED), "what it does not have is gone", 40)
    assert daemon.runs
    assert "Traceback" not in daemon.text()
