"""Outside: pytest items that run in guests, and show here as if they ran here.

One pytest process in each guest runs whole files of them; its reports are replayed under the
same node ids as they come. So selection (``-k``, node ids, ``-x``) is the business of the pytest
outside, and parameters must not depend on the kernel: they are collected on both.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from e2e.guest.boot import Guest, GuestError, why_not_here
from e2e.guest.capability import has_ip_vs, in_guest
from e2e.guest.reporting import REPORTS_VARIABLE

__all__ = ["MOST_GUESTS", "GuestRun", "Replay", "run_in_guests", "shares"]

MOST_GUESTS = 2  # a guest has one processor
# Between two signs of life: the longest test (it has its own limit inside), and much patience.
SILENCE_SECONDS = 900.0
POLL_SECONDS = 0.05
_TAIL_BYTES = 6000


def run_in_guests(session: pytest.Session, folder: Path) -> None:
    """To be called when collection is over: run what is below *folder* on a kernel with IPVS.

    That is here, and nothing happens, where the running kernel has it.
    """
    items = [item for item in session.items if folder in item.path.parents]
    if not items or in_guest() or has_ip_vs():
        return
    for item in items:
        # Inside it has its usual limit; here it may wait for those before it.
        item.add_marker(pytest.mark.timeout(0), append=False)
    session.config.pluginmanager.register(Replay(session.config, items))


def shares(items: Sequence[pytest.Item], most: int) -> list[list[pytest.Item]]:
    """Deal *items* out to at most *most* guests: files stay whole and items in order."""
    loads = Counter(dict.fromkeys(range(most), 0))
    owners: dict[Path, int] = {}
    for path, count in Counter(item.path for item in items).most_common():
        owners[path] = min(loads, key=lambda number: loads[number])
        loads[owners[path]] += count
    dealt = [[item for item in items if owners[item.path] == number] for number in range(most)]
    return [share for share in dealt if share]


class Replay:
    """The hooks of the pytest outside. Guests boot when the first of *items* is due."""

    def __init__(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        self._config = config
        self._items = tuple(items)
        self._runs: dict[str, GuestRun] = {}  # by node id
        self._parts = ExitStack()
        config.add_cleanup(self._parts.close)

    def _start(self) -> None:
        if problem := why_not_here():
            pytest.exit(f"e2e/kernel/ipvs: {problem}", returncode=2)
        for share in shares(self._items, min(MOST_GUESTS, os.cpu_count() or 1)):
            run = self._parts.enter_context(GuestRun(self._config, share))
            self._runs |= {item.nodeid: run for item in share}

    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> object:
        if item not in self._items:
            return None
        if not self._runs:
            self._start()
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._runs[item.nodeid].reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        # Nothing was set up here for this item, but fixtures of the one before it may wait to be
        # torn down; there is no public name for that.
        item.session._setupstate.teardown_exact(nextitem)
        return True


class GuestRun:
    """Context manager: one guest with one pytest in it, and what is known of its *items*."""

    def __init__(self, config: pytest.Config, items: Sequence[pytest.Item]) -> None:
        self._config = config
        self._items = tuple(items)
        self._parts = ExitStack()
        self._reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self._started: set[str] = set()
        self._finished: set[str] = set()
        self._said = bytearray()  # the end of what the pytest inside printed
        self._unread = b""  # of the line that is being written
        self._clock = threading.Event()  # never set: waiting for it is a pause
        self._end = ""  # the first test without its reports, which says why

    def __enter__(self) -> GuestRun:
        with ExitStack() as parts:
            directory = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="guest-")))
            reports = directory / "reports"
            reports.touch()
            self._file = parts.enter_context(reports.open("rb"))
            (directory / "items").write_text("".join(f"{item.nodeid}\n" for item in self._items))
            guest = Guest(
                [sys.executable, *self._arguments(), f"@{directory / 'items'}"],
                cwd=self._config.rootpath,
                output=self._hear,
                environment=os.environ | {REPORTS_VARIABLE: str(reports)},
            )
            self._guest = parts.enter_context(guest)
            self._parts = parts.pop_all()
        self._heard_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._parts.close()

    def _arguments(self) -> list[str]:
        """What decides about the content of reports is as outside."""
        option = self._config.option
        arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "e2e.guest.reporting"]
        arguments += [f"--tb={option.tbstyle}", f"--capture={option.capture}"]
        arguments += ["-v"] * option.verbose
        if option.showlocals:
            arguments.append("--showlocals")
        if option.timeout is not None:
            arguments.append(f"--timeout={option.timeout}")
        return arguments + [f"-o{setting}" for setting in option.override_ini or ()]

    def _hear(self, piece: bytes) -> None:
        """The thread of the guest tells what was printed inside."""
        if self._config.option.capture == "no":
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        self._said += piece
        del self._said[:-_TAIL_BYTES]

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """Yield the reports of *item* as they come; a failure if the guest does not give them."""
        given = 0
        while True:
            ended = not self._guest.running()  # asked first: what it wrote is then complete
            self._read()
            while given < len(self._reports[item.nodeid]):
                yield self._reports[item.nodeid][given]
                given += 1
            if item.nodeid in self._finished:
                return
            if ended or time.monotonic() - self._heard_at > SILENCE_SECONDS:
                yield self._failure(item)
                return
            self._clock.wait(POLL_SECONDS)

    def _read(self) -> None:
        while piece := self._file.read(1 << 20):
            self._heard_at = time.monotonic()
            *lines, self._unread = (self._unread + piece).split(b"\n")
            for line in lines:
                self._take(*json.loads(line))

    def _take(self, kind: str, value: Any) -> None:
        if kind == "report":
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=value
            )
            # JSON knows lists only, pytest insists on tuples.
            report.location = tuple(report.location)
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)
            self._reports[report.nodeid].append(report)
        else:
            (self._started if kind == "start" else self._finished).add(value)

    def _failure(self, item: pytest.Item) -> pytest.TestReport:
        if self._end:
            reason = f"see {self._end}"
        else:
            self._end, reason = item.nodeid, self._last_words()
        moment = "while" if item.nodeid in self._started else "before"
        return pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed",
            longrepr=f"The run in the guest ended {moment} this test ran: {reason}",
            when="call",
        )

    def _last_words(self) -> str:
        """Why and with what words it ended; ends it if it only fell silent."""
        if self._guest.running():
            reason = f"no sign of life for {SILENCE_SECONDS:g} s"
            console = self._guest.console()
            self._guest.close()
        else:
            console = self._guest.console()
            try:
                reason = f"pytest in it exited with status {self._guest.wait()}"
            except GuestError:
                reason = "the guest itself died"
        said = self._said.decode(errors="replace")
        return f"{reason}\n-- pytest in it --\n{said}\n-- console --\n{console}"
