"""Effects of the iptables backend: run the tools, read back, probe, clean up."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Event

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.host.exec import (
    Finished,
    Input,
    Killed,
    NotStarted,
    Result,
    Stream,
    TimedOut,
    run,
)
from pykubeproxy.iptables.index import Edit, Indexes, Sizes
from pykubeproxy.iptables.ledger import Ledger
from pykubeproxy.iptables.listing import Listing
from pykubeproxy.iptables.names import CANARY, PROBE
from pykubeproxy.iptables.objects import Chain, Key, Rules
from pykubeproxy.iptables.observation import XtablesObservation, verdict
from pykubeproxy.iptables.render import (
    TABLES,
    Script,
    batch_size,
    leaf_chains,
    plan,
    scripts,
)
from pykubeproxy.iptables.tools import (
    LOCK_SECONDS,
    SavedTable,
    Tools,
    is_busy,
    is_locked,
    parse_saved,
    refused_line,
)
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import (
    BASE,
    Applied,
    Change,
    Outcome,
    Rejected,
    Transaction,
    Unknown,
)

__all__ = ["Runner", "XtablesDataplane", "describe", "read_tables"]

log = structlog.get_logger(__name__)

QUICK_SECONDS = 60.0
"""Limit for tools that answer at once unless something is wrong."""
SECONDS_PER_LINE = 0.002
"""Added to the limit of a restore run: far above the slowest measured (0.3 ms a line, nf_tables,
one transaction of 60 000 chains)."""
CANARY_POLL_SECONDS = 0.1
CANARY_POLLS = 50
AHEAD_SECONDS = 10.0
"""How long what was read ahead counts where the kernel does not tell whether it changed."""
BUSY_TRIES = 5
BUSY_PAUSE_SECONDS = 0.01


Runner = Callable[[Sequence[str], Input | None, float], Result]
"""How programs are started: `pykubeproxy.host.exec.run`, or a fake of the tools."""


class XtablesDataplane:
    """The `pykubeproxy.sync.outcome.Dataplane` for one family of one iptables variant.

    One thread writes; what `learn` returns may run on another. *on_wait* hears how many seconds a
    transaction has waited for the xtables lock so far; *stop* ends such a wait.
    """

    def __init__(
        self,
        tools: Tools,
        on_wait: Callable[[float], None],
        stop: Event,
        runner: Runner = run,
        chains_per_transaction: int | None = None,
        sizes: Sizes | None = None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """*sizes*: when a shared chain is a tree."""
        self._tools = tools
        self._on_wait = on_wait
        self._stop = stop
        self._run = runner
        self._chains_per_transaction = chains_per_transaction
        self._indexes = Indexes(tools.family, sizes or Sizes())
        self._ledger = ledger or Ledger()
        self._clock = clock
        self._begins = True
        self._ahead: Future[tuple[Listing, int | None, float]] | None = None

    # --- reading ---

    @property
    def writes(self) -> int:
        """How many transactions were begun."""
        return self._ledger.writes

    def read_ahead(self, beside: Callable[[Callable[[], None]], None]) -> None:
        """Have the rules read *beside* what else happens at the start, if they must be read."""
        if self._ledger.presume():
            return
        ahead: Future[tuple[Listing, int | None, float]] = Future()
        self._ahead = ahead

        def read() -> None:
            try:
                ahead.set_result((*self._list(), self._clock()))
            except BaseException as error:
                ahead.set_exception(error)

        beside(read)

    def observe(self) -> XtablesObservation:
        begins, self._begins = self._begins, False
        # The canary tells whether nf_tables forgot everything, and their count with it.
        is_as_left = begins and self._ledger.presume() and self._has_canary("mangle")
        listing = None if is_as_left else self._read_back()
        return XtablesObservation(
            listing,
            self._ledger.table,
            self._ledger.members,
            self._has_rule,
            self._tools.family,
            self._read_back,
            self._indexes,
        )

    def learn(
        self, applied: Sequence[Mapping[Key, Rules]], *, anew: bool = True
    ) -> Callable[[], bool | None]:
        return partial(self._learn, self._ledger.writes, applied, anew)

    def _learn(
        self, writes: int, applied: Sequence[Mapping[Key, Rules]], anew: bool
    ) -> bool | None:
        """Bring the books to *applied*, after a read-back if one is called for.

        Two things call for one: that many prints are not known, so that a later one would have
        to compare text; and *anew*, unless it is known that nobody else wrote since the last.
        """
        ledger = self._ledger
        # Before the first read-back there is nothing to start from, which is the same work.
        knows = len(ledger.table) > 0 or self._stop.is_set()
        if knows and not ledger.fold(writes, applied, self._indexes.in_kernel):
            return None
        wrong: list[str] = []
        must = ledger.lacks_prints or (anew and not ledger.is_whole())
        if must and not self._stop.is_set():
            listing, epoch = self._list()
            found = verdict(
                self._compared_with(listing),
                listing,
                applied,
                self._indexes.in_kernel,
                known=ledger.table,
                is_ours=epoch is not None and ledger.is_whole(epoch),
                accepted=ledger.accepted,
            )
            if not ledger.learnt(writes, found, epoch):
                return None
            wrong = found.wrong
        if wrong:
            log.info("not as written", family=str(self._tools.family), what=", ".join(wrong[:5]))
            return False
        ledger.store(writes)
        return True

    def intact(self) -> bool:
        """Tell whether our chains are still there, by the canaries (cheap at any size).

        Gone in one table, they are waited for to go in the others: whoever flushes should be
        done before everything is written again. A locked or failing tool tells nothing.
        """
        if self._has_canary("mangle"):
            return True
        for _ in range(CANARY_POLLS):
            if not self._has_canary("nat") and not self._has_canary("filter"):
                break
            if self._stop.wait(CANARY_POLL_SECONDS):
                return True
        else:
            log.warning(
                "only part of the iptables tables was flushed", family=str(self._tools.family)
            )
        return False

    def tend(self, now: float) -> None:
        """There is nothing to do between passes."""

    # --- writing ---

    def plan(self, changes: Sequence[Change[Key, Rules]]) -> list[Transaction[Key, Rules]]:
        return plan(changes, self._limit(leaf_chains(changes)))

    def apply(self, transaction: Transaction[Key, Rules]) -> Outcome:
        if self._stop.is_set():
            return Unknown("stopping")
        with self._ledger.writing(transaction) as outcomes:
            edits = self._indexes.edit(transaction)
            spared = self._spared(transaction)
            has_work = bool(edits) or any(c.put or c.drop for c in spared.changes)
            outcome = self._write(spared, edits) if has_work else Applied()
            if isinstance(outcome, Applied):
                self._indexes.landed()
            else:
                self._indexes.undo()
                if isinstance(outcome, Rejected):
                    self._remove_filled(transaction.scope, edits)
            outcomes.append(outcome)
        return outcome

    def accepts(self, scopes: Collection[str]) -> str | None:
        for table in TABLES:
            if table not in scopes:
                continue
            # A chain is made and removed in one commit. Not the canary, which would be made anew
            # where it is missing: that is how a flush is noticed.
            probe = Change[Key, Rules](BASE, {}, {Chain(table, PROBE): ()}, {})
            match self._restore(Script(Transaction(table, (probe,)))):
                case Rejected(detail):
                    return f"{self._tools.restore()[0]}, table {table}: {detail}"
                case Unknown(detail) if not self._stop.is_set():
                    return detail
        return None

    def _spared(self, transaction: Transaction[Key, Rules]) -> Transaction[Key, Rules]:
        """Without leftovers that are back in use: chains of trees are nobody's for the tracker."""
        used = {
            (change.owner, key)
            for change in transaction.changes
            for key in change.drop
            if isinstance(key, Chain) and self._indexes.uses(key.table, key.name)
        }
        return transaction.without(used) if used else transaction

    def _write(self, transaction: Transaction[Key, Rules], edits: Mapping[str, Edit]) -> Outcome:
        written = Applied()
        new = sum(len(edit.new) for edit in edits.values())
        for script in scripts(transaction, edits, self._limit(new)):
            outcome = self._restore(script)
            if not isinstance(outcome, Applied):
                return outcome
            written = written.plus(outcome)
        return written

    def _remove_filled(self, table: str, edits: Mapping[str, Edit]) -> None:
        """Remove what was filled ahead for a commit that was refused: it leads to other chains."""
        for shared, edit in edits.items():
            limit = self._limit(len(edit.new))
            if limit is None or len(edit.new) <= limit:
                continue
            unused = frozenset(n for n in edit.new if not self._indexes.uses(table, n))
            self._restore(Script(Transaction(table, ()), {shared: Edit({}, frozenset(), unused)}))

    def _limit(self, chains: int) -> int | None:
        """How many of so many chains to write in one run; ``None``: all of them."""
        if self._chains_per_transaction is not None:
            return self._chains_per_transaction
        # The legacy tools copy the whole table at each commit.
        return batch_size(chains) if self._tools.variant is Variant.NFT else None

    def _restore(self, script: Script) -> Outcome:
        limit = QUICK_SECONDS + SECONDS_PER_LINE * script.most_lines
        program = self._tools.restore()[0]
        waited_seconds, busy = 0.0, 0
        while True:
            match self._commit(script, limit):
                case Finished(0, _, _):
                    return Applied(script.lines, script.bytes, script.rules, chains=script.chains)
                case Finished(status, _, stderr) if is_locked(status, _text(stderr)):
                    waited_seconds += LOCK_SECONDS
                    self._on_wait(waited_seconds)
                    if self._stop.is_set():
                        return Unknown("stopped while waiting for the xtables lock")
                case Finished(status, _, stderr) if is_busy(status, _text(stderr)):
                    busy += 1
                    if busy > BUSY_TRIES:
                        return Unknown(f"{program}: {_text(stderr)}")
                    self._stop.wait(BUSY_PAUSE_SECONDS * 2**busy)
                case Finished(status, _, stderr):
                    return _rejected(script, status, _text(stderr))
                case failure:
                    return Unknown(f"{program}: {describe(failure)}")

    # --- tools ---

    def _commit(self, script: Script, limit_seconds: float) -> Result:
        with self._ledger.custody.committing() as commit:
            result = self._run(self._tools.restore(), Stream(script.chunks), limit_seconds)
            commit.counts = _succeeded(result)
        return result

    def _read_back(self) -> Listing:
        ahead, self._ahead = self._ahead, None
        listing, epoch = self._list() if ahead is None else self._read_before(ahead)
        self._ledger.observed(epoch)
        return listing

    def _read_before(
        self, ahead: Future[tuple[Listing, int | None, float]]
    ) -> tuple[Listing, int | None]:
        """What was read ahead, if it still counts; else what is there now."""
        try:
            listing, epoch, at = ahead.result()
        except HostError:
            return self._list()
        if epoch is None:
            still_counts = self._clock() - at < AHEAD_SECONDS
        else:
            still_counts = self._ledger.custody.epoch() == epoch
        return (listing, epoch) if still_counts else self._list()

    def _list(self) -> tuple[Listing, int | None]:
        """All tables as printed, and the epoch if it was the same from begin to end.

        Raises:
            HostError: the tool failed, or cannot read what another program put there.
        """
        before = self._ledger.custody.epoch()
        argv = self._tools.save()
        result = self._run(argv, None, QUICK_SECONDS)
        if not (isinstance(result, Finished) and result.exit_status == 0):
            raise HostError(f"{argv[0]}: {describe(result)}")
        try:
            listing = Listing.of(result.stdout, self._ledger.table.printed)
        except ValueError as error:
            raise HostError(f"{argv[0]}: {error}") from error
        return listing, before if before == self._ledger.custody.epoch() else None

    def _compared_with(self, listing: Listing) -> XtablesObservation:
        return XtablesObservation(
            listing,
            self._ledger.table,
            self._ledger.members,
            self._has_rule,
            self._tools.family,
            trees=self._indexes.in_kernel,  # which tells no index, so that those stay as they are
        )

    def _has_rule(self, table: str, chain: str, rule: str) -> bool:
        argv = self._tools.iptables("-t", table, "-C", chain, *split_rule(rule))
        result = self._run(argv, None, QUICK_SECONDS)
        return isinstance(result, Finished) and result.exit_status == 0

    def _has_canary(self, table: str) -> bool:
        argv = self._tools.iptables("-S", CANARY, "-t", table)
        result = self._run(argv, None, QUICK_SECONDS)
        return not (isinstance(result, Finished) and result.exit_status == 1)


def _rejected(script: Script, status: int, stderr: str) -> Rejected:
    number = refused_line(stderr)
    owner: ServiceKey | None = None
    line = ""
    if number is not None:
        owner, line = script.owner_of_line(number)
    detail = " ".join(stderr.split()) or f"exit status {status}"
    if line and line != "COMMIT":
        detail += f" — refused: {line}"
    return Rejected(detail, frozenset({owner} if owner is not None else ()))


def split_rule(rule: str) -> list[str]:
    """Split a rule body into arguments; only comments are quoted, and never contain quotes."""
    pieces = rule.split('"')
    arguments: list[str] = []
    for index, piece in enumerate(pieces):
        arguments += [piece] if index % 2 else piece.split()
    return arguments


def _succeeded(result: Result) -> bool:
    return isinstance(result, Finished) and result.exit_status == 0


def _text(output: bytes) -> str:
    return output.decode(errors="replace").strip()


def read_tables(tools: Tools, runner: Runner = run, table: str = "") -> dict[str, SavedTable]:
    """Read one table, or all there are.

    Raises:
        HostError: the tool failed, or cannot read what another program put there.
    """
    argv = tools.save(table)
    result = runner(argv, None, QUICK_SECONDS)
    if not (isinstance(result, Finished) and result.exit_status == 0):
        raise HostError(f"{argv[0]}: {describe(result)}")
    try:
        return parse_saved(_text(result.stdout))
    except ValueError as error:
        raise HostError(f"{argv[0]}: {error}") from error


def describe(result: Result) -> str:
    """Say in words how a tool ended, for a message that begins with the tool's name."""
    match result:
        case Finished(status, _, stderr):
            return f"exit status {status}: {' '.join(_text(stderr).split())}"
        case NotStarted(reason):
            return f"could not be started: {reason}"
        case TimedOut(seconds, _):
            return f"killed after {seconds:g} s without an end"
        case Killed(signal, _):
            return f"killed by signal {signal}"
