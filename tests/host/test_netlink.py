from __future__ import annotations

import errno
import struct

import pytest

from pykubeproxy.host.netlink import (
    ACK,
    GENERIC,
    ROUTE,
    Dump,
    Netlink,
    Refusal,
    attribute,
    attributes,
    nested,
    reason,
)


def header(length, kind, flags=0, sequence=1):
    return struct.pack("=IHHII", length, kind, flags, sequence, 0)


def message(body, flags=0, sequence=1):
    return header(16 + len(body), 0x100, flags, sequence) + body


def done(code=0, flags=0):
    return header(20, 3, flags) + struct.pack("=i", code)


class Source:
    """Stands in for a socket: hands out prepared reads."""

    sequence = 1

    def __init__(self, *reads):
        self._reads = list(reads)

    def receive(self):
        return self._reads.pop(0)


def bodies(dump):
    return [data[start + 16 : end] for data, start, end in dump]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            OSError(errno.EPERM, "x"), "not permitted; run as root (NET_ADMIN)", id="EPERM"
        ),
        pytest.param(OSError(errno.EBUSY, "busy"), "busy", id="the kernel's word"),
        pytest.param(TimeoutError("timed out"), "timed out", id="no number"),
    ],
)
def test_a_reason_is_in_words(error, expected):
    assert expected == reason(error)


def test_attributes_are_padded_and_found_again():
    data = attribute(1, b"a") + nested(2, attribute(3, b"abcd"))
    assert len(data) == 8 + 12
    assert [(1, b"a"), (2, attribute(3, b"abcd"))] == [
        (kind, data[start:end]) for kind, start, end in attributes(data, 0, len(data))
    ]


def test_broken_attributes_end_the_walk():
    data = attribute(1, b"abcd") + b"\xff\xff\x01\x00"
    assert [kind for kind, _, _ in attributes(data, 0, len(data))] == [1]


def test_a_dump_spans_reads_and_skips_other_requests():
    dump = Dump(Source(message(b"one.") + message(b"old.", sequence=9), message(b"two.") + done()))
    assert bodies(dump) == [b"one.", b"two."]
    assert not dump.interrupted


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(Source(message(b"one.", flags=0x10) + done()), id="flag in a message"),
        pytest.param(Source(message(b"one.") + done(flags=0x10)), id="flag at the end"),
        pytest.param(Source(message(b"one.") + done(code=-4)), id="EINTR at the end"),
    ],
)
def test_an_interrupted_dump_is_partial(source):
    dump = Dump(source)
    assert bodies(dump) == [b"one."]
    assert dump.interrupted


def test_a_refused_dump_raises_the_errno():
    with pytest.raises(PermissionError):
        bodies(Dump(Source(header(36, 2) + struct.pack("=i", -1) + bytes(16))))


class Kernel:
    """Stands in for the socket below `Netlink`: answers every write as netlink_rcv_skb does.

    *refuses* maps bodies to an errno and what of the request is sent back.
    """

    def __init__(self, refuses=(), stale=()):
        self.refuses = dict(refuses)
        self.writes = []
        self.answers = list(stale)

    def setblocking(self, blocking):
        pass

    def settimeout(self, seconds):
        pass

    def send(self, data):
        messages = []
        position = 0
        while position < len(data):
            length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, position)
            body = data[position + 16 : position + length]
            messages.append((kind, flags, body))
            code, echo = self.refuses.get(body, (0, b""))
            if code or flags & ACK:
                told = struct.pack("=i", -code) + header(length, kind, flags, sequence) + echo
                self.answers.append(header(16 + len(told), 2, sequence=sequence) + told)
            position += (length + 3) & ~3
        self.writes.append(messages)

    def recv(self, size):
        if not self.answers:
            raise BlockingIOError
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer[:size]


@pytest.fixture
def on():
    """Return a function that puts a `Netlink` on a stand-in for its socket."""

    def put(kernel):
        netlink = Netlink(ROUTE)
        netlink.close()
        netlink._socket = kernel
        return netlink

    return put


def requests(*bodies):
    return [(0x20, 0x400, body) for body in bodies]


def test_a_batch_is_one_write_and_one_acknowledgement(on):
    kernel = Kernel()
    assert [0, 0, 0] == on(kernel).batch(requests(b"one.", b"two.", b"three"))
    assert [
        [(0x20, 0x401, b"one."), (0x20, 0x401, b"two."), (0x20, 0x405, b"three")]
    ] == kernel.writes


def test_an_empty_batch_writes_nothing(on):
    kernel = Kernel()
    assert [] == on(kernel).batch([])
    assert [] == kernel.writes


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        pytest.param({b"one.": (17, b"")}, [17, 0, 0], id="the first"),
        pytest.param({b"two.": (2, b"")}, [0, 2, 0], id="one in the middle"),
        pytest.param({b"thre": (4352, b"")}, [0, 0, 4352], id="the last, which acknowledges"),
        pytest.param({b"one.": (17, b""), b"thre": (2, b"")}, [17, 0, 2], id="several"),
    ],
)
def test_refusals_find_their_requests(on, refused, expected):
    assert expected == on(Kernel(refused)).batch(requests(b"one.", b"two.", b"thre"))


def test_what_the_kernel_sends_back_of_a_refused_request_is_kept(on):
    netlink = on(Kernel({b"bulk": (4103, b"bulk, line 7")}))
    assert {1: Refusal(4103, b"bulk, line 7")} == netlink.refusals(requests(b"one.", b"bulk"))


@pytest.mark.parametrize(
    ("size", "count", "expected"),
    [
        pytest.param(4, 600, [256, 256, 88], id="by number"),
        pytest.param(20_000, 5, [2, 2, 1], id="by size"),
        pytest.param(60_000, 2, [1, 1], id="a large one alone"),
    ],
)
def test_writes_are_bounded(on, size, count, expected):
    kernel = Kernel({bytes(size): (17, b"")})
    assert [17] * count == on(kernel).batch(requests(*[bytes(size)] * count))
    assert expected == [len(write) for write in kernel.writes]


def test_the_last_of_a_write_keeps_its_own_header(on):
    """Not that of the larger one, of another type, which did not fit any more."""
    kernel = Kernel()
    sent = [(0x20, 0x400, b"small"), (0x21, 0x200, bytes(48 << 10))]
    assert [0, 0] == on(kernel).batch(sent)
    assert [[(0x20, 0x405, b"small")], [(0x21, 0x205, bytes(48 << 10))]] == kernel.writes


def test_answers_to_earlier_requests_are_skipped(on):
    late = header(36, 2, sequence=4) + struct.pack("=i", -1) + header(20, 0x20, sequence=4)
    netlink = on(Kernel(stale=[late]))
    netlink.sequence = 4
    assert [0, 0] == netlink.batch(requests(b"one.", b"two."))


def test_sequence_numbers_may_wrap(on):
    netlink = on(Kernel({b"two.": (17, b"")}))
    netlink.sequence = 0xFFFFFFFE
    assert [0, 17, 0] == netlink.batch(requests(b"one.", b"two.", b"thre"))


def test_lost_answers_are_an_error_and_the_rest_of_them_is_thrown_away(on):
    kernel = Kernel({b"one.": (17, b"")})
    netlink = on(kernel)
    kernel.answers.append(OSError(errno.ENOBUFS, "No buffer space available"))
    with pytest.raises(OSError, match="No buffer space"):
        netlink.batch(requests(b"one.", b"two."))
    assert [] == kernel.answers
    assert [0] == netlink.batch(requests(b"two."))


def test_a_silent_kernel_is_a_timeout(on):
    kernel = Kernel()
    kernel.answers.append(TimeoutError("timed out"))
    with pytest.raises(TimeoutError):
        on(kernel).batch(requests(b"one."))


def test_the_control_family_has_the_id_the_headers_say():
    with Netlink(GENERIC) as netlink:
        assert netlink.family_id("nlctrl") == 0x10


def test_an_unknown_generic_family_is_enoent():
    with Netlink(GENERIC) as netlink, pytest.raises(FileNotFoundError):
        netlink.family_id("no such family")
