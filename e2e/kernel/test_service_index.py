"""Shared chains become trees and lists again under traffic, and nobody is left behind by them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import Customers, RunningDaemon, Visit, eventually
from e2e.lab import Answer, Lab
from pykubeproxy.iptables.names import INDEX_PREFIX
from pykubeproxy.model.objects import WireObject
from tests.build import endpoint, port, service, slice_, slice_port

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
PODS = {4: ("10.244.0.11", "10.244.0.12"), 6: ("fd00:244::11", "fd00:244::12")}
NODE_PORT = 30080
FILE = 100
"""Services in a file; in each family as many rules in KUBE-SERVICES and in KUBE-NODEPORTS."""


def app(
    name: str, version: int, ip: str, pods: tuple[str, ...], node_port: int
) -> list[WireObject]:
    return [
        service(
            name, cluster_ip=ip, type="NodePort", ports=[port(80, "http", node_port=node_port)]
        ),
        slice_(
            name,
            *(endpoint(pod, node="node") for pod in pods),
            ports=[slice_port(8080, "http")],
            address_type="IPv6" if version == 6 else "IPv4",
        ),
    ]


def put_web(daemon: RunningDaemon, pods: slice) -> None:
    for version, ip in WEB.items():
        node_port = NODE_PORT + version
        daemon.write(
            f"web-{version}", *app(f"web-{version}", version, ip, PODS[version][pods], node_port)
        )


def fill(daemon: RunningDaemon, number: int) -> None:
    """Add a file of Services in each family."""
    for version, start in ((4, "10.96.{}.{}"), (6, "fd00:96::{}:{}")):
        objects = []
        for n in range(FILE):
            ip = start.format(number + 1, n + 1)
            node_port = 31000 + (version == 6) * 800 + number * FILE + n
            name = f"filler-{version}-{number}-{n}"
            objects += app(name, version, ip, PODS[version][:1], node_port)
        daemon.write(f"fillers-{version}-{number}", *objects)


def drain(daemon: RunningDaemon, number: int) -> None:
    for version in WEB:
        daemon.remove(f"fillers-{version}-{number}")


def trees(daemon: RunningDaemon) -> set[tuple[int, str]]:
    """Family and name of the shared chains of nat that lead to chains of a tree."""
    return {
        (family, line.split()[1])
        for family in WEB
        for line in daemon.saved("nat", family)
        if re.match(rf"-A KUBE-(SERVICES|NODEPORTS) .*-j {INDEX_PREFIX}", line)
    }


def start(daemon: RunningDaemon) -> None:
    """Start it, and wait for both families."""
    before = daemon.synced("IPv6")
    daemon.start()
    eventually(lambda: daemon.synced("IPv6") > before, "a first sync of IPv6", 30)


ALL = {(family, chain) for family in WEB for chain in ("KUBE-SERVICES", "KUBE-NODEPORTS")}


def visits(lab: Lab) -> list[Visit]:
    found: list[Visit] = []
    for version, ip in WEB.items():
        found += [(who, ip, 80, "TCP") for who in ("client", "p3", "node")]
        found += [("client", lab.address("node", version), NODE_PORT + version, "TCP")]
    return found


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    """Not started yet."""
    daemon = RunningDaemon(lab, variant, tmp_path)
    yield daemon
    daemon.stop()


def test_no_connection_fails_while_lists_become_trees_and_trees_lists(
    daemon: RunningDaemon,
) -> None:
    put_web(daemon, slice(0, 2))
    for number in range(4):
        fill(daemon, number)
    start(daemon)
    with Customers(daemon.lab, *visits(daemon.lab)) as customers:
        customers.go_on()
        assert set() == trees(daemon)
        fill(daemon, 4)
        eventually(lambda: trees(daemon) == ALL, "trees in both families", 30)
        put_web(daemon, slice(1, 2))
        customers.go_on()
        drain(daemon, 3)
        put_web(daemon, slice(0, 1))
        customers.go_on()
        assert ALL == trees(daemon)
        drain(daemon, 2)
        eventually(lambda: trees(daemon) == set(), "lists in both families", 30)
        customers.go_on()
    assert [] == customers.failures
    left = [x for f in WEB for x in daemon.saved("nat", f) if INDEX_PREFIX in x]
    assert [] == left


def test_a_service_in_a_tree_is_found_and_served(daemon: RunningDaemon) -> None:
    put_web(daemon, slice(0, 1))
    for number in range(6):
        fill(daemon, number)
    start(daemon)
    assert ALL == trees(daemon)
    listed = daemon.lab.run("node", f"iptables-{daemon.variant}", "-t", "nat", "-S").stdout.decode()
    found = [
        line for line in listed.splitlines() if "default/filler-4-3-77:http cluster IP" in line
    ]
    assert any("-d 10.96.4.78/32" in line and "-j KUBE-SVC-" in line for line in found)
    for number in range(6):
        assert isinstance(daemon.lab.probe("client", f"10.96.{number + 1}.{FILE}", 80), Answer)
        node_port = 31000 + number * FILE + number
        assert isinstance(daemon.lab.probe("client", daemon.lab.address("node"), node_port), Answer)

    before = [daemon.saved("nat", family) for family in WEB]
    daemon.stop()
    start(daemon)
    assert before == [daemon.saved("nat", family) for family in WEB]


def test_clean_up_takes_trees_with_it(daemon: RunningDaemon) -> None:
    for number in range(6):
        fill(daemon, number)
    start(daemon)
    assert ALL == trees(daemon)
    daemon.stop()
    assert 0 == daemon.run_to_end("--cleanup").returncode
    left = {x for f in WEB for t in ("nat", "filter") for x in daemon.chains(t, f) if "KUBE" in x}
    assert left <= {"KUBE-FIREWALL"}


def test_kube_proxy_can_take_a_node_with_trees_back(daemon: RunningDaemon) -> None:
    """It fills KUBE-SERVICES anew and removes all chains that are named as those of Services."""
    for number in range(6):
        fill(daemon, number)
    start(daemon)
    daemon.stop()
    names = [line[1:].split()[0] for line in daemon.saved() if line.startswith(":KUBE-S")]
    stale = [name for name in names if name.startswith(("KUBE-SVC-", "KUBE-SEP-"))]
    assert any(name.startswith(INDEX_PREFIX) for name in stale)
    emptied = "".join(f":{name} - [0:0]\n" for name in ("KUBE-SERVICES", "KUBE-NODEPORTS", *stale))
    removed = "".join(f"-X {name}\n" for name in stale if not name.startswith("KUBE-EXT-"))
    exits = [line[1:].split()[0] for line in daemon.saved() if line.startswith(":KUBE-EXT-")]
    emptied += "".join(f":{name} - [0:0]\n" for name in exits)
    removed += "".join(f"-X {name}\n" for name in exits)
    daemon.restore(f"*nat\n{emptied}{removed}COMMIT\n")
    assert [] == [x for x in daemon.saved() if "KUBE-SVC-" in x or "KUBE-SEP-" in x]
