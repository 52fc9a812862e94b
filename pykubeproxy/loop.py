"""The sync thread: folds events into the store and runs passes when the pacer says so.

It owns the store, the trackers and every kernel handle. What follows from a pass (metrics,
health, Events, conntrack) is told to a `Listener`, which must not block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from threading import Event as StopEvent
from typing import Any, Generic, Protocol, TypeVar

import structlog
from msgspec import Struct, structs

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.errors import ConfigError, HostError
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import EndpointSlice, Kind, Node, ServiceKey
from pykubeproxy.sync.backlog import Backlog
from pykubeproxy.sync.context import describe_node
from pykubeproxy.sync.nodewait import NODE_SECONDS, NodeWait, Waiting
from pykubeproxy.sync.outcome import Dataplane, is_leftover
from pykubeproxy.sync.pacer import Pacer
from pykubeproxy.sync.reconciler import Reconciler, Report
from pykubeproxy.sync.store import Arrivals, Store, Touched
from pykubeproxy.sync.suitability import Doubt, cluster_cidr_mismatch, doubts, primary_family
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.source import Event, Gone, Put, Replaced

__all__ = ["FamilyProxy", "Listener", "Suspicions", "SyncLoop"]

log = structlog.get_logger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

QUIET_SECONDS = 5.0
"""How long nothing must have changed before what was written is read back and remembered."""
UNQUIET_SECONDS = 300.0
"""After so long it is done all the same, though something may change meanwhile and spoil it."""
VERIFY_SECONDS = 3600.0
"""How often it is made sure that the kernel holds what it should, although nothing seems wrong."""
PATIENCE_SECONDS = 10.0
"""How long to wait for first lists before saying so, and between sayings."""


class Listener(Protocol):
    """Hears what happened; called on the sync thread."""

    def started(self, families: Sequence[Family]) -> None:
        """The loop begins; nothing has been written yet."""

    def received(
        self, arrivals: Arrivals, families: Sequence[Family], changed_services: int
    ) -> None:
        """Objects arrived for these families; so many Services differ from what was taken last."""

    def lacking(self, kinds: Sequence[Kind]) -> None:
        """First lists of these kinds have not come yet; told until there are none."""

    def awaiting(self, what: str) -> None:
        """That of this node is waited for before anything is written; empty: nothing any more."""

    def syncing(self) -> None:
        """A pass of every family begins; it has taken all that arrived."""

    def node_described(self, contexts: Mapping[Family, NodeContext]) -> None:
        """What this node is became known, before the first pass, or changed."""

    def node_changed(self, node: Node | None) -> None:
        """The own Node was seen first, or changed."""

    def mismatched(self, note: str) -> None:
        """The configured cluster CIDR does not fit the podCIDRs of this node."""

    def requested(self, families: Iterable[Family]) -> None:
        """A change waits to be written."""

    def synced(self, reconciler: Reconciler[Any, Any], report: Report, seconds: float) -> None:
        """A pass of one family ended, well or not."""

    def repairing(self, family: Family, *, edited: bool) -> None:
        """Somebody flushed our rules, or *edited* them; they are being written again."""


class FamilyProxy(Struct, Generic[K, V], frozen=True):
    """All that serves one IP family.

    ``addresses`` reads this node's own (raises HostError); ``None`` where nothing depends on
    them. ``every_address``: every one of them matters, not only those that serve node ports.
    """

    family: Family
    reconciler: Reconciler[K, V]
    dataplane: Dataplane[K, V]
    addresses: Callable[[], Iterable[str]] | None = None
    every_address: bool = False


class Suspicions:
    """Families in whose kernel objects somebody seems to have interfered; for any thread."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._families: set[Family] = set()

    def add(self, family: Family) -> None:
        """Have the kernel looked at soon."""
        self._families.add(family)
        self._mailbox.wake()

    def take(self) -> set[Family]:
        found = {family for family in Family if family in self._families}
        self._families -= found
        return found


class SyncLoop:
    """Runs until *stop* is set; every wait ends at once when `Mailbox.wake` is called."""

    def __init__(
        self,
        config: Config,
        node_name: str,
        kinds: frozenset[Kind],
        mailbox: Mailbox,
        families: Sequence[FamilyProxy[Any, Any]],
        listener: Listener,
        clock: Callable[[], float],
        stop: StopEvent,
        suspicions: Suspicions | None = None,
        beside: Callable[[Callable[[], None]], None] = lambda job: job(),
        began: str = "",
    ) -> None:
        """*beside* runs slow looks at the kernel, one at a time, on a thread of their own.

        *began* is for `Store`.
        """
        self._config = config
        self.verbosity = config.verbosity  # may change
        self._node_name = node_name
        self._kinds = kinds
        self._mailbox = mailbox
        self._families = families
        self._listener = listener
        self._clock = clock
        self._stop = stop
        self._store = Store(began)
        self._pacer = Pacer(config.min_sync_period_seconds, config.sync_period_seconds)
        self._contexts: dict[Family, NodeContext] = {}
        self._contexts_stale = True
        self._refresh_at: float | None = None  # when addresses that were not read are tried again
        self._node_moment: float | None = None  # when the Node came that contexts do not have yet
        self._ready = False
        self._verify_at = self._clock() + VERIFY_SECONDS
        self._failing: dict[Family, str] = {}
        self._said: set[tuple[ServiceKey, str]] = set()
        self._probe_at = self._clock() + config.sync_period_seconds
        self._learn_at: float | None = None
        self._learn_by: float | None = None
        self._beside = beside
        self._learning: set[Family] = set()
        self._verdicts: deque[tuple[FamilyProxy[Any, Any], bool | None, bool]] = deque()
        self._tend_at: float | None = None
        self._suspicions = suspicions or Suspicions(mailbox)
        self._serves = tuple(proxy.family for proxy in families)
        self._backlogs = {family: Backlog() for family in self._serves}
        self._complain_at = self._clock() + PATIENCE_SECONDS
        self._node_wait = NodeWait(config, node_name)
        self._waiting: Waiting | None = None
        self._doubted: set[str] = set()
        self._mismatch: tuple[str, ...] = ()
        self._lost_pod_cidrs = False

    def addresses_changed(self) -> None:
        """Look at the node's addresses again; from any thread."""
        self._contexts_stale = True
        self._mailbox.wake()

    def oldest_changes(self) -> dict[Family, float | None]:
        """When the oldest change came that the kernel does not have yet; from any thread."""
        return {family: backlog.oldest for family, backlog in self._backlogs.items()}

    def uid_of(self, key: ServiceKey) -> str:
        """The UID of a Service, empty if there is none of that name; from any thread."""
        service = self._store.service(key)
        return service.metadata.uid if service is not None else ""

    def check(self, config: Config) -> None:
        """Look at whether *config* suits this node, as far as it is known; from any thread.

        Raises:
            ConfigError: it does not, and a start with it would end at that.
        """
        self._end_at_fatal(config, self._store.node)

    def run(self) -> None:
        """Raises ConfigError or HostError where this node cannot be served as configured."""
        self._listener.started(self._serves)
        self._listener.lacking(sorted(self._kinds - self._store.complete))
        while not self._stop.is_set():
            self._mailbox.wait(self._next_wait())
            if not self._stop.is_set():
                self.step()
        self._remember()

    def step(self) -> None:
        """Do all that is due now."""
        self._receive(self._mailbox.drain_timed())
        now = self._clock()
        if not self._ready and not self._become_ready(now):
            return
        if self._contexts_stale:
            before = dict(self._contexts)
            self._refresh_contexts()
            if self._contexts != before:
                self._listener.node_described(self._contexts)
        if self._pacer.due(now):
            self._sync()
        self._tend()
        self._probe_if_due()
        self._judge()
        self._learn_if_quiet()

    # --- receiving ---

    def _receive(self, events: Sequence[tuple[float, Event]]) -> None:
        node_changed = False
        for moment, event in events:
            before = self._store.changes
            match event:
                case Put(_, obj):
                    self._store.put(obj)
                case Gone(kind, key):
                    self._store.drop(kind, key)
                    if kind is Kind.NODE:
                        log.warning("the Node object is gone, what it told stays", node=key.name)
                case Replaced(kind, objects, unreadable):
                    self._store.replace(kind, objects, unreadable)
            if self._store.changes == before:
                continue
            if event.kind is Kind.NODE:
                node_changed = True
                if self._node_moment is None:
                    self._node_moment = moment
            for family in self._concerned(event):
                self._backlogs[family].arrived(moment)
        if events:
            arrivals = self._store.take_arrivals()
            self._listener.received(arrivals, self._serves, self._store.changed_services)
            if not self._ready:
                self._listener.lacking(sorted(self._kinds - self._store.complete))
        if node_changed:
            # Taints and the like concern health only: a pass is asked for once it is known that
            # anything is to be decided otherwise.
            self._contexts_stale = True
            self._listener.node_changed(self._store.node)
        if self._store.has_touched and self._ready:
            self._request()

    def _concerned(self, event: Event) -> tuple[Family, ...]:
        """The families in which an event changes what is to be written, as far as it tells."""
        if event.kind is Kind.NODE:
            return ()
        if isinstance(event, Put) and isinstance(event.object, EndpointSlice):
            return tuple(f for f in self._serves if f == event.object.address_type)
        return self._serves

    def _request(self) -> None:
        self._pacer.request(self._clock())
        self._listener.requested(proxy.family for proxy in self._families)

    def _become_ready(self, now: float) -> bool:
        """Nothing is written before everything is known: half a picture would break Services.

        Raises:
            ConfigError, NodeTimeout: this node cannot be served as configured.
        """
        missing: list[str] = sorted(self._kinds - self._store.complete)
        node = self._store.node
        # Its time runs from the first list of Nodes on, whatever else is missing.
        waiting = None if Kind.NODE in missing else self._node_wait.look(now, node)
        before, self._waiting = self._waiting, waiting
        if waiting != before:
            self._listener.awaiting(waiting.missing if waiting else "")
        if missing:
            if now >= self._complain_at:
                self._complain_at = now + PATIENCE_SECONDS
                log.warning("nothing written yet, still waiting for", missing=", ".join(missing))
            return False
        if waiting is not None:
            if now >= self._complain_at or waiting != before:
                self._complain_at = now + PATIENCE_SECONDS
                log.warning(
                    "nothing written yet, waiting for what this node is",
                    missing=waiting.missing,
                    reason=waiting.reason,
                    seconds_left=None if waiting.until is None else round(waiting.until - now),
                )
            return False
        if (left := self._node_wait.lacking(node)) is not None:
            log.error(
                "going on without what is missing; zone and addresses of this node count as soon "
                "as it tells them",
                missing=left.missing,
                reason=left.reason,
                waited_seconds=NODE_SECONDS,
            )
        self._end_at_fatal(self._config, node)
        primary = self._primary(self._config, node)
        log.info("serving", families=", ".join(self._serves), primary=primary.value)
        self._ready = True
        self._pacer.request(now)
        return True

    def _end_at_fatal(self, config: Config, node: Node | None) -> None:
        for doubt in self._doubts(config, node):
            if doubt.fatal:
                raise ConfigError(doubt.where, doubt.text)

    def _doubts(self, config: Config, node: Node | None) -> list[Doubt]:
        return doubts(config, node, self._primary(config, node), self._serves)

    def _primary(self, config: Config, node: Node | None) -> Family:
        known = primary_family(config, node)
        # Without an API nobody has to say which family is the first.
        return known or (self._serves[0] if config.manifests else Family.IPV4)

    def _compare_with_node(self) -> None:
        """Say what of the configuration does not suit this node; each once, while it is so."""
        found = {doubt.text for doubt in self._doubts(self._config, self._store.node)}
        for text in sorted(found - self._doubted):
            log.warning("configuration may be incomplete or incorrect", reason=text)
        self._doubted = found
        mismatch = cluster_cidr_mismatch(self._config, self._store.node)
        if mismatch == self._mismatch:
            return
        self._mismatch = mismatch
        for text in mismatch:
            log.warning("clusterCIDR and podCIDRs do not fit", reason=text)
            self._listener.mismatched(text)
        if not mismatch:
            log.info("clusterCIDR and podCIDRs fit now")

    def _refresh_contexts(self) -> None:
        """Put together anew what this node is; if it is something else, a pass is asked for."""
        self._contexts_stale, self._refresh_at = False, None
        node_moment, self._node_moment = self._node_moment, None
        news = False
        self._compare_with_node()
        self._notice_lost_pod_cidrs()
        for proxy in self._families:
            addresses: Iterable[str] = ()
            if proxy.addresses is not None:
                try:
                    addresses = proxy.addresses()
                except HostError as error:
                    log.error("addresses of this node not read, will be", reason=str(error))
                    self._contexts_stale, self._refresh_at = True, self._clock() + QUIET_SECONDS
                    if proxy.family in self._contexts:
                        self._node_moment = node_moment
                        continue
            context = describe_node(
                self._config,
                self._node_name,
                self._store.node,
                addresses,
                proxy.family,
                every_address=proxy.every_address,
            )
            before = self._contexts.get(proxy.family)
            if before is not None and self._lost_pod_cidrs:
                context = structs.replace(context, pod_traffic=before.pod_traffic)
            if context == before:
                continue
            self._contexts[proxy.family] = context
            if node_moment is not None:
                self._backlogs[proxy.family].arrived(node_moment)
            if before is not None:
                log.info("this node changed", family=proxy.family.value, **_news(before, context))
                news = True
        if news:
            self._request()

    def _notice_lost_pod_cidrs(self) -> None:
        """A Node that was registered anew has none until they are given to it again."""
        node = self._store.node
        by_node = self._config.detect_local_mode is DetectLocalMode.NODE_CIDR
        lost = by_node and node is not None and not node.spec.pod_cidrs
        if lost and not self._lost_pod_cidrs and self._contexts:
            log.warning("the Node object has no podCIDRs any more, the last ones stay in use")
        self._lost_pod_cidrs = lost

    # --- passes ---

    def _sync(self) -> None:
        started = self._clock()
        self._said.clear()
        touched = self._store.take()
        self._listener.syncing()
        succeeded = True
        for proxy in self._families:
            succeeded = self._sync_family(proxy, touched) and succeeded
        now = self._clock()
        self._pacer.finished(now, now - started, succeeded)
        for proxy in self._families:
            retry_at = proxy.reconciler.retry_at
            # One in the past belongs to a pass that did not get there: its backoff counts.
            if retry_at is not None and retry_at > now:
                self._pacer.request(retry_at)
        self._learn_at = None
        if succeeded:
            self._learn_by = self._learn_by or now + UNQUIET_SECONDS
            self._learn_at = min(now + QUIET_SECONDS, self._learn_by)

    def _sync_family(self, proxy: FamilyProxy[Any, Any], touched: Touched) -> bool:
        started = self._clock()
        context = self._contexts[proxy.family]
        try:
            report = proxy.reconciler.run(touched, self._store, context)
        except HostError as error:
            # What was decided is in the tracker, so nothing is lost; only writing waits.
            report = Report(proxy.family, succeeded=False, detail=str(error))
        ended = self._clock()
        seconds = ended - started
        if report.succeeded:
            report.waited = self._backlogs[proxy.family].landed(ended)
        self._tell(report, seconds)
        self._listener.synced(proxy.reconciler, report, seconds)
        return report.succeeded

    def _tell(self, report: Report, seconds: float) -> None:
        family = report.family.value
        for key, problem in report.problems:
            if (key, problem) in self._said:
                continue  # by the other family, in this pass
            self._said.add((key, problem))
            log.warning("part of a Service passed over", service=str(key), reason=problem)
        for entry in report.quarantined:
            if is_leftover(entry.owner):
                if entry.attempts == 1:
                    log.warning(
                        "leftover not removed, something else still uses it; tried again later",
                        family=family,
                        what=entry.owner.name,
                        reason=entry.detail,
                    )
                continue
            log.error(
                "service quarantined: the kernel refuses its rules, everything else goes on",
                family=family,
                service=str(entry.owner),
                retry_seconds=entry.retry_seconds,
                reason=entry.detail,
            )
        for owner in report.recovered:
            if is_leftover(owner):
                continue
            log.info("service out of quarantine", family=family, service=str(owner))
        if report.succeeded:
            if self._failing.pop(report.family, None) is not None:
                log.info("syncing again", family=family)
        elif self._failing.get(report.family) != report.detail:
            self._failing[report.family] = report.detail
            log.error("sync failed, will be tried again", family=family, reason=report.detail)
        if self.verbosity >= 2 and (report.changed or report.observed):
            log.info(
                "synced",
                family=family,
                services=report.services,
                written=report.objects_put,
                removed=report.objects_dropped,
                transactions=report.transactions,
                lines=report.lines,
                decide_ms=_milliseconds(report.decide_seconds),
                observe_ms=_milliseconds(report.observe_seconds),
                diff_ms=_milliseconds(report.diff_seconds),
                write_ms=_milliseconds(report.write_seconds),
                total_ms=_milliseconds(seconds),
            )

    # --- looking after what was written ---

    def _tend(self) -> None:
        now = self._clock()
        moments = [proxy.dataplane.tend(now) for proxy in self._families]
        self._tend_at = min((m for m in moments if m is not None), default=None)

    def _probe_if_due(self) -> None:
        now = self._clock()
        suspected = self._suspicions.take()
        if now >= self._probe_at:
            self._probe_at = now + self._config.sync_period_seconds
            suspected = set(Family)
        if self._stop.is_set():
            return
        for proxy in self._families:
            if proxy.family not in suspected or proxy.dataplane.intact():
                continue
            log.warning(
                "our rules were flushed by somebody else, writing them again",
                family=proxy.family.value,
            )
            self._backlogs[proxy.family].broken(now)
            self._listener.repairing(proxy.family, edited=False)
            proxy.reconciler.distrust()
            # At once: Services do not work now. A failure is then retried like any other.
            self._pacer.urge(now)

    def _learn_if_quiet(self) -> None:
        now = self._clock()
        if now >= self._verify_at:
            self._verify_at = now + VERIFY_SECONDS
            for proxy in self._families:
                proxy.reconciler.recheck()
            # With a change under way, once it is quiet again.
            self._learn_at = self._learn_at or now
        if self._learn_at is None or now < self._learn_at:
            return
        self._learn_at = self._learn_by = None
        for proxy in self._families:
            if proxy.family in self._learning:
                self._learn_at = now + QUIET_SECONDS
                continue
            lesson = proxy.reconciler.lesson()
            if lesson is not None:
                self._learning.add(proxy.family)
                self._beside(partial(self._learn, proxy, lesson))
        self._judge()

    def _learn(self, proxy: FamilyProxy[Any, Any], lesson: Callable[[], bool | None]) -> None:
        """Not on the sync thread."""
        verdict, failed = None, False
        try:
            verdict = lesson()
        except HostError as error:
            failed = True
            log.warning("rules not read back", family=proxy.family.value, reason=str(error))
        self._verdicts.append((proxy, verdict, failed))
        self._mailbox.wake()

    def _judge(self) -> None:
        """Hear what was found beside."""
        while self._verdicts:
            proxy, verdict, failed = self._verdicts.popleft()
            self._learning.discard(proxy.family)
            if proxy.reconciler.judge(verdict):
                log.warning(
                    "somebody edited our rules, writing them again", family=proxy.family.value
                )
                now = self._clock()
                self._backlogs[proxy.family].broken(now)
                self._listener.repairing(proxy.family, edited=True)
                self._pacer.urge(now)
            elif verdict is None and self._learn_at is None:
                pause = UNQUIET_SECONDS if failed else QUIET_SECONDS
                self._learn_at = self._clock() + pause

    def _remember(self) -> None:
        """Have it noted what is written by now, for the next start."""
        for proxy in self._families:
            try:
                proxy.reconciler.learn()
            except HostError as error:
                log.warning("rules not remembered", family=proxy.family.value, reason=str(error))

    def _next_wait(self) -> float | None:
        now = self._clock()
        if not self._ready:
            until = self._waiting.until if self._waiting else None
            return max(0.0, min(self._complain_at, until or self._complain_at) - now)
        moments = [
            *(self._probe_at, self._pacer.next_at, self._learn_at, self._tend_at),
            *(self._refresh_at, self._verify_at),
        ]
        return max(0.0, min(m for m in moments if m is not None) - now)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _news(before: NodeContext, now: NodeContext) -> dict[str, str]:
    """What is another now, by its name."""
    was, becomes = structs.asdict(before), structs.asdict(now)
    return {name: str(value) for name, value in becomes.items() if value != was[name]}
