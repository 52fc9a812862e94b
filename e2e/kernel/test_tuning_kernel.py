"""Conntrack's parameters in a network namespace: timeouts are its own, sizes the machine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon
from e2e.kernel.test_daemon import web
from e2e.lab import Lab

STEM = "net/netfilter/nf_conntrack_"
MACHINES = (Path("/proc/sys", f"{STEM}max"), Path("/sys/module/nf_conntrack/parameters/hashsize"))
UNSET = {"tcp_be_liberal": "0", "udp_timeout": "31", "udp_timeout_stream": "121"}


def machines() -> list[str]:
    return [path.read_text() for path in MACHINES]


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> RunningDaemon:
    lab.run("node", "conntrack", "-L")  # the kernel makes the parameters with the first use
    lab.sysctl("node", {f"{STEM}{name}": value for name, value in UNSET.items()})
    return RunningDaemon(lab, "nft", tmp_path)


def test_timeouts_are_set_before_rules_that_depend_on_them(
    lab: Lab, tmp_path: Path, daemon: RunningDaemon
) -> None:
    before = machines()
    given = RunningDaemon(
        lab,
        "nft",
        tmp_path,
        "--conntrack-tcp-timeout-established=2h30m",
        "--conntrack-tcp-timeout-close-wait=1500ms",
        "--conntrack-udp-timeout=45s",
        "--conntrack-tcp-be-liberal",
        "--oom-score-adj=77",
    )
    given.write("web", *web("p1"))
    with given:
        assert given.process is not None
        score = Path(f"/proc/{given.process.pid}/oom_score_adj").read_text()
        assert "77" == score.strip()
        # Where conntrack is liberal, invalid packets are let through.
        assert [] == given.rules_about("INVALID")
    expected = {
        "tcp_timeout_established": "9000",
        "tcp_timeout_close_wait": "1",
        "tcp_be_liberal": "1",
        "udp_timeout": "45",
        "udp_timeout_stream": UNSET["udp_timeout_stream"],
    }
    assert expected == {name: lab.read_sysctl("node", f"{STEM}{name}") for name in expected}
    assert before == machines()

    # Never set back.
    with daemon:
        assert [] == daemon.rules_about("INVALID")
    assert "1" == lab.read_sysctl("node", f"{STEM}tcp_be_liberal")
    assert "86400" == lab.read_sysctl("node", f"{STEM}tcp_timeout_established")


def test_default_sizes_are_left_to_the_machine(lab: Lab, daemon: RunningDaemon) -> None:
    flags = [f for f in daemon.serving_flags() if not f.startswith("--conntrack-max-per-core")]
    done = daemon.run_to_end("--init-only", *flags)
    assert 0 == done.returncode, done.stderr.decode()
    assert "the machine's and left as it is" in done.stderr.decode()


def test_chosen_sizes_that_cannot_be_set_are_told(
    lab: Lab, tmp_path: Path, daemon: RunningDaemon
) -> None:
    before = machines()
    now = int(before[0])
    flags = ["--conntrack-max-per-core=1", f"--conntrack-min={now + 4}"]
    words = (
        f"{MACHINES[0]} is {now}, must be {now + 4} (Permission denied)",
        f"sysctl -w net.netfilter.nf_conntrack_max={now + 4}",
    )
    given = RunningDaemon(lab, "nft", tmp_path, *flags)
    given.write("web", *web("p1"))
    with given:
        assert given.says("ERROR", "connections are tracked with the values found", *words)
        assert given.rules_about("default/web")
    # Who is there to set them fails.
    done = daemon.run_to_end("--init-only", *daemon.serving_flags(), *flags)
    assert 1 == done.returncode
    assert [] == [text for text in words if text not in done.stderr.decode()]
    assert before == machines()


def test_a_value_that_the_kernel_does_not_take_is_fatal(daemon: RunningDaemon) -> None:
    # More jiffies than it counts.
    done = daemon.run_to_end(*daemon.serving_flags(), "--conntrack-udp-timeout=1000000h")
    said = done.stderr.decode()
    assert 1 == done.returncode, said
    assert f"{STEM}udp_timeout is 31, must be 3600000000 (Invalid argument)" in said
