"""A small cluster network in namespaces of its own: built in a moment, always removed."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from e2e.lab import wiring
from e2e.lab.addresses import PODS, address_of, owner_of
from e2e.lab.traffic import Burst, Connection, Reply, Silence, Traffic, has_sctp

__all__ = ["SERVED_PORTS", "Lab", "LabError"]

SERVED_PORTS = (8080, 8081, 9090, 9091)

_RUN_NETNS = Path("/run/netns")
_NAME = re.compile(r"kplab-(\d+)-\d+-\w+")
_numbers = count()


class LabError(RuntimeError):
    """The laboratory cannot be built here; the text says what is missing."""


class Lab:
    """Context manager around one laboratory; several may exist side by side.

    Every pod, and `node` and `far` themselves, answer on `SERVED_PORTS` over TCP and UDP,
    and over SCTP where the kernel has it.
    """

    def __init__(self, *, serve: Sequence[int] = SERVED_PORTS) -> None:
        self._prefix = f"kplab-{os.getpid()}-{next(_numbers)}"
        self._owner_pid = os.getpid()
        self._serve = tuple(serve)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._fds: dict[str, int] = {}
        self._traffic: Traffic | None = None

    # --- building and removing ----------------------------------------------------------------

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise LabError("the network laboratory needs root (network namespaces)")
        self.sweep()
        atexit.register(self.close)
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _build(self) -> None:
        _ip_batch([], wiring.links(self.namespace))
        for role in wiring.NAMESPACES:
            path = _RUN_NETNS / self.namespace(role)
            self._fds[role] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._traffic = Traffic(self._fds)
        for role in wiring.NAMESPACES:
            values = dict(wiring.SYSCTLS)
            if role in ("node", "far"):
                values |= wiring.node_sysctls()
            self.sysctl(role, values)
            self.sysctl(role, wiring.SYSCTLS_IF_PRESENT, if_present=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._configure, wiring.NAMESPACES))
        protocols = ("TCP", "UDP", "SCTP") if has_sctp() else ("TCP", "UDP")
        if self._serve:
            for role in (*PODS, "node", "far"):
                self._traffic.serve(role, self._serve, protocols)

    def _configure(self, role: str) -> None:
        inside = ["-n", self.namespace(role)]
        _ip_batch(inside, wiring.setup(role))
        if text := wiring.rules(role):
            _ip_batch(["-4", *inside], text)
            _ip_batch(["-6", *inside], text)

    def close(self) -> None:
        """Remove everything; may be called twice, and does nothing in a forked child."""
        if os.getpid() != self._owner_pid:
            return
        atexit.unregister(self.close)
        for process in self._processes:
            stop(process)
        self._processes.clear()
        if self._traffic is not None:
            self._traffic.close()
            self._traffic = None
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        _remove(name for role in wiring.NAMESPACES if (name := self.namespace(role)))

    @staticmethod
    def sweep() -> list[str]:
        """Remove what labs of dead processes left behind; returns the names removed."""
        if not _RUN_NETNS.is_dir():
            return []
        names = [entry.name for entry in _RUN_NETNS.iterdir()]
        dead = [
            name
            for name in names
            if (match := _NAME.fullmatch(name)) and not Path(f"/proc/{match[1]}").exists()
        ]
        for name in dead:
            for pid in _pids(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _remove(dead)
        return dead

    # --- names --------------------------------------------------------------------------------

    def namespace(self, role: str) -> str:
        """The name under which ``ip netns`` knows the namespace of *role*."""
        return f"{self._prefix}-{role}"

    @staticmethod
    def address(role: str, version: int = 4) -> str:
        return address_of(role, version)

    @staticmethod
    def owner(address: str) -> str:
        """The role that has this address, or the address itself."""
        return owner_of(address)

    # --- programs -----------------------------------------------------------------------------

    def argv(self, role: str, argv: Sequence[str]) -> list[str]:
        """*argv*, to be run inside the namespace of *role*."""
        return ["nsenter", f"--net={_RUN_NETNS / self.namespace(role)}", "--", *argv]

    def run(
        self, role: str, *argv: str, input: str | bytes | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end in a namespace; with *check*, its failure is an error."""
        data = input.encode() if isinstance(input, str) else input
        done = subprocess.run(
            self.argv(role, argv),
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            raise LabError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.decode()}")
        return done

    def start(
        self,
        role: str,
        argv: Sequence[str],
        *,
        output: IO[Any] | int | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program in a namespace; it is stopped with the lab at the latest."""
        process = subprocess.Popen(
            self.argv(role, argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            cwd=cwd,
        )
        self._processes.append(process)
        return process

    def sysctl(self, role: str, values: dict[str, str], *, if_present: bool = False) -> None:
        """Write sysctls in a namespace; the names with slashes, as under /proc/sys."""

        def work() -> None:
            for name, value in values.items():
                path = Path("/proc/sys", name)
                if path.exists() or not if_present:
                    path.write_text(value)

        self._running.run_in(role, work)

    def read_sysctl(self, role: str, name: str) -> str:
        text: str = self._running.run_in(role, Path("/proc/sys", name).read_text)
        return text.strip()

    def in_namespace(self, role: str, work: Any) -> Any:
        """Call *work* on a thread that is inside the namespace (sockets it makes stay there)."""
        return self._running.run_in(role, work)

    # --- traffic ------------------------------------------------------------------------------

    @property
    def _running(self) -> Traffic:
        if self._traffic is None:
            raise LabError("the lab is not open")
        return self._traffic

    def serve(self, role: str, ports: Iterable[int], protocols: Iterable[str] = ("TCP",)) -> None:
        """Answer on more ports of *role*."""
        self._running.serve(role, tuple(ports), tuple(protocols))

    def start_probe(
        self,
        role: str,
        target: str,
        port: int,
        protocol: str = "TCP",
        source: str | None = None,
        timeout: float = 0.6,
    ) -> Future[Reply]:
        """Begin a probe; thousands may be under way at once."""
        return self._running.start_probe(role, target, port, protocol, source, timeout)

    def probe(
        self,
        role: str,
        target: str,
        port: int,
        protocol: str = "TCP",
        source: str | None = None,
        timeout: float = 0.6,
    ) -> Reply:
        """Connect once from *role* and say who answered, or how it failed."""
        return self.start_probe(role, target, port, protocol, source, timeout).result()

    def burst(
        self,
        role: str,
        target: str,
        port: int,
        n: int,
        protocol: str = "TCP",
        timeout: float = 2.0,
    ) -> Burst:
        """*n* probes, at most 100 at a time."""
        servers: Counter[str] = Counter()
        sources: Counter[str] = Counter()
        silent: Counter[Silence] = Counter()
        for start in range(0, n, 100):
            started = [
                self.start_probe(role, target, port, protocol, timeout=timeout)
                for _ in range(min(100, n - start))
            ]
            for reply in (future.result() for future in started):
                if isinstance(reply, Silence):
                    silent[reply] += 1
                else:
                    servers[f"{reply.server}:{reply.port}"] += 1
                    sources[reply.source] += 1
        return Burst(servers, sources, silent)

    def connect(self, role: str, target: str, port: int, timeout: float = 2.0) -> Connection:
        """A TCP connection that stays open until it is closed."""
        return self._running.connect(role, target, port, timeout)


def stop(process: subprocess.Popen[bytes], timeout: float = 5.0) -> int:
    """End a process that the caller started: politely, then by force; returns its status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def _ip_batch(options: Sequence[str], text: str) -> None:
    done = subprocess.run(
        ["ip", *options, "-batch", "-"], input=text.encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise LabError(f"ip {' '.join(options)} -batch: {done.stderr.decode().strip()}")


def _remove(names: Iterable[str]) -> None:
    present = [name for name in names if (_RUN_NETNS / name).exists()]
    if present:
        text = "".join(f"netns del {name}\n" for name in present)
        subprocess.run(
            ["ip", "-force", "-batch", "-"], input=text.encode(), capture_output=True, check=False
        )


def _pids(name: str) -> list[int]:
    done = subprocess.run(["ip", "netns", "pids", name], capture_output=True, check=False)
    return [int(pid) for pid in done.stdout.split()]
