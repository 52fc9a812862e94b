"""At most one daemon at a time in a network namespace: two would undo each other's work."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

__all__ = ["NodeLock", "is_free", "is_lock_file"]

log = structlog.get_logger(__name__)

PREFIX = "lock-"
TURN_SECONDS = 0.2
"""How late the end of the other is noticed, and a signal heard."""
REPEAT_SECONDS = 10.0
_HOLDER_BYTES = 200


class NodeLock:
    """A lock on a file in *directory*, by the name of the network *namespace*.

    The kernel lets it go with the process, however that ends; a program that takes this one's
    place (exec) has to take it anew.
    """

    def __init__(self, directory: Path, namespace: str) -> None:
        self._path = directory / f"{PREFIX}{namespace}"
        self._fd: int | None = None

    def wait(self, pause: Callable[[float], object], clock: Callable[[], float]) -> None:
        """Take the lock once nobody else has it; *pause* sleeps, or raises to give up.

        Not to end instead: in a rolling update the new daemon may well start before the old one
        has gone. Where there is no place for the file, go on without.
        """
        say_at = clock()
        try:
            while not self.take():
                if clock() >= say_at:
                    say_at = clock() + REPEAT_SECONDS
                    log.warning(
                        "another pykubeproxy serves this network namespace, waiting for its end",
                        holder=self.holder(),
                        file=str(self._path),
                    )
                pause(TURN_SECONDS)
        except OSError as error:
            log.warning(
                "not guarded against a second pykubeproxy on this node",
                file=str(self._path),
                reason=error.strerror or str(error),
            )

    def take(self) -> bool:
        """Take the lock unless somebody has it; return whether it is ours now.

        Raises:
            OSError: the file cannot be made.
        """
        if self._fd is not None:
            return True
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it may have removed the file; then the lock is on one that nobody finds.
            if not os.path.samestat(os.fstat(fd), os.stat(self._path)):
                raise BlockingIOError
            os.truncate(fd, 0)
            os.pwrite(fd, _describe_self(), 0)
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return False
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return True

    @property
    def is_free(self) -> bool:
        """Tell whether nobody has it; where there is no file, nobody has."""
        return is_free(self._path)

    def holder(self) -> str:
        """Who has it, as far as the file tells: its process id, as it sees itself, and since when.

        In a container that id is 1 for most, so the time is what helps to find it.
        """
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(self._path, flags), "rb") as file:
                return file.read(_HOLDER_BYTES).decode(errors="replace").strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Let go; may be called twice, and without the lock."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def is_lock_file(name: str) -> bool:
    """Tell whether a file in the state directory is one of these."""
    return name.startswith(PREFIX)


def is_free(path: Path) -> bool:
    """Tell whether nobody has the lock that the file at *path* is, or would be."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def _describe_self() -> bytes:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return f"pid {os.getpid()} since {now}\n".encode()
