"""Prometheus metrics under kube-proxy's names, plus a few of our own, behind plain methods.

The sync code calls methods of `Metrics` and knows nothing of Prometheus. Names, labels and buckets
that kube-proxy has are kept, so existing dashboards and alerts work; see its pkg/proxy/metrics.

Ours begin with ``pykubeproxy_``. Those of the work of a pass count what was visited, compiled and
written, which follows what changed and not how many Services there are; a scrape counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey

__all__ = ["Metrics"]

_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_FAMILY = ["ip_family"]
_TABLES = frozenset({"filter", "nat", "mangle"})
_COUNTED_TABLES = ("filter", "nat")
"""Those of which kube-proxy tells rules."""


class Metrics:
    """One set of metrics in a registry of its own. Methods may be called from any thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._sync_duration = self._histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds"
        )
        self._last_timestamp = self._gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "The last time proxy rules were successfully synced",
        )
        self._last_queued = self._gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "The last time a sync of proxy rules was queued",
        )
        self._iptables_total = self._gauge(
            "kubeproxy_sync_proxy_rules_iptables_total",
            "Total number of iptables rules owned by kube-proxy",
            ["table", "ip_family"],
        )
        self._iptables_last = self._gauge(
            "kubeproxy_sync_proxy_rules_iptables_last",
            "Number of iptables rules written by kube-proxy in last sync",
            ["table", "ip_family"],
        )
        self._restore_failures = self._counter(
            "kubeproxy_sync_proxy_rules_iptables_restore_failures",
            "Cumulative proxy iptables restore failures",
        )
        self._endpoint_changes = self._counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes",
            "Cumulative proxy rules Endpoint changes",
            [],
        )
        self._service_changes = self._counter(
            "kubeproxy_sync_proxy_rules_service_changes",
            "Cumulative proxy rules Service changes",
            [],
        )
        self._no_local_endpoints = self._gauge(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Number of services with a Local traffic policy and no endpoints",
            ["traffic_policy", "ip_family"],
        )
        self._conntrack_duration = self._histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds",
            "ReconcileConntrackFlowsLatency latency in seconds",
        )
        self._conntrack_deleted = self._counter(
            "kubeproxy_conntrack_reconciler_deleted_entries",
            "Cumulative conntrack flows deleted by conntrack reconciler",
        )
        self._healthz = self._counter(
            "kubeproxy_proxy_healthz", "Cumulative proxy healthz HTTP status", ["code"]
        )
        self._livez = self._counter(
            "kubeproxy_proxy_livez", "Cumulative proxy livez HTTP status", ["code"]
        )
        self._named: dict[Family, set[ServiceKey]] = {}
        self._quarantine = self._gauge(
            "pykubeproxy_service_quarantined",
            "1 for each Service whose rules the kernel refused and that waits for another try",
            ["namespace", "service", "ip_family"],
        )
        self._quarantined = self._gauge(
            "pykubeproxy_services_quarantined",
            "Services whose rules the kernel refused and that wait for another try",
        )
        self._lock_wait = self._counter(
            "pykubeproxy_xtables_lock_wait_seconds", "Time spent waiting for the xtables lock"
        )
        self._repairs = self._counter(
            "pykubeproxy_repairs", "Rules found missing or changed by others, and written again"
        )
        self._services_decided = self._counter(
            "pykubeproxy_services_decided", "Services that a sync decided about"
        )
        self._routes_compiled = self._counter(
            "pykubeproxy_routes_compiled", "Service ports that a sync made kernel objects of"
        )
        self._objects_compiled = self._counter(
            "pykubeproxy_objects_compiled",
            "Kernel objects made of them, to compare and not to write",
        )
        self._objects_written = self._counter(
            "pykubeproxy_objects_written",
            "Kernel objects written because they differed, by kind (a chain, a virtual server)",
            ["kind", "ip_family"],
        )
        self._objects_removed = self._counter(
            "pykubeproxy_objects_removed", "Kernel objects removed, by kind", ["kind", "ip_family"]
        )
        self._chains_written = self._counter(
            "pykubeproxy_chains_written", "iptables chains made, or emptied to be filled or removed"
        )
        self._rules_written = self._counter(
            "pykubeproxy_rules_written", "Rules written to the kernel"
        )
        self._lines_sent = self._counter(
            "pykubeproxy_sent_lines", "Lines given to iptables-restore that it committed"
        )
        self._bytes_sent = self._counter(
            "pykubeproxy_sent_bytes",
            "Bytes given to iptables-restore or sent by netlink that changed something",
            ["scope", "ip_family"],
        )
        self._read_backs = self._counter(
            "pykubeproxy_read_backs", "Syncs that read back all that the kernel holds"
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
        self._messages_sent = self._counter(
            "pykubeproxy_netlink_messages",
            "Netlink messages that changed something, by what they were about",
            ["scope", "ip_family"],
        )
        self._transactions = self._counter(
            "pykubeproxy_transactions",
            "Transactions sent to the kernel, by how they ended",
            ["outcome", "ip_family"],
        )
        self._mode = self._gauge(
            "pykubeproxy_proxy_mode",
            "1 for the mode that runs; it differs from the configured one after a fallback",
            ["running", "configured"],
        )
        ProcessCollector(registry=self.registry)

    def runs_in_mode(self, running: str, configured: str) -> None:
        self._mode.labels(running, configured).set(1)

    def sync_ended(self, family: Family, seconds: float) -> None:
        """A pass ran, successfully or not."""
        self._sync_duration.labels(family.value).observe(seconds)

    def sync_succeeded(self, family: Family, unix_seconds: float) -> None:
        self._last_timestamp.labels(family.value).set(unix_seconds)

    def sync_queued(self, family: Family, unix_seconds: float) -> None:
        self._last_queued.labels(family.value).set(unix_seconds)

    def decided(self, family: Family, services: int, routes: int, objects: int) -> None:
        """A pass decided about so many Services, which made so many objects of so many routes."""
        self._services_decided.labels(family.value).inc(services)
        self._routes_compiled.labels(family.value).inc(routes)
        self._objects_compiled.labels(family.value).inc(objects)
        self._last_services.labels(family.value).set(services)

    def objects_changed(
        self, family: Family, put: Mapping[str, int], dropped: Mapping[str, int]
    ) -> None:
        """A pass wrote and removed so many objects of each kind."""
        for counter, kinds in ((self._objects_written, put), (self._objects_removed, dropped)):
            for kind, count in kinds.items():
                counter.labels(kind, family.value).inc(count)
        self._last_objects.labels(family.value).set(sum(put.values()) + sum(dropped.values()))

    def written(
        self, family: Family, scope: str, *, rules: int, chains: int, lines: int, sent_bytes: int
    ) -> None:
        """A pass wrote that to the iptables table *scope*; elsewhere *rules* are messages."""
        self._bytes_sent.labels(scope, family.value).inc(sent_bytes)
        if scope in _TABLES:
            self._rules_written.labels(family.value).inc(rules)
            self._chains_written.labels(family.value).inc(chains)
            self._lines_sent.labels(family.value).inc(lines)
        else:
            self._messages_sent.labels(scope, family.value).inc(rules)

    def last_sync(self, family: Family, transactions: int, sent_bytes: int) -> None:
        """A pass ended that needed so many transactions."""
        self._last_transactions.labels(family.value).set(transactions)
        self._last_bytes.labels(family.value).set(sent_bytes)

    def read_back(self, family: Family) -> None:
        """A pass compared with what the kernel holds."""
        self._read_backs.labels(family.value).inc()

    def iptables_rules(
        self, family: Family, wanted: Mapping[str, int], written: Mapping[str, int]
    ) -> None:
        """How many rules there are to be by table, and how many the last pass wrote, also none."""
        for table in _COUNTED_TABLES:
            self._iptables_total.labels(table, family.value).set(wanted.get(table, 0))
            self._iptables_last.labels(table, family.value).set(written.get(table, 0))

    def transactions(self, family: Family, scope: str, outcome: str, count: int) -> None:
        """*outcome* is ``applied``, ``partly``, ``rejected`` or ``unknown``."""
        self._transactions.labels(outcome, family.value).inc(count)
        if scope in _TABLES and outcome != "applied":
            self._restore_failures.labels(family.value).inc(count)

    def endpoint_changes(self, count: int = 1) -> None:
        self._endpoint_changes.inc(count)

    def service_changes(self, count: int = 1) -> None:
        self._service_changes.inc(count)

    def no_local_endpoints(self, family: Family, internal: int, external: int) -> None:
        """How many service ports have a Local policy, endpoints, but none here."""
        self._no_local_endpoints.labels("internal", family.value).set(internal)
        self._no_local_endpoints.labels("external", family.value).set(external)

    def conntrack_ran(self, family: Family, seconds: float, deleted: int) -> None:
        self._conntrack_duration.labels(family.value).observe(seconds)
        self._conntrack_deleted.labels(family.value).inc(deleted)

    def health_answered(self, path: str, code: int) -> None:
        """*path* is ``healthz`` or ``livez``; fits `HealthServer`'s ``count``."""
        (self._healthz if path == "healthz" else self._livez).labels(str(code)).inc()

    def quarantined(self, family: Family, moved: Mapping[ServiceKey, bool]) -> None:
        """Say who went into quarantine (true) or is not in it any more and loses its series."""
        known = self._named.setdefault(family, set())
        for service, is_in in moved.items():
            if is_in:
                self._quarantine.labels(*service, family.value).set(1)
                known.add(service)
            elif service in known:
                self._quarantine.remove(*service, family.value)
                known.remove(service)
        self._quarantined.labels(family.value).set(len(known))

    def lock_waited(self, family: Family, seconds: float) -> None:
        self._lock_wait.labels(family.value).inc(seconds)

    def repaired(self, family: Family, rules: int = 1) -> None:
        self._repairs.labels(family.value).inc(rules)

    def follow_packets(self, name: str, text: str, read: Callable[[], int | None]) -> None:
        """Add a counter that *read* tells at every scrape; absent while it returns ``None``.

        For nfacct: ``kubeproxy_iptables_ct_state_invalid_dropped_packets`` and
        ``kubeproxy_iptables_localhost_nodeports_accepted_packets`` (``_total`` is added).
        """
        self.registry.register(_Packets(name, f"[ALPHA] {text}", read))

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, f"[ALPHA] {text}", _FAMILY, buckets=_BUCKETS, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: list[str] = _FAMILY) -> Gauge:
        return Gauge(name, f"[ALPHA] {text}", labels, registry=self.registry)

    def _counter(self, name: str, text: str, labels: list[str] = _FAMILY) -> Counter:
        return Counter(name, f"[ALPHA] {text}", labels, registry=self.registry)


class _Packets(Collector):
    def __init__(self, name: str, text: str, read: Callable[[], int | None]) -> None:
        self._name = name
        self._text = text
        self._read = read

    def collect(self) -> Iterable[Metric]:
        packets = self._read()
        if packets is not None:
            yield CounterMetricFamily(self._name, self._text, value=packets)

    def describe(self) -> Iterable[Metric]:
        """Without this, registering would read the kernel."""
        yield CounterMetricFamily(self._name, self._text)
