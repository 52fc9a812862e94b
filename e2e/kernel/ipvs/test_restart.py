"""The daemon starts in ipvs mode over what it, or kube-proxy, left in the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, app, at, connection, pods
from e2e.kernel.ipvs.kube_proxy import (
    EXCLUDED,
    NODE_PORT,
    WEB,
    leave_as_kube_proxy,
    node_addresses,
)
from e2e.kernel.running import Customers, Visit, eventually
from e2e.lab import Lab
from pykubeproxy.model.objects import WireObject

IP = {4: "10.96.0.40", 6: "fd00:96::40"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpvsDaemon]:
    """Running, with a Service of every kind."""
    with Lab() as lab:
        daemon = IpvsDaemon(lab, tmp_path_factory.mktemp("restart"))
        daemon.write("all", *everything(4), *everything(6))
        with daemon:
            yield daemon


def everything(version: int) -> list[WireObject]:
    """Services that use every set, in one IP version."""
    prefix = {4: "10.96.0.4", 6: "fd00:96::4"}[version]
    external = {4: "203.0.113.4", 6: "2001:db8:113::4"}[version]
    range_ = {4: "192.0.2.0/24", 6: "2001:db8:2::/64"}[version]
    one = {4: "192.0.2.100/32", 6: "2001:db8:2::100/128"}[version]
    n = version
    balanced = {"type": "LoadBalancer", "vips": [f"{external}2"], "source_ranges": [range_, one]}
    return [
        *app(f"web-{n}", f"{prefix}0", "p1", "r1", affinity_seconds=600),
        *app(f"one-{n}", f"{prefix}5", "p2"),
        *app(f"node-{n}", f"{prefix}1", "p1", "p2", node_port=30040 + n, external_ips=[external]),
        *app(f"lb-{n}", f"{prefix}2", "p1", node_port=30050 + n, **balanced),
        *app(
            f"local-{n}",
            f"{prefix}3",
            "p2",
            node_port=30060 + n,
            external_policy="Local",
            health_check_node_port=30070 + n,
            external_ips=[f"{external}4"],
            **(balanced | {"vips": [f"{external}3"], "source_ranges": ["203.0.113.77/32"]}),
        ),
        *app(f"dns-{n}", f"{prefix}4", "p3", ports=(53,), protocol="UDP", node_port=30080 + n),
        *app(f"sctp-{n}", f"{prefix}6", "p3", ports=(9,), protocol="SCTP", node_port=30090 + n),
    ]


def visits() -> list[Visit]:
    """Who asks where, for Services of `everything` that any pod may answer."""
    found = [
        (sender, ip.replace("40", number), port, protocol)
        for ip in IP.values()
        for sender in ("client", "p3", "node")
        for number, port, protocol in (("45", 80, "TCP"), ("44", 53, "UDP"))
        if (sender, number) != ("p3", "44")
    ]
    return [
        *found,
        ("client", "192.0.2.10", 30044, "TCP"),
        ("client", "2001:db8:2::10", 30046, "TCP"),
    ]


def test_a_start_over_unchanged_objects_writes_nothing(daemon: IpvsDaemon) -> None:
    with ExitStack() as parts:
        opened = [parts.enter_context(connection(daemon.lab, ip)) for ip in IP.values()]
        # Of a virtual and a real server, in each IP version.
        eventually(lambda: sum(daemon.connections().values()) == 4, "connections are counted")
        assert 0 == daemon.stop()
        before, connections = daemon.state(), daemon.connections()
        daemon.start()
        assert before == daemon.state()
        assert connections == daemon.connections()
        assert all(one.ask() for one in opened)
    passes = [line for line in daemon.text().splitlines() if " synced family=" in line]
    for line in passes[-2:]:
        assert " written=0 removed=0 transactions=0 lines=0 " in line
    assert 0 == daemon.metric("pykubeproxy_netlink_messages_total")
    assert 0 == daemon.metric("pykubeproxy_rules_written_total")


def test_nobody_notices_that_the_daemon_is_replaced(daemon: IpvsDaemon) -> None:
    with ExitStack() as parts:
        opened = [parts.enter_context(connection(daemon.lab, ip)) for ip in IP.values()]
        with Customers(daemon.lab, *visits()) as customers:
            for end in (daemon.stop, daemon.kill):
                end()
                customers.go_on()
                daemon.start()
            customers.go_on()
        assert [] == customers.failures
        assert all(one.ask() for one in opened)


# --- what kube-proxy left ------------------------------------------------------------------------


def kept_busy(version: int) -> list[Visit]:
    """All ways to the Service that kube-proxy served."""
    found = [(who, WEB[version], 80, "TCP") for who in ("client", "p3", "node")]
    number = NODE_PORT + version
    return [*found, *(("client", address, number, "TCP") for address in node_addresses(version))]


def test_the_state_of_kube_proxy_is_taken_over(lab: Lab, tmp_path: Path) -> None:
    leave_as_kube_proxy(lab)
    daemon = IpvsDaemon(lab, tmp_path, f"--ipvs-exclude-cidrs={EXCLUDED}")
    for version, ip in WEB.items():
        spec = {"node_port": NODE_PORT + version, "type": "NodePort"}
        daemon.write(f"web-{version}", *app(f"web-{version}", ip, "p1", "p2", **spec))
    with ExitStack() as parts:
        opened = [parts.enter_context(connection(lab, ip)) for ip in WEB.values()]
        with Customers(lab, *kept_busy(4), *kept_busy(6)) as customers:
            daemon.start()
            parts.callback(daemon.stop)
            customers.go_on()
        assert [] == customers.failures
        assert all(one.ask() for one in opened)

        virtuals = {at(ip, number) for v in (4, 6) for _, ip, number, _ in kept_busy(v)}
        left = {*(f"-t {virtual}" for virtual in virtuals), "-t 10.96.7.7:80", "-f 7"}
        assert dict.fromkeys(left, "-s rr") == daemon.servers()
        for name in (f"TCP {virtual}" for virtual in virtuals):
            # Made anew, it would have begun to count again.
            eventually(lambda n=name: daemon.connections()[n] >= customers.rounds, "all counted", 5)
        assert set(WEB.values()) == daemon.bound()
        for version, ip in WEB.items():
            assert pods(ip, "p1", "p2") == daemon.reals(ip)
            sets = {4: "KUBE-", 6: "KUBE-6-"}[version]
            assert {f"{ip},tcp:80"} == daemon.entries(f"{sets}CLUSTER-IP")
            assert {ip} == daemon.entries(f"{sets}IPVS-IPS")
            assert {str(NODE_PORT + version)} == daemon.entries(f"{sets}NODE-PORT-TCP")
        # The three stale entries of each version, and none of those that were right.
        assert 6 == daemon.metric("pykubeproxy_netlink_messages_total", scope="ipset")


def test_cleaning_up_takes_all_that_kube_proxy_left(lab: Lab, tmp_path: Path) -> None:
    leave_as_kube_proxy(lab)
    daemon = IpvsDaemon(lab, tmp_path)
    assert 0 == daemon.run_to_end("--cleanup", f"--ipvs-exclude-cidrs={EXCLUDED}").returncode
    assert ["-t 10.96.7.7:80", "-f 7"] == daemon.traces()
    assert [] == [line for line in daemon.rules() if re.search("KUBE-(?!FIREWALL)", line)]
