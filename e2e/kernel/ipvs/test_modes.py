"""A node goes from iptables mode to ipvs mode and back while clients never stop asking."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, app, at, connection
from e2e.kernel.ipvs.kube_proxy import EXCLUDED, NODE_PORT, OTHERS, WEB, leave_as_kube_proxy
from e2e.kernel.running import Customers, Visit, eventually
from e2e.lab import Lab

OF_IPTABLES = re.compile(r"KUBE-(SVC|SEP|EXT|FW|SVL|NODEPORTS|EXTERNAL-SERVICES|PROXY-CANARY)\b")


def write_services(daemon: IpvsDaemon) -> None:
    for version, ip in WEB.items():
        spec = {"node_port": NODE_PORT + version, "type": "NodePort"}
        daemon.write(f"web-{version}", *app(f"web-{version}", ip, "p1", "p2", **spec))
        spec = {"ports": (53,), "protocol": "UDP"}
        daemon.write(f"dns-{version}", *app(f"dns-{version}", dns(version), "p1", "r1", **spec))


def dns(version: int) -> str:
    return {4: "10.96.0.53", 6: "fd00:96::53"}[version]


def visits(lab: Lab, *, udp: bool = True) -> list[Visit]:
    found = []
    for version, ip in WEB.items():
        found += [(who, ip, 80, "TCP") for who in ("client", "p3", "node")]
        found += [("client", lab.address("node", version), NODE_PORT + version, "TCP")]
        found += [(who, dns(version), 53, "UDP") for who in ("client", "p3", "node") if udp]
    return found


def test_no_request_fails_on_the_way_to_ipvs_mode_and_back(lab: Lab, tmp_path: Path) -> None:
    daemon = IpvsDaemon(lab, tmp_path, mode="iptables")
    write_services(daemon)
    daemon.start()
    with ExitStack() as parts:
        parts.callback(daemon.stop)
        by_rules = [parts.enter_context(connection(lab, ip)) for ip in WEB.values()]
        with Customers(lab, *visits(lab)) as customers:
            customers.go_on()
            daemon.stop()
            daemon.mode = "ipvs"
            daemon.start()
            customers.go_on()
            assert [] == customers.failures
            assert [] == [line for line in daemon.rules() if OF_IPTABLES.search(line)]
            assert all(one.ask() for one in by_rules)

            by_servers = [parts.enter_context(connection(lab, ip)) for ip in WEB.values()]
            daemon.stop()
            daemon.mode = "iptables"
            daemon.start()
            customers.go_on()
            # Those through virtual servers have half a minute to end.
            assert all(one.ask() for one in (*by_rules, *by_servers))
            assert [] != daemon.servers()
            for one in by_servers:
                one.close()
            eventually(lambda: daemon.traces() == [], "nothing of ipvs mode is left", 20)
            customers.go_on()
        assert [] == customers.failures
        assert all(one.ask() for one in by_rules)


def test_no_request_fails_when_kube_proxys_ipvs_mode_is_left(lab: Lab, tmp_path: Path) -> None:
    leave_as_kube_proxy(lab)
    daemon = IpvsDaemon(lab, tmp_path, f"--ipvs-exclude-cidrs={EXCLUDED}", mode="iptables")
    write_services(daemon)
    # Virtual servers of others stay: nothing tells that ipvs mode made them.
    others = {*(f"-t {at(ip, 80)}" for ip in OTHERS.values()), "-t 10.96.7.7:80", "-f 7"}
    with Customers(lab, *visits(lab, udp=False)) as customers, daemon:
        customers.go_on()
        eventually(lambda: others == set(daemon.traces()), "only others' are left", 20)
        customers.go_on()
    assert [] == customers.failures
