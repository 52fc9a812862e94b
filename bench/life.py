"""The daemon's life measured from outside: from a write to the API to what packets meet.

Daemon, API server and clients share the machine, so what the latter cost is part of every wall
time; the server's lists are prepared beforehand, which keeps that small.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from bench.cluster import Cluster
from bench.measure import Row, percentile
from bench.process import Daemon
from bench.worlds import World
from tests.fakes.apiserver import FakeApiServer

__all__ = ["Witness", "live"]

SAMPLE = 8
"""So many Services must answer before a start counts as done."""
CHANGES = 20
ADDITIONS = 8
BURST, BURST_SECONDS = 200, 0.4
MOST_ENDPOINTS = 1000
"""With more behind one Service, waiting for a connection to meet a certain one tells nothing."""
PAUSE_SECONDS = (0.5, 1.0)
"""Between single changes: drawn from here, so that no rhythm of the daemon's hides in it."""
SETTLE_SECONDS = 8.0
"""After the last change: longer than the daemon waits before it does what it had put off."""
SETTLED_SECONDS, SETTLED_SHARE = 3.0, 0.1
"""It is done with that when it needs less than this share of a processor for so long."""
IDLE_SECONDS = 10.0
SCRAPES = 100
SCRAPE_PAUSE_SECONDS = 0.1
"""A hundred times as often as Prometheus mostly asks."""
POLL_SECONDS, START_POLL_SECONDS = 0.003, 0.01
MOST_SECONDS = 300.0
"""What takes longer has failed."""


class Witness(Protocol):
    """Sees what the kernel does with Services. ``lost`` counts visits that nobody answered."""

    lost: int

    def serves(self, index: int) -> bool:
        """Tell whether Service *index* has anybody who answers."""

    def visit(self, index: int) -> str:
        """Go to a Service that must answer; returns who does, empty if nobody does."""

    def meets(self, index: int, address: str) -> bool:
        """Tell whether *address* is one of those who answer for Service *index*, which must."""


def live(
    flags: list[str],
    world: World,
    witness: Witness,
    while_idle: Callable[[], list[Row]] = list,
) -> list[Row]:
    """Start the daemon on an empty kernel, change things, wait, and start it once more.

    *while_idle* measures something more when all is written. For root, in an empty network
    namespace.
    """
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        server = parts.enter_context(FakeApiServer())
        kubeconfig = server.write_kubeconfig(directory)
        flags = [
            *("--hostname-override=node", "--cluster-cidr=10.128.0.0/9", "-v=2"),
            "--conntrack-max-per-core=0",  # belongs to the machine, not to a namespace
            *(f"--kubeconfig={kubeconfig}", f"--state-directory={directory / 'state'}", *flags),
        ]
        cluster = Cluster(server, world)
        cluster.prepare()
        with Daemon(flags, directory / "start.log") as daemon:
            life = _Life(world, cluster, witness, daemon)
            rows = [*life.start(), *life.changes(), life.additions(), *life.idle()]
            rows += [*life.scrapes(), *while_idle()]
        cluster.prepare()
        with Daemon(flags, directory / "restart.log") as daemon:
            daemon.wait_in_sync()
            seconds, cpu = daemon.age(), daemon.cpu_seconds()
            rows.append(Row("restart, nothing changed", seconds, own=cpu))
            rows[-1].messages = daemon.written()
        rows.append(Row("connections lost", witness.lost, unit=""))
        return rows


class _Life:
    def __init__(self, world: World, cluster: Cluster, witness: Witness, daemon: Daemon) -> None:
        self._world = world
        self._cluster = cluster
        self._witness = witness
        self._daemon = daemon
        self._random = random.Random(0)
        self._generation = 0
        self._usable = [n for n in range(world.services) if world.answers(n)]

    def start(self) -> list[Row]:
        for index in self._random.choices(self._usable, k=SAMPLE):
            self._wait(partial(self._witness.serves, index), START_POLL_SECONDS)
        row = Row("start to first connection", self._daemon.age(), own=self._daemon.cpu_seconds())
        self._cluster.wait_until_watched()
        self._daemon.wait_in_sync()
        return [row, Row("peak memory until then", self._daemon.peak_megabytes(), unit="MB")]

    def changes(self) -> list[Row]:
        if self._world.endpoints > MOST_ENDPOINTS:
            return []
        for _ in range(3):
            self._change()  # the first ones load code
        single = self._several("one endpoint changed", CHANGES, self._change)
        tails = self._several("burst, its last change", 2, self._burst)
        return [single, tails]

    def additions(self) -> Row:
        new = iter(range(self._world.services, self._world.services + 10 * ADDITIONS))

        def add() -> float:
            index = next(n for n in new if self._world.answers(n))
            started = time.perf_counter()
            self._cluster.add(index)
            self._wait(partial(self._witness.serves, index))
            return time.perf_counter() - started

        return self._several("Service added", ADDITIONS, add)

    def idle(self) -> list[Row]:
        """What it does when nothing happens, and the most memory it has had."""
        before = self._daemon.cpu_seconds()
        time.sleep(SETTLE_SECONDS)
        while self._busy(SETTLED_SECONDS) > SETTLED_SHARE:
            pass
        settled = self._daemon.cpu_seconds()
        return [
            Row("CPU after the last change, once", settled - before),
            Row("CPU when idle", 100 * self._busy(IDLE_SECONDS), unit="%"),
            Row("peak memory until the end", self._daemon.peak_megabytes(), unit="MB"),
        ]

    def scrapes(self) -> list[Row]:
        """What asking for the metrics costs, and what it costs a change that comes meanwhile."""
        seconds = []
        before = self._daemon.cpu_seconds()
        for _ in range(SCRAPES):
            started = time.perf_counter()
            self._daemon.scrape()
            seconds.append(time.perf_counter() - started)
        cpu = (self._daemon.cpu_seconds() - before) / SCRAPES
        row = Row("scrape", percentile(seconds, 0.5), percentile(seconds, 0.99), cpu)
        if self._world.endpoints > MOST_ENDPOINTS:
            return [row]
        done = Event()
        scraper = Thread(target=self._scrape_until, args=(done,))
        scraper.start()
        try:
            changed = self._several("one endpoint changed, while scraped", CHANGES, self._change)
        finally:
            done.set()
            scraper.join()
        return [row, changed]

    def _scrape_until(self, done: Event) -> None:
        while not done.wait(SCRAPE_PAUSE_SECONDS):
            self._daemon.scrape()

    def _busy(self, seconds: float) -> float:
        """The share of a processor that it needs in the next *seconds*."""
        before = self._daemon.cpu_seconds()
        time.sleep(seconds)
        return (self._daemon.cpu_seconds() - before) / seconds

    def _several(self, what: str, count: int, action: Callable[[], float]) -> Row:
        seconds = []
        before = self._daemon.cpu_seconds()
        for _ in range(count):
            time.sleep(self._random.uniform(*PAUSE_SECONDS))
            seconds.append(action())
        cpu = (self._daemon.cpu_seconds() - before) / count
        worst = percentile(seconds, 0.99) if count > 10 else 0.0  # of few it would tell nothing
        return Row(what, percentile(seconds, 0.5), worst, cpu)

    def _change(self) -> float:
        """Seconds from the write until the new endpoint answers."""
        started = time.perf_counter()
        self._wait_for_change(self._write_change())
        return time.perf_counter() - started

    def _burst(self) -> float:
        """Seconds from the last write of many until its new endpoint answers.

        Connections are made all the time.
        """
        index, started = 0, time.perf_counter()
        for n in range(1, BURST + 1):
            index = self._write_change()
            while time.perf_counter() < started + n * BURST_SECONDS / BURST:
                self._witness.visit(self._random.choice(self._usable))
        started = time.perf_counter()
        self._wait_for_change(index)
        return time.perf_counter() - started

    def _write_change(self) -> int:
        self._generation += 1
        index = self._usable[7 * self._generation % len(self._usable)]
        self._cluster.change(index, self._generation)
        return index

    def _wait_for_change(self, index: int) -> None:
        address = self._world.last_address(index, self._generation)
        self._wait(partial(self._witness.meets, index, address))

    def _wait(self, holds: Callable[[], bool], poll_seconds: float = POLL_SECONDS) -> None:
        since = time.perf_counter()
        while not holds():
            time.sleep(poll_seconds)
            self._daemon.check_alive()
            assert time.perf_counter() - since < MOST_SECONDS, "it does not come"
