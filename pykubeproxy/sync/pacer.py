"""When the next pass may start. Time is an argument, in seconds on any monotonic clock.

A pass that runs is never interrupted: what comes meanwhile waits and is one request for the next.
Three rules decide when that starts, each scaled by what passes cost, which differs by a factor of
a hundred between nodes (with 10 000 Services 0.15 s with nf_tables and 0.75 s with legacy, whose
kernel copies the whole table; with ten Services 8 ms):

* **Gathering.** A pass starts once nothing new has come for a tenth of its cost, at most 20 ms: a
  Service and its EndpointSlice arrive apart by the milliseconds that two streams need, and taken
  one by one the second would wait for a whole pass. A single change is later by that tenth, no
  more. While changes keep coming the start is put off, by at most what a pass costs and never
  more than half a second: for the last of a burst of 0.4 s that saves a pass, at 0.75 s each.
* **Budget.** In the long run half of the time may be spent syncing, as much as kube-proxy with a
  pass and a pause of 1 s each. A third would be friendlier, but passes of 0.75 s for changes that
  come one by one every 1.75 s would then queue up. What was not used counts for up to a second,
  so that the first passes after some quiet follow each other without a pause.
* **Bounds.** At least 20 ms between passes: cheap ones would start programs fifty times a second
  for nothing. At most a second: kube-proxy's default, after a pass however long.
"""

from __future__ import annotations

__all__ = ["Pacer"]

GATHER_SHARE = 0.1
GATHER_MOST_SECONDS = 0.02
PUT_OFF_MOST_SECONDS = 0.5
BUSY_SHARE = 0.5
UNUSED_MOST_SECONDS = 1.0
PAUSE_LEAST_SECONDS = 0.02
PAUSE_MOST_SECONDS = 1.0
RETRY_FLOOR_SECONDS = 0.25


class Pacer:
    """Gathers what comes together, keeps storms in bounds, and schedules retries and resyncs.

    *min_interval_seconds* is the least pause between the end of a pass and the start of the next
    one, as in kube-proxy; ``None`` makes it follow from the budget. After a failure the next pass
    comes by itself, doubling from a quarter of a second to *retry_seconds*; after a success the
    next one comes after *resync_seconds*.

    Raises:
        ValueError: a resync would be due before the pause allows it.
    """

    def __init__(
        self,
        min_interval_seconds: float | None,
        retry_seconds: float,
        resync_seconds: float = 3600.0,
    ) -> None:
        if resync_seconds < (min_interval_seconds or 0):
            raise ValueError("the resync interval is shorter than the minimum sync interval")
        self._min_interval = min_interval_seconds
        self._retry = retry_seconds
        self._resync = resync_seconds
        self._not_before = float("-inf")
        self._paid_at = float("-inf")
        """When all passes so far will have been no more than their share of the time."""
        self._expected_seconds = 0.0
        self._first = 0.0
        self._gathered_at: float | None = None
        self._scheduled: float | None = None
        self._failures = 0

    def request(self, now: float) -> None:
        """Ask for a pass for what came at *now*, which may be a moment to come.

        Requests until it starts are one; the later ones put it off a little, within bounds.
        """
        quiet_at = now + min(GATHER_MOST_SECONDS, GATHER_SHARE * self._expected_seconds)
        if self._gathered_at is None or now < self._first:
            self._first, self._gathered_at = now, quiet_at
        elif now <= max(self._gathered_at, self._not_before):
            put_off = min(PUT_OFF_MOST_SECONDS, self._expected_seconds)
            latest = max(self._first + put_off, self._not_before)
            self._gathered_at = max(self._gathered_at, min(quiet_at, latest))

    def urge(self, now: float) -> None:
        """Ask for a pass at once, without the pause: something is broken."""
        self._scheduled = now

    def finished(self, now: float, cost_seconds: float, succeeded: bool) -> None:
        """Note the end of a pass: sets the pause and the next pass that comes by itself."""
        # Passes with nothing to do come in between, and tell little about the next one.
        self._expected_seconds = max(cost_seconds, self._expected_seconds / 2)
        unused_since = now - cost_seconds - UNUSED_MOST_SECONDS
        self._paid_at = max(self._paid_at, unused_since) + cost_seconds / BUSY_SHARE
        pause = self._min_interval
        if pause is None:
            pause = min(PAUSE_MOST_SECONDS, max(PAUSE_LEAST_SECONDS, self._paid_at - now))
            self._paid_at = min(self._paid_at, now + PAUSE_MOST_SECONDS)
        self._not_before = now + pause
        self._gathered_at = None
        if succeeded:
            self._failures = 0
            self._scheduled = now + self._resync
        else:
            delay = min(self._retry, RETRY_FLOOR_SECONDS * 2**self._failures)
            self._failures = min(self._failures + 1, 16)
            self._scheduled = max(self._not_before, now + delay)

    def due(self, now: float) -> bool:
        at = self.next_at
        return at is not None and now >= at

    @property
    def next_at(self) -> float | None:
        """When the next pass starts if nothing else is asked for; ``None`` before any request."""
        if self._gathered_at is None:
            return self._scheduled
        gathered_at = max(self._gathered_at, self._not_before)
        return gathered_at if self._scheduled is None else min(gathered_at, self._scheduled)
