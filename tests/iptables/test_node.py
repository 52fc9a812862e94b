"""Finding out what this node uses, and taking everything of ours out, with the tools faked."""

from __future__ import annotations

import pytest

from pykubeproxy.config import Config
from pykubeproxy.errors import Unsupported
from pykubeproxy.host.exec import Finished, NotStarted
from pykubeproxy.host.sysctls import Parameter
from pykubeproxy.iptables import node
from pykubeproxy.iptables.names import CANARY
from pykubeproxy.iptables.node import (
    available_tools,
    clean_up,
    detect_variant,
    find_nftables_leftovers,
    parameters,
    plan_removal,
    random_fully,
    remembering,
    remove_nftables_leftovers,
)
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from tests.fakes.xtables import Xtables

LOCALNET = Parameter("net/ipv4/conf/all/route_localnet", 1)


class Counted:
    """A runner that remembers what it was asked."""

    def __init__(self, host):
        self.host = host
        self.asked = []

    def run(self, argv, input=None, timeout_seconds=60.0):
        self.asked.append((argv[0], input))
        return self.host.run(argv, input, timeout_seconds)


class Host:
    """A machine with both variants for both families, each a kernel of its own in memory."""

    def __init__(self, monkeypatch, *, missing=(), suffixed=True, legacy_tables=("nat", "mangle")):
        self.kernels = {
            f"{stem}-{variant}": Xtables(version, nft=variant == "nft")
            for stem, version in (("iptables", 4), ("ip6tables", 6))
            for variant in ("nft", "legacy")
        }
        self.listings = []
        self.missing = set(missing)
        self.suffixed = suffixed
        monkeypatch.setattr(node, "_legacy_tables", lambda _family: list(legacy_tables))
        monkeypatch.setattr(node, "_has_ipv6", lambda: True)

    def run(self, argv, input=None, timeout_seconds=60.0):
        name = argv[0].removesuffix("-restore").removesuffix("-save")
        if not self.suffixed:
            if name.endswith(("-nft", "-legacy")):
                return NotStarted(f"{name}: not found")
            name += "-nft"
        if name in self.missing:
            return NotStarted(f"{name}: not found")
        if "--version" in argv:
            how = "nf_tables" if name.endswith("-nft") else "legacy"
            return Finished(0, f"iptables v1.8.9 ({how})\n".encode(), b"")
        if argv[0].endswith("-save"):
            self.listings.append(argv)
        return self.kernels[name].run(argv, input, timeout_seconds)

    def fill(self, name, table, *chains):
        lines = [f":{chain} - [0:0]" for chain in chains]
        text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
        done = self.kernels[name].run([f"{name}-restore", "--noflush"], text.encode(), 5)
        assert done.exit_status == 0, done

    def chains(self, name, table):
        return set(self.kernels[name].state().get(table, {}))


@pytest.fixture
def host(monkeypatch):
    return Host(monkeypatch)


@pytest.mark.parametrize("variant", list(Variant))
def test_kubelets_hint_decides(host, variant):
    host.fill(f"iptables-{variant}", "mangle", "KUBE-IPTABLES-HINT")
    assert detect_variant("auto", host.run).variant is variant


def test_without_any_rule_nft_is_taken(host):
    assert detect_variant("auto", host.run).variant is Variant.NFT


def test_legacy_tools_are_not_touched_where_no_legacy_table_exists(monkeypatch):
    host = Host(monkeypatch, legacy_tables=())
    detect_variant("auto", host.run)
    assert not host.kernels["iptables-legacy"].calls


def test_only_one_variant_installed(monkeypatch):
    host = Host(monkeypatch, missing=["iptables-nft", "ip6tables-nft", "iptables", "ip6tables"])
    assert detect_variant("auto", host.run).variant is Variant.LEGACY


def test_no_tool_at_all_is_said(monkeypatch):
    names = [f"{s}{v}" for s in ("iptables", "ip6tables") for v in ("", "-nft", "-legacy")]
    host = Host(monkeypatch, missing=names)
    with pytest.raises(Unsupported, match="install the iptables package"):
        detect_variant("auto", host.run)


def test_plain_programs_are_used_where_there_are_no_others(monkeypatch):
    host = Host(monkeypatch, suffixed=False)
    tools = available_tools(Variant.NFT, host.run)
    assert ["iptables-restore", "--noflush", "-w"] == tools[Family.IPV4].restore()[:3]


def test_a_family_that_does_not_work_is_left_out(monkeypatch):
    host = Host(monkeypatch, missing=["ip6tables-nft", "ip6tables"])
    assert [Family.IPV4] == list(available_tools(Variant.NFT, host.run))


def test_ipv6_switched_off_is_left_out(host, monkeypatch):
    monkeypatch.setattr(node, "_has_ipv6", lambda: False)
    assert [Family.IPV4] == list(available_tools(Variant.NFT, host.run))


def test_no_family_at_all_is_said(monkeypatch):
    missing = ["iptables-nft", "iptables", "ip6tables-nft", "ip6tables"]
    host = Host(monkeypatch, missing=missing)
    with pytest.raises(Unsupported, match="no usable IP family"):
        available_tools(Variant.NFT, host.run)


def test_full_port_randomization_is_asked_of_the_tool(host):
    assert random_fully(Tools(Family.IPV4, Variant.NFT), host.run)


def test_a_named_variant_costs_no_look_at_the_other(host):
    counted = Counted(host)
    detect_variant("legacy", counted.run)
    assert {"iptables-legacy", "iptables-legacy-save"} == {program for program, _ in counted.asked}


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("override", ["auto", None], ids=["auto", "named"])
def test_where_a_service_proxy_wrote_before_nothing_is_tried_or_counted(host, variant, override):
    host.fill(f"iptables-{variant}", "mangle", CANARY)
    host.fill("iptables-nft", "nat", "KUBE-SERVICES")
    counted = Counted(host)
    assert variant is detect_variant(override or variant.value, counted.run).variant
    assert not [program for program, _ in counted.asked if program.endswith(f"{variant}-restore")]
    assert not [argv for argv in host.listings if "-t" not in argv]


def test_rules_are_counted_where_both_variants_may_be_in_use(host):
    for _ in range(2):
        rules = b"*nat\n-A OUTPUT -j RETURN\nCOMMIT\n"
        host.kernels["ip6tables-legacy"].run(["ip6tables-legacy-restore", "--noflush"], rules, 5)
    verdict = detect_variant("auto", host.run)
    assert (Variant.LEGACY, True) == (verdict.variant, "nft: 0, legacy: 2" in verdict.reason)


def test_one_start_asks_every_question_once(host):
    counted = Counted(host)
    ask = remembering(counted.run)
    verdict = detect_variant("auto", ask)
    for tools in available_tools(verdict.variant, ask).values():
        assert random_fully(tools, ask)
    assert 18 >= len(counted.asked)


def test_what_gets_input_is_run_each_time(host):
    counted = Counted(host)
    ask = remembering(counted.run)
    for _ in range(2):
        ask(["iptables-nft-restore", "--noflush"], b"*nat\nCOMMIT\n", 5.0)
        ask(["iptables-nft", "--version"], None, 5.0)
    assert ["iptables-nft-restore", "iptables-nft", "iptables-nft-restore"] == [
        program for program, _ in counted.asked
    ]


@pytest.mark.parametrize("present", [[], ["ip"], ["ip", "ip6"]], ids=repr)
def test_tables_of_the_nftables_mode_are_removed(present):
    deleted = []

    def runner(argv, input=None, timeout_seconds=60.0):
        family = argv[-2]
        if "delete" in argv:
            deleted.append(family)
        return Finished(0 if family in present else 1, b"", b"")

    names = [f"table {family} kube-proxy" for family in present]
    assert (names, []) == remove_nftables_leftovers(runner)
    assert present == deleted
    assert [(family, "kube-proxy") for family in present] == find_nftables_leftovers(runner)
    assert present == deleted, "to look changes nothing"


def test_without_nft_there_is_nothing_to_remove():
    assert ([], []) == remove_nftables_leftovers(lambda *_: NotStarted("nft: not found"))


def test_a_table_of_the_nftables_mode_that_stays_is_named():
    def runner(argv, input=None, timeout_seconds=60.0):
        return Finished(1, b"", b"busy") if "delete" in argv else Finished(0, b"", b"")

    assert (
        [],
        [f"nft, table {family} kube-proxy: exit status 1: busy" for family in ("ip", "ip6")],
    ) == remove_nftables_leftovers(runner)


def test_cleaning_up_takes_ours_and_leaves_the_rest(host):
    for name in host.kernels:
        host.fill(name, "nat", "KUBE-SERVICES", "KUBE-SVC-AAAAAAAAAAAAAAAA", "THEIRS")
        host.fill(name, "filter", "KUBE-FORWARD", "KUBE-FIREWALL")
        host.fill(name, "mangle", "KUBE-PROXY-CANARY", "KUBE-KUBELET-CANARY")
        host.kernels[name].run([name, "-t", "nat", "-I", "OUTPUT", "-j", "KUBE-SERVICES"], None, 5)
    removed, problems = clean_up(host.run)
    assert problems == []
    assert set(removed.values()) == {4}
    for name in host.kernels:
        assert {"THEIRS"} == {
            c for c in host.chains(name, "nat") if not c.isupper() or "THEIR" in c
        }
        assert not [c for c in host.chains(name, "nat") if c.startswith("KUBE-")]
        assert {"KUBE-FIREWALL"} == {c for c in host.chains(name, "filter") if "KUBE" in c}
        assert {"KUBE-KUBELET-CANARY"} == {c for c in host.chains(name, "mangle") if "KUBE" in c}


IPVS_NAT = """*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -j KUBE-LOAD-BALANCER
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
COMMIT
"""
IPVS_FILTER = """*filter
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A KUBE-PROXY-FIREWALL -j KUBE-SOURCE-RANGES-FIREWALL
COMMIT
"""


@pytest.mark.parametrize("name", ["iptables-nft", "iptables-legacy", "ip6tables-nft"])
def test_cleaning_up_takes_what_ipvs_mode_made(host, name):
    for text in (IPVS_NAT, IPVS_FILTER):
        done = host.kernels[name].run([f"{name}-restore", "--noflush"], text.encode(), 5)
        assert done.exit_status == 0, done
    assert ({f"{name}-restore": 9}, []) == clean_up(host.run)
    left = host.kernels[name].state()
    assert {"KUBE-FIREWALL"} == {c for table in left.values() for c in table if "KUBE" in c}
    assert ["-j KUBE-FIREWALL"] == left["filter"]["INPUT"]


def test_a_plan_names_what_cleaning_up_takes_and_changes_nothing(host):
    kernel = host.kernels["iptables-nft"]
    for text in (IPVS_NAT, IPVS_FILTER):
        kernel.run(["iptables-nft-restore", "--noflush"], text.encode(), 5)
    host.fill("iptables-nft", "nat", "THEIRS")
    before = kernel.state()
    removals, problems = plan_removal(host.run)
    assert [] == problems
    assert before == kernel.state()
    stem = "iptables-nft, table"
    portals = '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES'
    assert {
        f"{stem} nat: rule {portals}",
        f"{stem} nat: chain KUBE-SERVICES with 2 rules",
        f"{stem} nat: chain KUBE-NODE-PORT with 0 rules",
        f"{stem} nat: chain KUBE-LOAD-BALANCER with 1 rule",
        f"{stem} nat: chain KUBE-MARK-MASQ with 0 rules",
    } == {line for removal in removals for line in removal.described if " nat: " in line}

    clean_up(host.run)
    after = kernel.state()
    gone = {
        (table, chain) for table in before for chain in before[table] if chain not in after[table]
    }
    assert gone == {(r.table, chain) for r in removals for chain, _ in r.chains}


def test_what_cannot_be_looked_at_is_told_with_the_right_that_is_missing(host):
    def denied(argv, input=None, timeout_seconds=60.0):
        if argv[0].endswith("-save"):
            return Finished(4, b"", b"Permission denied (you must be root)")
        return host.run(argv, input, timeout_seconds)

    removals, problems = plan_removal(denied)
    assert [] == removals
    rights = ["NET_ADMIN"] * 2 + ["NET_ADMIN and NET_RAW"] * 2
    assert rights == [p.partition("capabilit")[2].split(" ", 1)[1] for p in problems]


@pytest.mark.parametrize(
    ("variant", "missing"), [("nft", "NET_ADMIN"), ("legacy", "NET_ADMIN and NET_RAW")]
)
def test_a_right_that_is_missing_is_named(host, variant, missing):
    def denied(argv, input=None, timeout_seconds=60.0):
        if "--version" in argv:
            return host.run(argv, input, timeout_seconds)
        return Finished(4, b"", b"can't initialize: Permission denied (you must be root)")

    with pytest.raises(Unsupported, match=f"takes root with capabilit.* {missing}"):
        detect_variant(variant, denied)


def without_raw_socket(host):
    """The legacy tools as they are without NET_RAW."""

    def run(argv, input=None, timeout_seconds=60.0):
        if "legacy" in argv[0] and "--version" not in argv:
            return Finished(3, b"", b"Permission denied (you must be root)")
        return host.run(argv, input, timeout_seconds)

    return run


def without_lock(host):
    """The legacy tools as they are with a read-only /run: to save is all they can."""

    def run(argv, input=None, timeout_seconds=60.0):
        if "legacy" in argv[0] and "--version" not in argv and not argv[0].endswith("-save"):
            text = b"Fatal: can't open lock file /run/xtables.lock: Read-only file system"
            return Finished(4, b"", text)
        return host.run(argv, input, timeout_seconds)

    return run


@pytest.mark.parametrize(
    ("walls", "chain", "expected"),
    [
        pytest.param(
            *(without_raw_socket, "KUBE-IPTABLES-HINT"),
            ("legacy tables exist", "Permission denied", "NET_RAW"),
            id="hint, no raw socket",
        ),
        pytest.param(
            *(without_raw_socket, "THEIRS"),
            ("legacy tables exist", "Permission denied", "NET_RAW"),
            id="neither, no raw socket",
        ),
        pytest.param(
            *(without_lock, "KUBE-KUBELET-CANARY"),
            ("hint chain is in the legacy", "Read-only file system", "takes the node's /run/xtab"),
            id="hint, no lock",
        ),
        pytest.param(
            *(without_lock, CANARY),
            ("service proxy are in the legacy", "Read-only file system", "the node's /run/xtab"),
            id="service proxy, no lock",
        ),
    ],
)
def test_legacy_tables_that_are_or_may_be_in_use_end_a_start_that_cannot_use_them(
    host, walls, chain, expected
):
    host.fill("iptables-legacy", "mangle", chain)
    with pytest.raises(Unsupported) as raised:
        detect_variant("auto", walls(host))
    said = str(raised.value)
    assert list(expected) == [part for part in expected if part in said], said


@pytest.mark.parametrize("walls", [without_raw_socket, without_lock])
def test_the_hint_in_nft_is_followed_and_legacy_tables_out_of_reach_are_told(host, walls, capsys):
    host.fill("iptables-nft", "mangle", "KUBE-IPTABLES-HINT")
    verdict = detect_variant("auto", walls(host))
    assert (Variant.NFT, "kubelet's hint chain is in the nft tables") == (
        verdict.variant,
        verdict.reason,
    )
    assert "legacy tables exist and are not looked after" in capsys.readouterr().out


@pytest.mark.parametrize("walls", [without_raw_socket, without_lock])
def test_legacy_tools_that_do_not_work_are_nothing_where_there_are_no_legacy_tables(
    monkeypatch, walls
):
    host = Host(monkeypatch, legacy_tables=())
    verdict = detect_variant("auto", walls(host))
    assert (Variant.NFT, "no rules in other tables, and nft works") == (
        verdict.variant,
        verdict.reason,
    )


def test_legacy_tables_in_which_nobody_leaves_a_mark_need_not_be_read(monkeypatch, capsys):
    host = Host(monkeypatch, legacy_tables=("nat", "filter"))
    verdict = detect_variant("auto", without_raw_socket(host))
    assert Variant.NFT is verdict.variant
    assert "nft works, and legacy does not" in verdict.reason
    assert "not looked after" in capsys.readouterr().out


def test_legacy_tables_without_legacy_tools_are_told_in_the_reason(monkeypatch, capsys):
    names = ["iptables-legacy", "ip6tables-legacy", "iptables", "ip6tables"]
    verdict = detect_variant("auto", Host(monkeypatch, missing=names).run)
    assert Variant.NFT is verdict.variant
    assert "nft works, and legacy does not" in verdict.reason
    assert "iptables-legacy: not found" in verdict.reason
    assert "not looked after" in capsys.readouterr().out


def test_the_hint_in_nft_tables_that_do_not_work_ends_the_start(host):
    host.fill("iptables-nft", "mangle", "KUBE-IPTABLES-HINT")

    def without_nat(argv, input=None, timeout_seconds=60.0):
        if argv[0].endswith("-nft") and "nat" in argv:
            return Finished(3, b"", b"can't initialize iptables table `nat': Table does not exist")
        return host.run(argv, input, timeout_seconds)

    with pytest.raises(Unsupported, match=r"nft does not work: .* Table does not exist"):
        detect_variant("auto", without_nat)


@pytest.mark.parametrize(
    ("config", "families", "expected"),
    [
        pytest.param(Config(), list(Family), [LOCALNET], id="node ports on localhost"),
        pytest.param(Config(), [Family.IPV6], [], id="not in IPv6"),
        pytest.param(Config(localhost_nodeports=False), list(Family), [], id="switched off"),
        pytest.param(
            Config(nodeport_addresses=("primary",)), list(Family), [], id="primary excludes it"
        ),
    ],
)
def test_kernel_parameters(config, families, expected):
    assert expected == parameters(config, families)


def test_cleaning_up_twice_finds_nothing(host):
    host.fill("iptables-nft", "nat", "KUBE-SERVICES")
    clean_up(host.run)
    assert ({}, []) == clean_up(host.run)


def test_a_table_that_cannot_be_cleaned_is_named(host):
    host.fill("iptables-nft", "nat", "KUBE-SERVICES", "THEIRS")
    host.kernels["iptables-nft"].run(
        ["iptables-nft", "-t", "nat", "-A", "THEIRS", "-j", "KUBE-SERVICES"], None, 5
    )
    _, problems = clean_up(host.run)
    assert len(problems) == 1
    assert "iptables-nft-restore, table nat" in problems[0]


def test_cleaning_up_without_the_lock_says_what_to_mount(host):
    host.fill("iptables-legacy", "nat", "KUBE-SERVICES")
    removed, [problem] = clean_up(without_lock(host))
    assert {} == removed
    assert "iptables-legacy-restore, table nat" in problem
    assert "it takes the node's /run/xtables.lock, mounted writable" in problem
