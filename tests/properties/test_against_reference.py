"""The whole way from API objects to kernel chains against an independent kube-proxy.

Worlds are drawn from seeded dice, so that every run is the same run; a failure names its seed.
Left out is only what kube-proxy itself leaves undefined: two Services, or one twice, claiming the
same address, port and protocol; and contradicting copies of an endpoint in different slices.
"""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import (
    Conditions,
    Hint,
    Hints,
    Kind,
    LoadBalancerIngress,
    ObjectKey,
    SliceEndpoint,
    SlicePort,
)
from pykubeproxy.sync.context import describe_node, localhost_serves_nodeports
from pykubeproxy.sync.flows import is_stale
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.build import endpoint, node, port, service, slice_, slice_port
from tests.fakes.dataplane import ChainDataplane
from tests.properties.reference_proxy import (
    LAST,
    Settings,
    SliceTracker,
    rules,
    served,
    stale_flows,
)

SHARED = {"KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"}
LOCAL = {
    Family.IPV4: ("127.0.0.1", "192.0.2.10", "192.0.2.11", "198.51.100.7"),
    Family.IPV6: ("::1", "2001:db8:2::10", "2001:db8:2::11", "fe80::1"),
}

# --- nodes and configurations ---

NODEPORT_ADDRESSES = [
    (),
    (),
    ("primary",),
    ("192.0.2.0/24",),
    ("192.0.2.000/024", "127.0.0.0/8", "2001:DB8:2::/64"),
    ("127.0.0.1/32", "::1/128"),
    ("126.0.0.0/7", "198.51.100.7/32"),
    ("198.51.100.0/24", "0.0.0.0/0"),
    ("2001:db8:2::10/128",),
    ("::/0", "203.0.113.0/24"),
]
CIDRS = [
    (),
    ("10.1.0.0/16",),
    ("10.001.2.3/016", "10.2.0.0/16"),
    ("FD00:10::1/48",),
    ("fd00:10::/48", "10.1.0.0/16"),
]


class Place:
    """A node, a configuration and what was found out at start, for both families."""

    def __init__(self, dice):
        self.addresses = dice.choice([("192.0.2.10", "2001:DB8:2::10"), ("192.0.2.010",), ()])
        self.nodeports = dice.choice(NODEPORT_ADDRESSES)
        if self.nodeports == ("primary",):
            # Without an address kube-proxy serves node ports on 127.0.0.0/8; this program does not.
            self.addresses = ("192.0.2.10", "2001:DB8:2::10")
        self.mode = dice.choice(list(DetectLocalMode))
        self.cidrs = dice.choice(CIDRS)
        self.masquerade_all = dice.random() < 0.2
        self.localhost = dice.random() < 0.7
        self.random_fully, self.nfacct, self.liberal = (dice.random() < 0.5 for _ in range(3))
        self.mark_bit = dice.choice([14, 14, 0, 31])
        self.zone = dice.choice(["", None, "a", "b"])

    def config(self):
        return Config(
            detect_local_mode=self.mode,
            cluster_cidrs=self.cidrs,
            bridge_interface="cbr0",
            interface_name_prefix="veth",
            nodeport_addresses=self.nodeports,
            masquerade_all=self.masquerade_all,
            localhost_nodeports=self.localhost,
        )

    def compiler(self, family):
        return IptablesCompiler(
            XtablesSettings(
                masquerade_mark=1 << self.mark_bit,
                random_fully=self.random_fully,
                localhost_nodeports=localhost_serves_nodeports(self.config(), family),
                drop_invalid=not self.liberal,
                count_invalid=self.nfacct,
                count_localhost=self.nfacct,
            )
        )

    def context(self, family):
        api = node("node", zone=self.zone, addresses=self.addresses, pod_cidrs=self.cidrs)
        return describe_node(self.config(), "node", api, LOCAL[family], family)

    def settings(self, family):
        v4 = family is Family.IPV4
        value = {
            DetectLocalMode.BRIDGE_INTERFACE: "cbr0",
            DetectLocalMode.INTERFACE_NAME_PREFIX: "veth",
        }
        known = self.addresses[0 if v4 else 1 :][:1]
        own = ("192.0.2.10" if v4 else "2001:db8:2::10") if known else "127.0.0.1" if v4 else "::1"
        return Settings(
            family=family.value,
            zone=self.zone or "",
            address=own,
            nodeport_addresses=self.nodeports,
            local_addresses=LOCAL[family],
            detect_mode=self.mode.value,
            detect_value=value.get(self.mode, self.cidrs),
            masquerade_all=self.masquerade_all,
            localhost_nodeports=self.localhost,
            random_fully=self.random_fully,
            nfacct=self.nfacct,
            liberal=self.liberal,
            mark_bit=self.mark_bit,
        )


# --- objects ---

OWNERS = [("default", "a"), ("default", "b"), ("default", "c-c"), ("kube-system", "a")]
PORT_NAMES = {"http": "TCP", "dns": "UDP", "x-1": "SCTP", "p3": "UDP", "": "UDP"}  # as a rule
NUMBERS = [53, 80, 443]
TARGETS = [53, 8080, 8081]
PUBLIC4 = [f"203.0.113.{n}" for n in range(1, 7)]
PUBLIC6 = [f"2001:db8:ee::{n}" for n in range(1, 7)]
RANGES = [
    " 198.51.100.0/24 ",
    "203.0.113.077/025",
    "192.0.2.0/24",
    "192.0.2.10/32",
    "\t172.16.5.4/12",
    "2001:DB8:2::/64 ",
    "2001:db8:5::1/48",
    "bogus",
    "10.0.0.1",
    "10.0.0.0/33",
    "",
    " ",
]
SETTLED = [(None, None, None), (True, True, False), (True, None, None)]
NOT_READY = [(False, True, False), (False, False, None), (False, False, False), (False, None, None)]
ENDING = [(False, True, True), (False, True, True), (False, None, True), (False, False, True)]
ODD = [(True, True, True), (None, None, True), (None, True, True)]
AT_ODDS = [(True, False, None), (None, False, None)]  # ready, and not serving


def few(dice, pool, most):
    return dice.sample(pool, dice.randint(0, min(most, len(pool))))


def sloppy(dice, ip):
    """Another way to write an address."""
    if dice.random() < 0.7:
        return ip
    if ":" in ip:
        return ip.upper().replace("::", ":0:0::", 1)
    if dice.random() < 0.2:
        return f"::ffff:{ip}"
    return ".".join(f"{int(octet):03}" for octet in ip.split("."))


class Objects:
    """Draws Services and slices; *epoch* settles what all copies of an endpoint have in common."""

    public4, public6 = PUBLIC4, PUBLIC6

    def __init__(self, dice, epoch, tame=False):
        self.dice = dice
        self.epoch = epoch
        self.tame = tame  # no endpoint that is ready without serving
        self.claims = {}

    def release(self, owner):
        self.claims.pop(owner, None)

    def service(self, owner):
        dice = self.dice
        self.release(owner)
        taken = {claim for claims in self.claims.values() for claim in claims}
        mine = self.claims.setdefault(owner, set())

        def claim(*wanted):
            if taken.intersection(wanted) or mine.intersection(wanted):
                return False
            mine.update(wanted)
            return True

        named = dice.sample(list(PORT_NAMES)[:-1], dice.randint(1, 3))
        if dice.random() < 0.2:
            named = dice.choice([[""], [""], []])
        ports = []
        for name in named:
            number, protocol = dice.choice(NUMBERS), PORT_NAMES[name]
            if dice.random() < 0.1:
                protocol = dice.choice(["TCP", "UDP", "SCTP"])
            if any((p.port, p.protocol) == (number, protocol) for p in ports):
                continue
            node_port = dice.choice([None, 0, 30001, 30002, 30003, 30004])
            if node_port and not claim((node_port, protocol)):
                node_port = None
            ports.append(port(number, name, protocol, node_port))

        def publish(pool, most):
            found = few(dice, pool, most)
            found = [ip for ip in found if claim(*((ip, p.port, p.protocol) for p in ports))]
            return [sloppy(dice, ip) for ip in found]

        at = OWNERS.index(owner) + 1
        four, six = dice.choice([f"10.96.0.{at}", f"10.96.0.{at + 10}"]), f"fd96::{at}"
        families, ips = dice.choice(
            [
                (None, [four]),
                (None, [six]),
                (["IPv4"], [four]),
                (["IPv6"], [six]),
                (["IPv4", "IPv6"], [four, six]),
                (["IPv4", "IPv6"], [four, six]),
                (["IPv6", "IPv4"], [six, four]),
                (["IPv6", "IPv4"], [six, four]),
                (["IPv6", "IPv4"], [six]),
                (["IPv4", "IPv6"], ["None"]),
                (None, [dice.choice(["", "None"])]),
            ]
        )
        ips = [ip if ip in ("", "None") else sloppy(dice, ip) for ip in ips]
        external = publish(self.public4, 2) + publish(self.public6, 1)
        external += few(dice, ["nonsense", "", " ", "203.0.113.256", " 203.0.113.9"], 1)
        dice.shuffle(external)
        modes = [None, None, None, "VIP", "Proxy", ""]
        vips = [
            LoadBalancerIngress(ip, dice.choice(modes))
            for ip in publish(self.public4, 2) + publish(self.public6, 2)
        ]
        if dice.random() < 0.2:
            vips.insert(0, LoadBalancerIngress(dice.choice([None, "", "example.org"])))
        ranges = few(dice, RANGES, 4) if dice.random() < 0.6 else []
        if dice.random() < 0.1:
            ranges.insert(0, dice.choice(["0.0.0.0/0", "::/0", "10.9.8.7/0", "0.0.0.0/00"]))
        health = dice.choice([None, None, 0, 31000 + at])
        found = service(
            owner[1],
            namespace=owner[0],
            type=dice.choice([*["ClusterIP", "NodePort", "LoadBalancer"] * 4, "ExternalName"]),
            cluster_ip=ips[0],
            cluster_ips=ips,
            ip_families=families,
            ports=ports,
            external_ips=external,
            vips=vips,
            source_ranges=ranges,
            external_policy=dice.choice([None, "Cluster", "Local", "Local"]),
            internal_policy=dice.choice([None, None, "Cluster", "Local"]),
            affinity_seconds=dice.choice([None, None, 60, 10800]),
            health_check_node_port=health,
        )
        if dice.random() < 0.1:  # a timeout counts with ClientIP only
            spec = msgspec.structs.replace(found.spec, session_affinity="None")
            found = msgspec.structs.replace(found, spec=spec)
        return found

    def slice(self, owner, number):
        dice = self.dice
        kind = dice.choice(["IPv4"] * 5 + ["IPv6"] * 5 + ["FQDN"])
        v6 = kind == "IPv6"
        # Every third address is in one slice only and free to contradict itself there.
        pool = [n for n in range(1, 13) if n % 3 or n // 3 % 4 == number]
        endpoints = []
        for n in few(dice, pool, dice.choice([0, 2, 4, 8])):
            for _ in range(1 if n % 3 or dice.random() < 0.7 else 2):
                ip = f"fd00:10::{n:x}" if v6 else f"10.1.0.{n}"
                endpoints.append(self.endpoint(owner, n, "www.test" if kind == "FQDN" else ip))
        if dice.random() < 0.1:
            endpoints.insert(0, SliceEndpoint(dice.choice([None, ()])))
        ports = []
        for name, protocol in PORT_NAMES.items():
            others = few(dice, ["TCP", "UDP", "SCTP"], 2) if dice.random() < 0.2 else []
            used = [protocol, *others] if dice.random() < 0.85 else others
            ports.extend(slice_port(dice.choice(TARGETS), name, each) for each in used)
        if dice.random() < 0.2:
            ports.append(dice.choice([SlicePort(None, "TCP", 9), slice_port(0), slice_port(None)]))
        return slice_(
            dice.choice([None, ""]) if dice.random() < 0.03 else owner[1],
            *endpoints,
            namespace=owner[0],
            name=f"{owner[1]}-{number}",
            ports=ports,
            address_type=kind,
        )

    def endpoint(self, owner, n, ip):
        """Copies that are (not) terminating all look the same, unless *n* is of one slice only."""
        style = random.Random(f"{self.epoch} {owner}")
        hinting = style.choice(
            ["none", "none", "zones", "some zones", "nodes", "some nodes", "all"]
        )
        health = style.choice(["good", "good", "mixed", "mixed", "ending", "bad"])
        where = style.choice([["node", "other"], ["other", None], ["node", "Node", "", None]])
        ending = (
            self.dice.random() < {"good": 0.05, "mixed": 0.4, "ending": 0.95, "bad": 0.6}[health]
        )
        look = random.Random(f"{self.epoch} {owner} {n} {ending}") if n % 3 else self.dice
        if ending:
            conditions = look.choice(ENDING * 3 + ODD)
        else:
            bad = {"good": 0.1, "mixed": 0.4, "ending": 1, "bad": 1}[health]
            healthy = SETTLED * 4 + ([] if self.tame else AT_ODDS)
            conditions = look.choice(NOT_READY if look.random() < bad else healthy)
        zones, nodes = (), ()
        lacks = look.random() < (0.15 if "some" in hinting else 0)
        if ("zones" in hinting or hinting == "all") and not lacks:
            zones = look.choice([("a",), ("b",), ("a", "b"), ("c",)])
        if ("nodes" in hinting or hinting == "all") and not lacks:
            nodes = look.choice([("node",), ("other",), ("x", "node"), ("other", "x")])
        node_name = look.choice(where)
        bare = conditions == (None, None, None) and look.random() < 0.5
        hints = Hints(tuple(map(Hint, zones)) or None, tuple(map(Hint, nodes)) or None)
        return SliceEndpoint(
            (ip if ip[0] == "w" else sloppy_pod(self.dice, ip), *(("10.1.9.9",) if n == 4 else ())),
            None if bare else Conditions(*conditions),
            node_name,
            hints if zones or nodes or look.random() < 0.1 else None,
        )


def sloppy_pod(dice, ip):
    return ip.replace(".1.0.", ".01.000.") if dice.random() < 0.1 else ip


IDENTITIES = [
    *((Kind.SERVICE, owner, 0) for owner in OWNERS),
    *((Kind.ENDPOINT_SLICE, owner, n) for owner in OWNERS for n in range(4)),
]


def draw(objects, identity):
    kind, owner, number = identity
    return objects.service(owner) if kind is Kind.SERVICE else objects.slice(owner, number)


def object_key(identity):
    kind, (namespace, name), number = identity
    return ObjectKey(namespace, name if kind is Kind.SERVICE else f"{name}-{number}")


# --- the program ---


class Program:
    """Both families around one store."""

    def __init__(self, place):
        self.place = place
        self.store = Store()
        self.now = 0.0
        self.kernels = {family: ChainDataplane() for family in Family}
        self.reconcilers = {
            family: Reconciler(
                family, place.compiler(family), self.kernels[family], lambda: self.now
            )
            for family in Family
        }

    def sync(self):
        self.now += 0.5
        touched = self.store.take()
        for family, reconciler in self.reconcilers.items():
            context = self.place.context(family)
            report = reconciler.run(touched, self.store, context)
            assert report.succeeded, report.detail
            reconciler.learn()

    def check(self, objects, where):
        services = [o for i, o in objects.items() if i[0] is Kind.SERVICE]
        slices = [o for i, o in objects.items() if i[0] is Kind.ENDPOINT_SLICE]
        for family, kernel in self.kernels.items():
            expected = rules(services, slices, self.place.settings(family))
            same(expected, kernel.chains, f"{where}, {family}")


def same(expected, found, where):
    for name in sorted({*expected, *found}):
        assert name in expected, f"{where}: {name} is there: {found[name]}"
        assert name in found, f"{where}: {name} is missing: {expected[name]}"
        if name[1] in SHARED:
            assert Counter(expected[name]) == Counter(found[name]), f"{where}: {name}"
            in_order(found[name], where)
        else:
            assert list(expected[name]) == list(found[name]), f"{where}: {name}"


def in_order(chain, where):
    """The tail is last, and what is counted on 127.0.0.0/8 comes before what is not."""
    tails = [LAST in rule for rule in chain]
    assert tails == sorted(tails), where
    for at, rule in enumerate(chain):
        if "--nfacct-name localhost_nps" in rule:
            words = rule.split()
            plain = words[: words.index("-d")] + words[words.index("--dport") :][:2] + words[-2:]
            assert at < chain.index(" ".join(plain)), where


def a_world(seed):
    dice = random.Random(f"world {seed}")
    objects = Objects(dice, seed)
    return Place(dice), {
        identity: draw(objects, identity) for identity in IDENTITIES if dice.random() < 0.8
    }


def check_world(seed):
    place, world = a_world(seed)
    program = Program(place)
    for obj in world.values():
        program.store.put(obj)
    program.sync()
    program.check(world, f"world {seed}")
    return program


def check_history(seed, steps=25):
    dice = random.Random(f"history {seed}")
    objects = Objects(dice, seed)
    program = Program(Place(dice))
    world = {}
    for step in range(steps):
        roll = dice.random()
        identity = dice.choice(IDENTITIES)
        if roll < 0.1:
            program.place.zone = dice.choice([None, "a", "b"])
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
    for seed in range(block * 150, block * 150 + 150):
        check_world(seed)


@pytest.mark.parametrize("block", range(4))
def test_histories(block):
    for seed in range(block * 60, block * 60 + 60):
        check_history(seed)


@pytest.mark.parametrize("more", [0, 1])
def test_many_endpoints(more):
    """Up to 1000 endpoints over all service ports rules have comments, ready or not."""
    ports = [port(80, "http"), port(53, "dns", "UDP")]
    many = [
        endpoint(f"10.1.{n >> 8}.{n & 255}", ready=None if n % 2 else False) for n in range(500)
    ]
    # The port that no Service has does not count.
    targets = [slice_port(8080, "http"), slice_port(53, "dns", "UDP"), slice_port(1, "no")]
    one = slice_("a", endpoint("10.1.9.9"), name="a-1", ports=targets[:more])
    world = {
        (Kind.SERVICE, OWNERS[0], 0): service("a", ports=ports, affinity_seconds=60),
        (Kind.ENDPOINT_SLICE, OWNERS[0], 0): slice_("a", *many, name="a-0", ports=targets),
        (Kind.ENDPOINT_SLICE, OWNERS[0], 1): one,
    }
    program = Program(Place(random.Random(1)))
    for obj in world.values():
        program.store.put(obj)
    program.sync()
    program.check(world, f"{1000 + more} endpoints")
    chains = program.kernels[Family.IPV4].chains
    last = [found[-1] for (_, chain), found in chains.items() if chain.startswith("KUBE-SVC-")]
    assert [not more] * 2 == ["--comment" in rule for rule in last]


def test_worlds_reach_what_they_are_made_for():
    seen = Counter()
    for seed in range(150):
        for kernel in check_world(seed).kernels.values():
            for (table, chain), found in kernel.chains.items():
                seen[chain.rpartition("-")[0]] += 1
                text = "\n".join(found)
                seen["reject"] += "-j REJECT" in text
                seen["no local endpoints"] += "no local endpoints" in text
                seen["affinity"] += "--rcheck" in text
                seen["counted"] += "localhost_nps" in text
                seen["health check"] += "health check node port" in text and table == "filter"
                seen["node addresses"] += LAST in text and "--dst-type LOCAL" not in text
    wanted = ["KUBE-SVC", "KUBE-SVL", "KUBE-EXT", "KUBE-FW", "KUBE-SEP", "reject", "affinity"]
    wanted += ["no local endpoints", "counted", "health check", "node addresses"]
    assert [] == [word for word in wanted if seen[word] < 10]


# --- UDP flows ---


def endings(dice, services, slices, settings):
    """Flows that clients open now, as conntrack would note them."""
    by_address, by_node_port = served(services, slices, settings)
    v4 = settings.family == "IPv4"
    hosts = [f"10.96.0.{n}" for n in (1, 2, 3, 4, 11, 12, 13, 14)] + PUBLIC4
    if not v4:
        hosts = [f"fd96::{n}" for n in range(1, 5)] + PUBLIC6
    targets = [((ip, n), by_address.get((ip, n))) for ip in hosts for n in (*NUMBERS, 99)]
    own = "192.0.2.10" if v4 else "2001:db8:2::10"
    targets += [((own, n), by_node_port.get(n)) for n in range(30001, 30005)]
    for target, serving in targets:
        if dice.random() < 0.5:
            reply = dice.choice(sorted(serving)) if serving else target
            yield (dice.choice([17] * 8 + [6, 132]), *target, *reply)


def check_flows(seed, steps=40):
    dice = random.Random(f"flows {seed}")
    objects = Objects(dice, seed, tame=True)
    place = Place(dice)
    program = Program(place)
    world, flows = {}, {family: set() for family in Family}
    trackers = {family: SliceTracker(place.settings(family)) for family in Family}
    deleted, before = 0, []

    def split():
        services = [o for i, o in world.items() if i[0] is Kind.SERVICE]
        return services, [o for i, o in world.items() if i[0] is Kind.ENDPOINT_SLICE]

    for step in range(steps):
        identity = dice.choice(IDENTITIES)
        if dice.random() < 0.2:
            world.pop(identity, None)
            if identity[0] is Kind.SERVICE:
                objects.release(identity[1])
            program.store.drop(identity[0], object_key(identity))
        else:
            new = draw(objects, identity)
            if identity[0] is Kind.ENDPOINT_SLICE:
                old = world.get(identity)
                if new.service is None or (old and old.address_type != new.address_type):
                    continue  # an address type and, in practice, an owner are for life
            world[identity] = new
            program.store.put(new)
        if identity[0] is Kind.ENDPOINT_SLICE:
            for tracker in trackers.values():
                tracker.event(object_key(identity), world.get(identity))
        if dice.random() < 0.5:
            continue
        program.sync()
        services, slices = split()
        for family, reconciler in program.reconcilers.items():
            settings = place.settings(family)
            required, due = trackers[family].sync(before, services)
            assert required or not due
            expected = stale_flows(services, slices, settings, flows[family]) if due else set()
            scope = reconciler.flows.take_scope()
            found = set()
            if scope is not None:
                table = reconciler.flows.table(scope)
                found = {flow for flow in flows[family] if is_stale(table, *flow)}
            where = f"flows {seed}, step {step}, {family}"
            assert expected == found, where
            deleted += len(found)
            flows[family] -= found
            flows[family].update(endings(dice, services, slices, settings))
        before = services
    return deleted


@pytest.mark.parametrize("block", range(2))
def test_flows(block):
    assert sum(check_flows(seed) for seed in range(block * 60, block * 60 + 60)) > 200
