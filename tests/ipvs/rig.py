"""The parts of ipvs mode over a fake kernel, for tests of one part and of all together."""

from __future__ import annotations

from collections import Counter
from threading import Event

from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.ipvs.compile import IpvsCompiler, IpvsSettings
from pykubeproxy.ipvs.drain import Drain
from pykubeproxy.ipvs.kernel import IpvsDataplane
from pykubeproxy.ipvs.netfilter import set_types
from pykubeproxy.ipvs.node import ensure_device, find_device
from pykubeproxy.ipvs.objects import (
    BoundAddress,
    IPSet,
    Present,
    Real,
    SetEntry,
    SetType,
    Virtual,
    VirtualConfig,
)
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import Kind, ObjectKey, ServiceKey
from pykubeproxy.sync.outcome import Change, Transaction
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.fakes.ipvs import GENERIC, NETFILTER, ROUTE, FakeKernel

__all__ = [
    "NOTHING_SENT",
    "RR",
    "A",
    "B",
    "Parts",
    "Proxy",
    "Rig",
    "bound",
    "change",
    "entry",
    "picture",
    "put",
    "real",
    "tcp",
    "transaction",
    "udp",
]

A, B = ServiceKey("default", "a"), ServiceKey("default", "b")
RR = VirtualConfig("rr")
NODE = NodeContext("node", Family.IPV4)


# --- objects ---


def tcp(address, port=80):
    return Virtual(Protocol.TCP, address, port)


def udp(address, port=53):
    return Virtual(Protocol.UDP, address, port)


def real(virtual, number, port=8080):
    host = f"fd00:244::{number}" if ":" in virtual.address else f"10.244.0.{number}"
    return Real(virtual, host, port)


def entry(name, text):
    return SetEntry(name, text)


def bound(address):
    return BoundAddress(address)


def put(*keys):
    """Each key with the value that it has when all is well."""
    types = {**set_types(Family.IPV4), **set_types(Family.IPV6)}
    values = {
        Virtual: lambda key: RR,
        Real: lambda key: 1,
        IPSet: lambda key: types.get(key, SetType("hash:ip")),
        SetEntry: lambda key: Present(),
        BoundAddress: lambda key: Present(),
    }
    return {key: values[type(key)](key) for key in keys}


def change(owner, puts=None, drops=None, old=None):
    return Change(owner, dict(puts or {}), dict(drops or {}), dict(old or {}))


def transaction(*changes):
    return Transaction("a test", changes)


# --- parts ---


class Rig:
    """A kernel, a clock, and parts that are made anew at each `restart`."""

    def __init__(
        self,
        family=Family.IPV4,
        kernel=None,
        *,
        exclude_cidrs=(),
        drain_seconds=30.0,
        scheduler="rr",
    ):
        self.family = family
        self.kernel = kernel or FakeKernel()
        self.rules = self.kernel.xtables(4 if family is Family.IPV4 else 6, nft=True)
        self.now = 1000.0
        self.suspicions = 0
        self.later = None
        self.exclude_cidrs = exclude_cidrs
        self.drain_seconds = drain_seconds
        self.scheduler = scheduler
        self.restart()

    def restart(self):
        """Forget all that a process forgets when it ends."""
        generic, self.route = self.kernel.channel(GENERIC), self.kernel.channel(ROUTE)
        self.drain = Drain(self.drain_seconds)
        self.servers = Servers(
            self.family,
            generic,
            self.kernel.channel(GENERIC),
            lambda: generic.family_id("IPVS"),
            self.scheduler,
            self.exclude_cidrs,
            self.drain,
            lambda: self.now,
        )
        self.sets = Sets(self.family, self.kernel.channel(NETFILTER))
        self.addresses = BoundAddresses(self.family, self.route, self.device)
        tools = Tools(self.family, Variant.NFT)
        self.written = XtablesDataplane(tools, lambda seconds: None, Event(), self.rules)
        self.dataplane = IpvsDataplane(
            self.servers,
            self.sets,
            self.addresses,
            self.written,
            self.suspect,
            lookers=tuple(map(self.kernel.channel, (GENERIC, NETFILTER, ROUTE))),
            beside=self.beside,
        )

    def device(self):
        device = find_device(self.route)
        if device is None:
            ensure_device(self.kernel)
            device = find_device(self.route)
        return device.index

    def beside(self, job):
        """What another thread does elsewhere, at once unless `later` is a list for such jobs."""
        if self.later is None:
            job()
        else:
            self.later.append(job)

    def suspect(self):
        self.suspicions += 1

    def forget_counts(self):
        """Count messages and tool runs from now on."""
        self.kernel.written.clear()
        self.kernel.messages.clear()
        self.kernel.dumps.clear()
        self.rules.calls.clear()
        self.rules.lines = 0
        return self

    def sent(self):
        """Messages that modify, by protocol, and lines for iptables-restore."""
        named = {GENERIC: "servers", NETFILTER: "sets", ROUTE: "addresses"}
        found = {name: self.kernel.written[number] for number, name in named.items()}
        return {**found, "lines": self.rules.lines}


NOTHING_SENT = {"servers": 0, "sets": 0, "addresses": 0, "lines": 0}


class Proxy(Rig):
    """All of it: a store, a node and a reconciler besides."""

    def __init__(self, *args, node=NODE, **kwargs):
        self.node = node
        self.store = Store()
        super().__init__(*args, **kwargs)

    def restart(self):
        super().restart()
        self.reconciler = Reconciler(
            self.family,
            IpvsCompiler(IpvsSettings()),
            self.dataplane,
            lambda: self.now,
            counts_services=True,
        )

    def put(self, *objects):
        for obj in objects:
            self.store.put(obj)
        return self

    def drop(self, name):
        self.store.drop(Kind.SERVICE, ObjectKey("default", name))
        self.store.drop(Kind.ENDPOINT_SLICE, ObjectKey("default", f"{name}-1"))
        return self

    def sync(self):
        self.now += 0.5
        report = self.reconciler.run(self.store.take(), self.store, self.node)
        if report.succeeded:
            self.reconciler.learn()
        return report

    def settle(self, most=300):
        """Let time pass until nothing is owed."""
        for _ in range(most):
            if self.sync().succeeded and self.reconciler.retry_at is None:
                return self
            self.now += 300.0
        raise AssertionError(f"still at it: {self.reconciler.quarantined}")

    def state(self):
        return picture(self.kernel, self.rules)


class Parts(Rig):
    """Each part by itself."""

    def give(self, part, *keys, owner=A):
        """Let *part* write *keys*, as an earlier pass would have."""
        assert part.apply(transaction(change(owner, put(*keys)))).lines
        return self


def picture(kernel, rules):
    """Everything in a kernel, for comparisons."""
    shared = ("filter", "KUBE-IPVS-OUT-FILTER")
    return {
        "servers": {
            str(key): (one.scheduler, one.flags, one.timeout, one.netmask, dict(one.destinations))
            for key, one in kernel.servers.services.items()
        },
        "sets": kernel.sets(empty=True),
        "bound": kernel.bound(),
        "rules": {
            (table, chain): Counter(bodies) if (table, chain) == shared else bodies
            for table, chains in rules.state().items()
            for chain, bodies in chains.items()
        },
    }
