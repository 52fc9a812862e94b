"""The way out of the lab that a real cluster needs, tried on a stand-in outside of it."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.api import Relay
from e2e.cluster.process import ApiDaemon, eventually
from e2e.lab import Lab
from tests.build import endpoint, manifest, node, service, slice_
from tests.fakes.apiserver import FakeApiServer


def test_a_daemon_in_the_lab_follows_a_server_outside(lab: Lab, tmp_path: Path) -> None:
    address = "10.96.0.10"
    with FakeApiServer() as server:
        outside = tmp_path / "outside"
        outside.mkdir()
        relay = Relay(lab, tmp_path, str(server.write_kubeconfig(outside)))
        server.store.put(manifest(node()))
        server.store.put(manifest(service("web", cluster_ip=address)))
        server.store.put(manifest(slice_("web", endpoint(lab.address("p1")))))
        daemon = ApiDaemon(lab, relay.kubeconfig, tmp_path)
        try:
            daemon.start()
            assert daemon.answered_by(address) == "p1"
            server.store.put(manifest(slice_("web", endpoint(lab.address("p2")))))
            eventually(lambda: daemon.answered_by(address) == "p2", "changes arrive")
        finally:
            daemon.stop()
            relay.close()
