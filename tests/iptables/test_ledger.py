"""What is known of the chains: by what it is believed, and what is kept of it."""

from __future__ import annotations

from array import array

import pytest

from pykubeproxy.iptables.custody import Custody
from pykubeproxy.iptables.fingerprints import chain_mark, mark, rules_mark
from pykubeproxy.iptables.ledger import Ledger
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.observation import (
    Verdict,
    fingerprints,
    kernel_objects,
)
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Change, Rejected, Transaction, Unknown

A, B = Chain("nat", "KUBE-SVC-A"), Chain("nat", "KUBE-SVC-B")
SERVICES = SharedChain("nat", "KUBE-SERVICES")
TO_A = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
TO_B = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.2 80")
TAIL = TailRule("nat", "KUBE-SERVICES", "-j KUBE-NODEPORTS")
JUMP = Jump("nat", "OUTPUT", "KUBE-SERVICES")
PRESENT = Presence("filter", "KUBE-FIREWALL")
FIRST = {
    A: ("-j ACCEPT",),
    SERVICES: (),
    TO_A: ("-j KUBE-SVC-A",),
    TAIL: ("-j KUBE-NODEPORTS",),
    JUMP: ("-j KUBE-SERVICES",),
    PRESENT: (),
}
OWNER = ServiceKey("ns", "a")
DONE = Applied()


def no_trees(_shared, _members):
    return None


class Place:
    """A file in memory."""

    def __init__(self):
        self.content = None
        self.written = 0

    def read(self):
        return self.content

    def write(self, content):
        self.content = content
        self.written += 1
        return True


class Kernel:
    """A count of commits, and the objects that were applied by us."""

    def __init__(self, place, identity=b"here"):
        self.generation = 7
        self.place = place
        self.objects = {}
        self.start(identity)

    def start(self, identity=b"here"):
        self.ledger = Ledger(Custody(lambda: self.generation), self.place, identity)
        return self.ledger

    def read_back(self):
        self.ledger.observed(self.ledger.custody.epoch())

    def write(self, put=None, drop=(), outcome=DONE, commits=1):
        gone = {key: self.objects.get(key, ()) for key in drop}
        transaction = Transaction("nat", (Change(OWNER, put or {}, gone, {}),))
        with self.ledger.writing(transaction) as outcomes:
            with self.ledger.custody.committing() as commit:
                self.generation += commits
                commit.counts = isinstance(outcome, Applied)
            outcomes.append(outcome)
        if isinstance(outcome, Applied):
            self.objects.update(put or {})
            for key in drop:
                self.objects.pop(key, None)

    def fold(self):
        return self.ledger.fold(self.ledger.writes, [self.objects], no_trees)

    def learn(self, **more):
        """As if each chain printed as its number."""
        expected = kernel_objects([self.objects], no_trees)
        rows = [(of, content, printed or of) for of, content, printed in self.rows(expected)]
        numbers = array("Q", [number for row in rows for number in row])
        shared = {chain_mark(*name) for name, c in expected.chains.items() if c.is_shared}
        verdict = Verdict(numbers, frozenset(), more.pop("wrong", []), frozenset(shared), {})
        return self.ledger.learnt(
            more.pop("writes", self.ledger.writes), verdict, self.ledger.custody.epoch()
        )

    def rows(self, expected=None):
        return fingerprints(expected or kernel_objects([self.objects], no_trees), self.ledger.table)

    def store(self):
        self.ledger.store(self.ledger.writes)


@pytest.fixture
def kernel():
    """The first objects are written and known."""
    kernel = Kernel(Place())
    kernel.read_back()
    kernel.write(FIRST)
    assert kernel.learn()
    return kernel


def contents(ledger):
    return {of: content for of, content, _ in ledger.table}


def wanted(kernel):
    return {of: content for of, content, _ in kernel.rows()}


# --- the whole ---


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        pytest.param({}, True, id="ours"),
        pytest.param({"outcome": Rejected("no"), "commits": 0}, True, id="refused"),
        pytest.param({"outcome": Unknown("killed"), "commits": 0}, False, id="killed before"),
        pytest.param({"outcome": Unknown("killed"), "commits": 1}, False, id="killed after"),
        pytest.param({"commits": 2}, False, id="somebody else's besides"),
    ],
)
def test_the_whole_is_known_as_long_as_every_commit_was_ours(kernel, happens, expected):
    kernel.write({B: ("-j DROP",)}, **happens)
    assert expected is kernel.ledger.is_whole()


def test_a_commit_of_somebody_else_is_noticed(kernel):
    assert kernel.ledger.is_whole()
    kernel.generation += 1
    assert not kernel.ledger.is_whole()
    kernel.read_back()
    assert kernel.ledger.is_whole()


def test_what_is_not_as_written_is_no_whole(kernel):
    kernel.learn(wrong=["nat KUBE-SVC-A"])
    assert not kernel.ledger.is_whole()


# --- following changes ---


@pytest.mark.parametrize(
    ("put", "drop"),
    [
        pytest.param({A: ("-j DROP",)}, (), id="chain changed"),
        pytest.param({B: ("-j DROP",)}, (), id="chain added"),
        pytest.param({}, (A,), id="chain removed"),
        pytest.param({TO_B: ("-j KUBE-SVC-B",)}, (), id="member added"),
        pytest.param({}, (TO_A,), id="member removed"),
        pytest.param({}, (SERVICES, TO_A, TAIL), id="shared chain removed"),
        pytest.param({JUMP: ("-m comment -j KUBE-SERVICES",)}, (), id="jump changed"),
        pytest.param({}, (JUMP, PRESENT), id="jump and presence removed"),
        pytest.param({}, (), id="nothing"),
    ],
)
@pytest.mark.parametrize("known", [True, False], ids=["step by step", "all anew"])
def test_the_table_follows_what_was_applied(kernel, put, drop, known):
    if not known:
        kernel.read_back()
    kernel.write(put, drop)
    assert kernel.fold()
    assert wanted(kernel) == contents(kernel.ledger)


def test_a_shared_chain_that_was_begun_by_an_earlier_run_is_followed(kernel):
    kernel.store()
    assert kernel.start().presume()
    kernel.write({}, (SERVICES, TO_A, TAIL))
    assert kernel.fold()
    assert wanted(kernel) == contents(kernel.ledger)


def test_prints_stay_known_of_what_is_as_it_was(kernel):
    kernel.write({B: ("-j DROP",)})
    kernel.read_back()
    kernel.fold()
    a, b = (chain_mark(chain.table, chain.name) for chain in (A, B))
    assert (a, 0) == (kernel.ledger.table.printed(a), kernel.ledger.table.printed(b))


def test_a_read_back_pays_once_many_prints_are_missing(kernel):
    assert not kernel.ledger.lacks_prints
    kernel.write({Chain("nat", f"KUBE-SVC-{n}"): () for n in range(9)})
    kernel.fold()
    assert kernel.ledger.lacks_prints
    assert Ledger().lacks_prints


@pytest.mark.parametrize("what", ["fold", "learn", "store"])
def test_what_was_found_while_something_was_written_does_not_count(kernel, what):
    before = kernel.ledger.writes
    kernel.write({B: ("-j DROP",)})
    table = kernel.ledger.table
    match what:
        case "fold":
            assert not kernel.ledger.fold(before, [kernel.objects], no_trees)
        case "learn":
            assert not kernel.learn(writes=before)
        case "store":
            kernel.ledger.store(before)
            assert 0 == kernel.place.written
    assert table is kernel.ledger.table


# --- over a restart ---


def test_a_restart_presumes_the_whole_if_nobody_changed_anything(kernel):
    kernel.store()
    before = list(kernel.ledger.table)
    ledger = kernel.start()
    assert ledger.presume()
    assert (True, before) == (ledger.is_whole(), list(ledger.table))


def test_it_is_stored_once(kernel):
    for _ in range(3):
        kernel.store()
    assert 1 == kernel.place.written
    kernel.start().presume()
    kernel.fold()
    kernel.store()
    assert 1 == kernel.place.written
    kernel.write({B: ("-j DROP",)})
    kernel.fold()
    kernel.store()
    assert 2 == kernel.place.written


def test_changes_of_the_other_family_are_stored_as_well(kernel):
    kernel.store()
    with kernel.ledger.custody.committing() as commit:
        kernel.generation += 1
        commit.counts = True
    kernel.store()
    assert kernel.start().presume()


@pytest.mark.parametrize(
    "happens",
    [
        pytest.param(lambda k: k.write({B: ("-j DROP",)}), id="we wrote and were killed"),
        pytest.param(lambda k: setattr(k, "generation", k.generation + 1), id="somebody wrote"),
        pytest.param(lambda k: setattr(k, "generation", 1), id="nf_tables was loaded anew"),
        pytest.param(lambda k: setattr(k, "generation", None), id="the kernel does not tell"),
    ],
)
def test_a_restart_presumes_nothing_after_changes_and_keeps_the_facts(kernel, happens):
    kernel.store()
    happens(kernel)
    ledger = kernel.start()
    assert not ledger.presume()
    assert not ledger.is_whole()
    assert chain_mark(A.table, A.name) == ledger.table.printed(chain_mark(A.table, A.name))


def test_after_a_change_of_somebody_else_no_whole_is_stored(kernel):
    kernel.generation += 1
    kernel.store()
    assert not kernel.start().presume()
    assert len(kernel.ledger.table)


def test_without_a_count_of_changes_facts_are_stored(kernel):
    place = Place()
    ledger = Ledger(Custody(), place, b"here")
    verdict = Verdict(array("Q", [1, 2, 3]), frozenset(), [], frozenset(), {})
    ledger.learnt(0, verdict, None)
    ledger.store(0)
    again = Ledger(Custody(), place, b"here")
    assert not again.presume()
    assert [(1, 2, 3)] == list(again.table)


@pytest.mark.parametrize(
    ("spoil", "identity"),
    [
        pytest.param(lambda content: content, b"elsewhere", id="another place"),
        pytest.param(lambda content: content[:-1], b"here", id="truncated"),
        pytest.param(lambda content: b"", b"here", id="empty"),
        pytest.param(lambda content: None, b"here", id="lost"),
    ],
)
def test_a_file_that_is_not_as_we_wrote_it_tells_nothing(kernel, spoil, identity):
    kernel.store()
    kernel.place.content = spoil(kernel.place.content)
    ledger = kernel.start(identity)
    assert not ledger.presume()
    assert [] == list(ledger.table)


def test_a_file_that_cannot_be_written_is_tried_again(kernel):
    write, kernel.place.write = kernel.place.write, lambda content: False
    kernel.store()
    kernel.place.write = write
    kernel.store()
    assert 1 == kernel.place.written


def test_marks_are_those_of_the_text():
    assert rules_mark(("-j A", "-j B")) == mark(b"-j A\n-j B")
