"""Metrics under kube-proxy's names, plus our own, behind plain methods.

Those who count call methods of `Metrics` and know nothing of Prometheus. Names, labels, buckets
and the moments of change that kube-proxy has are kept, so existing dashboards and alerts work; see
its pkg/proxy/metrics.

Ours begin with ``pykubeproxy_``. Those of the work of a pass count what was visited, compiled and
written, which follows what changed and not how many Services there are; a scrape counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client import GCCollector, PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from pykubeproxy.measures import Counts, Distribution, Gauges, Labels, Measure, Readings, Text
from pykubeproxy.metrics.platform import build_measures, feature_gates, process_measures
from pykubeproxy.metrics.registry import Measures, Registry
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey

__all__ = ["NETWORK_BUCKETS", "SYNC_BUCKETS", "Metrics"]

SYNC_BUCKETS = tuple(0.001 * 2**power for power in range(15))
NETWORK_BUCKETS = (0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
"""As kube-proxy's, which tell nothing of a proxy that is done in milliseconds.

The 0 is in no list there: component-base's MergeBuckets begins with one, and so ``le="0"`` is a
series. Only clocks that differ put anything into it.
"""
FINE_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1, 2, 5, 10, 20, 30, 60, 120, 300),
)
"""For latencies that include other programs: 1 ms to five minutes."""

_TABLES = frozenset({"filter", "nat", "mangle"})
_COUNTED_TABLES = ("filter", "nat")
"""Those of which kube-proxy tells rules."""
_FAMILY = ("ip_family",)


class Metrics:
    """One set of metrics in a registry of its own. Methods may be called from any thread.

    *mode* is the one that runs: as with kube-proxy, some metrics are there in one mode only.
    """

    def __init__(self, mode: str = "iptables") -> None:
        self.registry = Registry()
        self._measures = Measures()
        self.registry.register(self._measures)
        self._mode = mode
        self._named: dict[Family, set[ServiceKey]] = {}
        self._add_kube_proxys()
        self._add_work()
        self._add_ours()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        for measure in (*build_measures(), *process_measures()):
            self.follow(measure)

    # --- what is set once ---

    def follow(self, *measures: Measure) -> None:
        """Show what somebody else counts, too."""
        for measure in measures:
            self._measures.add(measure)

    def runs_in_mode(self, running: str, configured: str) -> None:
        self._running.set(1, running, configured)

    def features(self, gates: Mapping[str, bool]) -> None:
        """Say which feature gates are on; once."""
        self.follow(feature_gates(gates))

    def follow_packets(self, name: str, text: str, read: Callable[[], int | None]) -> None:
        """Add a counter that *read* tells at every scrape; absent while it returns ``None``.

        For nfacct: ``kubeproxy_iptables_ct_state_invalid_dropped_packets`` and
        ``kubeproxy_iptables_localhost_nodeports_accepted_packets`` (``_total`` is added).
        """

        def values() -> dict[Labels, float]:
            packets = read()
            return {} if packets is None else {(): float(packets)}

        self.follow(Readings(Text(f"{name}_total", text, (), "ALPHA"), values, counter=True))

    def follow_changes(
        self, oldest: Callable[[], Mapping[Family, float | None]], clock: Callable[[], float]
    ) -> None:
        """Show how old the oldest change is that the kernel does not have; ``None``: there is none.

        *oldest* is asked at each scrape for the moment that it came, on *clock*.
        """

        def ages() -> dict[Labels, float]:
            now = clock()
            return {
                (family.value,): 0.0 if since is None else max(0.0, now - since)
                for family, since in oldest().items()
            }

        name = "pykubeproxy_out_of_sync_seconds"
        self.follow(
            Readings(Text(name, "Age of the oldest change not yet in the kernel", _FAMILY), ages)
        )

    # --- what comes in ---

    def received(self, *, services: int, slices: int, changed_slices: int) -> None:
        """So many events arrived, and so many of the slices' said something new."""
        self._service_changes.add(by=services)
        self._endpoint_changes.add(by=slices)
        self._endpoints_pending.add(changed_slices)

    def services_pending(self, count: int) -> None:
        self._services_pending.set(count)

    def nothing_pending(self) -> None:
        """A pass took all there was."""
        self._services_pending.set(0)
        self._endpoints_pending.set(0)

    def ready(self) -> None:
        """First lists are complete, and every family has synced once."""
        self._ready.set(1)

    # --- passes ---

    def started(self, family: Family) -> None:
        """The loop begins. Of ours, what may begin with a single event is 0 from now on.

        Prometheus' increase() does not count how a series appears. kube-proxy's begin when they
        do there.
        """
        for counter in (self._sync_failures, self._repairs, self._lock_wait):
            counter.add(family.value, by=0)
        self._our_conntrack_deleted.add(family.value, by=0)
        self._quarantined.set(0, family.value)

    def sync_queued(self, family: Family, unix_seconds: float) -> None:
        self._last_queued.set(unix_seconds, family.value)

    def sync_ended(self, family: Family, seconds: float, *, full: bool = False) -> None:
        """A pass ran, successfully or not. *full*: it looked at everything."""
        self._sync_duration.observe(seconds, family.value)
        if self._mode == "iptables":
            (self._full if full else self._partial).observe(seconds, family.value)

    def sync_succeeded(self, family: Family, unix_seconds: float) -> None:
        self._last_timestamp.set(unix_seconds, family.value)

    def sync_failed(self, family: Family) -> None:
        self._sync_failures.add(family.value)

    def partial_restore_failed(self, family: Family) -> None:
        """Something was refused in a pass that did not look at everything."""
        if self._mode == "iptables":
            self._partial_failures.add(family.value)

    def programmed(self, family: Family, seconds: Sequence[float]) -> None:
        """So long after their cause in the cluster, changes of endpoints are in the kernel."""
        if seconds:
            self._programming.observe_all(seconds, family.value)
            self._our_programming.observe_all(seconds, family.value)

    def changes_landed(self, family: Family, seconds: Iterable[float]) -> None:
        """So long after they came here, changes are in the kernel."""
        self._change_duration.observe_all(seconds, family.value)

    def stage(self, family: Family, stage: str, seconds: float) -> None:
        """*stage* is ``decide``, ``observe``, ``diff`` or ``write``."""
        self._stages.observe(seconds, stage, family.value)

    def decided(self, family: Family, services: int, routes: int, objects: int) -> None:
        """A pass decided about so many Services, which made so many objects of so many routes."""
        self._services_decided.add(family.value, by=services)
        self._routes_compiled.add(family.value, by=routes)
        self._objects_compiled.add(family.value, by=objects)
        self._last_services.set(services, family.value)

    def objects_changed(
        self, family: Family, put: Mapping[str, int], dropped: Mapping[str, int]
    ) -> None:
        """A pass wrote and removed so many objects of each kind."""
        for counter, kinds in ((self._objects_written, put), (self._objects_removed, dropped)):
            for kind, count in kinds.items():
                counter.add(kind, family.value, by=count)
        self._last_objects.set(sum(put.values()) + sum(dropped.values()), family.value)

    def written(
        self, family: Family, scope: str, *, rules: int, chains: int, lines: int, sent_bytes: int
    ) -> None:
        """A pass wrote that to the iptables table *scope*; elsewhere *rules* are messages."""
        self._bytes_sent.add(scope, family.value, by=sent_bytes)
        if scope in _TABLES:
            self._rules_written.add(family.value, by=rules)
            self._chains_written.add(family.value, by=chains)
            self._lines_sent.add(family.value, by=lines)
        else:
            self._messages_sent.add(scope, family.value, by=rules)

    def last_sync(self, family: Family, transactions: int, sent_bytes: int) -> None:
        """A pass ended that needed so many transactions."""
        self._last_transactions.set(transactions, family.value)
        self._last_bytes.set(sent_bytes, family.value)

    def read_back(self, family: Family) -> None:
        """A pass compared with what the kernel holds."""
        self._read_backs.add(family.value)

    def holds(self, family: Family, wanted: Mapping[str, int], written: Mapping[str, int]) -> None:
        """How much there is to be, and how much of it the last pass wrote, also none.

        In iptables mode these are rules by table, in ipvs mode ``virtual`` and ``real`` servers.
        """
        if self._mode == "iptables":
            for table in _COUNTED_TABLES:
                self._iptables_total.set(wanted.get(table, 0), table, family.value)
                self._iptables_last.set(written.get(table, 0), table, family.value)
        elif self._mode == "ipvs":
            self._virtual_servers.set(wanted.get("virtual", 0), family.value)
            self._real_servers.set(wanted.get("real", 0), family.value)

    def transactions(self, family: Family, scope: str, outcome: str, count: int) -> None:
        """*outcome* is ``applied``, ``partly``, ``rejected`` or ``unknown``."""
        self._transactions.add(outcome, family.value, by=count)
        if scope in _TABLES and outcome != "applied":
            self._restore_failures.add(family.value, by=count)

    # --- what follows from passes ---

    def no_local_endpoints(self, family: Family, internal: int, external: int) -> None:
        """How many have a Local policy, endpoints, but none here: service ports, in ipvs mode
        Services.
        """
        self._no_local_endpoints.set(internal, "internal", family.value)
        self._no_local_endpoints.set(external, "external", family.value)

    def conntrack_ran(
        self, family: Family, seconds: float, deleted: int, *, listed: bool = True
    ) -> None:
        """Stale flows were looked for; *listed*: the kernel's table could be read."""
        if listed:
            self._conntrack_duration.observe(seconds, family.value)
            self._conntrack_deleted.add(family.value, by=deleted)
            self._our_conntrack_deleted.add(family.value, by=deleted)

    def health_ports(self, family: Family, count: int) -> None:
        self._health_ports.set(count, family.value)

    def health_answered(self, path: str, code: int) -> None:
        """*path* is ``healthz`` or ``livez``; others are not counted."""
        if path == "healthz":
            self._healthz.add(str(code))
        elif path == "livez":
            self._livez.add(str(code))

    def quarantined(self, family: Family, moved: Mapping[ServiceKey, bool]) -> None:
        """Say who went into quarantine (true) or is not in it any more and loses its series."""
        known = self._named.setdefault(family, set())
        for service, is_in in moved.items():
            if is_in:
                self._quarantine.set(1, *service, family.value)
                known.add(service)
            elif service in known:
                self._quarantine.remove(*service, family.value)
                known.remove(service)
        self._quarantined.set(len(known), family.value)

    def lock_waited(self, family: Family, seconds: float) -> None:
        """A run of iptables-restore gave up waiting for the xtables lock; it is run again."""
        self._lock_wait.add(family.value, by=seconds)
        self._restore_failures.add(family.value)

    def repaired(self, family: Family, rules: int = 1) -> None:
        self._repairs.add(family.value, by=rules)

    def config_file_valid(self, valid: bool) -> None:
        """Whether the configuration file on disk is what runs, or was refused."""
        self._config_file_valid.set(float(valid))

    # --- names ---

    def _add_kube_proxys(self) -> None:
        iptables = self._mode == "iptables"
        self._sync_duration = self._histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds"
        )
        if iptables:
            self._full = self._histogram(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for full resyncs",
            )
            self._partial = self._histogram(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "SyncProxyRules latency in seconds for partial resyncs",
            )
        self._last_timestamp = self._gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
        )
        self._last_queued = self._gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
        )
        self._programming = self._histogram(
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            NETWORK_BUCKETS,
        )
        self._endpoints_pending = self._gauge(
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "Pending proxy rules Endpoint changes",
            (),
        )
        self._endpoint_changes = self._counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "Cumulative proxy rules Endpoint changes",
            (),
        )
        self._services_pending = self._gauge(
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "Pending proxy rules Service changes",
            (),
        )
        self._service_changes = self._counter(
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "Cumulative proxy rules Service changes",
            (),
        )
        self._no_local_endpoints = self._gauge(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            ("traffic_policy", "ip_family"),
        )
        self._healthz = self._counter(
            "kubeproxy_proxy_healthz_total", "Cumulative proxy healthz HTTP status", ("code",)
        )
        self._livez = self._counter(
            "kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status", ("code",)
        )
        self._restore_failures = self._counter(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
            "Cumulative proxy iptables restore failures",
        )
        if iptables:
            self._partial_failures = self._counter(
                "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                "Cumulative proxy iptables partial restore failures",
            )
            self._iptables_total = self._gauge(
                "kubeproxy_sync_proxy_rules_iptables_total",
                "Total number of iptables rules owned by kube-proxy",
                ("table", "ip_family"),
            )
            self._iptables_last = self._gauge(
                "kubeproxy_sync_proxy_rules_iptables_last",
                "Number of iptables rules written by kube-proxy in last sync",
                ("table", "ip_family"),
            )
        self._conntrack_duration = self._histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "ReconcileConntrackFlowsLatency latency in seconds",
        )
        self._conntrack_deleted = self._counter(
            "kubeproxy_conntrack_reconciler_deleted_entries_total",
            "Cumulative conntrack flows deleted by conntrack reconciler",
        )

    def _add_work(self) -> None:
        self._services_decided = self._counter(
            "pykubeproxy_services_decided_total", "Services that a sync decided about"
        )
        self._routes_compiled = self._counter(
            "pykubeproxy_routes_compiled_total", "Service ports that a sync made kernel objects of"
        )
        self._objects_compiled = self._counter(
            "pykubeproxy_objects_compiled_total",
            "Kernel objects made of them, to compare and not to write",
        )
        self._objects_written = self._counter(
            "pykubeproxy_objects_written_total",
            "Kernel objects written because they differed, by kind (a chain, a virtual server)",
            ("kind", "ip_family"),
        )
        self._objects_removed = self._counter(
            "pykubeproxy_objects_removed_total",
            "Kernel objects removed, by kind",
            ("kind", "ip_family"),
        )
        self._chains_written = self._counter(
            "pykubeproxy_chains_written_total",
            "iptables chains made, or emptied to be filled or removed",
        )
        self._rules_written = self._counter(
            "pykubeproxy_rules_written_total", "Rules written to the kernel"
        )
        self._lines_sent = self._counter(
            "pykubeproxy_sent_lines_total", "Lines given to iptables-restore that it committed"
        )
        self._bytes_sent = self._counter(
            "pykubeproxy_sent_bytes_total",
            "Bytes given to iptables-restore or sent by netlink that changed something",
            ("scope", "ip_family"),
        )
        self._messages_sent = self._counter(
            "pykubeproxy_netlink_messages_total",
            "Netlink messages that changed something, by what they were about",
            ("scope", "ip_family"),
        )
        self._transactions = self._counter(
            "pykubeproxy_transactions_total",
            "Transactions sent to the kernel, by how they ended",
            ("outcome", "ip_family"),
        )
        self._read_backs = self._counter(
            "pykubeproxy_read_backs_total", "Syncs that read back all that the kernel holds"
        )
        self._last_services = self._gauge(
            "pykubeproxy_last_sync_services", "Services that the last sync decided about"
        )
        self._last_objects = self._gauge(
            "pykubeproxy_last_sync_objects", "Kernel objects that the last sync wrote or removed"
        )
        self._last_transactions = self._gauge(
            "pykubeproxy_last_sync_transactions",
            "Transactions of the last sync, however they ended; one iptables-restore run each",
        )
        self._last_bytes = self._gauge(
            "pykubeproxy_last_sync_bytes", "Bytes that the last sync sent to the kernel"
        )

    def _add_ours(self) -> None:
        self._our_programming = self._histogram(
            "pykubeproxy_network_programming_duration_seconds",
            "From a change of a Service's endpoints in the cluster until the kernel has it",
            FINE_BUCKETS,
        )
        self._change_duration = self._histogram(
            "pykubeproxy_change_duration_seconds",
            "From the arrival of a change in this process until the kernel has it",
            FINE_BUCKETS,
        )
        self._stages = self._histogram(
            "pykubeproxy_sync_stage_duration_seconds",
            "Stages of syncs: decide, observe, diff, write",
            SYNC_BUCKETS,
            ("stage", "ip_family"),
        )
        self._sync_failures = self._counter(
            "pykubeproxy_sync_failures_total", "Syncs that failed and are tried again"
        )
        self._ready = self._gauge(
            "pykubeproxy_ready", "1 once first lists are complete and every family has synced", ()
        )
        self._quarantine = self._gauge(
            "pykubeproxy_service_quarantined",
            "1 for each Service whose rules the kernel refused and that waits for another try",
            ("namespace", "service", "ip_family"),
        )
        self._quarantined = self._gauge(
            "pykubeproxy_services_quarantined",
            "Services whose rules the kernel refused and that wait for another try",
        )
        self._lock_wait = self._counter(
            "pykubeproxy_xtables_lock_wait_seconds_total",
            "Time spent waiting for the xtables lock",
        )
        self._repairs = self._counter(
            "pykubeproxy_repairs_total", "Rules found missing or changed by others, written again"
        )
        if self._mode == "ipvs":
            self._virtual_servers = self._gauge(
                "pykubeproxy_virtual_servers", "IPVS virtual servers that there are to be"
            )
            self._real_servers = self._gauge(
                "pykubeproxy_real_servers", "IPVS real servers that there are to be"
            )
        self._our_conntrack_deleted = self._counter(
            "pykubeproxy_conntrack_deletions_total", "Stale connection tracking entries deleted"
        )
        self._health_ports = self._gauge(
            "pykubeproxy_service_health_ports", "Health check node ports that there are to be"
        )
        self._running = self._gauge(
            "pykubeproxy_proxy_mode",
            "1 for the mode that runs; it differs from the configured one after a fallback",
            ("running", "configured"),
        )
        self._config_file_valid = self._gauge(
            "pykubeproxy_config_file_valid",
            "0 while the configuration file was changed to one that is refused and so not in force",
            (),
        )
        self._config_file_valid.set(1)

    def _histogram(
        self,
        name: str,
        text: str,
        bounds: Sequence[float] = SYNC_BUCKETS,
        labels: tuple[str, ...] = _FAMILY,
    ) -> Distribution:
        measure = Distribution(_text(name, text, labels), bounds)
        self.follow(measure)
        return measure

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = _FAMILY) -> Gauges:
        measure = Gauges(_text(name, text, labels))
        self.follow(measure)
        return measure

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = _FAMILY) -> Counts:
        measure = Counts(_text(name, text, labels))
        self.follow(measure)
        return measure


def _text(name: str, text: str, labels: tuple[str, ...]) -> Text:
    return Text(name, text, labels, "ALPHA" if name.startswith("kubeproxy_") else "")
