"""The rules of ipvs mode are spelled as iptables-save prints them, and the sets' entries likewise.

So a restart finds in the kernel, word for word, what it wants.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.lab import Lab
from pykubeproxy.iptables.objects import Chain, DispatchRule, Jump, SharedChain
from pykubeproxy.ipvs.compile import IpvsCompiler, IpvsSettings
from pykubeproxy.ipvs.objects import IPSet, Key, SetEntry, SetType, Value
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.sync.routes import service_routes
from tests.build import endpoint, port, service, slice_, slice_port

NODES = {
    Family.IPV4: NodeContext(
        "node",
        Family.IPV4,
        address="192.0.2.10",
        addresses=("192.0.2.10", "10.244.1.1"),
        pod_traffic=PodCIDR("10.244.0.0/16"),
    ),
    Family.IPV6: NodeContext(
        "node",
        Family.IPV6,
        address="2001:db8:2::10",
        addresses=("2001:db8:2::10", "fd00:244::1"),
        pod_traffic=PodCIDR("fd00:244::/31"),
    ),
}
SERVED = {
    Family.IPV4: {
        "cluster_ip": "10.96.0.1",
        "external_ips": ["203.0.113.2"],
        "vips": ["203.0.113.1"],
        "source_ranges": ["198.51.100.0/24", "198.51.100.7/32"],
    },
    Family.IPV6: {
        "cluster_ip": "fd00:96::1",
        "external_ips": ["2001:db8:113::2"],
        "vips": ["2001:db8:113::1"],
        "source_ranges": ["2001:db8:51::/64", "2001:db8:51::7/128"],
    },
}
POD = {Family.IPV4: "10.244.1.11", Family.IPV6: "fd00:244::11"}


@pytest.fixture(params=list(Family))
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(serve=()) as lab:
        yield lab


def objects(family: Family) -> dict[Key, Value]:
    """Of load balancers for all protocols and policies, letting the node in or not."""
    node = NODES[family]
    compiler = IpvsCompiler(IpvsSettings())
    found = compiler.base(node)
    for number, (protocol, policy) in enumerate(
        (protocol, policy) for protocol in ("TCP", "UDP", "SCTP") for policy in ("Cluster", "Local")
    ):
        for more in ((), (f"{node.address}/{family.host_prefix}",)):
            port_number = 80 + 2 * number + len(more)
            fields = SERVED[family]
            svc = service(
                type="LoadBalancer",
                ports=[port(port_number, "", protocol, node_port=30000 + port_number)],
                external_policy=policy,
                health_check_node_port=31000 + port_number,
                **{**fields, "source_ranges": [*fields["source_ranges"], *more]},
            )
            slices = [
                slice_(
                    "web",
                    endpoint(POD[family], node="node"),
                    ports=[slice_port(8080, "", protocol)],
                )
            ]
            for route in service_routes(svc, slices, node).routes:
                found |= compiler.compile(route, node)
    return found


def test_what_was_written_is_printed(lab: Lab, family: Family) -> None:
    wanted = objects(family)
    sets: list[str] = []
    chains: dict[str, dict[str, list[str]]] = {"nat": {}, "filter": {}}
    for key, value in wanted.items():
        match key, value:
            case IPSet(name), SetType(type_):
                options = "range 0-65535" if type_ == "bitmap:port" else f"family {_inet(family)}"
                sets.append(f"create {name} {type_} {options}")
            case ((Chain(table, name) | SharedChain(table, name)), tuple(rules)):
                chains[table].setdefault(name, []).extend(rules)
            case ((DispatchRule(table, chain, _) | Jump(table, chain, _)), tuple(rules)):
                chains[table].setdefault(chain, []).extend(rules)
    entries = {(key.set, key.entry) for key in wanted if isinstance(key, SetEntry)}
    sets += [f"add {name} {entry}" for name, entry in sorted(entries)]
    lab.run("node", "ipset", "restore", input="\n".join([*sets, ""]))

    lines: list[str] = []
    for table, named in chains.items():
        built_in = {"INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"}
        lines.append(f"*{table}")
        lines += [f":{name} {'ACCEPT' if name in built_in else '-'} [0:0]" for name in named]
        lines += [f"-A {name} {rule}" for name, rules in named.items() for rule in rules]
        lines.append("COMMIT")
    tool = "iptables-legacy" if family is Family.IPV4 else "ip6tables-legacy"
    lab.run("node", f"{tool}-restore", input="\n".join([*lines, ""]))

    printed = [
        line
        for table in chains
        for line in lab.run("node", f"{tool}-save", "-t", table).stdout.decode().splitlines()
        if line.startswith("-A ")
    ]
    assert sorted(line for line in lines if line.startswith("-A ")) == sorted(printed)
    listed = lab.run("node", "ipset", "save").stdout.decode().splitlines()
    added = {tuple(line.split()[1:3]) for line in listed if line.startswith("add ")}
    assert entries == added


def _inet(family: Family) -> str:
    return "inet" if family is Family.IPV4 else "inet6"
