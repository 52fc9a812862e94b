"""The effects, with scripted tools: no program is started and nothing is waited for."""

from __future__ import annotations

import re
from threading import Event

import pytest

from pykubeproxy.errors import HostError
from pykubeproxy.host.exec import Finished, Killed, NotStarted, TimedOut
from pykubeproxy.iptables.custody import Custody
from pykubeproxy.iptables.index import Sizes
from pykubeproxy.iptables.kernel import XtablesDataplane, split_rule
from pykubeproxy.iptables.ledger import Ledger
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Change, Rejected, Transaction, Unknown
from tests.fakes.xtables import Xtables

A, B = ServiceKey("ns", "a"), ServiceKey("ns", "b")
DONE = Finished(0, b"", b"")
LOCKED = Finished(
    4,
    b"",
    b"Another app is currently holding the xtables lock. Perhaps you want to use the -w option?",
)
BUSY = Finished(4, b"", b"Could not fetch rule set generation id: Resource temporarily unavailable")
NO_CHAIN = Finished(1, b"", b"iptables: No chain/target/match by that name.")


class Script:
    """A runner that gives the next of *results*, the last one for ever, and notes the calls."""

    def __init__(self, *results):
        self.results = list(results)
        self.calls = []

    def __call__(self, argv, input=None, timeout_seconds=0.0):
        self.calls.append((list(argv), input and bytes(input), timeout_seconds))
        return self.results.pop(0) if len(self.results) > 1 else self.results[0]


class By:
    """A runner that answers by a word in the command line."""

    def __init__(self, default=DONE, **answers):
        self.default = default
        self.answers = answers
        self.asked = []

    def __call__(self, argv, input=None, timeout_seconds=0.0):
        self.asked.append(" ".join(argv))
        for word, answer in self.answers.items():
            if word in argv:
                return answer
        return self.default


class Clockless(Event):
    """A stop event whose waits are over at once; *stops_after* of them it is set."""

    def __init__(self, stops_after=None):
        super().__init__()
        self.waits = 0
        self.stops_after = stops_after

    def wait(self, timeout=None):
        self.waits += 1
        return self.stops_after is not None and self.waits >= self.stops_after


def dataplane(runner, stop=None, on_wait=None, variant=Variant.NFT):
    return XtablesDataplane(
        Tools(Family.IPV4, variant), on_wait or (lambda _: None), stop or Clockless(), runner
    )


SVC_A, SVC_B = Chain("nat", "KUBE-SVC-A"), Chain("nat", "KUBE-SVC-B")
TWO = Transaction(
    "nat",
    (Change(A, {SVC_A: ("-j ACCEPT",)}, {}, {}), Change(B, {SVC_B: ("-j ACCEPT",)}, {}, {})),
)
INPUT = b"""*nat
:KUBE-SVC-B - [0:0]
:KUBE-SVC-A - [0:0]
-A KUBE-SVC-B -j ACCEPT
-A KUBE-SVC-A -j ACCEPT
COMMIT
"""

NOTHING = b"""*filter
:KUBE-PROXY-PROBE - [0:0]
-X KUBE-PROXY-PROBE
COMMIT
"""

# --- apply ---


def test_a_transaction_is_one_run_of_restore():
    script = Script(DONE)
    dataplane(script).apply(TWO)
    assert [(argv, data) for argv, data, _ in script.calls] == [
        (["iptables-nft-restore", "--noflush", "-w", "5"], INPUT)
    ]


def test_what_was_sent_is_told():
    assert dataplane(Script(DONE)).apply(TWO) == Applied(6, len(INPUT), 2, chains=2)


def test_a_leftover_of_a_tree_that_is_in_use_again_stays():
    script = Script(DONE)
    plane = XtablesDataplane(
        Tools(Family.IPV4, Variant.NFT),
        lambda _: None,
        Clockless(),
        script,
        sizes=Sizes(above=0, leaf_rules=1),
    )
    rules = {
        DispatchRule("nat", "KUBE-SERVICES", f"tcp 10.96.0.{n} 80"): (f"-d 10.96.0.{n} -j X",)
        for n in (1, 2)
    }
    plane.apply(Transaction("nat", (Change(A, rules, {}, {}),)))
    names = re.findall(r":(KUBE-SVC-IDX\S+)", script.calls[0][1].decode())
    assert 2 == len(names)
    drops = {Chain("nat", name): () for name in (names[0], "KUBE-SVC-OLD")}
    plane.apply(Transaction("nat", (Change(A, {}, drops, {}),)))
    text = script.calls[1][1].decode()
    assert "-X KUBE-SVC-OLD" in text
    assert names[0] not in text


def test_a_large_transaction_gets_more_time():
    def limit(rules):
        script = Script(DONE)
        change = Change(A, {SVC_A: ("-j ACCEPT",) * rules}, {}, {})
        dataplane(script).apply(Transaction("nat", (change,)))
        return script.calls[0][2]

    assert limit(100_000) > 4 * limit(1)


@pytest.mark.parametrize(
    ("result", "word"),
    [
        pytest.param(TimedOut(60.0, b""), "killed after 60 s", id="timeout"),
        pytest.param(Killed(9, b""), "signal 9", id="killed"),
        pytest.param(NotStarted("no such file"), "no such file", id="not started"),
    ],
)
def test_a_run_without_an_end_is_unknown(result, word):
    outcome = dataplane(Script(result)).apply(TWO)
    assert isinstance(outcome, Unknown)
    assert word in outcome.detail


@pytest.mark.parametrize(
    ("result", "suspects"),
    [
        pytest.param(
            Finished(2, b"", b"bad rule\nError occurred at line: 4"), {B}, id="parser's line"
        ),
        pytest.param(Finished(1, b"", b"iptables-restore: line 3 failed"), {A}, id="kernel's line"),
        pytest.param(
            Finished(4, b"", b"x: \nline 4: RULE_APPEND failed (Invalid argument): rule in chain"),
            {B},
            id="nft says resource problem of a refused line",
        ),
        pytest.param(Finished(1, b"", b"iptables-restore: line 6 failed"), set(), id="COMMIT"),
        pytest.param(Finished(1, b"", b"something"), set(), id="no line named"),
    ],
)
def test_a_refusal_names_the_owner_of_the_line(result, suspects):
    outcome = dataplane(Script(result)).apply(TWO)
    assert isinstance(outcome, Rejected)
    assert suspects == outcome.suspects


def test_a_refusal_shows_the_line():
    result = Finished(2, b"", b"bad rule\nError occurred at line: 4")
    assert dataplane(Script(result)).apply(TWO).detail == (
        "bad rule Error occurred at line: 4 — refused: -A KUBE-SVC-B -j ACCEPT"
    )


def test_a_refusal_without_a_word_tells_the_status():
    assert dataplane(Script(Finished(1, b"", b""))).apply(TWO).detail == "exit status 1"


def test_a_taken_lock_is_waited_for_and_shown():
    waits = []
    outcome = dataplane(Script(*[LOCKED] * 20, DONE), on_wait=waits.append).apply(TWO)
    assert isinstance(outcome, Applied)
    assert waits == [5.0 * n for n in range(1, 21)]


def test_waiting_for_the_lock_ends_when_the_program_stops():
    stop = Event()
    outcome = dataplane(Script(LOCKED), stop=stop, on_wait=lambda _: stop.set()).apply(TWO)
    assert outcome == Unknown("stopped while waiting for the xtables lock")


def test_a_kernel_that_asks_to_try_again_is_asked_again():
    assert isinstance(dataplane(Script(BUSY, BUSY, DONE)).apply(TWO), Applied)


def test_a_kernel_that_stays_busy_leaves_the_outcome_unknown():
    outcome = dataplane(Script(BUSY)).apply(TWO)
    assert isinstance(outcome, Unknown)
    assert "Resource temporarily unavailable" in outcome.detail


def test_whether_anything_is_accepted_is_asked_with_what_changes_nothing():
    script = Script(DONE)
    assert dataplane(script).accepts({"nat", "filter"}) is None
    argv = ["iptables-nft-restore", "--noflush", "-w", "5"]
    nothing = [NOTHING.replace(b"filter", table) for table in (b"filter", b"nat")]
    assert [(argv, text) for text in nothing] == [call[:2] for call in script.calls]


def test_that_question_leaves_the_tables_as_they_are():
    tables = Xtables(4)
    plane = dataplane(tables.run)
    plane.apply(TWO)
    plane.apply(Transaction("filter", (Change(A, {Chain("filter", "X"): ()}, {}, {}),)))
    before = tables.state()
    assert plane.accepts({"nat", "filter"}) is None
    assert before == tables.state()


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param(
            [Finished(1, b"", b"Permission denied")],
            "iptables-nft-restore, table nat: Permission denied",
            id="refused",
        ),
        pytest.param(
            [NotStarted("no such file")],
            "iptables-nft-restore: could not be started: no such file",
            id="no tool",
        ),
        pytest.param([LOCKED, LOCKED, DONE], None, id="a taken lock is waited for"),
    ],
)
def test_a_tool_that_accepts_nothing_tells_why(results, expected):
    assert expected == dataplane(Script(*results)).accepts({"nat"})


def test_a_program_that_stops_blames_no_tool():
    stop = Event()
    plane = dataplane(Script(LOCKED), stop=stop, on_wait=lambda _: stop.set())
    assert plane.accepts({"nat"}) is None


def test_that_question_is_a_commit_of_our_own():
    generations = iter([7, 8])
    custody = Custody(lambda: next(generations))
    plane = XtablesDataplane(
        *(Tools(Family.IPV4, Variant.NFT), lambda _: None, Clockless(), Script(DONE)),
        ledger=Ledger(custody),
    )
    plane.accepts({"nat"})
    assert 1 == custody.commits


@pytest.mark.parametrize(
    ("variant", "batched"), [(Variant.NFT, True), (Variant.LEGACY, False)], ids=["nft", "legacy"]
)
def test_only_nft_needs_batches(variant, batched):
    changes = [
        Change(ServiceKey("ns", str(n)), {Chain("nat", f"KUBE-SVC-{n}"): ()}, {}, {})
        for n in range(2000)
    ]
    assert batched is (len(dataplane(Script(DONE), variant=variant).plan(changes)) > 1)


# --- observe and learn ---

SERVICES = SharedChain("nat", "KUBE-SERVICES")
RULE = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
TAIL = TailRule("nat", "KUBE-SERVICES", "-j KUBE-NODEPORTS")
OTHER_TAIL = TailRule("nat", "KUBE-SERVICES", "-j Y")
JUMP = Jump("nat", "OUTPUT", "KUBE-SERVICES")
JUMP_RULE = '-m comment --comment "kubernetes service portals" -j KUBE-SERVICES'


BOTH = "-A KUBE-SERVICES -j KUBE-SVC-A\n-A KUBE-SERVICES -j X"


def listing(svc="-A KUBE-SVC-A -j ACCEPT", services=BOTH, output=""):
    lines = ["*nat", ":OUTPUT ACCEPT [0:0]", ":KUBE-SERVICES - [0:0]", ":KUBE-SVC-A - [0:0]"]
    lines += [line for line in (output, services, svc) if line]
    return Finished(0, "\n".join([*lines, "COMMIT", ""]).encode(), b"")


WANTED = {SVC_A: ("-j ACCEPT",), SERVICES: (), RULE: ("-j KUBE-SVC-A",), TAIL: ("-j X",)}


def learned(later, wanted=WANTED):
    """An observation of *later* by a dataplane that learned the usual listing."""
    plane = dataplane(Script(listing(), later))
    plane.learn([wanted])()
    return plane.observe()


@pytest.mark.parametrize("key", WANTED, ids=lambda key: type(key).__name__)
def test_what_reads_as_learned_is_held(key):
    assert learned(listing()).holds(key, WANTED[key])


@pytest.mark.parametrize(
    ("later", "key"),
    [
        pytest.param(listing(svc=""), SVC_A, id="emptied chain"),
        pytest.param(listing(svc="-A KUBE-SVC-A -j DROP"), SVC_A, id="edited chain"),
        pytest.param(listing(services=""), SERVICES, id="emptied shared chain"),
        pytest.param(listing(services=""), RULE, id="rule of a shared chain that was edited"),
        pytest.param(listing(services=""), TAIL, id="tail of a shared chain that was edited"),
        pytest.param(Finished(0, b"", b""), SVC_A, id="no tables at all"),
    ],
)
def test_what_reads_otherwise_is_not_held(later, key):
    assert not learned(later).holds(key, WANTED[key])


def test_a_rule_that_was_not_there_when_the_chain_was_learned_is_not_held():
    """The print of a shared chain vouches for its members of then, not for wishes of now."""
    other = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.2 80")
    assert not learned(listing()).holds(other, ("-j KUBE-SVC-B",))
    assert not learned(listing()).holds(RULE, ("-j KUBE-SVC-B",))


@pytest.mark.parametrize(
    ("printed", "key"),
    [
        pytest.param(listing(services="-A KUBE-SERVICES -j X"), SERVICES, id="a rule is missing"),
        pytest.param(listing(svc="-A KUBE-SVC-A -j DROP"), SVC_A, id="another target"),
    ],
)
def test_a_print_that_is_not_as_written_is_not_believed(printed, key):
    plane = dataplane(Script(printed, printed))
    assert not plane.learn([WANTED])()
    assert not plane.observe().holds(key, WANTED[key])


def test_nothing_is_sent_once_the_program_is_to_stop():
    stop = Event()
    stop.set()
    script = Script()
    plane = XtablesDataplane(Tools(Family.IPV4, Variant.NFT), lambda _: None, stop, script)
    change = Change(A, {SVC_A: ("-j ACCEPT",)}, {}, {})
    assert isinstance(plane.apply(Transaction("nat", (change,))), Unknown)
    assert script.calls == []


def test_another_value_than_the_learned_one_is_not_held():
    assert not learned(listing()).holds(SVC_A, ("-j DROP",))


def test_what_was_read_while_something_was_written_is_not_learned():
    """Two threads: a listing shows the new rule, and what is to be learned is from before it."""
    change = Change(A, {DispatchRule("nat", "KUBE-SERVICES", "new"): ("-j KUBE-SVC-A",)}, {}, {})

    unusual = listing(svc="-A KUBE-SVC-A -m all -j ACCEPT")
    writing = False

    def run(argv, input=None, timeout_seconds=0.0):
        if "save" in argv[0] and writing:
            plane.apply(Transaction("nat", (change,)))
        return unusual if "save" in argv[0] else DONE

    plane = dataplane(run)
    plane.observe()
    learn = plane.learn([WANTED])
    writing = True
    assert learn() is None
    writing = False
    assert not plane.observe().holds(SVC_A, WANTED[SVC_A])


def test_a_print_that_stays_as_it_is_after_a_repair_is_believed():
    """This tool prints in a way that we do not know; the same edit twice is not likely."""
    plane = dataplane(Script(listing(svc="-A KUBE-SVC-A -m all -j ACCEPT")))
    for expected in (False, True):
        assert expected is plane.learn([WANTED])()
        assert expected is plane.observe().holds(SVC_A, WANTED[SVC_A])


def test_a_tool_that_prints_most_chains_in_its_own_way_is_believed_at_once():
    chains = {Chain("nat", f"KUBE-SVC-{n}"): ("-j ACCEPT",) for n in "ABC"}
    lines = [f":{chain.name} - [0:0]" for chain in chains]
    lines += [f"-A {chain.name} -m all -j ACCEPT" for chain in chains]
    printed = Finished(0, "\n".join(["*nat", *lines, "COMMIT", ""]).encode(), b"")
    assert dataplane(Script(printed)).learn([chains])()


@pytest.mark.parametrize(
    ("put", "key"),
    [
        pytest.param({SVC_A: ("-j DROP",)}, SVC_A, id="chain"),
        pytest.param({RULE: ("-j KUBE-SVC-B",)}, SERVICES, id="shared chain of a rule"),
        pytest.param({OTHER_TAIL: ("-j Y",)}, SERVICES, id="shared chain of a tail"),
    ],
)
def test_a_print_vouches_for_what_it_was_learned_with_and_not_for_what_came_since(put, key):
    plane = dataplane(Script(listing(), DONE, listing()))
    plane.learn([WANTED])()
    plane.apply(Transaction("nat", (Change(A, put, {}, {}),)))
    observation = plane.observe()
    assert observation.holds(key, WANTED[key])
    assert [] == [k for k, rules in put.items() if observation.holds(k, rules)]


@pytest.mark.parametrize(
    ("output", "checked", "expected"),
    [
        pytest.param(f"-A OUTPUT {JUMP_RULE}", NO_CHAIN, True, id="printed as written"),
        pytest.param("-A OUTPUT -m comment -j KUBE-SERVICES", DONE, True, id="printed otherwise"),
        pytest.param("-A OUTPUT -j KUBE-SERVICES", NO_CHAIN, False, id="another rule"),
        pytest.param("", DONE, False, id="nothing leads there"),
    ],
)
def test_a_jump_is_held_if_it_is_there_in_any_spelling(output, checked, expected):
    runner = By(listing(output=output), **{"-C": checked})
    assert expected is dataplane(runner).observe().holds(JUMP, (JUMP_RULE,))


def test_a_jump_to_a_chain_that_is_gone_is_not_held():
    jump = Jump("nat", "OUTPUT", "KUBE-GONE")
    runner = By(listing(output="-A OUTPUT -j KUBE-GONE"))
    assert not dataplane(runner).observe().holds(jump, ("-j KUBE-GONE",))


@pytest.mark.parametrize(
    ("table", "name", "expected"),
    [("nat", "KUBE-SERVICES", True), ("nat", "X", False), ("filter", "KUBE-SERVICES", False)],
)
def test_a_presence_needs_no_learning(table, name, expected):
    observation = dataplane(Script(listing())).observe()
    assert expected is observation.holds(Presence(table, name), ())


# --- what reads as iptables-save would print it needs no learning ---

MASQ = Chain("nat", "KUBE-SVC-A")
MASQ_RULES = ("-j MARK --or-mark 0x00004000", "-m comment --comment web -s 10.0.0.1 -j RETURN")
MASQ_PRINTED = (
    "-A KUBE-SVC-A -j MARK --set-xmark 0x4000/0x4000\n"
    "-A KUBE-SVC-A -s 10.0.0.1/32 -m comment --comment web -j RETURN"
)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        pytest.param(MASQ_PRINTED, True, id="as printed"),
        pytest.param("\n".join(MASQ_PRINTED.split("\n")[::-1]), False, id="another order"),
        pytest.param(f"{MASQ_PRINTED}\n-A KUBE-SVC-A -j DROP", False, id="a rule too many"),
        pytest.param(MASQ_PRINTED.split("\n")[0], False, id="a rule too few"),
        pytest.param(MASQ_PRINTED.replace("web", "wEb"), False, id="another rule"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_chain_is_held_if_its_text_is_what_is_wanted(printed, expected):
    observation = dataplane(Script(listing(svc=printed))).observe()
    assert expected is observation.holds(MASQ, MASQ_RULES)


def test_a_rule_in_words_that_we_never_write_is_not_held():
    observation = dataplane(Script(listing(svc="-A KUBE-SVC-A -m other -j DROP"))).observe()
    assert not observation.holds(SVC_A, ("--unheard-of -j DROP",))


OTHER = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.2 80")
COUNTED = DispatchRule("nat", "KUBE-SERVICES", "tcp node port 30080")


def services(*rules):
    return listing(services="\n".join(f"-A KUBE-SERVICES {rule}" for rule in rules))


ALL = {
    SERVICES: (),
    RULE: ("-j KUBE-SVC-A",),
    OTHER: ("-d 10.96.0.2 -j KUBE-SVC-A",),
    COUNTED: ("-p tcp -j A", "-p udp -j B"),
    TAIL: ("-j X",),
}


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        pytest.param(
            ["-j KUBE-SVC-A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p tcp -j A", "-p udp -j B",
             "-j X"], True, id="as wanted"),
        pytest.param(
            ["-p tcp -j A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p udp -j B", "-j KUBE-SVC-A",
             "-j X"], True, id="owners in another order"),
        pytest.param(
            ["-j KUBE-SVC-A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p udp -j B", "-p tcp -j A",
             "-j X"], False, id="one owner's rules in another order"),
        pytest.param(
            ["-j X", "-j KUBE-SVC-A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p tcp -j A",
             "-p udp -j B"], False, id="the tail is not last"),
        pytest.param(
            ["-j KUBE-SVC-A", "-j KUBE-SVC-A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p tcp -j A",
             "-p udp -j B", "-j X"], False, id="a rule twice"),
        pytest.param(
            ["-j KUBE-SVC-A", "-j KUBE-SVC-A", "-p tcp -j A", "-p udp -j B", "-j X"], False,
            id="a rule twice instead of another"),
        pytest.param(
            ["-j KUBE-SVC-A", "-d 10.96.0.2/32 -j KUBE-SVC-A", "-p tcp -j A", "-p udp -j B",
             "-j Y", "-j X"], False, id="a rule of somebody else's"),
        pytest.param(
            ["-j KUBE-SVC-A", "-p tcp -j A", "-p udp -j B", "-j X"], False, id="a rule missing"),
        pytest.param([], False, id="empty"),
    ],
)  # fmt: skip
def test_a_shared_chain_is_held_with_all_its_rules_or_not_at_all(printed, expected):
    observation = dataplane(Script(services(*printed))).observe()
    observation.strays([ALL])
    assert dict.fromkeys(ALL, expected) == {k: observation.holds(k, v) for k, v in ALL.items()}


def test_a_shared_chain_is_not_held_before_all_that_is_wanted_was_told():
    observation = dataplane(Script(listing())).observe()
    assert not observation.holds(SERVICES, ())
    assert not observation.holds(RULE, WANTED[RULE])


def test_what_is_noted_counts_where_something_else_is_wanted_by_now():
    observation = dataplane(Script(listing())).observe()
    observation.strays([WANTED | {RULE: ("-j KUBE-SVC-B",)}, WANTED])
    assert observation.holds(RULE, WANTED[RULE])
    assert not observation.holds(RULE, ("-j KUBE-SVC-B",))


# --- strays ---


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        pytest.param([], [SVC_A], id="nobody wants it"),
        pytest.param([{SVC_A: ()}], [], id="somebody wants it"),
    ],
)
def test_strays_are_service_chains_that_nobody_wants(wanted, expected):
    result = listing(services="")
    assert expected == list(dataplane(Script(result)).observe().strays([{SERVICES: ()}, *wanted]))


def saved(**tables):
    """A listing: per table rule lines, and chain names without rules."""
    lines = []
    for table, body in tables.items():
        builtin = ("INPUT", "FORWARD", "OUTPUT")
        chains = dict.fromkeys(
            line.split()[1] if line.startswith("-A") else line
            for line in body
            if line not in builtin
        )
        lines += [f"*{table}", *(f":{c} ACCEPT [0:0]" for c in builtin)]
        lines += [f":{chain} - [0:0]" for chain in chains if chain not in builtin]
        lines += [*(line for line in body if line.startswith("-A")), "COMMIT"]
    return Finished(0, "\n".join([*lines, ""]).encode(), b"")


NEW_STATE = "-m conntrack --ctstate NEW "
WALL = '-m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL'
IPVS_WALL = '-m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL'
ACCESS = '-m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER'
WALLS = {
    SharedChain("filter", "KUBE-PROXY-FIREWALL"): (),
    Jump("filter", "INPUT", "KUBE-PROXY-FIREWALL"): (NEW_STATE + WALL,),
}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param(["KUBE-IPVS-FILTER"], [Chain("filter", "KUBE-IPVS-FILTER")], id="a chain"),
        pytest.param(
            [f"-A INPUT {ACCESS}", "KUBE-IPVS-FILTER"],
            [(("INPUT", ACCESS), 1), Chain("filter", "KUBE-IPVS-FILTER")],
            id="a chain and the jump to it"),
        pytest.param(
            [f"-A INPUT {ACCESS}", f"-A INPUT {ACCESS}", "KUBE-IPVS-FILTER"],
            [(("INPUT", ACCESS), 2), Chain("filter", "KUBE-IPVS-FILTER")],
            id="the same jump twice"),
        pytest.param(
            ["-A INPUT -i eth1 -j KUBE-IPVS-FILTER", "KUBE-IPVS-FILTER"],
            [(("INPUT", "-i eth1 -j KUBE-IPVS-FILTER"), 1), Chain("filter", "KUBE-IPVS-FILTER")],
            id="somebody's own jump to a chain that goes"),
        pytest.param(
            [f"-A INPUT {NEW_STATE}{WALL}", "KUBE-PROXY-FIREWALL"], [], id="the wanted jump"),
        pytest.param(
            [f"-A INPUT {NEW_STATE}{WALL}", f"-A INPUT {IPVS_WALL}", "KUBE-PROXY-FIREWALL"],
            [(("INPUT", IPVS_WALL), 1)],
            id="the other mode's jump to a chain that stays"),
        pytest.param(
            [f"-A INPUT {IPVS_WALL}", "KUBE-PROXY-FIREWALL"],
            [(("INPUT", IPVS_WALL), 1)],
            id="the other mode's jump alone"),
        pytest.param(
            [f"-A OUTPUT {NEW_STATE}{WALL}", "KUBE-PROXY-FIREWALL"],
            [(("OUTPUT", NEW_STATE + WALL), 1)],
            id="a jump from where only the other mode has one"),
        pytest.param(
            [f"-A INPUT {NEW_STATE}{WALL}", "-A INPUT -i eth1 -j KUBE-PROXY-FIREWALL",
             "-A FORWARD -j KUBE-PROXY-FIREWALL", "KUBE-PROXY-FIREWALL"],
            [], id="somebody's own jumps to a chain that stays"),
        pytest.param(
            ["-A INPUT -j KUBE-FIREWALL", "KUBE-FIREWALL", "KUBE-MARK-DROP", "KUBE-KUBELET-CANARY",
             "THEIRS", "KUBE-SVC-IN-FILTER", "KUBE-PROXY-FIREWALL"],
            [], id="chains of kubelet and others"),
        pytest.param(
            ["-A THEIRS -j KUBE-IPVS-FILTER", "KUBE-IPVS-FILTER", "KUBE-PROXY-FIREWALL"],
            [Chain("filter", "KUBE-IPVS-FILTER")], id="a jump in somebody's chain stays"),
        pytest.param(
            ["KUBE-PROXY-CANARY", "KUBE-PROXY-FIREWALL"],
            [Chain("filter", "KUBE-PROXY-CANARY")], id="a canary where the mode has none"),
    ],
)  # fmt: skip
def test_strays_are_what_another_mode_left(lines, expected):
    strays = dataplane(By(saved(filter=lines), **{"-C": NO_CHAIN})).observe().strays([WALLS])
    wanted = {}
    for each in expected:
        if isinstance(each, Chain):
            wanted[each] = ()
        else:
            (chain, rule), count = each
            wanted[DispatchRule("filter", chain, rule)] = (rule,) * count
    assert wanted == strays


def test_a_canary_that_is_wanted_is_no_stray():
    observation = dataplane(Script(saved(mangle=["KUBE-PROXY-CANARY"]))).observe()
    assert observation.strays([{Presence("mangle", "KUBE-PROXY-CANARY"): ()}]) == {}


def test_a_jump_that_may_be_the_wanted_one_in_other_words_stays():
    """Removing it could remove the only way in."""
    runner = By(saved(filter=[f"-A INPUT {WALL}", "KUBE-PROXY-FIREWALL"]), **{"-C": DONE})
    assert dataplane(runner).observe().strays([WALLS]) == {}


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(Finished(1, b"", b"denied"), id="failed"),
        pytest.param(Finished(0, b"*nat\n", b""), id="broken off"),
        pytest.param(
            Finished(0, b"# Table `nat' is incompatible, use 'nft' tool.\n", b""), id="incompatible"
        ),
        pytest.param(NotStarted("missing"), id="missing"),
        pytest.param(TimedOut(60.0, b""), id="timeout"),
    ],
)
def test_a_read_back_that_fails_is_an_error(result):
    with pytest.raises(HostError, match="iptables-nft-save"):
        dataplane(Script(result)).observe()


# --- canaries ---


def test_the_canary_of_mangle_is_asked_for_first_and_is_enough():
    runner = By()
    assert dataplane(runner).intact()
    assert runner.asked == ["iptables-nft -w 5 -S KUBE-PROXY-CANARY -t mangle"]


def test_a_flush_of_all_tables_is_noticed_at_once():
    stop = Clockless()
    assert (dataplane(By(NO_CHAIN), stop).intact(), stop.waits) == (False, 0)


def test_a_flush_that_is_still_going_on_is_waited_for():
    stop = Clockless()
    runner = Script(NO_CHAIN, DONE, NO_CHAIN, DONE, NO_CHAIN, NO_CHAIN)
    assert (dataplane(runner, stop).intact(), stop.waits) == (False, 2)


def test_a_partial_flush_is_one_after_five_seconds():
    stop = Clockless()
    runner = By(DONE, mangle=NO_CHAIN)
    assert (dataplane(runner, stop).intact(), stop.waits) == (False, 50)


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(LOCKED, id="lock taken"),
        pytest.param(TimedOut(60.0, b""), id="timeout"),
        pytest.param(NotStarted("missing"), id="missing tool"),
        pytest.param(Killed(9, b""), id="killed"),
    ],
)
def test_a_tool_that_cannot_tell_is_no_sign_of_a_flush(result):
    assert dataplane(By(result)).intact()


def test_a_stopping_program_does_not_wait_for_canaries():
    runner = By(DONE, mangle=NO_CHAIN)
    assert dataplane(runner, Clockless(stops_after=1)).intact()


# --- the rest ---


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        pytest.param("-j X", ["-j", "X"], id="plain"),
        pytest.param(
            '-m comment --comment "a b; c" -j X',
            ["-m", "comment", "--comment", "a b; c", "-j", "X"],
            id="quoted comment",
        ),
        pytest.param("", [], id="empty"),
    ],
)
def test_a_rule_is_split_into_arguments(rule, expected):
    assert expected == split_rule(rule)
