"""The daemon in ipvs mode on the node of a lab, and what programs of others say is there.

``ipvsadm``, ``ipset``, ``ip`` and ``iptables-legacy-save`` read; nothing of ours does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Answer, Connection, Lab
from e2e.lab.addresses import LOCAL_PODS
from e2e.lab.fetch import fetch
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import endpoint, port, service, slice_, slice_port

__all__ = [
    "BRISK",
    "DEVICE",
    "IpvsDaemon",
    "Reals",
    "answers",
    "app",
    "at",
    "connection",
    "pods",
]

BRISK = "--ipvs-min-sync-period=50ms"
DEVICE = "kube-ipvs0"

Reals = dict[str, int]
"""Weight of each real server, by ``address:port``."""


def app(
    name: str,
    ip: str,
    *pods: str,
    ports: Sequence[int] = (80,),
    protocol: str = "TCP",
    node_port: int | None = None,
    **spec: Any,
) -> tuple[Service, EndpointSlice]:
    """A Service at cluster IP *ip* whose endpoints are *pods*, each on its port 8080."""
    version = 6 if ":" in ip else 4
    names = [f"p{number}" for number in ports]
    return (
        service(
            name,
            cluster_ip=ip,
            ports=[
                port(n, name, protocol, node_port) for n, name in zip(ports, names, strict=True)
            ],
            **spec,
        ),
        slice_(
            name,
            *(
                endpoint(Lab.address(pod, version), node="node" if pod in LOCAL_PODS else "far")
                for pod in pods
            ),
            ports=[slice_port(8080, name, protocol) for name in names],
            address_type="IPv6" if version == 6 else "IPv4",
        ),
    )


def at(address: str, number: int) -> str:
    """Address and port as ipvsadm writes them."""
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def pods(ip: str, *names: str, weight: int = 1) -> Reals:
    """The real servers of *names* in the IP version of *ip*."""
    version = 6 if ":" in ip else 4
    return {at(Lab.address(name, version), 8080): weight for name in names}


def answers(
    lab: Lab, ip: str, number: int = 80, sender: str = "client", protocol: str = "TCP"
) -> str:
    """Which pod answered, or why none did."""
    reply = lab.probe(sender, ip, number, protocol, timeout=2.0)
    return reply.server if isinstance(reply, Answer) else reply.name


class IpvsDaemon(RunningDaemon):
    """`RunningDaemon` in ipvs mode; `start` returns when both families are written."""

    def __init__(
        self,
        lab: Lab,
        directory: Path,
        *flags: str,
        mode: str = "ipvs",
        path: Path | None = None,
    ) -> None:
        super().__init__(lab, "legacy", directory, BRISK, *flags, mode=mode, path=path)

    def start(self) -> None:
        before = self.synced("IPv6")
        super().start()
        eventually(lambda: self.synced("IPv6") > before, "a first sync of IPv6", 30)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of *name* with these labels; 0 where there is none."""
        found = 0.0
        for line in fetch(self.lab, "/metrics", 10249).body.splitlines():
            sample, _, value = line.rpartition(" ")
            wanted = [f'{key}="{text}"' for key, text in labels.items()]
            if sample.partition("{")[0] == name and all(text in sample for text in wanted):
                found += float(value)
        return found

    # --- virtual servers ---

    def tool(self, *argv: str, input: str | None = None) -> str:
        return self.lab.run("node", *argv, input=input).stdout.decode()

    def servers(self) -> dict[str, str]:
        """Options by ``-t address:port`` of each virtual server, as ``ipvsadm -Sn`` prints them."""
        lines = [line.split(" ") for line in self.tool("ipvsadm", "-Sn").splitlines()]
        return {" ".join(x[1:3]): " ".join(x[3:]).strip() for x in lines if x[0] == "-A"}

    def reals(self, ip: str, number: int = 80, kind: str = "t") -> Reals | None:
        """The real servers of a virtual server; ``None`` if there is no such one."""
        server = f"-{kind} {at(ip, number)}"
        found: Reals | None = None
        for line in self.tool("ipvsadm", "-Sn").splitlines():
            verb, rest = line.split(" ", 1)
            if not f"{rest} ".startswith(f"{server} "):
                continue
            found = {} if found is None else found
            if verb == "-a":
                words = rest.split()
                found[words[words.index("-r") + 1]] = int(words[words.index("-w") + 1])
        return found

    def serves(self, ip: str, *names: str, number: int = 80) -> bool:
        """Tell whether new connections go to *names* and nobody else."""
        found = self.reals(ip, number)
        return found is not None and pods(ip, *names) == {r: w for r, w in found.items() if w}

    def connections(self) -> dict[str, int]:
        """How many connections each virtual and real server had since it was made.

        The kernel adds new ones up every two seconds.
        """
        found: dict[str, int] = {}
        above = ""
        for line in self.tool("ipvsadm", "-Ln", "--stats", "--exact").splitlines()[3:]:
            words = line.split()
            if words[0] != "->":
                above = " ".join(words[:2])
            found[above if words[0] != "->" else f"{above} {words[1]}"] = int(words[2])
        return found

    # --- the rest ---

    def bound(self) -> set[str]:
        """Addresses on the device."""
        shown = self.tool("ip", "-o", "addr", "show", "dev", DEVICE)
        return {word.split("/")[0] for word in re.findall(r" inet6? (\S+)", shown)}

    def entries(self, name: str) -> set[str]:
        """What is in a set."""
        lines = self.tool("ipset", "save", name).splitlines()
        return {line.split(" ", 2)[2] for line in lines if line.startswith("add ")}

    def rules(self) -> list[str]:
        """Chains and rules of both families."""
        tables = ("nat", "filter", "mangle")
        return [line for family in (4, 6) for table in tables for line in self.saved(table, family)]

    def part(self, name: str) -> list[str]:
        """One part of ipvs mode as its tool tells it, in an order that says nothing."""
        if name == "rules":
            return self.rules()
        tool = {
            "servers": "ipvsadm -Sn",
            # New enough, it tells the random seed of a hash: that of one made anew differs.
            "sets": "ipset save",
            "device": f"ip -o addr show dev {DEVICE}",
        }[name]
        return sorted(self.tool(*tool.split()).splitlines())

    def state(self) -> dict[str, list[str]]:
        """All of ipvs mode on this node."""
        return {name: self.part(name) for name in ("servers", "sets", "device", "rules")}

    def traces(self) -> list[str]:
        """What is left of ipvs mode: servers, sets, the device, chains that only it has."""
        only_here = re.compile(
            r"KUBE-(NODE-PORT|LOAD-BALANCER|SOURCE-RANGES-FIREWALL|IPVS-\S+)\b|--match-set"
        )
        return [
            *self.servers(),
            *self.tool("ipset", "list", "-n").split(),
            *re.findall(DEVICE, self.tool("ip", "-o", "link")),
            *(line for line in self.rules() if only_here.search(line)),
        ]


@contextmanager
def connection(lab: Lab, ip: str, number: int = 80, sender: str = "client") -> Iterator[Connection]:
    """A TCP connection to *ip*, closed at the end."""
    opened = lab.connect(sender, ip, number)
    try:
        yield opened
    finally:
        opened.close()
