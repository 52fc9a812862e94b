"""The packet tables of the contract, with their objects in an API instead of manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.process import ApiDaemon
from e2e.kernel.proxied import ProxiedLab, packets_on_wire
from e2e.lab import Lab
from pykubeproxy.model.kinds import Family
from tests.build import manifest
from tests.contract.cases import WORLDS
from tests.contract.world import Place, Settings, World

# Everything that one daemon with the usual flags can serve at once; e2e/kernel has the rest.
CHOSEN = [world for world in WORLDS if world.settings == Settings()]
Findings = dict[tuple[str, Family], list[str]]


class ApiLab(ProxiedLab):
    """`ProxiedLab` whose daemon follows a stand-in API server."""

    def __init__(self, worlds: list[World], directory: Path) -> None:
        super().__init__("nft", worlds)
        self._directory = directory

    def __enter__(self) -> ApiLab:
        lab: Lab = self._parts.enter_context(self.lab)
        api = StandIn(lab, self._directory)
        self._parts.callback(api.close)
        for place, world in self._worlds.values():
            api.put(world.node_object())
            for family in world.families:
                for obj in world.objects(family, place):
                    api.put(manifest(obj))  # a Service without an address stays without
        daemon = ApiDaemon(lab, api.kubeconfig, self._directory, *Settings().flags())
        self._parts.enter_context(daemon)
        return self


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Findings]:
    with ApiLab(CHOSEN, tmp_path_factory.mktemp("packets")) as lab:
        yield lab.problems()


@pytest.mark.parametrize(
    ("world", "family"),
    [
        pytest.param(world, family, id=f"{family}-{world.name}")
        for world in CHOSEN
        for family in world.families
        if packets_on_wire(world, family, Place(0))
    ],
)
def test_packets_meet_their_fate(findings: Findings, world: World, family: Family) -> None:
    problems = findings[world.name, family]
    assert not problems, "\n".join(problems)
