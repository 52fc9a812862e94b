"""`printed` says how iptables-save prints every rule that the compilers write.

All rules of many worlds and settings are loaded into one chain of each table and saved again. The
one rule that needs xt_ipvs is in ipvs/test_printed_ipvs_rules.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from e2e.lab import Lab
from pykubeproxy.iptables.compile import (
    INVALID_COUNTER,
    LOCALHOST_COUNTER,
    IptablesCompiler,
    XtablesSettings,
)
from pykubeproxy.iptables.printed import printed
from pykubeproxy.ipvs.names import SETS, set_name
from pykubeproxy.ipvs.netfilter import IpvsSettings, fixed_rules
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import (
    NodeContext,
    PodCIDR,
    PodInterface,
    PodInterfacePrefix,
    PodTraffic,
)
from pykubeproxy.model.objects import EndpointSlice, Service
from pykubeproxy.model.route import Route
from pykubeproxy.sync.routes import service_routes
from tests.build import endpoint, port, service, slice_, slice_port
from tests.contract.cases import WORLDS
from tests.contract.world import Place, watched

Rules = dict[str, list[str]]  # by table, each once

OUR_CHAIN = "RULES"
TARGETS = {"ACCEPT", "DROP", "RETURN", "REJECT", "MARK", "MASQUERADE", "DNAT"}
PODS: dict[Family, tuple[PodTraffic | None, ...]] = {
    Family.IPV4: (PodCIDR("10.244.0.0/16"), PodInterface("cbr0"), PodInterfacePrefix("veth"), None),
    Family.IPV6: (PodCIDR("fd00:244::/31"), PodInterface("cbr0"), PodInterfacePrefix("veth"), None),
}
NODE_ADDRESS = {Family.IPV4: "192.0.2.10", Family.IPV6: "2001:db8:2::10"}
LOOPBACK = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}


def nodes(family: Family) -> Iterator[NodeContext]:
    address = NODE_ADDRESS[family]
    for pods in PODS[family]:
        for masquerade_all in (False, True):
            for listed in (None, (LOOPBACK[family], address)):
                yield NodeContext(
                    "node",
                    family,
                    "zone-a",
                    address,
                    nodeport_addresses=listed,
                    addresses=(address,),
                    pod_traffic=pods,
                    masquerade_all=masquerade_all,
                )


def routes(family: Family, node: NodeContext) -> Iterator[Route]:
    for number, world in enumerate(WORLDS):
        if family in world.families:
            objects = watched(world.objects(family, Place(number)))
            slices = [obj for obj in objects if isinstance(obj, EndpointSlice)]
            for obj in objects:
                if isinstance(obj, Service):
                    mine = [s for s in slices if s.service == obj.key]
                    yield from service_routes(obj, mine, node).routes
    yield from crowd(family, node)


def crowd(family: Family, node: NodeContext) -> Iterator[Route]:
    """Many endpoints, for the probabilities; names that comments quote, and that they do not."""
    prefix, cluster_ip = (
        ("10.244.1.", "10.96.7.1") if family is Family.IPV4 else ("fd00:244::", "fd00:96::7")
    )
    endpoints = [endpoint(f"{prefix}{n}", node="node") for n in range(1, 60)]
    for protocol in ("TCP", "UDP", "SCTP"):
        svc = service(
            "crowd",
            cluster_ip=cluster_ip,
            ports=[port(80, "", protocol, node_port=30080)],
            affinity_seconds=10800,
        )
        slices = [slice_("crowd", *endpoints, ports=[slice_port(8080, "", protocol)])]
        yield from service_routes(svc, slices, node).routes


def collect(found: Rules, objects: Mapping[Any, Any]) -> None:
    for key, value in objects.items():
        if isinstance(value, tuple):
            known = found.setdefault(key.table, [])
            known.extend(value)


def each_once(rules: Rules) -> Rules:
    return {table: list(dict.fromkeys(found)) for table, found in rules.items() if found}


def iptables_rules(family: Family) -> Rules:
    found: Rules = {}
    for node in nodes(family):
        local = family is Family.IPV4
        for more in (False, True):
            settings = XtablesSettings(
                masquerade_mark=0x80000000 if more else 0x4000,
                random_fully=more,
                localhost_nodeports=local and not more,
                count_invalid=more,
                count_localhost=not more,
            )
            compiler = IptablesCompiler(settings)
            collect(found, compiler.base(node))
        for total in (10, 10_000):
            compiler = IptablesCompiler(
                XtablesSettings(localhost_nodeports=local, count_localhost=local)
            )
            compiler.resize(total)
            for route in routes(family, node):
                collect(found, compiler.compile(route, node))
    return each_once(found)


def ipvs_rules(family: Family) -> Rules:
    found: Rules = {}
    for node in nodes(family):
        for random_fully in (False, True):
            collect(found, fixed_rules(IpvsSettings(random_fully=random_fully), node))
    return each_once(found)


def load(lab: Lab, stem: str, rules: Rules) -> Rules:
    """What the tool prints for *rules*, after loading them as they are."""
    lines: list[str] = []
    for table, found in rules.items():
        targets = {f" {rule}".partition(" -j ")[2].partition(" ")[0] for rule in found} - TARGETS
        lines.append(f"*{table}")
        lines += [f":{chain} - [0:0]" for chain in sorted({OUR_CHAIN, *targets} - {""})]
        lines += [f"-A {OUR_CHAIN} {rule}" for rule in found]
        lines.append("COMMIT")
    lab.run("node", f"{stem}-restore", input="\n".join([*lines, ""]))
    printed_rules: Rules = {}
    for table in rules:
        saved = lab.run("node", f"{stem}-save", "-t", table).stdout.decode()
        head = f"-A {OUR_CHAIN} "
        printed_rules[table] = [
            line.removeprefix(head) for line in saved.splitlines() if line.startswith(head)
        ]
    return printed_rules


def stem(family: Family, variant: str) -> str:
    return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{variant}"


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(serve=()) as lab:
        yield lab


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_rules_of_iptables_mode(lab: Lab, family: Family, variant: str) -> None:
    for counter in (INVALID_COUNTER, LOCALHOST_COUNTER):
        lab.run("node", "nfacct", "add", counter)
    rules = iptables_rules(family)
    assert load(lab, stem(family, variant), rules) == {
        table: [printed(rule, family) for rule in found] for table, found in rules.items()
    }


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_fixed_rules_of_ipvs_mode(lab: Lab, family: Family, variant: str) -> None:
    of_family = "family inet" if family is Family.IPV4 else "family inet6"
    for name, kind in SETS.items():
        options = "range 0-65535" if kind.type == "bitmap:port" else of_family
        words = f"ipset create {set_name(name, family)} {kind.type} {options}".split()
        done = lab.run("node", *words, check=False)
        if done.returncode:
            pytest.skip(f"no ipset in this kernel: {done.stderr.decode().strip()}")
    rules = ipvs_rules(family)
    # They are spelled that way to begin with.
    assert load(lab, stem(family, variant), rules) == rules
