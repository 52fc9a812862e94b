from __future__ import annotations

import pytest
from pyroute2.ipvs import IPVSDest, IPVSService
from pyroute2.netlink.generic.ipvs import ipvsmsg

from pykubeproxy.host.netlink import attributes
from pykubeproxy.ipvs.messages import (
    SCHED_2,
    Dest,
    Timeouts,
    decode_config,
    decode_dest,
    decode_service,
    del_dest,
    del_service,
    get_config,
    get_dests,
    get_services,
    new_dest,
    new_service,
    servers,
    set_config,
    set_dest,
    set_service,
)
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Protocol
from tests.ipvs.messages.reading import body_of, reply, whole

FAMILY_ID = 28
WEB = Virtual(Protocol.TCP, "10.96.0.1", 80)
WEB6 = Virtual(Protocol.TCP, "fd00:96::1", 80)
RR = VirtualConfig("rr")


def theirs(command, *attrs):
    """The body as pyroute2 writes it, but for the mark of nested attributes: it sets none."""
    message = ipvsmsg()
    message["cmd"], message["version"] = command, 1
    message["attrs"] = list(attrs)
    body = bytearray(body_of(message))
    for _, start, _ in attributes(bytes(body), 4, len(body)):
        body[start - 1] |= 0x80
    return bytes(body)


def service_attrs(virtual):
    number = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}[virtual.protocol]
    af = 10 if ":" in virtual.address else 2
    return [
        ("IPVS_SVC_ATTR_AF", af),
        ("IPVS_SVC_ATTR_PROTOCOL", number),
        ("IPVS_SVC_ATTR_ADDR", virtual.address),
        ("IPVS_SVC_ATTR_PORT", virtual.port),
    ]


def service(virtual, config=None):
    attrs = service_attrs(virtual)
    if config is not None:
        attrs += [
            ("IPVS_SVC_ATTR_SCHED_NAME", config.scheduler),
            ("IPVS_SVC_ATTR_FLAGS", {"flags": config.flags, "mask": 0xFFFFFFFF}),
            ("IPVS_SVC_ATTR_TIMEOUT", config.timeout_seconds),
            ("IPVS_SVC_ATTR_NETMASK", "255.255.255.255"),
        ]
    return ("IPVS_CMD_ATTR_SERVICE", {"attrs": attrs})


def dest(real, weight):
    attrs = [
        ("IPVS_DEST_ATTR_ADDR_FAMILY", 10 if ":" in real.address else 2),
        ("IPVS_DEST_ATTR_FWD_METHOD", 0),
        ("IPVS_DEST_ATTR_WEIGHT", weight),
        ("IPVS_DEST_ATTR_U_THRESH", 0),
        ("IPVS_DEST_ATTR_L_THRESH", 0),
        ("IPVS_DEST_ATTR_ADDR", real.address),
        ("IPVS_DEST_ATTR_PORT", real.port),
    ]
    return ("IPVS_CMD_ATTR_DEST", {"attrs": attrs})


VIRTUALS = [
    Virtual(protocol, address, port)
    for address in ("10.96.0.1", "255.255.255.255", "fd00:96::1", "2001:db8:1:2:3:4:5:6")
    for protocol, port in zip(Protocol, (80, 65535, 1), strict=True)
]


@pytest.mark.parametrize("virtual", VIRTUALS, ids=str)
def test_a_service_is_named_like_pyroute2_names_it(virtual):
    assert (FAMILY_ID, 0, theirs(3, service(virtual))) == del_service(FAMILY_ID, virtual)
    assert (FAMILY_ID, theirs(8, service(virtual))) == get_dests(FAMILY_ID, virtual)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(RR, id="plain"),
        pytest.param(VirtualConfig("wlc", PERSISTENT, 10800), id="persistent"),
        pytest.param(VirtualConfig("mh", PERSISTENT | SCHED_2, 60), id="mh-port"),
    ],
)
def test_an_ipv4_service_is_written_like_pyroute2_writes_it(config):
    assert theirs(1, service(WEB, config)) == new_service(FAMILY_ID, WEB, config)[2]
    assert theirs(2, service(WEB, config)) == set_service(FAMILY_ID, WEB, config)[2]


@pytest.mark.parametrize("weight", [0, 1, 100])
@pytest.mark.parametrize("address", ["10.1.0.1", "fd01::1"])
def test_a_real_server_is_written_like_pyroute2_writes_it(address, weight):
    real = Real(WEB6 if ":" in address else WEB, address, 8080)
    named = service(real.virtual)
    assert theirs(5, named, dest(real, weight)) == new_dest(FAMILY_ID, real, weight)[2]
    assert theirs(6, named, dest(real, weight)) == set_dest(FAMILY_ID, real, weight)[2]
    assert theirs(7, named, dest(real, 0)) == del_dest(FAMILY_ID, real)[2]


def test_pyroute2_has_the_same_attributes_in_its_own_records():
    """So that the comparisons above are not with an encoding of ours."""
    record = dict(IPVSService(addr="10.96.0.1", port=80, protocol=6).dump_nla()["attrs"])
    assert set(dict(service(WEB, RR)[1]["attrs"])) == set(record)
    real = dict(IPVSDest(addr="10.1.0.1", port=8080).dump_nla()["attrs"])
    ours = dict(dest(Real(WEB, "10.1.0.1", 8080), 1)[1]["attrs"])
    assert {name for name in real if "_TUN_" not in name} == set(ours)


def test_the_whole_table_is_asked_for_without_a_filter():
    assert (FAMILY_ID, theirs(4)) == get_services(FAMILY_ID)


# --- virtual servers, by hand: what pyroute2 cannot say ---


def test_an_ipv6_service_counts_the_bits_of_its_netmask():
    request = new_service(FAMILY_ID, WEB6, VirtualConfig("mh", PERSISTENT | SCHED_2, 10800))
    assert (
        "01010000"
        "54000180"  # service, nested
        "06000100" "0a000000"  # AF_INET6
        "06000200" "06000000"  # TCP
        "14000300" "fd000096000000000000000000000001"
        "06000400" "00500000"  # port 80
        "07000600" "6d680000"  # mh
        "0c000700" "11000000" "ffffffff"  # persistent, hash ports; all flags are meant
        "08000800" "302a0000"  # 10800 s
        "08000900" "80000000"  # 128
    ) == request[2].hex()  # fmt: skip


@pytest.mark.parametrize(
    ("timeouts", "expected"),
    [
        pytest.param(Timeouts(), "0c010000", id="nothing"),
        pytest.param(Timeouts(tcp=900), "0c0100000800040084030000", id="one"),
        pytest.param(
            Timeouts(900, 120, 300),
            "0c0100000800040084030000080005007800000008000600 2c010000".replace(" ", ""),
            id="all",
        ),
    ],
)
def test_only_given_timeouts_are_set(timeouts, expected):
    assert (FAMILY_ID, 0, bytes.fromhex(expected)) == set_config(FAMILY_ID, timeouts)


def test_the_timeouts_are_asked_for():
    assert (FAMILY_ID, 0, bytes.fromhex("0d010000")) == get_config(FAMILY_ID)


# --- virtual servers, as the kernel tells them ---


@pytest.mark.parametrize(
    ("kind", "virtual", "config"),
    [
        ("service tcp v4 rr", WEB, RR),
        (
            "service udp v4 wrr",
            Virtual(Protocol.UDP, "10.96.0.2", 81),
            VirtualConfig("wrr", PERSISTENT, 10800),
        ),
        ("service tcp v4 mh", Virtual(Protocol.TCP, "10.96.0.13", 92), VirtualConfig("mh", 0x10)),
        (
            "service sctp v6 mh",
            Virtual(Protocol.SCTP, "fd00:96::d", 92),
            VirtualConfig("mh", SCHED_2),
        ),
        (
            "service sctp v6 wrr",
            Virtual(Protocol.SCTP, "fd00:96::2", 81),
            VirtualConfig("wrr", PERSISTENT, 10800),
        ),
    ],
    ids=str,
)
def test_a_service_is_read_without_the_flag_of_the_kernel(kind, virtual, config):
    [message] = whole(kind)
    assert (virtual, config) == decode_service(*message)


def test_a_service_chosen_by_a_firewall_mark_is_none_of_ours():
    [message] = whole("service fwmark")
    assert decode_service(*message) is None


@pytest.mark.parametrize(
    ("kind", "address"),
    [("dests udp 10.96.0.1:80", "10.1.0.{}"), ("dests sctp [fd00:96::d]:92", "fd01::{}")],
)
def test_real_servers_are_read(kind, address):
    expected = [Dest(address.format(n), 8080, n - 1, 0, 0, 0) for n in (3, 2, 1)]
    assert expected == [decode_dest(*message) for message in whole(kind)]


@pytest.mark.parametrize("kind", ["dests udp 10.96.0.1:80", "dests sctp [fd00:96::d]:92"])
def test_real_servers_are_read_in_any_order_of_attributes(kind, monkeypatch):
    expected = [decode_dest(*message) for message in whole(kind)]
    monkeypatch.setattr(servers, "_USUAL_DEST_HEADERS", ())
    assert expected == [decode_dest(*message) for message in whole(kind)]


def test_connections_are_counted():
    data = bytearray(whole("dests udp 10.96.0.1:80")[0][0])
    active, inactive = bytes.fromhex("0800070000000000"), bytes.fromhex("0800080000000000")
    data[data.index(active) + 4] = 7
    data[data.index(inactive) + 5] = 1
    read = decode_dest(bytes(data), 0, len(data))
    assert (7, 256) == (read.active, read.inactive)


def test_a_message_is_read_where_it_lies():
    [(data, start, end)] = whole("service tcp v4 rr")
    assert (WEB, RR) == decode_service(b"before.." + data + b"behind", start + 8, end + 8)


def test_timeouts_are_read():
    assert Timeouts(tcp=901, tcp_fin=120, udp=301) == decode_config(reply("config"))
