"""A kernel that answers netlink requests as a test tells it, and remembers what it was asked.

Only for what a node is asked before and after it serves; `tests.fakes` has the tables themselves.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Sequence

from pykubeproxy.host.netlink import GENERIC, NETFILTER, ROUTE, Request, attribute, nested
from pykubeproxy.ipvs.messages import add_entries, new_address, new_service
from pykubeproxy.ipvs.objects import Virtual, VirtualConfig
from pykubeproxy.model.kinds import Protocol

FAMILY_ID = 30
NFGEN = bytes(4)

# What is asked, by protocol and number: the command of ip_vs and ipset, the type of rtnetlink.
NEW_SERVICE, DEL_SERVICE, GET_SERVICE, GET_DEST, SET_CONFIG, GET_CONFIG = (
    (GENERIC, number) for number in (1, 3, 4, 8, 12, 13)
)
GET_PROTOCOL, CREATE_SET, DESTROY_SET, LIST_SET, GET_TYPE = (
    (NETFILTER, number) for number in (1, 2, 3, 7, 13)
)
NEW_LINK, DEL_LINK, GET_LINK, NEW_ADDRESS, DEL_ADDRESS, GET_ADDRESSES = (
    (ROUTE, number) for number in (16, 17, 18, 20, 21, 22)
)
NEW_ROUTE, DEL_ROUTE, GET_ROUTE = ((ROUTE, number) for number in (24, 25, 26))

Key = tuple[int, int]
Answer = Callable[[bytes], bytes | list[bytes]]


def refuse(code: int) -> Answer:
    def answer(body: bytes) -> bytes:
        raise OSError(code, os.strerror(code))

    return answer


def in_turn(*answers: Answer) -> Answer:
    """The first request gets the first answer; those after the last get the last."""
    left = list(answers)
    return lambda body: (left.pop(0) if len(left) > 1 else left[0])(body)


class ScriptedKernel:
    """Pass it as ``connect``. Unless told otherwise it can do everything and holds nothing."""

    def __init__(self) -> None:
        self.asked: list[tuple[Key, bytes]] = []
        self.answers: dict[Key, Answer] = {
            GET_SERVICE: lambda body: [],
            GET_DEST: lambda body: [],
            GET_PROTOCOL: lambda body: NFGEN + attribute(1, b"\x07") + attribute(10, b"\x06"),
            GET_TYPE: lambda body: NFGEN + attribute(4, b"\x09") + attribute(10, b"\x00"),
            GET_LINK: refuse(errno.ENODEV),
            GET_ADDRESSES: lambda body: [],
            LIST_SET: refuse(errno.ENOENT),
            DESTROY_SET: refuse(errno.ENOENT),
        }
        self.family_errors: list[int] = []

    def __call__(self, protocol: int) -> ScriptedChannel:
        return ScriptedChannel(self, protocol)

    def times(self, key: Key) -> int:
        return sum(asked == key for asked, _ in self.asked)

    def bodies(self, key: Key) -> list[bytes]:
        return [body for asked, body in self.asked if asked == key]


class ScriptedChannel:
    def __init__(self, kernel: ScriptedKernel, protocol: int) -> None:
        self._kernel = kernel
        self._protocol = protocol

    def __enter__(self) -> ScriptedChannel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _answer(self, kind: int, body: bytes) -> bytes | list[bytes]:
        number = body[0] if self._protocol == GENERIC else kind & 0xFF
        key = (self._protocol, number)
        self._kernel.asked.append((key, body))
        return self._kernel.answers.get(key, lambda body: b"")(body)

    def request(self, kind: int, flags: int, body: bytes) -> bytes:
        reply = self._answer(kind, body)
        assert isinstance(reply, bytes)
        return reply

    def dump(self, kind: int, body: bytes) -> list[tuple[bytes, int, int]]:
        return [(message, 0, len(message)) for message in self._answer(kind, body)]

    def batch(self, requests: Sequence[Request]) -> list[int]:
        errors = []
        for kind, _, body in requests:
            try:
                self._answer(kind, body)
                errors.append(0)
            except OSError as error:
                errors.append(error.errno)
        return errors

    def family_id(self, name: str) -> int:
        assert name == "IPVS"
        if self._kernel.family_errors:
            code = self._kernel.family_errors.pop(0)
            raise OSError(code, os.strerror(code))
        return FAMILY_ID


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def service(virtual: Virtual, scheduler: str = "rr") -> bytes:
    """One message of a dump; the kernel tells a service as it is made."""
    kind, _, body = new_service(FAMILY_ID, virtual, VirtualConfig(scheduler))
    return message(kind, body)


def dest(active: int) -> bytes:
    """A real server with that many connections."""
    numbers = ((3, 0), (4, 1), (5, 0), (6, 0), (7, active), (8, 9), (9, 0))
    parts = [attribute(1, bytes(16)), attribute(2, b"\0\x50")]
    parts += [attribute(kind, struct.pack("=I", number)) for kind, number in numbers]
    body = bytes(4) + nested(2, *parts, attribute(11, struct.pack("=H", 2)))
    return message(FAMILY_ID, body)


def listing(name: str, *entries: str) -> bytes:
    kind, _, body = add_entries(name, entries)
    return message(kind, body)


def address(index: int, text: str) -> bytes:
    kind, _, body = new_address(index, text)
    return message(kind, body)


def link(index: int, kind: str) -> bytes:
    """The reply that tells of one link."""
    info = nested(18, attribute(1, kind.encode() + b"\0")) if kind else b""
    return struct.pack("=BxHiII", 0, 1, index, 0, 0) + attribute(3, b"kube-ipvs0\0") + info


def tcp(address_: str, port: int) -> Virtual:
    return Virtual(Protocol.TCP, address_, port)
