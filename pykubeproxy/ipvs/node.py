"""Whether this node can run ipvs mode, and what must be set on it for that mode."""

from __future__ import annotations

import errno
import math
import os
import platform
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol as Interface
from typing import TypeVar

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.host.exec import Finished, Killed, TimedOut, run
from pykubeproxy.host.netlink import (
    ACK,
    CREATE,
    EXCL,
    GENERIC,
    HEADER_BYTES,
    NETFILTER,
    ROUTE,
    Netlink,
    Request,
    attribute,
    attributes,
    why,
)
from pykubeproxy.host.sysctls import Parameter
from pykubeproxy.iptables.kernel import QUICK_SECONDS, Runner, describe
from pykubeproxy.iptables.tools import Tools, is_locked
from pykubeproxy.ipvs.messages import (
    REVISIONS,
    Timeouts,
    create_set,
    decode_config,
    decode_listing,
    decode_protocol,
    decode_service,
    decode_type,
    del_service,
    destroy_set,
    get_config,
    get_protocol,
    get_services,
    get_type,
    list_set,
    new_service,
    set_config,
    set_error,
)
from pykubeproxy.ipvs.names import DEVICE, EXTERNAL_IP, SETS, set_name
from pykubeproxy.ipvs.objects import Virtual, VirtualConfig
from pykubeproxy.model.addresses import family_of
from pykubeproxy.model.kinds import Family, Protocol

__all__ = [
    "IPVS",
    "NOBODY",
    "Channel",
    "Connect",
    "Device",
    "Problem",
    "apply_timeouts",
    "delete_device",
    "ensure_device",
    "explain",
    "find_device",
    "find_problems",
    "must_be_dummy",
    "parameters",
    "services",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")

IPVS = "IPVS"
"""Name of the generic netlink family."""

NOBODY = {Family.IPV4: "198.51.100.0", Family.IPV6: "2001:db8::"}
"""For documentation only (RFC 5737, RFC 3849), so nobody serves there."""
_PROBE_PORT = 20000
_PROBE_CHAIN = "KUBE-IPVS-PROBE"
_PROBE_SET = {Family.IPV4: "KUBE-IPVS-PROBE", Family.IPV6: "KUBE-6-IPVS-PROBE"}
_PROBE_DEVICE = "kube-ipvs-probe"
_DUMMY = "dummy"
_MATCHES = {
    "set": "-m set --match-set {set} dst",
    "ipvs": "-m ipvs --vaddr {address} --vproto 6 --vport 80",
    "physdev": "-m physdev ! --physdev-is-in",
}
_IPSET_PROTOCOL = 6
_LOCK_TRIES = 12  # of LOCK_SECONDS each

# linux/rtnetlink.h, linux/if_link.h
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, interface, flags, change
_NO_LINK = bytes(_IFINFOMSG.size)  # which one is said by its name
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1


class Channel(Interface):
    """The methods of `pykubeproxy.host.netlink.Netlink` that are needed here and by leftovers."""

    def __enter__(self) -> Channel: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def request(self, kind: int, flags: int, body: bytes) -> bytes: ...

    def dump(self, kind: int, body: bytes) -> Iterable[tuple[bytes, int, int]]: ...

    def batch(self, requests: Sequence[Request]) -> list[int]: ...

    def family_id(self, name: str) -> int: ...


Connect = Callable[[int], Channel]
"""How sockets are opened: `Netlink`, or a fake of the kernel."""


class Problem(Struct, frozen=True):
    """What this node lacks, as half a sentence, and the kernel modules that would bring it."""

    what: str
    modules: tuple[str, ...] = ()


# --- can it run ---


def find_problems(
    scheduler: str,
    tools: Mapping[Family, Tools],
    runner: Runner = run,
    connect: Connect = Netlink,
) -> list[Problem]:
    """Try all that ipvs mode needs of the kernel and of iptables; nothing of it stays.

    A missing module is loaded once by modprobe, where the kernel has not done that itself. The
    ``ipset`` and ``ipvsadm`` programs are not needed.

    Raises:
        HostError: there was no finding out; that is no reason to run in another mode.
    """
    probe = _Probe(tuple(tools), runner, connect)
    ipvs = probe.ipvs(scheduler or "rr")
    ipset = probe.ipset()
    matches = [] if ipset else [p for one in tools.values() for p in probe.matches(one)]
    return [*ipvs, *ipset, *matches, *probe.device()]


def explain(problems: Sequence[Problem], fallback: bool) -> str:
    """Say in one sentence what is missing, how to get it, and what happens now."""
    whats = dict.fromkeys(problem.what for problem in problems)
    modules = dict.fromkeys(module for problem in problems for module in problem.modules)
    parts = [f"this node cannot run ipvs mode: {'; '.join(whats)}"]
    if modules:
        parts.append(f"load on the node: modprobe -a {' '.join(modules)}")
    parts.append(
        "running in iptables mode instead, until the next start"
        if fallback
        else "ending, since --ipvs-fallback=fail; with =iptables it would run in iptables mode"
    )
    return "; ".join(parts)


class _Probe:
    def __init__(self, families: Sequence[Family], runner: Runner, connect: Connect) -> None:
        self._families = families
        self._runner = runner
        self._connect = connect

    def ipvs(self, scheduler: str) -> list[Problem]:
        modules = ("ip_vs", f"ip_vs_{scheduler}", "nf_conntrack")
        try:
            with self._connect(GENERIC) as channel:
                family_id = self._with_module("ip_vs", lambda: channel.family_id(IPVS))
                serving = {
                    family_of(virtual.address)
                    for virtual, config in services(channel, family_id)
                    if config.scheduler == scheduler
                }
                for family in self._families:
                    if family in serving or (serving and self._runs(family)):
                        continue
                    problem = self._scheduler(channel, family_id, family, scheduler)
                    if problem is not None:
                        return [problem]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return [Problem("the kernel has no IPVS", modules)]
            return [Problem(f"the kernel refuses to tell about IPVS ({why(error)})", modules)]
        return []

    def ipset(self) -> list[Problem]:
        types = sorted({kind.type for kind in SETS.values()})
        try:
            with self._connect(NETFILTER) as channel:
                least, most = self._with_module(
                    "ip_set", lambda: decode_protocol(channel.request(*get_protocol()))
                )
                if not least <= _IPSET_PROTOCOL <= most:
                    return [
                        Problem(
                            f"the kernel's ipset speaks protocols {least} to {most}, "
                            f"and {_IPSET_PROTOCOL} is needed"
                        )
                    ]
                return [p for one in types if (p := self._set_type(channel, one)) is not None]
        except OSError as error:
            modules = ("ip_set", *map(_module_of_type, types), "xt_set")
            if error.errno in (errno.EPERM, errno.EACCES):
                return [Problem(f"the kernel refuses to tell about ipset ({why(error)})")]
            return [Problem(f"the kernel has no ipset ({why(error)})", modules)]

    def matches(self, tools: Tools) -> list[Problem]:
        """Load rules with the matches that only this mode uses into a chain nobody jumps to."""
        if self._runs(tools.family):
            return []
        name = _PROBE_SET[tools.family]
        values = {"set": name, "address": NOBODY[tools.family]}
        rules = {match: text.format(**values) for match, text in _MATCHES.items()}
        try:
            with self._connect(NETFILTER) as channel:
                channel.batch([destroy_set(name)])
                refused = channel.batch([create_set(name, "hash:ip", tools.family)])[0]
                if refused:
                    return [Problem(f"the kernel makes no set ({set_error(refused)})")]
                try:
                    if not self._complaint(tools, rules.values()):
                        return []
                    return [
                        Problem(
                            f"{tools.restore()[0]} has no match {match} ({complaint})", (module,)
                        )
                        for match, rule in rules.items()
                        for module in (f"xt_{match}",)
                        if (complaint := self._complaint(tools, [rule]))
                    ]
                finally:
                    self._restore(tools, [f"-X {_PROBE_CHAIN}"])
                    channel.batch([destroy_set(name)])
        except OSError as error:
            return [Problem(f"the kernel makes no set ({why(error)})")]

    def device(self) -> list[Problem]:
        try:
            with self._connect(ROUTE) as channel:
                device = find_device(channel)
                if device is not None and device.is_dummy:
                    return []
                try:
                    self._with_module(_DUMMY, partial(channel.request, *_new_dummy(_PROBE_DEVICE)))
                finally:
                    channel.batch([_del_link(_PROBE_DEVICE)])
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                return [Problem(f"the kernel refuses to make a device ({why(error)})")]
            return [Problem(f"the kernel makes no dummy device ({why(error)})", ("dummy",))]
        return []

    def _runs(self, family: Family) -> bool:
        """Tell whether this mode's rules are in: then the kernel can, and is left alone.

        Only with all of them are there several rules that ask this set (kube-proxy has but one
        while the set is empty).
        """
        try:
            with self._connect(NETFILTER) as channel:
                for message in list(channel.dump(*list_set(set_name(EXTERNAL_IP, family)))):
                    header = decode_listing(*message).header
                    if header is not None:
                        return header.references > 1
        except OSError:
            pass
        return False

    def _scheduler(
        self, channel: Channel, family_id: int, family: Family, scheduler: str
    ) -> Problem | None:
        module = f"ip_vs_{scheduler}"
        try:
            self._with_module(module, lambda: _serve_nobody(channel, family_id, family, scheduler))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return Problem(f"the kernel's IPVS has no scheduler {scheduler}", (module,))
            return Problem(
                f"the kernel's IPVS refuses an {family} virtual server with scheduler "
                f"{scheduler} ({why(error)})",
                ("ip_vs", module),
            )
        return None

    def _set_type(self, channel: Channel, name: str) -> Problem | None:
        module = _module_of_type(name)
        for family in self._families:
            request = get_type(name, family)
            try:
                least, most = decode_type(
                    self._with_module(module, partial(channel.request, *request))
                )
            except OSError as error:
                said = set_error(error.errno or 0)
                return Problem(f"the kernel has no sets of type {name} ({said})", (module,))
            if not least <= REVISIONS[name] <= most:
                return Problem(
                    f"the kernel knows revisions {least} to {most} of ipset type {name}, "
                    f"and {REVISIONS[name]} is needed"
                )
        return None

    def _complaint(self, tools: Tools, rules: Iterable[str]) -> str:
        """Why *rules* are refused; empty if they are not. They stay in the probe chain."""
        return self._restore(tools, [f"-A {_PROBE_CHAIN} {rule} -j RETURN" for rule in rules])

    def _restore(self, tools: Tools, lines: Iterable[str]) -> str:
        """Why *lines* are refused; empty if they are not. Raises HostError."""
        text = "\n".join(["*filter", f":{_PROBE_CHAIN} - [0:0]", *lines, "COMMIT", ""])
        program = tools.restore()[0]
        for _ in range(_LOCK_TRIES):
            match self._runner(tools.restore(), text.encode(), QUICK_SECONDS):
                case Finished(0, _, _):
                    return ""
                case Finished(status) as result if is_locked(status, result.complaint):
                    log.warning("another program holds the xtables lock, waiting", tool=program)
                case Killed() | TimedOut() as result:
                    raise HostError(f"{program}: {describe(result)}")
                case result:
                    return describe(result)
        raise HostError(f"{program}: another program holds the xtables lock")

    def _with_module(self, module: str, action: Callable[[], T]) -> T:
        """Do *action*; if the kernel lacks what it needs, load *module* and do it once more.

        Raises:
            OSError: it fails all the same.
        """
        try:
            return action()
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
        result = self._runner(["modprobe", "-va", module], None, QUICK_SECONDS)
        if not (isinstance(result, Finished) and result.exit_status == 0):
            log.info("kernel module not loaded", module=module, reason=describe(result))
        return action()


def services(channel: Channel, family_id: int) -> list[tuple[Virtual, VirtualConfig]]:
    """Return the virtual servers of both families, but for those chosen by firewall marks.

    Raises:
        OSError: the kernel refuses.
    """
    # Read to the end: a socket with a dump half read gets EBUSY for the next one.
    found = [decode_service(*message) for message in channel.dump(*get_services(family_id))]
    return [service for service in found if service is not None]


def _serve_nobody(channel: Channel, family_id: int, family: Family, scheduler: str) -> None:
    """Make a virtual server that nobody uses, look for it, and delete it.

    Raises:
        OSError: the kernel refuses; ENOENT: it has no such scheduler.
    """
    virtual = Virtual(Protocol.TCP, NOBODY[family], _PROBE_PORT)
    remove = del_service(family_id, virtual)
    # First what a killed predecessor may have left.
    refused = channel.batch([remove, new_service(family_id, virtual, VirtualConfig(scheduler))])[1]
    if refused:
        raise OSError(refused, os.strerror(refused))
    try:
        if all(listed != virtual for listed, _ in services(channel, family_id)):
            raise OSError(errno.EIO, "it is accepted but not listed")
    finally:
        channel.batch([remove])


# --- sysctls and timeouts ---

_RELEASE = re.compile(r"(\d+)\.(\d+)")


_VS = "net/ipv4/vs/"


def parameters(strict_arp: bool, release: str = "") -> list[Parameter]:
    """Return the kernel parameters of ipvs mode, the same for both families. Never set back.

    *release* is the kernel's, by default the running one's.
    """
    wanted = {
        f"{_VS}conntrack": 1,
        f"{_VS}expire_nodest_conn": 1,
        f"{_VS}expire_quiescent_template": 1,
        "net/ipv4/ip_forward": 1,
    }
    release = release or platform.release()
    found = _RELEASE.match(release)
    version = (int(found.group(1)), int(found.group(2))) if found else None
    if version is None:
        log.warning("kernel release not understood, conn_reuse_mode left alone", release=release)
    elif version < (4, 1):
        log.warning(
            "this kernel delays or misdirects new connections that reuse a client's port; "
            "4.1 is the first without that",
            release=release,
        )
    elif version < (5, 9):
        # Reuse of a client's port costs a second there: https://github.com/kubernetes/kubernetes/
        # issues/81775, repaired in 5.9.
        wanted[f"{_VS}conn_reuse_mode"] = 0
    if strict_arp:
        wanted |= {"net/ipv4/conf/all/arp_ignore": 1, "net/ipv4/conf/all/arp_announce": 2}
    return [
        Parameter(name, value, "ip_vs" if name.startswith(_VS) else "")
        for name, value in wanted.items()
    ]


def apply_timeouts(
    tcp_seconds: float,
    tcp_fin_seconds: float,
    udp_seconds: float,
    connect: Connect = Netlink,
) -> bool:
    """Set the IPVS timeouts that are not 0, if the kernel has others; return whether it had.

    A failure is only logged: connections then live as long as they did.
    """
    wanted = Timeouts(*map(math.ceil, (tcp_seconds, tcp_fin_seconds, udp_seconds)))
    if wanted == Timeouts():
        return False
    try:
        with connect(GENERIC) as channel:
            family_id = channel.family_id(IPVS)
            kind, flags, body = get_config(family_id)
            now = decode_config(channel.request(kind, flags, body))
            all_of_it = Timeouts(
                wanted.tcp or now.tcp, wanted.tcp_fin or now.tcp_fin, wanted.udp or now.udp
            )
            if all_of_it == now:
                return False
            kind, flags, body = set_config(family_id, all_of_it)
            channel.request(kind, flags | ACK, body)
    except OSError as error:
        log.warning("IPVS timeouts not set", reason=why(error))
        return False
    log.info("IPVS timeouts set", seconds=str(all_of_it))
    return True


# --- the dummy device ---


class Device(Struct, frozen=True):
    """A link of any sort: its interface index, and its kind, empty for one without."""

    index: int
    kind: str

    @property
    def is_dummy(self) -> bool:
        return self.kind == _DUMMY


def ensure_device(connect: Connect = Netlink) -> bool:
    """Make sure that the device for addresses exists; return whether it had to be made.

    It is never brought up: its addresses are the node's own all the same.

    Raises:
        HostError: the kernel refuses, or something else has its name.
    """
    try:
        with connect(ROUTE) as channel:
            device = find_device(channel)
            if device is None:
                channel.request(*_new_dummy(DEVICE))
                return True
    except OSError as error:
        raise HostError(
            f"creating device {DEVICE}: {why(error)}; it needs NET_ADMIN and module dummy"
        ) from error
    must_be_dummy(device)
    return False


def delete_device(connect: Connect = Netlink) -> bool:
    """Delete the device with all its addresses; return whether there was one.

    Raises:
        HostError: the kernel refuses, or something else has its name.
    """
    try:
        with connect(ROUTE) as channel:
            device = find_device(channel)
            if device is None:
                return False
            must_be_dummy(device)
            refused = channel.batch([_del_link(DEVICE)])[0]
            if refused not in (0, errno.ENODEV):
                raise OSError(refused, os.strerror(refused))
    except OSError as error:
        raise HostError(f"deleting device {DEVICE}: {why(error)}") from error
    return True


def find_device(channel: Channel) -> Device | None:
    """Look for the device by a `ROUTE` socket.

    Raises:
        OSError: the kernel refuses.
    """
    try:
        reply = channel.request(_GETLINK, 0, _NO_LINK + _named(DEVICE))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    kind = ""
    for outer, start, end in attributes(reply, _IFINFOMSG.size, len(reply)):
        if outer == _LINKINFO:
            for inner, first, last in attributes(reply, start, end):
                if inner == _INFO_KIND:
                    kind = reply[first:last].rstrip(b"\0").decode()
    return Device(_IFINFOMSG.unpack_from(reply)[2], kind)


def must_be_dummy(device: Device) -> None:
    """Raises HostError for a link of that name that is none of ours."""
    if not device.is_dummy:
        raise HostError(
            f"device {DEVICE} is of type {device.kind or 'unknown'} where a dummy is needed, so "
            f"somebody else made it; if nobody needs it: ip link delete {DEVICE}"
        )


def _new_dummy(name: str) -> Request:
    kind = {"attrs": [("IFLA_INFO_KIND", _DUMMY)]}
    body = _link_message(("IFLA_IFNAME", name), ("IFLA_LINKINFO", kind))
    return _NEWLINK, ACK | CREATE | EXCL, body


def _del_link(name: str) -> Request:
    return _DELLINK, 0, _link_message(("IFLA_IFNAME", name))


def _link_message(*attrs: tuple[str, object]) -> bytes:
    """The body of a message about a link. Links come and go once in a node's life."""
    # Late: pyroute2 takes 0.2 s to load, and most starts make no link.
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    message = ifinfmsg()
    message["attrs"] = list(attrs)
    message.encode()
    return bytes(message.data[HEADER_BYTES:])


def _named(name: str) -> bytes:
    return attribute(_IFNAME, name.encode() + b"\0")


# --- words ---


def _module_of_type(name: str) -> str:
    """``hash:ip,port`` is in ip_set_hash_ipport."""
    method, _, parts = name.partition(":")
    return f"ip_set_{method}_{parts.replace(',', '')}"
