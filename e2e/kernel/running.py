"""A lab with the real daemon on its node, started, changed and stopped as a test wants."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from e2e.lab import Answer, AttendedTime, Lab, Reply, stop
from pykubeproxy.model.objects import WireObject
from tests.build import manifest, node

__all__ = [
    "MACHINES_CONNTRACK",
    "REPOSITORY",
    "Customers",
    "Failure",
    "RunningDaemon",
    "Visit",
    "eventually",
]

REPOSITORY = Path(__file__).resolve().parents[2]

MACHINES_CONNTRACK = "--conntrack-max-per-core=0"
"""The size of the conntrack table belongs to the machine, not to a namespace: left alone."""

_PAUSE = threading.Event()  # never set: waiting for it is a pause that ends early for nobody


def eventually(holds: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until *holds* is true, or fail saying *what* did not come about.

    The seconds are those of `AttendedTime`: they are patience, never a promise of speed.
    """
    time = AttendedTime(step=0.5)
    deadline = time.look() + seconds
    while not holds():
        if time.look() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        _PAUSE.wait(0.02)


Visit = tuple[str, str, int, str]
"""Sender, address, port and protocol."""
Failure = tuple[Visit, Reply]


class Customers:
    """Clients that connect anew again and again; every failure is remembered.

    `rounds` tells how often all *visits* were made.
    """

    def __init__(self, lab: Lab, *visits: Visit, timeout: float = 2.9) -> None:
        """With a *timeout* below a second, a lost SYN is a failure: no second one is sent."""
        self._lab = lab
        self._visits = visits
        self._timeout = timeout
        self._stop = threading.Event()
        self.rounds = 0
        self.failures: list[Failure] = []
        self._thread = threading.Thread(target=self._shop)

    def __enter__(self) -> Self:
        self._thread.start()
        self.go_on(1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _shop(self) -> None:
        while not self._stop.is_set():
            started = [
                (visit, self._lab.start_probe(*visit, timeout=self._timeout))
                for visit in self._visits
            ]
            replies = [(visit, future.result()) for visit, future in started]
            self.failures += [(v, reply) for v, reply in replies if not isinstance(reply, Answer)]
            self.rounds += 1
            # One processor for all: the daemon wants a share of it.
            self._stop.wait(0.01)

    def go_on(self, rounds: int = 20) -> None:
        """Let them come some more times."""
        until = self.rounds + rounds
        eventually(lambda: self.rounds >= until, "the customers go on", 60)


class RunningDaemon:
    """The daemon of one *variant* on the node of *lab*, fed from a directory of manifests.

    *path* is put before PATH, so that a test may stand in for the tools. `mode` may be changed
    between two starts.
    """

    def __init__(
        self,
        lab: Lab,
        variant: str,
        directory: Path,
        *flags: str,
        mode: str = "iptables",
        path: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.lab = lab
        self.variant = variant
        self.mode = mode
        self.manifests = directory / "manifests"
        self.manifests.mkdir(exist_ok=True)
        self.log = directory / "log"
        self._flags = flags
        self._environment = {**os.environ, **(environment or {})}
        if path is not None:
            self._environment["PATH"] = f"{path}:{self._environment['PATH']}"
        self.process: subprocess.Popen[bytes] | None = None
        self.write("node", node())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- process ---

    def argv(self, *flags: str) -> list[str]:
        command = [sys.executable, "-m", "pykubeproxy", *flags]
        return self.lab.argv("node", command)

    def serving_flags(self) -> tuple[str, ...]:
        """What `start` starts the program with."""
        return (
            f"--proxy-mode={self.mode}",
            f"--iptables-variant={self.variant}",
            "--hostname-override=node",
            "--cluster-cidr=10.244.0.0/16,fd00:244::/31",
            MACHINES_CONNTRACK,
            f"--manifests={self.manifests}",
            f"--state-directory={self.manifests.parent / 'state'}",
            "-v=2",
            *self._flags,
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(*self.serving_flags()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=self._environment,
            )
        before = self.synced()
        try:
            eventually(lambda: self.synced() > before or self._ended(), "a first sync", 60)
        except AssertionError as error:
            error.add_note(self.text())
            raise
        assert not self._ended(), self.text()

    def stop(self) -> int:
        """SIGTERM; returns the exit status: not 0 for one that needs longer than 20 s."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        return stop(process, 20)

    def kill(self) -> None:
        """SIGKILL: no chance to put anything in order."""
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.wait()

    def run_to_end(self, *flags: str) -> subprocess.CompletedProcess[bytes]:
        """Run the program once more beside, e.g. with ``--cleanup``."""
        return subprocess.run(
            self.argv(*flags),
            capture_output=True,
            cwd=REPOSITORY,
            env=self._environment,
            check=False,
            timeout=60,
        )

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    # --- log ---

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def synced(self, family: str = "IPv4") -> int:
        """How many passes were logged for one family."""
        return len(re.findall(f" synced family={family} ", self.text()))

    def says(self, *words: str) -> bool:
        """Tell whether one log line has all *words*."""
        return any(all(w in line for w in words) for line in self.text().splitlines())

    # --- objects ---

    def write(self, name: str, *objects: WireObject) -> None:
        """Put *objects* into one manifest file, atomically, as kubectl's users would."""
        items = [manifest(obj) for obj in objects]
        text = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
        whole = self.manifests / f".{name}.json"
        whole.write_bytes(text)
        whole.rename(self.manifests / f"{name}.json")

    def remove(self, name: str) -> None:
        (self.manifests / f"{name}.json").unlink()

    # --- kernel ---

    def saved(self, table: str = "nat", family: int = 4) -> list[str]:
        """Lines of iptables-save, without comments and counters."""
        stem = "iptables" if family == 4 else "ip6tables"
        done = self.lab.run("node", f"{stem}-{self.variant}-save", "-t", table)
        lines = done.stdout.decode().splitlines()
        return [re.sub(r" \[\d+:\d+\]$", "", line) for line in lines if not line.startswith("#")]

    def restore(self, text: str, family: int = 4) -> None:
        stem = "iptables" if family == 4 else "ip6tables"
        self.lab.run("node", f"{stem}-{self.variant}-restore", "--noflush", input=text)

    def chains(self, table: str = "nat", family: int = 4) -> set[str]:
        return {line[1:].split()[0] for line in self.saved(table, family) if line[:1] == ":"}

    def rules_about(self, text: str, tables: Iterable[str] = ("nat", "filter")) -> list[str]:
        return [line for table in tables for line in self.saved(table) if text in line]
