"""The packet tables, through the real pipeline into a fake kernel, followed by the tracer."""

from __future__ import annotations

from collections import defaultdict
from itertools import count
from threading import Event

import pytest

from pykubeproxy.cli import configure
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.index import Sizes
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.context import describe_node, localhost_serves_nodeports
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.contract.cases import WORLDS
from tests.contract.tracer import Fate, Outcome, Sent, trace
from tests.contract.world import (
    ADDRESS_OF,
    BOUND_ADDRESSES,
    DROP,
    INTERFACE_OF,
    NOT_A_SERVICE,
    REJECT,
    ROLE_OF,
    Forward,
    Nothing,
    Packet,
    World,
    address,
    watched,
)
from tests.fakes.xtables import Xtables

FATES = {REJECT: "reject", DROP: "drop", NOT_A_SERVICE: "untouched"}


def local_addresses(family: Family) -> frozenset[str]:
    return frozenset(address(each, family) for each in BOUND_ADDRESSES)


def kernel_after(
    world: World, family: Family, *, counters: bool, sizes: Sizes | None = None
) -> Xtables:
    """A fake kernel after one pass of the real proxy over the world."""
    config = configure(world.settings.flags())
    assert config is not None
    names = ("ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts")
    kernel = Xtables(4 if family is Family.IPV4 else 6, nfacct=names if counters else ())
    localhost = localhost_serves_nodeports(config, family)
    settings = XtablesSettings(
        localhost_nodeports=localhost,
        count_invalid=counters,
        count_localhost=counters and localhost,
    )
    dataplane = XtablesDataplane(
        Tools(family, Variant.NFT), lambda _: None, Event(), runner=kernel.run, sizes=sizes
    )
    ticks = count()
    reconciler = Reconciler(
        family, IptablesCompiler(settings), dataplane, clock=lambda: float(next(ticks))
    )
    store = Store()
    for obj in (world.node_object(), *watched(world.objects(family))):
        store.put(obj)
    context = describe_node(config, "node", store.node, sorted(local_addresses(family)), family)
    report = reconciler.run(store.take(), store, context)
    assert report.succeeded, report.detail
    return kernel


def sent(packet: Packet, family: Family) -> Sent:
    source = packet.source
    if source is None:
        source = address(ADDRESS_OF[ROLE_OF[packet.sender]], family)
        if packet.sender == "node" and packet.target in local_addresses(family):
            source = packet.target  # the kernel answers itself with the address it is asked at
    return Sent(
        source=source,
        target=packet.target,
        port=packet.port,
        protocol=packet.protocol.lower(),
        interface=INTERFACE_OF[packet.sender],
    )


def expected_fates(expected: Forward, family: Family) -> set[Fate]:
    def fate(endpoint: str, masqueraded: bool) -> Fate:
        name, _, port = endpoint.partition(":")
        host = address(ADDRESS_OF[name], family)
        host = f"[{host}]" if ":" in host else host
        return Fate("forward", f"{host}:{port}", masqueraded)

    own = {fate(endpoint, False) for endpoint in expected.own}
    return own | {fate(endpoint, True) for endpoint in expected.node}


def problem_with(kernel: Xtables, packet: Packet, family: Family) -> str | None:
    """Say how the fate of *packet* differs from what is promised, or ``None``."""
    locals_ = local_addresses(family)
    outcomes = trace(kernel, sent(packet, family), locals_)
    got = {outcome.fate for outcome in outcomes}
    if isinstance(packet.expected, Nothing):
        wanted = {Fate(FATES[packet.expected])}
        return None if got == wanted else f"expected {wanted}, got {got}"
    wanted = expected_fates(packet.expected, family)
    if got != wanted:
        return f"expected {sorted(wanted)}, got {sorted(got)}"
    shares: dict[Fate, float] = defaultdict(float)
    for outcome in outcomes:
        shares[outcome.fate] += outcome.probability
    if any(abs(share - 1 / len(wanted)) > 1e-6 for share in shares.values()):
        return f"uneven: {dict(shares)}"
    if packet.expected.sticky:
        return next(
            (p for o in outcomes if (p := _wandering(kernel, packet, family, o)) is not None), None
        )
    return None


def _wandering(kernel: Xtables, packet: Packet, family: Family, first: Outcome) -> str | None:
    client = sent(packet, family)
    memory = {name: frozenset({client.source}) for name in first.remembers}
    again = trace(kernel, client, local_addresses(family), memory)
    fates = {outcome.fate for outcome in again}
    return None if fates == {first.fate} else f"met {first.fate} first and then {fates}"


CASES = [
    pytest.param(world, family, id=f"{world.name}-{family}")
    for world in WORLDS
    for family in world.families
]


SIZES = [
    pytest.param(None, id="lists"),
    pytest.param(Sizes(above=0, leaf_rules=1), id="trees of single rules"),
    pytest.param(Sizes(above=0, leaf_rules=4), id="trees"),
]
"""How the rules of Services are arranged, which packets do not notice."""


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("world", "family"), CASES)
def test_packets_meet_their_fate(world: World, family: Family, sizes: Sizes | None) -> None:
    kernel = kernel_after(world, family, counters=False, sizes=sizes)
    assert [] == problems_in(world, family, kernel)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_counters_change_no_fate(world: World, sizes: Sizes | None) -> None:
    family = world.families[0]
    kernel = kernel_after(world, family, counters=True, sizes=sizes)
    assert [] == problems_in(world, family, kernel)


def problems_in(world: World, family: Family, kernel: Xtables) -> list[str]:
    return [
        f"{packet}: {problem}"
        for packet in world.packets_for(family)
        if (problem := problem_with(kernel, packet, family)) is not None
    ]
