"""The tracer of ipvs mode, on rules written by hand: what the kernel does, not what we make."""

from __future__ import annotations

import pytest

from pykubeproxy.host.exec import Finished
from pykubeproxy.ipvs import messages as m
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol
from tests.contract.ipvs_tracer import trace
from tests.contract.tracer import Fate, Sent
from tests.fakes.ipvs import GENERIC, NETFILTER, ROUTE, FakeKernel
from tests.fakes.xtables import Xtables

NODE = frozenset({"192.0.2.1"})
CLIENT, POD = "198.51.100.7", "10.1.0.5"
VIP, CLUSTER_IP, EMPTY = "203.0.113.1", "10.96.0.20", "10.96.0.21"

# A firewall for the load balancer 203.0.113.1:80, masquerading of what is for the cluster IP and
# of whoever meets itself, and a bar before the other ports of both.
SETS = {
    "CLUSTER": ("hash:ip,port", [f"{CLUSTER_IP},tcp:80"]),
    "GUARDED": ("hash:ip,port", [f"{VIP},tcp:80"]),
    "SOURCES": ("hash:ip,port,net", [f"{VIP},tcp:80,198.51.100.0/24"]),
    "LOOP": ("hash:ip,port,ip", [f"{POD},tcp:8080,{POD}"]),
    "IPS": ("hash:ip", [VIP, CLUSTER_IP, EMPTY]),
    "PORTS": ("bitmap:port", ["30080"]),
}
RULES = f"""*filter
:GUARD - [0:0]
-A INPUT -m set --match-set GUARDED dst,dst -j GUARD
-A INPUT -m set --match-set GUARDED dst,dst -j RETURN
-A INPUT -m set --match-set CLUSTER dst,dst -j RETURN
-A INPUT -d {EMPTY} -p tcp -m tcp --dport 80 -j RETURN
-A INPUT -m conntrack --ctstate NEW -m set --match-set IPS dst -j REJECT
-A GUARD -m set --match-set SOURCES dst,dst,src -j RETURN
-A GUARD -j DROP
-A OUTPUT -s {VIP} -m ipvs --vaddr {VIP} --vproto tcp --vport 80 -j DROP
COMMIT
*nat
:SNAT - [0:0]
-A PREROUTING ! -s 10.1.0.0/16 -m set --match-set CLUSTER dst,dst -j MARK --or-mark 0x4000
-A PREROUTING -p tcp -m set --match-set PORTS dst -j MARK --or-mark 0x4000
-A OUTPUT ! -s 10.1.0.0/16 -m set --match-set CLUSTER dst,dst -j MARK --or-mark 0x4000
-A POSTROUTING -m set --match-set LOOP dst,dst,src -j MASQUERADE
-A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A POSTROUTING -j MASQUERADE
COMMIT
"""
ONE, TWO, HOST = f"{POD}:8080", "10.1.1.6:8080", "192.0.2.1:9090"
SERVERS = {
    Virtual(Protocol.TCP, CLUSTER_IP, 80): ((POD, 8080, 1), ("10.1.1.6", 8080, 1)),
    Virtual(Protocol.TCP, VIP, 80): ((POD, 8080, 1), ("10.1.1.6", 8080, 0)),
    Virtual(Protocol.TCP, "192.0.2.1", 30080): ((POD, 8080, 1),),
    Virtual(Protocol.UDP, CLUSTER_IP, 53): (("192.0.2.1", 9090, 1),),
    Virtual(Protocol.TCP, EMPTY, 80): (),
}


@pytest.fixture
def kernel() -> FakeKernel:
    kernel = FakeKernel()
    generic, index = kernel.channel(GENERIC), 2
    family_id = generic.family_id("IPVS")
    persistent = VirtualConfig("rr", PERSISTENT, 60)
    for virtual, reals in SERVERS.items():
        config = persistent if virtual.address == CLUSTER_IP else VirtualConfig("rr")
        requests = [m.new_service(family_id, virtual, config)]
        requests += [
            m.new_dest(family_id, Real(virtual, host, port), weight) for host, port, weight in reals
        ]
        assert not generic.refusals(requests)
    for name, (kind, entries) in SETS.items():
        requests = [m.create_set(name, kind, Family.IPV4), m.add_entries(name, entries)]
        assert not kernel.channel(NETFILTER).refusals(requests)
    bound = [m.new_address(index, address) for address in (VIP, CLUSTER_IP, EMPTY)]
    assert not kernel.channel(ROUTE).refusals(bound)
    return kernel


@pytest.fixture
def rules(kernel: FakeKernel) -> Xtables:
    tools = kernel.xtables(4)
    done = tools.run(["iptables-restore", "--noflush"], RULES.encode())
    assert done == Finished(0, b"", b"")
    return tools


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(
            Sent("10.1.0.9", CLUSTER_IP, 80, interface="veth1"),
            {Fate("forward", ONE): 0.5, Fate("forward", TWO): 0.5},
            id="pod to cluster IP",
        ),
        pytest.param(
            Sent(POD, CLUSTER_IP, 80, interface="veth1"),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO): 0.5},
            id="an endpoint to itself is told by its new destination",
        ),
        pytest.param(
            Sent(CLIENT, CLUSTER_IP, 80, interface="eth0"),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO, True): 0.5},
            id="a mark of PREROUTING counts in POSTROUTING",
        ),
        pytest.param(
            Sent(CLUSTER_IP, CLUSTER_IP, 80),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO, True): 0.5},
            id="the node itself",
        ),
        pytest.param(
            Sent(CLIENT, VIP, 80, interface="eth0"),
            {Fate("forward", ONE): 1.0},
            id="nobody new meets a real server without weight",
        ),
        pytest.param(
            Sent("192.0.2.9", VIP, 80, interface="eth0"),
            {Fate("drop"): 1.0},
            id="INPUT is before IPVS",
        ),
        pytest.param(
            Sent(VIP, VIP, 80),
            {Fate("drop"): 1.0},
            id="the node does not pass INPUT, but OUTPUT behind IPVS",
        ),
        pytest.param(
            Sent("192.0.2.1", VIP, 80),
            {Fate("forward", ONE): 1.0},
            id="OUTPUT sees the source that the node chose",
        ),
        pytest.param(
            Sent(CLIENT, "192.0.2.1", 30080, interface="eth0"),
            {Fate("forward", ONE, True): 1.0},
            id="node port",
        ),
        pytest.param(
            Sent(CLIENT, CLUSTER_IP, 53, "udp", "eth0"),
            {Fate("reject"): 1.0},
            id="a port that INPUT bars",
        ),
        pytest.param(
            Sent(CLUSTER_IP, CLUSTER_IP, 53, "udp"),
            {Fate("forward", HOST): 1.0},
            id="what the node sends to its own program",
        ),
        pytest.param(
            Sent(CLIENT, EMPTY, 80, interface="eth0"),
            {Fate("reject"): 1.0},
            id="a virtual server with nobody behind it",
        ),
        pytest.param(
            Sent(EMPTY, EMPTY, 80), {Fate("reject"): 1.0}, id="the node asks nobody behind it"
        ),
        pytest.param(
            Sent(CLIENT, "192.0.2.1", 22, interface="eth0"),
            {Fate("untouched"): 1.0},
            id="the node's own program",
        ),
        pytest.param(
            Sent(CLUSTER_IP, CLUSTER_IP, 22),
            {Fate("reject"): 1.0},
            id="the node comes in again where there is no virtual server",
        ),
        pytest.param(
            Sent(CLIENT, "10.1.0.9", 80, interface="eth0"),
            {Fate("untouched"): 1.0},
            id="somebody else's packet",
        ),
    ],
)
def test_every_fate_is_found_with_its_probability(
    kernel: FakeKernel, rules: Xtables, packet: Sent, expected: dict[Fate, float]
) -> None:
    outcomes = trace(kernel, rules, packet, NODE)
    assert expected == pytest.approx({o.fate: o.probability for o in outcomes})


def test_persistence_decides_before_chance(kernel: FakeKernel, rules: Xtables) -> None:
    packet = Sent("10.1.0.9", CLUSTER_IP, 80, interface="veth1")
    first = next(o for o in trace(kernel, rules, packet, NODE) if o.fate.destination == ONE)
    memory = {name: frozenset({packet.source}) for name in first.remembers}
    again = trace(kernel, rules, packet, NODE, memory)
    assert [Fate("forward", ONE)] == [outcome.fate for outcome in again]
