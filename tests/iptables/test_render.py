from __future__ import annotations

from threading import Event

import pytest

from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.index import ChainIndex, Edit, Sizes
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.names import is_service_chain
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Presence,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.render import Script, plan, scripts
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import BASE, Change, Transaction, leftover
from pykubeproxy.sync.routes import service_routes
from pykubeproxy.sync.tracker import Tracker
from tests.build import endpoint, port, service, slice_
from tests.fakes.xtables import Xtables

A, B = ServiceKey("ns", "a"), ServiceKey("ns", "b")
SVC, SEP = Chain("nat", "KUBE-SVC-A"), Chain("nat", "KUBE-SEP-A")
RULE = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
SHARED = SharedChain("nat", "KUBE-SERVICES")
TAIL = TailRule("nat", "KUBE-SERVICES", "-j KUBE-NODEPORTS")


def change(owner=A, put=None, drop=None, old=None):
    return Change(owner, put or {}, drop or {}, old or {})


def lines(*changes, table="nat"):
    """The input between the table line and COMMIT."""
    return Script(Transaction(table, changes)).text().decode().splitlines()[1:-1]


# --- the input of one transaction ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param(
            [change(put={SVC: ("-j X", "-j Y")})],
            [":KUBE-SVC-A - [0:0]", "-A KUBE-SVC-A -j X", "-A KUBE-SVC-A -j Y"],
            id="a chain is emptied and filled in order",
        ),
        pytest.param(
            [change(drop={SVC: ("-j X",)})],
            [":KUBE-SVC-A - [0:0]", "-X KUBE-SVC-A"],
            id="a chain is emptied before it goes",
        ),
        pytest.param(
            [change(put={SHARED: (), TAIL: ("-j KUBE-NODEPORTS",)})],
            [":KUBE-SERVICES - [0:0]", "-A KUBE-SERVICES -j KUBE-NODEPORTS"],
            id="the tail is appended",
        ),
        pytest.param(
            [change(put={RULE: ("-j X",)})], ["-I KUBE-SERVICES -j X"], id="rules go to the head"
        ),
        pytest.param(
            [change(put={RULE: ("-j X", "-j Y")})],
            ["-I KUBE-SERVICES -j Y", "-I KUBE-SERVICES -j X"],
            id="several rules keep their order",
        ),
        pytest.param(
            [change(put={RULE: ("-j Y",)}, old={RULE: ("-j X",)})],
            ["-I KUBE-SERVICES -j Y", "-D KUBE-SERVICES -j X"],
            id="the old rule goes after the new one came",
        ),
        pytest.param(
            [change(drop={RULE: ("-j X", "-j Y")})],
            ["-D KUBE-SERVICES -j X", "-D KUBE-SERVICES -j Y"],
            id="rules go by content",
        ),
        pytest.param(
            [
                change(BASE, put={SHARED: ()}),
                change(put={RULE: ("-j Y",)}, old={RULE: ("-j X",)}),
                change(B, drop={DispatchRule("nat", "KUBE-SERVICES", "x"): ("-j Z",)}),
            ],
            [":KUBE-SERVICES - [0:0]", "-I KUBE-SERVICES -j Y"],
            id="nothing is removed from an emptied chain",
        ),
        pytest.param(
            [change(put={Presence("nat", "KUBE-PROXY-CANARY"): ()})],
            [":KUBE-PROXY-CANARY - [0:0]"],
            id="a presence",
        ),
        pytest.param(
            [change(put={Jump("nat", "OUTPUT", "KUBE-SERVICES"): ("-j KUBE-SERVICES",)})],
            ["-I OUTPUT -j KUBE-SERVICES"],
            id="a jump goes to the top",
        ),
        pytest.param(
            [change(put={TAIL: ("-j KUBE-NODEPORTS",)}, drop={
                TailRule("nat", "KUBE-SERVICES", "-j OLD"): ("-j OLD",)})],
            ["-A KUBE-SERVICES -j KUBE-NODEPORTS", "-D KUBE-SERVICES -j OLD"],
            id="another tail",
        ),
    ],
)  # fmt: skip
def test_changes_become_lines(changes, expected):
    assert expected == lines(*changes)


def test_every_chain_is_made_before_any_rule_and_removed_after_all():
    found = lines(
        change(BASE, put={SHARED: (), TAIL: ("-j KUBE-NODEPORTS",)}),
        change(A, put={SVC: ("-j KUBE-SEP-A",), SEP: ("-j DNAT",), RULE: ("-j KUBE-SVC-A",)}),
        change(B, drop={Chain("nat", "KUBE-SVC-B"): (), RULE: ("-j KUBE-SVC-B",)}),
    )
    order = [":", "-A", "-I", "-D", "-X"]
    kinds = [order.index(":" if line[0] == ":" else line[:2]) for line in found]
    assert sorted(kinds) == kinds


def test_the_number_of_lines_is_told():
    script = Script(Transaction("nat", (change(put={SVC: ("-j X",)}),)))
    assert script.text().count(b"\n") == script.lines == 4
    assert script.lines <= script.most_lines


def test_the_number_of_rules_set_is_told():
    put, drop = {SVC: ("-j X", "-j Y"), RULE: ("-j Z",)}, {Chain("nat", "KUBE-SVC-B"): ()}
    script = Script(Transaction("nat", (change(put=put, drop=drop),)))
    assert len(script.text()) == script.bytes
    assert (3, 2) == (script.rules, script.chains)


def test_the_input_is_one_table_and_ends_with_its_commit():
    assert Script(Transaction("filter", ())).text() == b"*filter\nCOMMIT\n"


OWNED = Transaction(
    "nat",
    (
        change(A, put={SVC: ("-j X",), RULE: ("-j KUBE-SVC-A",)}),
        change(B, drop={Chain("nat", "KUBE-SVC-B"): ()}),
    ),
)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        pytest.param(1, (None, "*nat"), id="table"),
        pytest.param(2, (B, ":KUBE-SVC-B - [0:0]"), id="chain that goes"),
        pytest.param(3, (A, ":KUBE-SVC-A - [0:0]"), id="chain"),
        pytest.param(4, (A, "-A KUBE-SVC-A -j X"), id="rule"),
        pytest.param(5, (A, "-I KUBE-SERVICES -j KUBE-SVC-A"), id="rule at the head"),
        pytest.param(6, (B, "-X KUBE-SVC-B"), id="removal"),
        pytest.param(7, (None, "COMMIT"), id="commit"),
        pytest.param(8, (None, ""), id="behind the end"),
    ],
)
def test_every_line_has_an_owner(number, expected):
    assert expected == Script(OWNED).owner_of_line(number)


# --- trees ---


def tree(*ports):
    """How KUBE-SERVICES becomes a tree of that many leaf chains; all rules are A's."""
    index = ChainIndex(SHARED, Family.IPV4, Sizes(above=0, leaf_rules=1))
    rules = {
        DispatchRule("nat", SHARED.name, f"tcp 10.96.0.1 {n}"): (A, (f"-j {n}",)) for n in ports
    }
    edit = index.edit({**rules, TAIL: (BASE, ("-j KUBE-NODEPORTS",))}, (), reset=True)
    assert edit is not None
    return edit


def test_a_tree_takes_the_place_of_the_rules_in_a_list():
    edit = tree(80, 443)
    put = {SHARED: (), RULE: ("-j 80",), TAIL: ("-j KUBE-NODEPORTS",), SVC: ("-j X",)}
    script = Script(Transaction("nat", (change(put=put),)), {SHARED.name: edit})
    text = script.text().decode().splitlines()[1:-1]
    leaves = sorted(edit.new, reverse=True)
    assert [f":{n} - [0:0]" for n in (SHARED.name, *leaves, SVC.name)] == [
        line for line in text if line[0] == ":"
    ]
    assert [f"-A {leaf} -j" for leaf in leaves] == [
        line.rpartition(" ")[0] for line in text if line.startswith("-A KUBE-SVC-IDX")
    ]
    assert "-A KUBE-SERVICES -j KUBE-NODEPORTS" == text[3 + 1 + 2]
    assert [] == [line for line in text if line.startswith("-I")]
    owners = {script.owner_of_line(number) for number in range(1, script.lines + 1)}
    assert {(A, f"-A {leaf} {rule}") for leaf in leaves for _, rule in edit.filled[leaf]} <= owners


def test_chains_of_a_tree_go_after_the_rules_that_led_to_them():
    edit = Edit({SHARED.name: ((BASE, "-j KUBE-NODEPORTS"),)}, frozenset(), frozenset({"X", "Y"}))
    text = Script(Transaction("nat", ()), {SHARED.name: edit}).text().decode().splitlines()
    assert [
        "*nat",
        *(f":{name} - [0:0]" for name in (SHARED.name, "Y", "X")),
        "-A KUBE-SERVICES -j KUBE-NODEPORTS",
        *("-X Y", "-X X", "COMMIT"),
    ] == text


@pytest.mark.parametrize(
    ("put", "limit", "runs"),
    [
        pytest.param({RULE: ("-j X",)}, 100, 1, id="few chains"),
        pytest.param({RULE: ("-j X",)}, 7, 5, id="new chains in batches, and what leads to them"),
        pytest.param({RULE: ("-j X",)}, None, 1, id="no limit"),
        pytest.param({SVC: ("-j X",)}, 7, 1, id="what they lead to comes along"),
    ],
)
def test_many_new_chains_of_a_tree_are_filled_before_anything_leads_to_them(put, limit, runs):
    edit = tree(*range(1, 21))
    assert 22 == len(edit.new)
    found = list(scripts(Transaction("nat", (change(put=put),)), {SHARED.name: edit}, limit))
    assert runs == len(found)
    for script in found[:-1]:
        assert ":KUBE-SERVICES" not in script.text().decode()
    assert ":KUBE-SERVICES" in found[-1].text().decode()
    kernel = Xtables()
    kernel.run(["iptables-restore", "--noflush"], b"*nat\n:KUBE-NODEPORTS - [0:0]\nCOMMIT\n")
    targets = "".join(f":{n} - [0:0]\n" for n in (*range(1, 21), "X"))
    kernel.run(["iptables-restore", "--noflush"], f"*nat\n{targets}COMMIT\n".encode())
    for script in found:
        done = kernel.run(["iptables-restore", "--noflush"], script.text())
        assert (0, "") == (done.exit_status, done.complaint)


# --- transactions ---


def scopes(changes, limit=None):
    return [transaction.scope for transaction in plan(changes, limit)]


def test_nothing_to_do_is_no_transaction():
    assert plan([], 10) == []


def test_a_small_change_is_one_transaction_for_each_table():
    refusal = DispatchRule("filter", "KUBE-SERVICES", "x")
    small = change(put={SVC: (), refusal: ("-j REJECT",), Presence("mangle", "C"): ()})
    assert scopes([small], 10) == ["filter", "nat", "mangle"]


@pytest.mark.parametrize("table", ["filter", "nat", "mangle"])
def test_tables_that_nothing_concerns_are_left_out(table):
    assert scopes([change(put={Presence(table, "X"): ()})]) == [table]


def test_without_a_limit_everything_of_a_table_is_one_transaction():
    many = [
        change(ServiceKey("ns", str(n)), put={Chain("nat", f"KUBE-SVC-{n}"): ()})
        for n in range(1000)
    ]
    assert scopes(many, None) == ["nat"]


def own_chains(owner, count):
    return {Chain("nat", f"KUBE-SEP-{owner.name}{n}"): ("-j ACCEPT",) for n in range(count)}


def test_batches_are_cut_between_owners():
    owners = [ServiceKey("ns", name) for name in "abcde"]
    changes = [change(owner, put=own_chains(owner, 3)) for owner in owners]
    assert [t.owners for t in plan(changes, 7)] == [
        tuple(owners[0:2]),
        tuple(owners[2:4]),
        tuple(owners[4:5]),
    ]


def test_no_batch_is_larger_than_asked_for():
    changes = [
        change(ServiceKey("ns", str(n)), put=own_chains(ServiceKey("ns", str(n)), n))
        for n in range(30)
    ]
    assert max(sum(len(c.put) for c in t.changes) for t in plan(changes, 10)) <= 10


def test_a_huge_owner_is_cut_so_that_no_chain_comes_before_its_targets():
    put = {
        Chain("nat", "KUBE-FW-A"): ("-j KUBE-EXT-A",),
        Chain("nat", "KUBE-EXT-A"): ("-j KUBE-SVC-A",),
        SVC: tuple(f"-j KUBE-SEP-a{n}" for n in range(20)),
        **own_chains(A, 20),
    }
    kernel = Xtables()
    for transaction in plan([change(put=put)], 5):
        text = Script(transaction).text()
        assert kernel.run(["iptables-restore", "--noflush"], text).exit_status == 0


def test_a_huge_owner_goes_from_the_top_down():
    drop = {**own_chains(A, 6), SVC: (), Chain("nat", "KUBE-EXT-A"): ()}
    names = [k.name for t in plan([change(drop=drop)], 3) for c in t.changes for k in c.drop]
    assert names[:2] == ["KUBE-EXT-A", "KUBE-SVC-A"]


def test_dispatch_comes_after_all_chains_and_before_all_removals():
    many = [
        change(
            ServiceKey("ns", name),
            put={**own_chains(ServiceKey("ns", name), 3), RULE: ("-j X",)},
            drop={Chain("nat", f"KUBE-SVC-{name}{n}"): () for n in range(3)},
        )
        for name in "abcd"
    ]

    def what(transaction):
        put = any(isinstance(k, Chain) for c in transaction.changes for k in c.put)
        dispatch = any(isinstance(k, DispatchRule) for c in transaction.changes for k in c.put)
        drop = any(c.drop for c in transaction.changes)
        return put, dispatch, drop

    chains, dispatch, removal = (True, False, False), (False, True, False), (False, False, True)
    assert [what(t) for t in plan(many, 6)] == [chains] * 2 + [dispatch] + [removal] * 2


def test_planning_loses_and_invents_nothing():
    many = [
        change(
            ServiceKey("ns", name),
            put={**own_chains(ServiceKey("ns", name), 5), RULE: ("-j X",)},
            drop={Chain("nat", f"KUBE-SVC-{name}"): (), Chain("filter", "KUBE-OLD"): ()},
            old={RULE: ("-j Y",)},
        )
        for name in "abcd"
    ]

    def parts(changes):
        return sorted(
            (str(c.owner), word, repr(key), value)
            for c in changes
            for word, objects in (("put", c.put), ("drop", c.drop), ("old", c.old))
            for key, value in objects.items()
        )

    planned = [c for transaction in plan(many, 3) for c in transaction.changes]
    assert parts(many) == parts(planned)


# --- against the strict fake: whatever is interrupted, nothing jumps into the void ---

NODE = NodeContext("node", Family.IPV4, pod_traffic=PodCIDR("10.1.0.0/16"))


class Books:
    """A tracker and a compiler: changes between two states of a cluster."""

    def __init__(self):
        self.compiler = IptablesCompiler(XtablesSettings())
        self.tracker = Tracker(self.compiler.claim)
        self.tracker.want(BASE, self.compiler.base(NODE))

    def want(self, number, endpoint_count):
        name = f"s{number}"
        svc = service(
            name,
            type="LoadBalancer",
            cluster_ip=f"10.96.0.{number}",
            vips=[f"203.0.113.{number}"],
            source_ranges=["198.51.100.0/24"],
            external_policy="Local",
            ports=[port(80, node_port=30000 + number)],
        )
        endpoints = [
            endpoint(f"10.1.{number}.{n}", node="node" if n % 2 else "other")
            for n in range(endpoint_count)
        ]
        (route,) = service_routes(svc, [slice_(name, *endpoints)], NODE).routes
        self.tracker.want(svc.key, self.compiler.compile(route, NODE))

    def forget(self, number):
        self.tracker.want(ServiceKey("default", f"s{number}"), {})


def dangling(kernel):
    """Service chains that packets reach and that hold no rule."""
    nat = kernel.table("nat")
    reached, waiting = set(), ["PREROUTING", "OUTPUT", "POSTROUTING"]
    while waiting:
        chain = waiting.pop()
        if chain in reached:
            continue
        reached.add(chain)
        waiting += [r.target for r in nat.chains[chain] if r.target in nat.chains]
    return sorted(c for c in reached if is_service_chain(c) and not nat.chains[c])


def land(kernel, books, limit):
    """Apply what is missing; check after every transaction."""
    for transaction in plan(books.tracker.changes(), limit):
        text = Script(transaction).text()
        done = kernel.run(["iptables-restore", "--noflush"], text)
        assert (done.exit_status, done.complaint) == (0, "")
        assert dangling(kernel) == []
        books.tracker.confirm(transaction)


@pytest.mark.parametrize("nft", [True, False], ids=["nft", "legacy"])
@pytest.mark.parametrize("limit", [None, 1, 5, 12], ids=["at once", "1", "5", "12"])
def test_no_transaction_leaves_a_jump_into_the_void(limit, nft):
    kernel, books = Xtables(nft=nft), Books()
    for number in range(1, 9):
        books.want(number, endpoint_count=number)
    land(kernel, books, limit)
    for number in range(1, 9):  # all endpoints change, some services go
        books.want(number, endpoint_count=9 - number)
    books.forget(3)
    books.forget(4)
    land(kernel, books, limit)
    for number in range(1, 9):
        books.forget(number)
    land(kernel, books, limit)
    assert [chain for chain in kernel.table("nat").chains if is_service_chain(chain)] == []


@pytest.mark.parametrize("limit", [None, 5], ids=["at once", "in batches"])
def test_the_state_does_not_depend_on_the_cutting(limit):
    def state(limit):
        kernel, books = Xtables(), Books()
        for number in range(1, 9):
            books.want(number, endpoint_count=3)
        land(kernel, books, limit)
        return kernel.state()

    assert state(limit) == state(1)


def test_the_tail_stays_last_whatever_is_added_and_removed():
    kernel, books = Xtables(), Books()
    for number in (1, 2, 3):
        books.want(number, 1)
        land(kernel, books, None)
    books.forget(2)
    land(kernel, books, None)
    targets = [rule.target for rule in kernel.table("nat").chains["KUBE-SERVICES"]]
    assert targets.index("KUBE-NODEPORTS") == len(targets) - 1


def test_leftovers_go_even_where_living_chains_still_point_at_them():
    kernel, books = Xtables(), Books()
    books.want(1, 1)
    land(kernel, books, None)
    nat = kernel.table("nat")
    (svc,) = (chain for chain in nat.chains if chain.startswith("KUBE-SVC-"))
    text = f"*nat\n:KUBE-SEP-OLD - [0:0]\n-A {svc} -j KUBE-SEP-OLD\nCOMMIT\n"
    kernel.run(["iptables-restore", "--noflush"], text.encode())
    rewrite = books.tracker.wanted(ServiceKey("default", "s1"))
    again = Change(ServiceKey("default", "s1"), {Chain("nat", svc): rewrite[Chain("nat", svc)]},
                   {}, {})  # fmt: skip
    old = Chain("nat", "KUBE-SEP-OLD")
    stray = Change(leftover(old), {}, {old: ()}, {})
    for transaction in plan([stray, again], None):
        done = kernel.run(["iptables-restore", "--noflush"], Script(transaction).text())
        assert done.exit_status == 0, done
    assert "KUBE-SEP-OLD" not in kernel.table("nat").chains


def test_no_moment_is_without_both_refusal_and_redirection():
    """Filter gains before nat changes, and loses after it."""
    refusal = DispatchRule("filter", "KUBE-SERVICES", "tcp 10.96.0.1 80")
    jump = DispatchRule("nat", "KUBE-SERVICES", "tcp 10.96.0.1 80")
    rule = ("-j REJECT",)
    served = Change(ServiceKey("a", "comes"), {jump: rule}, {refusal: rule}, {})
    refused = Change(ServiceKey("a", "goes"), {refusal: rule}, {jump: rule}, {})
    assert [
        ("filter", ["goes"]),
        ("nat", ["comes", "goes"]),
        ("filter", ["comes"]),
    ] == [(t.scope, [owner.name for owner in t.owners]) for t in plan([served, refused], None)]


# --- leftovers, and changing the mode ---


def gone(*keys):
    """The removal of leftovers, each with its own owner."""
    return [change(leftover(k), drop={k: (k.match,) if isinstance(k, DispatchRule) else ()})
            for k in keys]  # fmt: skip


def summary(transactions):
    """Table, chains and rules that come, and that go, of each transaction."""

    def word(key):
        return getattr(key, "name", None) or getattr(key, "match", None) or key.target

    return [
        (t.scope, [word(k) for c in t.changes for k in c.put],
         [word(k) for c in t.changes for k in c.drop])
        for t in transactions
    ]  # fmt: skip


OLD_JUMP = DispatchRule("filter", "OUTPUT", "-j KUBE-SERVICES")
OLD_SERVICES = Chain("filter", "KUBE-SERVICES")


def test_leftovers_go_when_all_else_is_done_and_the_ways_in_before_the_chains():
    new = change(BASE, put={Chain("nat", "KUBE-POSTROUTING"): ("-j X",),
                            Chain("filter", "KUBE-FORWARD"): ("-j X",)})  # fmt: skip
    stray = Chain("nat", "KUBE-SVC-GONE")
    assert [
        ("filter", ["KUBE-FORWARD"], []),
        ("nat", ["KUBE-POSTROUTING"], []),
        ("filter", [], ["-j KUBE-SERVICES"]),
        ("filter", [], ["KUBE-SERVICES"]),
        ("nat", [], ["KUBE-SVC-GONE"]),
    ] == summary(plan([*gone(stray, OLD_SERVICES, OLD_JUMP), new], None))


@pytest.mark.parametrize(("limit", "runs"), [(None, 1), (600, 4)], ids=["legacy", "nft"])
def test_many_leftovers_go_in_few_transactions(limit, runs):
    strays = [Chain("nat", f"KUBE-SVC-{n}") for n in range(2000)]
    assert runs == len(plan(gone(*strays), limit))


def test_leftovers_go_from_the_top_down():
    names = ["KUBE-MARK-MASQ", "KUBE-SEP-A", "KUBE-SVC-A", "KUBE-EXT-A", "KUBE-FW-A",
             "KUBE-NODEPORTS", "KUBE-SERVICES"]  # fmt: skip
    (transaction,) = plan(gone(*(Chain("nat", name) for name in names)), None)
    assert names[::-1] == [k.name for c in transaction.changes for k in c.drop]


def test_the_chain_of_the_snat_rule_changes_together_with_what_leads_to_it():
    """Pods that meet themselves through IPVS need the old one until the packets are not IPVS's."""
    base = change(BASE, put={Chain("nat", "KUBE-POSTROUTING"): (), SHARED: (),
                             Chain("nat", "KUBE-MARK-MASQ"): ()})  # fmt: skip
    many = [change(owner, put=own_chains(owner, 5)) for owner in (A, B)]
    first, *_, last = summary(plan([base, *many], 6))
    assert "KUBE-MARK-MASQ" in first[1]
    assert ["KUBE-POSTROUTING", "KUBE-SERVICES"] == last[1]


FIREWALL = SharedChain("filter", "KUBE-PROXY-FIREWALL")
FIREWALL_RULE = DispatchRule("filter", "KUBE-PROXY-FIREWALL", "tcp 203.0.113.1 80")
FIREWALL_JUMP = Jump("filter", "INPUT", "KUBE-PROXY-FIREWALL")
OLD_FIREWALL_JUMP = DispatchRule("filter", "INPUT", "-j KUBE-PROXY-FIREWALL")
NEW_RULES = [
    change(BASE, put={FIREWALL: (), SharedChain("filter", "KUBE-SERVICES"): (), SHARED: (),
                      FIREWALL_JUMP: ("-j KUBE-PROXY-FIREWALL",)}),
    change(A, put={FIREWALL_RULE: ("-j DROP",), RULE: ("-j X",)}),
]  # fmt: skip
LATE = ["KUBE-PROXY-FIREWALL", "KUBE-PROXY-FIREWALL", "tcp 203.0.113.1 80"]


@pytest.mark.parametrize("chain", ["KUBE-SOURCE-RANGES-FIREWALL", "KUBE-IPVS-FILTER"])
def test_the_firewall_of_iptables_mode_waits_for_nat_where_ipvs_has_the_packets(chain):
    strays = gone(Chain("filter", chain), OLD_FIREWALL_JUMP)
    assert [
        ("filter", ["KUBE-SERVICES"], []),
        ("nat", ["KUBE-SERVICES", "tcp 10.96.0.1 80"], []),
        ("filter", LATE, ["-j KUBE-PROXY-FIREWALL"]),
        ("filter", [], [chain]),
    ] == summary(plan([*NEW_RULES, *strays], None))


def test_the_firewall_comes_before_nat_in_all_other_cases():
    firewall, *_ = plan(NEW_RULES, None)
    assert FIREWALL_RULE in firewall.changes[1].put


IPVS_RULES = """*filter
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -d 203.0.113.1 -j KUBE-LOAD-BALANCER
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -j KUBE-MARK-MASQ
COMMIT
"""


@pytest.mark.parametrize("nft", [True, False], ids=["nft", "legacy"])
@pytest.mark.parametrize("limit", [None, 1, 5], ids=["at once", "1", "5"])
def test_the_rules_of_ipvs_mode_give_way_to_those_of_iptables_mode(limit, nft):
    def fresh():
        books = Books()
        for number in (1, 2, 3):
            books.want(number, 2)
        return books

    clean, kernel, books = Xtables(nft=nft), Xtables(nft=nft), fresh()
    land(clean, fresh(), limit)
    done = kernel.run(["iptables-restore", "--noflush"], IPVS_RULES.encode())
    assert done.exit_status == 0, done
    plane = XtablesDataplane(
        Tools(Family.IPV4, Variant.NFT if nft else Variant.LEGACY), print, Event(), kernel
    )
    books.tracker.align(plane.observe())
    land(kernel, books, limit)
    assert kernel.state().keys() == clean.state().keys()
    for table, chains in clean.state().items():
        assert {name: sorted(rules) for name, rules in chains.items()} == {
            name: sorted(rules) for name, rules in kernel.state()[table].items()
        }
    books.tracker.align(plane.observe())
    assert plan(books.tracker.changes(), limit) == []
