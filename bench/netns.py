"""Network namespaces that end with the process, in which every pod address answers."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable
from typing import TypeVar

__all__ = ["NODE_ADDRESS", "call_in", "current", "enter", "enter_new"]

NODE_ADDRESS = "192.0.2.10"
T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_SETUP = f"""
link set lo up
addr add {NODE_ADDRESS}/32 dev lo
route add local 10.128.0.0/9 dev lo src {NODE_ADDRESS}
route add local 10.96.0.0/12 dev lo src {NODE_ADDRESS}
"""
"""All cluster IPs and pods are this node's own: a cluster IP refuses until a rule redirects it, and
one listener is all pods (IPVS takes no real server in a namespace without any address)."""


def enter_new() -> int:
    """Put this thread into an empty network namespace; returns a descriptor of it. For root."""
    _checked(_LIBC.unshare(_CLONE_NEWNET))
    subprocess.run(["ip", "-batch", "-"], input=_SETUP.encode(), check=True)
    return current()


def enter(namespace: int) -> None:
    """Put this thread, and the threads and programs it starts, into *namespace*."""
    _checked(_LIBC.setns(namespace, _CLONE_NEWNET))


def current() -> int:
    """A descriptor of the namespace that this thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def call_in(namespace: int, action: Callable[[], T]) -> T:
    """Call *action* in another namespace: sockets and programs it makes stay there."""
    here = current()
    try:
        enter(namespace)
        try:
            return action()
        finally:
            enter(here)
    finally:
        os.close(here)


_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "network namespace")
