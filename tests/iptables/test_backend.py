"""iptables mode put together, on fake tools."""

from __future__ import annotations

from threading import Event

import pytest

from pykubeproxy.backend import Surroundings
from pykubeproxy.config import Config
from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.host.state import StateDirectory
from pykubeproxy.iptables import backend
from pykubeproxy.iptables.tools import LOCK_SECONDS, Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.loop import Suspicions
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.sync.store import Store
from pykubeproxy.watch.mailbox import Mailbox
from tests.fakes.xtables import Xtables

LOCALNET, LIBERAL = "net/ipv4/conf/all/route_localnet", "net/netfilter/nf_conntrack_tcp_be_liberal"


class Book:
    def __init__(self):
        self.calls = []

    def start(self, on_change):
        self.calls.append(on_change)

    def stop(self):
        self.calls.append("stopped")

    def addresses(self, family):
        return ("192.0.2.10",)


class World:
    def __init__(self, monkeypatch, tmp_path):
        self.tools = {4: Xtables(4, nfacct=["ct_state_invalid_dropped_pkts"]), 6: Xtables(6)}
        self.sysctls = tmp_path
        self.counters = set()
        self.metrics = Metrics()
        self.stop = Event()
        self.books = []
        self.generation = 7
        self.programs = []
        monkeypatch.setattr(sysctls, "ROOT", tmp_path)
        for name in (LOCALNET, LIBERAL):
            (tmp_path / name).parent.mkdir(parents=True)
        monkeypatch.setattr(backend, "AddressBook", self.book)
        monkeypatch.setattr(backend, "run_program", self.run)
        monkeypatch.setattr(backend.nfacct, "ensure_counter", lambda name: name in self.counters)
        monkeypatch.setattr(backend.nfacct, "read_counter", lambda name: 7)

    def book(self):
        self.books.append(Book())
        return self.books[-1]

    def count(self):
        return self.generation

    def run(self, argv, input=None, timeout_seconds=0.0, cancel=None):
        self.generation += argv[0].endswith("restore")
        self.programs.append(argv[0])
        return self.tools[6 if "ip6tables" in argv[0] else 4].run(argv, input, timeout_seconds)

    def build(self, families=tuple(Family), variant=Variant.NFT, state=None, **config):
        return backend.build(
            Surroundings(
                config=Config(**config),
                tools={family: Tools(family, variant) for family in families},
                ask=self.run,
                metrics=self.metrics,
                suspicions=Suspicions(Mailbox()),
                clock=lambda: 0.0,
                stop=self.stop,
                generation=self.count,
                state=state,
                place=("this boot", "cookie-1"),
            )
        )

    def serve(self, built):
        store = Store()
        for proxy in built.families:
            report = proxy.reconciler.run(store.take(), store, NodeContext("node", proxy.family))
            assert report.succeeded, report.detail

    def rules(self, chain, table="filter", version=4):
        return " ".join(self.tools[version].rules(table, chain))


@pytest.fixture
def world(monkeypatch, tmp_path):
    return World(monkeypatch, tmp_path)


def test_every_family_of_the_node_is_served(world):
    built = world.build()
    assert list(Family) == [proxy.family for proxy in built.families]
    world.serve(built)
    assert all("KUBE-SERVICES" in one.state()["nat"] for one in world.tools.values())


@pytest.mark.parametrize(("localhost", "expected"), [(True, "1\n"), (False, None)])
def test_node_ports_on_localhost_need_a_kernel_parameter(world, localhost, expected):
    world.build(localhost_nodeports=localhost)
    path = world.sysctls / LOCALNET
    assert expected == (path.read_text() if path.exists() else None)


def test_a_kernel_parameter_that_cannot_be_set_ends_the_start(world):
    (world.sysctls / LOCALNET).parent.rmdir()
    with pytest.raises(HostError, match="route_localnet"):
        world.build()


@pytest.mark.parametrize(
    ("liberal", "counted", "expected"),
    [
        pytest.param("0\n", False, (True, False), id="invalid packets are dropped"),
        pytest.param("0\n", True, (True, True), id="and counted where there is a counter"),
        pytest.param("1\n", True, (False, False), id="not where conntrack is liberal"),
    ],
)
def test_invalid_packets(world, liberal, counted, expected):
    (world.sysctls / LIBERAL).write_text(liberal)
    world.counters = {"ct_state_invalid_dropped_pkts"} if counted else set()
    world.serve(world.build([Family.IPV4]))
    rules = world.rules("KUBE-FORWARD")
    assert expected == ("INVALID" in rules, "--nfacct-name" in rules)


def test_the_mark_is_the_configured_bit(world):
    world.serve(world.build(masquerade_bit=3))
    assert "0x8" in world.rules("KUBE-MARK-MASQ", "nat")


def test_counters_are_shown(world):
    world.build()
    name = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total"
    assert 7 == world.metrics.registry.get_sample_value(name)


@pytest.mark.parametrize(
    ("listed", "books"),
    [
        pytest.param((), 0, id="all addresses serve node ports"),
        pytest.param(("192.0.2.0/24",), 1, id="some do"),
    ],
)
def test_addresses_are_followed_where_they_matter(world, listed, books):
    built = world.build(nodeport_addresses=listed)
    assert books == len(world.books)
    built.start(print)
    built.close()
    assert books * [[print, "stopped"]] == [book.calls for book in world.books]
    for proxy in built.families:
        assert (("192.0.2.10",) if books else None) == (proxy.addresses and proxy.addresses())


def test_a_wait_for_the_lock_is_counted(world):
    built = world.build([Family.IPV4])
    world.tools[4].locked = True
    asked = []

    def locked_twice(argv, *rest, run=world.run, **more):
        asked.append(argv)
        if len(asked) == 3:  # what is there, and a try
            world.tools[4].locked = False
        return run(argv, *rest, **more)

    built.families[0].dataplane._run = locked_twice
    world.serve(built)
    waited, failed = (
        world.metrics.registry.get_sample_value(name, {"ip_family": "IPv4"})
        for name in (
            "pykubeproxy_xtables_lock_wait_seconds_total",
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
        )
    )
    assert (2 * LOCK_SECONDS, 2) == (waited, failed)


# --- over a restart ---


@pytest.mark.parametrize(
    ("variant", "happens", "expected"),
    [
        pytest.param(Variant.NFT, 0, 0, id="nobody changed anything: nothing is read"),
        pytest.param(Variant.NFT, 1, 2, id="somebody did: it is read"),
        pytest.param(Variant.LEGACY, 0, 2, id="legacy: nobody knows, it is read"),
    ],
)
def test_a_restart_goes_on_where_the_last_run_ended(world, tmp_path, variant, happens, expected):
    state = StateDirectory(tmp_path / "state")
    built = world.build(variant=variant, state=state)
    world.serve(built)
    assert all(proxy.reconciler.learn() for proxy in built.families)
    # A change of one family is no change by others for the other one.
    assert all(proxy.reconciler.learn() for proxy in built.families)
    names = {f"iptables-{family}-{variant}-cookie-1" for family in Family}
    assert names == {path.name for path in (tmp_path / "state").iterdir()}
    assert all(map(backend.is_state_file, names))

    world.generation += happens
    world.programs.clear()
    world.metrics = Metrics()
    world.serve(world.build(variant=variant, state=state))
    assert expected == sum(program.endswith("-save") for program in world.programs)
    assert not [program for program in world.programs if program.endswith("-restore")]


def test_other_files_are_not_ours():
    assert not backend.is_state_file("ipvs")
