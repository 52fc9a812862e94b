"""What ipvsadm prints about virtual servers, and what each line means.

Only the demo reads it as text, and only to explain it; the daemon never does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Real", "Virtual", "explain", "explain_real", "virtual_servers"]

_HEADINGS = ("IP ", "Prot ", "  -> RemoteAddress:Port")
_SCHEDULERS = {"rr": "each new connection goes to the next one in the list"}


class Real(NamedTuple):
    """A real server: a line that begins with an arrow. Connections are counted by the kernel."""

    line: str
    endpoint: str
    weight: int
    active: int
    inactive: int


class Virtual(NamedTuple):
    """A virtual server and the lines below it."""

    line: str
    protocol: str
    address: str
    port: int
    scheduler: str
    persistent_seconds: int
    reals: tuple[Real, ...]


def virtual_servers(printed: Iterable[str]) -> list[Virtual]:
    """Read what ``ipvsadm -Ln`` prints, IPv4 only."""
    found: list[Virtual] = []
    for line in printed:
        if line.startswith(_HEADINGS) or not line.strip():
            continue
        words = line.split()
        if words[0] == "->":
            real = Real(line, words[1], *map(int, words[3:6]))
            found[-1] = found[-1]._replace(reals=(*found[-1].reals, real))
            continue
        address, _, port = words[1].rpartition(":")
        persistent = int(words[words.index("persistent") + 1]) if "persistent" in words else 0
        found.append(Virtual(line, words[0], address, int(port), words[2], persistent, ()))
    return found


def explain(virtual: Virtual) -> str:
    """What the line of a virtual server means."""
    choice = _SCHEDULERS.get(virtual.scheduler, f"the scheduler {virtual.scheduler} chooses")
    if virtual.persistent_seconds:
        choice = f"a client comes back to the same one within {virtual.persistent_seconds} s"
    return f"{virtual.protocol} to {virtual.address} port {virtual.port}? {choice}"


def explain_real(real: Real, owner: Callable[[str], str]) -> str:
    """What the line of a real server means; *owner* names whose address something is."""
    name = owner(real.endpoint.rpartition(":")[0])
    if real.weight:
        return f"{name}: gets its share"
    return (
        f"{name}: leaves; nothing new, and what it has may end "
        f"({real.active} open, {real.inactive} closed)"
    )
