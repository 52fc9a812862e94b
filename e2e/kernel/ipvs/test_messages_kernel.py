"""The bytes of `pykubeproxy.ipvs.messages` on a real kernel; ipvsadm, ipset and ip agree."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Iterator

import pytest

from e2e.kernel.test_conntrack_kernel import Namespace
from pykubeproxy.host.netlink import GENERIC, NETFILTER, ROUTE, SMALL_READ, Netlink
from pykubeproxy.ipvs.messages import (
    ENTRIES_PER_MESSAGE,
    REVISIONS,
    SCHED_2,
    Dest,
    Timeouts,
    add_entries,
    create_set,
    decode_address,
    decode_config,
    decode_dest,
    decode_listing,
    decode_protocol,
    decode_service,
    decode_type,
    del_address,
    del_dest,
    del_entries,
    del_service,
    destroy_set,
    get_addresses,
    get_config,
    get_dests,
    get_protocol,
    get_services,
    get_type,
    list_headers,
    list_set,
    new_address,
    new_dest,
    new_service,
    refused_line,
    set_config,
    set_dest,
    set_service,
)
from pykubeproxy.ipvs.names import SETS, set_name
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol

V4, V6 = Family.IPV4, Family.IPV6
VIP = {V4: "10.96.0.{}", V6: "fd00:96::{}"}
POD = {V4: "10.1.0.{}", V6: "fd01::{}"}
SCHEDULERS = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "mh", "sed", "nq", "fo", "ovf"]
ENTRIES = 1000


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    namespace = Namespace()
    # Without any local address the kernel takes every IPv4 address for a broadcast: EINVAL.
    namespace.run("ip", "link", "set", "lo", "up")
    yield namespace
    namespace.remove()


@pytest.fixture
def ipvs(namespace: Namespace) -> Iterator[tuple[Netlink, int]]:
    """A socket of the namespace, usable from outside, and the message type of ip_vs."""
    with namespace.call(Netlink, GENERIC, SMALL_READ) as netlink:
        yield netlink, netlink.family_id("IPVS")


@pytest.fixture
def ipset(namespace: Namespace) -> Iterator[Netlink]:
    with namespace.call(Netlink, NETFILTER) as netlink:
        yield netlink


@pytest.fixture
def route(namespace: Namespace) -> Iterator[tuple[Netlink, int]]:
    """A socket of the namespace, and a dummy device that is down."""
    namespace.run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    with namespace.call(Netlink, ROUTE) as netlink:
        yield netlink, namespace.call(socket.if_nametoindex, "kube-ipvs0")


def services(netlink: Netlink, family_id: int) -> dict[Virtual, VirtualConfig]:
    read = [decode_service(*message) for message in netlink.dump(*get_services(family_id))]
    return dict(pair for pair in read if pair is not None)


def dests(netlink: Netlink, family_id: int, virtual: Virtual) -> set[Dest]:
    return {decode_dest(*message) for message in netlink.dump(*get_dests(family_id, virtual))}


def members(netlink: Netlink, name: str) -> list[str]:
    parts = [decode_listing(*message) for message in netlink.dump(*list_set(name))]
    return [entry for part in parts for entry in part.entries]


# --- virtual and real servers ---


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_ipvsadm_shows_what_was_written(namespace, ipvs, scheduler, family):
    netlink, family_id = ipvs
    wanted = {
        Virtual(Protocol.TCP, VIP[family].format(1), 80): VirtualConfig(scheduler),
        Virtual(Protocol.UDP, VIP[family].format(2), 53): VirtualConfig(
            scheduler, PERSISTENT, 10800
        ),
        Virtual(Protocol.SCTP, VIP[family].format(3), 132): VirtualConfig(scheduler),
    }
    reals = [POD[family].format(number) for number in (1, 2)]
    requests = []
    for virtual, config in wanted.items():
        requests.append(new_service(family_id, virtual, config))
        requests += [
            new_dest(family_id, Real(virtual, ip, 8080), weight) for weight, ip in enumerate(reals)
        ]
    assert {0} == set(netlink.batch(requests))
    assert wanted == services(netlink, family_id)
    for virtual in wanted:
        assert {Dest(reals[0], 8080, 0, 0, 0, 0), Dest(reals[1], 8080, 1, 0, 0, 0)} == dests(
            netlink, family_id, virtual
        )
    shown = namespace.run("ipvsadm", "-Sn").splitlines()
    bracketed = "[{}]:{}" if family is V6 else "{}:{}"
    expected = set()
    for option, number, port, persistent in (
        ("-t", 1, 80, ""),
        ("-u", 2, 53, " -p 10800"),
        ("--sctp-service", 3, 132, ""),
    ):
        named = f"{option} {bracketed.format(VIP[family].format(number), port)}"
        expected.add(f"-A {named} -s {scheduler}{persistent}")
        for weight, ip in enumerate(reals):
            expected.add(f"-a {named} -r {bracketed.format(ip, 8080)} -m -w {weight}")
    assert expected == {line.strip() for line in shown}


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_the_port_flag_of_mh_reaches_the_kernel(namespace, ipvs, family):
    netlink, family_id = ipvs
    virtual = Virtual(Protocol.TCP, VIP[family].format(1), 80)
    config = VirtualConfig("mh", SCHED_2)
    assert [0] == netlink.batch([new_service(family_id, virtual, config)])
    assert "mh (mh-port)" in namespace.run("ipvsadm", "-Ln")
    assert {virtual: config} == services(netlink, family_id)


def test_flags_and_timeout_can_be_taken_back(ipvs):
    netlink, family_id = ipvs
    virtual = Virtual(Protocol.TCP, "10.96.0.1", 80)
    first, second = VirtualConfig("rr", PERSISTENT, 60), VirtualConfig("wrr")
    assert [0, 0] == netlink.batch(
        [new_service(family_id, virtual, first), set_service(family_id, virtual, second)]
    )
    assert {virtual: second} == services(netlink, family_id)


def test_refusals_of_servers(ipvs):
    netlink, family_id = ipvs
    virtual, absent = (Virtual(Protocol.TCP, f"10.96.0.{n}", 80) for n in (1, 2))
    real, no_real = (Real(virtual, f"10.1.0.{n}", 8080) for n in (1, 2))
    rr = VirtualConfig("rr")
    requests_and_errors = [
        (new_service(family_id, virtual, rr), 0),
        (new_service(family_id, virtual, rr), errno.EEXIST),
        (set_service(family_id, absent, rr), errno.ESRCH),
        (del_service(family_id, absent), errno.ESRCH),
        (new_service(family_id, absent, VirtualConfig("nosuch")), errno.ENOENT),
        (new_service(family_id, absent, VirtualConfig("x" * 16)), errno.EINVAL),
        (new_dest(family_id, real, 1), 0),
        (new_dest(family_id, real, 1), errno.EEXIST),
        (set_dest(family_id, real, 0), 0),
        (set_dest(family_id, no_real, 0), errno.ENOENT),
        (del_dest(family_id, no_real), errno.ENOENT),
        (new_dest(family_id, Real(absent, "10.1.0.1", 8080), 1), errno.ESRCH),
        (del_service(family_id, virtual), 0),
    ]
    assert [error for _, error in requests_and_errors] == netlink.batch(
        [request for request, _ in requests_and_errors]
    )
    assert {} == services(netlink, family_id)
    assert set() == dests(netlink, family_id, absent)


def test_services_by_firewall_mark_are_skipped(namespace, ipvs):
    netlink, family_id = ipvs
    namespace.run("ipvsadm", "-A", "-f", "7", "-s", "rr")
    assert {} == services(netlink, family_id)


def test_timeouts_are_kept_where_none_is_given(namespace, ipvs):
    netlink, family_id = ipvs
    before = decode_config(netlink.request(*get_config(family_id)))
    assert [0, 0] == netlink.batch(
        [set_config(family_id, Timeouts(tcp=901, udp=301)), set_config(family_id, Timeouts())]
    )
    assert Timeouts(901, before.tcp_fin, 301) == decode_config(
        netlink.request(*get_config(family_id))
    )
    assert f"901 {before.tcp_fin} 301" in namespace.run("ipvsadm", "-L", "--timeout")


# --- sets ---


def entry(set_type: str, family: Family, number: int) -> str:
    """The entry of a number: all protocols; nets and single addresses in turn."""
    ip = f"10.0.{number >> 8}.{number & 255}" if family is V4 else f"fd00:0:1::{number + 1:x}"
    net = ip
    if number % 2:
        net = f"10.{number & 127}.0.0/16" if family is V4 else f"fd0a:{number:x}::/64"
    service = f"{('tcp', 'udp', 'sctp')[number % 3]}:{80 + number}"
    return {
        "bitmap:port": str(30000 + number),
        "hash:ip": f"10.1.{number >> 8}.{number & 255}" if family is V4 else ip,
        "hash:ip,port": f"{ip},{service}",
        "hash:ip,port,ip": f"{ip},{service},{ip}",
        "hash:ip,port,net": f"{ip},{service},{net}",
    }[set_type]


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_all_sets_are_made_and_filled_in_one_go(namespace, ipset, family):
    wanted, requests = {}, []
    for kind in SETS.values():
        name = set_name(kind.name, family)
        entries = [entry(kind.type, family, number) for number in range(ENTRIES)]
        wanted[name] = set(entries)
        requests += [create_set(name, kind.type, family)] * 2
        for start in range(0, ENTRIES, ENTRIES_PER_MESSAGE):
            requests += [add_entries(name, entries[start : start + ENTRIES_PER_MESSAGE])] * 2
    assert {0} == set(ipset.batch(requests))
    assert wanted == {name: set(members(ipset, name)) for name in wanted}
    saved = namespace.run("ipset", "save").splitlines()
    assert wanted == {
        name: {line.split()[2] for line in saved if line.startswith(f"add {name} ")}
        for name in wanted
    }
    headers = [decode_listing(*message) for message in ipset.dump(*list_headers())]
    assert dict.fromkeys(wanted, ENTRIES) == {
        listing.set: listing.header.elements for listing in headers if listing.header
    }


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("set_type", list(REVISIONS))
def test_ipset_makes_the_same_set(namespace, ipset, set_type, family):
    """The proxy's sets are those a kube-proxy left, and the other way round."""
    options = ["range", "0-65535"] if set_type == "bitmap:port" else []
    if not options:
        options = ["family", "inet" if family is V4 else "inet6"]
        options += ["hashsize", "1024", "maxelem", "65536"]
    namespace.run("ipset", "create", "X", set_type, *options)
    assert [0, 0] == ipset.batch(
        [create_set("X", set_type, family), create_set("Y", set_type, family)]
    )
    namespace.run("ipset", "create", "Y", set_type, *options, "-exist")


def test_entries_go_and_absent_ones_are_no_error(ipset):
    entries = [f"10.96.0.{number},tcp:80" for number in range(4)]
    assert [0, 0, 0, 0] == ipset.batch(
        [
            create_set("X", "hash:ip,port", V4),
            add_entries("X", entries),
            del_entries("X", entries[:3]),
            del_entries("X", entries[:3]),
        ]
    )
    assert entries[3:] == members(ipset, "X")


def test_the_kernel_stops_at_the_entry_it_refuses(ipset):
    ipset.batch([create_set("X", "hash:ip,port", V4)])
    bulk = ["1.1.1.1,tcp:1", "1.1.1.2,tcp:1", "fd00::1,tcp:1", "1.1.1.4,tcp:1"]
    refusals = ipset.refusals([add_entries("X", bulk), add_entries("X", ["1.1.1.5,tcp:1"])])
    assert {0: 2} == {at: refused_line(refusal.body) for at, refusal in refusals.items()}
    assert {"1.1.1.1,tcp:1", "1.1.1.2,tcp:1", "1.1.1.5,tcp:1"} == set(members(ipset, "X"))


def test_refusals_of_sets(ipset):
    requests_and_errors = [
        (create_set("X", "hash:ip", V4), 0),
        (create_set("X", "hash:ip", V6), errno.EEXIST),
        (create_set("X", "hash:ip,port", V4), errno.EEXIST),
        (create_set("Y", "hash:ip", V4, revision=200), 4098),
        (add_entries("Y", ["10.0.0.1"]), errno.ENOENT),
        (destroy_set("X"), 0),
    ]
    assert [error for _, error in requests_and_errors] == ipset.batch(
        [request for request, _ in requests_and_errors]
    )
    with pytest.raises(FileNotFoundError):
        members(ipset, "X")


def test_a_net_of_everything_is_refused_and_its_halves_are_not(ipset):
    refusals = ipset.refusals(
        [
            create_set("X", "hash:ip,port,net", V4),
            add_entries("X", ["10.0.0.1,tcp:80,0.0.0.0/0"]),
            add_entries("X", ["10.0.0.1,tcp:80,0.0.0.0/1", "10.0.0.1,tcp:80,128.0.0.0/1"]),
        ]
    )
    assert {1: 4104} == {at: refusal.errno for at, refusal in refusals.items()}
    assert 2 == len(members(ipset, "X"))


def test_a_full_set_says_so(ipset):
    entries = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(70_000)]
    size = ENTRIES_PER_MESSAGE
    bulk = [add_entries("X", entries[at : at + size]) for at in range(0, len(entries), size)]
    assert [0] == ipset.batch([create_set("X", "hash:ip", V4)])
    refusals = ipset.refusals(bulk)
    assert {4352} == {refusal.errno for refusal in refusals.values()}
    assert set(members(ipset, "X")) < set(entries)


def test_the_kernel_has_the_revisions_we_ask_for(ipset):
    oldest, newest = decode_protocol(ipset.request(*get_protocol()))
    assert oldest <= 6 <= newest
    for set_type, revision in REVISIONS.items():
        oldest, newest = decode_type(ipset.request(*get_type(set_type, V4)))
        assert oldest <= revision <= newest


# --- addresses ---


@pytest.mark.parametrize("family", [V4, V6], ids=str)
def test_addresses_come_and_go(namespace, route, family):
    netlink, index = route
    one, two = VIP[family].format(1), VIP[family].format(2)
    assert [0, errno.EEXIST, 0, 0, errno.EADDRNOTAVAIL] == netlink.batch(
        [
            new_address(index, one),
            new_address(index, one),
            new_address(index, two),
            del_address(index, two),
            del_address(index, two),
        ]
    )
    read = [decode_address(*message) for message in netlink.dump(*get_addresses(family))]
    assert [(one, family.host_prefix)] == [
        (address.address, address.prefix_length)
        for address in read
        if address and address.index == index
    ]
    [shown] = json.loads(namespace.run("ip", "-json", "address", "show", "dev", "kube-ipvs0"))
    assert "DOWN" == shown["operstate"]
    [address] = shown["addr_info"]
    assert (one, family.host_prefix, "global") == (
        address["local"],
        address["prefixlen"],
        address["scope"],
    )
    # No duplicate address detection that would have to end first, though the device is down.
    assert "tentative" not in address


def test_an_address_of_a_device_that_is_gone_is_enodev(route):
    netlink, index = route
    assert [errno.ENODEV] * 2 == netlink.batch(
        [new_address(index + 1000, "10.9.9.9"), del_address(index + 1000, "10.9.9.9")]
    )
