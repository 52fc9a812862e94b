"""When this process began, by the kernel's books; an `exec` changes nothing of that."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["process_start"]

PROC = Path("/proc")

_STARTED = 19  # of the fields behind the name, which is in parentheses; proc(5): starttime


def process_start(root: Path = PROC) -> float | None:
    """Return the start of this process in seconds of Unix time; ``None`` if unknown."""
    try:
        status = (root / "self/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(status.rpartition(")")[2].split()[_STARTED])
        booted = next(
            int(line.split()[1])
            for line in (root / "stat").read_text(encoding="ascii").splitlines()
            if line.startswith("btime ")
        )
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return booted + ticks / os.sysconf("SC_CLK_TCK")
