"""Slow looks at the kernel, beside the thread that writes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread

__all__ = ["Beside"]

PATIENCE_SECONDS = 10.0


class Beside:
    """Runs jobs one at a time, on a thread of their own, until the end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._closed = False

    def run(self, job: Callable[[], None]) -> None:
        Thread(target=self._run, args=(job,), name="look", daemon=True).start()

    def close(self) -> None:
        """Wait for the running job, which uses what is closed next; none begins after it."""
        self._closed = True
        self._lock.acquire(timeout=PATIENCE_SECONDS)

    def _run(self, job: Callable[[], None]) -> None:
        with self._lock:
            if not self._closed:
                job()
