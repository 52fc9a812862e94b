"""The number of the state that nf_tables are in, by nfnetlink (linux/netfilter/nf_tables.h)."""

from __future__ import annotations

import struct
from collections.abc import Callable

from pykubeproxy.host.netlink import NETFILTER, SMALL_READ, Netlink, attributes

__all__ = ["Generations"]

_GET_GENERATION = 10 << 8 | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_NEW_GENERATION_ID = 1  # NFTA_GEN_ID
_NFGENMSG = struct.pack("=BBH", 0, 0, 0)


class Generations:
    """Reads the generation of this network namespace's nf_tables, of all their families.

    A commit that changed something adds one, of whatever program; a refused or empty one adds
    nothing (Linux 6.18). About 30 us. For one thread at a time.
    """

    def __init__(self, connect: Callable[[int, int], Netlink] = Netlink) -> None:
        self._connect = connect
        self._channel: Netlink | None = None

    def read(self) -> int | None:
        """Return the generation; ``None`` where the kernel does not tell."""
        try:
            if self._channel is None:
                self._channel = self._connect(NETFILTER, SMALL_READ)
            reply = self._channel.request(_GET_GENERATION, 0, _NFGENMSG)
        except OSError:
            self.close()
            return None
        for kind, start, end in attributes(reply, len(_NFGENMSG), len(reply)):
            if kind == _NEW_GENERATION_ID:
                return int.from_bytes(reply[start:end], "big")
        return None

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
