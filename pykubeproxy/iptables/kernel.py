"""Effects of the iptables backend: run the tools, read back, probe, clean up."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Event

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.host.exec import Finished, Killed, NotStarted, Result, TimedOut, run
from pykubeproxy.iptables.names import CANARY
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
from pykubeproxy.iptables.observation import XtablesObservation, fingerprints, target_of
from pykubeproxy.iptables.render import owner_of_line, plan, restore_input
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
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Rejected, Transaction, Unknown

__all__ = ["Runner", "XtablesDataplane", "describe", "read_tables"]

log = structlog.get_logger(__name__)

QUICK_SECONDS = 60.0
"""Limit for tools that answer at once unless something is wrong."""
SECONDS_PER_LINE = 0.002
"""Added to the limit of a restore run: far above the slowest measured (0.3 ms a line, nf_tables,
one transaction of 60 000 chains)."""
NFT_CHAINS_PER_TRANSACTION = 600
"""iptables-nft-restore is quadratic in the chains of one run; see docs/decisions."""
CANARY_POLL_SECONDS = 0.1
CANARY_POLLS = 50
BUSY_TRIES = 5
BUSY_PAUSE_SECONDS = 0.01


Runner = Callable[[Sequence[str], bytes | None, float], Result]
"""How programs are started: `pykubeproxy.host.exec.run`, or a fake of the tools."""


class XtablesDataplane:
    """The `pykubeproxy.sync.outcome.Dataplane` for one family of one iptables variant.

    One thread writes; another may `observe` or `learn` meanwhile, and judges by `writes` what
    that is worth. *on_wait* hears how many seconds a transaction has waited for the xtables lock
    so far; *stop* ends such a wait.
    """

    writes = 0
    """How many transactions were begun."""

    def __init__(
        self,
        tools: Tools,
        on_wait: Callable[[float], None],
        stop: Event,
        runner: Runner = run,
        chains_per_transaction: int | None = None,
    ) -> None:
        self._tools = tools
        self._on_wait = on_wait
        self._stop = stop
        self._run = runner
        if chains_per_transaction is None and tools.variant is Variant.NFT:
            chains_per_transaction = NFT_CHAINS_PER_TRANSACTION
        self._chains_per_transaction = chains_per_transaction
        self._known: dict[Chain | SharedChain, tuple[Rules, int]] = {}
        self._members: dict[Key, Rules] = {}

    # --- reading ---

    def observe(self) -> XtablesObservation:
        tables = self._save()
        prints = fingerprints(tables)
        return XtablesObservation(
            tables, prints, self._known, self._members, self._has_rule, self._tools.family
        )

    def learn(self, applied: Iterable[Mapping[Key, Rules]]) -> bool:
        """Read back once and remember how this tool prints what was written.

        Later read-backs compare with it, so only what really changed is written again. Somebody
        may have been faster with an edit: a chain is believed only if it has as many rules as
        were written, with the same targets. Returns whether all were believed. What was read
        while a transaction was written proves nothing, and nothing is remembered of it.
        """
        writes = self.writes
        tables = self._save()
        prints = fingerprints(tables)
        chains: dict[Chain | SharedChain, Rules] = {}
        members: dict[Key, Rules] = {}
        expected: dict[Chain | SharedChain, Counter[str]] = defaultdict(Counter)
        for objects in applied:
            for key, value in objects.items():
                match key:
                    case Chain() | SharedChain():
                        chains[key] = value
                        expected[key].update(map(target_of, value))
                    case DispatchRule(table, chain, _) | TailRule(table, chain, _):
                        members[key] = value
                        expected[SharedChain(table, chain)].update(map(target_of, value))
                    case Jump() | Presence():
                        pass
        known: dict[Chain | SharedChain, tuple[Rules, int]] = {}
        for key, value in chains.items():
            saved = tables[key.table].chains.get(key.name) if key.table in tables else None
            if saved is not None and Counter(map(target_of, saved)) == expected[key]:
                known[key] = (value, prints[key])
        if writes != self.writes:
            return True
        # A write that begins just now changes the print, so these are not taken for its result.
        self._members, self._known = members, known
        return len(known) == len(chains)

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
        return plan(changes, self._chains_per_transaction)

    def apply(self, transaction: Transaction[Key, Rules]) -> Outcome:
        if self._stop.is_set():
            return Unknown("stopping")
        self.writes += 1
        text, lines, rules = restore_input(transaction)
        for change in transaction.changes:
            for part in (change.put, change.drop):
                for key in part:
                    self._forget(key)
        limit = QUICK_SECONDS + SECONDS_PER_LINE * lines
        program = self._tools.restore()[0]
        waited_seconds, busy = 0.0, 0
        while True:
            match self._run(self._tools.restore(), text, limit):
                case Finished(0, _, _):
                    return Applied(lines, len(text), rules)
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
                    return self._rejected(transaction, status, _text(stderr))
                case failure:
                    return Unknown(f"{program}: {describe(failure)}")

    def _rejected(self, transaction: Transaction[Key, Rules], status: int, stderr: str) -> Rejected:
        number = refused_line(stderr)
        owner: ServiceKey | None = None
        line = ""
        if number is not None:
            owner, line = owner_of_line(transaction, number)
        detail = " ".join(stderr.split()) or f"exit status {status}"
        if line and line != "COMMIT":
            detail += f" — refused: {line}"
        return Rejected(detail, frozenset({owner} if owner is not None else ()))

    def _forget(self, key: Key) -> None:
        match key:
            case Chain() | SharedChain():
                self._known.pop(key, None)
            case DispatchRule(table, chain, _) | TailRule(table, chain, _):
                self._known.pop(SharedChain(table, chain), None)
            case Jump() | Presence():
                pass

    # --- tools ---

    def _save(self) -> dict[str, SavedTable]:
        return read_tables(self._tools, self._run)

    def _has_rule(self, table: str, chain: str, rule: str) -> bool:
        argv = self._tools.iptables("-t", table, "-C", chain, *split_rule(rule))
        result = self._run(argv, None, QUICK_SECONDS)
        return isinstance(result, Finished) and result.exit_status == 0

    def _has_canary(self, table: str) -> bool:
        argv = self._tools.iptables("-S", CANARY, "-t", table)
        result = self._run(argv, None, QUICK_SECONDS)
        return not (isinstance(result, Finished) and result.exit_status == 1)


def split_rule(rule: str) -> list[str]:
    """Split a rule body into arguments; only comments are quoted, and never contain quotes."""
    pieces = rule.split('"')
    arguments: list[str] = []
    for index, piece in enumerate(pieces):
        arguments += [piece] if index % 2 else piece.split()
    return arguments


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
