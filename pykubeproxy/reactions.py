"""What follows from a pass: health, metrics, Events, health check ports, stale UDP flows.

Called on the sync thread, so nothing in here waits, and the next pass could not either: what is
slow goes to threads of its own, and the rest costs as much as changed, whatever there is besides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any

import structlog
from msgspec import structs

from pykubeproxy.host.conntrack import remove_stale
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import Kind, Node, ServiceKey
from pykubeproxy.serve.health import HealthServer, now
from pykubeproxy.serve.service_health import ServiceHealth
from pykubeproxy.serve.status import Status
from pykubeproxy.sync.backlog import causes
from pykubeproxy.sync.flows import FlowTable, Scope, joined
from pykubeproxy.sync.outcome import is_leftover
from pykubeproxy.sync.reconciler import Reconciler, Report
from pykubeproxy.sync.store import Arrivals
from pykubeproxy.watch.events import Happening

__all__ = ["FlowCleaner", "Reactions"]

log = structlog.get_logger(__name__)

Refused = Callable[[ServiceKey, int, str], None]
"""Hears of a health check node port that cannot be opened: Service, port, reason."""

REMEMBERED_PROBLEMS = 4096
"""So many problems are remembered as told; then they may be told again."""

Removal = tuple[Family, FlowTable, Scope]


class FlowCleaner:
    """Removes stale UDP flows on a thread of its own.

    What is asked for while it is at work is gathered and done in one go, by the newest decisions:
    walking the kernel's table may take longer than a pass, and a storm would pile up runs.
    """

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._queue: SimpleQueue[Removal | None] = SimpleQueue()
        self._failed: dict[Family, SimpleQueue[Scope]] = {f: SimpleQueue() for f in Family}
        self._thread = Thread(target=self._run, name="conntrack", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, family: Family, table: FlowTable, scope: Scope) -> None:
        self._queue.put((family, table, scope))

    def take_failed(self, family: Family) -> list[Scope]:
        """Take what could not be looked at, to be asked for again."""
        failed = []
        while not self._failed[family].empty():
            failed.append(self._failed[family].get())
        return failed

    def _run(self) -> None:
        going_on = True
        while going_on:
            gathered: dict[Family, tuple[FlowTable, Scope]] = {}
            # Waits for the first, and takes what else is there.
            while going_on and not (gathered and self._queue.empty()):
                removal = self._queue.get()
                if removal is None:
                    going_on = False
                    continue
                family, table, scope = removal
                known = gathered.get(family)
                gathered[family] = joined(*known, table, scope) if known else (table, scope)
            for family, (table, scope) in gathered.items():
                self._remove(family, table, scope)

    def _remove(self, family: Family, table: FlowTable, scope: Scope) -> None:
        started = self._clock()
        removed = remove_stale(family, table, scope)
        seconds = self._clock() - started
        listed = removed.complete or removed.listed > 0
        self._metrics.conntrack_ran(family, seconds, removed.deleted, listed=listed)
        if not removed.complete:
            self._failed[family].put(scope)
        if removed.deleted:
            log.info(
                "stale UDP flows removed",
                family=family.value,
                removed=removed.deleted,
                looked_at=removed.listed,
            )


class Reactions:
    """The `pykubeproxy.loop.Listener` of the daemon."""

    def __init__(
        self,
        metrics: Metrics,
        health: HealthServer,
        status: Status,
        open_ports: Callable[[NodeContext, Refused], ServiceHealth],
        cleaner: FlowCleaner,
        record: Callable[[Happening], None],
        once_in_sync: Callable[[], None] = lambda: None,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        """*open_ports* makes and starts the responders for health check node ports of a family.

        *once_in_sync* is called once, after every family's first successful pass.
        """
        self._metrics = metrics
        self._health = health
        self._status = status
        self._open_ports = open_ports
        self._service_health: dict[Family, ServiceHealth] = {}
        self._port_addresses: dict[Family, tuple[str, ...] | None] = {}
        self._unfilled: set[Family] = set()
        self._cleaner = cleaner
        self._post = record
        self.uid_of: Callable[[ServiceKey], str] = lambda _: ""  # of a Service; may be changed
        self._once_in_sync: Callable[[], None] | None = once_in_sync
        self._in_sync: set[Family] = set()
        self._lacking: tuple[str, ...] = ()
        self._awaited = ""
        self._families: tuple[Family, ...] = ()
        self._node_name = ""
        self._unix_clock = unix_clock
        self._began = unix_clock()
        """Changes in the cluster before that say nothing of this proxy."""
        self._told: set[tuple[ServiceKey, str]] = set()
        self._publish(status)

    def node_described(self, contexts: Mapping[Family, NodeContext]) -> None:
        """Open health check node ports where node ports are served; the next pass fills them."""
        for family, context in contexts.items():
            self._node_name = context.name
            addresses = context.nodeport_addresses
            if family in self._service_health:
                if self._port_addresses[family] == addresses:
                    continue
                self._service_health[family].stop()
            self._port_addresses[family] = addresses
            self._service_health[family] = self._open_ports(context, self.port_refused)
            self._unfilled.add(family)

    def close(self) -> None:
        """Close the health check node ports; after the last call of any other method."""
        for responders in self._service_health.values():
            responders.stop()

    def started(self, families: Sequence[Family]) -> None:
        """As kube-proxy, which counts a family as updated, and as asked to sync, at its start."""
        self._families = tuple(families)
        moment = now()
        status = self._status
        for family in families:
            status = status.with_updated(family, moment)
            self._metrics.started(family)
            self._metrics.sync_queued(family, moment.unix_seconds)
        self._publish(status.with_waiting(self._missing()))

    def received(
        self, arrivals: Arrivals, families: Sequence[Family], changed_services: int
    ) -> None:
        # As in kube-proxy: each family looks at every Service, and at the slices of its own.
        self._metrics.received(
            services=arrivals.services * len(families),
            slices=sum(arrivals.slices[family] for family in families),
            changed_slices=sum(arrivals.changed_slices[family] for family in families),
        )
        self._metrics.services_pending(changed_services)

    def lacking(self, kinds: Sequence[Kind]) -> None:
        self._lacking = tuple(f"{kind} list" for kind in kinds)
        self._publish(self._status.with_waiting(self._missing()))

    def awaiting(self, what: str) -> None:
        self._awaited = what
        self._publish(self._status.with_waiting(self._missing()))

    def syncing(self) -> None:
        self._metrics.nothing_pending()

    def _missing(self) -> list[str]:
        unsynced = (f for f in self._families if f not in self._in_sync)
        awaited = [self._awaited] if self._awaited else []
        return [*self._lacking, *awaited, *(f"first sync {family}" for family in unsynced)]

    def node_changed(self, node: Node | None) -> None:
        self._publish(self._status.with_node(node))

    def mismatched(self, note: str) -> None:
        self._record(Happening("ClusterCIDRMismatch", "StartKubeProxy", note))

    def requested(self, families: Iterable[Family]) -> None:
        status = self._status
        moment = now()
        for family in families:
            status = status.with_queued(family, moment)
            self._metrics.sync_queued(family, moment.unix_seconds)
        self._publish(status)

    def synced(self, reconciler: Reconciler[Any, Any], report: Report, seconds: float) -> None:
        family = report.family
        self._count(reconciler, report, seconds)
        for entry in report.quarantined:
            if is_leftover(entry.owner):
                continue
            self._record(
                Happening(
                    "FailedToProgramService",
                    "Quarantine",
                    # Without the time until the next try: repeated, it is to be the same Event.
                    f"the kernel refuses the {family.value} rules of this Service on this node, "
                    f"which are tried again, at least every five minutes: {entry.detail}",
                    service=entry.owner if entry.owner.name and entry.owner.namespace else None,
                )
            )
        for owner in report.recovered:
            if owner.namespace:
                self._record(
                    Happening(
                        "ProgrammedService",
                        "Recover",
                        f"the kernel took the {family.value} rules of this Service on this node, "
                        "which it had refused before",
                        warning=False,
                        service=owner,
                    )
                )
        for service, problem in report.problems:
            self._tell(service, problem)
        if not report.succeeded:
            return
        moment = now()
        self._in_sync.add(family)
        status = self._status.with_updated(family, moment)
        self._publish(status.with_waiting(self._missing()))
        self._metrics.sync_succeeded(family, moment.unix_seconds)
        self._metrics.no_local_endpoints(family, *reconciler.no_local_endpoints)
        self._serve_health_checks(reconciler)
        for failed in self._cleaner.take_failed(family):
            reconciler.flows.give_back(failed)
        scope = reconciler.flows.take_scope()
        if scope is not None:
            self._cleaner.submit(family, reconciler.flows.table(scope), scope)
        if self._once_in_sync is not None and self._in_sync >= self._service_health.keys():
            self._metrics.ready()
            self._once_in_sync()
            self._once_in_sync = None

    def _serve_health_checks(self, reconciler: Reconciler[Any, Any]) -> None:
        family = reconciler.family
        changed = reconciler.take_health_checks()
        self._metrics.health_ports(family, len(reconciler.health_checks))
        responders = self._service_health.get(family)
        if responders is None:
            return
        if family in self._unfilled:
            self._unfilled.remove(family)
            responders.sync(reconciler.health_checks)
        else:
            responders.update(changed)

    def _tell(self, service: ServiceKey, problem: str) -> None:
        """Say on the Service itself what of it is not done; once, not for each family."""
        if (service, problem) in self._told:
            return
        if len(self._told) >= REMEMBERED_PROBLEMS:
            self._told.clear()
        self._told.add((service, problem))
        self._record(Happening("ServiceNotAsConfigured", "Sync", problem, service=service))

    def _count(self, reconciler: Reconciler[Any, Any], report: Report, seconds: float) -> None:
        family = report.family
        self._metrics.sync_ended(family, seconds, full=report.full)
        self._count_stages(report)
        if report.succeeded:
            caused = causes(report.triggers, self._began)
            if caused:
                unix_seconds = self._unix_clock()
                self._metrics.programmed(family, [unix_seconds - cause for cause in caused])
            self._metrics.changes_landed(family, report.waited)
        else:
            self._metrics.sync_failed(family)
        self._metrics.quarantined(family, reconciler.take_quarantine_changes())
        for (scope, outcome), count in report.outcomes.items():
            self._metrics.transactions(family, scope, outcome, count)
        if not report.full and any(outcome != "applied" for _, outcome in report.outcomes):
            self._metrics.partial_restore_failed(family)
        for scope, sent in report.sent.items():
            self._metrics.written(
                family,
                scope,
                rules=sent.rules,
                chains=sent.chains,
                lines=sent.lines,
                sent_bytes=sent.bytes,
            )
        self._metrics.decided(family, report.services, report.routes, report.objects)
        self._metrics.objects_changed(family, report.put, report.dropped)
        self._metrics.last_sync(family, report.transactions, report.bytes)
        if report.observed:
            self._metrics.read_back(family)
        if report.planned and reconciler.counts:
            written = {scope: sent.rules for scope, sent in report.sent.items()}
            self._metrics.holds(family, reconciler.counts, written)

    def _count_stages(self, report: Report) -> None:
        """Only stages that there were: a pass mostly compares with its notes, not the kernel."""
        family = report.family
        self._metrics.stage(family, "decide", report.decide_seconds)
        if report.observed:
            self._metrics.stage(family, "observe", report.observe_seconds)
        if report.planned:
            self._metrics.stage(family, "diff", report.diff_seconds)
        if report.outcomes:
            self._metrics.stage(family, "write", report.write_seconds)

    def repairing(self, family: Family, *, edited: bool) -> None:
        self._metrics.repaired(family)
        reason, what = ("RulesEdited", "changed") if edited else ("RulesFlushed", "removed")
        self._record(
            Happening(
                reason,
                "Repair",
                f"another program {what} this proxy's {family.value} rules on this node; "
                "they are written again",
            )
        )

    def port_refused(self, service: ServiceKey, port: int, reason: str) -> None:
        """A health check node port could not be opened; tried again at the next sync."""
        log.error(
            "health check node port not opened", service=str(service), port=port, reason=reason
        )
        self._record(
            Happening(
                "FailedToStartServiceHealthcheck",
                "Listen",
                f'node {self._node_name} failed to start healthcheck "{service}" '
                f"on port {port}: {reason}",
                service=service,
            )
        )

    def _record(self, happening: Happening) -> None:
        if happening.service is not None:
            uid = self.uid_of(happening.service)
            happening = structs.replace(happening, service_uid=uid)
        self._post(happening)

    def _publish(self, status: Status) -> None:
        self._status = status
        self._health.publish(status)
