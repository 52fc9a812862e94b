"""Every metric of the reference is there, with its type, labels and buckets, after a run.

The run is the real loop with the real client and recorder, against a stand-in API server over
HTTPS, on fake kernels that refuse what the real ones refuse.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from threading import Event

import pytest
from prometheus_client.exposition import generate_latest

import pykubeproxy
from pykubeproxy import reactions as reactions_module
from pykubeproxy.config import Config
from pykubeproxy.host.conntrack import Removed
from pykubeproxy.iptables import backend as iptables_backend
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.objects import rules_by_table
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.compile import IpvsCompiler
from pykubeproxy.ipvs.netfilter import IpvsSettings
from pykubeproxy.ipvs.objects import servers_by_kind
from pykubeproxy.loop import FamilyProxy, SyncLoop
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.reactions import FlowCleaner, Reactions
from pykubeproxy.serve.status import Status
from pykubeproxy.settings import GATES
from pykubeproxy.supply import WATCHED
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.events import EventRecorder, Happening
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.reflector import KubernetesSource
from tests.build import endpoint, manifest, node, port, service, slice_, slice_port
from tests.contract.test_contract_ipvs import dataplane as ipvs_dataplane
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.ipvs import FakeKernel
from tests.fakes.xtables import Fault, Xtables
from tests.metrics.names import ABSENT, TABLE, differences, expected
from tests.test_reactions import Health, Ports

TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
V4 = Family.IPV4
DNS = [port(53, "dns", "UDP")]


class Hasty(Random):
    """Draws next to nothing, so that no test waits out a backoff."""

    def uniform(self, a, b):
        return 0.01


class Proxy:
    """All of the daemon but its servers and the tools it starts."""

    def __init__(self, mode, fake, directory):
        self.fake = fake
        self.metrics = Metrics(mode)
        self.metrics.runs_in_mode(mode, mode)
        self.metrics.features(GATES)
        client = ApiServer.from_flags(str(fake.write_kubeconfig(directory)), None)
        self.source = KubernetesSource(client, "node", WATCHED, Hasty())
        self.recorder = EventRecorder(client, "node", "host", wait=lambda _seconds: False)
        for measured in (client.requests, self.source, self.recorder):
            self.metrics.follow(*measured.measures())
        self.cleaner = FlowCleaner(self.metrics, time.monotonic)
        self.reactions = Reactions(
            *(self.metrics, Health(), Status(60.0), lambda *_: Ports(), self.cleaner),
            self.recorder.record,
        )
        self.xtables, reconciler, dataplane = _backend(mode, self.metrics)
        self.mailbox = Mailbox()
        config = Config(min_sync_period_seconds=0.0)
        self.loop = SyncLoop(
            *(config, "node", WATCHED, self.mailbox),
            [FamilyProxy(V4, reconciler, dataplane)],
            *(self.reactions, time.monotonic, Event()),
        )
        self.metrics.follow_changes(self.loop.oldest_changes, time.monotonic)

    def __enter__(self):
        self.cleaner.start()
        self.recorder.start()
        self.source.start(self.mailbox)
        self.reactions.started([V4])
        return self

    def __exit__(self, *_):
        self.source.stop()
        self.recorder.stop()
        self.cleaner.stop()

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(name, labels)

    def turn_until(self, condition):
        """Let the loop run, on this thread, until *condition* holds."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "not within 20 s"
            self.mailbox.wait(0.02)
            self.loop.step()

    def page(self):
        return generate_latest(self.metrics.registry).decode()


def _backend(mode, metrics):
    if mode == "ipvs":
        kernel = FakeKernel()
        xtables = kernel.xtables(4)
        dataplane = ipvs_dataplane(kernel, xtables, V4)
        reconciler = Reconciler(
            *(V4, IpvsCompiler(IpvsSettings()), dataplane, time.monotonic),
            counts_services=True,
            counts_of=servers_by_kind,
        )
        return xtables, reconciler, dataplane
    iptables_backend._follow_counters(metrics)
    xtables = Xtables(4)
    dataplane = XtablesDataplane(
        Tools(V4, Variant.NFT), lambda _: None, Event(), runner=xtables.run
    )
    reconciler = Reconciler(
        *(V4, IptablesCompiler(XtablesSettings()), dataplane, time.monotonic),
        counts_of=rules_by_table,
    )
    return xtables, reconciler, dataplane


def triggered(slice_object):
    document = manifest(slice_object)
    soon = datetime.now(UTC) + timedelta(milliseconds=1)
    document["metadata"]["annotations"] = {TRIGGER: soon.isoformat().replace("+00:00", "Z")}
    return document


@pytest.fixture
def fake():
    with FakeApiServer() as server:
        yield server


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_every_metric_is_there_with_type_labels_and_buckets(mode, fake, tmp_path, monkeypatch):
    monkeypatch.setattr(reactions_module, "remove_stale", lambda *_: Removed(3, 1, complete=True))
    monkeypatch.setattr(iptables_backend.nfacct, "read_counter", lambda _name: 7)
    fake.streaming_lists = "invalid"  # so that lists are requests that end
    fake.store.put(manifest(node(addresses=["192.0.2.10"])))
    fake.store.put(manifest(service("web")))
    fake.store.put(manifest(slice_("web", endpoint("10.244.0.1", node="node"))))
    fake.store.put(manifest(service("dns", cluster_ip="10.96.0.10", ports=DNS)))
    fake.store.put(
        manifest(slice_("dns", endpoint("10.244.0.3"), ports=[slice_port(53, "dns", "UDP")]))
    )
    fake.fail_next(1, 429, "TooManyRequests", headers={"Retry-After": "0"})
    with Proxy(mode, fake, tmp_path) as proxy:
        happening = Happening("Starting", "StartKubeProxy", warning=False)
        for _ in range(2):
            proxy.recorder.record(happening)
        proxy.turn_until(lambda: proxy.value("pykubeproxy_ready") == 1)
        fake.store.put(triggered(slice_("web", endpoint("10.244.0.2", node="node"))))
        proxy.turn_until(
            lambda: proxy.value(
                "kubeproxy_network_programming_duration_seconds_count", ip_family="IPv4"
            )
        )
        fake.store.delete("Service", "default", "web")
        proxy.turn_until(lambda: "pykubeproxy_objects_removed_total" in proxy.page())
        if mode == "iptables":
            proxy.xtables.fail(Fault.REFUSE, "10.96.0.99", times=None)
            fake.store.put(manifest(service("bad", cluster_ip="10.96.0.99")))
            proxy.turn_until(lambda: "pykubeproxy_service_quarantined" in proxy.page())
        else:  # whose rules belong to no Service; one without sets cannot be made to fail alone
            proxy.metrics.transactions(V4, "nat", "rejected", 1)
            proxy.metrics.quarantined(V4, {ServiceKey("default", "bad"): True})
        proxy.reactions.repairing(V4, edited=False)
        proxy.metrics.health_answered("healthz", 200)
        proxy.metrics.health_answered("livez", 200)
        proxy.metrics.lock_waited(V4, 0.1)
        proxy.turn_until(lambda: proxy.value("pykubeproxy_events_total", outcome="merged"))
        conntrack = "pykubeproxy_conntrack_deletions_total"
        proxy.turn_until(lambda: proxy.value(conntrack, ip_family="IPv4"))
        page = proxy.page()
    assert [] == differences(page, expected(mode))
    assert [] == [name for name in ABSENT if f"# TYPE {name} " in page]


def test_what_has_no_labels_is_there_before_anything_happens():
    page = generate_latest(Metrics().registry).decode()
    for name in (
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "disabled_metrics_total",
        "hidden_metrics_total",
        "cardinality_enforcement_unexpected_categorizations_total",
    ):
        assert f"\n{name} 0.0\n" in page


def test_a_table_that_matches_nothing_is_noticed():
    page = generate_latest(Metrics().registry).decode()
    wanted = expected("iptables")
    found = differences(page, wanted)
    assert "kubeproxy_proxy_healthz_total: not there" in found
    found = differences(
        page.replace("# TYPE pykubeproxy_ready gauge", "# TYPE pykubeproxy_ready counter"), wanted
    )
    assert any(problem.startswith("pykubeproxy_ready: ('counter'") for problem in found)


def test_every_metric_is_explained():
    page = (Path(pykubeproxy.__file__).parents[1] / "docs/metrics.md").read_text()
    assert [] == [name for name in TABLE if name not in page]
