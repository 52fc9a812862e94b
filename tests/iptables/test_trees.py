"""Shared chains as trees over the strict fake: what a new start and a repair write."""

from __future__ import annotations

from itertools import count
from threading import Event

import pytest

from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.index import Sizes
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.names import INDEX_PREFIX, index_depth
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.sync.reconciler import Reconciler, Report
from pykubeproxy.sync.store import Store
from tests.build import endpoint, port, service, slice_, slice_port
from tests.fakes.xtables import Xtables

NODE = NodeContext("node", Family.IPV4, address="192.0.2.1")
SERVICES = 60


class Proxy:
    """One process over a kernel that outlives it."""

    def __init__(self, kernel: Xtables, sizes: Sizes | None = None) -> None:
        self.kernel = kernel
        self.store = Store()
        ticks = count()
        self.reconciler = Reconciler(
            Family.IPV4,
            IptablesCompiler(XtablesSettings()),
            XtablesDataplane(
                Tools(Family.IPV4, Variant.NFT),
                lambda _: None,
                Event(),
                kernel,
                sizes=sizes or Sizes(above=0, leaf_rules=4),
            ),
            lambda: float(next(ticks)),
        )
        for n in range(SERVICES):
            self.put(n)

    def put(self, n: int) -> None:
        ip = f"10.96.{n % 7}.{n * 37 % 250 + 1}"
        self.store.put(
            service(f"s{n}", cluster_ip=ip, ports=[port(80, "http", node_port=30000 + n * 7)])
        )
        self.store.put(slice_(f"s{n}", endpoint("10.1.0.1"), ports=[slice_port(8080, "http")]))

    def drop(self, n: int) -> None:
        self.store.drop(Kind.SERVICE, ObjectKey("default", f"s{n}"))

    def sync(self) -> Report:
        report = self.reconciler.run(self.store.take(), self.store, NODE)
        assert report.succeeded, report.detail
        assert [] == report.quarantined
        return report

    def chains(self) -> list[str]:
        """Of trees in nat, from the top down."""
        names = [n for n in self.kernel.table("nat").chains if n.startswith(INDEX_PREFIX)]
        return sorted(names, key=lambda name: index_depth(name) or 0)

    def restore(self, *lines: str) -> None:
        text = "\n".join(["*nat", *lines, "COMMIT", ""]).encode()
        assert self.kernel.run(["iptables-restore", "--noflush"], text).exit_status == 0


@pytest.fixture
def proxy() -> Proxy:
    proxy = Proxy(Xtables())
    proxy.sync()
    assert len(proxy.chains()) > 40
    return proxy


def test_a_new_start_finds_the_trees_of_the_one_before(proxy: Proxy) -> None:
    before = proxy.kernel.state()
    report = Proxy(proxy.kernel).sync()
    assert 0 == report.lines
    assert before == proxy.kernel.state()


def test_a_new_start_writes_what_changed_meanwhile(proxy: Proxy) -> None:
    second = Proxy(proxy.kernel)
    second.put(SERVICES)
    second.drop(7)
    report = second.sync()
    assert 0 < report.lines < 120
    fresh = Proxy(Xtables())
    fresh.put(SERVICES)
    fresh.drop(7)
    fresh.sync()
    assert fresh.kernel.state() == second.kernel.state()


@pytest.mark.parametrize(
    ("sizes", "some"),
    [
        pytest.param(Sizes(above=None), False, id="trees become lists"),
        pytest.param(Sizes(above=0, leaf_rules=2), True, id="trees become others"),
    ],
)
def test_a_new_start_with_another_setting_leaves_no_chain_of_the_old_trees(
    proxy: Proxy, sizes: Sizes, some: bool
) -> None:
    before = set(proxy.chains())
    second = Proxy(proxy.kernel, sizes)
    second.sync()
    fresh = Proxy(Xtables(), sizes)
    fresh.sync()
    assert set(fresh.chains()) == set(second.chains()) != before
    assert some == bool(second.chains())


@pytest.mark.parametrize(
    ("pick", "most"),
    [
        pytest.param(-1, 30, id="a leaf"),
        pytest.param(0, 400, id="a chain below the top"),
    ],
)
@pytest.mark.parametrize("learnt", [False, True], ids=["by its text", "by its print"])
def test_what_somebody_edited_is_written_again(
    proxy: Proxy, pick: int, most: int, learnt: bool
) -> None:
    before = proxy.kernel.state()
    if learnt:
        assert proxy.reconciler.learn()
    name = proxy.chains()[pick]
    proxy.restore(f"-I {name} -s 203.0.113.7 -j RETURN")
    proxy.reconciler.distrust()
    report = proxy.sync()
    assert 0 < report.lines < most
    assert before == proxy.kernel.state()


def test_an_edit_of_the_shared_chain_costs_its_tree_and_nothing_else(proxy: Proxy) -> None:
    before = proxy.kernel.state()
    proxy.restore("-I KUBE-NODEPORTS -s 203.0.113.7 -j RETURN")
    proxy.reconciler.distrust()
    proxy.sync()
    assert before == proxy.kernel.state()
    text = proxy.kernel.inputs[-1]
    assert ":KUBE-NODEPORTS" in text
    assert ":KUBE-SERVICES" not in text


def test_chains_that_somebody_else_left_by_such_a_name_go(proxy: Proxy) -> None:
    before = proxy.kernel.state()
    odd = f"{INDEX_PREFIX}020-AAAAAAAAAAAA"
    proxy.restore(f":{odd} - [0:0]", f"-A {odd} -j RETURN")
    proxy.reconciler.distrust()
    proxy.sync()
    assert before == proxy.kernel.state()


@pytest.mark.parametrize("learnt", [False, True], ids=["by its text", "by its print"])
def test_where_list_and_tree_are_both_right_a_lost_top_leaves_no_chain_behind(
    learnt: bool,
) -> None:
    """The shared chain is written anew as a list then, and what the old tree had goes."""
    proxy = Proxy(Xtables(), Sizes(above=SERVICES - 1, leaf_rules=4))
    proxy.sync()
    proxy.drop(3)
    proxy.sync()
    assert proxy.chains()
    if learnt:
        assert proxy.reconciler.learn()
    proxy.restore("-F KUBE-SERVICES", "-F KUBE-NODEPORTS")
    proxy.reconciler.distrust()
    proxy.sync()
    proxy.drop(5)
    proxy.sync()
    fresh = Proxy(Xtables(), Sizes(above=None))
    fresh.drop(3)
    fresh.drop(5)
    fresh.sync()
    assert sorted(fresh.kernel.table("nat").chains) == sorted(proxy.kernel.table("nat").chains)


def test_a_destination_far_from_all_others_comes_and_goes(proxy: Proxy) -> None:
    """The tree begins higher with it: its old beginning becomes a chain, and none again."""
    before = proxy.kernel.state()
    proxy.store.put(
        service("far", cluster_ip="203.0.113.9", ports=[port(80, "http")]),
    )
    proxy.store.put(slice_("far", endpoint("10.1.0.1"), ports=[slice_port(8080, "http")]))
    assert 0 < proxy.sync().lines < 60
    proxy.store.drop(Kind.SERVICE, ObjectKey("default", "far"))
    proxy.sync()
    assert before == proxy.kernel.state()
