"""The count of commits, over a scripted socket."""

from __future__ import annotations

import struct

import pytest

from pykubeproxy.host.netlink import attribute
from pykubeproxy.host.nftables import Generations

HEADER = bytes(4)


class Channel:
    """Answers with the next of *replies*, or fails with it."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.closed = 0

    def __call__(self, protocol, read_bytes):
        self.protocol = protocol
        return self

    def request(self, kind, flags, body):
        self.requests.append((kind, flags, body))
        reply = self.replies.pop(0)
        if isinstance(reply, OSError):
            raise reply
        return reply

    def close(self):
        self.closed += 1


def reply(generation):
    # As the kernel sends it: the id in network order, then who asks.
    return (
        HEADER
        + attribute(1, struct.pack(">I", generation))
        + attribute(2, struct.pack(">I", 385))
        + attribute(3, b"python\0")
    )


def test_the_generation_is_read_anew_each_time():
    channel = Channel(reply(7), reply(0x01020304))
    generations = Generations(channel)
    assert [7, 0x01020304] == [generations.read(), generations.read()]
    assert [(0xA10, 0, HEADER)] * 2 == channel.requests


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(PermissionError(1, "Operation not permitted"), id="no rights"),
        pytest.param(OSError(22, "Invalid argument"), id="no nf_tables"),
        pytest.param(HEADER, id="an answer without it"),
    ],
)
def test_a_kernel_that_does_not_tell(answer):
    assert Generations(Channel(answer)).read() is None


def test_a_failed_socket_is_replaced():
    channel = Channel(TimeoutError("timed out"), reply(7))
    generations = Generations(channel)
    assert [None, 7] == [generations.read(), generations.read()]
    assert 1 == channel.closed


def test_closing_is_allowed_at_any_time():
    channel = Channel(reply(7))
    generations = Generations(channel)
    generations.close()
    generations.read()
    generations.close()
    assert 1 == channel.closed
