from __future__ import annotations

import struct

import pytest

from pykubeproxy.host.netlink import Dump, attribute, attributes, nested


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
