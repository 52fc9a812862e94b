"""The packet tables of ipvs mode: real daemon, real virtual servers, real connections."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from e2e.guest import in_guest
from e2e.kernel.proxied import ProxiedLab
from pykubeproxy.model.kinds import Family
from tests.contract.differences import IPVS_WORLDS
from tests.contract.world import Settings, World

Findings = dict[tuple[str, Family], list[str]]

CASES = [
    # Nothing here may ask the kernel: worlds are collected outside of the guest, too.
    pytest.param(world, family, id=f"{family}-{world.name}")
    for world in sorted(IPVS_WORLDS, key=lambda world: repr(world.settings))
    for family in world.families
]


@pytest.fixture(scope="module")
def findings_for() -> Callable[[Settings], Findings]:
    """All packets of all worlds with the same settings are sent in one go, once."""
    known: dict[Settings, Findings] = {}
    variant = "legacy" if in_guest() else "auto"

    def look_up(settings: Settings) -> Findings:
        if settings not in known:
            worlds = [world for world in IPVS_WORLDS if world.settings == settings]
            with ProxiedLab(variant, worlds, mode="ipvs") as proxied:
                known[settings] = proxied.problems()
        return known[settings]

    return look_up


@pytest.mark.parametrize(("world", "family"), CASES)
def test_packets_meet_their_fate(
    findings_for: Callable[[Settings], Findings], world: World, family: Family
) -> None:
    problems = findings_for(world.settings)[world.name, family]
    assert not problems, "\n".join(problems)
