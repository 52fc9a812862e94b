"""What is known of one family's chains, in memory and over restarts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

import structlog

from pykubeproxy.iptables.custody import Custody
from pykubeproxy.iptables.fingerprints import (
    PRINTLESS,
    Fingerprint,
    Fingerprints,
    chain_mark,
    decode,
    encode,
    rules_mark,
)
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Key,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.observation import (
    KernelChain,
    KernelObjects,
    Trees,
    Verdict,
    fingerprints,
    kernel_objects,
    object_mark,
)
from pykubeproxy.sync.outcome import Applied, Outcome, Rejected, Transaction

__all__ = ["Ledger", "Place", "Snapshot"]

log = structlog.get_logger(__name__)

Members = Mapping[tuple[str, str], Mapping[Key, Rules]]
Snapshot = Sequence[Mapping[Key, Rules]]
"""All that the kernel was given, in parts that nobody changes any more."""

CHANGES_KEPT = 1000
"""At least so many changes are kept one by one before the whole table is made anew instead."""
PRINTS_WORTH_A_READ = 8
"""If of one chain in so many the print is not known, one more read-back pays."""


class Place(Protocol):
    """Where the books are kept over a restart; may lose them at any time."""

    def read(self) -> bytes | None: ...

    def write(self, content: bytes) -> bool: ...


class Ledger:
    """The fingerprints of one family. One thread writes chains; another may learn meanwhile.

    Two different things are known. *Facts*, which stay true: this print means that content. They
    judge a read-back. And the *whole*: that the kernel holds what the table says and nothing
    besides. That is so from a comparison on until somebody else commits (`Custody`).
    """

    def __init__(
        self,
        custody: Custody | None = None,
        place: Place | None = None,
        identity: bytes = b"",
    ) -> None:
        """*identity* is all that must be the same for what is in *place* to count."""
        self.custody = custody or Custody()
        self._place = place
        self._identity = identity
        self._lock = Lock()
        self._writes = 0
        self._table = Fingerprints()
        self._members: Members = {}
        self._accepted: frozenset[tuple[int, int]] = frozenset()
        # Whether the table with the changes is all that was applied; else it is only facts.
        self._is_all = False
        self._changes: dict[int, Fingerprint | None] = {}
        # The shared chains in the table; None: not known which they are.
        self._shared: frozenset[int] | None = None
        self._shared_changed = False
        self._epoch: int | None = None
        self._stored: Fingerprints | None = None
        self._stored_generation: int | None = None
        self._load()

    # --- what is known ---

    @property
    def table(self) -> Fingerprints:
        return self._table

    @property
    def members(self) -> Members:
        """What shared chains hold if they print as known; of this process only."""
        return self._members

    @property
    def accepted(self) -> frozenset[tuple[int, int]]:
        """Prints that were odd when last read."""
        return self._accepted

    @property
    def writes(self) -> int:
        """How many transactions were begun."""
        return self._writes

    def is_whole(self, epoch: int | None = None) -> bool:
        """Tell whether nobody else changed anything since all was compared, until *epoch* (now)."""
        until = self.custody.epoch() if epoch is None else epoch
        return self._epoch is not None and until == self._epoch

    @property
    def lacks_prints(self) -> bool:
        """Tell whether so few prints are known that one more read-back pays."""
        size = len(self._table)
        return not size or self._table.without_print * PRINTS_WORTH_A_READ > size

    # --- changes by us ---

    @contextmanager
    def writing(self, transaction: Transaction[Key, Rules]) -> Iterator[list[Outcome]]:
        """Around all runs for *transaction*; the outcome is to be put into the list."""
        outcomes: list[Outcome] = []
        commits = self.custody.commits
        with self._lock:
            self._writes += 1
        yield outcomes
        with self._lock:
            match outcomes:
                case [Applied()]:
                    self._note(transaction)
                case [Rejected()] if commits == self.custody.commits:
                    pass
                case _:  # some of it may be there
                    self._is_all, self._epoch = False, None

    # --- comparisons ---

    def presume(self) -> bool:
        """Tell whether the kernel is as it was when the books were stored; if so, begin there."""
        epoch = self.custody.epoch()
        generation = self.custody.generation(epoch)
        if generation is None or generation != self._stored_generation:
            return False
        with self._lock:
            self._epoch, self._is_all = epoch, True
            self._changes.clear()
        return True

    def observed(self, epoch: int | None) -> None:
        """Note that all is being compared with a read-back: of *epoch*, if of a single one."""
        with self._lock:
            self._epoch, self._is_all = epoch, False
            self._changes.clear()

    def learnt(self, writes: int, found: Verdict, epoch: int | None) -> bool:
        """Take over what a read-back told; nothing of it if a transaction was begun meanwhile."""
        table = Fingerprints(found.rows())
        with self._lock:
            if writes != self._writes:
                return False
            self._table, self._members, self._accepted = table, found.members, found.odd
            self._is_all = not found.wrong
            self._changes.clear()
            self._shared, self._shared_changed = found.shared, False
            self._epoch = None if found.wrong else epoch
        return True

    def fold(self, writes: int, applied: Snapshot, trees: Trees) -> bool:
        """Bring the table to *applied*; ``False`` if a transaction was begun meanwhile.

        Costs follow what changed: 0.1 s for 60,000 chains where shared ones did, 0.3 s after a
        comparison, else 30 ms.
        """
        with self._lock:
            if writes != self._writes:
                return False
            table, changes, is_all = self._table, dict(self._changes), self._is_all
            before, shared_changed = self._shared, self._shared_changed
        shared: frozenset[int] | None
        if is_all and not changes and not shared_changed:
            return True
        if not is_all or (shared_changed and before is None):
            expected = kernel_objects(applied, trees)
            shared = _marks(_shared_of(expected))
            table = Fingerprints(fingerprints(expected, table))
        else:
            shared = before
            if shared_changed and before is not None:
                now = {
                    chain_mark(*name): Fingerprint(chain.content, 0)
                    for name, chain in _shared_of(kernel_objects(applied, trees)).items()
                }
                changes |= dict.fromkeys(before - now.keys()) | now
                shared = frozenset(now)
            table = table.changed(changes)
        with self._lock:
            if writes != self._writes:
                return False
            self._table, self._is_all = table, True
            self._changes.clear()
            self._shared, self._shared_changed = shared, False
        return True

    # --- keeping ---

    def store(self, writes: int) -> None:
        """Put it where a restart finds it, unless it is there already."""
        with self._lock:
            table, is_all = self._table, self._is_all
        generation = self.custody.generation(self._epoch) if is_all else None
        # Begun after the table was made, a transaction may be in the generation.
        if self._place is None or writes != self._writes:
            return
        if table is self._stored and generation in (None, self._stored_generation):
            return
        if self._place.write(encode(self._identity, generation, table)):
            self._stored, self._stored_generation = table, generation

    def _load(self) -> None:
        content = self._place.read() if self._place else None
        if content is None:
            return
        try:
            self._stored_generation, self._table = decode(self._identity, content)
        except ValueError as error:
            log.info("fingerprints of an earlier run not used", reason=str(error))
        else:
            self._stored = self._table

    def _note(self, transaction: Transaction[Key, Rules]) -> None:
        if not self._is_all:
            return  # the table is made anew from all that was applied
        for change in transaction.changes:
            for key in change.drop:
                self._note_one(key, None)
            for key, rules in change.put.items():
                self._note_one(key, rules)
        if len(self._changes) > max(CHANGES_KEPT, len(self._table)):
            # As long as it is never quiet, nobody folds them in.
            self._changes.clear()
            self._is_all = False

    def _note_one(self, key: Key, rules: Rules | None) -> None:
        match key:
            case Chain() | Jump() | Presence():
                printed = 0 if isinstance(key, Chain) else PRINTLESS
                new = None if rules is None else Fingerprint(rules_mark(rules), printed)
                self._changes[object_mark(key)] = new
            case SharedChain() | DispatchRule() | TailRule():
                self._shared_changed = True


def _shared_of(expected: KernelObjects) -> dict[tuple[str, str], KernelChain]:
    return {name: chain for name, chain in expected.chains.items() if chain.is_shared}


def _marks(chains: Iterable[tuple[str, str]]) -> frozenset[int]:
    return frozenset(chain_mark(table, name) for table, name in chains)
