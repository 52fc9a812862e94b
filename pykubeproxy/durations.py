"""Go durations (``1h30m``, ``1m0.5s``): how Kubernetes writes time spans in flags and files.

Held as seconds. Whole nanoseconds survive reading and writing, as far as a float can tell them
apart (from 97 days on it cannot).
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["format_duration", "parse_duration"]

_SECOND = 10**9
_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # both micro signs are legal in Go
    "μs": 10**3,
    "ms": 10**6,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3600 * _SECOND,
}
_part = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_MAX_NANOSECONDS = 2**63 - 1
# More cannot make a duration that fits; converting much longer texts takes time.
_MAX_DIGITS = 30


def parse_duration(text: str) -> float | None:
    """Return the seconds *text* stands for, or ``None`` if it is no Go duration.

    As ``time.ParseDuration``: a sign, then numbers each with a unit; only zero may go without one.
    More than about 292 years does not fit and is refused.
    """
    sign = -1 if text[:1] == "-" else 1
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    if not rest:
        return None
    nanoseconds, position = 0, 0
    while position < len(rest):
        part = _part.match(rest, position)
        if part is None or not (part[1] or part[2]):
            return None
        whole, decimals, unit = part[1].lstrip("0"), part[2] or "", _NANOSECONDS[part[3]]
        if len(whole) > _MAX_DIGITS:
            return None
        decimals = decimals[:_MAX_DIGITS]
        nanoseconds += int(whole or "0") * unit
        nanoseconds += int(decimals or "0") * unit // 10 ** len(decimals)
        position = part.end()
    return sign * nanoseconds / _SECOND if nanoseconds <= _MAX_NANOSECONDS else None


def format_duration(seconds: float) -> str:
    """Write *seconds* as Go does: ``15m0s``, ``1h0m0s``, ``500ms``; rounded to nanoseconds."""
    nanoseconds = round(Fraction(seconds) * _SECOND)
    sign = "-" if nanoseconds < 0 else ""
    nanoseconds = min(abs(nanoseconds), _MAX_NANOSECONDS)
    if nanoseconds == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if nanoseconds < 1000 * _NANOSECONDS[unit]:
            return f"{sign}{_decimal(nanoseconds, _NANOSECONDS[unit])}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, _SECOND)}s"


def _decimal(number: int, unit: int) -> str:
    whole, rest = divmod(number, unit)
    decimals = f"{rest:0{len(str(unit)) - 1}d}" if rest else ""
    return f"{whole}.{decimals}".rstrip("0").rstrip(".") if rest else str(whole)
