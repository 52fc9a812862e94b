"""The packet tables in ipvs mode, through the real pipeline into a fake kernel."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import count
from threading import Event

import pytest

from pykubeproxy.cli import configure
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.ipvs.compile import IpvsCompiler, IpvsSettings
from pykubeproxy.ipvs.drain import Drain
from pykubeproxy.ipvs.kernel import IpvsDataplane
from pykubeproxy.ipvs.node import find_device
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.context import describe_node
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.contract.cases import WORLDS
from tests.contract.differences import DIFFERENCES, IPVS_WORLDS, own_address
from tests.contract.ipvs_tracer import trace
from tests.contract.test_contract_iptables import FATES, expected_fates, local_addresses
from tests.contract.tracer import Fate, Outcome, Sent
from tests.contract.world import INTERFACE_OF, Nothing, Packet, World, watched
from tests.fakes.ipvs import GENERIC, NETFILTER, ROUTE, FakeKernel
from tests.fakes.xtables import Xtables


class Proxied:
    """A fake kernel after one pass of the real proxy over a world."""

    def __init__(self, world: World, family: Family) -> None:
        self.world = world
        self.family = family
        self.kernel = FakeKernel()
        self.rules = self.kernel.xtables(4 if family is Family.IPV4 else 6)
        self.node_addresses = local_addresses(family)
        self.start()

    def start(self) -> None:
        """Let a proxy that knows nothing yet run its first pass."""
        world, family = self.world, self.family
        config = configure(world.settings.flags())
        assert config is not None
        ticks = count()

        def clock() -> float:
            return float(next(ticks))

        reconciler = Reconciler(
            family, IpvsCompiler(IpvsSettings()), dataplane(self.kernel, self.rules, family), clock
        )
        store = Store()
        for obj in (world.node_object(), *watched(world.objects(family))):
            store.put(obj)
        context = describe_node(
            config,
            "node",
            store.node,
            sorted(a for a in self.node_addresses if a not in ("127.0.0.1", "::1")),
            family,
            every_address=True,
        )
        report = reconciler.run(store.take(), store, context)
        assert report.succeeded, report.detail

    def trace(self, sent: Sent, memory: dict[str, frozenset[str]] | None = None) -> list[Outcome]:
        return trace(self.kernel, self.rules, sent, self.node_addresses, memory)


def dataplane(kernel: FakeKernel, rules: Xtables, family: Family) -> IpvsDataplane:
    def device() -> int:
        found = find_device(kernel.channel(ROUTE))
        assert found is not None
        return found.index

    generic = kernel.channel(GENERIC)
    servers = Servers(
        family,
        generic,
        kernel.channel(GENERIC),
        lambda: generic.family_id("IPVS"),
        "rr",
        (),
        Drain(),
        lambda: 0.0,
    )
    tools = Tools(family, Variant.LEGACY)
    return IpvsDataplane(
        servers,
        Sets(family, kernel.channel(NETFILTER)),
        BoundAddresses(family, kernel.channel(ROUTE), device),
        XtablesDataplane(tools, lambda _: None, Event(), runner=rules.run),
        lambda: None,
    )


def sent(packet: Packet, family: Family) -> Sent:
    return Sent(
        source=own_address(packet, family),
        target=packet.target,
        port=packet.port,
        protocol=packet.protocol.lower(),
        interface=INTERFACE_OF[packet.sender],
    )


def problem_with(proxied: Proxied, packet: Packet) -> str | None:
    """Say how the fate of *packet* differs from what is promised, or ``None``."""
    first = sent(packet, proxied.family)
    outcomes = proxied.trace(first)
    got = {outcome.fate for outcome in outcomes}
    if isinstance(packet.expected, Nothing):
        wanted = {Fate(FATES[packet.expected])}
        return None if got == wanted else f"expected {wanted}, got {got}"
    wanted = expected_fates(packet.expected, proxied.family)
    if got != wanted:
        return f"expected {sorted(wanted)}, got {sorted(got)}"
    shares: dict[Fate, float] = defaultdict(float)
    for outcome in outcomes:
        shares[outcome.fate] += outcome.probability
    if any(abs(share - 1 / len(wanted)) > 1e-6 for share in shares.values()):
        return f"uneven: {dict(shares)}"
    if packet.expected.sticky:
        for outcome in outcomes:
            memory = {name: frozenset({first.source}) for name in outcome.remembers}
            again = {later.fate for later in proxied.trace(first, memory)}
            if again != {outcome.fate}:
                return f"met {outcome.fate} first and then {again}"
    return None


@pytest.mark.parametrize(
    ("world", "family"),
    [
        pytest.param(world, family, id=f"{world.name}-{family}")
        for world in IPVS_WORLDS
        for family in world.families
    ],
)
def test_packets_meet_their_fate(world: World, family: Family) -> None:
    proxied = Proxied(world, family)
    problems = [
        f"{packet}: {problem}"
        for packet in world.packets_for(family)
        if (problem := problem_with(proxied, packet)) is not None
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("world", IPVS_WORLDS, ids=lambda world: world.name)
def test_a_restart_writes_nothing(world: World) -> None:
    proxied = Proxied(world, world.families[-1])
    before = dict(proxied.kernel.written), list(proxied.rules.inputs)
    proxied.start()
    assert before == (dict(proxied.kernel.written), proxied.rules.inputs)


# --- the list of differences itself ----------------------------------------------------------


def route(packet: Packet) -> tuple[object, ...]:
    return (
        packet.sender,
        packet.target,
        packet.port,
        packet.protocol,
        packet.source,
        packet.only,
    )


def test_differences_are_about_worlds_there_are() -> None:
    assert DIFFERENCES.keys() <= {world.name for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_every_difference_is_one(world: World) -> None:
    usual = {route(packet): packet for packet in world.packets}
    for difference in DIFFERENCES.get(world.name, ()):
        assert difference.why
        for packet in difference.packets:
            assert route(packet) in usual, f"{packet} is not sent"
            before = usual[route(packet)]
            assert (before.expected, before.on_wire) != (packet.expected, packet.on_wire), packet


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_no_packet_differs_twice(world: World) -> None:
    routes = Counter(
        route(packet)
        for difference in DIFFERENCES.get(world.name, ())
        for packet in difference.packets
    )
    assert [] == [each for each, number in routes.items() if number > 1]
