"""Sets on a kernel byte by byte: many entries in a message, each refused by itself."""

from __future__ import annotations

import errno

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.ipvs.messages import ENTRIES_PER_MESSAGE, add_entries, create_set
from pykubeproxy.ipvs.names import SETS, set_name
from pykubeproxy.ipvs.objects import IPSet, SetType
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.outcome import BASE, Applied, Partly, Unknown
from tests.fakes.ipvs import NETFILTER
from tests.ipvs.rig import A, B, Parts, change, entry, put, transaction

NAME = "KUBE-CLUSTER-IP"
CREATE, DESTROY, ADD, DEL = ((6 << 8) | number for number in (2, 3, 9, 10))
NOT_PERMITTED = "not permitted; run as root (NET_ADMIN)"


def web(number):
    return entry(NAME, f"10.96.{number >> 8}.{number & 255},tcp:80")


def kind(number):
    return lambda found, body: found == number


def every_set(family=Family.IPV4):
    return [IPSet(set_name(name, family)) for name in SETS]


@pytest.fixture
def bare():
    return Parts()


@pytest.fixture
def rig(bare):
    return bare.give(bare.sets, *every_set(), owner=BASE).forget_counts()


def write(rig, puts=(), drops=(), owner=A):
    return rig.sets.apply(transaction(change(owner, put(*puts), put(*drops))))


# --- writing ---


@pytest.mark.parametrize("family", Family)
def test_all_sets_are_made(family):
    rig = Parts(family)
    rig.give(rig.sets, *every_set(family), owner=BASE)
    assert {one.name for one in every_set(family)} == rig.kernel.sets(empty=True).keys()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("KUBE-CLUSTER-IP", "10.96.0.1,tcp:80"),
        ("KUBE-LOOP-BACK", "10.244.0.1,sctp:80,10.244.0.1"),
        ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "203.0.113.1,udp:53,192.0.2.0/24"),
        ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "203.0.113.1,udp:53,192.0.2.1"),
        ("KUBE-NODE-PORT-TCP", "30080"),
        ("KUBE-IPVS-IPS", "10.96.0.1"),
    ],
)
def test_entries_come_and_go(rig, name, text):
    key = entry(name, text)
    write(rig, [key])
    assert {name: [text]} == rig.kernel.sets()
    assert rig.sets.observe().holds(key, put(key)[key])
    write(rig, drops=[key])
    assert {} == rig.kernel.sets()


def test_entries_of_many_owners_go_in_few_messages(rig):
    owners = [change(A, put(web(n))) for n in range(2 * ENTRIES_PER_MESSAGE + 1)]
    outcome = rig.sets.apply(transaction(*owners))
    assert isinstance(outcome, Applied)
    assert 3 == outcome.lines == rig.sent()["sets"]
    assert len(owners) == len(rig.kernel.sets()[NAME])


@pytest.mark.parametrize("present", [True, False])
def test_what_is_so_already_is_no_error(rig, present):
    if present:
        rig.give(rig.sets, web(1))
        assert isinstance(write(rig, [web(1)]), Applied)
    assert isinstance(write(rig, drops=[web(1)]), Applied)


def test_an_existing_set_is_taken_over(rig):
    rig.give(rig.sets, web(1))
    assert isinstance(write(rig, every_set(), owner=BASE), Applied)
    assert {NAME: ["10.96.0.1,tcp:80"]} == rig.kernel.sets()


def test_a_set_is_destroyed_after_its_entries(rig):
    rig.give(rig.sets, web(1))
    assert isinstance(write(rig, drops=[IPSet(NAME), web(1)]), Applied)
    assert NAME not in rig.kernel.sets(empty=True)


@pytest.mark.parametrize("drops", [[web(1)], [IPSet(NAME)], [IPSet(NAME), web(1)]])
def test_what_is_gone_with_its_set_need_not_go(rig, drops):
    del rig.kernel.sets_table.sets[NAME]
    assert isinstance(write(rig, drops=drops), Applied)


# --- refusals ---


@pytest.mark.parametrize("position", [0, 1, 250, 499, 500, 750, 1000])
def test_exactly_who_does_not_fit_is_refused(rig, position):
    changes = [
        change(A, put(entry("KUBE-IPVS-IPS", f"10.96.{n >> 8}.{n & 255}"), web(n)))
        for n in range(1000)
    ]
    # A hash of addresses does not take the empty one.
    changes.insert(position, change(B, put(entry("KUBE-IPVS-IPS", "0.0.0.0"))))
    outcome = rig.sets.apply(transaction(*changes))
    assert isinstance(outcome, Partly)
    reason = "an empty value cannot be an entry"
    assert {B: f"0.0.0.0 in ipset KUBE-IPVS-IPS: {reason}"} == outcome.refused
    assert {"KUBE-IPVS-IPS": 1000, NAME: 1000} == {k: len(v) for k, v in rig.kernel.sets().items()}
    assert [{}] == [c.put for c in outcome.landed.changes if c.owner == B]


def test_a_full_set_takes_what_fits(rig):
    rig.kernel.sets_table.sets[NAME].max_elements = 7
    owners = [change((f"ns{n}", "x"), put(web(n))) for n in range(1, 11)]
    outcome = rig.sets.apply(transaction(*owners))
    assert isinstance(outcome, Partly)
    assert {("ns8", "x"), ("ns9", "x"), ("ns10", "x")} == outcome.refused.keys()
    assert "the set is full" in outcome.refused["ns8", "x"]
    assert 7 == len(rig.kernel.sets()[NAME])
    assert rig.sets.look()()


def test_who_is_refused_twice_is_named_with_the_first_reason(rig):
    outcome = write(rig, [entry("KUBE-IPVS-IPS", "0.0.0.0"), entry("KUBE-IPVS-IPS", "fd00::1")])
    assert isinstance(outcome, Partly)
    assert "0.0.0.0" in outcome.refused[A]


def test_a_message_refused_as_a_whole_is_refused_to_all_it_carries(rig):
    rig.kernel.refuse(errno.ENOMEM)
    outcome = rig.sets.apply(transaction(change(A, put(web(1))), change(B, put(web(2)))))
    assert isinstance(outcome, Partly)
    assert {A, B} == outcome.refused.keys()


def test_without_permission_the_reason_says_what_to_do(rig):
    rig.kernel.refuse(errno.EPERM)
    outcome = write(rig, [web(1)])
    assert isinstance(outcome, Partly)
    assert outcome.refused[A].endswith(NOT_PERMITTED)


def test_a_set_of_another_type_is_refused_by_name(bare):
    channel = bare.kernel.channel(NETFILTER)
    assert [0] == channel.batch([create_set(NAME, "hash:ip", Family.IPV4)])
    outcome = write(bare, every_set(), owner=BASE)
    assert isinstance(outcome, Partly)
    assert {
        BASE: f"ipset {NAME}: a set of this name exists with another type or other parameters"
    } == outcome.refused
    assert len(SETS) == len(bare.kernel.sets(empty=True))


@pytest.mark.parametrize("family", Family)
def test_a_set_of_another_type_that_is_found_is_made_anew(family):
    rig = Parts(family)
    sets = every_set(family)
    name = set_name("KUBE-IPVS-IPS", family)
    address = "10.96.0.1" if family is Family.IPV4 else "fd00:96::1"
    theirs = [create_set(name, "hash:ip,port", family), add_entries(name, [f"{address},tcp:80"])]
    assert [0, 0] == rig.kernel.channel(NETFILTER).batch(theirs)
    found = rig.sets.observe()
    assert not found.holds(IPSet(name), put(IPSet(name))[IPSet(name)])
    assert not found.holds(entry(name, f"{address},tcp:80"), None)
    assert {} == found.strays(set())
    rig.give(rig.sets, *sets, owner=BASE)
    assert [] == rig.kernel.sets(empty=True)[name]
    assert all(rig.sets.observe().holds(key, value) for key, value in put(*sets).items())


def test_a_set_of_another_type_that_a_rule_asks_stays_and_is_named(bare):
    channel = bare.kernel.channel(NETFILTER)
    assert [0] == channel.batch([create_set(NAME, "hash:ip", Family.IPV4)])
    rule = f"*nat\n-A OUTPUT -m set --match-set {NAME} dst -j ACCEPT\nCOMMIT\n"
    assert bare.rules.run(["iptables-restore", "--noflush"], rule.encode()).exit_status == 0
    bare.sets.observe()
    outcome = write(bare, every_set(), owner=BASE)
    assert isinstance(outcome, Partly)
    assert [BASE] == list(outcome.refused)
    assert "exists with another type" in outcome.refused[BASE]


def test_entries_of_a_set_that_is_refused_are_refused_as_well(bare):
    bare.kernel.refuse(4098, when=kind(CREATE))
    outcome = bare.sets.apply(
        transaction(change(BASE, put(IPSet(NAME))), change(A, put(web(1)))),
    )
    assert isinstance(outcome, Partly)
    assert [BASE, A] == list(outcome.refused)
    assert "no such set type" in outcome.refused[BASE]


def test_a_set_that_somebody_destroyed_calls_for_a_read_back(rig):
    del rig.kernel.sets_table.sets[NAME]
    expected = Unknown("ipset KUBE-CLUSTER-IP is gone, somebody destroyed it")
    assert expected == write(rig, [web(1)])


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ECONNREFUSED])
def test_a_failing_socket_leaves_the_outcome_unknown(rig, error):
    rig.kernel.break_socket(error)
    outcome = write(rig, [web(1)])
    assert isinstance(outcome, Unknown)
    assert "writing ipsets" in outcome.detail


def test_a_set_in_use_by_a_rule_stays(rig):
    rule = f"*nat\n-A OUTPUT -m set --match-set {NAME} dst,dst -j ACCEPT\nCOMMIT\n"
    assert rig.rules.run(["iptables-restore", "--noflush"], rule.encode()).exit_status == 0
    outcome = write(rig, drops=[IPSet(NAME)], owner=BASE)
    assert isinstance(outcome, Partly)
    assert {BASE: f"ipset {NAME}: in use by a rule or another set"} == outcome.refused


# --- reading back ---


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(web(2), None, id="absent entry"),
        pytest.param(entry("KUBE-NOPE", "1"), None, id="entry of an absent set"),
        pytest.param(IPSet("KUBE-NOPE"), SetType("hash:ip"), id="absent set"),
        pytest.param(IPSet(NAME), SetType("hash:ip"), id="another type"),
    ],
)
def test_what_is_otherwise_is_not_held(rig, key, value):
    rig.give(rig.sets, web(1))
    assert not rig.sets.observe().holds(key, value or put(key)[key])


def test_a_set_of_the_other_family_is_not_held(rig):
    rig.kernel.sets_table.sets[NAME].version = 6
    assert not rig.sets.observe().holds(IPSet(NAME), SetType("hash:ip,port"))


@pytest.mark.parametrize("family", Family)
def test_what_was_written_is_held(family):
    rig = Parts(family)
    keys = every_set(family)
    rig.give(rig.sets, *keys)
    found = rig.sets.observe()
    assert all(found.holds(key, value) for key, value in put(*keys).items())


def test_large_sets_are_read_to_their_end(rig):
    keys = [web(n) for n in range(1000)]
    rig.give(rig.sets, *keys)
    found = rig.sets.observe()
    assert all(found.holds(key, value) for key, value in put(*keys).items())


def test_unwanted_entries_of_our_sets_are_strays(rig):
    rig.give(rig.sets, web(1), web(2))
    channel = rig.kernel.channel(NETFILTER)
    assert [0] == channel.batch([create_set("SOMEBODYS", "hash:ip", Family.IPV4)])
    assert {web(2)} == rig.sets.observe().strays({web(1), *every_set()}).keys()


def test_sets_that_cannot_be_read_are_an_error(rig, monkeypatch):
    def broken(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(rig.kernel, "dump", broken)
    with pytest.raises(HostError, match=r"listing ipset KUBE-.*: not permitted; run as root"):
        rig.sets.observe()
    assert rig.sets.look()()


def test_silence_is_an_error_with_words(rig, monkeypatch):
    def silent(*_):
        raise TimeoutError("timed out")

    monkeypatch.setattr(rig.kernel, "dump", silent)
    with pytest.raises(HostError, match="timed out"):
        rig.sets.observe()


# --- somebody interferes ---


@pytest.mark.parametrize(
    ("damage", "intact"),
    [
        pytest.param(lambda sets: None, True, id="nothing"),
        pytest.param(lambda sets: sets.pop(NAME), False, id="a set is destroyed"),
        pytest.param(lambda sets: sets[NAME].entries.clear(), False, id="a set is flushed"),
        pytest.param(lambda sets: sets["KUBE-IPVS-IPS"].entries.update(x=("1",)), False, id="more"),
        pytest.param(lambda sets: sets.update(OTHER=sets[NAME]), True, id="another set"),
        pytest.param(
            lambda sets: sets.update({"KUBE-LOAD-BALANCER": sets["KUBE-HEALTH-CHECK-NODE-PORT"]}),
            False,
            id="an empty one of another type",
        ),
    ],
)
@pytest.mark.parametrize("restarted", [False, True], ids=["written", "found at a restart"])
def test_a_look_finds_what_others_did(rig, damage, intact, restarted):
    rig.give(rig.sets, web(1), web(2), web(3))
    write(rig, drops=[web(2)])
    if restarted:
        rig.sets = Sets(Family.IPV4, rig.kernel.channel(NETFILTER))
        rig.sets.observe()
    damage(rig.kernel.sets_table.sets)
    assert intact is rig.sets.look()()


def test_what_is_written_during_a_look_does_not_count(rig):
    intact = rig.sets.look()
    write(rig, [web(1)])
    assert intact()


def test_a_refused_entry_is_not_missed(rig):
    write(rig, [entry("KUBE-IPVS-IPS", "0.0.0.0"), entry("KUBE-IPVS-IPS", "10.96.0.1")])
    assert rig.sets.look()()
