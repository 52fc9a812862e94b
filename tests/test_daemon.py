"""Putting the parts together; what the daemon does with a kernel is in e2e/kernel."""

from __future__ import annotations

import errno
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest
from structlog.testing import capture_logs

from pykubeproxy import daemon
from pykubeproxy.backend import Backend
from pykubeproxy.config import Config, IpvsConfig
from pykubeproxy.errors import ConfigError, HostError, NodeTimeout, Unsupported
from pykubeproxy.host import sysctls
from pykubeproxy.host.nodelock import NodeLock
from pykubeproxy.host.sysctls import Parameter
from pykubeproxy.host.tuning import HASH_SIZE, MAX
from pykubeproxy.iptables import node
from pykubeproxy.iptables.node import Removed
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant, Verdict
from pykubeproxy.ipvs.leftovers import Removal
from pykubeproxy.ipvs.node import Problem
from pykubeproxy.model.kinds import Family
from pykubeproxy.supply import WATCHED, Opened, Supply

TOOLS = {Family.IPV4: Tools(Family.IPV4, Variant.NFT)}
NO_IPVS = Problem("the kernel has no IPVS", ("ip_vs", "ip_vs_rr"))


@pytest.fixture(autouse=True)
def parameters(tmp_path_factory, monkeypatch):
    """A /proc/sys and a /sys of its own, with what any mode sets, all of it 0; no state."""
    monkeypatch.setattr(daemon, "namespace_identity", lambda: None)
    root = tmp_path_factory.mktemp("node")
    monkeypatch.setattr(sysctls, "ROOT", root / "proc/sys")
    monkeypatch.setattr(sysctls, "SYS", root / "sys")
    monkeypatch.setattr(sysctls, "load_module", lambda name: False)
    for name in PARAMETERS:
        path = Parameter(name, 0).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0\n")
    return root


CONNTRACK = "net/netfilter/nf_conntrack_"
VS = "net/ipv4/vs/"
PARAMETERS = (
    MAX,
    HASH_SIZE,
    *(CONNTRACK + name for name in ("tcp_timeout_established", "tcp_timeout_close_wait")),
    *(VS + name for name in ("conntrack", "expire_nodest_conn", "expire_quiescent_template")),
    f"{VS}conn_reuse_mode",
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/route_localnet",
)


def values():
    """What the kernel parameters are now, where that is not 0."""
    found = {name: int(Parameter(name, 0).path.read_text()) for name in PARAMETERS}
    return {name: value for name, value in found.items() if value}


# --- cleaning up ---


class Cleaners:
    """What removes things, in place of the real ones; notes who is called with what."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.rules, self.servers = (Removed(), []), Removal({}, [])
        self.tables = ([], [])
        monkeypatch.setattr(daemon, "clean_up", self.remove_rules)
        monkeypatch.setattr(daemon, "remove_nftables_leftovers", lambda: self.tables)
        monkeypatch.setattr("pykubeproxy.ipvs.leftovers.clean_up", self.remove_servers)

    def remove_rules(self):
        self.calls.append("rules")
        return self.rules

    def remove_servers(self, exclude_cidrs):
        self.calls.append(("servers", exclude_cidrs))
        return self.servers


def cleaned(config):
    return daemon.cleanup(config, sys.stdout.write)


@pytest.fixture
def cleaners(monkeypatch):
    return Cleaners(monkeypatch)


@pytest.mark.parametrize(
    ("rules", "tables", "servers", "status", "clean"),
    [
        pytest.param(({}, []), ([], []), ({}, []), 0, True, id="nothing there"),
        pytest.param(
            *(({"iptables-nft-restore": 7}, []), ([], []), ({"ipsets": 17}, []), 0, False),
            id="removed",
        ),
        pytest.param(
            *(({}, []), (["table ip kube-proxy"], []), ({}, []), 0, False), id="a table removed"
        ),
        pytest.param(*(({}, ["table nat: busy"]), ([], []), ({}, []), 1, False), id="a rule stays"),
        pytest.param(
            *(({}, []), ([], ["nft, table ip kube-proxy: busy"]), ({}, []), 1, False),
            id="a table stays",
        ),
        pytest.param(
            *(({}, []), ([], []), ({}, ["ipset KUBE-IPVS-IPS: in use"]), 1, False),
            id="a set stays",
        ),
    ],
)
def test_what_cleanup_says_and_ends_with(cleaners, rules, tables, servers, status, clean, capsys):
    removed, problems = rules
    cleaners.rules, cleaners.tables = (Removed(removed), problems), tables
    cleaners.servers = Removal(*servers)
    assert status == cleaned(Config(state_directory=""))
    said = capsys.readouterr().out
    assert clean is ("nothing of ours was found" in said)
    assert [] == [text for text in (*problems, *tables[1], *servers[1]) if text not in said]


def test_cleanup_removes_rules_before_the_sets_that_they_ask(cleaners):
    config = Config(state_directory="", ipvs=IpvsConfig(exclude_cidrs=("192.0.2.0/24",)))
    cleaned(config)
    assert ["rules", ("servers", ("192.0.2.0/24",))] == cleaners.calls


def test_cleanup_forgets_what_was_written(cleaners, tmp_path):
    for name in ("iptables-IPv4-nft-cookie-1", "lock-cookie-1", "theirs"):
        (tmp_path / name).touch()
    cleaned(Config(state_directory=str(tmp_path)))
    assert ["theirs"] == [path.name for path in tmp_path.iterdir()]


def test_cleanup_names_the_notes_that_it_could_not_remove(cleaners, monkeypatch, tmp_path, capsys):
    note = tmp_path / "iptables-IPv4-nft-cookie-1"
    note.touch()
    monkeypatch.setattr("pathlib.Path.unlink", refuse_to_remove)
    assert 1 == cleaned(Config(state_directory=str(tmp_path)))
    said = capsys.readouterr().out
    assert str(note) in said
    assert "nothing of ours was found" not in said


def refuse_to_remove(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system")


def test_cleanup_says_that_a_daemon_is_running_and_leaves_it_its_lock(
    cleaners, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(daemon, "namespace_identity", lambda: ("boot", "cookie-1"))
    lock = NodeLock(tmp_path, "cookie-1")
    assert lock.take()
    cleaned(Config(state_directory=str(tmp_path)))
    assert ["lock-cookie-1"] == [path.name for path in tmp_path.iterdir()]
    assert "will write its rules again" in capsys.readouterr().out
    lock.release()


def planned(monkeypatch, rules=(), tables=(), servers=(), problems=()):
    removal = node.Removal(TOOLS[Family.IPV4], "nat", (), tuple(rules))
    monkeypatch.setattr(daemon, "plan_removal", lambda: ([removal], list(problems)))
    monkeypatch.setattr(daemon, "find_nftables_leftovers", lambda: list(tables))
    plan = (list(servers), [])
    monkeypatch.setattr("pykubeproxy.ipvs.leftovers.plan_removal", lambda exclude_cidrs: plan)


def test_a_dry_run_lists_all_and_removes_nothing(cleaners, monkeypatch, tmp_path, capsys):
    (tmp_path / "iptables-IPv4-nft-cookie-1").touch()
    planned(
        monkeypatch,
        rules=[("KUBE-SERVICES", 3)],
        tables=[("ip6", "kube-proxy")],
        servers=["virtual server tcp 10.96.0.1:80", "device kube-ipvs0"],
    )
    assert 0 == cleaned(Config(dry_run=True, state_directory=str(tmp_path)))
    assert [
        "iptables-nft, table nat: chain KUBE-SERVICES with 3 rules",
        "nftables: table ip6 kube-proxy",
        "virtual server tcp 10.96.0.1:80",
        "device kube-ipvs0",
        f"file {tmp_path}/iptables-IPv4-nft-cookie-1",
    ] == capsys.readouterr().out.splitlines()
    assert [] == cleaners.calls
    assert (tmp_path / "iptables-IPv4-nft-cookie-1").exists()


def test_a_dry_run_on_a_clean_node_says_so(cleaners, monkeypatch, capsys):
    planned(monkeypatch)
    assert 0 == cleaned(Config(dry_run=True, state_directory=""))
    assert ["nothing of ours was found"] == capsys.readouterr().out.splitlines()


def test_a_dry_run_that_could_not_see_everything_fails(cleaners, monkeypatch, capsys):
    planned(monkeypatch, problems=["iptables-nft-save: Permission denied"])
    assert 1 == cleaned(Config(dry_run=True, state_directory=""))
    said = capsys.readouterr().out
    assert "nothing of ours was found" not in said
    assert "iptables-nft-save: Permission denied" in said


# --- initialising ---


@pytest.fixture
def capable(monkeypatch):
    """A node that can run either mode."""
    monkeypatch.setattr(daemon, "detect_variant", lambda *_: Verdict(Variant.NFT, "a test"))
    monkeypatch.setattr(daemon, "available_tools", lambda *_: TOOLS)
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: [])
    monkeypatch.setattr("platform.release", lambda: "6.1.0")
    monkeypatch.setattr(daemon, "count_cpus", lambda: 2)


SIZES = {
    MAX: 131072,
    HASH_SIZE: 32768,
    f"{CONNTRACK}tcp_timeout_established": 86400,
    f"{CONNTRACK}tcp_timeout_close_wait": 3600,
}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        pytest.param("iptables", {"net/ipv4/conf/all/route_localnet": 1}, id="iptables"),
        pytest.param(
            "ipvs",
            {
                f"{VS}conntrack": 1,
                f"{VS}expire_nodest_conn": 1,
                f"{VS}expire_quiescent_template": 1,
                "net/ipv4/ip_forward": 1,
            },
            id="ipvs",
        ),
    ],
)
def test_initialising_sets_the_parameters_of_the_mode(capable, mode, expected):
    assert 0 == daemon.initialise(Config(mode=mode))
    assert SIZES | expected == values()


def test_initialising_for_a_mode_that_will_not_run_is_for_the_other(capable, monkeypatch):
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: [NO_IPVS])
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    assert 0 == daemon.initialise(Config(mode="ipvs"))
    assert SIZES | {"net/ipv4/conf/all/route_localnet": 1} == values()


def test_all_parameters_that_cannot_be_set_are_one_error(capable):
    for name in (MAX, "net/ipv4/conf/all/route_localnet"):
        path = Parameter(name, 0).path
        path.unlink()
        path.mkdir()
    with pytest.raises(HostError) as refused:
        daemon.initialise(Config())
    assert "net.netfilter.nf_conntrack_max=131072" in str(refused.value)
    assert "net.ipv4.conf.all.route_localnet=1" in str(refused.value)


def test_a_start_without_an_init_container_says_what_it_misses_before_it_writes(
    capable, monkeypatch
):
    monkeypatch.setattr(daemon, "BACKENDS", {})  # would fail if it were reached
    path = Parameter("net/ipv4/conf/all/route_localnet", 0).path
    path.unlink()
    path.mkdir()
    with pytest.raises(HostError, match=r"route_localnet.*--init-only"):
        daemon.run(Config(state_directory=""), supplied())


def refuse_to_write(monkeypatch, numbers):
    """Have the kernel refuse to set parameters: errors by name."""
    plain, plain_open = Path.write_text, Path.open
    refused = {Parameter(name, 0).path: number for name, number in numbers.items()}

    def write_text(path, *arguments, **options):
        if path in refused:
            raise OSError(refused[path], os.strerror(refused[path]))
        return plain(path, *arguments, **options)

    def open_(path, mode="r", *arguments, **options):
        if path in refused and mode != "r":
            raise OSError(refused[path], os.strerror(refused[path]))
        return plain_open(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr(Path, "open", open_)


CLOSE_WAIT = f"{CONNTRACK}tcp_timeout_close_wait"
LOCALNET = "net/ipv4/conf/all/route_localnet"


def told_at_start(recorder):
    """Notes of the Events about parameters, after a start that got to its end."""
    config = Config(state_directory="", healthz_address=None, metrics_address=("127.0.0.1", 0))
    with ExitStack() as parts:
        daemon._build(config, supplied(recorder), Event(), parts, None)
    return [h for h in recorder.happened if h.reason == "KernelParameterNotSet"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_tuning_that_may_not_be_set_is_told_and_keeps_no_node_from_being_served(
    capable, monkeypatch, number
):
    monkeypatch.setattr(
        daemon, "BACKENDS", {"iptables": lambda _: Backend((), lambda _: None, lambda: None)}
    )
    refuse_to_write(monkeypatch, {MAX: number, CLOSE_WAIT: number})
    with capture_logs() as logs:
        (happening,) = told_at_start(Recorder())
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    found = [
        f"{Parameter(name, 0).path} is 0, must be {value} ({os.strerror(number)})"
        for name, value in ((MAX, 131072), (CLOSE_WAIT, 3600))
    ]
    remedy = "run on the node: sysctl -w net.netfilter.nf_conntrack_max=131072 && sysctl -w net."
    assert "connections are tracked with the values found" in said["event"]
    for words in (*found, "--init-only", remedy):
        assert words in said["reason"]
    assert (True, None, "StartKubeProxy") == (
        happening.warning,
        happening.service,
        happening.action,
    )
    assert [] == [words for words in found if words not in happening.note]
    # All else was set.
    assert {name: value for name, value in SIZES.items() if name not in (MAX, CLOSE_WAIT)} | {
        LOCALNET: 1
    } == values()


def test_a_start_at_which_all_is_as_it_should_be_tells_nothing(capable, monkeypatch):
    monkeypatch.setattr(
        daemon, "BACKENDS", {"iptables": lambda _: Backend((), lambda _: None, lambda: None)}
    )
    assert [] == told_at_start(Recorder())


UNBEARABLE = [
    pytest.param({LOCALNET: errno.EROFS}, id="what the mode needs"),
    pytest.param({VS + "conntrack": errno.EROFS}, id="what ipvs mode needs"),
    pytest.param({MAX: errno.EINVAL}, id="tuning to no such value"),
]


@pytest.mark.parametrize("numbers", UNBEARABLE)
def test_what_is_needed_is_needed_and_all_that_is_missing_is_named(capable, monkeypatch, numbers):
    monkeypatch.setattr(daemon, "BACKENDS", {})  # would fail if it were reached
    refuse_to_write(monkeypatch, {**numbers, CLOSE_WAIT: errno.EROFS})
    mode = "ipvs" if VS + "conntrack" in numbers else "iptables"
    with pytest.raises(HostError) as refused:
        daemon.run(Config(mode=mode, state_directory=""), supplied())
    for name in (*numbers, CLOSE_WAIT):
        assert f"{Parameter(name, 0).path} is 0, must be " in str(refused.value)


def test_initialising_has_all_rights_or_fails(capable, monkeypatch):
    refuse_to_write(monkeypatch, {CLOSE_WAIT: errno.EROFS})
    with pytest.raises(HostError, match=r"tcp_timeout_close_wait is 0, must be 3600"):
        daemon.initialise(Config())


# --- one at a time ---


def test_a_second_daemon_waits_for_the_end_of_the_first(capable, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(daemon, "namespace_identity", lambda: ("boot", "cookie-1"))
    first = NodeLock(tmp_path, "cookie-1")
    first.take()
    # What the second asks of the node once it goes on.
    seen = []
    monkeypatch.setattr(daemon, "detect_variant", lambda *_: seen.append(first.is_free) or GO_ON)
    monkeypatch.setattr(daemon, "BACKENDS", {})
    monkeypatch.setattr(daemon.time, "sleep", lambda seconds: first.release())
    with pytest.raises(KeyError), ExitStack() as parts:
        daemon._build(Config(state_directory=str(tmp_path)), supplied(), Event(), parts, None)
    assert [False] == seen, "it had the lock itself by then"
    assert first.is_free, "and let it go at the end"
    assert "waiting for its end" in capsys.readouterr().out


def test_a_signal_ends_the_wait_for_another_daemon(capable, monkeypatch, tmp_path):
    monkeypatch.setattr(daemon, "namespace_identity", lambda: ("boot", "cookie-1"))
    monkeypatch.setattr(daemon, "BACKENDS", {})  # would fail if it were reached
    monkeypatch.setattr(daemon.time, "sleep", lambda _: signal.raise_signal(signal.SIGTERM))
    first = NodeLock(tmp_path, "cookie-1")
    first.take()
    assert 0 == daemon.run(Config(state_directory=str(tmp_path)), supplied())
    assert not first.is_free


GO_ON = Verdict(Variant.NFT, "a test")


# --- the end ---


def loop_that(monkeypatch, error):
    """Have the sync thread end by *error*."""

    class Loop:
        def run(self):
            raise error

    monkeypatch.setattr(daemon, "_build", lambda *_: Loop())


@pytest.mark.parametrize(
    "error",
    [
        NodeTimeout('timeout waiting for PodCIDR allocation on node "n"'),
        ConfigError("clusterCIDR", "cluster is IPv4-only"),
    ],
    ids=["no podCIDRs", "wrong family"],
)
def test_what_a_node_cannot_be_served_for_ends_the_run_and_is_told(monkeypatch, error, capsys):
    loop_that(monkeypatch, error)
    with pytest.raises(type(error), match=str(error)):
        daemon.run(Config(), supplied())
    assert "this is a bug" not in capsys.readouterr().out


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
    assert {} == values()


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
    assert {} == values()
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
        daemon._build(config, supplied(recorder), Event(), parts, None)
    ((mode, around),) = built
    assert running == mode
    labels = {"running": running, "configured": "ipvs"}
    assert 1 == around.metrics.registry.get_sample_value("pykubeproxy_proxy_mode", labels)
    told = [h.note for h in recorder.happened if h.reason == "IPVSUnavailable"]
    assert len(problems) == len(told)
    assert all("the kernel has no IPVS" in note for note in told)


# --- trying out a changed configuration ---


def test_a_rehearsal_changes_nothing(capable):
    before = values()
    daemon.rehearse(Config(master="https://192.0.2.1:6443"))
    assert before == values()


def test_a_rehearsal_tells_what_a_start_would_end_at(capable, monkeypatch):
    for kubeconfig in ("/absent", __file__):
        with pytest.raises(ConfigError, match=f"kubeconfig: {kubeconfig}"):
            daemon.rehearse(Config(kubeconfig=kubeconfig))
    monkeypatch.setattr("pykubeproxy.ipvs.node.find_problems", lambda *_: [NO_IPVS])
    monkeypatch.setattr(daemon, "RECHECK_SECONDS", 0)
    ipvs = IpvsConfig(falls_back=False)
    with pytest.raises(Unsupported):
        daemon.rehearse(Config(manifests="/m", mode="ipvs", ipvs=ipvs))
    path = Parameter(MAX, 0).path
    path.unlink()
    path.mkdir()
    with pytest.raises(HostError, match=r"nf_conntrack_max=131072"):
        daemon.rehearse(Config(manifests="/m"))


def test_a_rehearsal_minds_no_tuning_that_a_start_would_bear(capable, monkeypatch):
    refuse_to_write(monkeypatch, {MAX: errno.EROFS, CLOSE_WAIT: errno.EACCES})
    daemon.rehearse(Config(manifests="/m"))
    refuse_to_write(monkeypatch, {LOCALNET: errno.EROFS})
    with pytest.raises(HostError, match=r"route_localnet is 0, must be 1"):
        daemon.rehearse(Config(manifests="/m"))
