"""Conntrack's size and timeouts, and the OOM score, as kube-proxy sets them."""

from __future__ import annotations

import os

import pytest

from pykubeproxy.config import ConntrackConfig
from pykubeproxy.host import sysctls, tuning
from pykubeproxy.host.sysctls import Parameter, Refusal
from pykubeproxy.host.tuning import (
    HASH_SIZE,
    MAX,
    adjust_oom_score,
    conntrack_max,
    conntrack_parameters,
    count_cpus,
    untuned_note,
)
from pykubeproxy.watch.events import NOTE_BYTES

LEFT_ALONE = ConntrackConfig(
    max_per_core=0, tcp_established_seconds=0.0, tcp_close_wait_seconds=0.0
)


def fields_of(config):
    return {name: getattr(config, name) for name in config.__struct_fields__}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A machine's /proc/sys and /sys, with conntrack in the initial network namespace."""
    monkeypatch.setattr(sysctls, "ROOT", tmp_path / "proc/sys")
    monkeypatch.setattr(sysctls, "SYS", tmp_path / "sys")
    largest = tmp_path / "proc/sys" / MAX
    largest.parent.mkdir(parents=True)
    largest.write_text("262144\n")
    return tmp_path


# --- size and timeouts ---


@pytest.mark.parametrize(
    ("per_core", "least", "cpus", "expected"),
    [
        pytest.param(0, 131072, 8, 0, id="0 leaves it, and the minimum counts for nothing"),
        pytest.param(32768, 131072, 2, 131072, id="the minimum"),
        pytest.param(32768, 131072, 4, 131072, id="as much as the minimum"),
        pytest.param(32768, 131072, 5, 163840, id="more than the minimum"),
        pytest.param(32768, 131072, 64, 1048576, id="capped"),
        pytest.param(32768, 2000000, 64, 2000000, id="the minimum is not capped"),
        pytest.param(100, 0, 3, 300, id="no minimum"),
    ],
)
def test_the_size_of_the_table(per_core, least, cpus, expected):
    assert expected == conntrack_max(ConntrackConfig(max_per_core=per_core, min=least), cpus)


def test_what_kube_proxy_sets_unless_told_otherwise(root):
    stem = "net/netfilter/nf_conntrack_"
    assert [
        Parameter(f"{stem}max", 131072, "nf_conntrack", is_tuning=True),
        Parameter(HASH_SIZE, 32768, "nf_conntrack", at_least=True, is_tuning=True),
        Parameter(f"{stem}tcp_timeout_established", 86400, "nf_conntrack", is_tuning=True),
        Parameter(f"{stem}tcp_timeout_close_wait", 3600, "nf_conntrack", is_tuning=True),
    ] == conntrack_parameters(ConntrackConfig(), cpus=2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"tcp_be_liberal": True}, {"tcp_be_liberal": 1}, id="liberal"),
        pytest.param({"udp_seconds": 30.9}, {"udp_timeout": 30}, id="truncated"),
        pytest.param({"udp_seconds": 0.5}, {"udp_timeout": 0}, id="truncated to nothing"),
        pytest.param(
            {
                "udp_stream_seconds": 120.0,
                "udp_seconds": 60.0,
                "tcp_be_liberal": True,
                "tcp_close_wait_seconds": 10.0,
                "tcp_established_seconds": 20.0,
            },
            {
                "tcp_timeout_established": 20,
                "tcp_timeout_close_wait": 10,
                "tcp_be_liberal": 1,
                "udp_timeout": 60,
                "udp_timeout_stream": 120,
            },
            id="all, in order",
        ),
    ],
)
def test_timeouts(given, expected):
    wanted = conntrack_parameters(ConntrackConfig(**{**fields_of(LEFT_ALONE), **given}), cpus=2)
    stem = "net/netfilter/nf_conntrack_"
    assert [(stem + name, value) for name, value in expected.items()] == [
        (parameter.name, parameter.value) for parameter in wanted
    ]


@pytest.mark.parametrize(
    ("mode", "config", "expected"),
    [
        pytest.param(0o644, ConntrackConfig(), True, id="the machine's own namespace"),
        pytest.param(0o444, ConntrackConfig(), False, id="another, and nothing was chosen"),
        pytest.param(0o444, ConntrackConfig(max_per_core=1000), True, id="another, but chosen"),
        pytest.param(0o444, ConntrackConfig(min=1000), True, id="another, but a minimum chosen"),
        pytest.param(0o444, ConntrackConfig(max_per_core=0), False, id="left alone anyway"),
    ],
)
def test_default_sizes_are_for_who_owns_the_table(root, mode, config, expected):
    (root / "proc/sys" / MAX).chmod(mode)
    names = [parameter.name for parameter in conntrack_parameters(config, cpus=2)]
    assert (expected, expected) == (MAX in names, HASH_SIZE in names)
    assert "net/netfilter/nf_conntrack_tcp_timeout_established" in names


ALL = ConntrackConfig(tcp_be_liberal=True, udp_seconds=30.0, udp_stream_seconds=180.0)


def test_all_of_it_is_tuning(root):
    parameters = conntrack_parameters(ALL, cpus=2)
    assert [True] * 7 == [parameter.is_tuning for parameter in parameters]


def test_an_event_has_room_for_all_of_it():
    largest = conntrack_parameters(ConntrackConfig(**{**fields_of(ALL), "min": 1 << 30}), cpus=2)
    refusals = [
        Refusal(parameter, 1 << 30, "Operation not permitted", lacks_right=True)
        for parameter in largest
    ]
    note = untuned_note(refusals)
    assert len(note.encode()) <= NOTE_BYTES
    assert [] == [str(refusal) for refusal in refusals if str(refusal) not in note]
    assert note.startswith("connections are tracked with the values found: ")


# --- CPUs ---


def cpu(root, number, online=None, topology=True):
    directory = root / f"sys/devices/system/cpu/cpu{number}"
    directory.mkdir(parents=True)
    if topology:
        (directory / "topology").mkdir()
        (directory / "topology/core_id").write_text("0\n")
    if online is not None:
        (directory / "online").write_text(f"{online}\n")


def test_hardware_threads_that_are_online_are_counted(root):
    cpu(root, 0)
    cpu(root, 1, online=1)
    cpu(root, 2, online=0)
    cpu(root, 11, online=1)
    (root / "sys/devices/system/cpu/cpufreq").mkdir()
    assert 3 == count_cpus()


def test_without_a_topology_the_cpus_of_this_process_count(root):
    cpu(root, 0, topology=False)
    assert len(os.sched_getaffinity(0)) == count_cpus()


# --- OOM score ---


@pytest.fixture
def score(tmp_path, monkeypatch):
    path = tmp_path / "oom_score_adj"
    path.write_text("0\n")
    monkeypatch.setattr(tuning, "OOM_SCORE", path)
    return path


def test_the_oom_score_is_set(score):
    assert adjust_oom_score(-999)
    assert "-999\n" == score.read_text()


def test_the_right_oom_score_is_not_written_again(score, monkeypatch):
    score.write_text("-997\n")
    monkeypatch.setattr(type(score), "write_text", None)  # would fail if it were called
    assert adjust_oom_score(-997)


def test_a_refused_oom_score_is_tried_twice_and_no_reason_to_end(score, monkeypatch):
    monkeypatch.setattr(tuning, "OOM_SCORE", score / "absent")
    pauses = []
    assert not adjust_oom_score(-999, pauses.append)
    assert [0.1] == pauses


def test_a_second_try_may_succeed(score):
    score.unlink()
    assert adjust_oom_score(5, lambda _seconds: score.write_text("0\n"))
    assert "5\n" == score.read_text()


def test_a_right_that_is_missing_is_not_asked_for_twice(score, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(score), "write_text", refuse)
    pauses = []
    assert not adjust_oom_score(-999, pauses.append)
    assert [] == pauses
