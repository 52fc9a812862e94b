"""What test_convergence.py says of iptables mode, for ipvs mode: on a kernel byte by byte.

The histories are the same, and so are the promises; here they hold for virtual servers, sets,
addresses and rules together.
"""

from __future__ import annotations

import errno
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import Kind, ObjectKey
from tests.build import endpoint, port, service, slice_, slice_port
from tests.fakes.xtables import Fault
from tests.ipvs.rig import NOTHING_SENT, Proxy
from tests.properties.test_convergence import HISTORIES, deterministic

FIRST_NODE = NodeContext(
    "node", Family.IPV4, addresses=("192.0.2.1",), pod_traffic=PodCIDR("10.1.0.0/16")
)


class Played(Proxy):
    """A proxy that can be led through a history."""

    def __init__(self, kernel=None, rules=None):
        super().__init__(kernel=kernel, node=FIRST_NODE)
        if rules is not None:
            self.rules = rules
            self.restart()

    def step(self, what, value):
        if what == "sync":
            self.sync()
        elif what == "node":
            # In this mode the node has addresses, and one of the external ones is its own.
            own = ("192.0.2.1", "203.0.113.2") if value.zone == "b" else ("192.0.2.1",)
            self.node = replace(value, addresses=own)
        elif value is None:
            self.store.drop(*what)
        else:
            self.store.put(value)

    def play(self, history):
        for what, value in history:
            self.step(what, value)
        self.sync()
        return self

    def fail(self, dice, chance=0.1):
        """From now on refuse, break and lose some of what is sent."""

        def unlucky(kind, body):
            return dice.random() < chance / 3

        self.kernel.refuse(errno.ENOMEM, when=unlucky, times=None)
        self.kernel.break_socket(errno.ENOBUFS, when=unlucky, times=None)
        self.kernel.break_socket(errno.ECONNREFUSED, when=unlucky, times=None)
        for fault in (Fault.REFUSE, Fault.DIE_BEFORE, Fault.DIE_AFTER):
            self.rules.fail(fault, lambda *_: dice.random() < chance / 3, times=None)
        return self


def rebuilt(history):
    """What a proxy makes of the final objects alone."""
    final = {what: value for what, value in history if what != "sync"}
    proxy = Played()
    for what, value in final.items():
        if value is not None:
            proxy.step(what, value)
    proxy.sync()
    return proxy.state()


@deterministic(100)
@given(history=HISTORIES)
def test_any_history_equals_a_rebuild_from_the_final_objects(history):
    assert rebuilt(history) == Played().play(history).state()


# --- addresses that change hands ---

NAMES = "abcd"


@st.composite
def moves(draw):
    """One Service comes, moves to another address, or goes; addresses are fewer than Services."""
    name = draw(st.sampled_from(NAMES))
    if draw(st.integers(0, 3)) == 0:
        return (Kind.SERVICE, ObjectKey("default", name)), None
    moved = service(
        name,
        cluster_ip=f"10.96.0.{draw(st.integers(1, 2))}",
        ports=[port(80, "http")],
        external_ips=[f"203.0.113.{draw(st.integers(1, 2))}"],
        created=draw(st.sampled_from(["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])),
    )
    return (Kind.SERVICE, ObjectKey("default", name)), moved


@deterministic(60)
@given(history=st.lists(st.one_of(moves(), moves(), moves(), st.just(("sync", None))), max_size=15))
def test_addresses_may_change_hands(history):
    endpoints = [
        (
            (Kind.ENDPOINT_SLICE, ObjectKey("default", f"{name}-1")),
            slice_(name, endpoint(f"10.1.0.{number}"), ports=[slice_port(8080, "http")]),
        )
        for number, name in enumerate(NAMES, start=1)
    ]
    history = endpoints + history
    assert rebuilt(history) == Played().play(history).state()


# --- second passes, restarts, misfortune ---


@deterministic(40)
@given(history=HISTORIES)
def test_a_second_pass_sends_nothing(history):
    proxy = Played().play(history)
    proxy.forget_counts().sync()
    assert NOTHING_SENT == proxy.sent()


@deterministic(50)
@given(history=HISTORIES)
def test_a_restart_sends_nothing(history):
    proxy = Played().play(history)
    before = proxy.state()
    proxy.forget_counts().restart()
    assert proxy.sync().succeeded
    assert NOTHING_SENT == proxy.sent()
    assert before == proxy.state()


@deterministic(50)
@given(before=HISTORIES, after=HISTORIES)
def test_a_restart_takes_over_what_it_finds(before, after):
    first = Played().play(before)
    second = Played(first.kernel, first.rules).play(after)
    second.settle()
    assert rebuilt(after) == second.state()


@deterministic(60)
@given(history=HISTORIES, seed=st.integers(0, 1 << 30))
def test_with_failing_writes_it_still_converges(history, seed):
    proxy = Played().fail(random.Random(seed)).play(history).settle()
    assert rebuilt(history) == proxy.state()


@deterministic(40)
@given(before=HISTORIES, after=HISTORIES, seed=st.integers(0, 1 << 30))
def test_a_restart_in_the_middle_converges(before, after, seed):
    """The first process is killed in a pass, with some of it done; another one takes over."""
    first = Played().fail(random.Random(seed), chance=0.3).play(before)
    first.kernel.heal()
    first.rules.heal()
    second = Played(first.kernel, first.rules).play(before + after).settle()
    assert rebuilt(before + after) == second.state()


@deterministic(60)
@given(history=HISTORIES, dice=st.randoms(use_true_random=False))
def test_what_others_change_is_repaired_once_it_is_suspected(history, dice):
    proxy = Played().play(history)
    expected = proxy.state()
    vandalize(proxy, dice)
    proxy.reconciler.distrust()
    proxy.settle()
    assert expected == proxy.state()


def vandalize(proxy, dice):
    """Remove, add and edit some of everything."""
    kernel = proxy.kernel
    for key, one in list(kernel.servers.services.items()):
        match dice.randrange(5):
            case 0:
                del kernel.servers.services[key]
            case 1:
                one.destinations.clear()
            case 2:
                for dest in one.destinations.values():
                    dest.weight, dest.method = dice.choice([(0, 0), (3, 0), (1, 3)])
            case 3:
                one.scheduler, one.timeout = "wlc", 77
    for one in kernel.sets_table.sets.values():
        if dice.random() < 0.3:
            one.entries.clear()
    for address in kernel.bound():
        if dice.random() < 0.3:
            del kernel.links.named("kube-ipvs0").addresses[f"{address}/32"]
    kernel.links.named("kube-ipvs0").addresses["10.96.77.77/32"] = 0
    if dice.random() < 0.3:
        proxy.rules.tables.pop(dice.choice(["nat", "filter"]), None)


# --- the work of one change ---


@pytest.mark.parametrize("change", ["endpoint", "added", "removed", "address", "policy", "nothing"])
def test_the_messages_of_one_change_do_not_depend_on_the_number_of_services(change):
    assert work(change, 10) == work(change, 1000)


def work(change, number):
    """Services visited, messages, dumps and rule lines for one change among *number*."""
    proxy = Proxy()

    def web(n, **fields):
        spec = {"cluster_ip": f"10.96.{n >> 8}.{n & 255}", **fields}
        return service(f"s{n:04}", ports=[port(80, "http", node_port=30080 + n)], **spec)

    def pods(n, *hosts):
        return slice_(f"s{n:04}", *map(endpoint, hosts), ports=[slice_port(8080, "http")])

    for n in range(number):
        proxy.put(web(n, type="NodePort"), pods(n, "10.1.0.1", "10.1.0.2"))
    proxy.sync()
    proxy.forget_counts()
    match change:
        case "endpoint":
            proxy.put(pods(5, "10.1.0.1", "10.1.0.3"))
        case "added":
            proxy.put(web(2000), pods(2000, "10.1.0.1"))
        case "removed":
            proxy.drop("s0005")
        case "address":
            proxy.put(web(5, type="NodePort", external_ips=["203.0.113.1"]))
        case "policy":
            proxy.put(web(5, type="NodePort", affinity_seconds=60))
    report = proxy.sync()
    return report.services, Counter(proxy.sent()), Counter(proxy.kernel.dumps), proxy.rules.calls


# --- connections, and those who look ---


@deterministic(60)
@given(history=HISTORIES, dice=st.randoms(use_true_random=False), restarts=st.booleans())
def test_nobody_is_suspected_and_what_drains_is_gone_in_the_end(history, dice, restarts):
    """Connections come and end, time passes, all that looks after things looks."""
    proxy = Played()
    for what, value in history:
        proxy.step(what, value)
        for one in proxy.kernel.servers.services.values():
            for dest in one.destinations.values():
                dest.active, dest.inactive = dice.choice([(0, 0), (0, 0), (2, 1), (0, 3)])
        if what == "sync" and restarts and dice.random() < 0.3:
            proxy.restart()
            proxy.sync()
        proxy.now += dice.choice([0, 1, 20, 70])
        proxy.dataplane.tend(proxy.now)
        assert proxy.dataplane.intact()
    proxy.settle()
    proxy.now += 61
    for _ in range(3):
        proxy.now += 30
        proxy.dataplane.tend(proxy.now)
    assert proxy.dataplane.intact()
    assert 0 == proxy.suspicions
    forget_connections(proxy)
    assert rebuilt(history) == proxy.state()


def forget_connections(proxy):
    for one in proxy.kernel.servers.services.values():
        for dest in one.destinations.values():
            dest.active = dest.inactive = 0
