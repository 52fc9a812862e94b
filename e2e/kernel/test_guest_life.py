"""A guest from outside: what its command says and returns, and that nothing outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import REPOSITORY, eventually

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run a shell command in a guest whose files are below *tmp_path*."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(command: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "e2e.guest", "--always", "--", "sh", "-c", command]
        started.append(
            subprocess.Popen(
                words,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=os.environ | {"TMPDIR": str(tmp_path)},
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def processes_of(directory: Path) -> list[str]:
    """Whoever names *directory*, as every process of a guest does."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            continue  # no process, or one that ended meanwhile
    return found


def test_output_and_exit_status_come_back_and_nothing_else(start: Start, tmp_path: Path) -> None:
    process = start("echo one; echo two >&2; [ -t 1 ] || echo no terminal; touch $TMPDIR/x; exit 5")
    output, _ = process.communicate(timeout=60)
    assert (b"one\ntwo\nno terminal\n", 5) == (output, process.returncode)
    assert [] == list(tmp_path.iterdir())
    assert [] == processes_of(tmp_path)


def test_ctrl_c_reaches_the_command(start: Start) -> None:
    process = start("trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.1; done")
    assert process.stdout is not None
    assert b"ready\n" == process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert (b"interrupted\n", 7) == (output, process.returncode)


def test_a_guest_ends_with_the_process_that_booted_it(start: Start, tmp_path: Path) -> None:
    process = start("echo ready; sleep 600")
    assert process.stdout is not None
    assert b"ready\n" == process.stdout.readline()
    assert processes_of(tmp_path)
    process.kill()
    process.wait()
    eventually(lambda: not processes_of(tmp_path), "the end of the guest")


def test_a_kernel_that_dies_is_told_from_a_command_that_fails(start: Start) -> None:
    process = start("echo c >/proc/sysrq-trigger")
    output, _ = process.communicate(timeout=60)
    assert 125 == process.returncode
    assert b"guest: the guest died; its console said:" in output
    assert b"Kernel panic" in output
