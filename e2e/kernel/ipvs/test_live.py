"""Services, endpoints and the node change while the daemon runs in ipvs mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, answers, app, at
from e2e.kernel.running import eventually
from e2e.lab import REFUSED, TIMEOUT, Lab, has_sctp
from e2e.lab.addresses import BOUND_VIP
from pykubeproxy.model.objects import WireObject

VERSIONS = pytest.mark.parametrize("version", [4, 6])
PREFIX = {4: "10.96.0.", 6: "fd00:96::"}
EXTERNAL = {4: "203.0.113.", 6: "2001:db8:113::"}
BITS = {4: 32, 6: 128}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpvsDaemon]:
    """One for all: every test has its own addresses, and takes its Services away."""
    with Lab() as lab, IpvsDaemon(lab, tmp_path_factory.mktemp("live")) as daemon:
        yield daemon


@contextmanager
def serving(daemon: IpvsDaemon, *objects: WireObject) -> Iterator[None]:
    daemon.write("test", *objects)
    yield
    daemon.remove("test")
    eventually(lambda: not daemon.servers(), "all virtual servers are gone")
    eventually(lambda: not daemon.bound(), "no address is bound")


# --- what a Service has --------------------------------------------------------------------------


@VERSIONS
def test_endpoints_come_and_go(daemon: IpvsDaemon, version: int) -> None:
    ip, lab = f"{PREFIX[version]}11", daemon.lab
    with serving(daemon, *app("web", ip, "p1")):
        eventually(lambda: daemon.serves(ip, "p1"), "the first endpoint")
        assert ["p1"] * 4 == [answers(lab, ip, 80, who) for who in ("client", "p1", "p2", "node")]
        assert {ip} == daemon.bound()

        daemon.write("test", *app("web", ip, "p2", "r1"))
        eventually(lambda: daemon.serves(ip, "p2", "r1"), "others take its place")
        assert {"p2:8080": 5, "r1:8080": 5} == lab.burst("client", ip, 80, 10).servers

        daemon.write("test", *app("web", ip))
        eventually(lambda: daemon.serves(ip), "none is left")
        assert lab.probe("client", ip, 80, timeout=2.0) is REFUSED
    assert lab.probe("client", ip, 80) is TIMEOUT


@VERSIONS
def test_a_port_moves(daemon: IpvsDaemon, version: int) -> None:
    ip = f"{PREFIX[version]}12"
    with serving(daemon, *app("web", ip, "p1", ports=(80, 81))):
        eventually(lambda: daemon.reals(ip, 81) is not None, "both ports")
        assert {"p1"} == {answers(daemon.lab, ip, number) for number in (80, 81)}

        daemon.write("test", *app("web", ip, "p1", ports=(81, 82)))
        eventually(lambda: daemon.reals(ip, 82) and daemon.reals(ip) is None, "80 is 82 now")
        eventually(lambda: answers(daemon.lab, ip, 80) == "REFUSED", "nobody is at 80")
        assert {"p1"} == {answers(daemon.lab, ip, number) for number in (81, 82)}


@VERSIONS
def test_every_kind_of_address_comes_and_goes(daemon: IpvsDaemon, version: int) -> None:
    ip, lab = f"{PREFIX[version]}13", daemon.lab
    external, balancer = f"{EXTERNAL[version]}13", f"{EXTERNAL[version]}14"
    node = lab.address("node", version)
    entrances = [(ip, 80), (node, 30013), (external, 80), (balancer, 80)]

    def open_entrances() -> list[tuple[str, int]]:
        probes = [lab.start_probe("client", *entrance, timeout=2.0) for entrance in entrances]
        replies = [probe.result() for probe in probes]
        return [e for e, reply in zip(entrances, replies, strict=True) if "p1" in str(reply)]

    more = {"type": "LoadBalancer", "external_ips": [external], "vips": [balancer]}
    with serving(daemon, *app("web", ip, "p1", node_port=30013, **more)):
        eventually(lambda: daemon.bound() == {ip, external, balancer}, "all addresses")
        assert entrances == open_entrances()

        more["source_ranges"] = [f"{lab.address('p2', version)}/{BITS[version]}"]
        daemon.write("test", *app("web", ip, "p1", node_port=30013, **more))
        eventually(lambda: answers(lab, balancer) == "TIMEOUT", "the client is kept out")
        assert entrances[:3] == open_entrances()
        assert "p1" == answers(lab, balancer, sender="p2")

        more["source_ranges"].append(f"{lab.address('client', version)}/{BITS[version]}")
        daemon.write("test", *app("web", ip, "p1", node_port=30013, **more))
        eventually(lambda: answers(lab, balancer) == "p1", "the client is let in")

        daemon.write("test", *app("web", ip, "p1"))
        eventually(lambda: daemon.bound() == {ip}, "only the cluster IP is left")
        eventually(lambda: set(daemon.servers()) == {f"-t {at(ip, 80)}"}, "and its server")
        assert entrances[:1] == open_entrances()


@VERSIONS
def test_a_client_stays_with_its_endpoint(daemon: IpvsDaemon, version: int) -> None:
    ip = f"{PREFIX[version]}14"
    with serving(daemon, *app("web", ip, "p1", "p2", affinity_seconds=600)):
        eventually(lambda: daemon.serves(ip, "p1", "p2"), "served")
        assert {f"-t {at(ip, 80)}": "-s rr -p 600"} == daemon.servers()
        assert [6] == list(daemon.lab.burst("client", ip, 80, 6).servers.values())
        # One client is one address, not one network.
        others = [answers(daemon.lab, ip, sender=who) for who in ("p3", "r1", "r2", "node")]
        assert {"p1", "p2"} == set(others)

        daemon.write("test", *app("web", ip, "p1", "p2", affinity_seconds=60))
        eventually(lambda: list(daemon.servers().values()) == ["-s rr -p 60"], "another timeout")
        daemon.write("test", *app("web", ip, "p1", "p2"))
        eventually(lambda: list(daemon.servers().values()) == ["-s rr"], "no affinity")
        eventually(
            lambda: len(daemon.lab.burst("client", ip, 80, 4).servers) == 2,
            "the client is not held any more",
        )


@VERSIONS
@pytest.mark.parametrize("protocol", ["UDP", "SCTP"])
def test_other_protocols(daemon: IpvsDaemon, version: int, protocol: str) -> None:
    ip = f"{PREFIX[version]}15"
    node = daemon.lab.address("node", version)
    objects = app(
        "dns", ip, "p1", "p2", ports=(53,), protocol=protocol, node_port=30015, type="NodePort"
    )
    letter = protocol[0].lower() if protocol == "UDP" else "-sctp-service"
    with serving(daemon, *objects):
        eventually(lambda: len(daemon.reals(ip, 53, letter) or ()) == 2, "written")
        if protocol == "UDP" or has_sctp():
            for address, number in ((ip, 53), (node, 30015)):
                seen = {
                    answers(daemon.lab, address, number, who, protocol)
                    for who in ("client", "p3", "node", "client")
                }
                assert {"p1", "p2"} == seen


# --- schedulers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "given", "words"),
    [
        pytest.param("lc", "lc", (), id="another one"),
        pytest.param("mh", "mh -b mh-port", (), id="one with a flag"),
        pytest.param("fastest", "rr", ("'fastest' does not exist", "rr is used"), id="unknown"),
        pytest.param("twos", "rr", ("'twos' is not in this kernel", "rr is used"), id="missing"),
    ],
)
@VERSIONS
def test_a_service_may_choose_its_scheduler(
    daemon: IpvsDaemon, version: int, wish: str, given: str, words: tuple[str, ...]
) -> None:
    ip, name = f"{PREFIX[version]}16", f"{wish}-{version}"
    with serving(daemon, *app(name, ip, "p1", scheduler=wish)):
        eventually(lambda: daemon.serves(ip, "p1"), "served")
        assert {f"-t {at(ip, 80)}": f"-s {given}"} == daemon.servers()
        assert "p1" == answers(daemon.lab, ip)
        if words:
            eventually(lambda: daemon.says(f"service=default/{name}", *words), "it is said why")
        assert bool(words) is daemon.says(f"service=default/{name}", "scheduler")
        assert not daemon.says("quarantined", name)

        daemon.write("test", *app(name, ip, "p2", scheduler=wish))
        eventually(lambda: daemon.serves(ip, "p2"), "endpoints change all the same")


# --- what Services share -------------------------------------------------------------------------


@VERSIONS
def test_a_shared_address_stays_until_the_last_service_is_gone(
    daemon: IpvsDaemon, version: int
) -> None:
    one, two = (f"{PREFIX[version]}{n}" for n in (17, 18))
    shared = f"{EXTERNAL[version]}17"
    first = app("first", one, "p1", ports=(80,), external_ips=[shared])
    second = app("second", two, "p2", ports=(81,), external_ips=[shared])
    with serving(daemon, *first, *second):
        eventually(lambda: daemon.bound() == {one, two, shared}, "all addresses")
        assert ["p1", "p2"] == [answers(daemon.lab, shared, n) for n in (80, 81)]
        daemon.write("test", *second)
        eventually(lambda: daemon.reals(one) is None, "the first is gone")
        eventually(lambda: daemon.bound() == {two, shared}, "its own address, too")
        assert ["REFUSED", "p2"] == [answers(daemon.lab, shared, n) for n in (80, 81)]


@VERSIONS
def test_the_older_service_has_an_address_and_port_that_two_want(
    daemon: IpvsDaemon, version: int
) -> None:
    one, two = (f"{PREFIX[version]}{n}" for n in (19, 20))
    shared = f"{EXTERNAL[version]}19"
    old = app("old", one, "p1", external_ips=[shared], created="2020-01-01T00:00:00Z")
    young = app("young", two, "p2", external_ips=[shared], created="2021-01-01T00:00:00Z")
    with serving(daemon, *young):
        eventually(lambda: daemon.serves(shared, "p2"), "the younger serves")
        daemon.write("test", *young, *old)
        eventually(lambda: daemon.serves(shared, "p1"), "the older takes over")
        assert "p1" == answers(daemon.lab, shared)
        assert daemon.says("service=default/young", "used by default/old", at(shared, 80))
        assert daemon.serves(two, "p2")

        daemon.write("test", *young)
        eventually(lambda: daemon.serves(shared, "p2"), "the younger has it again")
        eventually(lambda: daemon.bound() == {two, shared}, "the older's own address is gone")
        assert "p2" == answers(daemon.lab, shared)


# --- the node ------------------------------------------------------------------------------------


@VERSIONS
def test_node_ports_answer_at_an_address_that_the_node_gets(
    daemon: IpvsDaemon, version: int
) -> None:
    ip, lab = f"{PREFIX[version]}21", daemon.lab
    new = {4: "192.0.2.77", 6: "2001:db8:2::77"}[version]
    network = f"{new}/{24 if version == 4 else 64}"
    at_once = ("nodad",) if version == 6 else ()
    with serving(daemon, *app("web", ip, "p1", node_port=30021, type="NodePort")):
        eventually(lambda: daemon.reals(lab.address("node", version), 30021), "at the first one")
        lab.run("node", "ip", "addr", "add", network, "dev", "eth0", *at_once)
        eventually(lambda: daemon.serves(new, "p1", number=30021), "at the new one")
        assert "p1" == answers(lab, new, 30021)
        assert new not in daemon.bound()
        lab.run("node", "ip", "addr", "del", network, "dev", "eth0")
        eventually(lambda: daemon.reals(new, 30021) is None, "the address is gone")


@VERSIONS
def test_an_address_of_another_interface_is_served_and_left_there(
    daemon: IpvsDaemon, version: int
) -> None:
    ip, vip = f"{PREFIX[version]}22", BOUND_VIP[version]
    with serving(daemon, *app("web", ip, "p1", external_ips=[vip])):
        eventually(lambda: daemon.serves(vip, "p1"), "served")
        assert "p1" == answers(daemon.lab, vip)
        assert {ip} == daemon.bound()
    assert vip in daemon.tool("ip", "addr", "show", "dev", "lo")
