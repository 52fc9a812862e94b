"""ipvs mode put together, on a fake kernel in place of sockets, sysctls and programs."""

from __future__ import annotations

from threading import Event

import pytest

from pykubeproxy.backend import Surroundings
from pykubeproxy.config import Config, IpvsConfig
from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.host.addresses import DeviceNotice
from pykubeproxy.host.exec import Finished
from pykubeproxy.iptables import backend as iptables
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs import backend
from pykubeproxy.loop import Suspicions
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.sync.store import Store
from pykubeproxy.watch.mailbox import Mailbox
from tests.build import endpoint, service, slice_
from tests.fakes.ipvs import DEVICE, FakeKernel

DUAL = service("web", cluster_ips=["10.96.0.1", "fd00:96::1"], ip_families=["IPv4", "IPv6"])
PODS = slice_("web", endpoint("10.244.0.1")), slice_("web", endpoint("fd00::1"), name="web-6")


class Book:
    """Addresses of a node, and notices when the test says so."""

    def __init__(self, device=""):
        self.device = device
        self.known = {
            Family.IPV4: ("127.0.0.1", "192.0.2.10"),
            Family.IPV6: ("2001:db8:2::10", "::1", "fe80::1"),
        }
        self.stopped = 0

    def start(self, on_change, on_device=None):
        self.on_change, self.on_device = on_change, on_device

    def stop(self):
        self.stopped += 1

    def addresses(self, family):
        return self.known[family]


class World:
    def __init__(self, monkeypatch, tmp_path, *, device=True):
        self.kernel = FakeKernel(device=device)
        self.tools = {version: self.kernel.xtables(version) for version in (4, 6)}
        self.sysctls = tmp_path
        self.suspicions = Suspicions(Mailbox())
        self.timeouts = []
        self.given_back = 0
        self.no_routes = None
        self.books = []
        monkeypatch.setattr(sysctls, "ROOT", tmp_path)
        for name in ("net/ipv4/vs", "net/ipv4/conf/all"):
            (tmp_path / name).mkdir(parents=True)
        monkeypatch.setattr(backend, "Netlink", self.kernel.channel)
        monkeypatch.setattr(backend, "AddressBook", self.book)
        monkeypatch.setattr(
            backend, "apply_timeouts", lambda *seconds: self.timeouts.append(seconds)
        )
        monkeypatch.setattr(backend, "give_back", self.give_back)
        monkeypatch.setattr(backend, "ensure_device", lambda: self.ensure(self.kernel))
        monkeypatch.setattr(iptables, "run_program", self.run)
        self.ensure = ensure_device

    def book(self, device=""):
        self.books.append(Book(device))
        return self.books[-1]

    def give_back(self, connect):
        self.given_back += 1
        if self.no_routes is not None:
            raise self.no_routes

    def run(self, argv, input=None, timeout_seconds=0.0, cancel=None):
        return self.tools[6 if "ip6tables" in argv[0] else 4].run(argv, input, timeout_seconds)

    def surroundings(self, families=tuple(Family), **config):
        return Surroundings(
            config=Config(**config),
            tools={family: Tools(family, Variant.NFT) for family in families},
            ask=self.run,
            metrics=Metrics(),
            suspicions=self.suspicions,
            clock=lambda: 0.0,
            stop=Event(),
        )

    def build(self, *args, **config):
        return backend.build(self.surroundings(*args, **config))


ensure_device = backend.ensure_device


@pytest.fixture
def world(monkeypatch, tmp_path):
    return World(monkeypatch, tmp_path)


def serve(built, *objects):
    store = Store()
    for obj in objects:
        store.put(obj)
    for proxy in built.families:
        node = NodeContext("node", proxy.family, addresses=tuple(proxy.addresses()))
        assert proxy.reconciler.run(store.take(), store, node).succeeded


# --- building ---


def test_every_family_of_the_node_is_served(world):
    built = world.build()
    assert list(Family) == [proxy.family for proxy in built.families]
    assert all(proxy.every_address for proxy in built.families)
    serve(built, DUAL, *PODS)
    assert {
        "TCP 10.96.0.1:80": {"10.244.0.1:8080": 1},
        "TCP [fd00:96::1]:80": {"[fd00::1]:8080": 1},
    } == world.kernel.virtuals()
    assert ["10.96.0.1", "fd00:96::1"] == world.kernel.bound()
    assert all("KUBE-SERVICES" in one.state()["nat"] for one in world.tools.values())


@pytest.mark.parametrize("refusal", [None, PermissionError(1, "Operation not permitted")])
def test_what_another_mode_began_is_given_back(world, refusal):
    world.no_routes = refusal
    serve(world.build(), DUAL, *PODS)
    assert 1 == world.given_back


def test_one_family_may_be_all_there_is(world):
    (proxy,) = world.build([Family.IPV6]).families
    assert Family.IPV6 is proxy.family


def test_the_kernel_is_set_up_first(world):
    world.build(ipvs=IpvsConfig(strict_arp=True, tcp_timeout_seconds=60, udp_timeout_seconds=5))
    written = {path.name: path.read_text() for path in world.sysctls.rglob("*") if path.is_file()}
    assert {"conntrack": "1\n", "arp_ignore": "1\n", "ip_forward": "1\n"}.items() <= written.items()
    assert [(60, 0, 5)] == world.timeouts


def test_a_kernel_parameter_that_cannot_be_set_ends_the_start(world):
    (world.sysctls / "net/ipv4/vs").rmdir()
    with pytest.raises(HostError, match="vs/conntrack") as refused:
        world.build()
    assert "modprobe ip_vs" in str(refused.value)


def test_sockets_that_cannot_be_opened_end_the_start(world, monkeypatch):
    def refused(protocol, read_bytes=0):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(backend, "Netlink", refused)
    with pytest.raises(HostError, match="NET_ADMIN"):
        world.build()


# --- what the configuration means ---


def test_the_scheduler_and_excluded_nets_are_those_configured(world):
    settings = IpvsConfig(scheduler="wlc", exclude_cidrs=("10.96.0.0/16",))
    serve(world.build(ipvs=settings), DUAL, *PODS)
    assert {"wlc"} == {one.scheduler for one in world.kernel.servers.services.values()}
    serve(world.build(ipvs=settings))
    assert ["TCP 10.96.0.1:80"] == list(world.kernel.virtuals())


def test_the_mark_is_the_configured_bit(world):
    serve(world.build(masquerade_bit=3))
    (rule,) = world.tools[4].rules("nat", "KUBE-MARK-MASQ")
    assert "0x8" in rule


@pytest.mark.parametrize(("version", "expected"), [("v1.8.9", True), ("v1.4.21", False)])
def test_ports_are_randomized_where_the_tools_can(world, version, expected):
    around = world.surroundings()
    world.run_ask = Finished(0, f"iptables {version} (nf_tables)\n".encode(), b"")
    built = backend.build(
        Surroundings(
            around.config, around.tools, lambda *_: world.run_ask, around.metrics,
            around.suspicions, around.clock, around.stop,
        )
    )  # fmt: skip
    serve(built)
    assert expected is any(
        "--random-fully" in r for r in world.tools[4].rules("nat", "KUBE-POSTROUTING")
    )


# --- addresses ---


def test_loopback_and_link_local_addresses_are_not_the_nodes(world):
    found = {proxy.family: tuple(proxy.addresses()) for proxy in world.build().families}
    assert {Family.IPV4: ("192.0.2.10",), Family.IPV6: ("2001:db8:2::10",)} == found


def test_the_device_is_followed_apart_from_the_node(world):
    built = world.build()
    changes = []
    built.start(lambda: changes.append(1))
    (book,) = world.books
    assert DEVICE == book.device
    serve(built, DUAL, *PODS)
    book.on_change()
    assert [1] == changes
    assert set() == world.suspicions.take()
    book.on_device([DeviceNotice(Family.IPV4, "10.96.0.1", True)])
    assert set() == world.suspicions.take()
    book.on_device([DeviceNotice(Family.IPV6, "fd00:96::1", False)])
    assert {Family.IPV6} == world.suspicions.take()


def test_notices_of_a_family_that_is_not_served_are_nobodys_business(world):
    world.build([Family.IPV4]).start(lambda: None)
    world.books[0].on_device([DeviceNotice(Family.IPV6, "fd00:96::1", False)])
    assert set() == world.suspicions.take()


def test_a_missing_device_is_made(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, device=False)
    serve(world.build(), DUAL, *PODS)
    assert ["10.96.0.1", "fd00:96::1"] == world.kernel.bound()


def test_a_link_of_another_kind_with_that_name_is_an_error(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, device=False)
    world.kernel.links.add("kube-ipvs0", "veth")
    built = world.build([Family.IPV4])
    with pytest.raises(HostError, match="is of type veth where a dummy is needed"):
        built.families[0].dataplane.observe()


def test_a_device_that_does_not_stay_is_an_error(monkeypatch, tmp_path):
    world = World(monkeypatch, tmp_path, device=False)
    world.ensure = lambda kernel: False
    built = world.build([Family.IPV4])
    with pytest.raises(HostError, match="does somebody delete it"):
        built.families[0].dataplane.observe()


# --- looking beside, and the end ---


def test_damage_is_looked_for_beside_and_found(world):
    built = world.build([Family.IPV4])
    serve(built, DUAL, *PODS)
    world.kernel.servers.services.clear()
    told = Event()
    add = world.suspicions.add
    world.suspicions.add = lambda family: (add(family), told.set())
    (proxy,) = world.build([Family.IPV4]).families
    serve(built, DUAL, *PODS)
    store = Store()
    proxy.reconciler.run(store.take(), store, NodeContext("node", Family.IPV4))
    world.kernel.sets_table.sets.clear()
    proxy.dataplane.intact()
    assert told.wait(30)
    assert not proxy.dataplane.intact()


def test_a_module_that_is_loaded_anew_is_set_up_anew(world):
    built = world.build([Family.IPV4], ipvs=IpvsConfig(tcp_timeout_seconds=60))
    serve(built, DUAL, *PODS)
    (world.sysctls / "net/ipv4/vs/conntrack").write_text("0\n")
    world.kernel.servers.services.clear()
    world.kernel.family_id += 1
    (proxy,) = built.families
    proxy.reconciler.distrust()
    serve(built, DUAL, *PODS)
    assert ["TCP 10.96.0.1:80"] == list(world.kernel.virtuals())
    assert "1\n" == (world.sysctls / "net/ipv4/vs/conntrack").read_text()
    assert [(60, 0, 0)] * 2 == world.timeouts


def test_the_end_closes_everything(world):
    built = world.build()
    built.start(lambda: None)
    built.close()
    assert 1 == world.books[0].stopped
    with pytest.raises(HostError):
        built.families[0].dataplane.observe()
