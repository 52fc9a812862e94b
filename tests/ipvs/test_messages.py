from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.ipvs import IPVSDest, IPVSService
from pyroute2.netlink.generic.ipvs import ipvsmsg
from pyroute2.netlink.nfnetlink.ipset import ipset_msg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from pykubeproxy.host.netlink import CREATE, EXCL, attributes
from pykubeproxy.ipvs.messages import (
    ENTRIES_PER_MESSAGE,
    REVISIONS,
    SCHED_2,
    Address,
    Dest,
    SetHeader,
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
    fields,
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
    servers,
    set_config,
    set_dest,
    set_error,
    set_service,
    sets,
)
from pykubeproxy.ipvs.names import SETS
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol
from tests.ipvs.recorded import RECORDED

V4, V6 = Family.IPV4, Family.IPV6
FAMILY_ID = 28
WEB = Virtual(Protocol.TCP, "10.96.0.1", 80)
WEB6 = Virtual(Protocol.TCP, "fd00:96::1", 80)
RR = VirtualConfig("rr")


def whole(kind):
    """The recorded messages of one kind as decoders take them."""
    return [(data, 0, len(data)) for data in map(bytes.fromhex, RECORDED[kind])]


def reply(kind):
    return bytes.fromhex(RECORDED[kind][0])


def body_of(message):
    """What pyroute2 makes of a message, without the netlink header."""
    message.encode()
    return bytes(message.data[16:])


# --- virtual and real servers, against pyroute2 ---


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


# --- sets ---

IPSET = 6 << 8


def their_set(command, *attrs):
    message = ipset_msg()
    message["header"]["type"] = IPSET | command
    message["nfgen_family"] = 2
    message["attrs"] = [("IPSET_ATTR_PROTOCOL", 6), *attrs]
    return IPSET | command, 0, body_of(message)


def test_small_requests_are_those_of_pyroute2():
    assert their_set(1) == get_protocol()
    name = ("IPSET_ATTR_SETNAME", "KUBE-CLUSTER-IP")
    assert their_set(3, name) == destroy_set("KUBE-CLUSTER-IP")
    kind, _, body = their_set(7, name)
    assert (kind, body) == list_set("KUBE-CLUSTER-IP")
    wanted = (("IPSET_ATTR_TYPENAME", "hash:ip,port"), ("IPSET_ATTR_FAMILY", 10))
    assert their_set(13, *wanted) == get_type("hash:ip,port", V6)


def test_headers_are_asked_for_with_a_flag_in_network_order():
    assert (IPSET | 7, bytes.fromhex("0200000005000100060000000800064000000004")) == (
        list_headers()
    )


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("set_type", sorted({kind.type for kind in SETS.values()}))
def test_sets_are_created_like_pyroute2_creates_them(set_type, family):
    bitmap = set_type == "bitmap:port"
    if bitmap:
        data = [("IPSET_ATTR_PORT_FROM", 0), ("IPSET_ATTR_PORT_TO", 65535)]
    else:
        data = [("IPSET_ATTR_HASHSIZE", 1024), ("IPSET_ATTR_MAXELEM", 65536)]
    expected = their_set(
        2,
        ("IPSET_ATTR_SETNAME", "KUBE-X"),
        ("IPSET_ATTR_TYPENAME", set_type),
        ("IPSET_ATTR_FAMILY", 0 if bitmap else 2 if family is V4 else 10),
        ("IPSET_ATTR_REVISION", REVISIONS[set_type]),
        ("IPSET_ATTR_DATA", {"attrs": data}),
    )
    assert expected == create_set("KUBE-X", set_type, family)


def test_another_revision_can_be_asked_for():
    _, _, body = create_set("KUBE-X", "hash:ip", V4, revision=1)
    assert bytes.fromhex("0500040001000000") in body


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        pytest.param("30080", "140007800600044075800000" "0800090001000000", id="port"),
        pytest.param("10.0.0.1", "18000780" "0c000180080001400a000001" "0800090001000000", id="ip"),
        pytest.param(
            "fd00::1",
            "24000780" "1800018014000240fd000000000000000000000000000001" "0800090001000000",
            id="IPv6",
        ),
        pytest.param(
            "10.96.0.1,tcp:80",
            "28000780" "0c000180080001400a600001" "0600044000500000" "0500070006000000"
            "0800090001000000",
            id="ip and port",
        ),
        pytest.param(
            "10.0.0.1,sctp:80,10.0.0.1",
            "34000780" "0c000180080001400a000001" "0600044000500000" "0500070084000000"
            "0800090001000000" "0c001480080001400a000001",
            id="ip, port and ip",
        ),
        pytest.param(
            "10.0.0.1,udp:80,10.1.0.0/16",
            "3c000780" "0c000180080001400a000001" "0600044000500000" "0500070011000000"
            "0800090001000000" "0c001480080001400a010000" "0500150010000000",
            id="ip, port and net",
        ),
    ],
)  # fmt: skip
def test_an_entry_is_an_attribute_with_its_line_number(entry, expected):
    head = bytes.fromhex("02000000050001000600000006000200580000000800090000000000")
    inner = bytes.fromhex(expected)
    adt = (len(inner) + 4).to_bytes(2, "little") + bytes.fromhex("0880")
    assert (IPSET | 9, 0, head + adt + inner) == add_entries("X", [entry])
    assert (IPSET | 10, 0, head + adt + inner) == del_entries("X", [entry])


def test_entries_of_protocols_we_never_write_can_be_deleted():
    _, _, body = del_entries("X", ["10.0.0.1,136:80"])
    assert bytes.fromhex("0500070088000000") in body


def test_a_full_message_fits_into_an_attribute_and_one_write():
    entry = "2001:db8:1:2:3:4:5:6,sctp:65535,2001:db8:1:2::/64"
    _, _, body = add_entries("K" * 31, [entry] * ENTRIES_PER_MESSAGE)
    assert len(body) < 48 << 10
    with pytest.raises(ValueError, match="501 entries"):
        add_entries("X", [entry] * (ENTRIES_PER_MESSAGE + 1))


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@pytest.mark.parametrize("set_type", list(REVISIONS))
@pytest.mark.parametrize("usual", [True, False], ids=["usual layout", "any layout"])
def test_listings_are_read(set_type, family, usual, monkeypatch):
    if not usual:
        monkeypatch.setattr(sets, "_SHAPES", [])
    [message] = whole(f"listing {set_type} {family}")
    listing = decode_listing(*message)
    assert SetHeader(
        type=set_type,
        family=None if set_type == "bitmap:port" else family,
        revision=REVISIONS[set_type],
        max_elements=0 if set_type == "bitmap:port" else 65536,
        elements=4,
        references=0,
    ) == listing.header  # fmt: skip
    assert "rec" == listing.set
    assert LISTED[set_type, family] == set(listing.entries)


LISTED = {
    ("bitmap:port", V4): {"30000", "30001", "30002", "30003"},
    ("bitmap:port", V6): {"30000", "30001", "30002", "30003"},
    ("hash:ip", V4): {"10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.3"},
    ("hash:ip", V6): {"fd00:0:1::1", "fd00:0:1::2", "fd00:0:1::3", "fd00:0:1::4"},
    ("hash:ip,port", V4): {
        "10.0.0.0,tcp:80",
        "10.0.0.1,udp:81",
        "10.0.0.2,sctp:82",
        "10.0.0.3,tcp:83",
    },
    ("hash:ip,port", V6): {
        "fd00:0:1::1,tcp:80",
        "fd00:0:1::2,udp:81",
        "fd00:0:1::3,sctp:82",
        "fd00:0:1::4,tcp:83",
    },
    ("hash:ip,port,ip", V4): {
        "10.0.0.0,tcp:80,10.0.0.0",
        "10.0.0.1,udp:81,10.0.0.1",
        "10.0.0.2,sctp:82,10.0.0.2",
        "10.0.0.3,tcp:83,10.0.0.3",
    },
    ("hash:ip,port,ip", V6): {
        "fd00:0:1::1,tcp:80,fd00:0:1::1",
        "fd00:0:1::2,udp:81,fd00:0:1::2",
        "fd00:0:1::3,sctp:82,fd00:0:1::3",
        "fd00:0:1::4,tcp:83,fd00:0:1::4",
    },
    ("hash:ip,port,net", V4): {
        "10.0.0.0,tcp:80,10.0.0.0",
        "10.0.0.1,udp:81,10.1.0.0/16",
        "10.0.0.2,sctp:82,10.0.0.2",
        "10.0.0.3,tcp:83,10.3.0.0/16",
    },
    ("hash:ip,port,net", V6): {
        "fd00:0:1::1,tcp:80,fd00:0:1::1",
        "fd00:0:1::2,udp:81,fd0a:1::/64",
        "fd00:0:1::3,sctp:82,fd00:0:1::3",
        "fd00:0:1::4,tcp:83,fd0a:3::/64",
    },
}


def test_a_listing_of_headers_has_no_entries():
    [message] = whole("set header")
    listing = decode_listing(*message)
    assert ("KUBE-LOOP-BACK", 1000, []) == (listing.set, listing.header.elements, listing.entries)


def test_versions_are_read():
    assert (6, 7) == decode_protocol(reply("protocol"))
    assert (0, 8) == decode_type(reply("type"))


def test_the_kernel_says_which_entry_it_refused():
    """The third of four: an IPv6 address in an IPv4 set."""
    assert 2 == refused_line(reply("refused"))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing was sent back"),
        pytest.param(add_entries("X", ["30080"])[2], id="no line was written into it"),
    ],
)
def test_a_request_can_be_refused_as_a_whole(body):
    assert refused_line(body) is None


@pytest.mark.parametrize(
    ("code", "set_type", "expected"),
    [
        (errno.ENOENT, "hash:ip", "there is no such set"),
        (4352, "hash:ip", "the set is full: it takes 65536 entries"),
        (4352, "bitmap:port", "out of the range of the set"),
        (errno.EPERM, "", "EPERM"),
        (9999, "", "error 9999"),
    ],
)
def test_errors_are_sentences(code, set_type, expected):
    assert expected == set_error(code, set_type)


# --- addresses ---


def address_message(address, *more):
    message = ifaddrmsg()
    message["family"], message["prefixlen"] = (10, 128) if ":" in address else (2, 32)
    message["index"] = 7
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), *more]
    return body_of(message)


NEVER_PREFERRED = ("IFA_CACHEINFO", {"ifa_preferred": 0, "ifa_valid": 0xFFFFFFFF})


@pytest.mark.parametrize(
    ("address", "more"), [("10.96.0.1", []), ("fd00:96::1", [NEVER_PREFERRED])], ids=["v4", "v6"]
)
def test_addresses_are_written_like_pyroute2_writes_them(address, more):
    assert (20, CREATE | EXCL, address_message(address, *more)) == new_address(7, address)
    assert (21, 0, address_message(address)) == del_address(7, address)
    message = bytearray(address_message(address))
    message[1] = 20
    assert (21, 0, bytes(message)) == del_address(7, address, 20)


@pytest.mark.parametrize(("family", "number"), [(None, 0), (V4, 2), (V6, 10)], ids=str)
def test_addresses_are_asked_for_by_family(family, number):
    assert (22, bytes([number, 0, 0, 0, 0, 0, 0, 0])) == get_addresses(family)


def test_addresses_are_read():
    assert [
        Address(True, 1, V4, "127.0.0.1", 8, 254),
        Address(True, 2, V4, "10.96.0.1", 32, 0),
        Address(True, 1, V6, "::1", 128, 254),
        Address(True, 2, V6, "fd00::1", 128, 0),
    ] == [decode_address(*message) for message in whole("addresses")]


def test_notices_say_whether_an_address_came_or_went():
    assert [
        (True, "10.96.0.3"),
        (True, "fd00::3"),
        (False, "10.96.0.3"),
        (False, "fd00::3"),
    ] == [(a.present, a.address) for a in (decode_address(*m) for m in whole("address notices"))]


def test_what_is_no_address_message_is_skipped():
    data = bytearray(whole("addresses")[0][0])
    data[4] = 16  # RTM_NEWLINK
    assert decode_address(bytes(data), 0, len(data)) is None


# --- the text of addresses ---


@given(st.ip_addresses())
def test_addresses_are_the_same_text_and_bytes_as_in_ipaddress(address):
    assert address.packed == fields.pack_address(str(address))
    expected = str(address)
    if getattr(address, "ipv4_mapped", None) is None:  # newer interpreters write it with dots
        assert expected == fields.address_text(address.packed)


@pytest.mark.parametrize(
    "text",
    [
        *("::", "::1", "1::", "1::8", "0:2:3:4:5:6:7:0", "1:0:3:4:5:6:7:8", "0:0:3::6:7:8"),
        *("1:0:0:4::8", "1::4:0:0:7:8", "10:0:0:1::", "::10:0:0:10", "fd00:96::a"),
    ],
)
def test_the_longest_run_of_zeros_is_left_out(text):
    packed = ip_address(text).packed
    assert packed == fields.pack_address(text)
    assert str(ip_address(text)) == fields.address_text(packed)
