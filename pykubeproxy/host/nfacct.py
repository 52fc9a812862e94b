"""Named packet counters of the kernel (nfacct), which iptables rules can feed.

Kernel interface: linux/netfilter/nfnetlink_acct.h. All of it is optional: where the kernel has
none, rules are written without counters.
"""

from __future__ import annotations

import errno
import struct

from pykubeproxy.host.netlink import ACK, CREATE, EXCL, NETFILTER, Netlink, attribute, attributes

__all__ = ["ensure_counter", "read_counter"]


_SUBSYSTEM = 7 << 8
_NEW, _GET = _SUBSYSTEM | 0, _SUBSYSTEM | 1
_NAME, _PACKETS = 1, 2
_MAX_NAME_BYTES = 31
_GENERIC_HEADER = bytes(4)  # AF_UNSPEC, NFNETLINK_V0, resource 0


def ensure_counter(name: str) -> bool:
    """Make sure the counter exists; ``False`` where the kernel or the rights for it are missing.

    An existing counter keeps its count.

    Raises:
        ValueError: *name* is longer than the kernel's 31 bytes.
    """
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"counter name {name!r} is longer than {_MAX_NAME_BYTES} bytes")
    if read_counter(name) is not None:
        return True
    try:
        with Netlink(NETFILTER) as netlink:
            netlink.request(_NEW, ACK | CREATE | EXCL, _GENERIC_HEADER + _name(name))
    except OSError as error:
        return error.errno == errno.EEXIST
    return True


def read_counter(name: str) -> int | None:
    """Return the packets counted so far, or ``None`` where there is no such counter."""
    try:
        with Netlink(NETFILTER) as netlink:
            reply = netlink.request(_GET, ACK, _GENERIC_HEADER + _name(name))
    except OSError:
        return None
    for kind, start, end in attributes(reply, len(_GENERIC_HEADER), len(reply)):
        if kind == _PACKETS and end - start == 8:
            (packets,) = struct.unpack_from(">Q", reply, start)
            return int(packets)
    return None


def _name(name: str) -> bytes:
    return attribute(_NAME, name.encode() + b"\0")
