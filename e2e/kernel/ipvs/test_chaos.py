"""Everything changes and others interfere, at once; in the end all is as if nothing had been."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.kernel.ipvs.ipvs_node import DEVICE, IpvsDaemon, answers, app
from e2e.kernel.running import eventually
from e2e.lab import Lab
from pykubeproxy.model.objects import WireObject

SEED = 20261
ROUNDS = 6
NAMES = range(10)
PODS = ("p1", "p2", "p3", "r1", "r2")
CLUSTER = {4: "10.96.1.{}", 6: "fd00:96::1:{}"}
EXTERNAL = {4: "203.0.113.{}", 6: "2001:db8:113::{}"}
CLIENTS = {4: "192.0.2.0/24", 6: "2001:db8:2::/64"}

Picture = dict[str, list[str]]

OTHERS = (
    "ipvsadm -C",
    "ipvsadm -A -t 10.96.1.99:80 -s wlc && ipvsadm -a -t 10.96.1.99:80 -r 10.244.0.77:80 -m",
    "ipset flush",
    "ipset flush KUBE-CLUSTER-IP; ipset add KUBE-IPVS-IPS 10.96.1.99",
    f"ip link del {DEVICE}",
    f"ip link del {DEVICE}; ip link add {DEVICE} type dummy",
    f"ip addr add 10.96.1.98/24 dev {DEVICE}; ip addr flush to 10.96.1.0/28 dev {DEVICE}",
    "iptables-legacy -F",
    "ip6tables-legacy -t nat -F; ip6tables-legacy -t nat -X",
    "iptables-legacy -t nat -F; iptables-legacy -F; ipset destroy KUBE-EXTERNAL-IP"
    " && ipset create KUBE-EXTERNAL-IP hash:ip",
)
"""What they do to the node, for a shell."""


class Tools:
    """A directory with an iptables-restore that is killed when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._dies = directory / "dies"
        directory.mkdir()
        for name in ("iptables-legacy-restore", "ip6tables-legacy-restore"):
            real = f'{shutil.which(name)} "$@"'
            # Before or after it has done its work.
            death = f"rm {self._dies}; [ $(($$ % 2)) = 0 ] && {real}; kill -9 $$"
            program = directory / name
            program.write_text(
                f"#!/bin/sh\nif [ -e {self._dies} ]; then {death}; fi\nexec {real}\n"
            )
            program.chmod(0o755)

    def die_next_time(self) -> None:
        self._dies.touch()

    def live(self) -> None:
        self._dies.unlink(missing_ok=True)


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path / "tools")


@pytest.fixture
def daemon(tmp_path: Path, tools: Tools) -> Iterator[IpvsDaemon]:
    flags = ("--ipvs-sync-period=1s", "--ipvs-drain-timeout=2s")
    with Lab() as lab, IpvsDaemon(lab, tmp_path, *flags, path=tools.directory) as daemon:
        yield daemon


def some_service(dice: random.Random, number: int) -> list[WireObject]:
    version = dice.choice((4, 6))
    external = [EXTERNAL[version].format(n) for n in range(1, 5)]
    kind = dice.choice(("ClusterIP", "NodePort", "LoadBalancer"))
    spec: dict[str, object] = {
        "type": kind,
        "created": f"20{dice.choice((20, 21))}-01-01T00:00:00Z",
    }
    if kind != "ClusterIP":
        spec["node_port"] = 30100 + number
    if kind == "LoadBalancer":
        spec["vips"] = dice.sample(external, k=dice.choice((1, 2)))
        spec["source_ranges"] = dice.choice(((), (CLIENTS[version],)))
        spec["external_policy"] = dice.choice((None, "Local"))
    if dice.random() < 0.4:
        neighbour = CLUSTER[version].format(10 + (number + 1) % len(NAMES))
        spec["external_ips"] = dice.sample((*external, neighbour), k=1)
    return list(
        app(
            f"s-{number}-{version}",
            CLUSTER[version].format(10 + number),
            *dice.sample(PODS, k=dice.randint(0, 3)),
            ports=(80 + dice.randint(0, 1),),
            protocol=dice.choice(("TCP", "TCP", "UDP", "SCTP")),
            affinity_seconds=dice.choice((None, None, 600)),
            scheduler=dice.choice((None, None, "lc", "mh", "nobody")),
            **spec,
        )
    )


def picture(daemon: IpvsDaemon) -> Picture:
    """All of ipvs mode, without what differs from one device, set or order to another."""
    found = daemon.state()
    found["device"] = [re.sub(r"^\d+: ", "", line) for line in found["device"]]
    found["sets"] = [re.sub(r" (hashsize|initval) \S+", "", line) for line in found["sets"]]
    shared = "-A KUBE-IPVS-OUT-FILTER "
    found["rules"].sort(key=lambda line: line if line.startswith(shared) else "")
    return found


def test_all_is_put_right_in_the_end(daemon: IpvsDaemon, tools: Tools, tmp_path: Path) -> None:
    dice = random.Random(SEED)
    wanted: dict[int, list[WireObject]] = {}

    def change() -> None:
        number = dice.choice(NAMES)
        if number in wanted and dice.random() < 0.3:
            del wanted[number]
            daemon.remove(f"o{number}")
        else:
            wanted[number] = some_service(dice, number)
            daemon.write(f"o{number}", *wanted[number])

    def somebody_interferes() -> None:
        daemon.lab.run("node", "sh", "-c", dice.choice(OTHERS), check=False)

    def replaced() -> None:
        dice.choice((daemon.stop, daemon.kill))()
        change()
        tools.live()  # a tool that is killed at the start ends the daemon, with a sentence
        daemon.start()

    events: list[Callable[[], None]] = [somebody_interferes, tools.die_next_time]
    for number in range(ROUNDS):
        for _ in range(3):
            change()
        dice.choice(events)()
        if number % 3 == 2:
            replaced()
    tools.live()

    with Lab() as elsewhere:
        (tmp_path / "fresh").mkdir()
        fresh = IpvsDaemon(elsewhere, tmp_path / "fresh")
        fresh.write("all", *(obj for objects in wanted.values() for obj in objects))
        with fresh:
            expected = picture(fresh)
    try:
        eventually(lambda: picture(daemon) == expected, "all is as a fresh daemon has it", 30)
    except AssertionError:
        assert expected == picture(daemon)  # says what is not
    assert not daemon.says("Traceback")
    daemon.write("last", *app("last", "10.96.1.200", "p1"), *app("six", "fd00:96::1:200", "p2"))
    eventually(lambda: daemon.serves("fd00:96::1:200", "p2"), "it goes on")
    for ip, pod in (("10.96.1.200", "p1"), ("fd00:96::1:200", "p2")):
        assert [pod] * 3 == [answers(daemon.lab, ip, 80, who) for who in ("client", "p3", "node")]
