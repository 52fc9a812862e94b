"""Others take away or change what ipvs mode wrote, and it is put right."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from e2e.kernel.ipvs.ipvs_node import DEVICE, IpvsDaemon, answers, app, at, pods
from e2e.kernel.running import eventually
from e2e.lab import Lab

IP = {4: "10.96.0.60", 6: "fd00:96::60"}
REPAIRS = "pykubeproxy_repairs_total"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpvsDaemon]:
    with (
        Lab() as lab,
        IpvsDaemon(lab, tmp_path_factory.mktemp("repair"), "--ipvs-sync-period=1s") as daemon,
    ):
        for version, ip in IP.items():
            daemon.write(f"web-{version}", *app(f"web-{version}", ip, "p1", "p2"))
        for ip in IP.values():
            eventually(lambda ip=ip: daemon.serves(ip, "p1", "p2"), "served")
        yield daemon


NAT, FILTER_6 = "iptables-legacy -t nat", "ip6tables-legacy -t filter"


@pytest.mark.parametrize(
    ("part", "command"),
    [
        pytest.param("servers", "ipvsadm -C", id="all virtual servers"),
        pytest.param("servers", f"ipvsadm -D -t {at(IP[4], 80)}", id="a virtual server"),
        pytest.param("servers", f"ipvsadm -D -t {at(IP[6], 80)}", id="one of IPv6"),
        pytest.param("servers", f"ipvsadm -E -t {at(IP[4], 80)} -s lc", id="another scheduler"),
        pytest.param("servers", "ipvsadm -A -t 10.96.0.61:80 -s rr", id="a virtual server more"),
        pytest.param("device", f"ip addr del {IP[4]}/32 dev {DEVICE}", id="an address"),
        pytest.param("device", f"ip addr del {IP[6]}/128 dev {DEVICE}", id="an address of IPv6"),
        pytest.param("device", f"ip addr add 10.96.0.61/32 dev {DEVICE}", id="an address more"),
        pytest.param("sets", "ipset flush KUBE-CLUSTER-IP", id="all entries of a set"),
        pytest.param("sets", f"ipset del KUBE-6-CLUSTER-IP {IP[6]},tcp:80", id="an entry"),
        pytest.param("sets", "ipset add KUBE-CLUSTER-IP 10.96.0.61,tcp:80", id="an entry more"),
        pytest.param("rules", f"{NAT} -F KUBE-SERVICES", id="rules of a chain"),
        pytest.param("rules", f"{NAT} -F", id="all rules of a table"),
        pytest.param("rules", f"{FILTER_6} -D INPUT 1", id="a jump of IPv6"),
    ],
)
def test_what_is_changed_is_put_right(daemon: IpvsDaemon, part: str, command: str) -> None:
    before, repairs = daemon.part(part), daemon.metric(REPAIRS)
    daemon.tool(*command.split())
    eventually(lambda: daemon.metric(REPAIRS) > repairs, "it is noticed")
    eventually(lambda: daemon.part(part) == before, "it is undone")
    assert {"p1", "p2"} == {answers(daemon.lab, ip) for ip in IP.values() for _ in range(2)}


def test_the_device_comes_back_with_all_addresses(daemon: IpvsDaemon) -> None:
    bound = daemon.bound()
    daemon.tool("ip", "link", "del", DEVICE)
    eventually(lambda: DEVICE in daemon.tool("ip", "-o", "link"), "the device is back", 5)
    eventually(lambda: daemon.bound() == bound, "its addresses, too")
    assert {"p1", "p2"} == {answers(daemon.lab, ip) for ip in IP.values() for _ in range(2)}


@pytest.mark.parametrize(
    ("prefix", "change"),
    [
        pytest.param("10.96.1.", "-d -t {} -r {}", id="deleted"),
        pytest.param("fd00:96::1:", "-e -t {} -r {} -m -w 0", id="weight 0, in IPv6"),
    ],
)
def test_real_servers_are_looked_after(daemon: IpvsDaemon, prefix: str, change: str) -> None:
    """One virtual server after the other, all within a minute; what one shows counts for all."""
    ips = [f"{prefix}{n}" for n in range(10, 40)]
    daemon.write("many", *(obj for n, ip in enumerate(ips) for obj in app(f"many-{n}", ip, "p1")))
    eventually(lambda: daemon.serves(ips[-1], "p1"), "served")
    before, repairs = daemon.part("servers"), daemon.metric(REPAIRS)
    real = next(iter(pods(prefix, "p1")))
    daemon.tool("ipvsadm", "-R", input="".join(f"{change.format(at(i, 80), real)}\n" for i in ips))
    eventually(lambda: daemon.part("servers") == before, "all are as before", 75)
    assert daemon.says("real servers changed by somebody else", "tcp ", prefix)
    assert 1 == daemon.metric(REPAIRS) - repairs
    daemon.remove("many")
    eventually(lambda: daemon.reals(ips[-1]) is None, "nothing is left of them")
