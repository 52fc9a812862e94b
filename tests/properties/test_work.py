"""The work of a pass follows what changed, not how many Services there are.

The real loop, reconciler, compiler and what follows from a pass, over the strict stand-in of the
tools. Work is what the counters of `pykubeproxy.metrics` say, and the lines of our own code that
run: a walk over all Services would show as thousands of them, even where it writes nothing.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path
from threading import Event

import pytest
from prometheus_client.exposition import generate_latest

import pykubeproxy
from pykubeproxy import reactions as reactions_module
from pykubeproxy.config import Config
from pykubeproxy.host.conntrack import Removed
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.objects import rules_by_table
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.loop import FamilyProxy, SyncLoop
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Kind, ObjectKey
from pykubeproxy.reactions import FlowCleaner, Reactions
from pykubeproxy.serve.answers import health
from pykubeproxy.serve.health import now
from pykubeproxy.serve.status import Status
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.source import Gone, Put, Replaced
from tests.build import endpoint, node, port, service, slice_, slice_port
from tests.fakes.xtables import Fault, Xtables

FEW, SOME, MANY = 10, 700, 2000
"""Services: with some and with many of them, shared chains are trees."""
PACKAGE = str(Path(pykubeproxy.__file__).parent)
KINDS = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})


class Ports:
    """Stands in for the responders at health check node ports; counts what it is told of."""

    told = 0

    def sync(self, wanted):
        self.told += len(wanted)

    def update(self, changes):
        self.told += len(changes)


class Published:
    """Stands in for the health server."""

    def publish(self, status):
        self.status = status


class Node:
    """The program on a node with so many Services, without its threads."""

    def __init__(self, services):
        self.now = 1000.0
        self.tools = Xtables()
        self.metrics = Metrics()
        self.health = Published()
        self.ports = Ports()
        self.happened = []
        self.cleaner = FlowCleaner(self.metrics, lambda: self.now)
        self.reactions = Reactions(
            self.metrics, self.health, Status(60.0), lambda *_: self.ports, self.cleaner,
            self.happened.append,
        )  # fmt: skip
        dataplane = XtablesDataplane(
            Tools(Family.IPV4, Variant.NFT), lambda seconds: None, Event(), runner=self.tools
        )
        compiler = IptablesCompiler(
            XtablesSettings(
                masquerade_mark=0x4000,
                random_fully=True,
                localhost_nodeports=True,
                drop_invalid=True,
                count_invalid=False,
                count_localhost=False,
            )
        )
        reconciler = Reconciler(
            Family.IPV4, compiler, dataplane, lambda: self.now, counts_of=rules_by_table
        )
        self.mailbox = Mailbox()
        self.loop = SyncLoop(
            Config(),
            "node",
            KINDS,
            self.mailbox,
            [FamilyProxy(Family.IPV4, reconciler, dataplane)],
            self.reactions,
            lambda: self.now,
            Event(),
        )
        both = [world(n) for n in range(services)]
        self.mailbox.put(Replaced(Kind.NODE, (node(),)))
        self.mailbox.put(Replaced(Kind.ENDPOINT_SLICE, tuple(slices for _, slices in both)))
        self.mailbox.put(Replaced(Kind.SERVICE, tuple(svc for svc, _ in both)))
        self.loop.step()
        self.work = self.counted()

    def counted(self):
        """What was done so far, by name, labels other than the kind added up."""
        found = {"runs": self.tools.calls["iptables-restore"], "ports": self.ports.told}
        for family in self.metrics.registry.collect():
            if family.name == "pykubeproxy_conntrack_deletions":
                continue  # of a thread of its own
            if family.type == "counter" and family.name.startswith("pykubeproxy_"):
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        name = family.name.removeprefix("pykubeproxy_")
                        name += sample.labels.get("kind", "")
                        found[name] = found.get(name, 0) + int(sample.value)
        return found

    def does(self, *events):
        """The work of one pass for *events*: what of it there was, and lines of our code."""
        for event in events:
            self.mailbox.put(event)
        self.now += 4.0  # below what it takes to read the kernel back when it is quiet
        steps = counted_steps(self.loop.step)
        before, self.work = self.work, self.counted()
        done = {name: n - before.get(name, 0) for name, n in self.work.items()}
        return {name: n for name, n in done.items() if n}, steps

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, {"ip_family": "IPv4", **labels})


def counted_steps(call):
    """How many lines of the program run in *call*, each turn of a loop counted."""
    steps = 0

    def follow(frame, event, argument):
        nonlocal steps
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        steps += event == "line"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        call()
    finally:
        sys.settrace(before)
    return steps


HTTP = [slice_port(8080, "http")]


def address(n):
    return f"10.{96 + n // 65536}.{n // 256 % 256}.{n % 256}"


def world(n):
    """A cluster IP, node port, UDP or load balancer Service with a health check, in turn."""
    name = f"s{n}"
    pods = [endpoint(f"10.244.{n // 250}.{n % 250 + 1}"), endpoint("10.245.0.1", node="node")]
    kind = n % 4
    if kind == 0:
        numbers = [port(53, "dns", "UDP")]
        return (
            service(name, cluster_ip=address(n), ports=numbers),
            slice_(name, *pods, ports=[slice_port(53, "dns", "UDP")]),
        )
    fields = {}
    numbers = [port(80, "http")]
    if kind == 1:
        numbers = [port(80, "http", node_port=30000 + n)]
    if kind == 2:
        fields = {
            "type": "LoadBalancer",
            "external_policy": "Local",
            "vips": [f"203.0.{n // 250}.{n % 250 + 1}"],
            "health_check_node_port": 34000 + n,
        }
    return (
        service(name, cluster_ip=address(n), ports=numbers, **fields),
        slice_(name, *pods, ports=HTTP),
    )


def grown(n):
    """Its endpoints, and one more."""
    held = world(n)[1]
    more = tuple(
        endpoint(address, node=where)
        for address, where in (
            (f"10.244.{n // 250}.{n % 250 + 1}", None),
            ("10.245.0.1", "node"),
            ("10.245.0.2", "node"),
        )
    )
    return slice_(f"s{n}", *more, ports=held.ports)


@lru_cache
def nodes():
    """One node with few Services and one with many; every test leaves them as they were."""
    return Node(FEW), Node(MANY)


PUT_ENDPOINTS = (Put(Kind.ENDPOINT_SLICE, grown(5)),)
TAKE_ENDPOINTS = (Put(Kind.ENDPOINT_SLICE, world(5)[1]),)
NEW = (
    service("new", cluster_ip="10.111.1.1", ports=[port(80, "http")]),
    slice_("new", endpoint("10.245.9.9"), endpoint("10.245.9.8"), ports=HTTP),
)
ADD = (Put(Kind.SERVICE, NEW[0]), Put(Kind.ENDPOINT_SLICE, NEW[1]))
REMOVE = (
    Gone(Kind.SERVICE, ObjectKey("default", "new")),
    Gone(Kind.ENDPOINT_SLICE, ObjectKey("default", "new-1")),
)


def changed(n):
    """The endpoints of one Service change and change back: the work of both passes."""

    def work(node):
        there, back = (Put(Kind.ENDPOINT_SLICE, s) for s in (grown(n), world(n)[1]))
        return node.does(there), node.does(back)

    return work


@pytest.mark.parametrize(
    "n",
    [
        pytest.param(3, id="cluster IP"),
        pytest.param(5, id="node port"),
        pytest.param(6, id="load balancer, Local"),
    ],
)
def test_an_endpoint_change_takes_the_same_at_any_size(n):
    (few, few_back), (many, many_back) = map(changed(n), nodes())
    assert few[0] | bytes_of(many) == many[0]
    assert few_back[0] | bytes_of(many_back) == many_back[0]
    assert 1 == many[0]["services_decided"]
    assert 15 >= many[0]["sent_lines"]
    assert 1 == many[0]["runs"] == many[0]["transactions"]


def bytes_of(done):
    """Names are longer where there are more Services, and comments shorter."""
    return {"sent_bytes": done[0]["sent_bytes"]}


@pytest.mark.parametrize("n", [3, 4, 5, 6], ids=["cluster IP", "UDP", "node port", "Local"])
def test_an_endpoint_change_visits_nothing_else(n):
    few, many = map(changed(n), nodes())
    assert_same_steps(few[0], many[0])
    assert_same_steps(few[1], many[1])


WALKS = []
"""Where a `Walked` was walked."""


class Walked(dict):
    """A mapping that tells when it is walked as a whole, in C as well (``set(mapping)``)."""

    def _walk(self):
        caller = sys._getframe(2)
        WALKS.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")

    def __iter__(self):
        self._walk()
        return super().__iter__()

    def keys(self):
        self._walk()
        return super().keys()

    def values(self):
        self._walk()
        return super().values()

    def items(self):
        self._walk()
        return super().items()


def watch_mappings(part, seen):
    """Make every mapping in *part* that has an entry for each Service a `Walked`."""
    if id(part) in seen or not type(part).__module__.startswith("pykubeproxy."):
        return 0
    seen.add(id(part))
    found = 0
    for name, value in list(vars(part).items()) if hasattr(part, "__dict__") else ():
        if type(value) is dict and len(value) >= MANY / 4:
            setattr(part, name, Walked(value))
            found += 1
        found += watch_mappings(value, seen)
    return found


def test_no_pass_walks_what_is_kept_of_all_services():
    node_ = Node(MANY)
    reconciler, dataplane = (
        getattr(node_.loop._families[0], part) for part in ("reconciler", "dataplane")
    )
    seen = set()
    assert 6 <= sum(watch_mappings(part, seen) for part in (node_.loop, reconciler, dataplane))
    WALKS.clear()
    for n in (3, 4, 5, 6):
        changed(n)(node_)
    node_.does(*ADD)
    node_.does(*REMOVE)
    assert [] == WALKS


def assert_same_steps(few, many):
    """A walk over all Services would be two thousand more, at least."""
    assert abs(many[1] - few[1]) < (MANY - FEW) / 2


def test_a_service_is_added_and_removed_with_the_same_work_at_any_size():
    """Where shared chains are trees a few more lines are written than where they are lists."""
    few, some, many = (
        (node_.does(*ADD), node_.does(*REMOVE)) for node_ in (nodes()[0], Node(SOME), nodes()[1])
    )
    for there, between, here in zip(many, some, few, strict=True):
        alike = ("services_decided", "routes_compiled", "objects_compiled", "runs", "transactions")
        assert {n: here[0].get(n) for n in alike} == {n: there[0].get(n) for n in alike}
        assert 60 >= there[0]["sent_lines"]
        assert 20 >= there[0]["chains_written"]
        assert abs(there[1] - between[1]) < (MANY - SOME) / 2
    assert 1 == many[0][0]["services_decided"]


def test_an_edit_without_consequences_starts_nothing():
    for node_ in nodes():
        done, _ = node_.does(Put(Kind.SERVICE, world(3)[0]))
        assert {} == done


def test_an_edit_that_changes_no_rule_writes_nothing():
    """A port of the endpoints that no port of the Service has."""
    held = world(3)[1]
    edited = slice_("s3", *held.endpoints, ports=[*HTTP, slice_port(9999, "unused")])
    for node_ in nodes():
        there, _ = node_.does(Put(Kind.ENDPOINT_SLICE, edited))
        back, _ = node_.does(Put(Kind.ENDPOINT_SLICE, held))
        expected = {"services_decided": 1, "routes_compiled": 1, "objects_compiled": 4}
        assert [expected, expected] == [there, back]


def test_a_scrape_an_answer_an_event_and_a_search_for_flows_are_no_work(monkeypatch):
    monkeypatch.setattr(reactions_module, "remove_stale", lambda *_: Removed(9, 3, complete=True))
    node_ = Node(FEW)
    node_.does(*ADD)
    before, calls = node_.counted(), dict(node_.tools.calls)
    generate_latest(node_.metrics.registry)
    health(node_.health.status, now(), with_node=True)
    node_.metrics.health_answered("healthz", 200)
    node_.reactions.port_refused(NEW[0].key, 30000, "in use")
    node_.cleaner.start()
    node_.cleaner.stop()
    assert (before, calls) == (node_.counted(), dict(node_.tools.calls))


def rules_of(node_):
    """In total and of the last pass, by table, as kube-proxy tells them."""
    name = "kubeproxy_sync_proxy_rules_iptables"
    return {
        table: tuple(node_.value(f"{name}_{which}", table=table) for which in ("total", "last"))
        for table in ("filter", "nat")
    }


def held(node_, table):
    """The rules of a table of the kernel."""
    return sum(map(len, node_.tools.tables[table].chains.values()))


def test_rules_in_total_are_those_that_the_kernel_holds():
    node_ = Node(FEW)
    assert {t: (held(node_, t), held(node_, t)) for t in ("filter", "nat")} == rules_of(node_)
    before = held(node_, "nat")
    node_.does(*ADD)
    # The rule in KUBE-SERVICES, two that choose, and two for each of two endpoints.
    assert (before + 7, 7) == rules_of(node_)["nat"] == (held(node_, "nat"), 7)
    assert (held(node_, "filter"), 0) == rules_of(node_)["filter"]
    node_.does(*REMOVE)
    assert (before, 0) == rules_of(node_)["nat"] == (held(node_, "nat"), 0)


def test_rules_of_a_pass_that_failed_stay_in_the_total():
    """What is to be counts, as in kube-proxy, which counts before it writes."""
    node_ = Node(FEW)
    total = rules_of(node_)["nat"][0]
    node_.tools.fail(Fault.DIE_BEFORE)
    node_.does(*ADD)
    assert (total + 7, 0) == rules_of(node_)["nat"]
