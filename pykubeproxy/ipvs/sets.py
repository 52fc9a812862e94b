"""Effects on ipsets: create, fill, empty and read back, many entries in one message."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.host.netlink import Netlink, Request, reason
from pykubeproxy.ipvs.messages import (
    ENTRIES_PER_MESSAGE,
    SetHeader,
    add_entries,
    create_set,
    decode_listing,
    del_entries,
    destroy_set,
    list_headers,
    list_set,
    refused_line,
    set_error,
)
from pykubeproxy.ipvs.names import SETS, set_name
from pykubeproxy.ipvs.objects import IPSet, Key, Present, SetEntry, SetType, Value
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Outcome, Partly, Transaction, Unknown

__all__ = ["Sets", "SetsObservation"]

log = structlog.get_logger(__name__)

Item = tuple[ServiceKey, SetEntry]


class Job(NamedTuple):
    """A request, and the entries it carries or the set it is about."""

    request: Request
    adds: bool
    set_name: str
    items: Sequence[Item] = ()
    owner: ServiceKey | None = None


class SetsObservation:
    def __init__(self, headers: dict[str, SetHeader], entries: dict[str, set[str]]) -> None:
        self._headers = headers
        self._entries = entries

    def holds(self, key: IPSet | SetEntry, value: Value) -> bool:
        if isinstance(key, SetEntry):
            return key.entry in self._entries.get(key.set, ())
        header = self._headers.get(key.name)
        return header is not None and isinstance(value, SetType) and header.type == value.type

    def strays(self, wanted: set[Key]) -> dict[Key, Value]:
        found: dict[Key, Value] = {}
        for name, entries in self._entries.items():
            keys = (SetEntry(name, entry) for entry in entries)
            found.update((key, Present()) for key in keys if key not in wanted)
        return found


class Sets:
    """The sets of one family. Not safe for several threads; *channel* is of nfnetlink."""

    def __init__(self, family: Family, channel: Netlink) -> None:
        self._family = family
        self._channel = channel
        self._types = {set_name(name, family): kind.type for name, kind in SETS.items()}
        self._misfits: set[str] = set()  # of our names, but of another type or family
        self._counts: dict[str, int] = {}
        self._touched: set[str] = set()

    def observe(self) -> SetsObservation:
        """Raises HostError."""
        headers: dict[str, SetHeader] = {}
        entries: dict[str, set[str]] = {}
        self._misfits = set()
        for name in self._types:
            try:
                for data, start, end in self._channel.dump(*list_set(name)):
                    listing = decode_listing(data, start, end)
                    if listing.header is not None and not self._fits(name, listing.header):
                        self._misfits.add(name)
                    if name in self._misfits:
                        continue
                    if listing.header is not None:
                        headers[name] = listing.header
                    entries.setdefault(name, set()).update(listing.entries)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise HostError(f"listing ipset {name}: {_reason(error)}") from error
            except ValueError as error:
                raise HostError(f"listing ipset {name}: {error}") from error
        self._counts = {name: len(entries[name]) for name in entries}
        return SetsObservation(headers, entries)

    def _fits(self, name: str, header: SetHeader) -> bool:
        return header.type == self._types.get(name) and header.family in (self._family, None)

    def look(self, channel: Netlink | None = None) -> Callable[[], bool]:
        """Prepare for a look at the sets, made by calling the result, on any thread.

        It tells whether every set is there, of its type and with as many entries as were written;
        what is written to meanwhile does not count. On another thread it needs a *channel* of its
        own.
        """
        counts = dict(self._counts)
        touched = self._touched = set()

        def intact() -> bool:
            found: dict[str, int | None] = {}
            try:
                for data, start, end in (channel or self._channel).dump(*list_headers()):
                    listing = decode_listing(data, start, end)
                    if listing.header is not None and self._fits(listing.set, listing.header):
                        found[listing.set] = listing.header.elements
            except (OSError, ValueError) as error:
                log.warning("ipsets not looked at", reason=_reason(error))
                return True
            return all(
                name in touched or (name in found and found[name] in (None, count))
                for name, count in counts.items()
            )

        return intact

    def apply(self, transaction: Transaction[Key, Value]) -> Outcome:
        jobs = _jobs(transaction, self._family, self._misfits)
        self._touched.update(job.set_name for job in jobs)  # before it is done: see `look`
        refused: dict[ServiceKey, str] = {}
        failed: set[tuple[ServiceKey, Key]] = set()
        refused_sets: set[str] = set()
        sent = size = 0
        try:
            while jobs:
                refusals = self._channel.refusals([job.request for job in jobs])
                sent += len(jobs)
                size += sum(len(job.request[2]) for job in jobs)
                again: list[Job] = []
                for at, refusal in refusals.items():
                    job = jobs[at]
                    if refusal.errno == errno.ENOENT:
                        if not job.adds:
                            continue  # it is gone, and its entries with it
                        if job.set_name not in refused_sets:
                            return Unknown(f"ipset {job.set_name} is gone, somebody destroyed it")
                    line = refused_line(refusal.body) if job.items else None
                    culprits = job.items if line is None else job.items[line : line + 1]
                    set_type = self._types.get(job.set_name, "")
                    detail = _reason(OSError(refusal.errno, "refused"), set_type)
                    for owner, key in culprits:
                        refused.setdefault(owner, f"{key}: {detail}")
                        failed.add((owner, key))
                    if job.owner is not None:
                        refused_sets.add(job.set_name)
                        refused[job.owner] = f"ipset {job.set_name}: {detail}"
                        failed.add((job.owner, IPSet(job.set_name)))
                    if line is not None and line + 1 < len(job.items):
                        again.append(_entries_job(job.set_name, job.items[line + 1 :], job.adds))
                jobs = again
        except OSError as error:
            return Unknown(f"writing ipsets: {_reason(error)}")
        applied = Applied(sent, size, sent)
        landed = transaction.without(failed) if failed else transaction
        self._count(landed)
        return Partly(landed, refused, applied) if refused else applied

    def _count(self, landed: Transaction[Key, Value]) -> None:
        for change in landed.changes:
            for key in change.put:
                if isinstance(key, IPSet):
                    self._counts.setdefault(key.name, 0)
                    self._misfits.discard(key.name)
                elif isinstance(key, SetEntry) and key not in change.old:
                    self._counts[key.set] = self._counts.get(key.set, 0) + 1
            for key in change.drop:
                if isinstance(key, SetEntry):
                    self._counts[key.set] = self._counts.get(key.set, 0) - 1
                elif isinstance(key, IPSet):
                    self._counts.pop(key.name, None)


def _jobs(
    transaction: Transaction[Key, Value], family: Family, misfits: Collection[str]
) -> list[Job]:
    """Sets that come, entries that come, entries that go, sets that go."""
    coming: list[Job] = []
    going: list[Job] = []
    adds: dict[str, list[Item]] = defaultdict(list)
    drops: dict[str, list[Item]] = defaultdict(list)
    for change in transaction.changes:
        for key, value in change.put.items():
            if isinstance(key, IPSet):
                assert isinstance(value, SetType)
                if key.name in misfits:
                    # Where a rule asks it, it stays, and that is what the refusal says.
                    coming.append(Job(destroy_set(key.name), False, key.name))
                request = create_set(key.name, value.type, family)
                coming.append(Job(request, True, key.name, owner=change.owner))
            elif isinstance(key, SetEntry):
                adds[key.set].append((change.owner, key))
        for key in change.drop:
            if isinstance(key, IPSet):
                going.append(Job(destroy_set(key.name), False, key.name, owner=change.owner))
            elif isinstance(key, SetEntry):
                drops[key.set].append((change.owner, key))
    for by_set, adding in ((adds, True), (drops, False)):
        for name, items in by_set.items():
            for start in range(0, len(items), ENTRIES_PER_MESSAGE):
                part = items[start : start + ENTRIES_PER_MESSAGE]
                coming.append(_entries_job(name, part, adding))
    return coming + going


def _entries_job(name: str, items: Sequence[Item], adds: bool) -> Job:
    encode = add_entries if adds else del_entries
    return Job(encode(name, [key.entry for _, key in items]), adds, name, items)


def _reason(error: Exception, set_type: str = "") -> str:
    """Like `reason`, in the words of ipset, which has errors of its own."""
    if isinstance(error, OSError) and error.errno and error.errno != errno.EPERM:
        return set_error(error.errno, set_type)
    return reason(error)
