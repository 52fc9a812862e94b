"""The tracer, on rules written by hand: what Kubernetes documents, not what this program makes."""

from __future__ import annotations

import pytest

from pykubeproxy.host.exec import Finished
from tests.contract.tracer import Fate, Sent, trace
from tests.fakes.xtables import Xtables

NODE = frozenset({"192.0.2.1"})
CLIENT, POD = "198.51.100.7", "10.1.0.9"

# kube-proxy's rules for a load balancer with external policy Local: VIP 192.0.2.10, node port
# 30080, one local endpoint (10.1.0.5) of two, source range 198.51.100.0/24.
RULES = """*filter
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A KUBE-PROXY-FIREWALL -m tcp -p tcp -d 192.0.2.10 --dport 80 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x00004000/0x00004000 -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:EXT - [0:0]
:FW - [0:0]
:SVC - [0:0]
:SVL - [0:0]
:SEP-1 - [0:0]
:SEP-2 - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-POSTROUTING -m mark ! --mark 0x00004000/0x00004000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x00004000
-A KUBE-POSTROUTING -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --or-mark 0x00004000
-A KUBE-SERVICES -m tcp -p tcp -d 10.96.0.20 --dport 80 -j SVC
-A KUBE-SERVICES -m tcp -p tcp -d 192.0.2.10 --dport 80 -j FW
-A KUBE-NODEPORTS -m tcp -p tcp --dport 30080 -j EXT
-A SVC -m tcp -p tcp -d 10.96.0.20 --dport 80 ! -s 10.1.0.0/16 -j KUBE-MARK-MASQ
-A EXT -s 10.1.0.0/16 -j SVC
-A EXT -m addrtype --src-type LOCAL -j KUBE-MARK-MASQ
-A EXT -m addrtype --src-type LOCAL -j SVC
-A EXT -j SVL
-A FW -s 198.51.100.0/24 -j EXT
-A FW -m comment --comment "the rest is dropped by KUBE-PROXY-FIREWALL"
-A SVC -m recent --name SEP-1 --rcheck --seconds 60 --reap -j SEP-1
-A SVC -m statistic --mode random --probability 0.5000000000 -j SEP-1
-A SVC -j SEP-2
-A SVL -j SEP-1
-A SEP-1 -s 10.1.0.5 -j KUBE-MARK-MASQ
-A SEP-1 -m recent --name SEP-1 --set -m tcp -p tcp -j DNAT --to-destination 10.1.0.5:8080
-A SEP-2 -s 10.1.1.6 -j KUBE-MARK-MASQ
-A SEP-2 -m tcp -p tcp -j DNAT --to-destination 10.1.1.6:8080
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"""
ONE, TWO = "10.1.0.5:8080", "10.1.1.6:8080"


@pytest.fixture
def kernel() -> Xtables:
    kernel = Xtables()
    done = kernel.run(["iptables-restore", "--noflush"], RULES.encode())
    assert done == Finished(0, b"", b"")
    return kernel


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        pytest.param(
            Sent(POD, "10.96.0.20", 80, interface="veth1"),
            {Fate("forward", ONE): 0.5, Fate("forward", TWO): 0.5},
            id="pod to cluster IP",
        ),
        pytest.param(
            Sent("10.1.0.5", "10.96.0.20", 80, interface="veth1"),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO): 0.5},
            id="an endpoint to itself is masqueraded",
        ),
        pytest.param(
            Sent("192.0.2.1", "10.96.0.20", 80),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO, True): 0.5},
            id="node to cluster IP",
        ),
        pytest.param(
            Sent(CLIENT, "192.0.2.10", 80, interface="eth0"),
            {Fate("forward", ONE): 1.0},
            id="client in the range",
        ),
        pytest.param(
            Sent("203.0.113.9", "192.0.2.10", 80, interface="eth0"),
            {Fate("drop"): 1.0},
            id="client outside the range",
        ),
        pytest.param(
            Sent("203.0.113.9", "192.0.2.1", 30080, interface="eth0"),
            {Fate("forward", ONE): 1.0},
            id="node port from outside",
        ),
        pytest.param(
            Sent("192.0.2.1", "192.0.2.1", 30080),
            {Fate("forward", ONE, True): 0.5, Fate("forward", TWO, True): 0.5},
            id="node port from the node",
        ),
        pytest.param(
            Sent(CLIENT, "10.96.0.20", 81, interface="eth0"),
            {Fate("untouched"): 1.0},
            id="another port",
        ),
        pytest.param(
            Sent(CLIENT, "10.96.0.20", 80, "udp", "eth0"),
            {Fate("untouched"): 1.0},
            id="another protocol",
        ),
    ],
)
def test_every_fate_is_found_with_its_probability(
    kernel: Xtables, packet: Sent, expected: dict[Fate, float]
) -> None:
    fates = {outcome.fate: outcome.probability for outcome in trace(kernel, packet, NODE)}
    assert expected == pytest.approx(fates)


def test_affinity_decides_before_chance(kernel: Xtables) -> None:
    packet = Sent(POD, "10.96.0.20", 80, interface="veth1")
    first = next(o for o in trace(kernel, packet, NODE) if o.fate.destination == ONE)
    assert frozenset({"SEP-1"}) == first.remembers
    again = trace(kernel, packet, NODE, {"SEP-1": frozenset({POD})})
    assert [Fate("forward", ONE)] == [outcome.fate for outcome in again]
