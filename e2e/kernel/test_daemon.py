"""The life of the daemon on a real kernel: starting over others' rules, misfortune, ending."""

from __future__ import annotations

import fcntl
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import Customers, RunningDaemon, eventually
from e2e.lab import REFUSED, TIMEOUT, Answer, Lab
from e2e.lab.fetch import fetch
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import endpoint, port, service, slice_, slice_port

WEB = "10.96.0.10"
POD = {"p1": "10.244.0.11", "p2": "10.244.0.12", "p3": "10.244.0.13"}


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path) -> Iterator[RunningDaemon]:
    """Not started yet."""
    daemon = RunningDaemon(lab, variant, tmp_path)
    yield daemon
    daemon.stop()


def web(*pods: str, name: str = "web", ip: str = WEB) -> tuple[Service, EndpointSlice]:
    """A Service on port 80 whose endpoints are *pods*."""
    return (
        service(name, cluster_ip=ip, ports=[port(80, "http")]),
        slice_(
            name, *(endpoint(POD[p], node="node") for p in pods), ports=[slice_port(8080, "http")]
        ),
    )


def answered_by(lab: Lab, ip: str = WEB, sender: str = "client") -> str:
    reply = lab.probe(sender, ip, 80)
    return reply.server if isinstance(reply, Answer) else reply.name


# --- taking over -------------------------------------------------------------------------------

KUBE_PROXY_FILTER = """\
*filter
:KUBE-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" \
-j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"""
KUBE_PROXY_NAT = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-GONE5ERV1CE00000 - [0:0]
:KUBE-SEP-GONE5ERV1CE00001 - [0:0]
:MY-FIREWALL - [0:0]
-A MY-FIREWALL -s 203.0.113.77/32 -j RETURN
-A PREROUTING -j MY-FIREWALL
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-SERVICES -d 10.96.0.99 -p tcp -m tcp --dport 80 -j KUBE-SVC-GONE5ERV1CE00000
-A KUBE-SVC-GONE5ERV1CE00000 -j KUBE-SEP-GONE5ERV1CE00001
-A KUBE-SEP-GONE5ERV1CE00001 -p tcp -m tcp -j DNAT --to-destination 10.244.0.12:8080
COMMIT
"""


def test_rules_of_kube_proxy_are_adopted_and_its_leftovers_removed(daemon: RunningDaemon) -> None:
    daemon.restore(KUBE_PROXY_FILTER)
    daemon.restore(KUBE_PROXY_NAT)
    daemon.write("web", *web("p1"))
    daemon.start()

    assert answered_by(daemon.lab) == "p1"
    assert answered_by(daemon.lab, "10.96.0.99") == TIMEOUT.name
    assert not [c for c in daemon.chains() if "GONE" in c]
    nat = daemon.saved()
    assert "-A MY-FIREWALL -s 203.0.113.77/32 -j RETURN" in nat
    assert "-A PREROUTING -j MY-FIREWALL" in nat
    for target in ("KUBE-SERVICES", "KUBE-POSTROUTING"):
        for chain in ("PREROUTING", "OUTPUT", "POSTROUTING"):
            lines = [x for x in nat if x.startswith(f"-A {chain} ") and x.endswith(target)]
            assert len(lines) <= 1, lines
    forward = [x for x in daemon.saved("filter") if x.endswith("-j KUBE-FORWARD")]
    assert len(forward) == 1


def test_rules_of_kube_proxys_nftables_mode_are_replaced(daemon: RunningDaemon) -> None:
    old = "table ip kube-proxy {\nchain output {\ntype nat hook output priority -100;\n}\n}"
    daemon.lab.run("node", "nft", "-f", "-", input=f"{old}\ntable ip theirs {{\n}}\n")
    daemon.write("web", *web("p1"))
    daemon.start()

    def tables() -> str:
        return daemon.lab.run("node", "nft", "list", "tables").stdout.decode()

    eventually(lambda: "kube-proxy" not in tables(), "the old tables are gone")
    assert "table ip theirs" in tables()
    assert answered_by(daemon.lab) == "p1"


def test_starting_again_changes_no_rule_and_breaks_no_connection(daemon: RunningDaemon) -> None:
    daemon.write("web", *web("p1"))
    daemon.start()
    before = {table: daemon.saved(table) for table in ("nat", "filter", "mangle")}
    connection = daemon.lab.connect("client", WEB, 80)

    assert daemon.stop() == 0
    assert {table: daemon.saved(table) for table in before} == before
    assert answered_by(daemon.lab) == "p1"
    daemon.start()

    assert {table: sorted(daemon.saved(table)) for table in before} == {
        table: sorted(lines) for table, lines in before.items()
    }
    assert connection.ask()
    connection.close()


def customers_of_web(lab: Lab) -> Customers:
    return Customers(lab, ("client", WEB, 80, "TCP"), timeout=0.9)


def test_no_connection_fails_while_the_daemon_is_replaced(daemon: RunningDaemon) -> None:
    """A restart writes all chains anew, in batches, under traffic."""
    many = [obj for n in range(250) for obj in web("p1", "p3", name=f"s-{n}", ip=f"10.96.2.{n}")]
    daemon.write("many", *many)
    daemon.write("web", *web("p1", "p2"))
    daemon.start()
    with customers_of_web(daemon.lab) as customers:
        daemon.stop()
        daemon.start()
        customers.go_on(50)
    assert customers.failures == []


def test_no_connection_fails_while_endpoints_change(daemon: RunningDaemon) -> None:
    daemon.write("web", *web("p1"))
    daemon.start()
    with customers_of_web(daemon.lab) as customers:
        for pods in (("p1", "p2"), ("p2",), ("p2", "p3"), ("p1", "p2", "p3"), ("p1",)) * 4:
            before = daemon.synced()
            daemon.write("web", *web(*pods))
            eventually(lambda before=before: daemon.synced() > before, "a pass")
    assert customers.failures == []
    assert customers.rounds > 20


def test_the_variant_of_kubelets_hint_chain_is_used(lab: Lab, variant: str, tmp_path: Path) -> None:
    lab.run("node", f"iptables-{variant}", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    daemon = RunningDaemon(lab, variant, tmp_path, "--iptables-variant=auto")
    daemon.write("web", *web("p1"))
    with daemon:
        assert daemon.says("iptables variant", f"variant={variant}", "hint")
        assert "KUBE-SERVICES" in daemon.chains()


# --- changes -----------------------------------------------------------------------------------


def test_endpoints_come_and_go_while_running(daemon: RunningDaemon) -> None:
    daemon.write("web", *web("p1"))
    daemon.start()
    assert answered_by(daemon.lab) == "p1"

    daemon.write("web", *web("p2"))
    eventually(lambda: answered_by(daemon.lab) == "p2", "the new endpoint answers")
    daemon.write("web", *web())
    eventually(lambda: daemon.lab.probe("client", WEB, 80) is REFUSED, "refused without endpoints")
    daemon.write("web", *web("p1", "p3"))
    eventually(
        lambda: set(daemon.lab.burst("client", WEB, 80, 20).servers) == {"p1:8080", "p3:8080"},
        "both endpoints answer",
    )
    daemon.remove("web")
    eventually(lambda: daemon.lab.probe("client", WEB, 80) is TIMEOUT, "the Service is gone")
    assert not daemon.rules_about("default/web")
    assert not [c for c in daemon.chains() if c.startswith("KUBE-SVC-")]


def test_a_change_of_one_service_writes_only_its_chains(daemon: RunningDaemon) -> None:
    others = [obj for n in range(50) for obj in web("p1", name=f"other-{n}", ip=f"10.96.1.{n}")]
    daemon.write("others", *others)
    daemon.write("web", *web("p1"))
    daemon.start()
    daemon.write("web", *web("p1", "p2"))
    eventually(lambda: daemon.synced() == 2, "a second pass")

    last = [line for line in daemon.text().splitlines() if " synced family=IPv4 " in line][-1]
    # SVC rewritten, one SEP added: table line, 2 chain lines, 3 + 2 rules, COMMIT.
    assert "lines=9 " in last
    assert "services=1 " in last


def test_a_udp_client_moves_to_a_living_endpoint(daemon: RunningDaemon) -> None:
    def dns(*pods: str) -> tuple[Service, EndpointSlice]:
        return (
            service("dns", cluster_ip="10.96.0.53", ports=[port(53, "dns", "UDP")]),
            slice_(
                "dns",
                *(endpoint(POD[p], node="node") for p in pods),
                ports=[slice_port(8080, "dns", "UDP")],
            ),
        )

    def flows() -> str:
        done = daemon.lab.run("node", "conntrack", "-L", "-p", "udp", check=False)
        return done.stdout.decode()

    daemon.write("dns", *dns("p1"))
    daemon.start()
    assert isinstance(daemon.lab.probe("client", "10.96.0.53", 53, "UDP"), Answer)
    assert "src=10.244.0.11" in flows()
    daemon.write("dns", *dns())
    eventually(
        lambda: daemon.lab.probe("client", "10.96.0.53", 53, "UDP") is REFUSED, "no endpoints"
    )
    assert "src=10.244.0.11" in flows()
    daemon.write("dns", *dns("p2"))
    eventually(lambda: "src=10.244.0.11" not in flows(), "the flow to the dead endpoint is gone")
    reply = daemon.lab.probe("client", "10.96.0.53", 53, "UDP")
    assert isinstance(reply, Answer)
    assert reply.server == "p2"


# --- misfortune --------------------------------------------------------------------------------


def flush(daemon: RunningDaemon) -> None:
    for table in ("mangle", "nat", "filter"):
        daemon.lab.run("node", f"iptables-{daemon.variant}", "-t", table, "-F")
        daemon.lab.run("node", f"iptables-{daemon.variant}", "-t", table, "-X")


def test_flushed_rules_come_back(lab: Lab, variant: str, tmp_path: Path) -> None:
    with RunningDaemon(
        lab, variant, tmp_path, "--iptables-sync-period=1s", "--iptables-min-sync-period=100ms"
    ) as daemon:
        daemon.write("web", *web("p1"))
        eventually(lambda: answered_by(lab) == "p1", "served")
        before = sorted(daemon.saved())
        flush(daemon)
        eventually(lambda: answered_by(lab) == "p1", "served again")
        assert sorted(daemon.saved()) == before
        assert daemon.says("flushed by somebody else")


def test_another_holder_of_the_lock_is_waited_for(lab: Lab, tmp_path: Path) -> None:
    lock = tmp_path / "xtables.lock"
    with (
        RunningDaemon(
            lab, "legacy", tmp_path, environment={"XTABLES_LOCKFILE": str(lock)}
        ) as daemon,
        lock.open("w") as held,
    ):
        fcntl.flock(held, fcntl.LOCK_EX)
        daemon.write("web", *web("p1"))
        eventually(lambda: daemon.says("holds the xtables lock"), "the waiting is shown")
        assert lab.probe("client", WEB, 80) is TIMEOUT
        fcntl.flock(held, fcntl.LOCK_UN)
        eventually(lambda: answered_by(lab) == "p1", "served once the lock is free")


def tool(directory: Path, name: str, script: str) -> Path:
    """A program of ours that stands before the real one in PATH."""
    path = directory / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_tool_leads_to_a_read_back_and_repair(
    lab: Lab, variant: str, tmp_path: Path, moment: str
) -> None:
    tools, armed = tmp_path / "bin", tmp_path / "armed"
    tools.mkdir()
    name = f"iptables-{variant}-restore"
    write = f'/usr/sbin/{name} "$@"' if moment == "after" else "cat >/dev/null"
    tool(
        tools,
        name,
        f"if [ -e {armed} ]; then rm {armed}; {write}; kill -9 $$; fi\n"
        f'exec /usr/sbin/{name} "$@"\n',
    )
    with RunningDaemon(lab, variant, tmp_path, path=tools) as daemon:
        daemon.write("web", *web("p1"))
        eventually(lambda: answered_by(lab) == "p1", "served")
        armed.touch()
        daemon.write("web", *web("p2"))
        eventually(lambda: answered_by(lab) == "p2", "served after the repair")
        eventually(lambda: daemon.says("syncing again"), "recovered")
        assert daemon.says("sync failed", "signal 9")
        assert POD["p1"] not in "\n".join(daemon.saved())


def test_a_tool_that_refuses_everything_is_no_fault_of_the_one_service_that_waits(
    lab: Lab, variant: str, tmp_path: Path
) -> None:
    tools, armed = tmp_path / "bin", tmp_path / "armed"
    tools.mkdir()
    name = f"iptables-{variant}-restore"
    tool(
        tools,
        name,
        f"if [ -e {armed} ]; then cat >/dev/null; echo Permission denied >&2; exit 1; fi\n"
        f'exec /usr/sbin/{name} "$@"\n',
    )
    flags = ("--iptables-sync-period=1s", "--iptables-min-sync-period=1s")
    with RunningDaemon(lab, variant, tmp_path, *flags, path=tools) as daemon:

        def health() -> int:
            return fetch(lab, "/healthz", 10256).status

        eventually(lambda: health() == 200, "healthy")
        armed.touch()
        daemon.write("web", *web("p1"))
        eventually(lambda: health() == 503, "unhealthy after two sync periods")
        assert daemon.says("sync failed", "everything is refused", "Permission denied")
        assert not daemon.says("default/web", "quarantine")
        armed.unlink()
        eventually(lambda: answered_by(lab) == "p1", "served")
        eventually(lambda: health() == 200, "healthy again")


@pytest.mark.parametrize("tells", ["the line", "nothing"])
def test_a_refused_service_is_named_and_the_others_land(
    lab: Lab, variant: str, tmp_path: Path, tells: str
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    name = f"iptables-{variant}-restore"
    message = "line $at failed" if tells == "the line" else "failed"
    tool(
        tools,
        name,
        f"""input={tmp_path}/input
        cat >$input
        at=$(grep -n default/bad $input | head -n 1 | cut -d: -f1)
        if [ -n "$at" ]; then echo "{name}: {message}" >&2; exit 1; fi
        exec /usr/sbin/{name} "$@" <$input
        """,
    )
    good = [obj for n in range(20) for obj in web("p1", name=f"good-{n}", ip=f"10.96.1.{n}")]
    with RunningDaemon(lab, variant, tmp_path, path=tools) as daemon:
        daemon.write("all", *good, *web("p2", name="bad", ip="10.96.0.66"))
        eventually(lambda: daemon.says("service quarantined"), "the refusal is reported")
        assert daemon.says("service quarantined", "service=default/bad", f"{name}:")
        assert {answered_by(lab, f"10.96.1.{n}") for n in range(20)} == {"p1"}
        assert not daemon.says("service quarantined", "good")

        (tools / name).unlink()
        eventually(lambda: answered_by(lab, "10.96.0.66") == "p2", "served once it is accepted")
        eventually(lambda: daemon.says("out of quarantine", "default/bad"), "the end is reported")


# --- ending ------------------------------------------------------------------------------------


def test_cleanup_removes_everything_of_ours_and_only_that(daemon: RunningDaemon) -> None:
    daemon.restore("*nat\n:MY-CHAIN - [0:0]\n-A PREROUTING -j MY-CHAIN\nCOMMIT\n")
    daemon.lab.run(
        "node", f"iptables-{daemon.variant}", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"
    )
    daemon.write("web", *web("p1"))
    daemon.start()
    daemon.stop()

    done = daemon.run_to_end("--cleanup")

    assert done.returncode == 0, done.stderr.decode()
    for family in (4, 6):
        for table in ("nat", "filter", "mangle"):
            left = [
                x for x in daemon.saved(table, family) if re.search(r"KUBE-(?!FIREWALL|KUBELET)", x)
            ]
            assert left == []
    assert "-A PREROUTING -j MY-CHAIN" in daemon.saved()
    assert "KUBE-KUBELET-CANARY" in daemon.chains("mangle")
    assert "KUBE-FIREWALL" in daemon.chains("filter")
    assert daemon.lab.probe("client", WEB, 80) is TIMEOUT

    again = daemon.run_to_end("--cleanup")
    assert again.returncode == 0
    assert b"nothing of ours" in again.stdout + again.stderr
