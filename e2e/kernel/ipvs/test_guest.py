"""The kernel these tests run on has what the IPVS mode needs, and the lab works on it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.guest import has_ip_vs, in_guest
from e2e.lab import REFUSED, Answer, Lab, has_sctp

SCHEDULERS = (
    *("rr", "wrr", "lc", "wlc", "sh", "dh", "mh", "sed", "nq", "lblc", "lblcr", "fo", "ovf"),
)
SET_TYPES = (
    *("hash:ip", "hash:ip,port", "hash:ip,port,ip", "hash:ip,port,net", "hash:net"),
    *("list:set", "bitmap:port range 0-65535"),
)
VIP = "10.96.0.20"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def test_the_kernel_speaks_ipvs() -> None:
    assert has_ip_vs()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_is_there_when_it_is_asked_for(lab: Lab, scheduler: str) -> None:
    server = ("-t", f"{VIP}:80")
    lab.run("node", "ipvsadm", "-A", *server, "-s", scheduler)
    shown = lab.run("node", "ipvsadm", "-Ln", *server).stdout.decode()
    lab.run("node", "ipvsadm", "-D", *server)
    assert f"TCP  {VIP}:80 {scheduler}" in shown


@pytest.mark.parametrize("kind", SET_TYPES)
@pytest.mark.parametrize("family", ["inet", "inet6"])
def test_a_set_can_be_matched_by_a_rule(lab: Lab, kind: str, family: str) -> None:
    without_family = kind.startswith(("list:", "bitmap:"))
    options = () if without_family else ("family", family)
    lab.run("node", "ipset", "create", "TEST", *kind.split(), *options)
    tool = "iptables-legacy" if family == "inet" else "ip6tables-legacy"
    directions = ",".join("dst" for _ in kind.split(":")[1].split(","))
    rule = ("OUTPUT", "-m", "set", "--match-set", "TEST", directions, "-j", "ACCEPT")
    lab.run("node", tool, "-t", "nat", "-A", *rule)
    lab.run("node", tool, "-t", "nat", "-D", *rule)
    lab.run("node", "ipset", "destroy", "TEST")


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
def test_rules_see_what_ipvs_does(lab: Lab, tool: str) -> None:
    rule = ("POSTROUTING", "-m", "ipvs", "--ipvs", "--vdir", "ORIGINAL", "-j", "MASQUERADE")
    lab.run("node", tool, "-t", "nat", "-A", *rule)
    lab.run("node", tool, "-t", "nat", "-D", *rule)


def test_there_are_dummy_devices(lab: Lab) -> None:
    lab.run("node", "ip", "link", "add", "test-ipvs0", "type", "dummy")
    lab.run("node", "ip", "link", "del", "test-ipvs0")


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
@pytest.mark.parametrize("version", [4, 6])
def test_pods_answer(lab: Lab, version: int, protocol: str) -> None:
    if protocol == "SCTP" and not has_sctp():
        with pytest.raises(OSError):
            socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)
        return
    answer = lab.probe("client", lab.address("p1", version), 8080, protocol, timeout=2.0)
    assert Answer("p1", 8080, lab.address("client", version)) == answer
    node = lab.address("node", version)
    assert lab.probe("client", node, 81, protocol, timeout=3.0) is REFUSED


@pytest.mark.parametrize("version", [4, 6])
def test_a_virtual_server_serves(lab: Lab, version: int) -> None:
    vip = {4: VIP, 6: "fd00:96::20"}[version]
    pod = lab.address("p1", version)
    server, real = (
        (f"{vip}:80", f"{pod}:8080") if version == 4 else (f"[{vip}]:80", f"[{pod}]:8080")
    )
    lab.run("node", "ip", "link", "add", "test-ipvs0", "type", "dummy")
    lab.run("node", "ip", "addr", "add", vip, "dev", "test-ipvs0")
    lab.run("node", "ipvsadm", "-A", "-t", server, "-s", "rr")
    lab.run("node", "ipvsadm", "-a", "-t", server, "-r", real, "-m")
    answer = lab.probe("client", vip, 80, timeout=3.0)
    lab.run("node", "ipvsadm", "-D", "-t", server)
    lab.run("node", "ip", "link", "del", "test-ipvs0")
    assert Answer("p1", 8080, lab.address("client", version)) == answer


@pytest.mark.skipif(not in_guest(), reason="about the guest")
def test_what_is_written_stays_in_the_guest(tmp_path: Path) -> None:
    mounts = Path("/proc/mounts").read_text().splitlines()
    places = {line.split()[1]: line.split()[2] for line in mounts}
    above = [str(path) for path in tmp_path.parents if str(path) in places]
    assert places[above[0]] == "tmpfs"


@pytest.mark.skipif(not in_guest(), reason="about the guest")
def test_modprobe_finds_the_modules_of_the_guest() -> None:
    subprocess.run(["modprobe", "--dry-run", "ip_vs_ovf"], check=True)
