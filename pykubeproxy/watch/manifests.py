"""Objects from a directory of YAML and JSON files, followed with inotify.

Reads the ``.yaml``, ``.yml`` and ``.json`` files of the directory itself: hidden files and
subdirectories are left out (a projected ConfigMap's ``..data`` among them; its files are seen
through their symlinks). A file is read when its writer closes it or it is moved in, so a half
written one is not seen. Files are ordered by name: of two that define an object the first wins.

A file that cannot be read keeps its last good content, and so does one that was read before and
now is empty (nothing in it, or only comments): that is what an editor leaves for a moment when it
writes in place. To remove its objects, delete the file or write a List without items.

Where the kernel has no inotify instance or watch left for us, the directory is looked at twice a
second instead, and a file is read when two looks in a row find it the same.

Where the directory itself goes away, everything stays as it was until it is back: that is lost
contact, not a deletion.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import structlog
from inotify_simple import Event as Notice
from inotify_simple import INotify, flags
from msgspec import structs

from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, WireObject
from pykubeproxy.watch.manifest_files import FileContent, Loaded, Problem, is_wanted, parse
from pykubeproxy.watch.source import Gone, Put, Replaced, Sink

__all__ = ["Catalog", "ManifestSource"]

log = structlog.get_logger(__name__)

SUFFIXES = (".yaml", ".yml", ".json")
# Where inotify cannot tell: DIR is a symlink that was redirected, is missing, or has no watch.
CHECK_MILLISECONDS = 500
RETRY_INOTIFY_SECONDS = 30.0
_FLAGS = (
    flags.CLOSE_WRITE
    | flags.MOVED_TO
    | flags.MOVED_FROM
    | flags.DELETE
    | flags.CREATE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
)
_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED | flags.UNMOUNT

_Id = tuple[Kind, ObjectKey]


class Catalog:
    """What the files together say. No I/O but logging, so that its rules can be tested bare."""

    def __init__(self, node_name: str) -> None:
        self._node_name = node_name
        self._files: dict[str, dict[_Id, Loaded]] = {}
        self._unreadable: dict[str, frozenset[_Id]] = {}
        self._current: dict[_Id, WireObject] = {}
        self._told: dict[str, frozenset[str]] = {}
        self._told_shadows: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """The files that are known."""
        return frozenset(self._files)

    def load(self, name: str, content: FileContent) -> None:
        """Take over a file; whatever is broken in it keeps its last good value."""
        before = self._files.get(name, {})
        if content.empty and (before or self._unreadable.get(name)):
            text = "nothing is in it; to remove its objects, delete the file"
            self._tell(name, [("file empty, kept as it was", Problem(1, text))], {})
            return
        if content.broken is not None:
            self._tell(name, [("file broken, kept as it was", content.broken)], {})
            self._files[name] = before
            return
        after: dict[_Id, Loaded] = {}
        problems = [("object unreadable, kept as it was", one) for one in content.problems]
        for loaded in content.objects:
            identity = (loaded.kind, loaded.key)
            if identity in after:
                text = f"{loaded.kind} {loaded.key} is defined twice; the first one counts"
                problems.append(("object defined twice", Problem(loaded.line, text)))
            else:
                after[identity] = loaded
        bad = frozenset(
            (one.kind, one.key) for one in content.problems if one.kind and one.key
        ) - frozenset(after)
        after |= {identity: before[identity] for identity in bad if identity in before}
        self._unreadable[name] = bad
        self._files[name] = after
        self._tell(name, problems, {f"{s.what}": s.line for s in content.skipped})

    def forget(self, name: str) -> None:
        """The file is gone, and so is what only it defined."""
        self._files.pop(name, None)
        self._unreadable.pop(name, None)
        self._told.pop(name, None)

    def replaced(self, kinds: Iterable[Kind]) -> list[Replaced]:
        """Everything, as first listings; `changes` counts from here."""
        self._current = self._merged()
        unreadable = frozenset[_Id]().union(*self._unreadable.values()) - frozenset(self._current)
        return [
            Replaced(
                kind,
                tuple(_given(obj) for (one, _), obj in self._current.items() if one is kind),
                frozenset(key for one, key in unreadable if one is kind),
            )
            for kind in sorted(kinds)
        ]

    def changes(self) -> list[Put | Gone]:
        """What differs from the last call of this or `replaced`."""
        before, after = self._current, self._merged()
        self._current = after
        gone = [Gone(kind, key) for kind, key in before if (kind, key) not in after]
        put = [
            Put(identity[0], _given(obj))
            for identity, obj in after.items()
            if before.get(identity) != obj
        ]
        return [*gone, *put]

    def _merged(self) -> dict[_Id, WireObject]:
        owners: dict[_Id, str] = {}
        merged: dict[_Id, WireObject] = {}
        shadows: set[str] = set()
        for name in sorted(self._files):
            for identity, loaded in self._files[name].items():
                if identity in owners:
                    kind, key = identity
                    shadow = f"{kind} {key} of {name}:{loaded.line}"
                    shadows.add(shadow)
                    if shadow not in self._told_shadows:
                        log.warning(
                            "object defined in two files, the first counts",
                            kind=str(kind),
                            object=str(key),
                            used=owners[identity],
                            ignored=f"{name}:{loaded.line}",
                        )
                    continue
                owners[identity] = name
                if is_wanted(loaded, self._node_name):
                    merged[identity] = loaded.object
        self._told_shadows = frozenset(shadows)
        return merged

    def _tell(
        self, name: str, problems: list[tuple[str, Problem]], skipped: dict[str, int]
    ) -> None:
        """Log what was not logged at the last reading of this file."""
        told = self._told.get(name, frozenset())
        for event, problem in problems:
            if problem.text not in told:
                log.warning(event, place=f"{name}:{problem.line}", reason=problem.text)
        for what, line in skipped.items():
            if what not in told:
                log.info("kind not used by a proxy", place=f"{name}:{line}", kind=what)
        self._told[name] = frozenset(problem.text for _, problem in problems) | frozenset(skipped)


class ManifestSource:
    """A `Source` that reads a directory; of its Nodes only *node_name* is delivered."""

    def __init__(self, directory: Path, node_name: str) -> None:
        """*directory* need not exist yet: nothing is delivered until it does."""
        self.kinds = frozenset(Kind)
        self._directory = directory
        self._catalog = Catalog(node_name)
        self._signatures: dict[str, tuple[int, ...]] = {}
        self._delivered = False
        self._missing = False
        self._watching = True
        self._unsettled: dict[str, tuple[int, ...]] = {}
        self._stopping = threading.Event()
        self._wake_read = self._wake_write = -1
        self._thread: threading.Thread | None = None

    def start(self, sink: Sink) -> None:
        """Begin delivering to *sink*; the first reading is done on the new thread too."""
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(sink,), name="manifests")
        self._thread.daemon = True
        self._thread.start()

    def stop(self) -> None:
        """End the thread; returns when it is gone."""
        if self._thread is None:
            return
        self._stopping.set()
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._thread = None

    def _run(self, sink: Sink) -> None:
        while not self._stopping.is_set():
            with ExitStack() as stack:
                try:
                    # Watched before it is read, so that no change falls between the two.
                    inotify = self._watch(stack)
                    identity = self._identity()
                    self._scan(frozenset(), settled=inotify is None and self._delivered)
                except OSError as error:
                    self._report_missing(error)
                    self._sleep(None)
                    continue
                self._deliver(sink)
                if inotify is None:
                    self._look(identity, sink)
                else:
                    self._follow(inotify, identity, sink)

    def _watch(self, stack: ExitStack) -> INotify | None:
        """Watch the directory; ``None`` where the kernel has nothing left to watch it with."""
        try:
            inotify = stack.enter_context(INotify())
        except OSError as error:
            self._report_unwatched(error)
            return None
        try:
            inotify.add_watch(self._directory, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            self._report_unwatched(error)
            return None
        if not self._watching:
            log.info("manifest directory watched again", directory=str(self._directory))
            self._watching = True
        return inotify

    def _look(self, identity: tuple[int, int], sink: Sink) -> None:
        """Do without inotify, until it is time to try it again or the directory is another one."""
        until = time.monotonic() + RETRY_INOTIFY_SECONDS
        while not self._stopping.is_set() and time.monotonic() < until:
            self._sleep(None)
            try:
                if self._identity() != identity:
                    return
                self._scan(frozenset(), settled=True)
            except OSError:
                return
            self._deliver(sink)

    def _follow(self, inotify: INotify, identity: tuple[int, int], sink: Sink) -> None:
        """Apply notices until the directory is another one, or it is time to stop."""
        while not self._stopping.is_set():
            ready = self._sleep(inotify)
            try:
                if self._identity() != identity:
                    return
            except OSError:
                return
            if not ready:
                continue
            notices = inotify.read(timeout=0)
            if any(notice.mask & _GONE for notice in notices):
                return
            try:
                self._apply(notices)
            except OSError:
                return  # the directory vanished in between; look again from the start
            self._deliver(sink)

    def _apply(self, notices: list[Notice]) -> None:
        names = {notice.name for notice in notices if self._is_news(notice)}
        overflow = any(notice.mask & flags.Q_OVERFLOW for notice in notices)
        # ConfigMap volumes: files are links through `..data`, and only that link is replaced.
        swapped = any(name.startswith("..") for name in names)
        if overflow or swapped:
            self._scan(frozenset(names))
            return
        for name in sorted(names):
            if _is_manifest(name):
                self._read(name)

    def _is_news(self, notice: Notice) -> bool:
        """Whether the named file is complete: a CREATE alone is only the start of writing one."""
        if not notice.mask & flags.CREATE:
            return True
        try:
            status = os.lstat(self._directory / notice.name)
        except OSError:
            return True
        return os.path.islink(self._directory / notice.name) or status.st_nlink > 1

    def _scan(self, certain: frozenset[str], *, settled: bool = False) -> None:
        """Read what differs by size, time or inode, or is in *certain*; forget what is gone.

        With *settled*, what differs also from the last scan is left to the next one: it is still
        being written.
        """
        present = {name for name in os.listdir(self._directory) if _is_manifest(name)}
        for name in self._catalog.names - present:
            self._forget(name)
        for name in sorted(present):
            signature = self._signature(name)
            if name not in certain and self._signatures.get(name) == signature:
                self._unsettled.pop(name, None)
            elif settled and self._unsettled.get(name) != signature:
                self._unsettled[name] = signature
            else:
                self._unsettled.pop(name, None)
                self._read(name)

    def _read(self, name: str) -> None:
        path = self._directory / name
        signature = self._signature(name)
        if not signature:
            self._forget(name)
            return
        try:
            content = parse(path.read_text("utf-8"), is_json=name.endswith(".json"))
        except FileNotFoundError:
            self._forget(name)
            return
        except (OSError, UnicodeDecodeError) as error:
            content = FileContent(broken=Problem(1, f"cannot be read: {error}"))
        self._signatures[name] = signature
        self._catalog.load(name, content)

    def _forget(self, name: str) -> None:
        self._signatures.pop(name, None)
        self._unsettled.pop(name, None)
        self._catalog.forget(name)

    def _signature(self, name: str) -> tuple[int, ...]:
        """What changes when a file does; empty for what is no file."""
        path = self._directory / name
        try:
            status = path.stat()
        except OSError:
            return ()
        if not path.is_file():
            return ()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def _deliver(self, sink: Sink) -> None:
        if self._missing:
            log.info("manifest directory is there", directory=str(self._directory))
            self._missing = False
        if self._delivered:
            for change in self._catalog.changes():
                sink.put(change)
            return
        for listing in self._catalog.replaced(self.kinds):
            sink.put(listing)
        self._delivered = True
        count = len(self._catalog.names)
        log.info("manifests read", directory=str(self._directory), files=count)

    def _identity(self) -> tuple[int, int]:
        status = os.stat(self._directory)
        return status.st_dev, status.st_ino

    def _report_missing(self, error: OSError) -> None:
        if not self._missing:
            self._missing = True
            reason = f"{error.strerror}; everything stays as it is until the directory is there"
            log.warning("manifest directory lost", directory=str(self._directory), reason=reason)

    def _report_unwatched(self, error: OSError) -> None:
        if self._watching:
            self._watching = False
            log.warning(
                "manifest directory not watched, looked at twice a second",
                directory=str(self._directory),
                reason=f"inotify: {error.strerror}; raise the sysctl fs.inotify.max_user_instances "
                "or fs.inotify.max_user_watches (or this process's limit of open files)",
            )

    def _sleep(self, inotify: INotify | None) -> bool:
        """Wait for a notice, a stop, or the time to look again; return whether notices are in."""
        poll = select.poll()
        if inotify is not None:
            poll.register(inotify.fileno(), select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        ready = poll.poll(CHECK_MILLISECONDS)
        return any(descriptor != self._wake_read for descriptor, _ in ready)


def _given(obj: WireObject) -> WireObject:
    """*obj* to give away, if need be a copy: whoever gets a slice takes its annotations out."""
    if isinstance(obj, EndpointSlice) and obj.metadata.annotations is not None:
        return structs.replace(obj, metadata=structs.replace(obj.metadata))
    return obj


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")
