"""Putting the parts together; what the daemon does with a kernel is in e2e/kernel."""

from __future__ import annotations

import platform

import pytest

from pykubeproxy import daemon
from pykubeproxy.config import Config
from pykubeproxy.errors import ConfigError, Unsupported
from pykubeproxy.iptables.node import Removed


@pytest.mark.parametrize(
    ("given", "host", "expected"),
    [
        pytest.param("", "Host-1.example", "host-1.example", id="the host's name, lower case"),
        pytest.param(" Node-7 ", "host", "node-7", id="as given, trimmed and lower case"),
    ],
)
def test_the_name_of_the_node(monkeypatch, given, host, expected):
    monkeypatch.setattr(platform, "node", lambda: host)
    assert expected == daemon.node_name(Config(node_name=given))


def test_a_host_without_a_name_needs_one(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "")
    with pytest.raises(ConfigError, match="--hostname-override"):
        daemon.node_name(Config())


@pytest.mark.parametrize(
    ("removed", "problems", "status"),
    [
        pytest.param({}, [], 0, id="nothing there"),
        pytest.param({"iptables-nft-restore": 7}, [], 0, id="removed"),
        pytest.param({}, ["table nat: busy"], 1, id="something stays"),
    ],
)
def test_the_exit_status_of_cleanup(monkeypatch, removed, problems, status):
    monkeypatch.setattr(daemon, "clean_up", lambda: (Removed(removed), problems))
    monkeypatch.setattr(daemon, "remove_nftables_leftovers", list)
    assert status == daemon.cleanup(Config())


def test_a_node_without_iptables_is_refused_before_anything_is_started(monkeypatch, tmp_path):
    def nothing_works(_override):
        raise Unsupported("no working iptables; install the iptables package")

    monkeypatch.setattr(daemon, "detect_variant", nothing_works)
    monkeypatch.setattr(daemon, "HealthServer", None)  # would fail if it were reached
    with pytest.raises(Unsupported, match="install"):
        daemon.run(Config(manifests=str(tmp_path), node_name="node"))
