"""The sync loop: when it may write, what it tells, and how it recovers; time is a number."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from threading import Event

import msgspec
import pytest
from msgspec import structs

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.errors import ConfigError, HostError, NodeTimeout
from pykubeproxy.loop import (
    PATIENCE_SECONDS,
    QUIET_SECONDS,
    VERIFY_SECONDS,
    FamilyProxy,
    Suspicions,
    SyncLoop,
)
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import PodCIDR
from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, ServiceKey
from pykubeproxy.sync.nodewait import NODE_SECONDS, POD_CIDR_SECONDS
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Arrivals
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.source import Gone, Put, Replaced
from tests.build import endpoint, manifest, node, service, slice_
from tests.fakes.dataplane import MemoryDataplane, PlainCompiler

KINDS = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})
WEB = service("web", cluster_ip="10.96.0.1")
WEB_SLICE = slice_("web", endpoint("10.244.0.1"))
THIS_NODE = node()
POOL = ("pool", "default/web")


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.arrivals = []
        self.families = None
        self.lacked = []
        self.awaited = []
        self.syncs = 0
        self.nodes = []
        self.requests = 0
        self.reports = []
        self.repairs = []
        self.edits = []
        self.mismatches = []

    def started(self, families):
        self.families = families

    def received(self, arrivals, families, changed_services):
        self.arrivals.append((arrivals, families, changed_services))

    def lacking(self, kinds):
        self.lacked.append(list(kinds))

    def awaiting(self, what):
        self.awaited.append(what)

    def syncing(self):
        self.syncs += 1

    def node_described(self, contexts):
        self.contexts = dict(contexts)

    def node_changed(self, node):
        self.nodes.append(node)

    def mismatched(self, note):
        self.mismatches.append(note)

    def requested(self, families):
        self.requests += len(list(families))

    def synced(self, reconciler, report, seconds):
        self.reports.append(report)

    def repairing(self, family, *, edited):
        self.repairs.append(family)
        self.edits.append(edited)


class Rig:
    """A loop for IPv4 over a kernel in memory."""

    def __init__(self, **config) -> None:
        self.clock = Clock()
        self.mailbox = Mailbox(self.clock)
        self.kernel = MemoryDataplane()
        self.heard = Heard()
        self.addresses = ["192.0.2.10"]
        reconciler = Reconciler(Family.IPV4, PlainCompiler(), self.kernel, self.clock)
        family = FamilyProxy(Family.IPV4, reconciler, self.kernel, self.read_addresses)
        self.loop = SyncLoop(
            Config(**config), "node", KINDS, self.mailbox, [family], self.heard, self.clock, Event()
        )

    def read_addresses(self):
        if not self.addresses:
            raise HostError("no netlink today")
        return self.addresses

    def list_all(self, *, nodes=(THIS_NODE,)):
        self.mailbox.put(Replaced(Kind.NODE, tuple(nodes)))
        self.mailbox.put(Replaced(Kind.ENDPOINT_SLICE, (WEB_SLICE,)))
        self.mailbox.put(Replaced(Kind.SERVICE, (WEB,)))

    def step(self, seconds: float = 0.0):
        self.clock.now += seconds
        self.loop.step()


@pytest.fixture
def rig():
    return Rig()


@pytest.fixture
def started(rig):
    rig.list_all()
    rig.step()
    assert rig.kernel.objects[POOL] == ("10.244.0.1:8080",)
    return rig


# --- when it may write ---


@pytest.mark.parametrize("missing", sorted(KINDS))
def test_nothing_is_written_before_every_first_list_is_complete(rig, missing):
    lists = {
        Kind.NODE: (node(),),
        Kind.ENDPOINT_SLICE: (WEB_SLICE,),
        Kind.SERVICE: (WEB,),
    }
    for kind in KINDS - {missing}:
        rig.mailbox.put(Replaced(kind, lists[kind]))
    rig.step(PATIENCE_SECONDS + 1)
    assert rig.kernel.objects == {}
    assert rig.heard.reports == []
    rig.mailbox.put(Replaced(missing, lists[missing]))
    rig.step()
    assert POOL in rig.kernel.objects


@pytest.mark.parametrize(
    ("nodes", "missing"),
    [((), "Node node"), ((node(addresses=()),), "addresses of Node node")],
    ids=["no Node", "no address"],
)
def test_a_missing_node_holds_up_the_start_for_half_a_minute(rig, capsys, nodes, missing):
    rig.list_all(nodes=nodes)
    rig.step()
    assert 1 == capsys.readouterr().out.count(f"missing='{missing}'"), "said at once"
    rig.step(PATIENCE_SECONDS - 0.1)
    assert "" == capsys.readouterr().out
    rig.step(0.1)
    said = capsys.readouterr().out
    assert f"missing='{missing}'" in said
    assert "seconds_left=20" in said
    rig.step(19.9)
    assert rig.kernel.objects == {}
    assert rig.loop._next_wait() == pytest.approx(0.1)
    rig.step(0.1)
    assert POOL in rig.kernel.objects
    said = capsys.readouterr().out
    assert "going on without what is missing" in said
    assert f"missing='{missing}'" in said


def test_a_node_that_comes_ends_the_wait(rig, capsys):
    rig.list_all(nodes=())
    rig.step()
    rig.mailbox.put(Put(Kind.NODE, node(zone="a")))
    rig.step(1.0)
    assert POOL in rig.kernel.objects
    assert "a" == rig.heard.contexts[Family.IPV4].zone
    assert "going on without" not in capsys.readouterr().out


def test_a_node_that_comes_late_counts_from_then_on(rig):
    rig.list_all(nodes=())
    rig.step()
    rig.step(NODE_SECONDS)
    assert "127.0.0.1" == rig.heard.contexts[Family.IPV4].address
    rig.mailbox.put(Put(Kind.NODE, node(zone="a")))
    rig.step(5.0)
    context = rig.heard.contexts[Family.IPV4]
    assert ("a", "192.0.2.10") == (context.zone, context.address)


def test_the_wait_for_the_node_runs_while_other_lists_are_missing(rig):
    rig.mailbox.put(Replaced(Kind.NODE, ()))
    rig.step()
    rig.step(NODE_SECONDS)
    rig.list_all(nodes=())
    rig.step()
    assert POOL in rig.kernel.objects


def test_manifests_need_no_node():
    rig = Rig(manifests="/manifests")
    rig.list_all(nodes=())
    rig.step()
    assert POOL in rig.kernel.objects


@pytest.mark.parametrize("nodes", [(), (node(),)], ids=["no Node", "no podCIDRs"])
def test_node_cidr_mode_waits_for_the_cidr(nodes):
    rig = Rig(detect_local_mode=DetectLocalMode.NODE_CIDR)
    rig.list_all(nodes=nodes)
    rig.step()
    assert rig.kernel.objects == {}
    rig.mailbox.put(Put(Kind.NODE, node(pod_cidrs=("10.244.0.0/24",))))
    rig.step()
    assert POOL in rig.kernel.objects


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        pytest.param((), 'timeout waiting for node "node" to exist', id="no Node"),
        pytest.param(
            (node(),), 'timeout waiting for PodCIDR allocation on node "node"', id="no podCIDRs"
        ),
    ],
)
def test_without_a_pod_cidr_node_cidr_mode_ends(nodes, text):
    rig = Rig(detect_local_mode=DetectLocalMode.NODE_CIDR)
    rig.list_all(nodes=nodes)
    rig.step()
    # As often as the loop would wake up by itself.
    waits = iter(lambda: rig.step(rig.loop._next_wait()), "never")
    with pytest.raises(NodeTimeout, match=text):
        list(islice(waits, 100))
    waited = rig.clock.now - 1000.0
    assert POD_CIDR_SECONDS + (0 if nodes else NODE_SECONDS) == pytest.approx(waited)
    assert rig.kernel.objects == {}


def test_a_node_that_is_deleted_leaves_what_it_told(started, capsys):
    started.mailbox.put(Gone(Kind.NODE, ObjectKey("", "node")))
    started.step(5)
    assert "the Node object is gone" in capsys.readouterr().out
    assert "192.0.2.10" == started.heard.contexts[Family.IPV4].address
    assert 1 == len(started.heard.reports)


def test_pod_cidrs_that_go_away_stay_in_use_until_there_are_others(capsys):
    """A Node that registers itself anew has none at first."""
    rig = Rig(detect_local_mode=DetectLocalMode.NODE_CIDR)
    rig.list_all(nodes=[node(pod_cidrs=["10.244.0.0/24"])])
    seen = []
    for then in (node(), node(zone="a"), node(pod_cidrs=["10.244.7.0/24"])):
        rig.step(5.0)
        seen.append(rig.heard.contexts[Family.IPV4].pod_traffic)
        rig.mailbox.put(Put(Kind.NODE, then))
    rig.step(5.0)
    seen.append(rig.heard.contexts[Family.IPV4].pod_traffic)
    assert [*[PodCIDR("10.244.0.0/24")] * 3, PodCIDR("10.244.7.0/24")] == seen
    assert 1 == capsys.readouterr().out.count("has no podCIDRs any more")


# --- what does not suit the node ---


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        pytest.param({"bind_address": "2001:db8::1"}, "no support for", id="family"),
        pytest.param({"cluster_cidrs": ("fd00::/64",)}, "clusterCIDRs contains only", id="cluster"),
        pytest.param(
            {"detect_local_mode": DetectLocalMode.NODE_CIDR}, "podCIDRs contains only", id="pods"
        ),
    ],
)
def test_another_configuration_is_checked_against_the_node(rig, asked, words):
    rig.list_all(nodes=[node(pod_cidrs=["fd00:244::/64"])])
    rig.step()
    rig.loop.check(Config())
    with pytest.raises(ConfigError, match=words):
        rig.loop.check(Config(**asked))


def test_a_primary_family_that_is_not_served_ends_the_start(rig):
    rig.list_all(nodes=[node(addresses=["2001:db8::1"])])
    with pytest.raises(ConfigError, match='no support for primary IP family "IPv6"'):
        rig.step()
    assert rig.kernel.objects == {}


def test_without_a_node_ipv4_is_the_first_family(rig):
    """As in kube-proxy; where there is no API, whatever is served."""
    rig.list_all(nodes=())
    rig.step()
    rig.step(NODE_SECONDS)
    assert POOL in rig.kernel.objects


def test_what_is_no_reason_to_end_is_said_once(rig, capsys):
    rig.list_all()
    rig.step()
    text = "nodePortAddresses is unset"
    assert 1 == capsys.readouterr().out.count(text)
    rig.mailbox.put(Put(Kind.NODE, node(zone="a")))
    rig.step(5.0)
    assert text not in capsys.readouterr().out


def test_a_cluster_cidr_elsewhere_is_told_again_when_the_pods_move(capsys):
    rig = Rig(cluster_cidrs=("10.0.0.0/8",))
    moves = ["172.16.0.0/24", "172.16.0.0/24", "172.17.0.0/24", "10.1.0.0/24", "172.16.0.0/24"]
    rig.list_all(nodes=[node(pod_cidrs=moves[:1])])
    rig.step()
    for zone, cidr in enumerate(moves[1:]):
        rig.mailbox.put(Put(Kind.NODE, node(pod_cidrs=[cidr], zone=f"z{zone}")))
        rig.step(5.0)
    told = [note.partition("(")[2].partition(")")[0] for note in rig.heard.mismatches]
    assert ["172.16.0.0/24", "172.17.0.0/24", "172.16.0.0/24"] == told
    assert 1 == capsys.readouterr().out.count("clusterCIDR and podCIDRs fit now")


# --- pacing ---


def test_a_change_after_quiet_is_written_at_once(started):
    started.clock.now += 10
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    started.step()
    assert started.kernel.objects[POOL] == ("10.244.0.2:8080",)


def test_a_burst_is_gathered_into_one_pass():
    rig = Rig(min_sync_period_seconds=1.0)
    rig.list_all()
    rig.step()
    for n in range(2, 7):
        rig.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint(f"10.244.0.{n}"))))
        rig.step(0.1)
    assert len(rig.heard.reports) == 1
    rig.step(1.0)
    assert len(rig.heard.reports) == 2
    assert rig.kernel.objects[POOL] == ("10.244.0.6:8080",)


def test_an_unchanged_object_makes_no_pass(started):
    started.mailbox.put(Put(Kind.SERVICE, WEB))
    started.step(5)
    assert len(started.heard.reports) == 1


# --- changes of this node ---


def test_changed_addresses_are_applied_while_running():
    rig = Rig(nodeport_addresses=("192.0.2.0/24",))
    rig.list_all()
    rig.step()
    rig.addresses.append("192.0.2.11")
    rig.loop.addresses_changed()
    rig.step(5)
    assert len(rig.heard.reports) == 2


def test_addresses_that_cannot_be_read_leave_the_last_ones():
    rig = Rig(nodeport_addresses=("192.0.2.0/24",))
    rig.list_all()
    rig.step()
    rig.addresses.clear()
    rig.loop.addresses_changed()
    rig.step(5)
    assert len(rig.heard.reports) == 1


def test_addresses_that_cannot_be_read_are_read_again_soon():
    rig = Rig(nodeport_addresses=("192.0.2.0/24",))
    rig.list_all()
    rig.step()
    for _ in range(3):
        rig.step(rig.loop._next_wait())
    kept, rig.addresses = rig.addresses, []
    rig.mailbox.put(Put(Kind.NODE, node(zone="zone-b")))
    rig.step()
    assert 1 == len(rig.heard.reports)
    rig.addresses = kept
    waited = rig.loop._next_wait()
    assert waited <= QUIET_SECONDS
    rig.step(waited)
    rig.step(1)
    assert 2 == len(rig.heard.reports)
    assert 0 < rig.loop._next_wait()


TAINTS = ["ToBeDeletedByClusterAutoscaler"]


def leaving():
    metadata = structs.replace(THIS_NODE.metadata, deletion_timestamp="2026-01-02T03:04:05Z")
    return structs.replace(THIS_NODE, metadata=metadata)


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        pytest.param(node(taints=TAINTS), 0, id="a taint"),
        pytest.param(leaving(), 0, id="a deletion begins"),
        pytest.param(node(pod_cidrs=["10.99.0.0/24"]), 0, id="podCIDRs that do not matter"),
        pytest.param(node(zone="zone-b", taints=TAINTS), 1, id="a taint and another zone"),
        pytest.param(node(addresses=["192.0.2.77"]), 1, id="another address"),
    ],
)
def test_only_what_is_decided_by_makes_a_pass(started, changed, passes):
    started.step(100)
    before, requests = len(started.heard.reports), started.heard.requests
    started.clock.now += 100
    started.mailbox.put(Put(Kind.NODE, changed))
    started.step()
    assert [THIS_NODE, changed] == started.heard.nodes  # health hears of it at once
    assert requests + passes == started.heard.requests
    started.step(3)
    assert passes == len(started.heard.reports) - before
    assert {Family.IPV4: None} == started.loop.oldest_changes()
    assert [THIS_NODE, changed] == started.heard.nodes


def test_a_new_zone_waits_from_its_arrival_until_it_is_written(started):
    started.clock.now += 100
    started.kernel.unknowns.append("before")
    started.mailbox.put(Put(Kind.NODE, node(zone="zone-b")))
    started.step(1)
    started.step(1)
    started.step(1)
    assert started.heard.reports[-1].succeeded
    assert 1.0 < max(started.heard.reports[-1].waited)


def test_a_new_zone_makes_every_service_dirty(started):
    started.mailbox.put(Put(Kind.NODE, node(zone="zone-b")))
    started.step(5)
    assert started.kernel.objects["base",] == ("node", "zone-b")
    assert started.heard.reports[-1].services == 1


# --- misfortune ---


def test_a_failed_pass_is_repeated_and_loses_nothing(started):
    started.kernel.unknowns.append("before")
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    started.step(5)
    assert not started.heard.reports[-1].succeeded
    started.step(0.3)
    assert started.heard.reports[-1].succeeded
    assert started.kernel.objects[POOL] == ("10.244.0.2:8080",)


def test_a_kernel_that_cannot_be_read_is_tried_again(rig):
    rig.kernel.broken = "no tool"
    rig.list_all()
    rig.step()
    assert [False] == [report.succeeded for report in rig.heard.reports]
    rig.kernel.broken = ""
    rig.step(1)
    assert POOL in rig.kernel.objects


def test_flushed_objects_come_back_without_a_change_in_the_api(started):
    started.kernel.objects.clear()
    started.step(31)
    started.step()
    assert started.heard.repairs == [Family.IPV4]
    assert started.heard.edits == [False]
    assert POOL in started.kernel.objects


def test_the_kernel_is_compared_every_hour_although_nothing_seems_wrong(started):
    started.step(QUIET_SECONDS)
    started.kernel.objects[POOL] = ("somebody's edit",)
    started.step(VERIFY_SECONDS - QUIET_SECONDS - 1)
    assert 1 == started.kernel.learned
    assert 1 == started.loop._next_wait()
    started.step(1)
    # A resync was less than that ago.
    started.step(QUIET_SECONDS)
    assert 2 == started.kernel.learned
    started.step()
    assert [Family.IPV4] == started.heard.repairs
    assert started.kernel.objects[POOL] == ("10.244.0.1:8080",)


class Beside:
    """Keeps what is to be done beside until it is told to do it."""

    def __init__(self):
        self.jobs = []

    def __call__(self, job):
        self.jobs.append(job)

    def work(self):
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


@pytest.fixture
def patient(started):
    """A loop whose looks at the kernel take their time."""
    started.loop._beside = Beside()
    started.step(QUIET_SECONDS)
    return started


def test_a_change_waits_for_no_look_at_the_kernel(patient):
    assert 1 == len(patient.loop._beside.jobs)
    patient.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    patient.step(5)
    assert patient.kernel.objects[POOL] == ("10.244.0.2:8080",)


def test_the_end_of_a_look_wakes_the_loop_and_is_acted_upon(patient):
    patient.kernel.objects[POOL] = ("somebody's edit",)
    patient.mailbox.wait(0)
    patient.loop._beside.work()
    patient.mailbox.wait(None)  # would wait for ever
    patient.step()
    patient.step()
    assert [Family.IPV4] == patient.heard.repairs
    assert patient.kernel.objects[POOL] == ("10.244.0.1:8080",)


def test_one_look_at_a_time(patient):
    patient.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    patient.step(5)
    patient.step(QUIET_SECONDS)
    assert 1 == len(patient.loop._beside.jobs)
    patient.loop._beside.work()
    patient.step(QUIET_SECONDS)
    assert 1 == len(patient.loop._beside.jobs)


def test_a_look_that_was_disturbed_is_repeated_when_it_is_quiet(patient):
    patient.kernel.disturbed = True
    patient.loop._beside.work()
    patient.kernel.disturbed = False
    patient.step()
    assert [] == patient.loop._beside.jobs
    patient.step(QUIET_SECONDS)
    patient.loop._beside.work()
    assert 1 == patient.kernel.learned


def test_a_look_that_fails_is_not_repeated_at_once(patient):
    patient.kernel.broken = "iptables-save fails"
    patient.loop._beside.work()
    patient.step(QUIET_SECONDS)
    assert [] == patient.loop._beside.jobs
    assert [] == patient.heard.repairs


def test_what_was_written_is_remembered_at_the_end(started):
    started.loop._stop.set()
    started.mailbox.wake()
    started.loop.run()
    assert 1 == started.kernel.learned


def test_the_end_does_not_mind_a_kernel_that_cannot_be_read(started):
    started.kernel.broken = "iptables-save fails"
    started.loop._stop.set()
    started.loop.run()
    assert 0 == started.kernel.learned


def test_fingerprints_are_learnt_once_when_it_is_quiet(started):
    started.step(QUIET_SECONDS / 2)
    assert started.kernel.learned == 0
    started.step(QUIET_SECONDS)
    started.step(QUIET_SECONDS)
    assert started.kernel.learned == 1


def test_a_repair_that_fails_is_tried_again_soon(started):
    started.kernel.objects.clear()
    started.kernel.unknowns.append("before")
    started.step(31)
    started.step()
    assert started.kernel.objects == {}
    started.step(0.3)
    assert POOL in started.kernel.objects


def test_an_expired_quarantine_does_not_defeat_the_backoff_of_failures(started):
    started.kernel.refused.add(WEB.key)
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    started.step(5)
    started.kernel.broken = "iptables-save fails"
    started.loop._families[0].reconciler.distrust()
    started.step(2)
    before = len(started.heard.reports)
    for _ in range(50):
        started.step(0.02)
    assert len(started.heard.reports) - before < 5


def test_an_edit_by_somebody_else_is_found_when_fingerprints_are_learnt(started):
    started.kernel.objects[POOL] = ("somebody's edit",)
    started.step(QUIET_SECONDS + 1)
    started.step()
    assert started.heard.repairs == [Family.IPV4]
    assert started.heard.edits == [True]
    assert started.kernel.objects[POOL] == ("10.244.0.1:8080",)


def test_a_quarantined_service_is_tried_again_by_itself(started):
    started.kernel.refused.add(WEB.key)
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint("10.244.0.2"))))
    started.step(5)
    assert [WEB.key] == [entry.owner for entry in started.heard.reports[-1].quarantined]
    started.kernel.refused.clear()
    started.step(2)
    assert started.kernel.objects[POOL] == ("10.244.0.2:8080",)
    assert [WEB.key] == started.heard.reports[-1].recovered


# --- telling ---


def test_listeners_hear_of_events_requests_and_the_node(started):
    started.mailbox.put(Gone(Kind.SERVICE, ObjectKey("default", "web")))
    started.step(5)
    expected = [
        (Arrivals(1, Counter(IPv4=1), Counter(IPv4=1)), (Family.IPV4,), 1),
        (Arrivals(1), (Family.IPV4,), 1),
    ]
    assert expected == started.heard.arrivals
    assert started.heard.requests == 1
    assert [node()] == started.heard.nodes
    assert POOL not in started.kernel.objects


def test_the_loop_ends_when_it_is_told_to():
    rig = Rig()
    rig.loop._stop.set()
    rig.mailbox.wake()
    rig.loop.run()


# --- suspicions, and what is due without a change ---


class Busy(MemoryDataplane):
    """Has something to do at ``due``, and counts looks."""

    def __init__(self):
        super().__init__()
        self.due = None
        self.tended = []
        self.looks = 0

    def tend(self, now):
        self.tended.append(now)
        return self.due

    def intact(self):
        self.looks += 1
        return super().intact()


class DualRig(Rig):
    """Both families, each over a kernel in memory."""

    def __init__(self, *, every_address=False):
        super().__init__()
        self.suspicions = Suspicions(self.mailbox)
        self.kernels = {family: Busy() for family in Family}
        families = [
            FamilyProxy(
                family,
                Reconciler(family, PlainCompiler(), kernel, self.clock),
                kernel,
                self.read_addresses,
                every_address,
            )
            for family, kernel in self.kernels.items()
        ]
        self.loop = SyncLoop(
            *(Config(), "node", KINDS, self.mailbox, families, self.heard, self.clock, Event()),
            suspicions=self.suspicions,
        )
        self.list_all()
        self.step()


@pytest.fixture
def dual():
    return DualRig()


def test_a_suspected_family_is_looked_at_soon_and_only_that(dual):
    for kernel in dual.kernels.values():
        kernel.objects.clear()
    dual.suspicions.add(Family.IPV4)
    dual.step(1)
    dual.step()
    assert [Family.IPV4] == dual.heard.repairs
    assert POOL in dual.kernels[Family.IPV4].objects
    assert {} == dual.kernels[Family.IPV6].objects
    assert (1, 0) == tuple(kernel.looks for kernel in dual.kernels.values())


def test_a_suspicion_wakes_the_loop(dual):
    dual.mailbox.wait(0)
    dual.suspicions.add(Family.IPV6)
    dual.mailbox.wait(None)  # would wait for ever


def test_an_unfounded_suspicion_changes_nothing(dual):
    dual.suspicions.add(Family.IPV4)
    dual.step(1)
    dual.step(1)
    assert [] == dual.heard.repairs
    assert 1 == dual.kernels[Family.IPV4].looks


def test_all_families_are_looked_at_now_and_then(dual):
    dual.step(31)
    assert (1, 1) == tuple(kernel.looks for kernel in dual.kernels.values())


def test_suspicions_are_taken_once(dual):
    for family in (*Family, Family.IPV4):
        dual.suspicions.add(family)
    assert set(Family) == dual.suspicions.take()
    assert set() == dual.suspicions.take()


@pytest.mark.parametrize(
    ("due", "expected"),
    [
        pytest.param((0.5, 2), 0.5, id="the first of both"),
        pytest.param((None, 2), 2, id="one has nothing to do"),
        pytest.param((-3, None), 0, id="overdue"),
    ],
)
def test_what_is_due_without_a_change_wakes_the_loop(dual, due, expected):
    for kernel, seconds in zip(dual.kernels.values(), due, strict=True):
        kernel.due = None if seconds is None else dual.clock.now + seconds
    dual.step()
    assert expected == dual.loop._next_wait()
    dual.step(2)
    assert dual.clock.now == dual.kernels[Family.IPV6].tended[-1]


def test_nothing_is_tended_before_everything_is_known():
    rig = Rig()
    rig.kernel.tend = pytest.fail
    rig.step()


@pytest.mark.parametrize(("every_address", "expected"), [(True, ("192.0.2.10",)), (False, ())])
def test_all_addresses_of_the_node_may_matter(every_address, expected):
    rig = DualRig(every_address=every_address)
    assert expected == rig.heard.contexts[Family.IPV4].addresses
    passes = len(rig.heard.reports)
    rig.addresses = ["192.0.2.10", "192.0.2.11"]
    rig.loop.addresses_changed()
    rig.step(5)
    assert (passes + 2 if every_address else passes) == len(rig.heard.reports)


def test_services_are_known_by_their_uid(rig):
    metadata = msgspec.structs.replace(WEB.metadata, uid="1-2-3")
    named = msgspec.structs.replace(WEB, metadata=metadata)
    rig.mailbox.put(Replaced(Kind.SERVICE, (named,)))
    rig.step()
    assert "1-2-3" == rig.loop.uid_of(WEB.key)
    assert "" == rig.loop.uid_of(ServiceKey("default", "unknown"))


# --- how long changes wait ---


def moved(address):
    return Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint(address)))


def test_a_change_waits_from_its_arrival_until_it_is_written(started):
    started.clock.now += 100
    started.mailbox.put(moved("10.244.0.2"))
    started.step(3)
    assert [3.0] == started.heard.reports[-1].waited
    assert {Family.IPV4: None} == started.loop.oldest_changes()


def test_first_lists_wait_for_each_other(rig):
    arrived = rig.clock.now
    rig.mailbox.put(Replaced(Kind.SERVICE, (WEB,)))
    rig.step(2)
    assert {Family.IPV4: arrived} == rig.loop.oldest_changes()
    rig.list_all()
    rig.step()
    # The second list of Services says nothing new, so it is no change.
    assert [2.0, 0.0, 0.0] == rig.heard.reports[0].waited


def test_what_says_nothing_new_does_not_wait(started):
    started.mailbox.put(Put(Kind.SERVICE, WEB))
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, WEB_SLICE))
    started.step(5)
    assert {Family.IPV4: None} == started.loop.oldest_changes()


def test_a_change_waits_through_failed_passes(started):
    started.clock.now += 100
    arrived = started.clock.now
    started.kernel.unknowns.append("before")
    started.mailbox.put(moved("10.244.0.2"))
    started.step()
    assert [] == started.heard.reports[-1].waited
    assert {Family.IPV4: arrived} == started.loop.oldest_changes()
    started.step(0.5)
    assert [0.5] == started.heard.reports[-1].waited


def test_the_kernel_is_behind_from_a_flush_until_its_repair(started):
    started.kernel.objects.clear()
    started.kernel.unknowns.append("before")
    started.step(31)
    noticed = started.clock.now
    started.step()
    assert {Family.IPV4: noticed} == started.loop.oldest_changes()
    started.step(1)
    assert {Family.IPV4: None} == started.loop.oldest_changes()
    assert [] == started.heard.reports[-1].waited


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.244.0.9", {Family.IPV4: [1.0], Family.IPV6: []}),
        ("fd00::9", {Family.IPV4: [], Family.IPV6: [1.0]}),
    ],
)
def test_a_change_of_endpoints_waits_in_its_own_family(dual, address, expected):
    dual.clock.now += 100
    dual.mailbox.put(Put(Kind.ENDPOINT_SLICE, slice_("web", endpoint(address), name="web-9")))
    dual.step(1)
    assert expected == {report.family: report.waited for report in dual.heard.reports[-2:]}


def test_causes_are_told_once_by_the_pass_that_writes(started):
    document = manifest(slice_("web", endpoint("10.244.0.2")))
    annotation = "endpoints.kubernetes.io/last-change-trigger-time"
    document["metadata"]["annotations"] = {annotation: "2026-01-02T03:04:05Z"}
    started.mailbox.put(Put(Kind.ENDPOINT_SLICE, msgspec.convert(document, EndpointSlice)))
    started.step(5)
    assert ("2026-01-02T03:04:05Z",) == started.heard.reports[-1].triggers
    started.mailbox.put(moved("10.244.0.3"))
    started.step(5)
    assert () == started.heard.reports[-1].triggers


def test_the_listener_hears_what_is_lacking_until_nothing_is(rig):
    rig.mailbox.put(Replaced(Kind.SERVICE, (WEB,)))
    rig.step()
    rig.list_all()
    rig.step()
    rig.mailbox.put(moved("10.244.0.2"))
    rig.step(5)
    assert [[Kind.ENDPOINT_SLICE, Kind.NODE], []] == rig.heard.lacked


def test_the_listener_hears_what_of_the_node_is_waited_for(rig):
    rig.list_all(nodes=())
    rig.step()
    rig.step()
    rig.mailbox.put(Put(Kind.NODE, node(addresses=())))
    rig.step()
    rig.mailbox.put(Put(Kind.NODE, THIS_NODE))
    rig.step()
    assert ["Node node", "addresses of Node node", ""] == rig.heard.awaited


def test_the_listener_hears_of_the_start_and_of_every_pass():
    rig = DualRig()
    rig.loop._stop.set()
    rig.loop.run()
    assert (Family.IPV4, Family.IPV6) == tuple(rig.heard.families)
    assert 1 == rig.heard.syncs
