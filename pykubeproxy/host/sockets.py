"""Which sockets of this network namespace talk from given addresses, by the lists in /proc."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from socket import AF_INET, AF_INET6, inet_pton

__all__ = ["talking_from"]

# Not /proc/net: that is the namespace of the process's first thread.
PROC_NET = Path("/proc/thread-self/net")

# net/tcp_states.h, as /proc writes them
_ESTABLISHED, _TIME_WAIT, _CLOSE, _LISTEN = b"01", b"06", b"07", b"0A"
_MAPPED = bytes(10) + b"\xff\xff"


def talking_from(addresses: Iterable[str], root: Path = PROC_NET) -> int:
    """Count TCP and UDP sockets that have a peer and one of *addresses* at their own end.

    Not those that wait for a peer or for nothing any more, and not UDP sockets without one, of
    which nobody knows whether they expect an answer. 100,000 sockets cost 0.1 s.
    """
    wanted = {form for address in addresses for form in _forms(address)}
    if not wanted:
        return 0
    count = 0
    for name in ("tcp", "tcp6"):
        count += _count(root / name, wanted, but=(_TIME_WAIT, _CLOSE, _LISTEN))
    for name in ("udp", "udp6"):
        count += _count(root / name, wanted, only=(_ESTABLISHED,))
    return count


def _count(
    path: Path,
    wanted: Collection[bytes],
    only: Collection[bytes] = (),
    but: Collection[bytes] = (),
) -> int:
    count = 0
    # Without IPv6 there is no list of it.
    with suppress(FileNotFoundError), path.open("rb") as lines:
        for line in lines:
            # "12: 0100007F:1F90 0200007F:A2C4 01 …": number, own end, the peer's, state
            words = line.split(None, 4)
            if len(words) == 5 and words[1].partition(b":")[0] in wanted:
                count += words[3] in only if only else words[3] not in but
    return count


def _forms(address: str) -> Iterable[bytes]:
    """How the lists write *address*: words of the machine's order, in hexadecimal."""
    if ":" in address:
        yield _hexadecimal(inet_pton(AF_INET6, address))
        return
    packed = inet_pton(AF_INET, address)
    yield _hexadecimal(packed)
    # A socket of IPv6 may talk IPv4.
    yield _hexadecimal(_MAPPED + packed)


def _hexadecimal(packed: bytes) -> bytes:
    return b"".join(b"%08X" % word for (word,) in struct.iter_unpack("=I", packed))
