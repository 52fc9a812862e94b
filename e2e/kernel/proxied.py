"""A lab with the real daemon on its node, serving many worlds of the contract at once."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from e2e.kernel.running import MACHINES_CONNTRACK, eventually
from e2e.lab import REFUSED, TIMEOUT, Answer, Lab, Reply, has_sctp, stop
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import WireObject
from tests.build import endpoint, manifest, service, slice_
from tests.contract.differences import own_address
from tests.contract.world import (
    ADDRESS_OF,
    BOUND_ADDRESSES,
    DROP,
    REJECT,
    ROLE_OF,
    Forward,
    Packet,
    Place,
    World,
    address,
)

__all__ = ["ProxiedLab", "packets_on_wire"]

REPOSITORY = Path(__file__).resolve().parents[2]
MARKER = "10.96.98.98"
READY_SECONDS = 60.0
SILENCE_SECONDS = 0.6
ANSWER_SECONDS = 16.0  # retransmissions come after 1, 3, 7 and 15 s
ROUND = 8
MOST_ROUNDS = 10


def packets_on_wire(world: World, family: Family, place: Place) -> list[Packet]:
    """What this machine can send of *world*: SCTP only where the kernel has it."""
    return [
        packet
        for packet in world.packets_for(family, place)
        if packet.on_wire and (packet.protocol is not Protocol.SCTP or has_sctp())
    ]


class ProxiedLab:
    """Context manager: one lab, one daemon, all *worlds* (which share their settings)."""

    def __init__(
        self, variant: str, worlds: Sequence[World], mode: str = "iptables", index: str = "auto"
    ) -> None:
        self._variant = variant
        self._mode = mode
        self._index = index
        self._worlds = {world.name: (Place(i), world) for i, world in enumerate(worlds, start=1)}
        self._parts = ExitStack()
        self.lab = Lab()

    def __enter__(self) -> Self:
        try:
            self._parts.enter_context(self.lab)
            directory = Path(self._parts.enter_context(tempfile.TemporaryDirectory()))
            self.manifests = directory / "manifests"
            self.manifests.mkdir()
            self.log = directory / "log"
            self._write_manifests()
            settings = next(iter(self._worlds.values()))[1].settings
            flags = [
                f"--proxy-mode={self._mode}",
                f"--iptables-variant={self._variant}",
                f"--iptables-service-index={self._index}",
                "--hostname-override=node",
                MACHINES_CONNTRACK,
                f"--manifests={self.manifests}",
                "--state-directory=",
                "--v=2",
            ]
            output = self._parts.enter_context(self.log.open("wb"))
            self.daemon = self.lab.start(
                "node",
                [sys.executable, "-m", "pykubeproxy", *flags, *settings.flags()],
                output=output,
                cwd=REPOSITORY,
            )
            self._parts.callback(stop, self.daemon)
            self._wait_until_served()
        except BaseException:
            self._parts.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parts.close()

    def _write_manifests(self) -> None:
        node = next(iter(self._worlds.values()))[1].node_object()
        self._write("node", [node])
        for family in Family:
            marker = address(MARKER, family)
            pod = endpoint(address(ADDRESS_OF["p3"], family), node="node")
            self._write(
                f"marker-{family}",
                [
                    service("marker", namespace=family.lower(), cluster_ip=marker),
                    slice_("marker", pod, namespace=family.lower()),
                ],
            )
        for place, world in self._worlds.values():
            for family in world.families:
                self._write(f"world-{place.number}-{family}", world.objects(family, place))

    def _write(self, name: str, objects: Iterable[WireObject]) -> None:
        items = [manifest(obj) for obj in objects]
        text = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
        (self.manifests / f"{name}.json").write_bytes(text)

    def _wait_until_served(self) -> None:
        markers = [address(MARKER, family) for family in Family]

        def served() -> bool:
            if self.daemon.poll() is not None:
                raise RuntimeError(f"the daemon has ended:\n{self.log.read_text()}")
            return all(isinstance(self.lab.probe("client", m, 80), Answer) for m in markers)

        try:
            eventually(served, "the markers of both families answer", READY_SECONDS)
        except AssertionError as error:
            error.add_note(self.log.read_text())
            raise

    # --- packets ---

    def problems(self) -> dict[tuple[str, Family], list[str]]:
        """Send every packet of every world; say what went otherwise than promised."""
        jobs = [
            (world, family, packet)
            for place, world in self._worlds.values()
            for family in world.families
            for packet in packets_on_wire(world, family, place)
        ]
        found: dict[tuple[str, Family], list[str]] = {
            (world.name, family): [] for _, world in self._worlds.values() for family in Family
        }
        results = self._problems_with([(packet, family) for _, family, packet in jobs])
        for (world, family, packet), problem in zip(jobs, results, strict=True):
            if problem is not None:
                found[world.name, family].append(f"{packet}: {problem}")
        return found

    def problems_of(self, world: World, family: Family, place: Place) -> list[str]:
        """The same for one world, wherever its objects are now."""
        packets = packets_on_wire(world, family, place)
        results = self._problems_with([(packet, family) for packet in packets])
        return [
            f"{world.name}: {packet}: {problem}"
            for packet, problem in zip(packets, results, strict=True)
            if problem is not None
        ]

    def _problems_with(self, jobs: Sequence[tuple[Packet, Family]]) -> list[str | None]:
        with ThreadPoolExecutor(96) as pool:
            return list(pool.map(lambda job: self._problem_with(*job), jobs))

    def _send(self, packet: Packet, times: int, seconds: float) -> list[Reply]:
        started = [
            self.lab.start_probe(
                ROLE_OF[packet.sender],
                packet.target,
                packet.port,
                packet.protocol,
                packet.source,
                seconds,
            )
            for _ in range(times)
        ]
        return [future.result() for future in started]

    def _problem_with(self, packet: Packet, family: Family) -> str | None:
        expected = packet.expected
        if isinstance(expected, Forward):
            return self._misled(packet, family, expected)
        here = packet.target in {address(each, family) for each in BOUND_ADDRESSES}
        # What no rule touches is refused by the node where it is the node's own address, and
        # lost where it is nobody's.
        if expected == REJECT or (expected != DROP and here):
            replies, wanted = self._send(packet, 2, ANSWER_SECONDS), REFUSED
        else:
            replies, wanted = self._send(packet, 2, SILENCE_SECONDS), TIMEOUT
        wrong = [reply for reply in replies if reply is not wanted]
        return f"expected {expected.kind}, got {wrong}" if wrong else None

    def _misled(self, packet: Packet, family: Family, expected: Forward) -> str | None:
        client = address(ADDRESS_OF[ROLE_OF[packet.sender]], family)
        if self._mode == "ipvs":
            client = own_address(packet, family)
        node = address(ADDRESS_OF["node"], family)
        wanted = {(e, client) for e in expected.own} | {(e, node) for e in expected.node}
        seen: set[tuple[str, str]] = set()
        for _ in range(MOST_ROUNDS):
            for reply in self._send(packet, ROUND, ANSWER_SECONDS):
                if not isinstance(reply, Answer):
                    return f"expected an answer, got {reply}"
                seen.add((f"{reply.server}:{reply.port}", reply.source))
            if not seen <= wanted:
                return f"expected {sorted(wanted)}, got {sorted(seen)}"
            if expected.sticky:
                return f"met several endpoints: {sorted(seen)}" if len(seen) > 1 else None
            if seen == wanted:
                return None
        return f"never met {sorted(wanted - seen)}"
