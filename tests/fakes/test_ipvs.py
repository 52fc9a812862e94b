"""The fake kernel of ipvs mode; e2e/kernel/ipvs holds it to a real one with the same tables."""

from __future__ import annotations

import errno

import pytest

from pykubeproxy.host.exec import Finished
from pykubeproxy.ipvs import messages as m
from pykubeproxy.ipvs.objects import PERSISTENT, Real, Virtual, VirtualConfig
from pykubeproxy.model.kinds import Family, Protocol
from tests.fakes.ipvs import GENERIC, NETFILTER, ROUTE, FakeKernel
from tests.fakes.ipvs_cases import CASES, RULE_CASES, RULE_SETS, Case, Channels, picture, run
from tests.fakes.xtables import Xtables
from tests.fakes.xtables_cases import BASE, spelled
from tests.fakes.xtables_cases import Case as RuleCase

VIRTUAL = Virtual(Protocol.TCP, "10.96.0.1", 80)
REALS = [Real(VIRTUAL, f"10.244.0.1{n}", 8080) for n in (1, 2)]


def channels(kernel: FakeKernel) -> Channels:
    generic = kernel.channel(GENERIC)
    return Channels(
        generic,
        kernel.channel(NETFILTER),
        kernel.channel(ROUTE),
        family_id=generic.family_id("IPVS"),
        index=2,
    )


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def served(kernel: FakeKernel) -> FakeKernel:
    at = channels(kernel)
    at.generic.refusals(
        [
            m.new_service(at.family_id, VIRTUAL, VirtualConfig("rr", PERSISTENT, 60)),
            *(m.new_dest(at.family_id, real, 1) for real in REALS),
        ]
    )
    at.netfilter.refusals(
        [
            m.create_set("PAIRS", "hash:ip,port", Family.IPV4),
            m.add_entries("PAIRS", ["10.96.0.1,tcp:80"]),
        ]
    )
    at.route.refusals([m.new_address(at.index, "10.96.0.1")])
    return kernel


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fake_accepts_and_refuses(kernel: FakeKernel, case: Case) -> None:
    assert [] == run(case, channels(kernel))
    assert picture(channels(kernel))


def test_it_can_be_looked_at(served: FakeKernel) -> None:
    assert {"TCP 10.96.0.1:80": {"10.244.0.11:8080": 1, "10.244.0.12:8080": 1}} == served.virtuals()
    assert {"PAIRS": ["10.96.0.1,tcp:80"]} == served.sets()
    assert ["10.96.0.1"] == served.bound()


def test_it_prints_what_ipvsadm_prints(served: FakeKernel) -> None:
    served.destination("TCP 10.96.0.1:80", "10.244.0.12:8080").active = 3
    expected = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn
TCP  10.96.0.1:80 rr persistent 60
  -> 10.244.0.11:8080             Masq    1      0          0
  -> 10.244.0.12:8080             Masq    1      3          0
"""
    assert expected == served.listing()


def test_work_is_counted(served: FakeKernel) -> None:
    at = channels(served)
    list(at.generic.dump(*m.get_services(at.family_id)))
    assert {GENERIC: 3, NETFILTER: 2, ROUTE: 1} == dict(served.written)
    assert {GENERIC: 1} == dict(served.dumps)


def test_a_planned_refusal_leaves_the_others_alone(kernel: FakeKernel) -> None:
    at = channels(kernel)
    kernel.refuse(errno.ENOMEM, protocol=GENERIC, nth=2)
    requests = [m.new_service(at.family_id, VIRTUAL, VirtualConfig("rr"))]
    requests += [m.new_dest(at.family_id, real, 1) for real in REALS]
    assert [0, errno.ENOMEM, 0] == kernel.channel(GENERIC).batch(requests)
    assert {"TCP 10.96.0.1:80": {"10.244.0.12:8080": 1}} == kernel.virtuals()


def test_lost_answers_leave_everything_done(kernel: FakeKernel) -> None:
    at = channels(kernel)
    kernel.break_socket(errno.ENOBUFS, protocol=ROUTE)
    with pytest.raises(OSError, match="No buffer space"):
        at.route.refusals([m.new_address(at.index, f"10.96.0.{n}") for n in (1, 2)])
    assert ["10.96.0.1", "10.96.0.2"] == kernel.bound()


def test_a_broken_socket_leaves_the_rest_undone(kernel: FakeKernel) -> None:
    at = channels(kernel)
    kernel.break_socket(errno.EPERM, protocol=ROUTE, nth=2)
    with pytest.raises(PermissionError):
        at.route.refusals([m.new_address(at.index, f"10.96.0.{n}") for n in (1, 2)])
    assert ["10.96.0.1"] == kernel.bound()


def test_without_ipvs_there_is_no_family() -> None:
    with pytest.raises(FileNotFoundError):
        FakeKernel(has_ipvs=False).channel(GENERIC).family_id("IPVS")


def test_an_absent_set_cannot_be_listed(kernel: FakeKernel) -> None:
    with pytest.raises(FileNotFoundError):
        list(kernel.channel(NETFILTER).dump(*m.list_set("NOPE")))


def test_a_dump_can_be_interrupted(served: FakeKernel) -> None:
    served.interrupted_dumps = 1
    seen = []
    for _ in range(2):
        dump = served.channel(NETFILTER).dump(*m.list_headers())
        assert len(list(dump)) == 1
        seen.append(dump.interrupted)
    assert [True, False] == seen


def test_a_dump_is_not_left_unread(served: FakeKernel) -> None:
    channel = served.channel(NETFILTER)
    for _ in channel.dump(*m.list_headers()):
        with pytest.raises(AssertionError, match="to its end"):
            channel.request(*m.get_protocol())


def test_a_broken_message_is_refused(kernel: FakeKernel) -> None:
    at = channels(kernel)
    kind, flags, body = m.new_service(at.family_id, VIRTUAL, VirtualConfig("rr"))
    assert [errno.EINVAL] == kernel.channel(GENERIC).batch([(kind, flags, body[:-2])])


# --- rules that match sets -------------------------------------------------------------------


def tools(version: int) -> Xtables:
    kernel = FakeKernel()
    requests = [
        m.create_set(name + suffix, kind, family)
        for suffix, family in (("", Family.IPV4), ("6", Family.IPV6))
        for name, kind in RULE_SETS.items()
    ]
    assert not kernel.channel(NETFILTER).refusals(requests)
    return kernel.xtables(version)


def step(fake: Xtables, one: str | tuple[str, ...]) -> Finished:
    stem = "iptables" if fake.version == 4 else "ip6tables"
    if isinstance(one, str):
        done = fake.run([f"{stem}-restore", "--noflush"], spelled(one, fake.version).encode())
    else:
        done = fake.run([stem, *(spelled(word, fake.version) for word in one)])
    assert isinstance(done, Finished)
    return done


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("case", RULE_CASES, ids=lambda case: case.name)
def test_rules_are_accepted_and_refused(case: RuleCase, version: int) -> None:
    fake = tools(version)
    for one in (BASE, *case.steps[:-1]):
        assert step(fake, one).exit_status == 0
    done = step(fake, case.steps[-1])
    assert case.refused == (done.exit_status != 0), done.complaint


def test_a_set_in_use_cannot_be_destroyed(served: FakeKernel) -> None:
    fake = served.xtables(4)
    step(fake, "*nat\n-A OUTPUT -m set --match-set PAIRS dst,dst -j ACCEPT\nCOMMIT\n")
    channel = served.channel(NETFILTER)
    busy = 4100
    assert [busy] == channel.batch([m.destroy_set("PAIRS")])
    fake.flush()
    assert [0] == channel.batch([m.destroy_set("PAIRS")])
