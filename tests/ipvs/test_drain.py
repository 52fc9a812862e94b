from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pykubeproxy.ipvs.drain import LONGEST_PAUSE_SECONDS, Drain, Verdict
from pykubeproxy.ipvs.objects import Real, Virtual
from pykubeproxy.model.kinds import Protocol

WEB = Virtual(Protocol.TCP, "10.96.0.1", 80)
API = Virtual(Protocol.TCP, "10.96.0.2", 443)
DNS = Virtual(Protocol.UDP, "10.96.0.10", 53)
PHONE = Virtual(Protocol.SCTP, "10.96.0.11", 5060)

A, B = Real(WEB, "10.1.0.5", 8080), Real(WEB, "10.1.0.6", 8080)
OTHER = Real(API, "10.1.0.5", 8443)


def looks(drain, real, until):
    """The times at which *real* is looked at while it has connections, from 0 on."""
    times = []
    while (now := drain.next_look()) is not None and now <= until:
        times.append(now)
        if drain.judge(real, 1, now) is Verdict.DELETE:
            drain.leave(real)
    return times


@pytest.mark.parametrize(
    ("virtual", "connections", "waits"),
    [
        pytest.param(WEB, 1, True, id="TCP with a connection"),
        pytest.param(WEB, 0, False, id="TCP without"),
        pytest.param(DNS, 5, False, id="UDP"),
        pytest.param(PHONE, 5, False, id="SCTP"),
    ],
)
def test_only_tcp_with_connections_waits(virtual, connections, waits):
    drain = Drain()
    real = Real(virtual, "10.1.0.5", 8080)
    assert waits is drain.enter(real, connections, now=0)
    assert waits is (real in drain)
    assert ([real] if waits else []) == list(drain)
    assert (1 if waits else None) == drain.next_look()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        pytest.param(30, [1, 3, 7, 15, 30], id="30 s"),
        pytest.param(0.5, [0.5], id="shorter than the first pause"),
        pytest.param(0, [1, 3, 7, 15, 30, 45, 60, 75, 90], id="as long as it takes"),
    ],
)
def test_when_connections_are_looked_at(limit, expected):
    drain = Drain(limit)
    drain.enter(A, 1, now=0)
    assert expected == looks(drain, A, until=90)


@pytest.mark.parametrize(
    ("connections", "now", "expected"),
    [
        pytest.param(3, 5, Verdict.KEEP, id="in use"),
        pytest.param(0, 5, Verdict.DELETE, id="done"),
        pytest.param(3, 29.9, Verdict.KEEP, id="just before the limit"),
        pytest.param(3, 30, Verdict.DELETE, id="at the limit"),
        pytest.param(0, 30, Verdict.DELETE, id="done at the limit"),
        pytest.param(None, 5, Verdict.GONE, id="deleted by somebody else"),
        pytest.param(None, 30, Verdict.GONE, id="deleted by somebody else, at the limit"),
    ],
)
def test_what_a_count_means(connections, now, expected):
    drain = Drain(30)
    drain.enter(A, 1, now=0)
    assert expected is drain.judge(A, connections, now)
    assert (expected is not Verdict.GONE) is (A in drain)


def test_a_deletion_that_fails_is_tried_again():
    drain = Drain(30)
    drain.enter(A, 1, now=0)
    assert Verdict.DELETE is drain.judge(A, 0, now=1)
    assert 2 == drain.next_look()
    assert Verdict.DELETE is drain.judge(A, 0, now=2)
    drain.leave(A)
    assert drain.next_look() is None


def test_dropping_one_that_waits_does_not_begin_again():
    drain = Drain(30)
    drain.enter(A, 1, now=0)
    assert drain.enter(A, 0, now=29)
    assert Verdict.DELETE is drain.judge(A, 1, now=30)


def test_one_that_returns_leaves_and_begins_anew_later():
    drain = Drain(30)
    drain.enter(A, 1, now=0)
    assert drain.leave(A)
    assert not drain.leave(A)
    drain.enter(A, 1, now=20)
    assert Verdict.KEEP is drain.judge(A, 1, now=30)


def test_a_virtual_server_takes_its_own_along():
    drain = Drain(30)
    for real in (A, B, OTHER):
        drain.enter(real, 1, now=0)
    assert (A, B) == drain.leave_all(WEB)
    assert [OTHER] == list(drain)
    assert () == drain.leave_all(WEB)


def test_the_same_address_under_two_virtual_servers_is_two():
    drain = Drain(30)
    same = Real(API, A.address, A.port)
    drain.enter(A, 1, now=0)
    assert same not in drain
    assert not drain.leave(same)


def test_those_due_come_by_virtual_server():
    drain = Drain(30)
    drain.enter(A, 1, now=0)
    drain.enter(OTHER, 1, now=0.5)
    drain.enter(B, 1, now=1)
    assert {} == drain.due(0.9)
    assert {WEB: (A,), API: (OTHER,)} == drain.due(1.5)
    assert {WEB: (A, B), API: (OTHER,)} == drain.due(2)
    assert 3 == len(drain)


def test_judging_one_that_does_not_wait_is_a_mistake():
    with pytest.raises(KeyError):
        Drain().judge(A, 1, now=0)


# --- any history -------------------------------------------------------------------------------

VIRTUALS = (WEB, API, DNS)
REALS = [Real(v, f"10.1.0.{n}", 80) for v in VIRTUALS for n in (1, 2)]
LIMIT = 30.0


class Histories(RuleBasedStateMachine):
    """A kernel and somebody who wants things of it, with a `Drain` in between.

    ``kernel`` maps a real server to its weight and connections.
    """

    def __init__(self):
        super().__init__()
        self.drain = Drain(LIMIT)
        self.now = 0.0
        self.wanted = set()
        self.kernel = {}
        self.dropped_at = {}

    @rule(real=st.sampled_from(REALS))
    def want(self, real):
        self.wanted.add(real)
        self.drain.leave(real)
        self.dropped_at.pop(real, None)
        self.kernel[real] = (1, self.kernel.get(real, (1, 0))[1])

    @rule(real=st.sampled_from(REALS))
    def drop(self, real):
        self.wanted.discard(real)
        if real not in self.kernel:
            self.drain.leave(real)
        elif self.drain.enter(real, self.kernel[real][1], self.now):
            self.kernel[real] = (0, self.kernel[real][1])
            self.dropped_at.setdefault(real, self.now)
        else:
            del self.kernel[real]

    @rule(virtual=st.sampled_from(VIRTUALS))
    def drop_virtual(self, virtual):
        for real in REALS:
            if real.virtual == virtual:
                self.wanted.discard(real)
                self.kernel.pop(real, None)
                self.dropped_at.pop(real, None)
        self.drain.leave_all(virtual)

    @rule(real=st.sampled_from(REALS), connections=st.integers(0, 3))
    def connect(self, real, connections):
        if real in self.kernel:
            self.kernel[real] = (self.kernel[real][0], connections)

    @precondition(lambda self: len(self.drain) > 0)
    @rule(data=st.data())
    def somebody_deletes(self, data):
        real = data.draw(st.sampled_from(list(self.drain)))
        self.kernel.pop(real, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 100.0]), fails=st.booleans())
    def wait(self, seconds, fails):
        """Time passes, and whoever is due is looked at on time; the first deletion may fail."""
        end = self.now + seconds
        while (look := self.drain.next_look()) is not None and look <= end:
            assert look > self.now or self.drain.due(self.now)
            self.now = max(self.now, look)
            due = self.drain.due(self.now)
            assert due
            for real in (real for reals in due.values() for real in reals):
                count = self.kernel[real][1] if real in self.kernel else None
                verdict = self.drain.judge(real, count, self.now)
                assert (verdict is Verdict.GONE) is (count is None)
                if verdict is Verdict.DELETE and not fails:
                    del self.kernel[real]
                    self.drain.leave(real)
                if verdict is not Verdict.KEEP:
                    self.dropped_at.pop(real, None)
                fails = fails and verdict is not Verdict.DELETE
        self.now = end

    @invariant()
    def nothing_is_lost(self):
        """What the kernel has is wanted or waits."""
        assert set(self.kernel) - self.wanted <= set(self.drain)

    @invariant()
    def nothing_wanted_waits(self):
        assert not self.wanted & set(self.drain)
        assert all(self.kernel[real][0] == 1 for real in self.wanted if real in self.kernel)

    @invariant()
    def only_tcp_waits(self):
        assert all(real.virtual.protocol is Protocol.TCP for real in self.drain)

    @invariant()
    def nobody_waits_past_the_limit_unless_deleting_failed(self):
        late = [r for r, since in self.dropped_at.items() if self.now - since > LIMIT]
        assert not late

    @invariant()
    def the_next_look_is_near(self):
        look = self.drain.next_look()
        assert (look is None) is (len(self.drain) == 0)
        assert look is None or look <= self.now + LONGEST_PAUSE_SECONDS


TestAnyHistory = Histories.TestCase
TestAnyHistory.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
