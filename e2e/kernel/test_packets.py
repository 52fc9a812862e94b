"""The packet tables on a real kernel: real daemon, real rules, real connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.kernel.proxied import ProxiedLab, packets_on_wire
from pykubeproxy.model.kinds import Family
from tests.contract.cases import WORLDS
from tests.contract.world import Place, Settings, World

VARIANTS = ("nft", "legacy")
INDEXES = ("auto", "always")
"""Shared chains as lists, as so few Services have them, and as trees."""
Findings = dict[tuple[str, Family], list[str]]

CASES = [
    pytest.param(variant, index, world, family, id=f"{variant}-{index}-{family}-{world.name}")
    # Sorted by what they share, so that each daemon is started once and used up.
    for variant in VARIANTS
    for index in INDEXES
    for world in sorted(WORLDS, key=lambda world: repr(world.settings))
    for family in world.families
    if packets_on_wire(world, family, Place(0))
]


@pytest.fixture(scope="session")
def findings_for() -> Callable[[str, str, Settings], Findings]:
    """All packets of all worlds with the same settings are sent in one go, once."""
    known: dict[tuple[str, str, Settings], Findings] = {}

    def look_up(variant: str, index: str, settings: Settings) -> Findings:
        if (variant, index, settings) not in known:
            worlds = [world for world in WORLDS if world.settings == settings]
            with ProxiedLab(variant, worlds, index=index) as proxied:
                known[variant, index, settings] = proxied.problems()
        return known[variant, index, settings]

    return look_up


@pytest.mark.parametrize(("variant", "index", "world", "family"), CASES)
def test_packets_meet_their_fate(
    findings_for: Callable[[str, str, Settings], Findings],
    variant: str,
    index: str,
    world: World,
    family: Family,
) -> None:
    problems = findings_for(variant, index, world.settings)[world.name, family]
    assert not problems, "\n".join(problems)
