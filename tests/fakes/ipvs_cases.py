"""What the kernel does and refuses in ipvs mode, as data: for the fake, and for the kernel itself.

Every case starts with nothing but the dummy device, runs its steps, and expects an errno of each;
what is there afterwards is compared between the fake and a real kernel by `picture`. The
numbers beyond 4096 are ipset's own (linux/netfilter/ipset/ip_set.h).
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol as Interface

from msgspec import Struct

from pykubeproxy.host.netlink import EXCL, Refusal, Request, attribute, nested
from pykubeproxy.ipvs import messages as m
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol
from tests.fakes.xtables_cases import Case as RuleCase
from tests.fakes.xtables_cases import accepted, filter_, nat, refused

__all__ = ["CASES", "RULE_CASES", "RULE_SETS", "Case", "Channel", "Channels", "picture", "run"]


class Channel(Interface):
    """What the fake and `pykubeproxy.host.netlink.Netlink` have in common."""

    def request(self, kind: int, flags: int, body: bytes) -> bytes: ...

    def dump(self, kind: int, body: bytes) -> Iterable[tuple[bytes, int, int]]: ...

    def refusals(self, requests: Sequence[Request]) -> dict[int, Refusal]: ...


class Channels(Struct):
    """The sockets to one kernel, and the numbers that differ between kernels."""

    generic: Channel
    netfilter: Channel
    route: Channel
    family_id: int
    index: int


class Step(Struct, frozen=True):
    """A request made when the numbers of the kernel are known, and the errno it meets.

    ``line`` is which entry is refused, where ipset says so.
    """

    channel: str
    make: Callable[[Channels], Request]
    error: int = 0
    line: int | None = None


class Case(Struct, frozen=True):
    name: str
    steps: tuple[Step, ...]


def run(case: Case, channels: Channels) -> list[str]:
    """Send all steps; say which of them met another errno than expected."""
    problems = []
    for number, step in enumerate(case.steps, start=1):
        channel: Channel = getattr(channels, step.channel)
        refusal = channel.refusals([step.make(channels)]).get(0, Refusal(0, b""))
        line = m.refused_line(refusal.body) if refusal.body else None
        if (step.error, step.line) != (refusal.errno, line):
            got = errno.errorcode.get(refusal.errno, refusal.errno)
            wanted = errno.errorcode.get(step.error, step.error)
            problems.append(f"step {number}: expected {wanted} ({step.line}), got {got} ({line})")
    return problems


def picture(channels: Channels) -> dict[str, object]:
    """What the kernel holds, in words."""
    services = {}
    for message in list(channels.generic.dump(*m.get_services(channels.family_id))):
        found = m.decode_service(*message)
        if found is not None:
            dests = channels.generic.dump(*m.get_dests(channels.family_id, found[0]))
            reals = sorted(str(m.decode_dest(*dest)) for dest in dests)
            services[str(found[0])] = (str(found[1]), reals)
    sets: dict[str, tuple[object, list[str]]] = {}
    for message in list(channels.netfilter.dump(*m.list_headers())):
        header = m.decode_listing(*message)
        if header.header is None:
            continue
        entries: list[str] = []
        for part in channels.netfilter.dump(*m.list_set(header.set)):
            entries += m.decode_listing(*part).entries
        sets[header.set] = (str(header.header), sorted(entries))
    addresses = [m.decode_address(*message) for message in channels.route.dump(*m.get_addresses())]
    bound = sorted(
        f"{a.address}/{a.prefix_length}" for a in addresses if a and a.index == channels.index
    )
    kind, flags, body = m.get_config(channels.family_id)
    timeouts = str(m.decode_config(channels.generic.request(kind, flags, body)))
    return {"services": services, "sets": sets, "bound": bound, "timeouts": timeouts}


# --- virtual and real servers ------------------------------------------------------------------

V4 = Virtual(Protocol.TCP, "10.96.0.1", 80)
V6 = Virtual(Protocol.UDP, "fd00:96::1", 53)
RR = VirtualConfig("rr")


def generic(make: Callable[..., Request], *args: object, error: int = 0) -> Step:
    return Step("generic", lambda at: make(at.family_id, *args), error)


def raw(command: int, body: bytes, error: int) -> Step:
    return Step("generic", lambda at: (at.family_id, 0, bytes((command, 1, 0, 0)) + body), error)


def added(virtual: Virtual = V4, config: VirtualConfig = RR, error: int = 0) -> Step:
    return generic(m.new_service, virtual, config, error=error)


def real(host: str, port: int = 8080, virtual: Virtual = V4) -> Real:
    return Real(virtual, host, port)


def dest(make: Callable[..., Request], host: str, *weight: int, error: int = 0) -> Step:
    return generic(make, real(host), *weight, error=error)


P1, P2 = "10.244.0.11", "10.244.0.12"
_U16, _U32 = struct.Struct("=H"), struct.Struct("=I")
_IDENTITY = (
    attribute(1, _U16.pack(2))
    + attribute(2, _U16.pack(6))
    + attribute(3, bytes((10, 96, 0, 1)))
    + attribute(4, (80).to_bytes(2, "big"))
)
_FULL = attribute(6, b"rr\0") + attribute(7, bytes(4) + b"\xff" * 4) + attribute(8, bytes(4))

SERVERS = [
    Case("a service is added", (added(),)),
    Case("an IPv6 service is added", (added(V6),)),
    Case(
        "protocols and families are kept apart",
        (added(), added(Virtual(Protocol.UDP, "10.96.0.1", 80)), added(V6)),
    ),
    Case("a service cannot be added twice", (added(), added(error=errno.EEXIST))),
    Case(
        "a service with an unknown scheduler is refused",
        (added(config=VirtualConfig("nosuch"), error=errno.ENOENT),),
    ),
    Case(
        "what exists is looked for before the scheduler",
        (added(), added(config=VirtualConfig("nosuch"), error=errno.EEXIST)),
    ),
    Case(
        "a scheduler name is at most 15 letters long",
        (
            added(config=VirtualConfig("a" * 15), error=errno.ENOENT),
            added(config=VirtualConfig("a" * 16), error=errno.EINVAL),
        ),
    ),
    Case("persistence is kept", (added(config=VirtualConfig("rr", PERSISTENT, 10800)),)),
    Case(
        "a service is changed, flags too",
        (
            added(config=VirtualConfig("rr", PERSISTENT, 60)),
            dest(m.new_dest, P1, 1),
            generic(m.set_service, V4, VirtualConfig("mh", m.SCHED_2)),
        ),
    ),
    Case(
        "what is absent cannot be changed",
        (generic(m.set_service, V4, RR, error=errno.ESRCH),),
    ),
    Case(
        "a service cannot be changed to an unknown scheduler",
        (added(), generic(m.set_service, V4, VirtualConfig("nosuch"), error=errno.ENOENT)),
    ),
    Case(
        "a service goes with its real servers",
        (added(), dest(m.new_dest, P1, 1), generic(m.del_service, V4), added()),
    ),
    Case("what is absent cannot be deleted", (generic(m.del_service, V4, error=errno.ESRCH),)),
    Case(
        "a service is more than its address",
        (
            raw(1, nested(1, attribute(1, _U16.pack(2))), errno.EINVAL),
            raw(1, b"", errno.EINVAL),
            raw(1, nested(1, _IDENTITY), errno.EINVAL),
            raw(1, nested(1, _IDENTITY, _FULL), errno.EINVAL),
        ),
    ),
    Case(
        "a family is one of two",
        (raw(4, nested(1, attribute(1, _U16.pack(1)), _IDENTITY[8:]), errno.EAFNOSUPPORT),),
    ),
    Case(
        "a netmask of IPv6 is a length",
        (
            raw(
                1,
                nested(
                    1,
                    attribute(1, _U16.pack(10)),
                    attribute(2, _U16.pack(6)),
                    attribute(3, bytes(15) + b"\1"),
                    attribute(4, b"\0\x50"),
                    _FULL,
                    attribute(9, _U32.pack(0xFFFFFFFF)),
                ),
                errno.EINVAL,
            ),
        ),
    ),
    Case("an unknown command is refused", (raw(99, b"", errno.EOPNOTSUPP),)),
    Case(
        "real servers are added, changed and deleted",
        (
            added(),
            dest(m.new_dest, P1, 1),
            dest(m.new_dest, P2, 1),
            dest(m.set_dest, P1, 0),
            dest(m.del_dest, P2),
        ),
    ),
    Case(
        "a real server of IPv6",
        (added(V6), generic(m.new_dest, real("fd00:244::11", 9090, V6), 1)),
    ),
    Case(
        "a real server of the other family is refused",
        (added(), dest(m.new_dest, "fd00:244::11", 1, error=errno.EINVAL)),
    ),
    Case(
        "a real server cannot be added twice",
        (added(), dest(m.new_dest, P1, 1), dest(m.new_dest, P1, 1, error=errno.EEXIST)),
    ),
    Case(
        "an absent real server cannot be changed or deleted",
        (
            added(),
            dest(m.set_dest, P1, 1, error=errno.ENOENT),
            dest(m.del_dest, P1, error=errno.ENOENT),
        ),
    ),
    Case(
        "there are no real servers without a service",
        (
            dest(m.new_dest, P1, 1, error=errno.ESRCH),
            dest(m.set_dest, P1, 1, error=errno.ESRCH),
            dest(m.del_dest, P1, error=errno.ESRCH),
        ),
    ),
    Case(
        "a weight is a positive number",
        (added(), generic(m.new_dest, real(P1), 2**31, error=errno.ERANGE)),
    ),
    Case(
        "a real server has an address of its own",
        (
            added(),
            dest(m.new_dest, "224.0.0.1", 1, error=errno.EINVAL),
            dest(m.new_dest, "0.0.0.0", 1, error=errno.EINVAL),
            dest(m.new_dest, "255.255.255.255", 1, error=errno.EINVAL),
        ),
    ),
    Case(
        "a real server of IPv6 is not link-local",
        (
            added(V6),
            generic(m.new_dest, real("fe80::1", 53, V6), 1, error=errno.EINVAL),
            generic(m.new_dest, real("ff02::1", 53, V6), 1, error=errno.EINVAL),
        ),
    ),
    Case("timeouts are set, 0 keeps them", (generic(m.set_config, m.Timeouts(700, 0, 20)),)),
    Case(
        "a timeout is not longer than the kernel can count",
        (generic(m.set_config, m.Timeouts(2**31 - 1, 0, 0), error=errno.EINVAL),),
    ),
]

# --- sets --------------------------------------------------------------------------------------

S = "TEST"


def sets(request: Request, error: int = 0, line: int | None = None) -> Step:
    return Step("netfilter", lambda at: request, error, line)


def made(kind: str = "hash:ip,port", family: Family = Family.IPV4, error: int = 0) -> Step:
    return sets(m.create_set(S, kind, family), error)


def entries(*texts: str, error: int = 0, line: int | None = None) -> Step:
    return sets(m.add_entries(S, texts), error, line)


def dropped(*texts: str, error: int = 0, line: int | None = None) -> Step:
    return sets(m.del_entries(S, texts), error, line)


def exclusive(request: Request) -> Request:
    kind, flags, body = request
    return kind, flags | EXCL, body


def _small(name: str) -> Request:
    """A set for two entries."""
    kind, flags, body = m.create_set(name, "hash:ip", Family.IPV4)
    return kind, flags, body.replace((65536).to_bytes(4, "big"), (2).to_bytes(4, "big"))


_FAMILIES = {
    Family.IPV4: ("10.96.0.1", "10.244.0.11", "198.51.100.0/24", "198.51.100.7"),
    Family.IPV6: ("fd00:96::1", "fd00:244::11", "2001:db8:51::/64", "2001:db8:51::7"),
}
SETS = [
    *(
        Case(
            f"a {kind} set of {family} takes its entries",
            (made(kind, family), entries(*(text.format(*names) for text in texts))),
        )
        for family, names in _FAMILIES.items()
        for kind, texts in {
            "hash:ip": ("{0}", "{1}"),
            "hash:ip,port": ("{0},tcp:80", "{0},udp:80", "{0},sctp:80", "{1},tcp:65535"),
            "hash:ip,port,ip": ("{1},tcp:8080,{1}", "{1},udp:53,{1}"),
            "hash:ip,port,net": ("{0},tcp:80,{2}", "{0},tcp:80,{3}", "{0},sctp:81,{2}"),
            "bitmap:port": ("0", "80", "65535"),
        }.items()
    ),
    Case("a set can be created twice", (made(), entries("10.0.0.1,tcp:80"), made())),
    Case(
        "a set cannot be created twice with EXCL",
        (made(), sets(exclusive(m.create_set(S, "hash:ip,port", Family.IPV4)), errno.EEXIST)),
    ),
    Case(
        "a set of another type has its name",
        (made(), made("hash:ip", error=errno.EEXIST), made("bitmap:port", error=errno.EEXIST)),
    ),
    Case(
        "a set of the other family has its name, and the kernel does not mind",
        (made(), made("hash:ip,port", Family.IPV6)),
    ),
    Case("a set of another size has its name", (sets(_small(S)), made("hash:ip", error=17))),
    Case(
        "an unknown type or revision is refused",
        (
            sets(m.create_set(S, "hash:ip", Family.IPV4, revision=99), 4098),
            sets(m.get_type("hash:nosuch", Family.IPV4), 4098),
        ),
    ),
    Case(
        "a name is at most 31 letters long",
        (
            sets(m.create_set("A" * 31, "hash:ip", Family.IPV4)),
            sets(m.create_set("A" * 32, "hash:ip", Family.IPV4), errno.EINVAL),
        ),
    ),
    Case(
        "a set is destroyed with its entries",
        (made(), entries("10.0.0.1,tcp:80"), sets(m.destroy_set(S))),
    ),
    Case(
        "an absent set with EXCL cannot be destroyed",
        (sets(exclusive(m.destroy_set(S)), errno.ENOENT),),
    ),
    Case(
        "an absent set takes no entries",
        (
            entries("10.0.0.1,tcp:80", error=errno.ENOENT),
            dropped("10.0.0.1,tcp:80", error=errno.ENOENT),
        ),
    ),
    Case(
        "entries are added and deleted twice without complaint",
        (
            made(),
            entries("10.0.0.1,tcp:80", "10.0.0.2,tcp:80"),
            entries("10.0.0.1,tcp:80"),
            dropped("10.0.0.1,tcp:80"),
            dropped("10.0.0.1,tcp:80", "10.0.0.3,tcp:80"),
        ),
    ),
    Case(
        "with EXCL that is refused, and the line told",
        (
            made(),
            entries("10.0.0.2,tcp:80"),
            sets(exclusive(m.add_entries(S, ["10.0.0.1,tcp:80", "10.0.0.2,tcp:80"])), 4103, 1),
            sets(exclusive(m.del_entries(S, ["10.0.0.9,tcp:80", "10.0.0.2,tcp:80"])), 4103, 0),
        ),
    ),
    Case(
        "a full set refuses the first entry too many and keeps those before",
        (
            sets(_small(S)),
            entries("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", error=4352, line=2),
            entries("10.0.0.2"),
            dropped("10.0.0.1"),
            entries("10.0.0.3"),
        ),
    ),
    Case(
        "an address of the other family is refused",
        (made(), entries("10.0.0.1,tcp:80", "fd00::1,tcp:80", error=4097, line=1)),
    ),
    Case(
        "an address of the other family is refused in IPv6",
        (made("hash:ip", Family.IPV6), entries("10.0.0.1", error=4097, line=0)),
    ),
    Case(
        "a net is kept without its host bits",
        (made("hash:ip,port,net"), entries("10.0.0.1,tcp:80,192.0.2.77/24")),
    ),
    Case(
        "a net has a length",
        (
            made("hash:ip,port,net"),
            entries("10.0.0.1,tcp:80,192.0.2.77/0", error=4104, line=0),
            entries("10.0.0.1,tcp:80,192.0.2.77/33", error=4104, line=0),
        ),
    ),
    Case("nobody is no entry", (made("hash:ip"), entries("0.0.0.0", error=4353, line=0))),
    Case("a protocol has a number", (made(), entries("10.0.0.1,0:80", error=4354, line=0))),
    Case("of an entry all parts are needed", (made(), entries("10.0.0.1", error=4097, line=0))),
    Case(
        "large sets take several messages",
        (
            made("hash:ip"),
            *(entries(*(f"10.0.{high}.{low}" for low in range(250))) for high in range(8)),
        ),
    ),
]

# --- addresses -----------------------------------------------------------------------------------


def bind(text: str, error: int = 0) -> Step:
    return Step("route", lambda at: m.new_address(at.index, text), error)


def unbind(text: str, error: int = 0) -> Step:
    return Step("route", lambda at: m.del_address(at.index, text), error)


def _wide(at: Channels) -> Request:
    kind, flags, body = m.new_address(at.index, "10.96.0.1")
    return kind, flags, body[:1] + bytes((33,)) + body[2:]


ADDRESSES = [
    Case("addresses are bound", (bind("10.96.0.1"), bind("10.96.0.2"), bind("fd00:96::1"))),
    Case(
        "an address cannot be bound twice",
        (
            bind("10.96.0.1"),
            bind("10.96.0.1", errno.EEXIST),
            bind("fd00:96::1"),
            bind("fd00:96::1", errno.EEXIST),
        ),
    ),
    Case(
        "an address is unbound once",
        (
            bind("10.96.0.1"),
            unbind("10.96.0.1"),
            unbind("10.96.0.1", errno.EADDRNOTAVAIL),
            bind("fd00:96::1"),
            unbind("fd00:96::1"),
            unbind("fd00:96::1", errno.EADDRNOTAVAIL),
        ),
    ),
    Case(
        "a device that is gone has no addresses",
        (
            Step("route", lambda at: m.new_address(999, "10.96.0.1"), errno.ENODEV),
            Step("route", lambda at: m.del_address(999, "10.96.0.1"), errno.ENODEV),
            Step("route", lambda at: m.new_address(999, "fd00::1"), errno.ENODEV),
        ),
    ),
    Case("a prefix has at most 32 bits", (Step("route", _wide, errno.EINVAL),)),
    Case(
        "a group is no address in IPv6",
        (bind("ff02::1", errno.EADDRNOTAVAIL), bind("::", errno.EADDRNOTAVAIL)),
    ),
]

CASES = [*SERVERS, *SETS, *ADDRESSES]

# --- rules ---------------------------------------------------------------------------------------

RULE_SETS = {"PAIRS": "hash:ip,port", "PORTS": "bitmap:port", "NETS": "hash:ip,port,net"}
"""Sets of both families that the rules below match; those of IPv6 end in 6."""

_RULES = [
    "-m set --match-set $pairs dst,dst -j TWO",
    "-m set --match-set $pairs src,dst -j TWO",
    "-m set ! --match-set $pairs dst,dst -j TWO",
    "-m set --match-set $nets dst,dst,src -j TWO",
    "-m set --match-set PORTS dst -j TWO",
    "-p tcp -m set --match-set PORTS dst -j TWO",
    "-m set --match-set PORTS dst,dst -j TWO",
    '-m comment --comment "a set" -m set --match-set $pairs dst,dst -j MARK --or-mark 0x4000',
    "-m set --match-set $pairs dst,dst -m set --match-set PORTS dst -j TWO",
    "-m set --match-set $pairs dst,dst -m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
    " -j ACCEPT",
    "-m set --match-set $pairs dst,dst -m addrtype --dst-type LOCAL -j ACCEPT",
    "-m physdev --physdev-is-in -j TWO",
    "-m addrtype ! --src-type LOCAL --dst-type LOCAL -j TWO",
    "-m conntrack --ctstate NEW -m set --match-set $pairs dst -j TWO",
    "-s $host -m ipvs --vaddr $host --vproto tcp --vport 80 -j TWO",
    "-m ipvs --vport 80 --vproto 17 --vaddr $host -j TWO",
    "-m ipvs --vproto sctp -j TWO",
    "-m ipvs ! --vaddr $host -j TWO",
    "-m ipvs --vport 70000 -j TWO",
    "-j MARK --set-xmark 0x4000/0x4000",
]
_BAD_RULES = {
    "a set that does not exist": "-m set --match-set NOPE dst,dst -j TWO",
    "a set of the other family": "-m set --match-set $other_pairs dst,dst -j TWO",
    "a set without directions": "-m set --match-set $pairs -j TWO",
    "a set match without a set": "-m set -j TWO",
    "a direction that is none": "-m set --match-set $pairs dst,foo -j TWO",
    "seven directions": "-m set --match-set $pairs src,dst,src,dst,src,dst,src -j TWO",
    "two sets in one match": "-m set --match-set $pairs dst --match-set PORTS dst -j TWO",
    "a set name of 32 letters": f"-m set --match-set {'A' * 32} dst -j TWO",
    "a physdev match of nothing": "-m physdev -j TWO",
    "an ipvs match of nothing": "-m ipvs -j TWO",
    "an ipvs match of the other family": "-m ipvs --vaddr $other_family -j TWO",
    "an ipvs match of an unknown protocol": "-m ipvs --vproto nosuch -j TWO",
}
_BRIDGE = "-m physdev ! --physdev-is-in -j ACCEPT"
RULE_CASES: list[RuleCase] = [
    *(accepted(f"appends: {rule}", nat(f"-A ONE {rule}")) for rule in _RULES),
    *(
        accepted(f"deletes by content: {rule}", nat(f"-A ONE {rule}"), nat(f"-D ONE {rule}"))
        for rule in _RULES
    ),
    *(refused(f"refuses {name}", nat(f"-A ONE {rule}")) for name, rule in _BAD_RULES.items()),
    accepted("filter drops what IPVS sends out", filter_("-A OUTPUT -m ipvs --vport 80 -j DROP")),
    accepted("asks for a bridge where none can be", nat(f"-A OUTPUT {_BRIDGE}")),
    accepted(
        "a command finds a set match",
        nat("-A TWO -m set --match-set $pairs dst,dst -j RETURN"),
        (
            *("-t", "nat", "-C", "TWO"),
            *("-m", "set", "--match-set", "$pairs", "dst,dst", "-j", "RETURN"),
        ),
    ),
]
