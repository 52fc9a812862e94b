"""How long changes wait from their arrival here until the kernel has them, and what caused them.

Moments are arguments; which clock they are on is the caller's choice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime

__all__ = ["Backlog", "causes"]

MOST = 10_000
"""So many changes are remembered one by one; of more in one pass only the oldest matters."""

# RFC 3339, with up to nanoseconds, as Go's time.Parse takes it.
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


class Backlog:
    """The changes of one family that the kernel does not have yet.

    One owner thread; ``oldest`` may be read from any.
    """

    def __init__(self) -> None:
        self.oldest: float | None = None
        """When the oldest of them came; ``None``: the kernel has all."""
        self._moments: list[float] = []

    def arrived(self, moment: float) -> None:
        """A change came."""
        if len(self._moments) < MOST:
            self._moments.append(moment)
        self.broken(moment)

    def broken(self, moment: float) -> None:
        """The kernel has lost something since *moment*: no change, but it has to be written."""
        if self.oldest is None or moment < self.oldest:
            self.oldest = moment

    def landed(self, now: float) -> list[float]:
        """The kernel has everything *now*; return how long each change waited."""
        moments, self._moments, self.oldest = self._moments, [], None
        return [now - moment for moment in moments]


def causes(triggers: Iterable[str], since: float) -> list[float]:
    """Read when changes were caused, in Unix seconds; what is no time or not after *since* is left
    out: a slice that has not changed for a week would tell of a week.
    """
    found = []
    for text in triggers:
        if _TIME.fullmatch(text):
            try:
                moment = datetime.fromisoformat(text).timestamp()
            except ValueError:  # a 30th of February
                continue
            if moment > since:
                found.append(moment)
    return found
