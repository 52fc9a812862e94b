"""Putting the parts together; what the daemon does with a kernel is in e2e/kernel."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from threading import Event

import pytest

from pykubeproxy import daemon
from pykubeproxy.backend import Backend
from pykubeproxy.config import Config, IpvsConfig
from pykubeproxy.errors import ConfigError, Unsupported
from pykubeproxy.iptables.node import Removed
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant, Verdict
from pykubeproxy.ipvs.leftovers import Removal
from pykubeproxy.ipvs.node import Problem
from pykubeproxy.model.kinds import Family
from pykubeproxy.supply import WATCHED, Opened, Supply

TOOLS = {Family.IPV4: Tools(Family.IPV4, Variant.NFT)}
NO_IPVS = Problem("the kernel has no IPVS", ("ip_vs", "ip_vs_rr"))


# --- cleaning up ---


class Cleaners:
    """What removes things, in place of the real ones; notes who is called with what."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.rules, self.servers = (Removed(), []), Removal({}, [])
        self.tables = []
        monkeypatch.setattr(daemon, "clean_up", self.remove_rules)
        monkeypatch.setattr(daemon, "remove_nftables_leftovers", lambda: self.tables)
        monkeypatch.setattr("pykubeproxy.ipvs.leftovers.clean_up", self.remove_servers)

    def remove_rules(self):
        self.calls.append("rules")
        return self.rules

    def remove_servers(self, exclude_cidrs):
        self.calls.append(("servers", exclude_cidrs))
        return self.servers


@pytest.fixture
def cleaners(monkeypatch):
    return Cleaners(monkeypatch)


@pytest.mark.parametrize(
    ("rules", "servers", "status"),
    [
        pytest.param(({}, []), ({}, []), 0, id="nothing there"),
        pytest.param(({"iptables-nft-restore": 7}, []), ({"ipsets": 17}, []), 0, id="removed"),
        pytest.param(({}, ["table nat: busy"]), ({}, []), 1, id="a rule stays"),
        pytest.param(({}, []), ({}, ["ipset KUBE-IPVS-IPS: in use"]), 1, id="a set stays"),
    ],
)
def test_the_exit_status_of_cleanup(cleaners, rules, servers, status):
    removed, problems = rules
    cleaners.rules, cleaners.servers = (Removed(removed), problems), Removal(*servers)
    assert status == daemon.cleanup(Config(state_directory=""))


def test_cleanup_removes_rules_before_the_sets_that_they_ask(cleaners):
    config = Config(state_directory="", ipvs=IpvsConfig(exclude_cidrs=("192.0.2.0/24",)))
    daemon.cleanup(config)
    assert ["rules", ("servers", ("192.0.2.0/24",))] == cleaners.calls


def test_cleanup_forgets_what_was_written(cleaners, tmp_path):
    (tmp_path / "iptables-IPv4-nft-cookie-1").touch()
    (tmp_path / "theirs").touch()
    daemon.cleanup(Config(state_directory=str(tmp_path)))
    assert ["theirs"] == [path.name for path in tmp_path.iterdir()]


# --- starting ---


class Source:
    kinds = WATCHED

    def start(self, mailbox):
        pass

    def stop(self):
        pass


class Recorder:
    """Where Events would go."""

    def __init__(self):
        self.happened = []

    def record(self, happening):
        self.happened.append(happening)

    def start(self):
        pass

    def stop(self):
        pass


def supplied(recorder=None, problem=None):
    """A supply that has been started, with a source that says nothing, or with a *problem*."""

    def open_source(_config, _name):
        if problem:
            raise problem
        return Opened(Source(), recorder)

    supply = Supply(Config(node_name="node"), open_source)
    supply.start()
    return supply


def test_a_node_without_iptables_is_refused_before_anything_is_started(monkeypatch):
    def nothing_works(_override, _ask):
        raise Unsupported("no working iptables; install the iptables package")

    monkeypatch.setattr(daemon, "detect_variant", nothing_works)
    monkeypatch.setattr(daemon, "HealthServer", None)  # would fail if it were reached
    with pytest.raises(Unsupported, match="install"):
        daemon.run(Config(), supplied())


def test_a_source_that_cannot_be_opened_is_told_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(daemon, "detect_variant", lambda *_: Verdict(Variant.NFT, "a test"))
    monkeypatch.setattr(daemon, "available_tools", lambda *_: TOOLS)
    monkeypatch.setattr(daemon, "BACKENDS", {})  # would fail if it were reached
    with pytest.raises(ConfigError, match="no such file"):
        daemon.run(Config(), supplied(problem=ConfigError("--kubeconfig", "no such file")))


def test_a_signal_while_the_source_is_being_opened_ends_the_start(monkeypatch):
    held = Event()

    def open_source(_config, _name):
        signal.raise_signal(signal.SIGTERM)  # taken by this thread, not by the one that waits
        held.wait()
        return Opened(Source())

    supply = Supply(Config(node_name="node"), open_source)

    def detect(_override, _ask):
        supply.start()
        return Verdict(Variant.NFT, "a test")

    monkeypatch.setattr(daemon, "detect_variant", detect)
    monkeypatch.setattr(daemon, "available_tools", lambda *_: TOOLS)
    monkeypatch.setattr(daemon, "BACKENDS", {})  # would fail if it were reached
    assert 0 == daemon.run(Config(), supply)
    held.set()


# --- the mode ---


@pytest.mark.parametrize(
    ("mode", "problems", "expected"),
    [
        pytest.param("iptables", [NO_IPVS], "iptables", id="iptables: nothing is probed"),
        pytest.param("ipvs", [], "ipvs", id="ipvs, and the kernel can"),
        pytest.param("ipvs", [NO_IPVS], "iptables", id="ipvs, and the kernel cannot"),
    ],
)
def test_the_mode_that_runs(monkeypatch, mode, problems, expected):
    asked = []

    def find_problems(scheduler, tools):
        asked.append((scheduler, tools))
        return problems

    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", find_problems)
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    config = Config(mode=mode, ipvs=IpvsConfig(scheduler="wlc"))
    running, why_not = daemon._choose_mode(config, TOOLS)
    assert expected == running
    looks = 0 if mode != "ipvs" else 2 if problems else 1
    assert [("wlc", TOOLS)] * looks == asked
    if running == mode:
        assert "" == why_not
    else:
        assert "the kernel has no IPVS" in why_not
        assert "modprobe -a ip_vs ip_vs_rr" in why_not
        assert "running in iptables mode instead" in why_not


def test_what_is_only_refused_once_is_no_reason_to_fall_back(monkeypatch):
    found = [[NO_IPVS], []]
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: found.pop(0))
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    assert ("ipvs", "") == daemon._choose_mode(Config(mode="ipvs"), TOOLS)


def test_a_node_that_cannot_run_the_mode_ends_where_that_is_wanted(monkeypatch):
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: [NO_IPVS])
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    config = Config(mode="ipvs", ipvs=IpvsConfig(falls_back=False))
    with pytest.raises(Unsupported, match=r"modprobe -a ip_vs .*--ipvs-fallback=fail"):
        daemon._choose_mode(config, TOOLS)


@pytest.mark.parametrize(
    ("problems", "running"),
    [pytest.param([NO_IPVS], "iptables", id="fallback"), pytest.param([], "ipvs", id="none")],
)
def test_a_fallback_is_told_by_an_event_and_a_metric(monkeypatch, problems, running):
    recorder, built = Recorder(), []

    def backend(mode):
        def build(around):
            built.append((mode, around))
            return Backend((), lambda on_change: None, lambda: None)

        return build

    monkeypatch.setattr(daemon, "detect_variant", lambda *_: Verdict(Variant.NFT, "a test"))
    monkeypatch.setattr(daemon, "available_tools", lambda *_: TOOLS)
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: problems)
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    monkeypatch.setattr(daemon, "BACKENDS", {mode: backend(mode) for mode in daemon.BACKENDS})
    config = Config(mode="ipvs", healthz_address=None, metrics_address=("127.0.0.1", 0))
    with ExitStack() as parts:
        daemon._build(config, supplied(recorder), Event(), parts)
    ((mode, around),) = built
    assert running == mode
    labels = {"running": running, "configured": "ipvs"}
    assert 1 == around.metrics.registry.get_sample_value("pykubeproxy_proxy_mode", labels)
    told = [h.note for h in recorder.happened if h.reason == "IPVSUnavailable"]
    assert len(problems) == len(told)
    assert all("the kernel has no IPVS" in note for note in told)
