"""Every row of kube-proxy's deletion table on the real connection tracking table, both families.

Needs root and the `conntrack` tool, which inserts made-up entries.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from pykubeproxy.host import conntrack
from pykubeproxy.host.conntrack import SMALL_SCOPE, Removed, remove_stale
from pykubeproxy.host.netlink import NETFILTER, Netlink
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.flows import FlowTable, Scope

V4, V6 = Family.IPV4, Family.IPV6
VIP = {V4: "10.96.0.10", V6: "fd96::a"}
POD = {V4: "10.1.0.{}", V6: "fd01::{}"}
OUTSIDE = {V4: "192.0.2.1", V6: "2001:db8::1"}
CLIENT = {V4: "10.9.9.9", V6: "fd09::9"}


class Namespace:
    """A network namespace of its own, with the few things the tests do in it."""

    def __init__(self) -> None:
        self.name = f"ct-{uuid4().hex[:8]}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def run(self, *argv: str, stdin: str | None = None) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *argv],
            check=True, capture_output=True, text=True, input=stdin,
        ).stdout  # fmt: skip

    def insert(self, family, dst, dport, reply, rport, sport, proto="udp", zone=None):
        extra = ["--state", "ESTABLISHED"] if proto == "tcp" else []
        extra += ["--zone", str(zone)] if zone is not None else []
        self.run(
            "conntrack", "-I", "-t", "600",
            "-s", CLIENT[family], "-d", dst,
            "-p", proto, "--sport", str(sport), "--dport", str(dport),
            "-r", reply, "-q", CLIENT[family],
            "--reply-port-src", str(rport), "--reply-port-dst", str(sport), *extra,
        )  # fmt: skip

    def sports(self, family) -> set[int]:
        listing = self.run("conntrack", "-L", "-f", family.value.lower())
        return {
            int(next(word for word in line.split() if word.startswith("sport="))[6:])
            for line in listing.splitlines()
        }

    def call(self, function, *args):
        """Call *function* in a thread that has joined this namespace."""
        results: list[object] = []

        def enter() -> None:
            with open(f"/run/netns/{self.name}") as handle:
                os_setns(handle.fileno())
            results.append(function(*args))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return results[0]


def os_setns(descriptor: int) -> None:
    """``os.setns`` of Python 3.12, for 3.11."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.remove()


def serving(family, *numbers):
    text = "[{}]:5353" if family is V6 else "{}:5353"
    return frozenset(text.format(POD[family].format(number)) for number in numbers)


def table(family):
    """DNS on its VIP and node port 30053, served by endpoints 1 and 2."""
    pods = serving(family, 1, 2)
    return FlowTable({(VIP[family], 53): pods}, {30053: pods})


def scope(family):
    return Scope(addresses=frozenset({(VIP[family], 53)}), node_ports=frozenset({30053}))


def fill(namespace, family):
    """One entry per row of the table, told apart by their source port; return who must stay."""
    vip, outside, pod = VIP[family], OUTSIDE[family], POD[family]
    namespace.insert(family, vip, 53, pod.format(9), 5353, 1001)  # removed endpoint
    namespace.insert(family, vip, 53, pod.format(1), 53, 1002)  # old port of an endpoint
    namespace.insert(family, vip, 53, vip, 53, 1003)  # never translated
    namespace.insert(family, vip, 53, pod.format(1), 5353, 1004)  # serving: stays
    namespace.insert(family, vip, 54, pod.format(9), 5353, 1005)  # another port: stays
    namespace.insert(family, pod.format(7), 53, pod.format(9), 53, 1006)  # deleted service: stays
    namespace.insert(family, outside, 30053, pod.format(9), 5353, 1007)  # node port
    namespace.insert(family, outside, 30053, pod.format(2), 5353, 1008)  # node port: stays
    namespace.insert(family, pod.format(8), 30053, pod.format(8), 30053, 1009)  # unrelated flow
    namespace.insert(family, vip, 53, pod.format(9), 5353, 1010, proto="tcp")  # TCP: stays
    namespace.insert(family, vip, 53, pod.format(9), 5353, 1011, zone=7)  # in a zone
    return {1004, 1005, 1006, 1008, 1010}


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("everything", [False, True], ids=["filtered", "everything"])
def test_the_deletion_table(namespace, family, everything):
    stay = fill(namespace, family)
    looked_for = Scope(everything=True) if everything else scope(family)
    removed = namespace.call(remove_stale, family, table(family), looked_for)
    assert stay == namespace.sports(family)
    assert (removed.deleted, removed.complete) == (6, True)


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_the_other_family_is_not_touched(namespace, family):
    fill(namespace, family)
    before = namespace.sports(family)
    other = family.other
    assert namespace.call(remove_stale, other, table(other), Scope(everything=True)).deleted == 0
    assert before == namespace.sports(family)


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_nothing_to_serve_deletes_nothing(namespace, family):
    fill(namespace, family)
    empty = FlowTable({}, {})
    assert namespace.call(remove_stale, family, empty, Scope(everything=True)).deleted == 0


@pytest.mark.parametrize(("family", "listed"), [(V4, 8), (V6, 9)], ids=str)
def test_this_kernel_filters_its_dump(namespace, family, listed):
    """Of 11 entries only those of the scope are handed over; IPv6 is filtered by port alone."""
    fill(namespace, family)
    assert namespace.call(remove_stale, family, table(family), scope(family)).listed == listed


def test_why_ipv6_is_not_filtered_by_address(namespace):
    """Linux hands over everything but the address asked for; a kernel that is right fails here."""
    fill(namespace, V6)

    def dumped() -> set[bool]:
        wanted = socket.inet_pton(socket.AF_INET6, VIP[V6])
        decode = conntrack.decoder(V6)
        with Netlink(NETFILTER) as netlink:
            dump = netlink.dump(conntrack._GET, conntrack._filter(V6, wanted))
            flows = [decode(*message) for message in dump]
        return {flow.dst == wanted for flow in flows}

    assert namespace.call(dumped) == {False}


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_the_full_dump_holds_udp_only(namespace, family):
    fill(namespace, family)
    removed = namespace.call(remove_stale, family, table(family), Scope(everything=True))
    assert removed.listed == 10


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_the_fast_decoder_knows_the_layout_of_this_kernel(namespace, family, monkeypatch):
    namespace.insert(family, VIP[family], 53, POD[family].format(9), 5353, 1001)
    monkeypatch.setattr(conntrack, "_walk", None)  # calling it would fail
    assert namespace.call(remove_stale, family, table(family), scope(family)) == Removed(1, 1, True)


SPORT_1001 = (1001).to_bytes(2, "big")


def test_the_id_protects_an_entry_that_took_over_the_addresses(namespace):
    family = V4
    namespace.insert(family, VIP[family], 53, POD[family].format(9), 5353, 1001)

    def delete_after_replacement() -> int:
        with Netlink(NETFILTER) as netlink:
            dump = netlink.dump(conntrack._GET, conntrack._filter(family))
            [handle] = [conntrack._handle(data, start, end) for data, start, end in dump]
            successor = handle
            # The kernel makes the id from the entry's place in memory, which it mostly uses again
            # at once; then there is nothing to tell the two apart. So another one goes there.
            for _ in range(50):
                namespace.run("conntrack", "-D", "-p", "udp")
                namespace.insert(family, VIP[family], 53, POD[family].format(1), 5353, 1002)
                namespace.insert(family, VIP[family], 53, POD[family].format(1), 5353, 1001)
                dump = netlink.dump(conntrack._GET, conntrack._filter(family))
                handles = [conntrack._handle(data, start, end) for data, start, end in dump]
                [successor] = [one for one in handles if SPORT_1001 in one]
                if successor != handle:
                    break
            assert successor != handle
            header = conntrack._generic_header(family)
            with pytest.raises(FileNotFoundError):
                netlink.request(conntrack._DELETE, conntrack.ACK, header + handle)
        return 1

    assert namespace.call(delete_after_replacement) == 1
    assert namespace.sports(family) == {1001, 1002}


def test_a_large_scope_is_read_with_one_dump(namespace):
    stay = fill(namespace, V4)
    many = {(VIP[V4], 40000 + number): serving(V4, 1) for number in range(SMALL_SCOPE)}
    base = table(V4)
    wide = FlowTable({**many, **base.by_address}, base.by_node_port)
    looked_for = Scope(addresses=frozenset(wide.by_address), node_ports=frozenset({30053}))
    assert namespace.call(remove_stale, V4, wide, looked_for) == Removed(10, 6, True)
    assert stay == namespace.sports(V4)
