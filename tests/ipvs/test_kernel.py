"""The parts together: what comes first, who is told what, and when somebody interferes."""

from __future__ import annotations

import errno

import pytest

from pykubeproxy.iptables.objects import Chain
from pykubeproxy.ipvs.objects import IPSet, Real
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from tests.build import endpoint, port, service, slice_, slice_port
from tests.fakes.ipvs import DEVICE, GENERIC, NETFILTER, ROUTE, FakeKernel, ServiceId
from tests.fakes.xtables import Fault
from tests.ipvs.rig import NOTHING_SENT, Proxy, bound, entry, put, tcp

WEB = service("web", cluster_ip="10.96.0.1")
PODS = slice_("web", endpoint("10.244.0.1"), endpoint("10.244.0.2"))
RANGED = service(
    "ranged",
    type="LoadBalancer",
    cluster_ip="10.96.0.2",
    vips=["203.0.113.1"],
    source_ranges=["198.51.100.0/24"],
)
SERVED = {"TCP 10.96.0.1:80": {"10.244.0.1:8080": 1, "10.244.0.2:8080": 1}}


def key(name):
    return ServiceKey("default", name)


@pytest.fixture
def proxy():
    return Proxy()


@pytest.fixture
def served(proxy):
    proxy.put(WEB, PODS).sync()
    return proxy.forget_counts()


@pytest.fixture
def ranged(served):
    served.put(RANGED, slice_("ranged", endpoint("10.244.0.3"))).sync()
    return served.forget_counts()


# --- from nothing ---


def test_a_service_is_served(served):
    assert SERVED == served.kernel.virtuals()
    assert ["10.96.0.1"] == served.kernel.bound()
    sets = {"KUBE-CLUSTER-IP": ["10.96.0.1,tcp:80"], "KUBE-IPVS-IPS": ["10.96.0.1"]}
    assert sets == served.kernel.sets()
    assert "KUBE-SERVICES" in served.rules.state()["nat"]


def test_a_service_is_served_in_ipv6():
    proxy = Proxy(Family.IPV6, node=NodeContext("node", Family.IPV6))
    six = service("web", cluster_ip="fd00:96::1", cluster_ips=["fd00:96::1"], ip_families=["IPv6"])
    proxy.put(six, slice_("web", endpoint("fd00:244::1"))).sync()
    assert {"TCP [fd00:96::1]:80": {"[fd00:244::1]:8080": 1}} == proxy.kernel.virtuals()
    assert {"KUBE-6-CLUSTER-IP", "KUBE-6-IPVS-IPS"} == proxy.kernel.sets().keys()


def test_both_families_share_a_kernel():
    kernel = FakeKernel()
    four = Proxy(kernel=kernel)
    six = Proxy(Family.IPV6, kernel, node=NodeContext("node", Family.IPV6))
    dual = service("web", cluster_ips=["10.96.0.1", "fd00:96::1"], ip_families=["IPv4", "IPv6"])
    slices = slice_("web", endpoint("10.244.0.1")), slice_("web", endpoint("fd00::1"), name="web-6")
    for proxy in (four, six):
        assert proxy.put(dual, *slices).sync().succeeded
    assert 2 == len(kernel.virtuals())
    for proxy in (four, six):
        proxy.forget_counts().restart()
        proxy.sync()
        assert NOTHING_SENT == proxy.sent()
        assert proxy.dataplane.intact()


def test_new_things_come_before_what_leads_to_them_and_go_after_it(proxy):
    proxy.put(WEB, PODS).sync()
    assert [NETFILTER, GENERIC, ROUTE] == in_order(proxy.kernel.messages)
    proxy.forget_counts().drop("web").sync()
    assert [ROUTE, GENERIC, NETFILTER] == in_order(proxy.kernel.messages)


def in_order(messages):
    return list(dict.fromkeys(protocol for protocol, _ in messages))


def test_rules_of_iptables_mode_are_replaced(proxy):
    jump = '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    lines = [
        *("*nat", ":KUBE-SERVICES - [0:0]", ":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]"),
        *("-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-AAAAAAAAAAAAAAAA", jump),
        "COMMIT",
        "",
    ]
    done = proxy.rules.run(["iptables-restore", "--noflush"], "\n".join(lines).encode())
    assert 0 == done.exit_status
    proxy.put(WEB, PODS).settle()
    fresh = Proxy().put(WEB, PODS).settle()
    assert fresh.state() == proxy.state()


# --- the work of a change ---


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            lambda p: p.put(slice_("web", endpoint("10.244.0.1"), endpoint("10.244.0.9"))),
            {"servers": 2},
            id="an endpoint replaced",
        ),
        pytest.param(
            lambda p: p.put(service("web", affinity_seconds=60)), {"servers": 1}, id="affinity"
        ),
        pytest.param(
            lambda p: p.put(service("web", external_ips=["203.0.113.9"])),
            {"servers": 3, "sets": 2, "addresses": 1},
            id="an external IP",
        ),
        pytest.param(
            lambda p: p.drop("web"), {"servers": 1, "sets": 2, "addresses": 1}, id="deleted"
        ),
        pytest.param(lambda p: p.put(WEB), {}, id="nothing"),
    ],
)
def test_a_change_costs_its_messages(served, change, expected):
    change(served)
    served.sync()
    assert {**NOTHING_SENT, **expected} == served.sent()


# --- refusals ---


@pytest.mark.parametrize(
    ("protocol", "reason"),
    [
        pytest.param(NETFILTER, "ipset", id="a set entry"),
        pytest.param(GENERIC, "tcp 10.96.0.2:80", id="a virtual server"),
        pytest.param(ROUTE, "address 10.96.0.2", id="an address"),
    ],
)
def test_a_refused_service_is_alone_in_that(served, protocol, reason):
    served.put(service("bad", cluster_ip="10.96.0.2"), slice_("bad", endpoint("10.244.0.7")))
    served.put(slice_("web", endpoint("10.244.0.1")))
    bad = bytes((10, 96, 0, 2))
    served.kernel.refuse(
        errno.ENOMEM, protocol=protocol, when=lambda kind, body: bad in body, times=None
    )
    report = served.sync()
    assert report.succeeded
    assert [key("bad")] == [entry.owner for entry in report.quarantined]
    assert reason in report.quarantined[0].detail
    assert {"10.244.0.1:8080": 1} == served.kernel.virtuals()["TCP 10.96.0.1:80"]
    served.kernel.heal()
    served.settle()
    assert "TCP 10.96.0.2:80" in served.kernel.virtuals()
    assert ["10.96.0.1", "10.96.0.2"] == served.kernel.bound()


def test_a_full_set_leaves_out_who_does_not_fit(served):
    served.kernel.sets_table.sets["KUBE-CLUSTER-IP"].max_elements = 2
    for n in (2, 3, 4):
        served.put(service(f"s{n}", cluster_ip=f"10.96.0.{n}"))
    report = served.sync()
    assert report.succeeded
    assert [key("s3"), key("s4")] == [entry.owner for entry in report.quarantined]
    assert {"TCP 10.96.0.1:80", "TCP 10.96.0.2:80"} == served.kernel.virtuals().keys()


def test_an_unknown_scheduler_becomes_a_problem():
    proxy = Proxy(kernel=FakeKernel(schedulers=["rr"]))
    report = proxy.put(service("web", cluster_ip="10.96.0.1", scheduler="mh"), PODS).sync()
    assert [key("web")] == [owner for owner, _ in report.problems]
    assert "modprobe ip_vs_mh" in report.problems[0][1]
    assert SERVED == proxy.kernel.virtuals()


@pytest.mark.parametrize("protocol", [NETFILTER, GENERIC, ROUTE])
def test_a_failing_socket_is_followed_by_a_read_back(served, protocol):
    served.kernel.break_socket(protocol=protocol)
    served.put(service("more", cluster_ip="10.96.0.2"), slice_("more", endpoint("10.244.0.3")))
    assert not served.sync().succeeded
    report = served.sync()
    assert (True, True) == (report.succeeded, report.observed)
    assert "TCP 10.96.0.2:80" in served.kernel.virtuals()


def test_whether_anything_is_accepted_is_asked_of_the_rules(served):
    before = served.state()
    assert served.dataplane.accepts({"ipvs", "nat"}) is None
    assert before == served.state()
    served.rules.fail(Fault.REFUSE, "KUBE-PROXY-PROBE", times=None)
    assert "iptables-nft-restore, table nat: " in served.dataplane.accepts({"ipvs", "nat"})
    assert served.dataplane.accepts({"ipvs"}) is None


def test_a_refused_rule_is_its_owners_affair(served):
    served.rules.fail(Fault.REFUSE, "203.0.113.1", times=None)
    served.put(RANGED, slice_("ranged", endpoint("10.244.0.3")))
    served.put(slice_("web", endpoint("10.244.0.1")))
    report = served.sync()
    assert [key("ranged")] == [entry.owner for entry in report.quarantined]
    assert {"10.244.0.1:8080": 1} == served.kernel.virtuals()["TCP 10.96.0.1:80"]


# --- a restart ---


def test_a_restart_sends_nothing(ranged):
    ranged.restart()
    report = ranged.sync()
    assert (True, 0) == (report.succeeded, report.surprises)
    assert NOTHING_SENT == ranged.sent()


def test_a_restart_removes_what_nobody_wants_any_more(ranged):
    ranged.restart()
    ranged.drop("ranged").sync()
    assert SERVED == ranged.kernel.virtuals()
    assert ["10.96.0.1"] == ranged.kernel.bound()
    assert {"KUBE-CLUSTER-IP", "KUBE-IPVS-IPS"} == ranged.kernel.sets().keys()
    assert [] == ranged.rules.rules("filter", "KUBE-IPVS-OUT-FILTER")


def test_excluded_virtual_servers_survive_a_restart(served):
    served.exclude_cidrs = ["10.96.0.0/16"]
    served.restart()
    served.drop("web").sync()
    assert SERVED == served.kernel.virtuals()
    assert served.dataplane.intact()


# --- strays ---


def test_strays_of_all_kinds_are_found(served):
    found = served.dataplane.observe().strays([])
    kinds = {type(stray) for stray in found}
    assert {type(tcp("10.96.0.1")), type(entry("", "")), type(bound("")), Chain} <= kinds
    assert tcp("10.96.0.1") in found
    assert Real not in kinds  # they go with their virtual server
    assert IPSet not in kinds  # an empty set does no harm


# --- somebody interferes ---


def remove_rule(proxy):
    proxy.rules.run(["iptables", "-D", "KUBE-FORWARD", "1"])


DAMAGE = [
    pytest.param(lambda p: None, True, id="nothing"),
    pytest.param(lambda p: p.kernel.servers.services.clear(), False, id="ipvsadm -C"),
    pytest.param(
        lambda p: p.kernel.servers.services.pop(ServiceId("TCP", "10.96.0.1", 80)),
        False,
        id="a virtual server removed",
    ),
    pytest.param(
        lambda p: p.kernel.sets_table.sets["KUBE-CLUSTER-IP"].entries.clear(),
        False,
        id="a set flushed",
    ),
    pytest.param(lambda p: p.rules.flush(), False, id="rules flushed"),
    pytest.param(lambda p: p.rules.tables.pop("filter"), False, id="one table flushed"),
    pytest.param(
        lambda p: p.rules.table("filter").chains["KUBE-IPVS-OUT-FILTER"].clear(),
        False,
        id="a rule of a Service removed",
    ),
    pytest.param(
        lambda p: p.rules.table("filter").chains["KUBE-FORWARD"].pop(), False, id="a rule removed"
    ),
]


@pytest.mark.parametrize(("damage", "intact"), DAMAGE)
@pytest.mark.parametrize("restarted", [False, True], ids=["written", "found at a restart"])
def test_damage_is_noticed_and_repaired(ranged, damage, intact, restarted):
    if restarted:
        ranged.restart()
        ranged.sync()
    expected = ranged.state()
    assert ranged.dataplane.intact()
    damage(ranged)
    assert intact is ranged.dataplane.intact()
    assert (0 if intact else 1) == ranged.suspicions
    ranged.reconciler.distrust()
    assert ranged.sync().succeeded
    assert expected == ranged.state()
    assert ranged.dataplane.intact()


def test_a_look_takes_place_elsewhere(ranged):
    ranged.later = []
    ranged.kernel.servers.services.clear()
    assert ranged.dataplane.intact()
    (look,) = ranged.later
    look()
    assert 1 == ranged.suspicions
    assert not ranged.dataplane.intact()
    assert 1 == len(ranged.later)


def test_what_is_written_during_a_look_is_no_damage(ranged):
    ranged.later = []
    ranged.dataplane.intact()
    ranged.drop("ranged")
    ranged.put(service("more", cluster_ip="10.96.0.3"), slice_("more", endpoint("10.244.0.5")))
    ranged.sync()
    for look in ranged.later:
        look()
    assert 0 == ranged.suspicions


def test_an_edit_of_the_rules_is_found_by_a_lesson_and_undone(ranged):
    ranged.restart()
    ranged.sync()
    chain = ranged.rules.table("filter").chains["KUBE-FORWARD"]
    before = [rule.text for rule in chain]
    chain.pop()
    ranged.reconciler.recheck()
    assert not ranged.reconciler.learn()
    ranged.sync()
    assert before == [rule.text for rule in ranged.rules.table("filter").chains["KUBE-FORWARD"]]


# --- addresses, by notices ---


def test_notices_of_what_others_do_are_suspicious(served):
    served.dataplane.address_noticed("10.96.0.1", present=True)
    assert (0, True) == (served.suspicions, served.dataplane.intact())
    served.dataplane.address_noticed("10.96.0.1", present=False)
    assert (1, False) == (served.suspicions, served.dataplane.intact())


def test_a_read_back_ends_the_suspicion(served):
    served.kernel.links.named(DEVICE).addresses.clear()
    served.dataplane.address_noticed("10.96.0.1", present=False)
    served.reconciler.distrust()
    served.sync()
    assert ["10.96.0.1"] == served.kernel.bound()
    assert served.dataplane.intact()


def test_a_deleted_device_is_made_again_with_all_addresses(served):
    index = next(i for i, link in served.kernel.links.links.items() if link.name == DEVICE)
    del served.kernel.links.links[index]
    served.dataplane.address_noticed("10.96.0.1", present=False)
    served.reconciler.distrust()
    served.sync()
    assert ["10.96.0.1"] == served.kernel.bound()


# --- draining through all of it ---


@pytest.fixture
def connected(served):
    served.kernel.destination("TCP 10.96.0.1:80", "10.244.0.2:8080").active = 1
    served.put(slice_("web", endpoint("10.244.0.1"))).sync()
    assert {"10.244.0.1:8080": 1, "10.244.0.2:8080": 0} == served.kernel.virtuals()[
        "TCP 10.96.0.1:80"
    ]
    return served.forget_counts()


def tend(proxy, seconds):
    proxy.now += seconds
    return proxy.dataplane.tend(proxy.now)


def test_a_drained_endpoint_goes_without_a_pass(connected):
    connected.kernel.destination("TCP 10.96.0.1:80", "10.244.0.2:8080").active = 0
    tend(connected, 2)
    assert {"TCP 10.96.0.1:80": {"10.244.0.1:8080": 1}} == connected.kernel.virtuals()
    assert connected.dataplane.intact()


def test_a_returning_endpoint_serves_again(connected):
    connected.put(PODS).sync()
    tend(connected, 60)
    assert SERVED == connected.kernel.virtuals()
    assert 1 == connected.sent()["servers"]


def test_a_read_back_leaves_a_draining_endpoint_alone(connected):
    connected.reconciler.distrust()
    report = connected.sync()
    assert (True, 0) == (report.observed, report.surprises)
    assert NOTHING_SENT == connected.sent()


def test_an_endpoint_that_drains_in_one_port_serves_in_the_other():
    proxy = Proxy()
    two = service("web", cluster_ip="10.96.0.1", ports=[port(80, "a"), port(81, "b")])
    both = [slice_port(8080, "a"), slice_port(8080, "b")]
    proxy.put(two, slice_("web", endpoint("10.244.0.1"), ports=both)).sync()
    proxy.kernel.destination("TCP 10.96.0.1:80", "10.244.0.1:8080").active = 1
    proxy.put(slice_("web", endpoint("10.244.0.1"), ports=[slice_port(8080, "b")])).sync()
    weights = {
        "TCP 10.96.0.1:80": {"10.244.0.1:8080": 0},
        "TCP 10.96.0.1:81": {"10.244.0.1:8080": 1},
    }
    assert weights == proxy.kernel.virtuals()


def test_what_is_held_is_asked_of_the_part_that_knows(served):
    found = served.dataplane.observe()
    present = put(tcp("10.96.0.1"), entry("KUBE-IPVS-IPS", "10.96.0.1"), bound("10.96.0.1"))
    assert all(found.holds(one, value) for one, value in present.items())
    absent = put(tcp("10.96.0.9"), entry("KUBE-IPVS-IPS", "10.96.0.9"), bound("10.96.0.9"))
    assert not any(found.holds(one, value) for one, value in absent.items())
