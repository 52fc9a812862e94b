"""Follows one file, however it is replaced: written in place, renamed over, or behind symlinks.

kubelet replaces a ConfigMap's files by redirecting one symlink, ``..data``, beside them: nothing
happens to the file itself. So every directory is watched that the path leads through, symlinks
resolved one by one, and each for the one name that matters in it.

What happened is not believed; the file is read, and what counts is that its text is another one.
A file that is missing or empty is mostly on its way to something else, so it is waited for, and
reported only if it stays like that.

What inotify cannot see is a file system mounted over the path, and kubelet never updates a
ConfigMap that is mounted with ``subPath``.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from enum import Enum
from hashlib import sha256
from pathlib import Path

import structlog
from inotify_simple import INotify, flags

__all__ = ["ConfigFile", "way_to"]

log = structlog.get_logger(__name__)

QUIET_SECONDS = 0.1
"""A writer that writes in pieces pauses for less than this."""
PATIENCE_SECONDS = 3.0
"""How long a file may be missing or empty before that is taken for what it is to be."""
RETRY_SECONDS = 30.0
"""How often the file is looked at while the kernel has no inotify instance or watch left."""
MAX_LINKS = 40
"""As the kernel: more symlinks on the way are a loop."""
_FLAGS = (
    flags.CLOSE_WRITE
    | flags.MODIFY
    | flags.ATTRIB
    | flags.CREATE
    | flags.DELETE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_ABOUT_THE_DIRECTORY = (
    flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT | flags.Q_OVERFLOW
)


class ConfigFile:
    """Calls *on_change* with the text of the file at *path* whenever it has become another one.

    *text* is the text that is known. The calls come from a thread of its own, one at a time.
    """

    def __init__(self, path: Path, text: str, on_change: Callable[[str], None]) -> None:
        # Absolute without resolving anything: the way is looked up again after each change.
        self._path = Path(os.path.abspath(path))
        self._digest = _digest(text)
        self._on_change = on_change
        self._unwatched = False
        self._unreadable = ""
        self._wake_read = self._wake_write = -1
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow; a change since *text* was read is found too."""
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="config-file", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it is gone."""
        if self._thread is None:
            return
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._thread = None

    def _run(self) -> None:
        heard: _Heard | None = None
        missing_since: float | None = None
        while heard is not _Heard.STOP:
            with ExitStack() as stack:
                # Watched before it is read, so that no change falls between the two.
                watches = self._watch(stack)
                text, reason = self._read()
                left: float | None = None
                if text:
                    missing_since = None
                    self._tell(text)
                else:
                    missing_since = missing_since or time.monotonic()
                    left = missing_since + PATIENCE_SECONDS - time.monotonic()
                    if left <= 0:
                        left = None
                        self._tell_missing(text, reason)
                heard = self._wait(watches, left)
                # A writer in the middle of its work; who never pauses is looked at in between.
                until = time.monotonic() + PATIENCE_SECONDS
                while heard is _Heard.NEWS and time.monotonic() < until:
                    heard = self._wait(watches, QUIET_SECONDS)

    def _watch(self, stack: ExitStack) -> _Watches | None:
        """Watch the way to the file; ``None`` where the kernel has nothing left to do it with."""
        try:
            watches = _Watches(stack)
            way = None
            while way != (way := way_to(self._path)):  # it may have changed under our hands
                watches.add(way)
        except OSError as error:
            self._report_unwatched(error)
            return None
        if self._unwatched:
            log.info("configuration file watched again", path=str(self._path))
            self._unwatched = False
        return watches

    def _wait(self, watches: _Watches | None, seconds: float | None) -> _Heard:
        """Wait at most *seconds* for news of the file, or for the end."""
        if watches is None:
            seconds = RETRY_SECONDS if seconds is None else seconds
        until = None if seconds is None else time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if watches is not None:
            poll.register(watches.fileno(), select.POLLIN)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = [number for number, _ in poll.poll(None if left is None else left * 1000)]
            if self._wake_read in ready:
                return _Heard.STOP
            if not ready:
                return _Heard.NOTHING
            if watches is not None and watches.have_news():
                return _Heard.NEWS

    def _tell(self, text: str) -> None:
        if self._unreadable:
            log.info("configuration file is there again", path=str(self._path))
            self._unreadable = ""
        digest = _digest(text)
        if digest != self._digest:
            self._digest = digest
            self._on_change(text)

    def _tell_missing(self, text: str | None, reason: str) -> None:
        if text is not None:
            self._tell(text)
        elif reason != self._unreadable:
            self._unreadable = reason
            log.error(
                "configuration file lost, the old configuration stays",
                path=str(self._path),
                reason=reason,
            )

    def _read(self) -> tuple[str | None, str]:
        """Return the text, or ``None`` and why there is none."""
        try:
            return self._path.read_text(encoding="utf-8-sig"), ""
        except OSError as error:
            return None, str(error.strerror)
        except ValueError as error:
            return None, str(error)

    def _report_unwatched(self, error: OSError) -> None:
        if not self._unwatched:
            self._unwatched = True
            log.warning(
                "configuration file not watched, looked at every 30 s",
                path=str(self._path),
                reason=f"inotify: {error.strerror}; raise the sysctl fs.inotify.max_user_instances "
                "or fs.inotify.max_user_watches (or this process's limit of open files)",
            )


class _Heard(Enum):
    """What a wait ended with."""

    STOP = "stop"
    NEWS = "news"
    NOTHING = "nothing"


class _Watches:
    """Watched directories, each for the names that matter in it."""

    def __init__(self, stack: ExitStack) -> None:
        self._inotify = stack.enter_context(INotify())
        self._names: dict[int, set[str]] = {}

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    def add(self, way: list[tuple[str, str]]) -> None:
        for directory, name in way:
            try:
                watch = self._inotify.add_watch(directory, _FLAGS)
            except (FileNotFoundError, NotADirectoryError, PermissionError):
                continue  # gone meanwhile, or not ours to see
            self._names.setdefault(watch, set()).add(name)

    def have_news(self) -> bool:
        """Read what the kernel says; whether it may be about the file."""
        return any(
            event.mask & _ABOUT_THE_DIRECTORY or event.name in self._names.get(event.wd, ())
            for event in list(self._inotify.read(timeout=0))
        )


def way_to(path: Path) -> list[tuple[str, str]]:
    """Return the directories that the absolute *path* leads through, each with the name to see.

    Symlinks are followed one by one, so that also those within targets are on the list; it ends
    where something is missing.
    """
    way: list[tuple[str, str]] = []
    place, rest, links = "/", list(reversed(path.parts[1:])), 0
    while rest:
        name = rest.pop()
        if name in ("", "."):
            continue
        if name == "..":
            place = os.path.dirname(place)
            continue
        if (place, name) not in way:
            way.append((place, name))
        below = os.path.join(place, name)
        try:
            target = os.readlink(below)
        except OSError:  # no link, or nothing at all
            place = below
            continue
        links += 1
        if links > MAX_LINKS:
            break
        if target.startswith("/"):
            place = "/"
        rest += reversed(target.split("/"))
    return way


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()
