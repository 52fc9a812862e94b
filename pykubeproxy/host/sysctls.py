"""Kernel parameters under /proc/sys: read first, write only what differs."""

from __future__ import annotations

from pathlib import Path

from pykubeproxy.errors import HostError

__all__ = ["ensure", "read"]

ROOT = Path("/proc/sys")


def read(name: str) -> int | None:
    """Return the value of *name* (``net/ipv4/ip_forward``); ``None`` if absent or no number."""
    try:
        return int((ROOT / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def ensure(name: str, value: int, module: str = "") -> bool:
    """Make *name* hold *value*; return whether it had to be written.

    *module* is the kernel module that brings the parameter, where there is one.

    Raises:
        HostError: the kernel has no such file or refuses the write, for example in a container
            where /proc/sys is read-only.
    """
    if read(name) == value:
        return False
    path = ROOT / name
    try:
        path.write_text(f"{value}\n", encoding="ascii")
    except OSError as error:
        if module and isinstance(error, FileNotFoundError):
            remedy = f"load what brings it: modprobe {module}"
        else:
            setting = f"{name.replace('/', '.')}={value}"
            remedy = f"run privileged, or set it on the node with: sysctl -w {setting}"
        raise HostError(f"cannot write {value} to {path}: {error.strerror}; {remedy}") from error
    return True
