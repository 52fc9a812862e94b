"""A strict, in-memory stand-in for the kernel that ipvs mode talks to, byte by byte.

`FakeKernel.channel` takes the place of `pykubeproxy.host.netlink.Netlink` for IPVS (generic
netlink), ipset (nfnetlink) and addresses (rtnetlink). It reads messages by code of its own, keeps
what they say, and refuses what the kernel refuses with the kernel's errno;
e2e/kernel/ipvs/test_fake_against_kernel.py holds it to that.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from msgspec import Struct

from pykubeproxy.host.netlink import Refusal, Request
from tests.fakes.attributes import Attributes, Refused, put
from tests.fakes.ipvs_links import Links
from tests.fakes.ipvs_servers import SCHEDULERS, Destination, Servers, ServiceId
from tests.fakes.ipvs_sets import Sets
from tests.fakes.xtables import Xtables

__all__ = ["GENERIC", "NETFILTER", "ROUTE", "Destination", "FakeChannel", "FakeKernel", "ServiceId"]

ROUTE, NETFILTER, GENERIC = 0, 12, 16
DEVICE = "kube-ipvs0"
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2
_HEADER = struct.Struct("=IHHII")
_MULTI = 0x2
_HEADINGS = (
    "IP Virtual Server version 1.2.1 (size=4096)",
    "Prot LocalAddress:Port Scheduler Flags",
    "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
)


class _Fault(Struct):
    error: int
    protocol: int | None
    when: Callable[[int, bytes], bool]
    skip: int
    times: int | None
    breaks: bool


class SocketFails(Exception):
    """Planned: what was sent may be done or not, and there are no answers."""

    def __init__(self, error: int) -> None:
        super().__init__(errno.errorcode.get(error, str(error)))
        self.errno = error


class FakeKernel:
    """IPVS, ipset and interfaces of one network namespace, for both families."""

    def __init__(
        self, *, schedulers: Iterable[str] = SCHEDULERS, has_ipvs: bool = True, device: bool = True
    ) -> None:
        self.servers = Servers(schedulers)
        self.sets_table = Sets()
        self.links = Links()
        self.family_id = 0x21 if has_ipvs else None
        self.written: Counter[int] = Counter()
        """Messages that modify, by protocol, refused ones as well."""
        self.messages: list[tuple[int, Request]] = []
        """Those messages, with their protocol, oldest first."""
        self.dumps: Counter[int] = Counter()
        self.interrupted_dumps = 0
        """How many of the next dumps tell that the table changed meanwhile."""
        self._faults: list[_Fault] = []
        if device:
            self.links.add(DEVICE, "dummy")

    def channel(self, protocol: int, read_bytes: int = 0) -> FakeChannel:
        """What `Netlink(protocol, read_bytes)` is on a real kernel."""
        return FakeChannel(self, protocol)

    __call__ = channel

    def xtables(self, version: int, *, nft: bool = False, nfacct: Sequence[str] = ()) -> Xtables:
        """Tools whose rules may match the sets here, and keep them from being destroyed."""
        made = Xtables(version, nft=nft, nfacct=nfacct, sets=self.sets_table.version_of)
        self.sets_table.references.append(made.uses_of_set)
        return made

    # --- faults ---

    def refuse(
        self,
        error: int,
        *,
        protocol: int | None = None,
        when: Callable[[int, bytes], bool] | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        """Refuse the *nth* modifying message from now on (and *times* in all, ``None``: ever).

        *when* chooses messages by type and body.
        """
        self._plan(error, protocol, when, nth, times, breaks=False)

    def break_socket(
        self,
        error: int = errno.ENOBUFS,
        *,
        protocol: int | None = None,
        when: Callable[[int, bytes], bool] | None = None,
        nth: int = 1,
        times: int | None = 1,
    ) -> None:
        """Let the socket fail at the *nth* modifying message.

        With ENOBUFS the answers are lost but all is done; with any other error that message and
        those behind it are not.
        """
        self._plan(error, protocol, when, nth, times, breaks=True)

    def heal(self) -> None:
        """Forget all planned faults."""
        self._faults.clear()

    def _plan(
        self,
        error: int,
        protocol: int | None,
        when: Callable[[int, bytes], bool] | None,
        nth: int,
        times: int | None,
        *,
        breaks: bool,
    ) -> None:
        chosen = when or (lambda kind, body: True)
        self._faults.append(_Fault(error, protocol, chosen, nth - 1, times, breaks))

    def _fault(self, protocol: int, kind: int, body: bytes) -> _Fault | None:
        for fault in self._faults:
            if fault.protocol not in (None, protocol) or not fault.when(kind, body):
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
            return fault
        return None

    # --- messages ---

    def do(self, protocol: int, kind: int, flags: int, body: bytes) -> bytes:
        """Carry out one request.

        Raises:
            Refused: as the kernel would, or as planned.
            SocketFails: as planned.
        """
        if self._modifies(protocol, kind, body):
            self.written[protocol] += 1
            self.messages.append((protocol, (kind, flags, body)))
            fault = self._fault(protocol, kind, body)
            if fault is not None:
                if not fault.breaks:
                    raise Refused(fault.error)
                if fault.error == errno.ENOBUFS:
                    self._do(protocol, kind, flags, body)
                raise SocketFails(fault.error)
        return self._do(protocol, kind, flags, body)

    def dump(self, protocol: int, kind: int, body: bytes) -> list[tuple[int, bytes]]:
        self.dumps[protocol] += 1
        match protocol:
            case _ if protocol == ROUTE:
                return self.links.dump(kind, body)
            case _ if protocol == NETFILTER:
                return [(kind, message) for message in self.sets_table.dump(kind, body)]
        if kind != self.family_id:
            raise Refused(errno.ENOENT)
        return [(kind, message) for message in self.servers.dump(body)]

    def _do(self, protocol: int, kind: int, flags: int, body: bytes) -> bytes:
        match protocol:
            case _ if protocol == ROUTE:
                return self.links.do(kind, flags, body)
            case _ if protocol == NETFILTER:
                return self.sets_table.do(kind, flags, body)
        if kind == _CONTROL:
            return self._control(body)
        if kind != self.family_id:
            raise Refused(errno.ENOENT)
        return self.servers.do(body)

    def _control(self, body: bytes) -> bytes:
        given = Attributes(body[4:])
        if body[0] != _GET_FAMILY or _FAMILY_NAME not in given:
            raise Refused(errno.EINVAL)
        if given[_FAMILY_NAME].text(15) != "IPVS" or self.family_id is None:
            raise Refused(errno.ENOENT)
        return body[:4] + put(_FAMILY_ID, struct.pack("=H", self.family_id))

    def _modifies(self, protocol: int, kind: int, body: bytes) -> bool:
        match protocol:
            case _ if protocol == ROUTE:
                return self.links.modifies(kind)
            case _ if protocol == NETFILTER:
                return self.sets_table.modifies(kind)
        return kind == self.family_id and self.servers.modifies(body)

    # --- looks ---

    def virtuals(self) -> dict[str, dict[str, int]]:
        """Weights by ``TCP 10.96.0.1:80`` and ``10.244.0.11:8080``; marks are left out."""
        return {
            str(key): {
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}": dest.weight
                for (host, port), dest in sorted(service.destinations.items())
            }
            for key, service in sorted(self.servers.services.items(), key=lambda item: str(item[0]))
            if isinstance(key, ServiceId)
        }

    def sets(self, *, empty: bool = False) -> dict[str, list[str]]:
        """Entries by set, sorted; *empty* sets are left out unless asked for."""
        return {
            name: sorted(one.entries)
            for name, one in sorted(self.sets_table.sets.items())
            if one.entries or empty
        }

    def bound(self, device: str = DEVICE) -> list[str]:
        """The addresses of an interface, sorted."""
        return self.links.addresses(device)

    def destination(self, service: str, real: str) -> Destination:
        """A real server by the texts of `virtuals`, to set its connection counts."""
        for key, found in self.servers.services.items():
            if str(key) == service:
                for (host, port), dest in found.destinations.items():
                    if real in (f"{host}:{port}", f"[{host}]:{port}"):
                        return dest
        raise LookupError(f"{real} of {service}")

    def listing(self) -> str:
        """As ``ipvsadm -Ln`` prints it, but sorted and without blanks at the ends of lines."""
        return "\n".join([*_HEADINGS, *self.servers.listed(), ""])


class FakeChannel:
    """A socket to a `FakeKernel`, with the methods of `pykubeproxy.host.netlink.Netlink`."""

    def __init__(self, kernel: FakeKernel, protocol: int) -> None:
        if protocol not in (ROUTE, NETFILTER, GENERIC):
            raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
        self._kernel = kernel
        self._protocol = protocol
        self._closed = False
        self.dumping = False

    def __enter__(self) -> FakeChannel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True

    def request(self, kind: int, flags: int, body: bytes) -> bytes:
        self._check_open()
        try:
            return self._kernel.do(self._protocol, kind, flags, body)
        except (Refused, SocketFails) as error:
            raise _os_error(error.errno) from error

    def dump(self, kind: int, body: bytes) -> FakeDump:
        self._check_open()
        return FakeDump(self, self._kernel, (self._protocol, kind, body))

    def batch(self, requests: Sequence[Request]) -> list[int]:
        refusals = self.refusals(requests)
        return [refusals[i].errno if i in refusals else 0 for i in range(len(requests))]

    def refusals(self, requests: Sequence[Request]) -> Mapping[int, Refusal]:
        self._check_open()
        found: dict[int, Refusal] = {}
        lost = 0
        for index, (kind, flags, body) in enumerate(requests):
            try:
                self._kernel.do(self._protocol, kind, flags, body)
            except Refused as refused:
                found[index] = Refusal(refused.errno, refused.body)
            except SocketFails as error:
                if error.errno != errno.ENOBUFS:
                    raise _os_error(error.errno) from error
                lost = error.errno
        if lost:
            raise _os_error(lost)
        return found

    def family_id(self, name: str) -> int:
        if self._protocol != GENERIC:
            raise _os_error(errno.EINVAL)
        body = bytes((_GET_FAMILY, 1, 0, 0)) + put(_FAMILY_NAME, name.encode() + b"\0")
        (number,) = struct.unpack_from("=H", self.request(_CONTROL, 0, body), 8)
        return int(number)

    def _check_open(self) -> None:
        if self._closed:
            raise _os_error(errno.EBADF)
        if self.dumping:
            raise AssertionError("a dump is read to its end before the next request")


class FakeDump:
    """A dump; the kernel looks at its table when the first message is read."""

    def __init__(
        self, channel: FakeChannel, kernel: FakeKernel, request: tuple[int, int, bytes]
    ) -> None:
        self._channel = channel
        self._kernel = kernel
        self._request = request
        self.interrupted = False

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        try:
            messages = self._kernel.dump(*self._request)
        except Refused as refused:
            raise _os_error(refused.errno) from refused
        if self._kernel.interrupted_dumps:
            self._kernel.interrupted_dumps -= 1
            self.interrupted = True
        # Several messages in one buffer, as the kernel sends them.
        parts, spans, at = [], [], 0
        for kind, body in messages:
            length = _HEADER.size + len(body)
            parts.append(_HEADER.pack(length, kind, _MULTI, 1, 0) + body + bytes(-length % 4))
            spans.append((at, at + length))
            at += len(parts[-1])
        data = b"".join(parts)
        self._channel.dumping = True
        for start, end in spans:
            yield data, start, end
        self._channel.dumping = False


def _os_error(error: int) -> OSError:
    return OSError(error, os.strerror(error))
