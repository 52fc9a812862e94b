"""A storm of changes under traffic: no connection fails, and what is left is right."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from e2e.kernel.running import Customers, RunningDaemon, Visit, eventually
from e2e.lab import Lab
from pykubeproxy.model.objects import WireObject
from tests.build import endpoint, port, service, slice_, slice_port

POD = {"p1": "10.244.0.11", "p2": "10.244.0.12", "p3": "10.244.0.13"}
STORMY = 40
ROUNDS = 120
"""So often all clients come by during the storm."""
CHANGES_A_ROUND = 8
NODE_PORT = 30800

SEP_RULE = re.compile(
    r"-A KUBE-SEP-\w+ .*--comment \"default/(storm-\d+):http\" .*--to-destination (\S+):8080"
)


def objects(
    name: str, ip: str, pods: Iterable[str], node_port: int | None = None
) -> list[WireObject]:
    return [
        service(
            name,
            cluster_ip=ip,
            ports=[port(80, "http", node_port=node_port)],
            type="NodePort" if node_port else "ClusterIP",
        ),
        slice_(
            name, *(endpoint(POD[p], node="node") for p in pods), ports=[slice_port(8080, "http")]
        ),
    ]


def calm(count: int) -> list[WireObject]:
    """Services that nobody touches."""
    return [
        obj
        for n in range(count)
        for obj in objects(f"calm-{n}", f"10.96.{10 + n // 250}.{n % 250}", ("p1",))
    ]


def put(daemon: RunningDaemon, n: int, pods: Iterable[str]) -> None:
    """Give the stormy Service *n* these endpoints; every fourth has a node port too."""
    node_port = NODE_PORT + n if n % 4 == 0 else None
    daemon.write(f"storm-{n}", *objects(f"storm-{n}", f"10.96.2.{n}", pods, node_port))


def visits(lab: Lab) -> list[Visit]:
    """Calm and stormy ones, by cluster IP and node port, from outside, a pod and the node."""
    stormy = [("client", f"10.96.2.{n}", 80, "TCP") for n in range(10)]
    return [
        *stormy,
        ("client", lab.address("node"), NODE_PORT, "TCP"),
        ("p3", "10.96.2.5", 80, "TCP"),
        ("node", "10.96.2.6", 80, "TCP"),
        ("client", "10.96.10.7", 80, "TCP"),
    ]


def served(daemon: RunningDaemon) -> set[tuple[str, str]]:
    """Stormy Services and the endpoints that the kernel has for them."""
    return set(SEP_RULE.findall("\n".join(daemon.saved())))


@pytest.mark.parametrize("calm_services", [200, 600], ids=["a list of rules", "a tree of chains"])
def test_no_connection_fails_in_a_storm(
    lab: Lab, variant: str, tmp_path: Path, calm_services: int
) -> None:
    """All pods are alive, so whoever is sent to any of them at any time gets an answer."""
    chance = random.Random(4)
    wanted = {n: ["p1"] for n in range(STORMY)}
    daemon = RunningDaemon(lab, variant, tmp_path)
    daemon.write("calm", *calm(calm_services))
    for n, pods in wanted.items():
        put(daemon, n, pods)
    with daemon:
        with Customers(lab, *visits(lab), timeout=0.9) as customers:
            passes = daemon.synced()
            for _ in range(ROUNDS):
                for n in chance.choices(range(STORMY), k=CHANGES_A_ROUND):
                    wanted[n] = chance.sample(sorted(POD), chance.randint(1, 3))
                    put(daemon, n, wanted[n])
                come_and_go(daemon, chance)
                customers.go_on(1)
            expected = {(f"storm-{n}", POD[p]) for n, pods in wanted.items() for p in pods}
            eventually(lambda: expected == served(daemon), "the last changes are written")
            customers.go_on(5)
            passes = daemon.synced() - passes
        assert [] == customers.failures
        assert 1 <= passes < ROUNDS * CHANGES_A_ROUND / 2

        after = {table: sorted(daemon.saved(table)) for table in ("nat", "filter")}
        daemon.stop()
        daemon.start()
        assert after == {table: sorted(daemon.saved(table)) for table in after}


def come_and_go(daemon: RunningDaemon, chance: random.Random) -> None:
    """A Service that nobody asks for is there or not."""
    name = f"fleeting-{chance.randrange(5)}"
    if (daemon.manifests / f"{name}.json").exists():
        daemon.remove(name)
    else:
        daemon.write(name, *objects(name, f"10.96.3.{name[-1]}", ("p2",)))
