"""Rules of kube-proxy's ipvs mode, with the sets they match, give way to those of iptables mode."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon
from e2e.kernel.test_daemon import WEB, answered_by, web
from e2e.lab import TIMEOUT, Lab

IPVS_ONLY = re.compile(
    r"KUBE-(?:NODE-PORT|LOAD-BALANCER|SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER)\b"
)
ADDRESS_SETS = ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER", "KUBE-LOAD-BALANCER-FW")

IPVS_NAT = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
:MY-CHAIN - [0:0]
-A PREROUTING -j MY-CHAIN
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m comment --comment "Kubernetes service lb portal" \
-m set --match-set KUBE-LOAD-BALANCER dst,dst -j KUBE-LOAD-BALANCER
-A KUBE-SERVICES -m comment --comment \
"Kubernetes service cluster ip + port for masquerade purpose" \
-m set --match-set KUBE-CLUSTER-IP src,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-SERVICES -m set --match-set KUBE-LOAD-BALANCER dst,dst -j ACCEPT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade \
purpose" -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
"""
IPVS_FILTER = """\
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -s 203.0.113.66/32 -j DROP
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-PROXY-FIREWALL -m comment --comment "Kubernetes service load balancer ip + port for load \
balancer with sourceRange" -m set --match-set KUBE-LOAD-BALANCER-FW dst,dst \
-j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
"""


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    """Not started yet, on a node where kube-proxy ran in ipvs mode."""
    sets = [f"create {name} hash:ip,port" for name in ADDRESS_SETS]
    sets += ["create KUBE-IPVS-IPS hash:ip", "create KUBE-NODE-PORT-TCP bitmap:port range 0-65535"]
    sets += [f"add KUBE-CLUSTER-IP {WEB},tcp:80", f"add KUBE-IPVS-IPS {WEB}"]
    lab.run("node", "ipset", "restore", input="\n".join([*sets, ""]))
    daemon = RunningDaemon(lab, variant, tmp_path)
    daemon.restore(IPVS_NAT)
    daemon.restore(IPVS_FILTER)
    daemon.write("web", *web("p1"))
    yield daemon
    daemon.stop()


def of_ipvs(daemon: RunningDaemon) -> list[str]:
    """Lines about chains and sets of ipvs mode."""
    lines = [line for table in ("nat", "filter") for line in daemon.saved(table)]
    return [x for x in lines if IPVS_ONLY.search(x) or "--match-set" in x or "kube-proxy" in x]


def test_rules_of_ipvs_mode_are_replaced(daemon: RunningDaemon) -> None:
    assert of_ipvs(daemon)
    daemon.start()
    assert of_ipvs(daemon) == []
    assert answered_by(daemon.lab) == "p1"
    assert daemon.says("synced", "family=IPv4")
    assert not daemon.says("quarantined")
    # Nothing refers to a set any more, so all can go.
    daemon.lab.run("node", "ipset", "destroy")

    foreign, filters = daemon.saved(), daemon.saved("filter")
    assert "-A PREROUTING -j MY-CHAIN" in foreign
    assert "-A INPUT -s 203.0.113.66/32 -j DROP" in filters
    assert filters.count("-A INPUT -j KUBE-FIREWALL") == 1
    walls = [x for x in filters if x.endswith("-j KUBE-PROXY-FIREWALL")]
    assert len(walls) == 3
    assert all("--ctstate NEW" in wall for wall in walls)


def test_a_second_start_writes_nothing(daemon: RunningDaemon) -> None:
    daemon.start()
    daemon.stop()
    before = {table: daemon.saved(table) for table in ("nat", "filter", "mangle")}
    daemon.start()
    assert {table: daemon.saved(table) for table in before} == before
    last = [line for line in daemon.text().splitlines() if " synced family=IPv4 " in line][-1]
    assert " lines=0 " in last


def test_what_somebody_hangs_on_an_old_chain_holds_nothing_else_up(daemon: RunningDaemon) -> None:
    daemon.restore("*nat\n-A MY-CHAIN -j KUBE-LOAD-BALANCER\nCOMMIT\n")
    daemon.start()
    assert answered_by(daemon.lab) == "p1"
    assert {"KUBE-LOAD-BALANCER"} == {c for c in daemon.chains() if IPVS_ONLY.search(c)}
    assert not [c for c in daemon.chains("filter") if IPVS_ONLY.search(c)]


def test_cleanup_removes_the_rules_of_ipvs_mode(daemon: RunningDaemon) -> None:
    done = daemon.run_to_end("--cleanup")
    assert done.returncode == 0, done.stderr.decode()
    lines = [line for table in ("nat", "filter") for line in daemon.saved(table)]
    assert {":KUBE-FIREWALL -", "-A INPUT -j KUBE-FIREWALL"} == {x for x in lines if "KUBE-" in x}
    assert "-A PREROUTING -j MY-CHAIN" in lines
    assert daemon.lab.probe("client", WEB, 80) is TIMEOUT
