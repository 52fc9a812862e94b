from __future__ import annotations

import errno
import socket
import struct

import pytest
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pykubeproxy.host.netlink import attribute
from pykubeproxy.ipvs.messages import del_address, new_address
from pykubeproxy.ipvs.sources import give_back, remove_routes, steer_away, steered
from tests.ipvs.scripted import (
    DEL_ADDRESS,
    DEL_ROUTE,
    GET_LINK,
    GET_ROUTE,
    NEW_ADDRESS,
    NEW_ROUTE,
    ScriptedKernel,
    in_turn,
    link,
    message,
    refuse,
)

DEVICE, LO = 7, 1
NODE, NODE6 = "192.0.2.7", "fd00::7"
VIP, VIP6 = "10.96.0.1", "fd96::1"
BOTH = [VIP, VIP6]
KERNEL, OURS = 2, 110


def written(address, protocol, *more):
    """A local route's message as pyroute2 writes it."""
    route = rtmsg()
    v6 = ":" in address
    route["family"], route["dst_len"] = (10, 128) if v6 else (2, 32)
    route["table"], route["proto"], route["scope"], route["type"] = 255, protocol, 254, 2
    route["attrs"] = [("RTA_DST", address), *more]
    route.encode()
    return bytes(route.data[16:])


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def route(address, protocol=OURS, table=255):
    """One message of a dump."""
    af, bits = (10, 128) if ":" in address else (2, 32)
    body = struct.pack("=BBBBBBBBI", af, bits, 0, 0, table, protocol, 254, 2, 0)
    body += attribute(15, struct.pack("=I", table)) + attribute(1, packed(address))
    return message(24, body)


@pytest.fixture
def kernel():
    """One with a source toward the default route of each family, and some routes."""
    kernel = ScriptedKernel()
    kernel.routes = []
    kernel.sources = {2: NODE, 10: NODE6}
    kernel.answers[GET_ROUTE] = lambda body: _get_route(kernel, body)
    kernel.answers[GET_LINK] = lambda body: link(DEVICE, "dummy")
    return kernel


def _get_route(kernel, body):
    if not body[1]:  # no destination: a dump
        return kernel.routes
    source = kernel.sources[body[0]]
    if source is None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")
    return bytes(12) + attribute(4, bytes(4)) + attribute(7, packed(source))


def test_what_was_steered_is_told_by_the_routes_of_ours(kernel):
    kernel.routes = [route(VIP), route(NODE, protocol=2), route(VIP, table=254)]
    assert [VIP] == steered(kernel)


# --- away ---


def test_ipv4_takes_the_newer_of_two_routes(kernel):
    steer_away(DEVICE, [VIP], kernel)
    expected = written(VIP, OURS, ("RTA_OIF", DEVICE), ("RTA_PREFSRC", NODE))
    assert [expected] == kernel.bodies(NEW_ROUTE)
    assert 0 == kernel.times(DEL_ROUTE)


def test_ipv6_gets_another_route_before_it_loses_the_kernels(kernel):
    steer_away(DEVICE, [VIP6], kernel)
    assert [
        (
            NEW_ROUTE,
            written(VIP6, OURS, ("RTA_OIF", LO), ("RTA_PRIORITY", 1), ("RTA_PREFSRC", NODE6)),
        ),
        (DEL_ROUTE, written(VIP6, KERNEL, ("RTA_OIF", DEVICE))),
    ] == [asked for asked in kernel.asked if asked[0] != GET_ROUTE]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPERM])
def test_ipv6_keeps_the_kernels_route_where_it_gets_no_other(kernel, code):
    kernel.answers[NEW_ROUTE] = in_turn(refuse(code), lambda body: b"")
    steer_away(DEVICE, ["fd96::1", "fd96::2"], kernel)
    assert [written("fd96::2", KERNEL, ("RTA_OIF", DEVICE))] == kernel.bodies(DEL_ROUTE)


def test_what_was_begun_is_finished(kernel):
    kernel.answers[NEW_ROUTE] = refuse(errno.EEXIST)
    kernel.answers[DEL_ROUTE] = refuse(errno.ESRCH)
    steer_away(DEVICE, BOTH, kernel)
    assert 1 == kernel.times(DEL_ROUTE)


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(None, id="no default route"),
        pytest.param(VIP, id="the source is about to go itself"),
    ],
)
def test_a_family_without_another_source_stays_as_it_is(kernel, source):
    kernel.sources[2] = source
    steer_away(DEVICE, BOTH, kernel)
    (only,) = kernel.bodies(NEW_ROUTE)
    assert 10 == only[0]


def test_a_route_without_a_source_is_no_help(kernel):
    kernel.answers[GET_ROUTE] = lambda body: bytes(12)
    steer_away(DEVICE, BOTH, kernel)
    assert 0 == kernel.times(NEW_ROUTE)


# --- the end of it ---


def test_only_our_routes_are_removed(kernel):
    kernel.routes = [
        route(VIP, KERNEL),
        route(VIP),
        route("10.96.0.2", table=254),
        route(VIP6),
        message(24, bytes(12)),  # of another sort of network, as MPLS
    ]
    remove_routes(kernel)
    assert [written(VIP, OURS), written(VIP6, OURS)] == kernel.bodies(DEL_ROUTE)


def test_a_route_that_went_with_its_device_is_no_problem(kernel):
    kernel.routes = [route(VIP)]
    kernel.answers[DEL_ROUTE] = refuse(errno.ESRCH)
    remove_routes(kernel)


@pytest.mark.parametrize("function", [remove_routes, give_back])
def test_a_refusal_is_raised(kernel, function):
    kernel.routes = [route(VIP)]
    kernel.answers[DEL_ROUTE] = refuse(errno.EPERM)
    with pytest.raises(PermissionError):
        function(kernel)


def test_what_comes_back_has_the_kernels_routes_again(kernel):
    kernel.routes = [route(VIP), route(VIP6)]
    give_back(kernel)
    assert [
        (DEL_ADDRESS, del_address(DEVICE, VIP6)[2]),
        (NEW_ADDRESS, new_address(DEVICE, VIP6)[2]),
        (DEL_ROUTE, written(VIP, OURS)),
        (DEL_ROUTE, written(VIP6, OURS)),
    ] == [asked for asked in kernel.asked if asked[0] not in (GET_ROUTE, GET_LINK)]


def test_routes_without_their_device_just_go(kernel):
    kernel.routes = [route(VIP6)]
    kernel.answers[GET_LINK] = refuse(errno.ENODEV)
    give_back(kernel)
    assert [DEL_ROUTE] == [key for key, _ in kernel.asked[2:]]


def test_with_nothing_to_give_back_nothing_is_done(kernel):
    give_back(kernel)
    assert [GET_ROUTE] == [key for key, _ in kernel.asked]
