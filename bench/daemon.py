"""The daemon in ipvs mode against an API server: from an object written there to the kernel.

Both run in one network namespace, and in a guest on one processor: what the server costs is
part of every wall time. Its lists are prepared beforehand, so that their cost is small.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench.measure import Row, percentile
from bench.worlds import service, slice_of
from pykubeproxy.host.netlink import GENERIC, SMALL_READ, Netlink
from pykubeproxy.ipvs.messages import decode_dest, get_dests
from pykubeproxy.ipvs.node import IPVS
from pykubeproxy.ipvs.objects import Virtual
from pykubeproxy.model.kinds import Protocol
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import manifest, node
from tests.fakes.apiserver import Answer, FakeApiServer, Request

__all__ = ["life"]

CHANGES = 60
IDLE_SECONDS = 40.0
"""Long enough for the look at everything that comes each half minute."""
START_SECONDS = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


def life(services: int, endpoints: int) -> list[Row]:
    """Start the daemon on an empty kernel, change endpoints, wait, and start it once more.

    For root, on a kernel with IPVS, in an empty network namespace with its loopback up.
    """
    with ExitStack() as parts:
        directory = Path(parts.enter_context(tempfile.TemporaryDirectory()))
        server = parts.enter_context(FakeApiServer())
        cluster = _Cluster(server, services, endpoints)
        kernel = parts.enter_context(_Kernel())
        kubeconfig = server.write_kubeconfig(directory)
        rows = []
        for what in ("start", "restart"):
            cluster.prepare()
            with _Daemon(kubeconfig, directory / f"{what}.log") as daemon:
                daemon.wait_in_sync()
                rows.append(Row(f"{what}: in sync", daemon.age(), own=daemon.cpu_seconds()))
                assert endpoints == len(kernel.reals(services - 1))
                # The watches are opened anew after the prepared lists.
                server.wait_for_watches(3)
                rows += _changes(daemon, cluster, kernel) if what == "start" else ()
                rows.append(_idle(daemon))
        return rows


def _changes(daemon: _Daemon, cluster: _Cluster, kernel: _Kernel) -> list[Row]:
    for n in range(3):
        _change(cluster, kernel, 3 * n + 1)  # the first ones load code
    before, seconds = daemon.cpu_seconds(), []
    for n in range(CHANGES):
        time.sleep(0.5)
        seconds.append(_change(cluster, kernel, n + 10))
    own = (daemon.cpu_seconds() - before) / CHANGES
    return [Row("one endpoint changed", percentile(seconds, 0.5), percentile(seconds, 0.99), own)]


def _change(cluster: _Cluster, kernel: _Kernel, generation: int) -> float:
    """Seconds from the write to the API until the kernel has the new real server."""
    index = generation % cluster.services
    before = kernel.reals(index)
    started = time.perf_counter()
    cluster.change(index, generation)
    while kernel.reals(index) == before:
        time.sleep(0.001)
        assert time.perf_counter() - started < START_SECONDS, "a change does not come"
    return time.perf_counter() - started


def _idle(daemon: _Daemon) -> Row:
    before = daemon.cpu_seconds()
    time.sleep(IDLE_SECONDS)
    return Row(f"idle {IDLE_SECONDS:g} s", IDLE_SECONDS, own=daemon.cpu_seconds() - before)


class _Kernel:
    """Reads one virtual server at a time, whatever their number."""

    def __enter__(self) -> _Kernel:
        self._channel = Netlink(GENERIC, SMALL_READ)
        self._family_id = self._channel.family_id(IPVS)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def reals(self, index: int) -> set[tuple[str, int]]:
        """What in use the Service number *index* has."""
        address = service(index).spec.cluster_ip
        assert address is not None
        virtual = Virtual(Protocol.TCP, address, 80)
        found = [decode_dest(*m) for m in self._channel.dump(*get_dests(self._family_id, virtual))]
        return {(dest.address, dest.port) for dest in found if dest.weight}


class _Cluster:
    """The objects, as the lists that the server will answer with and as changes to them."""

    def __init__(self, server: FakeApiServer, services: int, endpoints: int) -> None:
        self.services = services
        self._server = server
        self._endpoints = endpoints
        self._bodies = {
            "services": _stream(map(service, range(services))),
            "endpointslices": _stream(slice_of(index, endpoints) for index in range(services)),
        }
        self._changed: dict[int, EndpointSlice] = {}
        server.store.put(manifest(node()))

    def prepare(self) -> None:
        """Have the next streaming lists answered with all objects, and then end."""
        for plural, body in self._bodies.items():
            whole = body + self._changes(plural) + _bookmark(self._server.store.version)
            self._server.answer_next(
                Answer(200, whole, cut=len(whole), matches=_asks_for(plural)),
            )

    def change(self, index: int, generation: int) -> None:
        changed = self._changed[index] = slice_of(index, self._endpoints, generation)
        self._server.store.put(manifest(changed))

    def _changes(self, plural: str) -> bytes:
        return _stream(self._changed.values()) if plural != "services" else b""


def _stream(objects: Iterable[Service | EndpointSlice]) -> bytes:
    lines = []
    for obj in objects:
        body = manifest(obj)
        body["metadata"]["resourceVersion"] = "1"
        lines.append(msgspec.json.encode({"type": "ADDED", "object": body}))
    return b"\n".join([*lines, b""])


def _bookmark(version: int) -> bytes:
    metadata = {
        "resourceVersion": str(version),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }
    return msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": metadata}}) + b"\n"


def _asks_for(plural: str) -> Callable[[Request], bool]:
    return lambda r: r.path.endswith(f"/{plural}") and r.query.get("sendInitialEvents") == "true"


class _Daemon:
    """One process, until the end of the block."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        self._kubeconfig = kubeconfig
        self._log = log

    def __enter__(self) -> _Daemon:
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pykubeproxy"),
                    *("--proxy-mode=ipvs", "--hostname-override=node", "-v=2"),
                    *("--cluster-cidr=10.128.0.0/9", f"--kubeconfig={self._kubeconfig}"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()

    def wait_in_sync(self) -> None:
        while b" synced family=IPv4" not in self._log.read_bytes():
            assert self._process.poll() is None, self._log.read_text()
            assert self.age() < START_SECONDS, self._log.read_text()
            time.sleep(0.02)

    def age(self) -> float:
        return time.perf_counter() - self._started

    def cpu_seconds(self) -> float:
        """Its own and those of the programs that it has waited for."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / _TICKS
