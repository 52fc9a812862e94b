"""Whatever happens on the way, the kernel ends up saying what the final objects say.

Worlds are a few services with generated histories: they share external IPs and node ports, so
that they conflict; endpoints come and go with all conditions and hints; the node moves. Examples
are derived from the source alone, so every run is the same run.
"""

from __future__ import annotations

import random
from collections import Counter
from threading import Event

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.index import Sizes
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.render import Script
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import Kind, ObjectKey, Service
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store, Touched
from tests.build import endpoint, port, service, slice_, slice_port
from tests.fakes.dataplane import ChainDataplane
from tests.fakes.xtables import Fault, Xtables

SETTINGS = XtablesSettings()
SHARED_CHAINS = {
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
}


def deterministic(examples):
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


# --- worlds ---

NAMES = "abcd"


def some(*values, most=2):
    return st.lists(st.sampled_from(values), unique=True, max_size=most)


@st.composite
def services(draw, name):
    kind = draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"]))
    http = port(80, "http", node_port=draw(st.sampled_from([None, 30080, 30081])))
    dns = port(draw(st.sampled_from([53, 80])), "dns", "UDP")
    return service(
        name,
        type=kind,
        cluster_ip=draw(st.sampled_from([f"10.96.0.{ord(name)}"] * 6 + ["None"])),
        ports=draw(st.sampled_from([[http], [http, dns], [dns]])),
        external_ips=draw(some("203.0.113.1", "203.0.113.2")),
        vips=draw(some("203.0.113.1", "203.0.113.3")),
        source_ranges=draw(some("198.51.100.0/24", "192.0.2.0/24")),
        external_policy=draw(st.sampled_from([None, "Cluster", "Local"])),
        internal_policy=draw(st.sampled_from([None, "Local"])),
        affinity_seconds=draw(st.sampled_from([None, None, 60])),
        health_check_node_port=draw(st.sampled_from([None, 31000 + ord(name)])),
        created=draw(st.sampled_from(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])),
    )


ENDPOINTS = st.builds(
    endpoint,
    st.sampled_from([f"10.1.0.{n}" for n in range(1, 6)]),
    node=st.sampled_from(["node", "other", None]),
    ready=st.sampled_from([None, True, False]),
    serving=st.sampled_from([None, True, False]),
    terminating=st.sampled_from([None, True]),
    zones=st.sampled_from([[], ["a"], ["b"]]),
    nodes=st.sampled_from([[], [], ["node"]]),
)
PORTS = [slice_port(8080, "http"), slice_port(5353, "dns", "UDP")]


@st.composite
def slices(draw, name, number):
    found = draw(st.lists(ENDPOINTS, max_size=4))
    kind = draw(st.sampled_from(["IPv4"] * 5 + ["FQDN"]))
    return slice_(name, *found, name=f"{name}-{number}", ports=PORTS, address_type=kind)


NODES = st.builds(
    NodeContext,
    st.just("node"),
    st.just(Family.IPV4),
    zone=st.sampled_from(["", "a", "b"]),
    address=st.just("192.0.2.1"),
    nodeport_addresses=st.sampled_from([None, ("192.0.2.1",)]),
    pod_traffic=st.sampled_from([PodCIDR("10.1.0.0/16"), None]),
)
FIRST_NODE = NodeContext("node", Family.IPV4, pod_traffic=PodCIDR("10.1.0.0/16"))

# A step is (what, value): an object's identity and its new value, None for its deletion.
IDENTITIES = [
    *((Kind.SERVICE, ObjectKey("default", n)) for n in NAMES),
    *((Kind.ENDPOINT_SLICE, ObjectKey("default", f"{n}-{i}")) for n in NAMES for i in (1, 2)),
]


def values(identity):
    kind, key = identity
    if kind is Kind.SERVICE:
        return services(key.name)
    name, _, number = key.name.partition("-")
    return slices(name, int(number))


@st.composite
def steps(draw, identity=None):
    what = identity or draw(st.sampled_from([*IDENTITIES, "node"]))
    if what == "node":
        return what, draw(NODES)
    deleted = draw(st.integers(0, 3)) == 0
    return what, None if deleted else draw(values(what))


SYNC = ("sync", None)
HISTORIES = st.lists(st.one_of(steps(), steps(), steps(), st.just(SYNC)), max_size=25)


class Memory:
    """A kernel of chains, and how to compare it."""

    def __init__(self, fault=lambda: None):
        self.dataplane = ChainDataplane(fault)

    @classmethod
    def faulty(cls, dice):
        def fault():
            return dice.choice(["reject", "before", "after"]) if dice.random() < 0.1 else None

        return cls(fault)

    def state(self):
        return {name: compared(name[1], rules) for name, rules in self.dataplane.chains.items()}

    def writes(self):
        return len(self.dataplane.transactions)


class Strict:
    """The real dataplane over the strict fake of the tools, and how to compare it."""

    sizes = Sizes(above=None)

    def __init__(self):
        self.kernel = Xtables()
        self.dataplane = XtablesDataplane(
            Tools(Family.IPV4, Variant.NFT),
            lambda _: None,
            Event(),
            self.kernel,
            chains_per_transaction=12,
            sizes=self.sizes,
        )

    @classmethod
    def faulty(cls, dice):
        strict = cls()
        faults = [Fault.REFUSE, Fault.DIE_BEFORE, Fault.DIE_AFTER, Fault.TIME_OUT_AFTER]
        for fault in faults:
            chance = 0.1 / len(faults)
            strict.kernel.fail(fault, lambda *_, c=chance: dice.random() < c, times=None)
        return strict

    def state(self):
        return {
            (table, chain): compared(chain, rules)
            for table, chains in self.kernel.state().items()
            for chain, rules in chains.items()
        }

    def writes(self):
        return self.kernel.calls["iptables-restore"]


class StrictTrees(Strict):
    """The same with trees in place of all shared chains."""

    sizes = Sizes(above=0, leaf_rules=1)


def compared(chain, rules):
    """Rules in order; in chains of many services only the tail has a place."""
    if chain not in SHARED_CHAINS:
        return rules
    tails = [rule for rule in rules if "NOTE: this must be the last rule" in rule]
    # Several tails (listed addresses) have no order among them.
    assert sorted(rules[len(rules) - len(tails) :]) == sorted(tails)
    return Counter(rules)


class Proxy:
    """A store, a node and a clock around one reconciler."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.now = 0.0
        self.node = FIRST_NODE
        self.store = Store()
        self.reconciler = Reconciler(
            Family.IPV4, IptablesCompiler(SETTINGS), kernel.dataplane, lambda: self.now
        )

    def sync(self, touched=None):
        self.now += 0.5
        report = self.reconciler.run(touched or self.store.take(), self.store, self.node)
        if report.succeeded:
            self.reconciler.learn()
        return report

    def step(self, what, value):
        if what == "sync":
            self.sync()
        elif what == "node":
            self.node = value
        elif value is None:
            self.store.drop(*what)
        else:
            self.store.put(value)

    def play(self, history):
        for what, value in history:
            self.step(what, value)
        self.sync()
        return self

    def settle(self, most=300):
        """Let time pass until nothing is owed."""
        for _ in range(most):
            if self.sync().succeeded and not self.reconciler.quarantined:
                return self
            self.now += 300.0
        raise AssertionError(f"still at it: {self.reconciler.quarantined}")


def rebuilt(kernel, history):
    """What a proxy makes of the final objects alone."""
    final = {what: value for what, value in history if what != "sync"}
    proxy = Proxy(kernel)
    for what, value in final.items():
        if value is not None:
            proxy.step(what, value)
    proxy.sync()
    return proxy.kernel.state()


KERNELS = pytest.mark.parametrize(
    "kernel", [Memory, Strict, StrictTrees], ids=["memory", "strict tools", "strict tools, trees"]
)


@KERNELS
@deterministic(200)
@given(history=HISTORIES)
def test_any_history_equals_a_rebuild_from_the_final_objects(kernel, history):
    state = Proxy(kernel()).play(history).kernel.state()
    assert rebuilt(kernel(), history) == state


@st.composite
def interleavings(draw):
    """Histories of single objects, and two ways to shuffle them together with syncs."""
    histories = draw(
        st.fixed_dictionaries(
            {what: st.lists(steps(what), max_size=3) for what in [*IDENTITIES[:8], "node"]}
        )
    )
    slots = [what for what, history in histories.items() for _ in history] + ["sync"] * 3
    return histories, draw(st.permutations(slots)), draw(st.permutations(slots))


def shuffled(histories, slots):
    left = {what: list(history) for what, history in histories.items()}
    return [SYNC if what == "sync" else left[what].pop(0) for what in slots]


@deterministic(200)
@given(world=interleavings())
def test_the_order_of_different_objects_does_not_matter(world):
    histories, one, other = world
    first = Proxy(Memory()).play(shuffled(histories, one)).kernel.state()
    assert first == Proxy(Memory()).play(shuffled(histories, other)).kernel.state()


@KERNELS
@deterministic(150)
@given(history=HISTORIES, seed=st.integers(0, 1 << 30))
def test_with_failing_writes_it_still_converges(kernel, history, seed):
    proxy = Proxy(kernel.faulty(random.Random(seed))).play(history).settle()
    assert rebuilt(kernel(), history) == proxy.kernel.state()


@KERNELS
@deterministic(100)
@given(history=HISTORIES)
def test_a_second_pass_writes_nothing(kernel, history):
    proxy = Proxy(kernel()).play(history)
    before = proxy.kernel.writes()
    proxy.sync()
    assert before == proxy.kernel.writes()


@KERNELS
@deterministic(100)
@given(history=HISTORIES)
def test_a_replay_of_everything_writes_nothing(kernel, history):
    proxy = Proxy(kernel()).play(history)
    before = proxy.kernel.writes()
    for obj in list(proxy.store.services.values()):
        proxy.store.put(obj)
    proxy.sync(Touched(frozenset(proxy.store.services)))
    assert before == proxy.kernel.writes()


STRICT = pytest.mark.parametrize("strict", [Strict, StrictTrees], ids=["lists", "trees"])


@STRICT
@deterministic(100)
@given(history=HISTORIES, flushed=st.sampled_from(["all", "nat", "filter"]))
def test_a_flush_by_somebody_else_is_repaired(strict, history, flushed):
    strict = strict()
    proxy = Proxy(strict).play(history)
    before = strict.state()
    if flushed == "all":
        strict.kernel.flush()
    else:
        strict.kernel.tables.pop(flushed, None)
    proxy.reconciler.distrust()
    proxy.settle()
    assert before == strict.state()


@deterministic(100)
@given(before=HISTORIES, after=HISTORIES)
def test_a_restart_takes_over_what_it_finds(before, after):
    kernel = Strict()
    Proxy(kernel).play(before)
    restarted = Strict()
    restarted.kernel.tables = kernel.kernel.tables
    proxy = Proxy(restarted)
    proxy.play(after).settle()
    assert rebuilt(Strict(), after) == restarted.state()


@pytest.mark.parametrize("change", ["endpoint", "service", "delete"])
def test_the_cost_of_one_change_does_not_depend_on_the_number_of_services(change):
    assert len({cost(change, number) for number in (10, 100, 1000)}) == 1


def cost(change, number):
    """Services visited, objects and restore lines written for one change among *number*."""
    memory = Memory()
    proxy = Proxy(memory)
    for n in range(number):
        name = f"s{n:04}"
        proxy.store.put(
            service(name, cluster_ip=f"10.96.{n >> 8}.{n & 255}", ports=[port(80, "http")])
        )
        if n < 900:  # stay below the limit at which endpoint rules lose their comments
            proxy.store.put(slice_(name, endpoint("10.1.0.1"), ports=PORTS[:1]))
    proxy.sync()
    memory.dataplane.transactions.clear()
    match change:
        case "endpoint":
            grown = slice_("s0005", endpoint("10.1.0.1"), endpoint("10.1.0.2"), ports=PORTS[:1])
            proxy.store.put(grown)
        case "service":
            proxy.store.put(
                service("s0005", cluster_ip="10.96.0.5", ports=[port(80, "http", node_port=30080)])
            )
        case "delete":
            proxy.store.drop(Kind.SERVICE, ObjectKey("default", "s0005"))
    report = proxy.sync()
    lines = sum(Script(t).text().count(b"\n") for t in memory.dataplane.transactions)
    return report.services, report.objects_put, report.objects_dropped, lines


def test_histories_reach_what_they_are_made_for():
    """The generator makes conflicts, local policies and external addresses at all."""
    seen = Counter()

    @deterministic(100)
    @given(history=HISTORIES)
    def look(history):
        proxy = Proxy(Memory()).play(history)
        seen["conflict"] += bool(list(proxy.reconciler._tracker.conflicts()))
        for _, value in history:
            if isinstance(value, Service):
                seen["local"] += value.spec.external_traffic_policy == "Local"
        seen["chains"] += any("KUBE-SVL-" in name for _, name in proxy.kernel.dataplane.chains)
        seen["firewall"] += any("KUBE-FW-" in name for _, name in proxy.kernel.dataplane.chains)

    look()
    assert {word for word, number in seen.items() if number} == {
        "conflict",
        "local",
        "chains",
        "firewall",
    }
