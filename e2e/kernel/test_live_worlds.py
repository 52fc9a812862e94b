"""The packet tables under live changes: one world turns into the next while the daemon runs.

All worlds of a walk live at the same addresses and names, so every step changes types, policies,
ports, endpoints, conditions and hints of Services that were there before. After each step every
packet must meet the fate that the table of the world promises, whatever was there earlier.
"""

from __future__ import annotations

import random

import pytest

from e2e.kernel.proxied import ProxiedLab, packets_on_wire
from e2e.kernel.running import eventually
from e2e.lab import Answer
from pykubeproxy.model.kinds import Family
from tests.build import endpoint, service, slice_
from tests.contract.cases import WORLDS
from tests.contract.world import ADDRESS_OF, Place, Settings, World, address

STEPS = 14
HERE = Place(1)


def walk(family: Family, seed: int) -> list[World]:
    usual = [
        world
        for world in WORLDS
        if world.settings == Settings()
        and family in world.families
        and packets_on_wire(world, family, HERE)
    ]
    return random.Random(seed).sample(usual, STEPS)


class Walker(ProxiedLab):
    """A lab with one place, where one world follows the other."""

    steps = 0

    def become(self, world: World, family: Family) -> None:
        self._write(f"world-1-{family}", world.objects(family, HERE))
        # Files are read in the order of their notices, so who answers at the marker has seen
        # the world as well.
        self.steps += 1
        marker = address(f"10.96.97.{self.steps}", family)
        pod = endpoint(address(ADDRESS_OF["p3"], family), node="node")
        name = f"step-{self.steps}"
        self._write(
            name,
            [
                service(name, namespace="steps", cluster_ip=marker),
                slice_(name, pod, namespace="steps"),
            ],
        )
        eventually(
            lambda: isinstance(self.lab.probe("client", marker, 80, timeout=0.2), Answer),
            f"step {self.steps} is served",
        )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_packets_meet_their_fate_after_every_change(
    variant: str, family: Family, seed: int
) -> None:
    worlds = walk(family, seed)
    with Walker(variant, worlds[:1]) as walker:
        for world in worlds:
            walker.become(world, family)
            problems = walker.problems_of(world, family, HERE)
            assert not problems, "\n".join(problems)
