"""The demo as people run it: a process that shows what it says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import REPOSITORY, eventually

SHOWN = (
    "8 manifests read, 6 Services written",
    "not on the list: dropped",
    "default/payments      0 rules",
    "scale up 3 to 4",
    "nobody left: connection refused",
    "at the very start still works",
    "the packet gets its new destination: p1 (10.244.0.11:8080)",
    "SIGTERM: the daemon is gone",
    "no chain of ours is left, nobody answers any more",
    "namespaces and processes of the demo are gone",
)


class Demo:
    """One run in a process group of its own, as a terminal has it; *directory* is its TMPDIR."""

    def __init__(self, directory: Path, *options: str, path: Path | None = None) -> None:
        self.directory = directory / "tmp"
        self.directory.mkdir()
        self._output = directory / "output"
        environment = {**os.environ, "TMPDIR": str(self.directory), "LC_ALL": "C.UTF-8"}
        if path is not None:
            environment["PATH"] = f"{path}:{environment['PATH']}"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo", "--fast", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env=environment,
                start_new_session=True,
            )

    def text(self) -> str:
        return self._output.read_text()

    def reaches(self, moment: str) -> bool:
        return moment in self.text() or self.process.poll() is not None

    def ends(self, seconds: float = 60.0) -> int:
        return self.process.wait(seconds)

    def left_behind(self) -> list[str]:
        """Namespaces, processes and files of this run."""
        names = [name for name in _namespaces() if name.startswith(f"kplab-{self.process.pid}-")]
        for entry in Path("/proc").iterdir():
            try:
                if str(self.directory).encode() in (entry / "cmdline").read_bytes():
                    names.append(f"process {entry.name}")
            except OSError:
                continue  # no process, or one that ended meanwhile
        return names + [str(path) for path in self.directory.iterdir()]


def _namespaces() -> list[str]:
    directory = Path("/run/netns")
    return [entry.name for entry in directory.iterdir()] if directory.is_dir() else []


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start a demo; whatever becomes of the test, it is ended."""
    started: list[Demo] = []

    def start(*options: str, path: Path | None = None) -> Demo:
        started.append(Demo(tmp_path, *options, path=path))
        return started[-1]

    yield start
    for demo in started:
        if demo.process.poll() is None:
            demo.process.send_signal(signal.SIGTERM)
            demo.ends()


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_everything_is_shown_and_nothing_is_left(run: Callable[..., Demo], variant: str) -> None:
    before = _own_rules()
    demo = run("--variant", variant)
    status = demo.ends()
    text = demo.text()
    assert status == 0, text
    assert [line for line in SHOWN if line not in text] == []
    assert f"iptables variant: {variant}" in text
    assert "\x1b" not in text, "colours, though nobody watches"
    assert demo.left_behind() == []
    assert _own_rules() == before, "rules outside of the demo's namespaces changed"


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("$ pykubeproxy", id="daemon starting"),
        pytest.param("UDP too", id="connections under way"),
        pytest.param("Live changes", id="manifests changing"),
        pytest.param("The end", id="daemon stopping"),
    ],
)
def test_ctrl_c_leaves_nothing(run: Callable[..., Demo], moment: str) -> None:
    demo = run()
    eventually(lambda: demo.reaches(moment), f"{moment!r} in the output", 60)
    interrupt(demo)
    assert demo.ends() == 130, demo.text()
    assert "interrupted; everything it made has been removed" in demo.text()
    assert demo.left_behind() == []


def test_ctrl_c_while_the_network_is_built_leaves_nothing(run: Callable[..., Demo]) -> None:
    demo = run()
    prefix = f"kplab-{demo.process.pid}-"
    eventually(lambda: any(name.startswith(prefix) for name in _namespaces()), "a namespace")
    interrupt(demo)
    assert demo.ends() == 130, demo.text()
    assert demo.left_behind() == []


def test_kept_it_waits_for_ctrl_c(run: Callable[..., Demo]) -> None:
    demo = run("--keep")
    eventually(lambda: demo.reaches("Ctrl-C ends it"), "the invitation to look around", 60)
    assert demo.process.poll() is None, demo.text()
    inside = ("ip", "netns", "exec", f"kplab-{demo.process.pid}-0-client")
    entered = subprocess.run(
        [*inside, "bash", "-c", "head -1 </dev/tcp/192.0.2.10/30080"],
        capture_output=True,
        check=True,
        timeout=10,
    )
    assert entered.stdout.split()[0] in (b"p1", b"p2", b"r1")
    interrupt(demo)
    assert demo.ends() == 0, demo.text()
    assert SHOWN[-1] in demo.text()
    assert demo.left_behind() == []


def test_a_claim_that_does_not_hold_is_a_clear_failure(
    run: Callable[..., Demo], tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    broken = tools / "iptables-nft-restore"
    broken.write_text("#!/bin/sh\necho 'broken for a test' >&2\nexit 1\n")
    broken.chmod(0o755)
    demo = run("--variant", "nft", path=tools)
    assert demo.ends() == 1, demo.text()
    assert "demo: " in demo.text()
    assert "broken for a test" in demo.text()
    assert "Traceback" not in demo.text()
    assert demo.left_behind() == []


def interrupt(demo: Demo) -> None:
    """What a terminal does: SIGINT to everybody in the foreground, twice for impatience."""
    for _ in range(2):
        os.killpg(demo.process.pid, signal.SIGINT)


def _own_rules() -> list[str]:
    """The rules of the namespace that the tests themselves run in."""
    lines = []
    for variant in ("nft", "legacy"):
        done = subprocess.run([f"iptables-{variant}-save"], capture_output=True, check=True)
        lines += [line for line in done.stdout.decode().splitlines() if line.startswith("-A")]
    return lines
