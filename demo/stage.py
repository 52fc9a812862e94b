"""Everything the story acts with: the lab, the daemon in it, its manifests, its log, its rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from e2e.guest import in_guest
from e2e.lab import Answer, Connection, Lab, Reply, stop
from e2e.lab.addresses import CLUSTER_CIDR, LOCAL_PODS, NODE_NAME, REMOTE_NODE_NAME

__all__ = ["DNS_PODS", "EXAMPLES", "Stage", "Unmet", "expect", "who"]

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples"
DNS_PODS = ("p2", "r2")

_START_SECONDS = 60.0 if in_guest() else 20.0  # one processor for everybody in there
_PATIENCE_SECONDS = 15.0 if in_guest() else 5.0
_NAMESPACES = Path("/run/netns")


class Unmet(Exception):
    """Something did not turn out as the demo says it should; the text says what."""


def expect(holds: object, sentence: str) -> None:
    """Raise `Unmet` with *sentence* unless *holds*."""
    if not holds:
        raise Unmet(sentence)


def who(reply: Reply) -> str:
    """The name of who answered, or how nobody did: ``refused``, ``timeout``."""
    return reply.server if isinstance(reply, Answer) else reply.value


class Stage:
    """Context manager: inside, the lab exists; the daemon runs from `start` to `stop`."""

    def __init__(self, variant: str, mode: str = "iptables") -> None:
        self.mode = mode
        self._asked_variant = variant
        self._parts = ExitStack()
        self._daemon: subprocess.Popen[bytes] | None = None
        self._pause = threading.Event()  # never set: waiting for it is a pause
        self.variant = variant  # the daemon's verdict, once it runs

    def __enter__(self) -> Self:
        with ExitStack() as parts:
            self.directory = Path(tempfile.mkdtemp(prefix="pykubeproxy-demo-"))
            parts.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.manifests = self.directory / "manifests"
            shutil.copytree(EXAMPLES, self.manifests)
            self.log = self.directory / "daemon.log"
            self.lab = parts.enter_context(Lab())
            for pod in DNS_PODS:
                self.lab.serve(pod, [53], ("UDP", "TCP"))
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parts.close()

    def leftovers(self) -> list[str]:
        """After the end: what is still there and should not be."""
        prefix = self.lab.namespace("")
        names = [entry.name for entry in _NAMESPACES.iterdir() if entry.name.startswith(prefix)]
        if self._daemon is not None and self._daemon.poll() is None:
            names.append(f"process {self._daemon.pid}")
        if self.directory.exists():
            names.append(str(self.directory))
        return names

    # --- the daemon ---

    @property
    def flags(self) -> tuple[str, ...]:
        variant = self._asked_variant
        return (
            f"--proxy-mode={self.mode}",
            *(() if variant == "auto" else (f"--iptables-variant={variant}",)),
            f"--hostname-override={NODE_NAME}",
            "--conntrack-max-per-core=0",  # belongs to the machine, not to a namespace
            f"--cluster-cidr={CLUSTER_CIDR[4]}",
            f"--manifests={self.manifests}",
            f"--state-directory={self.manifests.parent / 'state'}",
            "--logging-format=json",
            "-v=2",
        )

    def start(self) -> float:
        """Start the daemon and wait for its first sync; returns the seconds that took."""
        began = time.monotonic()
        # A session of its own, so that Ctrl-C in the terminal reaches the demo alone.
        argv = ["setsid", sys.executable, "-m", "pykubeproxy", *self.flags]
        with self.log.open("wb") as log:
            self._daemon = self.lab.start("node", argv, output=log, cwd=REPOSITORY)
        self.wait_for(lambda: self.synced(), "the daemon's first sync", _START_SECONDS)
        seconds = time.monotonic() - began
        if any(one.get("level") == "error" for one in self.records()):
            raise Unmet(f"the daemon could not write its rules:\n{self.last_words()}")
        verdict = next(one for one in self.records() if one["event"] == "iptables variant")
        self.variant = str(verdict["variant"])
        return seconds

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        assert self._daemon is not None
        return stop(self._daemon)

    def clean_up(self) -> subprocess.CompletedProcess[bytes]:
        """Run ``pykubeproxy --cleanup`` to its end."""
        return self.lab.run(
            "node",
            *("env", "-C", str(REPOSITORY), sys.executable, "-m", "pykubeproxy", "--cleanup"),
            check=False,
        )

    def records(self, start: int = 0) -> list[dict[str, Any]]:
        """The daemon's log from its line number *start* on."""
        found = []
        for line in self.log.read_text().splitlines()[start:]:
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"event": line})  # a plain message before logging was set up
        return found

    def synced(self, start: int = 0, family: str = "IPv4") -> list[dict[str, Any]]:
        """The passes of a family that changed something, as logged from line *start* on."""
        return [
            one
            for one in self.records(start)
            if one["event"] == "synced" and one["family"] == family
        ]

    def log_length(self) -> int:
        return len(self.log.read_text().splitlines())

    def wait_for(
        self, holds: Callable[[], object], what: str, seconds: float = _PATIENCE_SECONDS
    ) -> None:
        """Wait until *holds*; the daemon's end or the end of patience is `Unmet`."""
        deadline = time.monotonic() + seconds
        while not holds():
            if self._daemon is not None and self._daemon.poll() is not None:
                raise Unmet(f"the daemon ended before {what}:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise Unmet(f"no {what} within {seconds:g} s:\n{self.last_words()}")
            self._pause.wait(0.02)

    def wait_for_interrupt(self) -> None:
        """Let everything run until Ctrl-C."""
        with suppress(KeyboardInterrupt):
            self._pause.wait()

    def last_words(self) -> str:
        return "\n".join(self.log.read_text().splitlines()[-12:])

    # --- its manifests ---

    def set_endpoints(self, file: str, pods: Sequence[str]) -> None:
        """Let *pods* be the endpoints of the slice in *file*; the file is replaced atomically."""
        path = self.manifests / file
        documents = list(yaml.safe_load_all(path.read_text()))
        for document in documents:
            if document["kind"] == "EndpointSlice":
                document["endpoints"] = [_endpoint(pod, self.lab.address(pod)) for pod in pods]
        whole = path.with_name(f".{file}")
        whole.write_text(yaml.safe_dump_all(documents, sort_keys=False))
        whole.rename(path)

    # --- what the kernel has ---

    def saved(self) -> list[str]:
        """The lines of iptables-save, all tables."""
        return self.shown(f"iptables-{self.variant}-save")

    def shown(self, *argv: str) -> list[str]:
        """The lines that a program on the node prints."""
        return self.lab.run("node", *argv).stdout.decode().splitlines()

    # --- connections ---

    def connect(self, sender: str, target: str, port: int) -> Connection:
        """Open a connection that stays."""
        try:
            return self.lab.connect(sender, target, port)
        except OSError as error:
            raise Unmet(f"{sender} cannot connect to {target}:{port}: {error}") from error

    def counts(
        self, sender: str, target: str, port: int, n: int = 60, protocol: str = "TCP"
    ) -> Counter[str]:
        """Who answered *n* connections; ``refused`` and ``timeout`` count too."""
        burst = self.lab.burst(sender, target, port, n, protocol, timeout=1.0)
        counts = Counter({name.partition(":")[0]: k for name, k in burst.servers.items()})
        counts.update({silence.value: k for silence, k in burst.silent.items()})
        return counts


def _endpoint(pod: str, address: str) -> dict[str, Any]:
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": NODE_NAME if pod in LOCAL_PODS else REMOTE_NODE_NAME,
        "targetRef": {"kind": "Pod", "namespace": "default", "name": pod},
    }
