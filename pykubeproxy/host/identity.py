"""What tells this boot and this network namespace from all others."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

__all__ = ["BOOT_ID", "namespace_identity"]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
OWN_NAMESPACE = Path("/proc/thread-self/ns/net")

_SO_NETNS_COOKIE = 71  # asm-generic/socket.h; not in the socket module


def namespace_identity(boot_id: Path = BOOT_ID) -> tuple[str, str] | None:
    """Return the id of this boot and that of this network namespace; ``None`` if unknown.

    A cookie is never given twice in one boot. Before Linux 5.14 there is none, and the inode of
    the namespace has to do, which is free for another once the namespace is gone.
    """
    try:
        boot = boot_id.read_text(encoding="ascii").strip()
        return (boot, _cookie() or _inode()) if boot else None
    except OSError:
        return None


def _cookie() -> str:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            value = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:
        return ""
    return f"cookie-{int.from_bytes(value, sys.byteorder):x}"


def _inode() -> str:
    status = os.stat(OWN_NAMESPACE)
    return f"inode-{status.st_dev:x}-{status.st_ino:x}"
