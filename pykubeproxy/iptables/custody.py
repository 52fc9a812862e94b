"""Whether anybody else changed nf_tables, by the kernel's own count of commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["Commit", "Custody"]


class Commit:
    """One run of a tool of ours. ``counts``: it succeeded, and had something to change."""

    counts = False


class Custody:
    """Tells our commits from those of others. For any thread; shared by both families.

    What the kernel counted, less what we committed, is the same number for as long as nobody else
    commits: the epoch. A commit of which it is not known whose it is counts as somebody else's.
    """

    def __init__(self, generation: Callable[[], int | None] = lambda: None) -> None:
        """*generation* is the kernel's count; ``None`` where there is none (legacy)."""
        self._generation = generation
        self._lock = Lock()
        self.commits = 0  # ours for certain

    def epoch(self) -> int | None:
        """Return the epoch; ``None`` if it cannot be told. Waits for a commit under way."""
        with self._lock:
            generation = self._generation()
        return None if generation is None else generation - self.commits

    def generation(self, epoch: int | None) -> int | None:
        """Return the kernel's count if it is still that *epoch*."""
        with self._lock:
            generation = self._generation()
        if epoch is None or generation is None or generation - self.commits != epoch:
            return None
        return generation

    @contextmanager
    def committing(self) -> Iterator[Commit]:
        """Around each run of a tool that may commit, once at most."""
        commit = Commit()
        with self._lock:
            before = self._generation()
            try:
                yield commit
            finally:
                after = self._generation()
                if commit.counts and before is not None and after == before + 1:
                    self.commits += 1
