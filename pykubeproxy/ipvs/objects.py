"""Keys and values of the ipvs backend.

Virtual and real servers, the addresses that make packets come to them, the sets that tell
packets apart, and the rules that ask those sets: the rules are objects of
`pykubeproxy.iptables.objects`, all others are here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct

from pykubeproxy.iptables import objects as xtables
from pykubeproxy.model.kinds import Protocol

__all__ = [
    "MH_PORT",
    "PERSISTENT",
    "BoundAddress",
    "IPSet",
    "Key",
    "Present",
    "Real",
    "SetEntry",
    "SetType",
    "Value",
    "Virtual",
    "VirtualConfig",
    "Weight",
    "scheduler_flags",
    "servers_by_kind",
]

PERSISTENT = 0x1
"""IP_VS_SVC_F_PERSISTENT of linux/ip_vs.h: a client stays with its real server."""
MH_PORT = 0x10
"""IP_VS_SVC_F_SCHED_MH_PORT: the source port counts for the hash, not only the address."""


class Virtual(Struct, frozen=True, gc=False):
    """A virtual server: what clients connect to. The address is canonical text."""

    protocol: Protocol
    address: str
    port: int

    def __str__(self) -> str:
        """``tcp 10.96.0.1:443`` or ``udp [fd00::a]:53``."""
        return f"{self.protocol.lower()} {_host(self.address)}:{self.port}"


class VirtualConfig(Struct, frozen=True, gc=False):
    """How a virtual server chooses.

    ``flags`` are `PERSISTENT` and scheduler flags, never the kernel's own hashed flag.
    ``timeout_seconds`` is how long a client stays with its real server; 0 without `PERSISTENT`.
    """

    scheduler: str
    flags: int = 0
    timeout_seconds: int = 0


def scheduler_flags(scheduler: str) -> int:
    """Return the flags that go with *scheduler*; the same bit means other things to others."""
    return MH_PORT if scheduler == "mh" else 0


class Real(Struct, frozen=True, gc=False):
    """A real server of one virtual server, reached by masquerading (NAT). Value: its `Weight`."""

    virtual: Virtual
    address: str
    port: int

    def __str__(self) -> str:
        return f"{_host(self.address)}:{self.port} of {self.virtual}"


Weight = int
"""Share of new connections; 1 when in use, 0 while draining."""


class BoundAddress(Struct, frozen=True, gc=False):
    """An address on the dummy device, so that packets for it are the node's own."""

    address: str

    def __str__(self) -> str:
        return f"address {self.address}"


class IPSet(Struct, frozen=True, gc=False):
    """A set that must exist; its value is its `SetType`."""

    name: str

    def __str__(self) -> str:
        return f"ipset {self.name}"


class SetType(Struct, frozen=True, gc=False):
    """Type name and parameters as ``ipset create`` takes them, e.g. ``hash:ip,port``."""

    type: str


class SetEntry(Struct, frozen=True, gc=False):
    """One entry of a set, as ``ipset list`` prints it: ``10.96.0.1,tcp:80``, ``30080``.

    Nets are canonical, and without a prefix length where they are single addresses.
    """

    set: str
    entry: str

    def __str__(self) -> str:
        return f"{self.entry} in ipset {self.set}"


class Present(Struct, frozen=True, gc=False):
    """The value of what is there or not, with nothing more to say."""


Key = Virtual | Real | BoundAddress | IPSet | SetEntry | xtables.Key
Value = VirtualConfig | Weight | SetType | Present | xtables.Rules


def servers_by_kind(objects: Iterable[Key]) -> dict[str, int]:
    """Count the virtual and real servers among *objects*."""
    kinds = Counter(map(type, objects))
    return {"virtual": kinds[Virtual], "real": kinds[Real]}


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address
