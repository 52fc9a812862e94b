"""A directory of small files that outlive the process, and may be lost at any time."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import structlog

__all__ = ["StateDirectory", "StateFile"]

log = structlog.get_logger(__name__)


class StateDirectory:
    """The directory *path*, made when the first file is written. For any thread.

    Nothing in it is needed, so what does not work is said once and never an error.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._said = False

    def file(self, name: str) -> StateFile:
        return StateFile(self, name)

    def read(self, name: str) -> bytes | None:
        """Return the content; ``None`` if there is none, or if others could have written it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with open(os.open(self.path / name, flags), "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                    return None
                if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    return None
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._say("not read", error)
            return None

    def write(self, name: str, content: bytes) -> bool:
        """Replace the content as a whole; return whether that was possible."""
        with self._lock:
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._replace(name, content)
            except OSError as error:
                self._say("not written", error)
                return False
        return True

    def files(self, is_ours: Callable[[str], bool]) -> list[Path]:
        """Return the files whose names *is_ours*, sorted; none where there is no directory."""
        try:
            return sorted(path for path in self.path.iterdir() if is_ours(path.name))
        except OSError:
            return []

    def clear(self, is_ours: Callable[[str], bool]) -> int:
        """Remove the files whose names *is_ours*, and the directory if it is empty then."""
        removed = 0
        try:
            for path in self.files(is_ours):
                path.unlink(missing_ok=True)
                removed += 1
            self.path.rmdir()
        except OSError:
            pass  # none there, or not only ours
        return removed

    def _replace(self, name: str, content: bytes) -> None:
        target, whole = self.path / name, self.path / f".{name}"
        # Not synced to a disk: a file that does not survive a power cut is of no use after it.
        # Made anew each time: somebody's file of that name may be a link to another.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        whole.unlink(missing_ok=True)
        try:
            with open(os.open(whole, flags, 0o600), "wb") as file:
                file.write(content)
            whole.rename(target)
        except OSError:
            whole.unlink(missing_ok=True)
            raise

    def _say(self, what: str, error: OSError) -> None:
        if not self._said:
            self._said = True
            log.warning(
                f"state {what}; a restart will read the kernel's rules back instead",
                directory=str(self.path),
                reason=error.strerror or str(error),
            )


class StateFile:
    """One file of a `StateDirectory`."""

    def __init__(self, directory: StateDirectory, name: str) -> None:
        self._directory = directory
        self._name = name

    def read(self) -> bytes | None:
        return self._directory.read(self._name)

    def write(self, content: bytes) -> bool:
        return self._directory.write(self._name, content)
