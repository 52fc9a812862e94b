"""Recorded and encoded messages as the tests take them."""

from __future__ import annotations

from tests.ipvs.recorded import RECORDED

__all__ = ["body_of", "reply", "whole"]


def whole(kind):
    """The recorded messages of one kind as decoders take them."""
    return [(data, 0, len(data)) for data in map(bytes.fromhex, RECORDED[kind])]


def reply(kind):
    return bytes.fromhex(RECORDED[kind][0])


def body_of(message):
    """What pyroute2 makes of a message, without the netlink header."""
    message.encode()
    return bytes(message.data[16:])
