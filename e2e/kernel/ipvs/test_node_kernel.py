"""Probing, setting up and cleaning a node for ipvs mode, in network namespaces of their own.

The kernel must have ip_vs. `ipvsadm`, `ipset`, `ip` and `sysctl` say what is really there.
"""

from __future__ import annotations

import socket

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from pykubeproxy.errors import HostError
from pykubeproxy.host import sysctls
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs import leftovers
from pykubeproxy.ipvs.leftovers import clean_up, remove_leftovers
from pykubeproxy.ipvs.names import SETS, set_name
from pykubeproxy.ipvs.node import (
    Problem,
    apply_timeouts,
    delete_device,
    ensure_device,
    find_problems,
    parameters,
)
from pykubeproxy.ipvs.sources import give_back
from pykubeproxy.model.kinds import Family

V4, V6 = Family.IPV4, Family.IPV6
TOOLS = {family: Tools(family, Variant.LEGACY) for family in Family}


@pytest.fixture
def namespace():
    namespace = Namespace()
    try:
        namespace.run("ip", "link", "set", "lo", "up")
        yield namespace
    finally:
        namespace.remove()


def state(namespace):
    """All that ipvs mode could leave, as other programs tell it."""
    return (
        namespace.run("ipvsadm", "-S", "-n"),
        namespace.run("ipset", "list", "-name"),
        namespace.run("ip", "-o", "link", "show", "type", "dummy"),
        namespace.run("iptables-legacy-save", "-t", "filter"),
        namespace.run("ip6tables-legacy-save", "-t", "filter"),
    )


# --- can it run ---


@pytest.mark.parametrize("scheduler", ["", "rr", "wrr", "sh", "mh", "lc"])
def test_a_capable_node_has_no_problems(namespace, scheduler):
    assert [] == namespace.call(find_problems, scheduler, TOOLS)


def test_a_probe_leaves_nothing_behind(namespace):
    for family in TOOLS.values():  # the table exists before, so that only the probe can change it
        namespace.run(*family.iptables("-S"))
    before = [_without_counters(text) for text in state(namespace)]
    namespace.call(find_problems, "rr", TOOLS)
    assert before == [_without_counters(text) for text in state(namespace)]


def _without_counters(text):
    return [line for line in text.splitlines() if line[:1] not in "#:"]


def test_an_unknown_scheduler_is_named(namespace):
    assert [Problem("the kernel's IPVS has no scheduler xyz", ("ip_vs_xyz",))] == namespace.call(
        find_problems, "xyz", TOOLS
    )


def test_what_a_killed_probe_left_is_no_obstacle(namespace):
    namespace.run("ipvsadm", "-A", "-t", "198.51.100.0:20000", "-s", "wrr")
    namespace.run("ipset", "create", "KUBE-IPVS-PROBE", "hash:ip")
    assert [] == namespace.call(find_problems, "rr", TOOLS)
    assert "" == namespace.run("ipvsadm", "-S", "-n")


def test_a_scheduler_in_use_is_usable(namespace):
    namespace.run("ipvsadm", "-A", "-t", "192.0.2.1:80", "-s", "lc")
    assert [] == namespace.call(find_problems, "lc", {V4: TOOLS[V4]})


# --- what must be set ---


def sysctl(namespace, name):
    return int(namespace.run("cat", f"/proc/sys/{name.replace('.', '/')}"))


def test_kernel_parameters_are_set(namespace):
    namespace.call(sysctls.ensure, parameters(True))
    for name, expected in (
        ("net.ipv4.vs.conntrack", 1),
        ("net.ipv4.vs.expire_nodest_conn", 1),
        ("net.ipv4.vs.expire_quiescent_template", 1),
        ("net.ipv4.ip_forward", 1),
        ("net.ipv4.conf.all.arp_ignore", 1),
        ("net.ipv4.conf.all.arp_announce", 2),
    ):
        assert (name, expected) == (name, sysctl(namespace, name))


def test_arp_is_left_alone_unless_asked_for(namespace):
    namespace.call(sysctls.ensure, parameters(False))
    assert 0 == sysctl(namespace, "net.ipv4.conf.all.arp_ignore")


def test_timeouts_of_zero_stay(namespace):
    assert namespace.call(apply_timeouts, 0, 30.0, 120.0)
    assert (
        "Timeout (tcp tcpfin udp): 900 30 120"
        == namespace.run("ipvsadm", "-L", "--timeout").strip()
    )
    assert not namespace.call(apply_timeouts, 900.0, 30.0, 0)


# --- the device ---


def test_the_device_is_made_once_and_stays_down(namespace):
    assert namespace.call(ensure_device)
    assert not namespace.call(ensure_device)
    shown = namespace.run("ip", "-o", "link", "show", "type", "dummy")
    assert "kube-ipvs0" in shown
    assert "state DOWN" in shown
    assert namespace.call(delete_device)
    assert not namespace.call(delete_device)
    assert "" == namespace.run("ip", "-o", "link", "show", "type", "dummy")


@pytest.mark.parametrize("function", [ensure_device, delete_device])
def test_a_device_of_somebody_else_is_not_touched(namespace, function):
    namespace.run("ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other")

    def refusal():
        with pytest.raises(HostError) as caught:
            function()
        return str(caught.value)

    assert namespace.call(refusal).startswith(
        "device kube-ipvs0 is of type veth where a dummy is needed"
    )
    assert "kube-ipvs0" in namespace.run("ip", "-o", "link", "show", "type", "veth")


# --- taking it out ---


def leave(namespace):
    """What kube-proxy leaves: bound addresses, virtual servers, sets; and those of others."""
    lines = ["create SOMEBODY hash:ip", "create KUBE-SOMEBODY hash:ip"]
    for family, inet in ((V4, "inet"), (V6, "inet6")):
        for kind in SETS.values():
            options = "range 0-65535" if kind.type == "bitmap:port" else f"family {inet}"
            lines.append(f"create {set_name(kind.name, family)} {kind.type} {options}")
    lines += [
        "add KUBE-NODE-PORT-TCP 30080",
        "add KUBE-NODE-PORT-UDP 30053",
        "add KUBE-EXTERNAL-IP 192.0.2.7,tcp:443",
    ]
    namespace.run("ipset", "restore", stdin="\n".join([*lines, ""]))
    lines = [
        "link add kube-ipvs0 type dummy",
        "address add 10.96.0.1/32 dev kube-ipvs0",
        "address add fd96::1/128 dev kube-ipvs0",
        "address add 192.0.2.7/32 dev lo",
    ]
    namespace.run("ip", "-batch", "-", stdin="\n".join(lines))
    lines = [
        "-A -t 10.96.0.1:80",
        "-A -t [fd96::1]:80",
        "-A -t 192.0.2.7:30080",
        "-A -u 192.0.2.7:30053",
        "-A -t 192.0.2.7:443",
        *(f"-A -t {server}" for server in FOREIGN),
        "-A -f 7",
    ]
    namespace.run("ipvsadm", "-R", stdin="".join(f"{line} -s rr\n" for line in lines))


FOREIGN = ("192.0.2.7:22", "192.0.2.7:30053", "203.0.113.1:30080", "10.96.7.7:80")


def servers(namespace):
    return {line.split()[2] for line in namespace.run("ipvsadm", "-S", "-n").splitlines()}


def sets(namespace):
    return set(namespace.run("ipset", "list", "-name").split())


def test_cleaning_takes_all_but_what_is_excluded(namespace):
    leave(namespace)
    removal = namespace.call(clean_up, ["10.96.7.0/24"])
    assert [] == removal.problems
    assert {"virtual servers": 8, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed
    assert {"10.96.7.7:80", "7"} == servers(namespace)
    assert {"SOMEBODY", "KUBE-SOMEBODY"} == sets(namespace)
    assert "" == namespace.run("ip", "-o", "link", "show", "type", "dummy")


def test_cleaning_a_clean_node_finds_nothing(namespace):
    removal = namespace.call(clean_up)
    assert ({}, []) == (removal.removed, removal.problems)


def test_a_set_that_a_rule_uses_is_reported(namespace):
    leave(namespace)
    namespace.run(
        "iptables-legacy", "-A", "INPUT", "-m", "set", "--match-set", "KUBE-CLUSTER-IP", "dst,dst"
    )
    removal = namespace.call(clean_up)
    assert ["ipset KUBE-CLUSTER-IP: in use by a rule or another set"] == removal.problems
    assert {"SOMEBODY", "KUBE-SOMEBODY", "KUBE-CLUSTER-IP"} == sets(namespace)


def test_leftovers_are_told_from_the_servers_of_others(namespace):
    leave(namespace)
    removal = namespace.call(remove_leftovers, ["fd96::/16"], lambda seconds: False, lambda: 0.0)
    assert [] == removal.problems
    assert {"virtual servers": 4, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed
    assert {*FOREIGN, "[fd96::1]:80", "7"} == servers(namespace)


def test_without_device_and_sets_nothing_is_a_leftover(namespace):
    namespace.run("ipvsadm", "-A", "-t", "10.96.0.1:80", "-s", "rr")
    removal = namespace.call(remove_leftovers, [], lambda seconds: False, lambda: 0.0)
    assert ({}, []) == (removal.removed, removal.problems)
    assert {"10.96.0.1:80"} == servers(namespace)


class Connected:
    """A TCP connection through a virtual server on the device, to a listener on this node."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 8080))
        self.client = socket.create_connection(("10.96.0.1", 80), timeout=30)
        self.server, _ = self.listener.accept()
        self.server.settimeout(5)

    def works(self):
        self.client.send(b"?")
        return self.server.recv(1) == b"?"

    def close(self):
        for one in (self.client, self.server, self.listener):
            one.close()


@pytest.fixture
def connected(namespace):
    namespace.call(sysctls.ensure, parameters(False))
    leave(namespace)
    namespace.run("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "127.0.0.1:8080", "-m")
    connected = namespace.call(Connected)
    yield connected
    connected.close()


def test_established_connections_may_end_first(namespace, connected):
    waits = []

    def wait(seconds):
        waits.append(seconds)
        assert connected.works()
        assert {"10.96.0.1:80", *FOREIGN, "7"} == servers(namespace)
        if len(waits) == 3:
            connected.close()
            while _active(namespace):
                pass
        return False

    removal = namespace.call(remove_leftovers, [], wait, lambda: 0.0)
    assert [leftovers.POLL_SECONDS] * 3 == waits
    assert {"virtual servers": 5, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed


def _active(namespace):
    listing = namespace.run("ipvsadm", "-L", "-n", "-t", "10.96.0.1:80")
    (real,) = (line for line in listing.splitlines() if "127.0.0.1:8080" in line)
    return int(real.split()[-2])


def test_patience_ends(namespace, connected):
    moments = iter([0.0, 15.0, leftovers.PATIENCE_SECONDS])
    removal = namespace.call(remove_leftovers, [], lambda seconds: False, moments.__next__)
    assert 5 == removal.removed["virtual servers"]
    assert {*FOREIGN, "7"} == servers(namespace)


def test_who_ends_early_leaves_the_rest_for_the_next_start(namespace, connected):
    removal = namespace.call(remove_leftovers, [], lambda seconds: True, lambda: 0.0)
    assert {"virtual servers": 4} == removal.removed
    assert connected.works()
    assert "kube-ipvs0" in namespace.run("ip", "-o", "link", "show", "type", "dummy")


# --- what the node itself asks for ---

VIPS = pytest.mark.parametrize(
    ("vip", "node"), [("10.96.0.1", "192.0.2.10"), ("fd96::1", "fd00::10")], ids=["IPv4", "IPv6"]
)


@pytest.fixture
def routed(namespace):
    """A namespace that ipvs mode was in, with a default route of each family."""
    leave(namespace)
    lines = [
        "link add eth0 type dummy",
        "link set eth0 up",
        "address add 192.0.2.10/24 dev eth0",
        "address add fd00::10/64 dev eth0 nodad",
        "route add default via 192.0.2.1",
        "route add default via fd00::1",
    ]
    namespace.run("ip", "-batch", "-", stdin="\n".join(lines))
    return namespace


class Asking:
    """A UDP socket of the node that asks one at *vip*."""

    def __init__(self, vip):
        af = socket.AF_INET6 if ":" in vip else socket.AF_INET
        self.server, self.client = (socket.socket(af, socket.SOCK_DGRAM) for _ in range(2))
        for one in (self.server, self.client):
            one.settimeout(5)
        self.server.bind((vip, 0))
        self.client.connect(self.server.getsockname())
        self.source = self.client.getsockname()[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()
        self.client.close()

    def works(self):
        self.client.send(b"?")
        question, asker = self.server.recvfrom(9)
        self.server.sendto(question, asker)
        return self.client.recv(9) == b"?"


def source(namespace, vip):
    with namespace.call(Asking, vip) as asking:
        assert asking.works()
        return asking.source


def local(namespace, address):
    return namespace.run("ip", "-o", "route", "get", address).startswith("local ")


@VIPS
def test_new_requests_have_another_source_and_old_ones_go_on(routed, vip, node):
    assert vip == source(routed, vip)
    with routed.call(Asking, vip) as early:
        waits = []

        def wait(seconds):
            waits.append(seconds)
            assert vip == early.source
            assert early.works()
            assert node == source(routed, vip)
            if len(waits) == 3:
                early.client.close()
            return False

        removal = routed.call(remove_leftovers, [], wait, lambda: 0.0)
    assert [leftovers.POLL_SECONDS] * 3 == waits
    assert ([], 1) == (removal.problems, removal.removed["device kube-ipvs0"])
    assert not local(routed, vip)


@VIPS
@pytest.mark.parametrize("end", [clean_up, None], ids=["cleaning", "the next start"])
def test_what_was_left_in_the_middle_is_finished(routed, vip, node, end):
    routed.call(remove_leftovers, [], lambda seconds: True, lambda: 0.0)
    assert node == source(routed, vip)
    if end is None:
        routed.call(remove_leftovers, [], lambda seconds: False, lambda: 0.0)
    else:
        routed.call(end)
    assert not local(routed, vip)


@VIPS
def test_an_ipvs_mode_that_comes_back_finds_all_as_it_was(routed, vip, node):
    tables = [("ip", family, "route", "show", "table", "local") for family in ("-4", "-6")]
    before = [sorted(routed.run(*table).splitlines()) for table in tables]
    routed.call(remove_leftovers, [], lambda seconds: True, lambda: 0.0)
    with routed.call(Asking, vip) as asking:
        assert node == asking.source
        routed.call(give_back)
        assert asking.works()
    assert before == [sorted(routed.run(*table).splitlines()) for table in tables]
    assert vip == source(routed, vip)
