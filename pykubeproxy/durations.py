"""Go durations (``1h30m``, ``1m0.5s``): how Kubernetes writes time spans in flags and files."""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration"]

_SECONDS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,  # both micro signs are legal in Go
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_part = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_MAX_SECONDS = (2**63 - 1) / 1e9


def parse_duration(text: str) -> float | None:
    """Return the seconds *text* stands for, or ``None`` if it is no Go duration.

    As ``time.ParseDuration``: a sign, then numbers each with a unit; only zero may go without one.
    More than about 292 years does not fit and is refused.
    """
    sign = -1.0 if text[:1] == "-" else 1.0
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest:
        return None
    seconds, position = 0.0, 0
    while position < len(rest):
        part = _part.match(rest, position)
        if part is None:
            return None
        seconds += float(part[1]) * _SECONDS[part[2]]
        position = part.end()
    return sign * seconds if seconds <= _MAX_SECONDS else None


def format_duration(seconds: float) -> str:
    """Write *seconds* as Go does: ``15m0s``, ``1h0m0s``, ``500ms``; at most nine decimals."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds == 0:
        return "0s"
    if seconds < 1:
        for unit, scale in (("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
            if seconds >= scale * (1 - 1e-9):
                return f"{_decimal(seconds / scale)}{unit}"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{_decimal(rest)}s"


def _decimal(number: float) -> str:
    return f"{number:.9f}".rstrip("0").rstrip(".")
