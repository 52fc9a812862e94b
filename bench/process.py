"""The daemon as a process: started, looked at from outside, and ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.error import URLError
from urllib.request import urlopen

__all__ = ["Daemon"]

METRICS = "http://127.0.0.1:10249/metrics"
_SYNCED = "kubeproxy_sync_proxy_rules_last_timestamp_seconds"
_WRITTEN = ("pykubeproxy_rules_written_total", "pykubeproxy_netlink_messages_total")
_TICKS = os.sysconf("SC_CLK_TCK")


class Daemon:
    """One process, from the start of the block to its end."""

    def __init__(self, flags: list[str], log: Path) -> None:
        self._flags = flags
        self._log = log

    def __enter__(self) -> Self:
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pykubeproxy", *self._flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()

    def check_alive(self) -> None:
        """Fail with its log if it ended."""
        assert self._process.poll() is None, self._log.read_text()

    def age(self) -> float:
        return time.perf_counter() - self._started

    def wait_in_sync(self) -> None:
        """Return when it says that a sync of IPv4 succeeded."""
        while not self._metric(_SYNCED, 'ip_family="IPv4"'):
            self.check_alive()
            time.sleep(0.05)

    def written(self) -> int:
        """How many rules or messages it has sent to the kernel."""
        return int(sum(self._metric(name, "") for name in _WRITTEN))

    def cpu_seconds(self) -> float:
        """Its own and those of its programs, also of one that runs now."""
        process = Path(f"/proc/{self._process.pid}")
        seconds = _cpu_seconds(process, 4)
        for children in process.glob("task/*/children"):
            for pid in children.read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):  # ended just now
                    seconds += _cpu_seconds(Path("/proc", pid), 2)
        return seconds

    def scrape(self) -> bytes:
        """All its metrics, as text."""
        with urlopen(METRICS, timeout=5) as answer:
            return bytes(answer.read())

    def peak_megabytes(self) -> float:
        """The most memory it ever had, its programs apart."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) / 1024

    def _metric(self, name: str, labels: str) -> float:
        try:
            lines = self.scrape().decode().splitlines()
        except (URLError, OSError):
            return 0.0  # not up yet
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith(name) and labels in line
        )


def _cpu_seconds(process: Path, fields: int) -> float:
    """User and system time, with four *fields* also of the programs that it has waited for."""
    found = (process / "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, found[11 : 11 + fields])) / _TICKS
