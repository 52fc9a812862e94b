"""Two daemons in one network namespace: the second waits, and takes over without a gap."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.kernel.running import Customers, RunningDaemon, eventually
from e2e.kernel.test_daemon import WEB, answered_by, web
from e2e.lab import Lab, stop


def another(lab: Lab, tmp_path: Path, state: Path) -> RunningDaemon:
    directory = tmp_path / "second"
    directory.mkdir()
    return RunningDaemon(lab, "nft", directory, f"--state-directory={state}")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_second_waits_for_the_end_of_the_first(
    lab: Lab, tmp_path: Path, end: signal.Signals
) -> None:
    first = RunningDaemon(lab, "nft", tmp_path)
    first.write("web", *web("p1"))
    first.start()
    assert first.process is not None
    pid = first.process.pid
    second = another(lab, tmp_path, tmp_path / "state")
    second.write("web", *web("p1"))
    try:
        with (
            Customers(lab, ("client", WEB, 80, "TCP"), timeout=0.9) as customers,
            ThreadPoolExecutor(1) as pool,
        ):
            started = pool.submit(second.start)
            eventually(lambda: second.says("waiting for its end", f"pid {pid}"), "it waits")
            # Only one of two is told what is new, so nothing is undone.
            first.write("web", *web("p1", "p2"))
            second.write("web", *web("p1", "p2"))
            eventually(
                lambda: {"p1", "p2"} == {answered_by(lab) for _ in range(10)}, "the first serves"
            )
            assert 0 == second.synced()
            first.process.send_signal(end)
            first.process.wait(60)
            started.result()
            customers.go_on()
        second.write("web", *web("p3"))
        eventually(lambda: answered_by(lab) == "p3", "the second serves")
        assert [] == customers.failures
    finally:
        first.stop()
        second.stop()


def test_daemons_of_two_nodes_may_share_a_state_directory(lab: Lab, tmp_path: Path) -> None:
    """Nodes that are network namespaces of one machine have one /run."""
    with RunningDaemon(lab, "nft", tmp_path) as daemon:
        flags = [flag for flag in daemon.serving_flags() if not flag.startswith("--hostname")]
        command = ["-m", "pykubeproxy", *flags, "--hostname-override=far"]
        log = (tmp_path / "far.log").open("wb")
        argv = daemon.argv()
        python = argv[argv.index("--") + 1]
        far = lab.start("far", [python, *command], output=log, cwd=Path(__file__).parents[2])
        try:
            eventually(
                lambda: " synced family=IPv4 " in (tmp_path / "far.log").read_text(),
                "the other node is served, too",
            )
        finally:
            assert 0 == stop(far)
            log.close()
    assert 2 == len(list((tmp_path / "state").glob("lock-*")))
