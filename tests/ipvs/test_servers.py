"""Virtual and real servers on a kernel byte by byte: written, refused, drained, looked after."""

from __future__ import annotations

import errno

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.ipvs.objects import Real, Virtual, VirtualConfig
from pykubeproxy.ipvs.servers import RETRY_SECONDS
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.sync.outcome import Applied, Partly, Unknown
from tests.fakes.ipvs import FakeKernel, ServiceId
from tests.fakes.ipvs_servers import HASHED
from tests.ipvs.rig import RR, A, B, Parts, change, put, real, tcp, transaction, udp

WEB, API, DNS = tcp("10.96.0.1"), tcp("10.96.0.2", 443), udp("10.96.0.10")
WEB6 = tcp("fd00:96::1")
ONE, TWO, THREE = (real(WEB, n) for n in (1, 2, 3))
NAMES = {ONE: "10.244.0.1:8080", TWO: "10.244.0.2:8080", THREE: "10.244.0.3:8080"}
SERVED = {"TCP 10.96.0.1:80": {"10.244.0.1:8080": 1, "10.244.0.2:8080": 1}}
SET_SERVICE, DEL_SERVICE, NEW_DEST, SET_DEST, DEL_DEST = 2, 3, 5, 6, 7
NOT_PERMITTED = "not permitted; run as root (NET_ADMIN)"


def command(number):
    return lambda kind, body: body[0] == number


@pytest.fixture
def rig():
    return Parts()


@pytest.fixture
def served(rig):
    rig.give(rig.servers, WEB, ONE, TWO).forget_counts()
    return rig


def write(rig, puts=(), drops=(), old=(), owner=A):
    """Put and drop keys with their usual values."""
    parts = change(owner, put(*puts), put(*drops), put(*old))
    return rig.servers.apply(transaction(parts))


# --- writing ---


@pytest.mark.parametrize(
    ("family", "virtual"),
    [
        pytest.param(Family.IPV4, WEB, id="TCP"),
        pytest.param(Family.IPV4, DNS, id="UDP"),
        pytest.param(Family.IPV6, WEB6, id="IPv6"),
    ],
)
def test_a_virtual_server_gets_its_real_servers(family, virtual):
    rig = Parts(family)
    outcome = write(rig, [virtual, real(virtual, 1), real(virtual, 2)])
    assert isinstance(outcome, Applied)
    assert (3, 3) == (outcome.lines, outcome.rules)
    ((_, reals),) = rig.kernel.virtuals().items()
    assert [1, 1] == list(reals.values())


def test_a_changed_virtual_server_keeps_its_real_servers(served):
    sticky = VirtualConfig("wlc", 1, 600)
    served.servers.apply(transaction(change(A, {WEB: sticky}, old={WEB: RR})))
    assert served.kernel.virtuals() == SERVED
    ((_, found),) = served.kernel.servers.services.items()
    assert ("wlc", 600, True) == (found.scheduler, found.timeout, found.persistent)
    assert 1 == served.sent()["servers"]


def test_a_virtual_server_goes_with_its_real_servers_in_one_message(served):
    write(served, drops=[WEB, ONE, TWO])
    assert {} == served.kernel.virtuals()
    assert 1 == served.sent()["servers"]


def test_a_real_server_without_connections_goes_at_once(served):
    write(served, drops=[TWO])
    assert {"TCP 10.96.0.1:80": {"10.244.0.1:8080": 1}} == served.kernel.virtuals()


# --- what is there already, or no longer ---


@pytest.mark.parametrize(
    ("puts", "old"),
    [
        pytest.param([WEB, ONE, TWO], [], id="all is there: the other verb"),
        pytest.param([ONE, THREE], [ONE, THREE], id="a real server is not: the other verb"),
    ],
)
def test_a_wrong_idea_of_what_is_there_does_no_harm(served, puts, old):
    assert isinstance(write(served, puts, old=old), Applied)
    expected = {NAMES[key]: 1 for key in {ONE, TWO, *puts} - {WEB}}
    assert {"TCP 10.96.0.1:80": expected} == served.kernel.virtuals()


def test_a_wrong_configuration_is_replaced(served):
    served.kernel.servers.services[ServiceId("TCP", "10.96.0.1", 80)].scheduler = "sh"
    write(served, [WEB])
    (found,) = served.kernel.servers.services.values()
    assert "rr" == found.scheduler


@pytest.mark.parametrize(
    ("puts", "old"),
    [
        pytest.param([THREE], [], id="a real server comes"),
        pytest.param([WEB], [WEB], id="the virtual server is changed"),
        pytest.param([WEB, THREE], [WEB], id="both"),
    ],
)
def test_a_virtual_server_that_somebody_removed_calls_for_a_read_back(served, puts, old):
    served.kernel.servers.services.clear()
    outcome = write(served, puts, old=old)
    assert Unknown("tcp 10.96.0.1:80 is gone, somebody removed it") == outcome


@pytest.mark.parametrize("drops", [[WEB, ONE, TWO], [ONE], [ONE, TWO]])
def test_what_is_gone_need_not_go(served, drops):
    served.kernel.servers.services.clear()
    assert isinstance(write(served, drops=drops), Applied)


def test_a_real_server_that_goes_meanwhile_need_not_go():
    rig = Parts()
    rig.give(rig.servers, DNS, real(DNS, 1))
    rig.kernel.servers.services[ServiceId("UDP", "10.96.0.10", 53)].destinations.clear()
    assert isinstance(write(rig, drops=[real(DNS, 1)]), Applied)


# --- refusals ---


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(errno.ENOMEM, "Cannot allocate memory", id="memory"),
        pytest.param(errno.EPERM, NOT_PERMITTED, id="permission"),
    ],
)
def test_who_is_refused_keeps_nobody_else(rig, error, reason):
    rig.kernel.refuse(error, when=command(NEW_DEST))
    outcome = rig.servers.apply(
        transaction(change(A, put(WEB, ONE, TWO)), change(B, put(API, real(API, 1))))
    )
    assert isinstance(outcome, Partly)
    assert {A: f"10.244.0.1:8080 of tcp 10.96.0.1:80: {reason}"} == outcome.refused
    assert [{WEB, TWO}, {API, real(API, 1)}] == [set(c.put) for c in outcome.landed.changes]
    assert [1, 1] == [len(reals) for reals in rig.kernel.virtuals().values()]


def test_without_the_virtual_server_its_real_servers_are_refused_as_well(rig):
    rig.kernel.refuse(errno.ENOMEM)
    outcome = write(rig, [WEB, ONE])
    assert isinstance(outcome, Partly)
    assert {A: "tcp 10.96.0.1:80: Cannot allocate memory"} == outcome.refused
    assert [{}] == [c.put for c in outcome.landed.changes]


def test_a_virtual_server_that_cannot_go_keeps_its_real_servers_in_the_notes(served):
    served.kernel.refuse(errno.ENOMEM, when=command(DEL_SERVICE))
    outcome = write(served, drops=[WEB, ONE, TWO])
    assert isinstance(outcome, Partly)
    assert [{}] == [c.drop for c in outcome.landed.changes]


@pytest.mark.parametrize("error", [errno.ENOBUFS, errno.ECONNREFUSED])
def test_a_failing_socket_leaves_the_outcome_unknown(rig, error):
    rig.kernel.break_socket(error, nth=2)
    outcome = write(rig, [WEB, ONE])
    assert isinstance(outcome, Unknown)
    assert "writing virtual servers" in outcome.detail


# --- schedulers ---


def missing(*names):
    kernel = FakeKernel(schedulers=[n for n in ("rr", "mh", "wlc") if n not in names])
    return Parts(kernel=kernel)


MH, WLC = VirtualConfig("mh", 0x10), VirtualConfig("wlc")
INSTEAD = "IPVS scheduler 'mh' is not in this kernel (modprobe ip_vs_mh); rr is used instead"


def test_an_unknown_scheduler_is_replaced_by_the_default_one_with_a_note():
    rig = missing("mh")
    outcome = rig.servers.apply(transaction(change(A, {WEB: MH, **put(ONE, TWO)})))
    assert isinstance(outcome, Applied)
    assert ((A, INSTEAD),) == outcome.notes
    assert SERVED == rig.kernel.virtuals()


def test_all_who_ask_for_an_unknown_scheduler_are_served_and_told():
    rig = missing("mh")
    both = transaction(
        change(A, {WEB: MH, **put(ONE), DNS: MH}), change(B, {API: MH, **put(real(API, 1))})
    )
    outcome = rig.servers.apply(both)
    assert isinstance(outcome, Applied)
    assert ((A, INSTEAD), (B, INSTEAD)) == outcome.notes
    assert 3 == len(rig.kernel.virtuals())


def test_an_unknown_scheduler_is_tried_once_and_told_to_everybody():
    rig = missing("mh")
    rig.servers.apply(transaction(change(A, {WEB: MH})))
    rig.forget_counts()
    outcome = rig.servers.apply(transaction(change(B, {API: MH})))
    assert ((B, INSTEAD),) == outcome.notes
    assert 1 == rig.sent()["servers"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "left by somebody"])
def test_a_served_virtual_server_cannot_get_an_unknown_scheduler(known):
    rig = missing("mh")
    rig.give(rig.servers, WEB, ONE, TWO)
    old = {WEB: RR} if known else {}
    outcome = rig.servers.apply(transaction(change(A, {WEB: MH}, old=old)))
    assert isinstance(outcome, Applied)
    assert ((A, INSTEAD),) == outcome.notes
    assert SERVED == rig.kernel.virtuals()


def test_what_was_granted_instead_counts_as_held():
    rig = missing("mh")
    rig.servers.apply(transaction(change(A, {WEB: MH})))
    assert rig.servers.observe().holds(WEB, MH)
    assert not rig.servers.observe().holds(WEB, WLC)


@pytest.mark.parametrize(
    ("default", "asked", "granted"),
    [
        pytest.param("sh", VirtualConfig("mh", 0x11, 60), ("sh", 0x1), id="another meaning to sh"),
        pytest.param("mh", VirtualConfig("wlc", 0x1, 60), ("mh", 0x11), id="mh counts ports"),
    ],
)
def test_flags_are_those_of_the_scheduler_that_is_granted(default, asked, granted):
    rig = Parts(kernel=FakeKernel(schedulers=[default]), scheduler=default)
    rig.servers.apply(transaction(change(A, {WEB: asked})))
    (found,) = rig.kernel.servers.services.values()
    assert granted == (found.scheduler, found.flags & ~HASHED)
    assert rig.servers.observe().holds(WEB, asked)


def test_without_the_default_scheduler_there_is_nothing_to_be_had():
    outcome = missing("mh", "rr").servers.apply(transaction(change(A, {WEB: MH, **put(ONE)})))
    assert isinstance(outcome, Partly)
    reason = "scheduler 'rr' is not in this kernel (modprobe ip_vs_rr)"
    assert {A: f"tcp 10.96.0.1:80: {reason}"} == outcome.refused


# --- reading back ---


def test_what_was_written_is_held(served):
    found = served.servers.observe()
    assert {} == found.strays({WEB, ONE, TWO})
    assert all(found.holds(key, value) for key, value in put(WEB, ONE, TWO).items())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        pytest.param(API, RR, id="absent"),
        pytest.param(WEB, VirtualConfig("rr", 1, 60), id="other flags"),
        pytest.param(THREE, 1, id="absent real server"),
        pytest.param(ONE, 0, id="other weight"),
        pytest.param(real(API, 1), 1, id="of an absent virtual server"),
    ],
)
def test_what_is_otherwise_is_not_held(served, key, value):
    assert not served.servers.observe().holds(key, value)


def test_a_real_server_that_is_not_masqueraded_is_not_held(served):
    served.kernel.destination("TCP 10.96.0.1:80", NAMES[ONE]).method = 3
    assert not served.servers.observe().holds(ONE, 1)
    write(served, [ONE])
    assert served.servers.observe().holds(ONE, 1)


def test_unwanted_servers_are_strays(served):
    found = served.servers.observe()
    assert {WEB: RR} == found.strays(set())
    assert {TWO: 1} == found.strays({WEB, ONE})


def test_servers_of_the_other_family_and_of_marks_are_nobodys_business(served):
    served.kernel.servers.services[ServiceId("TCP", "fd00:96::1", 80)] = served_like(served)
    served.kernel.servers.services[7] = served_like(served)
    served.kernel.servers.marks[7] = 2
    assert {WEB: RR} == served.servers.observe().strays(set())
    assert served.servers.look()()


def served_like(rig):
    return next(iter(rig.kernel.servers.services.values()))


@pytest.mark.parametrize(
    ("cidrs", "strays"),
    [
        pytest.param([], {WEB, API}, id="none"),
        pytest.param(["10.96.0.2/32"], {WEB}, id="one address"),
        pytest.param(["10.96.0.0/16"], set(), id="a net"),
        pytest.param(["::/0"], {WEB, API}, id="the other family"),
    ],
)
def test_virtual_servers_in_excluded_nets_are_somebody_elses(cidrs, strays):
    rig = Parts(exclude_cidrs=cidrs)
    rig.give(rig.servers, WEB, API)
    rig.restart()
    assert strays == rig.servers.observe().strays(set()).keys()


def test_what_others_do_in_excluded_nets_is_no_damage():
    rig = Parts(exclude_cidrs=["10.96.0.2/32"])
    rig.give(rig.servers, WEB, API)
    rig.restart()
    rig.servers.observe()
    del rig.kernel.servers.services[ServiceId("TCP", "10.96.0.2", 443)]
    assert rig.servers.look()()
    del rig.kernel.servers.services[ServiceId("TCP", "10.96.0.1", 80)]
    assert not rig.servers.look()()


def test_a_module_that_is_loaded_anew_is_found_and_filled(served):
    served.kernel.servers.services.clear()
    served.kernel.family_id += 1
    assert not served.servers.look()()
    least = transaction(change(A, {WEB: VirtualConfig("lc")}))
    assert Unknown("the kernel's IPVS module was unloaded") == served.servers.apply(least)
    assert {} == served.servers.observe().strays(set())
    # What was refused then says nothing about its schedulers.
    outcome = served.servers.apply(least)
    assert isinstance(outcome, Applied)
    assert () == outcome.notes
    assert "lc" == served_like(served).scheduler


def test_a_module_that_is_gone_is_an_error(served):
    served.kernel.family_id = None
    assert not served.servers.look()()
    with pytest.raises(HostError, match="listing virtual servers: No such file"):
        served.servers.observe()


def test_reading_back_costs_one_dump_and_one_per_virtual_server_that_is_wanted(served):
    served.give(served.servers, API).forget_counts()
    served.servers.observe().strays({WEB, ONE, TWO})
    assert 2 == sum(served.kernel.dumps.values())


def test_a_kernel_that_cannot_be_read_is_an_error(served, monkeypatch):
    monkeypatch.setattr(served.kernel, "dump", broken)
    with pytest.raises(HostError, match="listing virtual servers: not permitted"):
        served.servers.observe()
    assert served.servers.look()()
    assert isinstance(write(served, drops=[ONE]), Unknown)


def broken(*_):
    raise PermissionError(errno.EPERM, "Operation not permitted")


# --- somebody interferes ---


@pytest.mark.parametrize(
    ("damage", "intact"),
    [
        pytest.param(lambda services: None, True, id="nothing"),
        pytest.param(lambda services: services.clear(), False, id="flushed"),
        pytest.param(
            lambda services: services.update(
                {ServiceId("TCP", "192.0.2.7", 80): next(iter(services.values()))}
            ),
            False,
            id="one more",
        ),
        pytest.param(
            lambda services: setattr(next(iter(services.values())), "scheduler", "wlc"),
            False,
            id="another scheduler",
        ),
    ],
)
def test_a_look_finds_what_others_did(served, damage, intact):
    damage(served.kernel.servers.services)
    assert intact is served.servers.look()()


def test_what_one_dump_passes_over_is_no_damage(served, monkeypatch):
    """As the kernel does where another virtual server is deleted between two parts of it."""
    whole, lossy = served.kernel.dump, [True]
    monkeypatch.setattr(
        served.kernel, "dump", lambda *request: [] if lossy and lossy.pop() else whole(*request)
    )
    assert served.servers.look()()
    assert [] == lossy


def test_what_is_written_during_a_look_does_not_count(served):
    intact = served.servers.look()
    write(served, [API], [WEB, ONE, TWO])
    assert intact()


# --- draining ---


@pytest.fixture
def draining(served):
    """Two connections go to ONE, which is no longer wanted."""
    served.connections = served.kernel.destination("TCP 10.96.0.1:80", NAMES[ONE])
    served.connections.active, served.connections.inactive = 1, 1
    assert isinstance(write(served, drops=[ONE]), Applied)
    return served.forget_counts()


def weights(rig):
    return rig.kernel.virtuals()["TCP 10.96.0.1:80"]


def tend(rig, seconds=0.0):
    rig.now += seconds
    return rig.servers.tend(rig.now, rig.suspect)


def test_a_real_server_with_connections_gets_no_more(draining):
    assert {NAMES[ONE]: 0, NAMES[TWO]: 1} == weights(draining)


@pytest.mark.parametrize("protocol", [Protocol.UDP, Protocol.SCTP])
def test_only_tcp_connections_are_waited_for(rig, protocol):
    virtual = Virtual(protocol, "10.96.0.10", 53)
    rig.give(rig.servers, virtual, real(virtual, 1))
    rig.kernel.destination(f"{protocol} 10.96.0.10:53", NAMES[ONE]).active = 5
    write(rig, drops=[real(virtual, 1)])
    assert {f"{protocol} 10.96.0.10:53": {}} == rig.kernel.virtuals()


def test_it_goes_when_its_connections_have_ended(draining):
    due = tend(draining)
    assert due == draining.now + 1
    tend(draining, 1)
    assert 0 == weights(draining)[NAMES[ONE]]
    draining.connections.active = draining.connections.inactive = 0
    tend(draining, 2)
    assert {NAMES[TWO]: 1} == weights(draining)
    assert 0 == len(draining.drain)


def test_it_goes_at_the_deadline(draining):
    moments = []
    for _ in range(200):
        due = tend(draining)
        if not len(draining.drain):
            break
        moments.append(draining.now)
        draining.now = max(due, draining.now)
    assert {NAMES[TWO]: 1} == weights(draining)
    assert 30 == draining.now - moments[0]


def test_it_is_neither_held_nor_a_stray(draining):
    found = draining.servers.observe()
    assert not found.holds(ONE, 1)
    assert {} == found.strays({WEB, TWO})


def test_it_is_no_surprise_to_those_who_look(draining):
    draining.servers.observe().strays({WEB, TWO})
    for _ in range(100):
        tend(draining, 0.25)
    assert 0 == draining.suspicions


def test_it_comes_back_with_one_message(draining):
    assert isinstance(write(draining, [ONE]), Applied)
    assert {NAMES[ONE]: 1, NAMES[TWO]: 1} == weights(draining)
    assert 1 == draining.sent()["servers"]
    tend(draining, 60)
    assert {NAMES[ONE]: 1, NAMES[TWO]: 1} == weights(draining)


def test_it_comes_back_although_somebody_removed_it(draining):
    served_like(draining).destinations.clear()
    write(draining, [ONE])
    assert {NAMES[ONE]: 1} == weights(draining)


def test_it_is_forgotten_when_somebody_removed_it(draining):
    served_like(draining).destinations.clear()
    tend(draining, 1)
    assert 0 == len(draining.drain)


def test_it_goes_with_its_virtual_server(draining):
    write(draining, drops=[WEB, TWO])
    assert {} == draining.kernel.virtuals()
    assert 0 == len(draining.drain)


def test_without_a_limit_it_stays_as_long_as_its_connections():
    rig = Parts(drain_seconds=0)
    rig.give(rig.servers, WEB, ONE)
    rig.kernel.destination("TCP 10.96.0.1:80", NAMES[ONE]).active = 1
    write(rig, drops=[ONE])
    for _ in range(20):
        tend(rig, 3600)
    assert {NAMES[ONE]: 0} == weights(rig)


def test_a_refused_deletion_is_tried_again(draining):
    draining.connections.active = draining.connections.inactive = 0
    draining.kernel.refuse(errno.ENOMEM)
    due = tend(draining, 1)
    assert NAMES[ONE] in weights(draining)
    tend(draining, due - draining.now)
    assert NAMES[ONE] not in weights(draining)


def test_a_kernel_that_cannot_be_read_is_left_alone_for_a_while(draining, monkeypatch):
    monkeypatch.setattr(draining.kernel, "dump", broken)
    assert draining.now + 1 + RETRY_SECONDS == tend(draining, 1)


@pytest.mark.parametrize("misfortune", ["refused", "socket"])
def test_one_that_did_not_begin_to_drain_is_not_deleted_when_it_is_wanted_again(served, misfortune):
    served.kernel.destination("TCP 10.96.0.1:80", NAMES[ONE]).active = 1
    if misfortune == "refused":
        served.kernel.refuse(errno.ENOMEM, when=command(SET_DEST))
    else:
        served.kernel.break_socket(errno.ECONNREFUSED, when=command(SET_DEST))
    write(served, drops=[ONE])
    found = served.servers.observe()
    assert {} == found.strays({WEB, ONE, TWO})
    assert found.holds(ONE, 1)
    for _ in range(100):
        tend(served, 1)
    assert {NAMES[ONE]: 1, NAMES[TWO]: 1} == weights(served)


def test_many_real_servers_of_one_virtual_server_are_counted_with_one_dump(served):
    write(served, drops=[ONE, TWO])
    assert 1 == sum(served.kernel.dumps.values())


# --- a restart ---


@pytest.mark.parametrize("weight", [0, 5])
def test_a_wanted_real_server_gets_weight_1_after_a_restart(served, weight):
    served.kernel.destination("TCP 10.96.0.1:80", NAMES[ONE]).weight = weight
    served.restart()
    found = served.servers.observe()
    assert {} == found.strays({WEB, ONE, TWO})
    assert not found.holds(ONE, 1)
    write(served, [ONE])
    assert {NAMES[ONE]: 1, NAMES[TWO]: 1} == weights(served)


@pytest.mark.parametrize(
    ("connections", "expected"),
    [
        pytest.param(0, {NAMES[TWO]: 1}, id="no connections: deleted"),
        pytest.param(3, {NAMES[ONE]: 0, NAMES[TWO]: 1}, id="connections: it goes on draining"),
    ],
)
def test_what_an_earlier_process_drained_is_a_stray(draining, connections, expected):
    draining.connections.active, draining.connections.inactive = connections, 0
    draining.restart()
    assert {ONE: 0} == draining.servers.observe().strays({WEB, TWO})
    draining.servers.apply(transaction(change(A, drops={ONE: 0})))
    assert expected == weights(draining)
    tend(draining, 31)
    assert {NAMES[TWO]: 1} == weights(draining)


# --- the audit ---


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda reals: reals.popitem(), id="removed"),
        pytest.param(lambda reals: setattr(reals["10.244.0.1", 8080], "weight", 3), id="weight"),
        pytest.param(lambda reals: setattr(reals["10.244.0.1", 8080], "weight", 0), id="weight 0"),
        pytest.param(lambda reals: setattr(reals["10.244.0.1", 8080], "method", 3), id="method"),
        pytest.param(
            lambda reals: reals.update({("10.9.9.9", 80): reals["10.244.0.1", 8080]}), id="added"
        ),
    ],
)
@pytest.mark.parametrize("restarted", [False, True], ids=["written", "found at a restart"])
def test_changed_real_servers_are_found_within_a_round(served, damage, restarted):
    others = [tcp(f"10.96.1.{n}") for n in range(100)]
    served.give(served.servers, *others, *(real(virtual, 9) for virtual in others))
    if restarted:
        served.restart()
        wanted = {WEB, ONE, TWO, *others, *(real(virtual, 9) for virtual in others)}
        served.servers.observe().strays(wanted)
    began = served.now
    for _ in range(70):
        tend(served, 1)
    assert 0 == served.suspicions
    damage(served_like(served).destinations)
    began = served.now
    while not served.suspicions and served.now < began + 120:
        due = tend(served)
        served.now = max(due or served.now + 1, served.now + 0.1)
    assert served.suspicions == 1
    assert served.now <= began + 61


def test_a_surprise_is_told_once_until_the_kernel_is_read_back(served):
    served_like(served).destinations.clear()
    for _ in range(100):
        tend(served, 1)
    assert 1 == served.suspicions


def test_our_own_changes_are_no_surprise(served):
    tend(served)
    for n in range(3, 40):
        write(served, [real(WEB, n)], [real(WEB, n - 1)] if n > 3 else [])
        tend(served, 1)
    write(served, [WEB], old=[WEB])
    write(served, [API, real(API, 1)])
    write(served, drops=[API, real(API, 1)])
    for _ in range(70):
        tend(served, 1)
    assert 0 == served.suspicions


@pytest.mark.parametrize(("count", "most"), [(1, 2), (60, 61), (600, 600), (5000, 16 * 61)])
def test_looks_are_bounded(rig, count, most):
    virtuals = [tcp(f"10.96.{n >> 8}.{n & 255}") for n in range(count)]
    rig.give(rig.servers, *virtuals).forget_counts()
    began = rig.now
    due = tend(rig)
    while due < began + 60:
        rig.now = due
        due = tend(rig)
    assert 0 < sum(rig.kernel.dumps.values()) <= most


def test_nothing_is_due_where_nothing_is_served(rig):
    assert tend(rig) is None


def test_the_owner_of_a_real_server_is_named_by_its_text():
    assert "10.244.0.1:8080 of tcp 10.96.0.1:80" == str(ONE)
    assert "[fd00:244::1]:8080 of tcp [fd00:96::1]:80" == str(Real(WEB6, "fd00:244::1", 8080))
