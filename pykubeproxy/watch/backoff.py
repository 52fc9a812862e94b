"""How long to wait before asking a failing server again."""

from __future__ import annotations

from random import Random

__all__ = ["Backoff"]


class Backoff:
    """Exponential backoff with full jitter: a random part of a doubling limit.

    Full jitter, because after an API server's restart every node of the cluster is at the same
    attempt (AWS Architecture Blog, "Exponential Backoff And Jitter").
    """

    def __init__(
        self, rng: Random, first_seconds: float = 0.8, limit_seconds: float = 30.0
    ) -> None:
        self._rng = rng
        self._first_seconds = first_seconds
        self._limit_seconds = limit_seconds
        self._attempts = 0

    def next_seconds(self) -> float:
        """Return the next pause, and make the following one longer on average."""
        # Bounded exponent: 2**1024 would overflow a float after a long outage.
        limit = min(self._limit_seconds, self._first_seconds * 2.0 ** min(self._attempts, 32))
        self._attempts += 1
        return self._rng.uniform(0.0, limit)

    def reset(self) -> None:
        """Start small again, after a success."""
        self._attempts = 0
