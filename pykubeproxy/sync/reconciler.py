"""One pass for one family: decide for the touched Services, compare, write, take notes.

Effects happen only inside the `Dataplane`; the clock is an argument.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import chain
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct, structs

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.flows import FlowIndex
from pykubeproxy.sync.outcome import (
    BASE,
    Applied,
    Compiler,
    Dataplane,
    Partly,
    Rejected,
    Transaction,
    Unknown,
    is_leftover,
)
from pykubeproxy.sync.routes import NOTHING, ServiceRoutes, service_routes
from pykubeproxy.sync.store import Store, Touched
from pykubeproxy.sync.summary import HealthCheck, HealthChecks, Summary
from pykubeproxy.sync.tracker import Tracker

__all__ = ["Quarantine", "Reconciler", "Report", "Sent"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

QUARANTINE_FIRST_SECONDS = 1.0
QUARANTINE_MOST_SECONDS = 300.0
REFUSED_IN_A_ROW = 16
"""So many refused Services in a pass with none accepted mean that something else is wrong."""


class Quarantine(Struct, frozen=True):
    """An owner whose objects the kernel refuses; left out until *until*."""

    owner: ServiceKey
    detail: str
    attempts: int
    retry_seconds: float
    until: float


class Sent(Struct):
    """What was sent to one place (an iptables table, IPVS) and accepted; see `Applied`."""

    lines: int = 0
    bytes: int = 0
    rules: int = 0
    chains: int = 0


class Report(Struct):
    """What one pass did, for one log line, metrics and events. Durations in seconds.

    ``services`` were decided about, which made ``routes`` and those ``objects``; only what of them
    differs is put or dropped, counted by kind (the name of the key's type).
    ``landed`` tells whether anything of any Service was accepted.
    ``outcomes`` counts transactions by where they went and how they ended (applied, partly,
    rejected, unknown), ``sent`` what was accepted by where it went. ``planned`` tells that the
    pass came as far as writing, if there was anything to write. ``full``: everything was decided
    about, or compared with the kernel. ``triggers`` are the times of the changes in the cluster
    that it wrote, as annotations tell them; ``waited`` is how long each change had been here.
    """

    family: Family
    services: int = 0
    routes: int = 0
    objects: int = 0
    put: Counter[str] = msgspec.field(default_factory=Counter)
    dropped: Counter[str] = msgspec.field(default_factory=Counter)
    outcomes: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    sent: dict[str, Sent] = msgspec.field(default_factory=dict)
    planned: bool = False
    full: bool = False
    landed: bool = False
    surprises: int = 0
    observed: bool = False
    succeeded: bool = True
    detail: str = ""
    quarantined: list[Quarantine] = msgspec.field(default_factory=list)
    recovered: list[ServiceKey] = msgspec.field(default_factory=list)
    problems: list[tuple[ServiceKey, str]] = msgspec.field(default_factory=list)
    triggers: tuple[str, ...] = ()
    waited: list[float] = msgspec.field(default_factory=list)
    decide_seconds: float = 0.0
    observe_seconds: float = 0.0
    diff_seconds: float = 0.0
    write_seconds: float = 0.0

    @property
    def transactions(self) -> int:
        """How many were sent, however they ended."""
        return sum(self.outcomes.values())

    @property
    def objects_put(self) -> int:
        return self.put.total()

    @property
    def objects_dropped(self) -> int:
        return self.dropped.total()

    @property
    def lines(self) -> int:
        return sum(sent.lines for sent in self.sent.values())

    @property
    def bytes(self) -> int:
        return sum(sent.bytes for sent in self.sent.values())

    @property
    def changed(self) -> bool:
        return bool(self.outcomes)

    def count(self, scope: str, outcome: str) -> None:
        self.outcomes[scope, outcome] = self.outcomes.get((scope, outcome), 0) + 1

    def add(self, transaction: Transaction[Any, Any], applied: Applied) -> None:
        """Add up what *transaction* wrote."""
        self.landed = self.landed or bool(_served(transaction))
        sent = self.sent.setdefault(transaction.scope, Sent())
        sent.lines += applied.lines
        sent.bytes += applied.bytes
        sent.rules += applied.rules
        sent.chains += applied.chains
        _count_kinds(self.put, (c.put for c in transaction.changes))
        _count_kinds(self.dropped, (c.drop for c in transaction.changes))
        self.problems.extend(applied.notes)


class Reconciler(Generic[K, V]):
    """Keeps one dataplane saying what the store says. Owned by the sync thread."""

    def __init__(
        self,
        family: Family,
        compiler: Compiler[K, V],
        dataplane: Dataplane[K, V],
        clock: Callable[[], float],
        *,
        counts_services: bool = False,
        counts_of: Callable[[Mapping[K, V]], Mapping[str, int]] = lambda _: {},
    ) -> None:
        """*counts_services*: `no_local_endpoints` counts Services, not their ports.

        *counts_of*: how many iptables rules (by table) or servers objects are, for `counts`.
        """
        self.family = family
        self._counts_services = counts_services
        self.flows = FlowIndex()
        self._compiler = compiler
        self._dataplane = dataplane
        self._clock = clock
        self._tracker: Tracker[K, V] = Tracker(compiler.claim, counts_of)
        self._node: NodeContext | None = None
        self._derived: dict[ServiceKey, Summary] = {}
        self._totals = Summary()
        self._checks = HealthChecks()
        self._quarantine: dict[ServiceKey, Quarantine] = {}
        self._prolonged: dict[ServiceKey, Quarantine] = {}  # as they were before this pass
        self._moved: set[ServiceKey] = set()  # into quarantine or out of it
        self._problems: dict[ServiceKey, tuple[str, ...]] = {}
        self._trusted = False
        self._learnt = False
        self._believing = True

    # --- what others may read ---

    @property
    def health_checks(self) -> Mapping[ServiceKey, HealthCheck]:
        """What is to be served for every Service that has a health check node port.

        It follows the kernel: moved by passes that succeed only, and for a Service in quarantine
        not before that is over.
        """
        return self._checks.served

    def take_health_checks(self) -> dict[ServiceKey, HealthCheck | None]:
        """What of `health_checks` is new since the last call; ``None``: there is none any more."""
        return self._checks.take()

    @property
    def counts(self) -> Mapping[str, int]:
        """How many iptables rules or servers there are to be, by name: a running total."""
        return self._tracker.counts

    @property
    def no_local_endpoints(self) -> tuple[int, int]:
        """What a Local policy leaves without endpoints here, internal and external policy."""
        return self._totals.no_local_internal, self._totals.no_local_external

    @property
    def quarantined(self) -> tuple[Quarantine, ...]:
        return tuple(q for q in self._quarantine.values() if not is_leftover(q.owner))

    def take_quarantine_changes(self) -> dict[ServiceKey, bool]:
        """Who went into quarantine (true) or came out of it since the last call."""
        moved, self._moved = self._moved, set()
        return {owner: owner in self._quarantine for owner in moved if not is_leftover(owner)}

    @property
    def retry_at(self) -> float | None:
        """When the first owner leaves its quarantine, on the clock of `run`."""
        return min((q.until for q in self._quarantine.values()), default=None)

    def distrust(self) -> None:
        """Read the kernel back at the next pass: somebody else changed it, or may have."""
        self._trusted = self._learnt = False

    def recheck(self) -> None:
        """Have `lesson` make sure that the kernel still holds what it was given."""
        self._learnt = False

    def lesson(self) -> Callable[[], bool | None] | None:
        """What to do while it is quiet, on any thread; the result is for `judge`.

        It remembers what the kernel was given and, after a read-back, how it prints that. Later
        read-backs then write again only what really changed. ``None``: something is missing.
        """
        if not (self._trusted and self._tracker.is_settled):
            return None
        anew, self._learnt = not self._learnt, True
        return self._dataplane.learn(self._tracker.snapshot(), anew=anew)

    def judge(self, verdict: bool | None) -> bool:
        """Hear how a `lesson` ended; tells whether the next pass has to repair the kernel."""
        if verdict is None:
            self._learnt = False
            return False
        # Somebody edited what we wrote. Looked into once: if it is still not as written after a
        # repair, there is something that we do not understand.
        repairs = not verdict and self._believing
        self._believing = verdict or (self._believing and not repairs)
        if repairs:
            self.distrust()
        return repairs

    def learn(self) -> bool:
        """Do a `lesson` at once; ``False`` if the next pass has to repair. Raises HostError."""
        job = self.lesson()
        return job is None or not self.judge(job())

    # --- the pass ---

    def run(self, touched: Touched, store: Store, node: NodeContext) -> Report:
        """Bring the kernel to what *store* says; visit only what was touched.

        *touched* may be empty: then only unfinished business of earlier passes is tried again.
        """
        report = Report(self.family, triggers=touched.triggers.get(self.family, ()))
        report.full = not self._trusted or node != self._node
        self._prolonged.clear()
        started = self._clock()
        self._decide(touched, store, node, report)
        decided = self._clock()
        report.decide_seconds = decided - started
        self._release_due(decided)
        if not self._trusted:
            report.surprises = self._tracker.align(self._dataplane.observe())
            report.observed = self._trusted = True
        observed = self._clock()
        report.observe_seconds = observed - decided
        if self._tracker.is_held(BASE):
            # Everything else builds on it, and would only be refused as well.
            report.succeeded = False
            report.detail = self._quarantine[BASE].detail
            return report
        plan = self._dataplane.plan(self._tracker.changes())
        report.planned = True
        planned = self._clock()
        report.diff_seconds = planned - observed
        for transaction in plan:
            if not self._land(transaction, report):
                break
        if report.succeeded and report.quarantined and not report.landed:
            self._doubt_dataplane(report)
        report.write_seconds = self._clock() - planned
        for owner in [q for q in self._quarantine if not self._tracker.owes(q)]:
            del self._quarantine[owner]
            self._moved.add(owner)
            report.recovered.append(owner)
        if report.succeeded:
            self._checks.settle(held=self._quarantine)
        return report

    def _decide(self, touched: Touched, store: Store, node: NodeContext, report: Report) -> None:
        services: Iterable[ServiceKey] = touched.services
        if node != self._node:
            self._node = node
            # Also Services that are gone from the store but not yet from here.
            services = touched.services | store.services.keys() | self._derived.keys()
            self._tracker.want(BASE, self._compiler.base(node))
            self._tracker.release(BASE)
        decided: list[tuple[ServiceKey, ServiceRoutes]] = []
        for key in services:
            service = store.service(key)
            routes = NOTHING
            if service is not None:
                routes = service_routes(service, store.slices(key), node)
            self._summarize(key, Summary.of(routes, self._counts_services))
            changed = (key, self.family) in touched.by_slices
            self.flows.update(key, routes.routes, endpoints_changed=changed)
            self._tracker.release(key)
            self._note_problems(key, self._problems_of(routes), report)
            decided.append((key, routes))
        report.services = len(decided)
        # Compiled only now: how objects are written may depend on the size of the family.
        self._compiler.resize(self._totals.endpoint_count)
        decided.reverse()
        while decided:  # of a whole cluster, what is compiled need not be kept
            key, routes = decided.pop()
            service = store.service(key)
            age = (service.metadata.creation_timestamp or "") if service else ""
            objects = self._compiled(routes, node)
            report.routes += len(routes.routes)
            report.objects += len(objects)
            self._tracker.want(key, objects, age)
        for claim, winner, loser in self._tracker.take_new_conflicts():
            report.problems.append(
                (loser, f"{claim} is already used by {winner}, which is older and keeps it")
            )

    def _compiled(self, routes: ServiceRoutes, node: NodeContext) -> dict[K, V]:
        objects: dict[K, V] = {}
        for route in routes.routes:
            part = self._compiler.compile(route, node)
            if not objects:
                objects = part
                continue
            # What an earlier port of the Service has under one claim stays whole.
            claim, claimed = self._compiler.claim, frozenset(objects)
            for name, value in part.items():
                if name not in claimed and claim(name) not in claimed:
                    objects[name] = value
        return objects

    def _land(self, transaction: Transaction[K, V], report: Report) -> bool:
        """Commit, halving what is refused until the culprit is alone; False ends the pass."""
        waiting = [transaction]
        while waiting:
            current = self._without_held(waiting.pop())
            if not current.changes:
                continue
            outcome = self._dataplane.apply(current)
            match outcome:
                case Applied() as applied:
                    report.count(current.scope, "applied")
                    report.add(current, applied)
                    self._tracker.confirm(current)
                case Partly(landed, refused, applied):
                    report.count(current.scope, "partly")
                    report.add(landed, applied)
                    self._tracker.confirm(landed)
                    if not self._go_on_without_all(refused, landed, report):
                        return False
                case Unknown(detail):
                    report.count(current.scope, "unknown")
                    self.distrust()
                    report.succeeded = False
                    report.detail = detail
                    return False
                case Rejected(detail, suspects):
                    report.count(current.scope, "rejected")
                    if len(current.owners) == 1:
                        owner = current.owners[0]
                        changes = current.changes
                        if owner not in self._quarantine and any(c.old or c.drop for c in changes):
                            # Perhaps what should go is gone already. One look tells; if it is
                            # refused again after that, the fault is with what should come.
                            self.distrust()
                        if not self._go_on_without(owner, detail, report):
                            return False
                    else:
                        waiting.extend(reversed(_split(current, suspects)))
        return True

    # --- quarantine ---

    def _go_on_without(self, owner: ServiceKey, detail: str, report: Report) -> bool:
        """Put a refused owner in quarantine; False where going on makes no sense."""
        self._put_in_quarantine(owner, detail, report)
        return owner != BASE and not self._nobody_lands(detail, report)

    def _put_in_quarantine(self, owner: ServiceKey, detail: str, report: Report) -> None:
        earlier = self._quarantine.get(owner)
        if earlier is not None:
            self._prolonged[owner] = earlier
        attempts = earlier.attempts + 1 if earlier else 1
        pause = min(QUARANTINE_MOST_SECONDS, QUARANTINE_FIRST_SECONDS * 2 ** (attempts - 1))
        entry = Quarantine(owner, detail, attempts, pause, self._clock() + pause)
        self._quarantine[owner] = entry
        self._moved.add(owner)
        self._tracker.hold(owner)
        report.quarantined.append(entry)
        if owner == BASE:
            report.succeeded = False
            report.detail = detail

    def _go_on_without_all(
        self, refused: Mapping[ServiceKey, str], landed: Transaction[K, V], report: Report
    ) -> bool:
        """The same for those a partly committed transaction left out.

        Where nobody was accepted the fault is hardly with single Services: that is said once, as
        a failure of the pass, and by the first few of them.
        """
        everybody = len(refused) >= REFUSED_IN_A_ROW and _served(landed) <= refused.keys()
        told = len(report.quarantined) + REFUSED_IN_A_ROW
        for owner, detail in refused.items():
            self._put_in_quarantine(owner, detail, report)
            if owner == BASE:
                return False
        if everybody:
            del report.quarantined[told:]
            report.succeeded = False
            first = next(iter(refused.values()))
            report.detail = f"{len(refused)} Services tried and each refused, the first: {first}"
        return True

    def _nobody_lands(self, detail: str, report: Report) -> bool:
        """Notice that the fault is not with single Services, and treat it as one failure.

        Looking for culprits among thousands that are all refused would take thousands of runs.
        """
        if report.landed or len(report.quarantined) < REFUSED_IN_A_ROW:
            return False
        told = f"{REFUSED_IN_A_ROW} Services tried and each refused, the last: {detail}"
        self._blame_nobody(told, report)
        return True

    def _doubt_dataplane(self, report: Report) -> None:
        """Do the same for a few, of whom it cannot be told by their number.

        One run more than a single bad Service costs anyway.
        """
        refusing = {scope for scope, outcome in report.outcomes if outcome == "rejected"}
        reason = self._dataplane.accepts(refusing)
        if reason is None:
            return
        self._blame_nobody(
            f"everything is refused, also what would change nothing: {reason}", report
        )
        # A refused removal is no sign then that somebody else was there before.
        self._trusted = True

    def _blame_nobody(self, detail: str, report: Report) -> None:
        """Let those go whom this pass put in quarantine: it failed, and they are not why."""
        for entry in report.quarantined:
            earlier = self._prolonged.get(entry.owner)
            if earlier is None:
                self._quarantine.pop(entry.owner, None)
                self._moved.add(entry.owner)
            else:  # that one was no fault of all; it is tried again with the others
                until = self._clock() + earlier.retry_seconds
                self._quarantine[entry.owner] = structs.replace(earlier, until=until)
            self._tracker.release(entry.owner)
        report.quarantined.clear()
        report.succeeded = False
        report.detail = detail

    def _release_due(self, now: float) -> None:
        for owner, entry in self._quarantine.items():
            if now >= entry.until:
                self._tracker.release(owner)

    def _without_held(self, transaction: Transaction[K, V]) -> Transaction[K, V]:
        if not any(self._tracker.is_held(owner) for owner in transaction.owners):
            return transaction
        return transaction.only(
            frozenset(o for o in transaction.owners if not self._tracker.is_held(o))
        )

    # --- notes ---

    def _problems_of(self, routes: ServiceRoutes) -> tuple[str, ...]:
        found = dict.fromkeys(routes.problems)
        for route in routes.routes:
            found.update(dict.fromkeys(self._compiler.problems(route)))
        return tuple(found)

    def _note_problems(self, key: ServiceKey, found: tuple[str, ...], report: Report) -> None:
        """Report what is new; a Service whose endpoints change often repeats nothing."""
        known = self._problems.pop(key, ())
        report.problems.extend((key, problem) for problem in found if problem not in known)
        if found:
            self._problems[key] = found

    def _summarize(self, key: ServiceKey, new: Summary) -> None:
        old = self._derived.pop(key, Summary())
        if new != Summary():
            self._derived[key] = new
        self._totals = self._totals.moved(old, new)
        if old.health_check != new.health_check:
            self._checks.decided(key, new.health_check)


def _count_kinds(counts: Counter[str], objects: Iterable[Iterable[object]]) -> None:
    # Types first, which is C all the way: 70 000 objects of a first pass take 3 ms.
    for kind, count in Counter(map(type, chain.from_iterable(objects))).items():
        counts[kind.__name__] += count


def _served(transaction: Transaction[Any, Any]) -> set[ServiceKey]:
    """The Services of which anything is in *transaction*."""
    return {c.owner for c in transaction.changes if c.owner.namespace and (c.put or c.drop)}


def _split(
    transaction: Transaction[K, V], suspects: frozenset[ServiceKey]
) -> list[Transaction[K, V]]:
    """Two parts to try in this order: without and with the suspects, else the two halves."""
    owners = transaction.owners
    # Never the base: what others build on must land first.
    suspected = suspects & frozenset(owners) - {BASE}
    if suspected and len(suspected) < len(owners):
        return [
            transaction.only(frozenset(owners) - suspected),
            transaction.only(suspected),
        ]
    half = len(owners) // 2
    return [
        transaction.only(frozenset(owners[:half])),
        transaction.only(frozenset(owners[half:])),
    ]
