from __future__ import annotations

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import Kind, ObjectKey, ServiceKey
from pykubeproxy.sync.outcome import BASE, Applied, Change, Partly, Transaction
from pykubeproxy.sync.reconciler import REFUSED_IN_A_ROW, Reconciler, Report, Sent
from pykubeproxy.sync.store import Store, Touched
from tests.build import endpoint, port, service, slice_, slice_port
from tests.fakes.dataplane import MemoryDataplane, PlainCompiler

NODE = NodeContext("node", Family.IPV4)
ELSEWHERE = NodeContext("node", Family.IPV4, zone="elsewhere")


def key(name):
    return ServiceKey("default", name)


class World:
    """A store, a clock and a reconciler with a dictionary for a kernel."""

    def __init__(self, **dataplane_options):
        self.now = 1000.0
        self.node = NODE
        self.store = Store()
        self.kernel = MemoryDataplane(**dataplane_options)
        self.compiler = PlainCompiler()
        self.restart()

    def restart(self):
        self.reconciler = Reconciler(
            Family.IPV4, self.compiler, self.kernel, clock=lambda: self.now
        )

    def put(self, *names, address="10.0.0.1", cluster_ips=None, **fields):
        for number, name in enumerate(names, start=1):
            ip = fields.get("cluster_ip") or f"10.96.0.{number}"
            self.store.put(service(name, **{**fields, "cluster_ip": ip}))
            self.store.put(slice_(name, endpoint(address)))
        return self

    def drop(self, name):
        self.store.drop(Kind.SERVICE, ObjectKey(*key(name)))
        self.store.drop(Kind.ENDPOINT_SLICE, ObjectKey("default", f"{name}-1"))

    def run(self):
        return self.reconciler.run(self.store.take(), self.store, self.node)

    def settle(self):
        self.run()
        self.kernel.forget()
        self.compiler.compiled.clear()
        return self

    def served(self):
        """Names of services whose objects are in the kernel."""
        return {name.partition("/")[2] for kind, name, *_ in self.fronts() if kind == "pool"}

    def fronts(self):
        return [k for k in self.kernel.objects if k != ("base",)]


@pytest.fixture
def world():
    return World()


LETTERS = "abcdefgh"

# --- an ordinary pass ---


def test_services_and_base_land_in_the_kernel(world):
    world.put("a", "b").run()
    assert world.kernel.objects == {
        ("base",): ("node", ""),
        ("pool", "default/a"): ("10.0.0.1:8080",),
        ("front", "10.96.0.1", 80): ("default/a",),
        ("pool", "default/b"): ("10.0.0.1:8080",),
        ("front", "10.96.0.2", 80): ("default/b",),
    }


def test_a_second_pass_writes_nothing(world):
    world.put("a", "b").settle().run()
    assert world.kernel.transactions == []


def test_a_pass_decides_for_touched_services_only(world):
    world.put(*LETTERS).settle()
    world.store.put(slice_("c", endpoint("10.0.0.9")))
    world.run()
    assert world.compiler.compiled == ["default/c"]


def test_a_changed_service_alone_is_written(world):
    world.put(*LETTERS).settle()
    world.store.put(slice_("c", endpoint("10.0.0.9")))
    report = world.run()
    assert (report.objects_put, report.objects_dropped, world.kernel.written) == (1, 0, [key("c")])


def test_a_deleted_service_leaves_the_kernel(world):
    world.put("a", "b").settle().drop("a")
    world.run()
    assert world.served() == {"b"}


def test_add_and_delete_between_passes_write_nothing(world):
    world.settle()
    world.put("a").drop("a")
    world.run()
    assert world.kernel.transactions == []


def test_a_change_of_the_node_makes_every_service_dirty(world):
    world.put(*LETTERS).settle()
    world.node = ELSEWHERE
    assert world.run().services == len(LETTERS)


def test_a_change_of_the_node_writes_only_what_differs(world):
    world.put(*LETTERS).settle()
    world.node = ELSEWHERE
    world.run()
    assert world.kernel.written == [BASE]


def test_the_same_node_again_makes_nothing_dirty(world):
    world.put(*LETTERS).settle()
    world.node = NodeContext("node", Family.IPV4)
    assert world.run().services == 0


def test_the_compiler_hears_the_number_of_endpoints_first(world):
    world.put("a", "b").run()
    assert world.compiler.endpoint_count == 2


def test_the_number_of_endpoints_follows_deletions(world):
    world.put("a", "b").settle().drop("a")
    world.run()
    assert world.compiler.endpoint_count == 1


def test_problems_are_reported_with_their_service(world):
    world.put("a", external_ips=["x"])
    assert world.run().problems == [(key("a"), "spec.externalIPs: 'x' is no IP address")]


def test_a_problem_is_reported_once_until_it_is_gone(world):
    def problems(**fields):
        world.put("a", **fields)
        return [problem for _, problem in world.run().problems]

    assert len(problems(external_ips=["nonsense"])) == 1
    assert problems(external_ips=["nonsense"], address="10.0.0.2") == []
    assert problems(address="10.0.0.3") == []
    assert len(problems(external_ips=["nonsense"])) == 1


def test_health_checks_are_told_per_service(world):
    world.store.put(
        service(
            "a",
            type="LoadBalancer",
            vips=["203.0.113.1"],
            external_policy="Local",
            health_check_node_port=31000,
        )
    )
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node"), endpoint("10.0.0.2")))
    world.run()
    assert world.reconciler.health_checks == {key("a"): (31000, 1)}


def test_changed_health_checks_are_told_once(world):
    def put(name, **fields):
        world.store.put(service(name, type="LoadBalancer", external_policy="Local", **fields))

    put("a", health_check_node_port=31000)
    put("b", health_check_node_port=31001)
    put("c")
    world.run()
    assert {key("a"): (31000, 0), key("b"): (31001, 0)} == world.reconciler.take_health_checks()
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node")))
    world.drop("b")
    world.run()
    assert {key("a"): (31000, 1), key("b"): None} == world.reconciler.take_health_checks()
    assert {key("a"): (31000, 1)} == world.reconciler.health_checks
    world.store.put(slice_("c", endpoint("10.0.0.1")))
    world.run()
    assert {} == world.reconciler.take_health_checks()


BALANCED = {
    "type": "LoadBalancer",
    "external_policy": "Local",
    "cluster_ip": "10.96.0.1",
    "health_check_node_port": 31000,
}


def test_health_checks_stay_as_the_kernel_is_while_a_service_is_refused(world):
    world.put("other", cluster_ip="10.96.0.9")
    world.store.put(service("a", **BALANCED))
    world.run()
    assert {key("a"): (31000, 0)} == world.reconciler.take_health_checks()
    world.kernel.refused = {key("a"), key("new")}
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node")))
    world.store.put(service("new", **{**BALANCED, "cluster_ip": "10.96.0.2"}))
    world.store.put(service("other", cluster_ip="10.96.0.9", ports=[81]))
    for _ in range(2):
        assert world.run().succeeded
        assert {} == world.reconciler.take_health_checks()
        assert {key("a"): (31000, 0)} == world.reconciler.health_checks
    world.kernel.refused.clear()
    world.now += 1
    world.run()
    new = {key("a"): (31000, 1), key("new"): (31000, 0)}
    assert new == world.reconciler.take_health_checks()
    assert new == world.reconciler.health_checks


def test_a_health_check_stays_until_its_service_is_out_of_the_kernel(world):
    world.store.put(service("a", **BALANCED))
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node")))
    world.settle()
    world.reconciler.take_health_checks()
    world.kernel.refused = {key("a")}
    world.drop("a")
    world.run()
    assert {key("a"): (31000, 0)} == world.reconciler.take_health_checks()
    world.kernel.refused.clear()
    world.now += 1
    world.run()
    assert {key("a"): None} == world.reconciler.take_health_checks()
    assert {} == world.reconciler.health_checks


def test_no_endpoint_here_is_told_also_of_a_service_that_is_refused(world):
    world.store.put(service("a", **BALANCED))
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node")))
    world.settle()
    world.reconciler.take_health_checks()
    world.kernel.refused = {key("a")}
    for endpoints, expected in (([], {key("a"): (31000, 0)}), ([endpoint("10.0.0.2")], {})):
        world.store.put(slice_("a", *endpoints))
        assert world.run().succeeded
        assert expected == world.reconciler.take_health_checks()


def test_a_change_that_is_taken_back_in_quarantine_changes_no_health_check(world):
    world.store.put(service("a", **BALANCED))
    world.settle()
    world.reconciler.take_health_checks()
    world.kernel.refused = {key("a")}
    for endpoints in ([endpoint("10.0.0.1", node="node")], []):
        world.store.put(slice_("a", *endpoints))
        world.run()
    assert () == world.reconciler.quarantined
    assert {} == world.reconciler.take_health_checks()


def test_a_pass_that_fails_changes_no_health_check(world):
    world.settle()
    world.kernel.unknowns.append("before")
    world.store.put(service("a", **BALANCED))
    world.store.put(slice_("a", endpoint("10.0.0.1", node="node")))
    assert not world.run().succeeded
    assert ({}, {}) == (world.reconciler.take_health_checks(), world.reconciler.health_checks)
    assert world.run().succeeded
    assert {key("a"): (31000, 1)} == world.reconciler.take_health_checks()


def test_ports_without_endpoints_here_are_counted(world):
    world.put("a", internal_policy="Local").run()
    assert world.reconciler.no_local_endpoints == (1, 0)


def test_ports_without_endpoints_here_are_no_longer_counted_when_they_go(world):
    world.put("a", internal_policy="Local").settle().drop("a")
    world.run()
    assert world.reconciler.no_local_endpoints == (0, 0)


# --- refusals ---


@pytest.mark.parametrize("suspects", [False, True], ids=["halving", "a suspect is named"])
@pytest.mark.parametrize("culprits", ["a", "d", "h", "ae", "bcd", "gh"])
def test_everybody_but_the_culprits_lands(culprits, suspects):
    world = World(names_suspects=suspects)
    world.put(*LETTERS)
    world.kernel.refused = {key(name) for name in culprits}
    world.run()
    assert world.served() == set(LETTERS) - set(culprits)


def test_the_culprit_alone_is_in_quarantine(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    report = world.run()
    assert [(q.owner, q.detail) for q in report.quarantined] == [(key("c"), "refused: default/c")]


def test_halving_costs_the_logarithm_of_the_services():
    world = World()
    world.put(*(f"s{n}" for n in range(256)))
    world.kernel.refused = {key("s77")}
    assert world.run().transactions <= 2 * 9 + 1


def test_a_named_suspect_is_found_in_three_transactions():
    world = World(names_suspects=True)
    world.put(*(f"s{n}" for n in range(256)))
    world.kernel.refused = {key("s77")}
    assert world.run().transactions == 3


def test_a_refused_service_does_not_fail_the_pass(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    assert world.run().succeeded


def test_a_refused_base_fails_the_pass(world):
    world.kernel.refused = {BASE}
    assert not world.run().succeeded


def test_a_refused_base_takes_nobody_along(world):
    world.kernel.refused.add(BASE)
    report = world.put(*LETTERS).run()
    assert [BASE] == [entry.owner for entry in report.quarantined]
    assert world.served() == set()
    again = world.run()
    assert (again.succeeded, again.transactions) == (False, 0)
    world.kernel.refused.clear()
    world.now += 5
    assert world.run().succeeded
    assert world.served() == set(LETTERS)


def test_a_refused_removal_is_looked_into_once(world):
    world.put("a", "b").settle()
    world.drop("a")
    world.kernel.refused.add(key("a"))
    world.run()
    for _ in range(3):
        world.now += 400
        world.run()
    assert world.kernel.observations == 1


def test_a_service_in_quarantine_is_not_tried(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    world.settle().run()
    assert world.kernel.transactions == []


def test_other_services_are_written_while_one_is_in_quarantine(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    world.settle().put("x", cluster_ip="10.96.1.1").run()
    assert world.kernel.written == [key("x")]


def test_quarantine_ends_by_time(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    world.settle()
    world.kernel.refused.clear()
    world.now = world.reconciler.retry_at
    assert world.run().recovered == [key("c")]
    assert "c" in world.served()


def test_quarantine_lasts_twice_as_long_each_time_up_to_a_limit(world):
    world.put("a")
    world.kernel.refused = {key("a")}
    pauses = []
    for _ in range(11):
        world.run()
        pauses.append(world.reconciler.retry_at - world.now)
        world.now = world.reconciler.retry_at
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_new_version_ends_quarantine_at_once(world):
    world.put(*LETTERS)
    world.kernel.refused = {("pool", "default/c")}
    world.settle()
    world.kernel.refused.clear()
    world.store.put(slice_("c", endpoint("10.0.0.9")))
    assert world.run().recovered == [key("c")]


def test_a_change_of_the_node_ends_quarantine_at_once(world):
    world.put("a")
    world.kernel.refused = {key("a")}
    world.settle()
    world.kernel.refused.clear()
    world.node = ELSEWHERE
    assert world.run().recovered == [key("a")]


def test_a_change_of_the_node_tries_a_refused_base_at_once(world):
    world.kernel.refused = {BASE}
    world.settle()
    world.kernel.refused.clear()
    world.node = ELSEWHERE
    assert world.run().recovered == [BASE]


def test_a_deleted_service_leaves_quarantine(world):
    world.put("a")
    world.kernel.refused = {key("a")}
    world.settle().drop("a")
    world.run()
    assert world.reconciler.quarantined == ()


def test_who_goes_in_and_comes_out_of_quarantine_is_told_once(world):
    world.put("a", "b")
    world.kernel.refused = {key("a")}
    world.run()
    assert {key("a"): True} == world.reconciler.take_quarantine_changes()
    world.now = world.reconciler.retry_at
    world.kernel.refused.clear()
    world.run()
    assert {key("a"): False} == world.reconciler.take_quarantine_changes()
    assert {} == world.reconciler.take_quarantine_changes()


def test_nothing_is_due_without_quarantine(world):
    assert world.reconciler.retry_at is None


def test_a_recovered_service_starts_with_a_short_pause_again(world):
    world.put("a")
    world.kernel.refused = {key("a")}
    for _ in range(3):
        world.run()
        world.now = world.reconciler.retry_at
    world.kernel.refused.clear()
    world.run()
    world.kernel.refused = {key("a")}
    world.store.put(slice_("a", endpoint("10.0.0.9")))
    world.run()
    assert world.reconciler.retry_at - world.now == 1


def test_the_old_version_of_a_refused_service_stays(world):
    world.put("a").settle()
    world.kernel.refused = {key("a")}
    world.store.put(slice_("a", endpoint("10.0.0.9")))
    world.run()
    assert world.kernel.objects["pool", "default/a"] == ("10.0.0.1:8080",)


def test_later_transactions_leave_out_who_was_refused_in_an_earlier_one(world):
    world.put("a", "b")
    plan = world.kernel.plan
    world.kernel.plan = lambda changes: [*plan(changes), *plan(changes)]
    world.kernel.refused = {key("a")}
    world.run()
    assert key("a") not in world.kernel.transactions[-1].owners


# --- unknown outcomes ---


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_unknown_outcome_is_followed_by_a_read_back(world, when):
    world.put(*LETTERS)
    world.kernel.unknowns = [when]
    world.settle().run()
    assert world.kernel.observations == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_unknown_outcome_is_repaired(world, when):
    world.put(*LETTERS)
    world.kernel.unknowns = [when]
    world.run()
    world.run()
    assert world.served() == set(LETTERS)


def test_what_had_landed_is_not_written_again(world):
    world.put(*LETTERS)
    world.kernel.unknowns = ["after"]
    world.settle().run()
    assert world.kernel.transactions == []


def test_an_unknown_outcome_ends_the_pass():
    world = World(batch=2)
    world.put(*LETTERS)
    world.kernel.unknowns = [None, "before"]
    assert (world.run().succeeded, len(world.kernel.transactions)) == (False, 2)


def test_what_landed_before_an_unknown_outcome_is_not_written_again():
    world = World(batch=2)  # base and a, b and c, …
    world.put(*LETTERS)
    world.kernel.unknowns = [None, "before"]
    world.settle().run()
    assert world.kernel.written == [key(name) for name in "bcdefgh"]


def test_an_unknown_deletion_is_repaired(world):
    world.put("a", "b").settle().drop("a")
    world.kernel.unknowns = ["before"]
    world.run()
    world.run()
    assert world.served() == {"b"}


def test_changes_that_come_between_an_unknown_outcome_and_its_repair_count(world):
    world.put("a", "b")
    world.kernel.unknowns = ["after"]
    world.run()
    world.drop("a")
    world.store.put(slice_("b", endpoint("10.0.0.9")))
    world.run()
    assert (world.served(), world.kernel.objects["pool", "default/b"]) == (
        {"b"},
        ("10.0.0.9:8080",),
    )


def test_a_read_back_that_fails_loses_no_change(world):
    world.put("a")
    world.kernel.broken = "no tool"
    with pytest.raises(HostError):
        world.run()
    world.kernel.broken = ""
    world.run()
    assert world.served() == {"a"}


# --- the kernel is not as left ---


def test_strays_are_dropped(world):
    world.kernel.objects = {("pool", "default/old"): ("10.0.0.1:80",)}
    world.put("a").run()
    assert world.served() == {"a"}


def test_a_restart_writes_nothing_that_is_there(world):
    world.put(*LETTERS).settle()
    world.restart()
    world.run()
    assert world.kernel.transactions == []


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda objects: objects.clear(), id="flushed"),
        pytest.param(lambda objects: objects.pop(("pool", "default/c")), id="one removed"),
        pytest.param(lambda objects: objects.update({("pool", "default/c"): ()}), id="one edited"),
    ],
)
def test_drift_is_repaired_once_it_is_suspected(world, damage):
    world.put(*LETTERS).settle()
    expected = dict(world.kernel.objects)
    damage(world.kernel.objects)
    world.reconciler.distrust()
    world.run()
    assert expected == world.kernel.objects


def test_drift_is_counted(world):
    world.put(*LETTERS).settle()
    del world.kernel.objects["pool", "default/c"]
    world.reconciler.distrust()
    assert world.run().surprises == 1


def test_the_kernel_is_not_read_back_without_a_reason(world):
    world.put("a").settle().put("b", cluster_ip="10.96.0.2").run()
    assert world.kernel.observations == 0


# --- conflicts ---

OLD, YOUNG = "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"
SHARED = ("front", "203.0.113.1", 80)


def contest(world, *names_and_ages):
    for number, (name, age) in enumerate(names_and_ages, start=1):
        world.store.put(
            service(name, cluster_ip=f"10.96.0.{number}", external_ips=["203.0.113.1"], created=age)
        )
    return world


@pytest.mark.parametrize(
    ("claims", "winner"),
    [
        pytest.param([("a", YOUNG), ("b", OLD)], "b", id="older"),
        pytest.param([("b", OLD), ("a", YOUNG)], "b", id="older, in the other order"),
        pytest.param([("b", OLD), ("a", OLD)], "a", id="smaller name"),
    ],
)
def test_the_older_service_has_a_shared_address(world, claims, winner):
    contest(world, *claims).run()
    assert world.kernel.objects[SHARED] == (f"default/{winner}",)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["loser first", "winner first"])
def test_who_has_a_shared_address_does_not_depend_on_who_came_first(world, order):
    ages = {"a": YOUNG, "b": OLD}
    for number, name in enumerate(order, start=1):
        ip = f"10.96.0.{number}"
        world.store.put(
            service(name, cluster_ip=ip, external_ips=["203.0.113.1"], created=ages[name])
        )
        world.run()
    assert world.kernel.objects[SHARED] == ("default/b",)


def test_a_conflict_is_reported_once(world):
    contest(world, ("a", OLD), ("b", YOUNG))
    first = world.run().problems
    world.store.put(slice_("b", endpoint("10.0.0.9")))
    assert ([owner for owner, _ in first], world.run().problems) == ([key("b")], [])


def test_a_conflict_names_address_and_winner(world):
    contest(world, ("a", OLD), ("b", YOUNG))
    ((_, problem),) = world.run().problems
    assert "203.0.113.1" in problem
    assert "default/a" in problem


def test_a_conflict_that_comes_back_is_reported_again(world):
    contest(world, ("a", OLD), ("b", YOUNG)).run()
    world.drop("a")
    world.run()
    contest(world, ("a", OLD))
    assert [owner for owner, _ in world.run().problems] == [key("b")]


def test_the_loser_takes_over_when_the_winner_goes(world):
    contest(world, ("a", OLD), ("b", YOUNG)).run()
    world.drop("a")
    world.run()
    assert world.kernel.objects[SHARED] == ("default/b",)


def test_ports_of_one_service_do_not_conflict(world):
    world.store.put(service("a", ports=[port(80, "x"), port(80, "y", "UDP")]))
    assert world.run().problems == []


def test_the_first_of_two_ports_of_one_service_keeps_what_both_want(world):
    world.store.put(service("a", ports=[port(80, "x"), port(80, "y", "UDP")]))
    world.run()
    assert world.kernel.objects["front", "10.96.0.1", 80] == ("default/a:x",)


# --- flows ---


@pytest.mark.parametrize(
    ("protocol", "expected"), [("UDP", True), ("TCP", False)], ids=["UDP", "TCP"]
)
def test_changed_slices_of_udp_services_make_stale_flows_due(world, protocol, expected):
    world.store.put(service("dns", ports=[port(53, "dns", protocol)]))
    world.store.put(slice_("dns", endpoint("10.0.0.1"), ports=[slice_port(53, "dns", protocol)]))
    world.run()
    assert expected is (world.reconciler.flows.take_scope() is not None)


def test_a_change_of_a_service_alone_makes_no_flows_due(world):
    world.store.put(service("dns", ports=[port(53, "dns", "UDP")]))
    world.store.put(slice_("dns", endpoint("10.0.0.1"), ports=[slice_port(53, "dns", "UDP")]))
    world.run()
    world.reconciler.flows.take_scope()
    world.store.put(service("dns", ports=[port(53, "dns", "UDP", node_port=30053)]))
    world.run()
    assert world.reconciler.flows.take_scope() is None


def test_a_pass_may_have_nothing_to_do(world):
    report = world.reconciler.run(Touched(), world.store, NODE)
    assert (report.succeeded, report.services) == (True, 0)


# --- read-backs while something is pending ---


def test_a_service_that_comes_with_a_read_back_is_written(world):
    world.put("a").settle()
    world.reconciler.learn()
    world.put("a", "b")
    world.reconciler.distrust()
    world.run()
    assert world.served() == {"a", "b"}


def test_a_read_back_does_not_touch_the_loser_of_a_conflict(world):
    contest(world, ("a", "2024"), ("b", "2025"))
    world.run()
    world.reconciler.distrust()
    assert world.run().quarantined == []


def test_when_everybody_is_refused_it_is_one_failure():
    world = World()
    names = [f"s{n}" for n in range(250)]
    world.put(*names)
    world.kernel.refused.update(key(name) for name in names)
    report = world.run()
    assert (report.succeeded, report.quarantined) == (False, []), report
    assert report.transactions < 60
    world.kernel.refused.clear()
    assert world.run().succeeded
    assert world.served() == set(names)


@pytest.mark.parametrize("count", [1, 2, REFUSED_IN_A_ROW - 1])
def test_where_everything_is_refused_a_few_are_one_failure_as_well(world, count):
    world.settle()
    names = [f"s{n}" for n in range(count)]
    world.put(*names)
    world.kernel.refuses_all = "Permission denied"
    for _ in range(2):
        report = world.run()
        assert (False, [], 1) == (report.succeeded, report.quarantined, world.kernel.questions)
        assert "everything is refused" in report.detail
        assert report.detail.endswith("Permission denied")
        assert ((), None) == (world.reconciler.quarantined, world.reconciler.retry_at)
        assert not any(world.reconciler.take_quarantine_changes().values())
        world.kernel.forget()
    world.kernel.refuses_all = ""
    assert world.run().succeeded
    assert set(names) == world.served()


def test_who_was_in_quarantine_before_stays_there_where_everything_is_refused(world):
    world.put(*LETTERS)
    world.kernel.refused = {key("c")}
    world.settle()
    world.reconciler.take_quarantine_changes()
    (before,) = world.reconciler.quarantined
    world.kernel.refuses_all = "Permission denied"
    world.now = before.until
    assert not world.run().succeeded
    assert (before.attempts, before.detail) == attempts_and_detail(world)
    assert before.until < world.reconciler.retry_at
    world.kernel.refuses_all = ""
    world.kernel.refused.clear()
    assert [key("c")] == world.run().recovered
    assert {key("c"): False} == world.reconciler.take_quarantine_changes()


def attempts_and_detail(world):
    (entry,) = world.reconciler.quarantined
    return entry.attempts, entry.detail


def test_where_everything_is_refused_nobody_else_was_at_the_kernel(world):
    world.put(*LETTERS).settle()
    world.drop("c")
    world.kernel.refuses_all = "Permission denied"
    before = world.kernel.observations
    for _ in range(3):
        assert not world.run().succeeded
    assert before == world.kernel.observations


@pytest.mark.parametrize(
    ("put", "refused", "expected"),
    [
        pytest.param([], "", 0, id="nothing to do"),
        pytest.param(["a", "b"], "", 0, id="all accepted"),
        pytest.param(["a", "b"], "b", 0, id="one of two refused"),
        pytest.param(["a"], "a", 1, id="the only one refused"),
        pytest.param(["a", "b"], "ab", 1, id="both refused"),
    ],
)
def test_whether_anything_is_accepted_is_asked_where_nothing_of_services_was(
    world, put, refused, expected
):
    world.settle().put(*put)
    world.kernel.refused = {key(name) for name in refused}
    report = world.run()
    assert (True, len(refused)) == (report.succeeded, len(report.quarantined))
    assert expected == world.kernel.questions
    world.run()
    assert expected == world.kernel.questions


def test_a_failure_of_another_kind_raises_no_question(world):
    world.kernel.refused = {BASE}
    world.put("a").run()
    assert 0 == world.kernel.questions


def test_leftovers_are_removed_one_by_one(world):
    world.put("a").settle()
    for name in "xyz":
        world.kernel.objects["pool", f"old/{name}"] = ("leftover",)
    stuck = ("pool", "old/y")
    world.kernel.refused.add(stuck)
    world.reconciler.distrust()
    assert world.run().succeeded
    assert {stuck} == {k for k in world.kernel.objects if str(k[-1]).startswith("old/")}
    assert world.reconciler.quarantined == ()


# --- transactions that land in part ---


class Piecemeal(MemoryDataplane):
    """Commits object by object; ``refused`` holds owners and keys, ``notes`` sentences by owner."""

    def __init__(self):
        super().__init__()
        self.notes = {}

    def apply(self, transaction):
        self.transactions.append(transaction)
        refused, landed = {}, []
        for change in transaction.changes:
            bad = {k for k in (*change.put, *change.drop) if self.refused & {k, change.owner}}
            if bad:
                refused[change.owner] = f"refused: {len(bad)}"
            put = {k: v for k, v in change.put.items() if k not in bad}
            drop = {k: v for k, v in change.drop.items() if k not in bad}
            landed.append(Change(change.owner, put, drop, change.old))
            self.objects.update(put)
            for name in drop:
                self.objects.pop(name, None)
        notes = tuple((o, self.notes[o]) for o in transaction.owners if o in self.notes)
        applied = Applied(lines=1, rules=1, notes=notes)
        if not refused:
            return applied
        return Partly(Transaction(transaction.scope, tuple(landed)), refused, applied)


@pytest.fixture
def piecemeal():
    world = World()
    world.kernel = Piecemeal()
    world.restart()
    return world


def test_refused_owners_are_in_quarantine_and_the_others_are_confirmed(piecemeal):
    piecemeal.put(*LETTERS)
    piecemeal.kernel.refused = {key("c"), key("f")}
    report = piecemeal.run()
    assert [key("c"), key("f")] == [entry.owner for entry in report.quarantined]
    assert (True, 1, {("memory", "partly"): 1}) == (
        report.succeeded,
        report.transactions,
        report.outcomes,
    )
    assert set(LETTERS) - {"c", "f"} == piecemeal.served()
    piecemeal.kernel.forget()
    piecemeal.run()
    assert [] == piecemeal.kernel.transactions


def test_what_landed_of_a_refused_owner_is_not_written_again(piecemeal):
    piecemeal.put("a")
    piecemeal.kernel.refused = {("pool", "default/a")}
    report = piecemeal.run()
    assert ("front", "10.96.0.1", 80) in piecemeal.kernel.objects
    assert ["refused: 1"] == [entry.detail for entry in report.quarantined]
    piecemeal.kernel.refused.clear()
    piecemeal.kernel.forget()
    piecemeal.now = piecemeal.reconciler.retry_at
    assert [key("a")] == piecemeal.run().recovered
    (written,) = piecemeal.kernel.transactions
    assert [{("pool", "default/a")}] == [set(change.put) for change in written.changes]


def test_only_what_landed_is_counted(piecemeal):
    piecemeal.put("a", "b")
    piecemeal.kernel.refused = {key("b")}
    assert 3 == piecemeal.run().objects_put  # the base, and two of a


def test_a_removal_refused_in_part_is_tried_again(piecemeal):
    piecemeal.put("a", "b").settle()
    piecemeal.drop("a")
    piecemeal.kernel.refused = {("front", "10.96.0.1", 80)}
    piecemeal.run()
    assert {"b"} == piecemeal.served()
    piecemeal.kernel.refused.clear()
    piecemeal.now += 1
    piecemeal.run()
    assert ("front", "10.96.0.1", 80) not in piecemeal.kernel.objects


def test_a_base_refused_in_part_ends_the_pass(piecemeal):
    piecemeal.kernel.plan = one_by_one
    piecemeal.put("a")
    piecemeal.kernel.refused = {BASE}
    report = piecemeal.run()
    assert (False, 1) == (report.succeeded, report.transactions)
    assert "refused: 1" == report.detail
    assert set() == piecemeal.served()
    piecemeal.kernel.refused.clear()
    piecemeal.now += 2
    assert piecemeal.run().succeeded
    assert {"a"} == piecemeal.served()


def one_by_one(changes):
    return [Transaction("memory", (change,)) for change in changes]


def test_who_is_refused_in_part_is_left_out_of_later_transactions(piecemeal):
    plan = piecemeal.kernel.plan
    piecemeal.kernel.plan = lambda changes: [*plan(changes), *plan(changes)]
    piecemeal.put("a", "b")
    piecemeal.kernel.refused = {key("a")}
    piecemeal.run()
    assert [BASE, key("b")] == list(piecemeal.kernel.transactions[-1].owners)


def test_when_everybody_is_refused_in_part_it_is_a_failure_told_by_a_few(piecemeal):
    names = [f"s{n}" for n in range(250)]
    piecemeal.put(*names)
    piecemeal.kernel.refused.update(key(name) for name in names)
    report = piecemeal.run()
    assert (False, REFUSED_IN_A_ROW) == (report.succeeded, len(report.quarantined))
    assert "250 Services tried and each refused" in report.detail
    assert len(names) == len(piecemeal.reconciler.quarantined)


def test_many_refused_services_hold_up_nobody_who_comes_later(piecemeal):
    names = [f"s{n}" for n in range(250)]
    piecemeal.put(*names)
    piecemeal.kernel.refused.update(key(name) for name in names)
    piecemeal.run()
    piecemeal.put("healthy")
    assert piecemeal.run().succeeded
    assert {"healthy"} == piecemeal.served()


def test_notes_become_problems(piecemeal):
    piecemeal.put("a", "b")
    piecemeal.kernel.notes = {key("b"): "another scheduler is used"}
    assert [(key("b"), "another scheduler is used")] == piecemeal.run().problems


@pytest.mark.parametrize("refused", [set(), {key("a")}], ids=["applied", "partly"])
def test_notes_come_with_either_outcome(piecemeal, refused):
    piecemeal.put("a", "b")
    piecemeal.kernel.notes = {key("b"): "so so"}
    piecemeal.kernel.refused = refused
    assert [(key("b"), "so so")] == piecemeal.run().problems


# --- claims of several objects ---


class SharingCompiler(PlainCompiler):
    """What is in a front belongs to it: one claim for both."""

    def compile(self, route, node):
        self.compiled.append(str(route.key))
        objects = {}
        for front in route.frontends:
            name = front.address, front.port
            objects["front", *name] = ("any",)
            for endpoint_ in route.cluster_endpoints:
                objects["member", *name, str(endpoint_)] = ()
        return objects

    def claim(self, key):
        return ("front", *key[1:3])


def test_two_ports_of_one_service_under_one_claim_do_not_mix(world):
    world.compiler = SharingCompiler()
    world.restart()
    both = [port(80, "x"), port(80, "y", "UDP")]
    world.store.put(service("a", ports=both))
    numbers = [slice_port(1, "x"), slice_port(2, "y", "UDP")]
    world.store.put(slice_("a", endpoint("10.0.0.1"), ports=numbers))
    assert world.run().problems == []
    members = [k for k in world.kernel.objects if k[0] == "member"]
    assert [("member", "10.96.0.1", 80, "10.0.0.1:1")] == members


def test_owners_that_want_the_same_under_one_claim_agree(world):
    world.compiler = SharingCompiler()
    world.restart()
    contest(world, ("a", OLD), ("b", YOUNG))
    assert world.run().problems == []
    world.kernel.forget()
    world.drop("a")
    world.run()
    assert SHARED in world.kernel.objects


# --- what is counted ---


@pytest.mark.parametrize(("counts_services", "expected"), [(False, (2, 0)), (True, (1, 0))])
def test_services_or_ports_without_endpoints_here_are_counted(counts_services, expected):
    world = World()
    world.reconciler = Reconciler(
        Family.IPV4,
        world.compiler,
        world.kernel,
        clock=lambda: world.now,
        counts_services=counts_services,
    )
    world.store.put(service("a", internal_policy="Local", ports=[port(80, "x"), port(81, "y")]))
    numbers = [slice_port(1, "x"), slice_port(2, "y")]
    world.store.put(slice_("a", endpoint("10.0.0.1"), ports=numbers))
    world.run()
    assert expected == world.reconciler.no_local_endpoints
    world.drop("a")
    world.run()
    assert (0, 0) == world.reconciler.no_local_endpoints


@pytest.mark.parametrize(
    ("counts_services", "more", "expected"),
    [
        pytest.param(False, {}, (0, 1), id="ports, no way in"),
        pytest.param(True, {}, (0, 0), id="Services, no way in"),
        pytest.param(True, {"vips": ["203.0.113.1"]}, (0, 1), id="Services, a load balancer IP"),
        pytest.param(True, {"internal_policy": "Local"}, (1, 1), id="Services, Local inside too"),
    ],
)
def test_services_that_nobody_outside_can_reach_are_not_counted(counts_services, more, expected):
    world = World()
    world.reconciler = Reconciler(
        Family.IPV4,
        world.compiler,
        world.kernel,
        clock=lambda: world.now,
        counts_services=counts_services,
    )
    world.store.put(service("a", type="LoadBalancer", external_policy="Local", **more))
    world.store.put(slice_("a", endpoint("10.0.0.1")))
    world.run()
    assert expected == world.reconciler.no_local_endpoints


def test_a_report_says_what_was_decided_compiled_and_written(world):
    world.put("a", "b").run()
    world.store.put(slice_("a", endpoint("10.0.0.2")))
    report = world.run()
    assert (1, 1, 2) == (report.services, report.routes, report.objects)
    assert ({"tuple": 1}, {}) == (report.put, report.dropped)
    assert report.planned


def test_a_report_adds_up_what_was_sent_by_where_it_went():
    report, nothing = Report(Family.IPV4), Transaction("nat", ())
    report.add(nothing, Applied(lines=3, bytes=30, rules=1, chains=2))
    report.add(nothing, Applied(lines=4, bytes=40, rules=2, chains=1))
    report.add(Transaction("filter", ()), Applied(lines=1, bytes=2))
    assert {"nat": Sent(7, 70, 3, 3), "filter": Sent(1, 2)} == report.sent
    assert (8, 72) == (report.lines, report.bytes)


def test_a_pass_that_could_not_look_planned_nothing(world):
    world.kernel.refused = {BASE}
    world.run()
    assert not world.put("a").run().planned


def test_rules_in_total_follow_what_is_wanted():
    world = World()
    world.reconciler = Reconciler(
        Family.IPV4,
        world.compiler,
        world.kernel,
        clock=lambda: world.now,
        counts_of=lambda objects: {"nat": len(objects)},
    )
    world.put("a", "b").run()
    assert {"nat": 5} == world.reconciler.counts
    world.drop("a")
    world.kernel.unknowns = ["before"]
    world.run()
    assert {"nat": 3} == world.reconciler.counts


# --- what is told of a pass ---


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(lambda w: None, False, id="a change"),
        pytest.param(lambda w: w.reconciler.distrust(), True, id="compared with the kernel"),
        pytest.param(lambda w: setattr(w, "node", ELSEWHERE), True, id="all is decided anew"),
    ],
)
def test_a_full_pass_looks_at_everything(world, before, expected):
    assert world.put("a").run().full
    before(world)
    assert expected == world.put("a", address="10.0.0.2").run().full


def test_the_causes_of_what_was_written_are_those_of_the_family(world):
    touched = Touched(triggers={"IPv4": ("t1", "t2"), "IPv6": ("t3",)})
    assert ("t1", "t2") == world.reconciler.run(touched, world.store, NODE).triggers
