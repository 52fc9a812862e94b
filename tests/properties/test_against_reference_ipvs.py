"""The whole way from API objects to a kernel in ipvs mode against an independent kube-proxy.

Objects are those of `test_against_reference`, with what matters to this mode besides: addresses
that the node itself has, one address in several fields of a Service, schedulers. Both families
work on one kernel, which reads and answers messages byte by byte.

Left out is what kube-proxy leaves undefined, here as there. Of an address that a Service has
twice the first field counts; kube-proxy lets the last one choose the real servers.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from contextlib import suppress
from functools import cache

import pytest
from msgspec.structs import replace

from pykubeproxy.host.addresses import node_addresses
from pykubeproxy.ipvs.compile import IpvsCompiler, IpvsSettings
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import (
    Kind,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ServiceAnnotations,
    ServiceStatus,
)
from pykubeproxy.sync.context import describe_node
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.build import node
from tests.fakes.ipvs import FakeKernel
from tests.fakes.ipvs_servers import HASHED, SCHEDULERS
from tests.ipvs.rig import Rig
from tests.properties import reference_ipvs
from tests.properties.test_against_reference import (
    IDENTITIES,
    OWNERS,
    PUBLIC4,
    PUBLIC6,
    Objects,
    Place,
    draw,
    object_key,
    sloppy,
)

OWN4, OWN6 = ["192.0.2.10", "192.0.2.11", "198.51.100.7"], ["2001:db8:2::10", "2001:db8:2::11"]
INTERFACES = [
    ["127.0.0.1", "::1", "fe80::1", *OWN4, *OWN6],
    ["127.0.0.1", "::1", "fe80::1", *OWN4, *OWN6],
    ["127.0.0.1", "::1", "fe80::1", "192.0.2.10", "203.0.113.1", "2001:db8:2::10"],
    ["127.0.0.1", "127.0.0.2", "::1", "10.0.0.1", "2001:db8:ee::2"],
    ["127.0.0.1", "::1", "fe80::1"],
    [],
]
OUT_FILTER = ("filter", "KUBE-IPVS-OUT-FILTER")

# --- nodes and configurations ---


class IpvsPlace(Place):
    def __init__(self, dice):
        super().__init__(dice)
        self.interfaces = dice.choice(INTERFACES)
        self.scheduler = dice.choice(["rr", "rr", "wrr", "mh", "sh"])
        self.kernel_has = dice.choice([SCHEDULERS, SCHEDULERS, ("rr", "lc", self.scheduler)])
        self.allow_external_ips = dice.random() < 0.85

    def config(self):
        return replace(super().config(), allow_external_ips=self.allow_external_ips)

    def compiler(self, family):
        return IpvsCompiler(
            IpvsSettings(
                masquerade_mark=1 << self.mark_bit,
                random_fully=self.random_fully,
                scheduler=self.scheduler,
            )
        )

    def on_interfaces(self, family):
        return tuple(a for a in self.interfaces if (":" in a) == (family is Family.IPV6))

    def context(self, family):
        api = node("node", zone=self.zone, addresses=self.addresses, pod_cidrs=self.cidrs)
        reached = node_addresses(self.on_interfaces(family))
        return describe_node(self.config(), "node", api, reached, family, every_address=True)

    def settings(self, family):
        common = vars(super().settings(family))
        return reference_ipvs.IpvsSettings(
            **{
                **common,
                "local_addresses": self.on_interfaces(family),
                "scheduler": self.scheduler,
                "schedulers": self.kernel_has,
                "allow_external_ips": self.allow_external_ips,
            }
        )


# --- objects ---


class IpvsObjects(Objects):
    public4, public6 = [*PUBLIC4, *OWN4], [*PUBLIC6, *OWN6]

    def service(self, owner):
        dice = self.dice
        found = super().service(owner)
        spec = found.spec
        external, ingress = list(spec.external_ips or ()), list(found.ingress)
        mine = [*filter(None, [spec.cluster_ip, *(spec.cluster_ips or ())]), *external]
        mine += [i.ip for i in ingress if i.ip]
        if mine and dice.random() < 0.2:  # the same address again
            external.insert(dice.randint(0, len(external)), sloppy_if_ip(dice, dice.choice(mine)))
        if mine and dice.random() < 0.2:
            again = LoadBalancerIngress(sloppy_if_ip(dice, dice.choice(mine)))
            ingress.insert(dice.randint(0, len(ingress)), again)
        ports = list(spec.ports or ())
        if ports and owner == OWNERS[0] and dice.random() < 0.3:
            # A service port with the number of a node port; no other Service has that number.
            for field in ("port", "node_port"):
                at = dice.randrange(len(ports))
                changed = replace(ports[at], **{field: 30005})
                others = ports[:at] + ports[at + 1 :]
                if field == "node_port" or all(
                    (p.port, p.protocol) != (30005, changed.protocol) for p in others
                ):
                    ports[at] = changed
        annotation = dice.choice([None] * 8 + [*SCHEDULERS, "", "RR", "bogus", "none"])
        return replace(
            found,
            metadata=replace(
                found.metadata,
                annotations=None if annotation is None else ServiceAnnotations(annotation),
            ),
            spec=replace(spec, external_ips=tuple(external), ports=tuple(ports)),
            status=ServiceStatus(LoadBalancerStatus(tuple(ingress))),
        )


def sloppy_if_ip(dice, text):
    with suppress(ValueError):
        return sloppy(dice, text)
    return text


# --- the program ---


class Program:
    """Both families around one store and one kernel."""

    def __init__(self, place):
        self.place = place
        self.store = Store()
        self.now = 0.0
        self.kernel = FakeKernel(schedulers=place.kernel_has)
        self.rigs = {
            family: Rig(family, self.kernel, scheduler=place.scheduler) for family in Family
        }
        self.reconcilers = {}
        self.start()

    def start(self):
        for family, rig in self.rigs.items():
            rig.restart()
            self.reconcilers[family] = Reconciler(
                family,
                self.place.compiler(family),
                rig.dataplane,
                lambda: self.now,
                counts_services=True,
            )

    def sync(self):
        self.now += 0.5
        touched = self.store.take()
        for family, reconciler in self.reconcilers.items():
            report = reconciler.run(touched, self.store, self.place.context(family))
            assert report.succeeded, report.detail
            assert not report.quarantined, report.quarantined
            reconciler.learn()

    def check(self, objects, where):
        services = [o for i, o in objects.items() if i[0] is Kind.SERVICE]
        slices = [o for i, o in objects.items() if i[0] is Kind.ENDPOINT_SLICE]
        names, devices = set(), set()
        for family in Family:
            settings = self.place.settings(family)
            expected = reference_ipvs.mode(services, slices, settings)
            names |= expected.sets.keys()
            devices |= expected.bound
            at = f"{where}, {family}"
            same(expected.servers, self.servers(family), f"{at}: server")
            sets = self.kernel.sets(empty=True)
            same(
                {name: sorted(found) for name, found in expected.sets.items()},
                {name: sets.get(name) for name in expected.sets},
                f"{at}: set",
            )
            self.check_rules(expected, settings, family, at)
            self.check_counts(expected, family, at)
        assert names == self.kernel.sets(empty=True).keys(), where
        assert sorted(devices) == sorted(self.kernel.bound()), where

    def servers(self, family):
        found = {}
        for key, one in self.kernel.servers.services.items():
            if (":" in key.address) != (family is Family.IPV6):
                continue
            assert one.netmask == (128 if family is Family.IPV6 else 0xFFFFFFFF)
            assert all((d.weight, d.method) == (1, 0) for d in one.destinations.values())
            found[tuple(key)] = reference_ipvs.Server(
                one.scheduler,
                one.flags & ~HASHED,
                one.timeout,
                frozenset(one.destinations),
            )
        return found

    def check_rules(self, expected, settings, family, where):
        found = {
            (table, chain): rules
            for table, chains in self.rigs[family].rules.state().items()
            for chain, rules in chains.items()
        }
        drops = found.pop(OUT_FILTER)
        assert Counter(as_saved(r, family) for r in set(expected.out_filter)) == Counter(drops), (
            f"{where}: {OUT_FILTER}"
        )
        fixed = {
            at: [as_saved(rule, family) for rule in rules]
            for at, rules in reference_ipvs.rules(settings).items()
        }
        # iptables tools list built-in chains that are empty, too.
        empty = {at for at, rules in found.items() if not rules and not at[1].startswith("KUBE-")}
        same(fixed, {at: r for at, r in found.items() if at not in empty}, f"{where}: chain")

    def check_counts(self, expected, family, where):
        reconciler = self.reconcilers[family]
        counts = len(expected.no_local_internal), len(expected.no_local_external)
        found = reconciler.no_local_endpoints
        if not reference_ipvs.node_ips(self.place.settings(family)):
            # Node ports are served nowhere, so kube-proxy misses no endpoints; this program does.
            found = found[0], min(found[1], counts[1])
        assert counts == found, f"{where}: no local endpoints"
        checks = {
            owner: (port, expected.health_counts[owner])
            for owner, port in expected.health_ports.items()
        }
        same(checks, {tuple(k): v for k, v in reconciler.health_checks.items()}, where)


def same(expected, found, where):
    for name in sorted({*expected, *found}):
        assert name in expected, f"{where}: {name} is there: {found[name]}"
        assert name in found, f"{where}: {name} is missing: {expected[name]}"
        assert expected[name] == found[name], f"{where}: {name}: {expected[name]}\n{found[name]}"


def as_saved(rule, family):
    """As iptables-save prints a rule that the reference writes for iptables-restore."""
    v4 = family is Family.IPV4
    rule = re.sub(r"(?<=-s )([^/ ]+)(?= )", rf"\1/{32 if v4 else 128}", rule)
    rule = re.sub(r"^(.+?) ((?:! )?-[si] \S+)(?= -j)", r"\2 \1", rule)
    rule = re.sub(r"\b0x0*(?=[0-9a-f])", "0x", rule)
    rule = re.sub(r"--xor-mark (\S+)", r"--set-xmark \1/0x0", rule)
    rule = re.sub(r"--or-mark (\S+)", r"--set-xmark \1/\1", rule)
    rule = rule.replace("'", "\\'")
    icmp = "icmp" if v4 else "icmp6"
    rule = rule.replace("-j REJECT", f"-j REJECT --reject-with {icmp}-port-unreachable")
    for name, number in (("tcp", 6), ("udp", 17), ("sctp", 132)):
        rule = re.sub(rf"(--vaddr \S+) --vproto {name}", rf"--vproto {number} \1", rule)
    return rule


# --- tests ---


def a_world(seed):
    dice = random.Random(f"ipvs world {seed}")
    objects = IpvsObjects(dice, seed)
    return IpvsPlace(dice), {
        identity: draw(objects, identity) for identity in IDENTITIES if dice.random() < 0.8
    }


@cache
def check_world(seed):
    place, world = a_world(seed)
    program = Program(place)
    for obj in world.values():
        program.store.put(obj)
    program.sync()
    program.check(world, f"world {seed}")
    return program


def check_history(seed, steps=25):
    """Objects and the node change, sometimes the process starts again."""
    dice = random.Random(f"ipvs history {seed}")
    objects = IpvsObjects(dice, seed)
    program = Program(IpvsPlace(dice))
    world = {}
    for step in range(steps):
        roll = dice.random()
        identity = dice.choice(IDENTITIES)
        if roll < 0.05:
            program.place.zone = dice.choice([None, "a", "b"])
        elif roll < 0.12:
            program.place.interfaces = dice.choice(INTERFACES)
        elif roll < 0.15:
            program.start()
        elif roll < 0.3:
            world.pop(identity, None)
            if identity[0] is Kind.SERVICE:
                objects.release(identity[1])
            program.store.drop(identity[0], object_key(identity))
        else:
            world[identity] = draw(objects, identity)
            program.store.put(world[identity])
        if dice.random() < 0.3:
            program.sync()
            program.check(world, f"history {seed}, step {step}")
    program.sync()
    program.check(world, f"history {seed}, end")


@pytest.mark.parametrize("block", range(4))
def test_worlds(block):
    for seed in range(block * 25, block * 25 + 25):
        check_world(seed)


@pytest.mark.parametrize("block", range(4))
def test_histories(block):
    for seed in range(block * 6, block * 6 + 6):
        check_history(seed)


def test_worlds_reach_what_they_are_made_for():
    seen = Counter()
    for seed in range(100):
        program = check_world(seed)
        for name, found in program.kernel.sets().items():
            seen[name] += bool(found)
        for family, rig in program.rigs.items():
            seen["drops"] += bool(rig.rules.state()["filter"][OUT_FILTER[1]])
            reached = set(node_addresses(program.place.on_interfaces(family)))
            virtuals = program.kernel.servers.services
            own = {key.address for key in virtuals if key.port in (53, 80, 443)} & reached
            seen["own addresses"] += bool(own - set(program.kernel.bound()))
            internal, external = program.reconcilers[family].no_local_endpoints
            seen["no local, internal"] += bool(internal)
            seen["no local, external"] += bool(external)
            seen["health checks"] += bool(program.reconcilers[family].health_checks)
        asked = {s.ipvs_scheduler for s in a_world(seed)[1].values() if hasattr(s, "spec")}
        seen["missing schedulers"] += bool(asked & set(SCHEDULERS) - set(program.place.kernel_has))
    wanted = [reference_ipvs.set_name(n, f) for n in reference_ipvs.SETS for f in Family]
    wanted += ["drops", "own addresses", "no local, internal", "no local, external"]
    wanted += ["health checks", "missing schedulers"]
    assert [] == [word for word in wanted if seen[word] < 2]
