from __future__ import annotations

import errno
import struct

import pytest

from pykubeproxy.host.netlink import attribute
from pykubeproxy.ipvs import leftovers
from pykubeproxy.ipvs.leftovers import clean_up, plan_removal, remove_leftovers
from pykubeproxy.ipvs.objects import Virtual
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.sync.flows import UDP, Scope, is_stale
from tests.ipvs.scripted import (
    DEL_LINK,
    DEL_ROUTE,
    DEL_SERVICE,
    DESTROY_SET,
    GET_ADDRESSES,
    GET_DEST,
    GET_LINK,
    GET_ROUTE,
    GET_SERVICE,
    LIST_SET,
    NEW_ROUTE,
    ScriptedKernel,
    address,
    dest,
    in_turn,
    link,
    listing,
    message,
    refuse,
    service,
    tcp,
)

DEVICE, ETH0 = 7, 2
BUSY = 4100


def udp(text, port):
    return Virtual(Protocol.UDP, text, port)


def sctp(text, port):
    return Virtual(Protocol.SCTP, text, port)


OURS = {
    "on the device": tcp("10.96.0.1", 80),
    "on the device, IPv6": udp("fd96::1", 53),
    "node port": tcp("192.0.2.7", 30080),
    "UDP node port": udp("192.0.2.7", 30053),
    "SCTP node port": sctp("192.0.2.7", 30099),
    "external IP of this node": tcp("192.0.2.7", 443),
}
FOREIGN = {
    "another port of this node": tcp("192.0.2.7", 22),
    "another protocol": tcp("192.0.2.7", 30053),
    "a node port's number elsewhere": tcp("203.0.113.1", 30080),
    "an IPv4 node port's number": tcp("fd00::7", 30080),
    "another address": tcp("10.96.7.7", 80),
}
SETS = {
    "KUBE-NODE-PORT-TCP": ["30080"],
    "KUBE-NODE-PORT-UDP": ["30053"],
    "KUBE-NODE-PORT-SCTP-HASH": ["192.0.2.7,sctp:30099"],
    "KUBE-EXTERNAL-IP": ["192.0.2.7,tcp:443", "192.0.2.7,47:1"],
}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """The kernel has ip_vs and ipset: the files that tell, for tests that want it otherwise."""
    for name in ("IP_VS", "IP_SET"):
        path = tmp_path / name
        path.touch()
        monkeypatch.setattr(leftovers, name, path)
    return tmp_path


@pytest.fixture
def kernel(loaded):
    """One with everything that ipvs mode leaves, and virtual servers of others."""
    kernel = ScriptedKernel()
    kernel.answers[GET_SERVICE] = lambda body: [
        service(one) for one in (*OURS.values(), *FOREIGN.values())
    ]
    kernel.answers[GET_LINK] = lambda body: link(DEVICE, "dummy")
    kernel.answers[GET_ADDRESSES] = lambda body: [
        address(DEVICE, "10.96.0.1"),
        address(DEVICE, "fd96::1"),
        address(ETH0, "192.0.2.7"),
        address(ETH0, "fd00::7"),
    ]
    kernel.answers[LIST_SET] = _list
    kernel.answers[DESTROY_SET] = lambda body: b""
    return kernel


def _list(body):
    name = body[16:].partition(b"\0")[0].decode()
    if name not in SETS:
        raise OSError(errno.ENOENT, "No such file or directory")
    return [listing(name, *SETS[name])]


class Clock:
    """Time passes only in `wait`."""

    def __init__(self, give_up_after=None):
        self.now = 0.0
        self.waits = 0
        self.give_up_after = give_up_after

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        self.waits += 1
        return self.waits == self.give_up_after


class Flows:
    def __init__(self):
        self.forgotten = []

    def __call__(self, family, table, scope):
        self.forgotten.append((family, table, scope))


class Sockets:
    """How many sockets talk from addresses of the device, one number for each look."""

    def __init__(self, *counts):
        self.counts = list(counts)
        self.asked = []

    def __call__(self, addresses):
        self.asked.append(set(addresses))
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]


def remove(kernel, exclude=(), clock=None, flows=None, sockets=None):
    clock = clock or Clock()
    return remove_leftovers(
        exclude, clock.wait, clock, kernel, flows or Flows(), sockets or Sockets(0)
    )


def deleted(kernel):
    """Which virtual servers were deleted, in the words of their messages."""
    known = {*OURS.values(), *FOREIGN.values()}
    bodies = set(kernel.bodies(DEL_SERVICE))
    return {one for one in known if leftovers.del_service(0, one)[2] in bodies}


# --- clean-up ---


def test_cleaning_takes_everything(kernel):
    removal = clean_up(connect=kernel)
    assert {"virtual servers": 11, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed
    assert [] == removal.problems
    assert {*OURS.values(), *FOREIGN.values()} == deleted(kernel)


def test_a_plan_names_what_cleaning_takes_and_changes_nothing(kernel):
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 255, 110, 254, 2, 0)
    kernel.answers[GET_ROUTE] = lambda _: [message(24, body + attribute(1, bytes((10, 96, 0, 9))))]
    found, problems = plan_removal(connect=kernel)
    assert [] == problems
    assert [
        *(f"virtual server {one}" for one in (*OURS.values(), *FOREIGN.values())),
        "address 10.96.0.1 on device kube-ipvs0",
        "address fd96::1 on device kube-ipvs0",
        "device kube-ipvs0",
        "route to 10.96.0.9 by another source",
        "ipset KUBE-EXTERNAL-IP with 2 entries",
        "ipset KUBE-NODE-PORT-TCP with 1 entry",
        "ipset KUBE-NODE-PORT-UDP with 1 entry",
        "ipset KUBE-NODE-PORT-SCTP-HASH with 1 entry",
    ] == [line for line in found if "KUBE-6-" not in line]
    looks = {GET_SERVICE, GET_LINK, GET_ADDRESSES, GET_ROUTE, LIST_SET}
    assert set() == {kind for kind, _ in kernel.asked} - looks


def test_a_plan_leaves_out_what_is_excluded(kernel):
    found, _ = plan_removal(["192.0.2.0/24", "fd96::/16"], kernel)
    assert {f"virtual server {one}" for one in (*OURS.values(), *FOREIGN.values())} - set(
        found
    ) == {
        f"virtual server {one}"
        for one in (*OURS.values(), *FOREIGN.values())
        if one.address.startswith(("192.0.2.", "fd96:"))
    }


def test_a_plan_loads_no_module(kernel, loaded):
    for name in ("IP_VS", "IP_SET"):
        (loaded / name).unlink()
    found, problems = plan_removal(connect=kernel)
    assert [] == problems
    assert all("device" in line for line in found)


def test_what_a_plan_cannot_see_is_told(kernel):
    kernel.answers[GET_LINK] = refuse(errno.EPERM)
    found, problems = plan_removal(connect=kernel)
    assert problems == [
        "device kube-ipvs0: Operation not permitted; it takes root with capability NET_ADMIN"
    ]
    assert found


def test_excluded_servers_stay(kernel):
    clean_up(["192.0.2.0/24", "fd96::/16"], kernel)
    kept = {one for one in (*OURS.values(), *FOREIGN.values()) if one not in deleted(kernel)}
    assert {"192.0.2.7", "fd96::1"} == {one.address for one in kept}


def test_what_has_no_module_is_not_asked_for(kernel, loaded):
    (loaded / "IP_VS").unlink()
    (loaded / "IP_SET").unlink()
    kernel.answers[GET_LINK] = refuse(errno.ENODEV)
    removal = clean_up(connect=kernel)
    assert ({}, []) == (removal.removed, removal.problems)
    assert [GET_LINK, GET_ROUTE] == [key for key, _ in kernel.asked]


def test_what_is_gone_already_is_no_problem(kernel):
    kernel.answers[DEL_SERVICE] = refuse(errno.ESRCH)
    kernel.answers[DEL_LINK] = refuse(errno.ENODEV)
    kernel.answers[DESTROY_SET] = refuse(errno.ENOENT)
    assert [] == clean_up(connect=kernel).problems


def test_one_failure_does_not_keep_the_rest(kernel):
    kernel.answers[GET_SERVICE] = refuse(errno.EPERM)
    kernel.answers[GET_LINK] = lambda body: link(DEVICE, "veth")
    kernel.answers[DESTROY_SET] = in_turn(refuse(BUSY), lambda body: b"")
    removal = clean_up(connect=kernel)
    servers, device, busy = removal.problems
    assert "virtual servers: Operation not permitted; run as root (NET_ADMIN)" == servers
    assert device.startswith("device kube-ipvs0 is of type veth")
    assert "ipset KUBE-LOOP-BACK: in use by a rule or another set" == busy
    assert {"ipsets": 33} == removal.removed


def test_a_server_that_stays_is_named(kernel):
    kernel.answers[DEL_SERVICE] = in_turn(refuse(errno.EPERM), lambda body: b"")
    removal = clean_up(connect=kernel)
    assert ["virtual server tcp 10.96.0.1:80: Operation not permitted"] == removal.problems
    assert 10 == removal.removed["virtual servers"]


def test_an_unreachable_ipset_is_a_problem(kernel):
    def connect(protocol):
        if protocol == leftovers.NETFILTER:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        return kernel(protocol)

    assert ["ipsets: Operation not permitted; run as root (NET_ADMIN)"] == clean_up(
        connect=connect
    ).problems


# --- leftovers ---


def test_leftovers_are_told_from_servers_of_others(kernel):
    removal = remove(kernel)
    assert set(OURS.values()) == deleted(kernel)
    assert {"virtual servers": 6, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed


def test_excluded_leftovers_stay(kernel):
    remove(kernel, exclude=["192.0.2.7/32"])
    assert {OURS["on the device"], OURS["on the device, IPv6"]} == deleted(kernel)


@pytest.mark.parametrize("missing", ["device", "sets"])
def test_device_or_sets_are_enough_of_a_trace(kernel, missing):
    if missing == "device":
        kernel.answers[GET_LINK] = refuse(errno.ENODEV)
        left = {v for v in OURS.values() if v.address == "192.0.2.7"}
    else:
        kernel.answers[LIST_SET] = refuse(errno.ENOENT)
        left = {OURS["on the device"], OURS["on the device, IPv6"]}
    remove(kernel)
    assert left == deleted(kernel)


def test_without_any_trace_nothing_is_looked_at(kernel):
    kernel.answers[GET_LINK] = refuse(errno.ENODEV)
    kernel.answers[LIST_SET] = refuse(errno.ENOENT)
    assert {} == remove(kernel).removed
    assert 0 == kernel.times(GET_SERVICE) + kernel.times(DESTROY_SET)


def test_established_connections_end_first(kernel):
    kernel.answers[GET_DEST] = in_turn(
        lambda body: [dest(2), dest(1)],  # the first virtual server
        *[lambda body: []] * 5,
        lambda body: [dest(0), dest(1)],
        lambda body: [dest(0)],
    )
    order = []
    for key in (DEL_SERVICE, DEL_LINK):
        kernel.answers[key] = lambda body, key=key: order.append(key) or b""
    clock = Clock()
    remove(kernel, clock=clock)
    assert 2 == clock.waits
    assert [DEL_SERVICE] * 6 + [DEL_LINK] == order
    assert 8 == kernel.times(GET_DEST)


def test_patience_ends(kernel):
    kernel.answers[GET_DEST] = lambda body: [dest(1)]
    clock = Clock()
    removal = remove(kernel, clock=clock)
    assert leftovers.PATIENCE_SECONDS == clock.now
    assert {"virtual servers": 6, "device kube-ipvs0": 1, "ipsets": 34} == removal.removed


def test_who_gives_up_leaves_the_rest(kernel):
    kernel.answers[GET_DEST] = in_turn(lambda body: [dest(1)], lambda body: [])
    flows = Flows()
    removal = remove(kernel, clock=Clock(give_up_after=1), flows=flows)
    assert {"virtual servers": 5} == removal.removed
    assert 0 == kernel.times(DEL_LINK) + kernel.times(DESTROY_SET)
    assert [] == flows.forgotten


def steerable(kernel):
    """Give the kernel a default route, from 192.0.2.1, of IPv4."""

    def get_route(body):
        if not body[1]:
            return []
        if body[0] != 2:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return bytes(12) + attribute(7, bytes((192, 0, 2, 1)))

    kernel.answers[GET_ROUTE] = get_route


def test_own_requests_get_another_source_before_they_are_waited_for(kernel):
    steerable(kernel)
    clock, sockets = Clock(), Sockets(0)

    def talking(addresses):
        assert 1 == kernel.times(NEW_ROUTE)
        return sockets(addresses)

    remove(kernel, clock=clock, sockets=talking)
    assert [{"10.96.0.1", "fd96::1"}] * 2 == sockets.asked


def test_an_answer_gets_a_moment_even_if_nobody_is_seen_to_wait(kernel):
    clock = Clock()
    remove(kernel, clock=clock)
    assert leftovers.POLL_SECONDS == clock.now


def test_own_requests_end_before_the_device_goes(kernel):
    clock = Clock()

    def talking(addresses):
        assert 0 == kernel.times(DEL_LINK)
        return 1 if clock.waits < 3 else 0

    remove(kernel, clock=clock, sockets=talking)
    assert (3, 1) == (clock.waits, kernel.times(DEL_LINK))


def test_patience_with_own_requests_ends(kernel):
    clock = Clock()
    removal = remove(kernel, clock=clock, sockets=Sockets(1))
    assert leftovers.PATIENCE_SECONDS == clock.now
    assert 1 == removal.removed["device kube-ipvs0"]


def test_a_device_of_somebody_else_is_left_alone(kernel):
    steerable(kernel)
    kernel.answers[GET_LINK] = lambda body: link(DEVICE, "veth")
    remove(kernel)
    assert 0 == kernel.times(NEW_ROUTE)


@pytest.mark.parametrize("take_out", [clean_up, remove_leftovers])
def test_routes_go_after_the_device(kernel, take_out):
    # Before it, the addresses would be sources that no answer reaches.
    body = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 255, 110, 254, 2, 0) + attribute(1, bytes(4))
    kernel.answers[GET_ROUTE] = lambda asked: [message(24, body)]
    order = []
    for key in (DEL_LINK, DEL_ROUTE):
        kernel.answers[key] = lambda body, key=key: order.append(key) or b""
    if take_out is clean_up:
        clean_up(connect=kernel)
    else:
        kernel.answers[GET_ADDRESSES] = lambda body: []  # nothing to steer
        remove(kernel)
    assert [DEL_LINK, DEL_ROUTE] == order


def test_routes_that_stay_are_told(kernel):
    kernel.answers[GET_ROUTE] = refuse(errno.EPERM)
    removal = clean_up(connect=kernel)
    assert ["routes to addresses of kube-ipvs0: Operation not permitted"] == removal.problems
    assert 34 == removal.removed["ipsets"]


def test_udp_flows_look_for_a_way_anew(kernel):
    flows = Flows()
    remove(kernel, flows=flows)
    assert [
        (Family.IPV4, Scope(addresses=frozenset({("192.0.2.7", 30053)}))),
        (Family.IPV6, Scope(addresses=frozenset({("fd96::1", 53)}))),
    ] == sorted((family, scope) for family, _, scope in flows.forgotten)
    for _, table, scope in flows.forgotten:
        (destination,) = scope.addresses
        assert is_stale(table, UDP, *destination, "10.1.0.1", 5353)
        assert not is_stale(table, UDP, destination[0], 9, "10.1.0.1", 5353)


def test_sets_and_device_go_even_where_the_module_is_gone(kernel, loaded):
    (loaded / "IP_VS").unlink()
    assert {"device kube-ipvs0": 1, "ipsets": 34} == remove(kernel).removed


def test_a_refusal_is_told(kernel):
    kernel.answers[GET_ADDRESSES] = refuse(errno.EPERM)
    removal = remove(kernel)
    assert ({}, ["leftovers of ipvs mode: Operation not permitted"]) == (
        removal.removed,
        removal.problems,
    )
