"""What the real tools print after each pass is what was wanted, chain by chain.

The same passes run on the real kernel and on the strict fake (whose own listing is proven against
the tools in test_fake_against_tools.py). Chain for chain and rule for rule both must hold the same,
after a first write, and all along random histories with misfortune. python-iptables reads the
legacy tables as a third, independent witness.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from itertools import count
from threading import Event

import pytest

from e2e.lab import Lab
from pykubeproxy.host.exec import Finished, Input, Killed, Result, run
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import Runner, XtablesDataplane, read_tables
from pykubeproxy.iptables.objects import Key, Rules
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, Service
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.contract.cases import WORLDS
from tests.contract.world import Place, Settings, watched
from tests.fakes.xtables import Xtables

State = dict[str, dict[str, list[str]]]

FAMILIES = tuple(Family)
NODES = {
    Family.IPV4: NodeContext(
        "node", Family.IPV4, "zone-a", "192.0.2.10", pod_traffic=PodCIDR("10.244.0.0/16")
    ),
    Family.IPV6: NodeContext(
        "node", Family.IPV6, "zone-a", "2001:db8:2::10", pod_traffic=PodCIDR("fd00:244::/31")
    ),
}
PASSES = 25


@pytest.fixture(params=list(Variant))
def variant(request: pytest.FixtureRequest) -> Variant:
    return Variant(request.param)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


class Side:
    """One reconciler with its own dataplane, on the kernel or on the fake."""

    def __init__(self, family: Family, variant: Variant, runner: Runner) -> None:
        self.tools = Tools(family, variant)
        self.runner = runner
        dataplane = XtablesDataplane(self.tools, lambda _: None, Event(), runner, 40)
        settings = XtablesSettings(localhost_nodeports=family is Family.IPV4)
        ticks = count(step=1000)
        self.reconciler: Reconciler[Key, Rules] = Reconciler(
            family, IptablesCompiler(settings), dataplane, clock=lambda: float(next(ticks))
        )
        self.store = Store()

    def run(self, node: NodeContext) -> bool:
        report = self.reconciler.run(self.store.take(), self.store, node)
        return report.succeeded and not self.reconciler.quarantined

    def state(self) -> State:
        """Rules by table and chain; in shared chains only the tail has a place of its own."""
        tables = read_tables(self.tools, self.runner)
        return {
            name: {
                chain: _ordered(chain, [line.removeprefix(f"-A {chain} ") for line in rules])
                for chain, rules in table.chains.items()
            }
            for name, table in tables.items()
        }


def _ordered(chain: str, rules: list[str]) -> list[str]:
    if chain not in ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES"):
        return rules
    tail = [rule for rule in rules if "must be the last rule" in rule]
    assert rules[len(rules) - len(tail) :] == tail
    return [*sorted(rules[: len(rules) - len(tail)]), *tail]


def in_node(lab: Lab) -> Runner:
    def runner(argv: Sequence[str], input: Input | None, timeout_seconds: float) -> Result:
        return run(lab.argv("node", argv), input, timeout_seconds)

    return runner


def sides(lab: Lab, family: Family, variant: Variant) -> tuple[Side, Side]:
    fake = Xtables(4 if family is Family.IPV4 else 6, nft=variant is Variant.NFT)
    return Side(family, variant, in_node(lab)), Side(family, variant, fake.run)


def objects(family: Family) -> list[list[Service | EndpointSlice]]:
    """The objects of every contract world with the usual settings, each at its own place."""
    worlds = [
        world for world in WORLDS if world.settings == Settings() and family in world.families
    ]
    return [
        [obj for obj in watched(world.objects(family, Place(n))) if not hasattr(obj, "zone")]
        for n, world in enumerate(worlds, start=1)
    ]


def test_the_first_write_leaves_what_was_wanted(lab: Lab, family: Family, variant: Variant) -> None:
    real, fake = sides(lab, family, variant)
    for side in (real, fake):
        for world in objects(family):
            for obj in world:
                side.store.put(obj)
        assert side.run(NODES[family])
    wanted = fake.state()
    found = real.state()
    assert found.keys() == wanted.keys()
    for table, chains in wanted.items():
        assert found[table] == chains, table


@pytest.mark.parametrize("seed", range(4))
def test_every_pass_of_a_history_leaves_what_was_wanted(
    lab: Lab, family: Family, variant: Variant, seed: int
) -> None:
    """Worlds come and go; now and then a tool is killed, before or after it committed."""
    dice = random.Random(seed)
    in_kernel = in_node(lab)
    armed: list[str] = []

    def unreliable(argv: Sequence[str], input: Input | None, timeout_seconds: float) -> Result:
        if armed and argv[0].endswith("-restore"):
            if armed.pop() == "after":
                in_kernel(argv, input, timeout_seconds)
            return Killed(9, b"")
        return in_kernel(argv, input, timeout_seconds)

    real, fake = sides(lab, family, variant)
    real = Side(family, variant, unreliable)
    worlds = objects(family)
    for _ in range(PASSES):
        world = dice.choice(worlds)
        remove = dice.random() < 0.4
        for obj in dice.sample(world, dice.randint(1, len(world))):
            for side in (real, fake):
                if remove:
                    kind = Kind.SERVICE if isinstance(obj, Service) else Kind.ENDPOINT_SLICE
                    side.store.drop(kind, ObjectKey(*obj.key))
                else:
                    side.store.put(obj)
        if dice.random() < 0.15:
            armed[:] = [dice.choice(["before", "after"])]
        if not real.run(NODES[family]):
            assert real.run(NODES[family])
        armed.clear()
        assert fake.run(NODES[family])
        assert real.state() == fake.state()


READER = """
import json, sys
import iptc
iptc.easy.dump_table  # fails here if the library does not fit the interpreter
table, ipv6 = sys.argv[1], sys.argv[2] == "IPv6"
print(json.dumps(iptc.easy.dump_table(table, ipv6=ipv6)))
"""


def test_an_independent_reader_of_the_legacy_tables_sees_the_same(lab: Lab, family: Family) -> None:
    real, _ = sides(lab, family, Variant.LEGACY)
    for world in objects(family):
        for obj in world:
            real.store.put(obj)
    assert real.run(NODES[family])
    printed = real.state()
    for table in ("nat", "filter"):
        done = run(lab.argv("node", [sys.executable, "-c", READER, table, family]), None, 60)
        assert isinstance(done, Finished)
        assert done.exit_status == 0, done.complaint
        read = json.loads(done.stdout)
        assert read.keys() == printed[table].keys()
        for chain, rules in printed[table].items():
            assert [target_of(rule) for rule in read[chain]] == [
                printed_target(rule) for rule in _unsorted(real, table, chain, rules)
            ], chain


def _unsorted(side: Side, table: str, chain: str, rules: list[str]) -> list[str]:
    lines = read_tables(side.tools, side.runner)[table].chains[chain]
    assert len(lines) == len(rules)
    return lines


def target_of(rule: dict[str, object]) -> str:
    target = rule.get("target", "")
    return next(iter(target)) if isinstance(target, dict) else str(target)


def printed_target(line: str) -> str:
    words = line.split()
    return words[words.index("-j") + 1] if "-j" in words else ""
