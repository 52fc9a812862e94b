"""What the running kernel is: one with IPVS or without, the machine's or a guest's."""

from __future__ import annotations

import os
import struct
from functools import cache

from pykubeproxy.host.netlink import Netlink, attribute

__all__ = ["GUEST_VARIABLE", "has_ip_vs", "in_guest"]

GUEST_VARIABLE = "PYKUBEPROXY_GUEST"

_NETLINK_GENERIC = 16
_CONTROLLER = 16
_GET_FAMILY, _VERSION, _FAMILY_NAME = 3, 1, 2


@cache
def has_ip_vs() -> bool:
    """Tell whether this kernel speaks IPVS; asking loads the module where there is one."""
    question = struct.pack("BBxx", _GET_FAMILY, _VERSION) + attribute(_FAMILY_NAME, b"IPVS\0")
    try:
        with Netlink(_NETLINK_GENERIC) as netlink:
            netlink.request(_CONTROLLER, 0, question)
    except OSError:
        return False
    return True


def in_guest() -> bool:
    """Tell whether this process runs in a guest: legacy iptables only, see the package."""
    return os.environ.get(GUEST_VARIABLE) == "1"
