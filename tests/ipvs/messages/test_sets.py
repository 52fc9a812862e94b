from __future__ import annotations

import errno

import pytest
from pyroute2.netlink.nfnetlink.ipset import ipset_msg

from pykubeproxy.ipvs.messages import (
    ENTRIES_PER_MESSAGE,
    REVISIONS,
    SetHeader,
    add_entries,
    create_set,
    decode_listing,
    decode_protocol,
    decode_type,
    del_entries,
    destroy_set,
    get_protocol,
    get_type,
    list_headers,
    list_set,
    refused_line,
    set_error,
    sets,
)
from pykubeproxy.ipvs.names import SETS
from pykubeproxy.model.kinds import Family
from tests.ipvs.messages.reading import body_of, reply, whole

V4, V6 = Family.IPV4, Family.IPV6


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
