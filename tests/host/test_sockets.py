"""Lists as the kernel writes them on a machine that stores the last byte first, or the first."""

from __future__ import annotations

import socket
import sys

import pytest

from pykubeproxy.host.sockets import talking_from

VIP, OTHER, PEER = "10.96.0.1", "10.96.0.2", "10.244.0.9"
VIP6, OTHER6, PEER6 = "fd96::1", "fd96::2", "fd00::9"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
ESTABLISHED, SYN_SENT, TIME_WAIT, CLOSE, LISTEN = "01", "02", "06", "07", "0A"


def end(address, port):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(w, sys.byteorder):08X}" for w in words) + f":{port:04X}"


def line(own, peer, state):
    return f"   0: {end(own, 40000)} {end(peer, 80)} {state} 00000000:00000000 00:00000000 0 0\n"


@pytest.fixture
def lists(tmp_path):
    def write(name, *lines):
        (tmp_path / name).write_text(HEAD + "".join(lines))
        return tmp_path

    for name in ("tcp", "tcp6", "udp", "udp6"):
        write(name)
    return write


@pytest.mark.parametrize(
    ("name", "own", "peer"),
    [
        pytest.param("tcp", VIP, PEER, id="TCP"),
        pytest.param("tcp6", VIP6, PEER6, id="TCP, IPv6"),
        pytest.param("tcp6", f"::ffff:{VIP}", f"::ffff:{PEER}", id="IPv4 by an IPv6 socket"),
        pytest.param("udp", VIP, PEER, id="UDP"),
        pytest.param("udp6", VIP6, PEER6, id="UDP, IPv6"),
    ],
)
def test_a_socket_with_a_peer_talks(lists, name, own, peer):
    root = lists(name, line(own, peer, ESTABLISHED))
    assert 1 == talking_from([VIP, VIP6], root)
    assert 0 == talking_from([OTHER, OTHER6], root)


@pytest.mark.parametrize(
    ("name", "state", "expected"),
    [
        pytest.param("tcp", SYN_SENT, 1, id="connecting"),
        pytest.param("tcp", "08", 1, id="closed by the peer only"),
        pytest.param("tcp", LISTEN, 0, id="waiting for a peer"),
        pytest.param("tcp", TIME_WAIT, 0, id="over"),
        pytest.param("udp", CLOSE, 0, id="UDP without a peer"),
    ],
)
def test_the_state_tells_who_talks(lists, name, state, expected):
    assert expected == talking_from([VIP], lists(name, line(VIP, PEER, state)))


def test_whom_one_talks_to_does_not_count(lists):
    assert 0 == talking_from([VIP], lists("tcp", line(PEER, VIP, ESTABLISHED)))


def test_all_lists_are_added_up(lists):
    lists("tcp", line(VIP, PEER, ESTABLISHED), line(OTHER, PEER, SYN_SENT))
    root = lists("udp6", line(VIP6, PEER6, ESTABLISHED))
    assert 3 == talking_from([VIP, OTHER, VIP6], root)


def test_a_kernel_without_ipv6_has_no_lists_of_it(lists, tmp_path):
    root = lists("tcp", line(VIP, PEER, ESTABLISHED))
    for name in ("tcp6", "udp6"):
        (tmp_path / name).unlink()
    assert 1 == talking_from([VIP, VIP6], root)


def test_nothing_is_read_for_no_addresses(tmp_path):
    (tmp_path / "tcp").mkdir()  # reading it would fail
    assert 0 == talking_from([], tmp_path)


def test_the_lists_of_this_machine_are_read():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname(), source_address=("127.0.0.77", 0)),
    ):
        assert 1 == talking_from(["127.0.0.77"])
