"""What iptables is on this node: which variant, which families, and taking all of ours out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import structlog
from msgspec import Struct
from msgspec.structs import replace

from pykubeproxy.config import Config
from pykubeproxy.errors import HostError, Unsupported
from pykubeproxy.host.exec import Finished, Input, NotStarted, Result, run
from pykubeproxy.host.sysctls import Parameter
from pykubeproxy.iptables.kernel import QUICK_SECONDS, Runner, describe, read_tables
from pykubeproxy.iptables.names import CANARY, is_own_chain
from pykubeproxy.iptables.tools import (
    SavedTable,
    Tools,
    jumps_of,
    supports_random_fully,
)
from pykubeproxy.iptables.variant import (
    HINT_CHAINS,
    Evidence,
    Variant,
    Verdict,
    choose_variant,
    decides,
)
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.context import localhost_serves_nodeports

__all__ = [
    "Removal",
    "Removed",
    "available_tools",
    "clean_up",
    "detect_variant",
    "find_nftables_leftovers",
    "parameters",
    "plan_removal",
    "random_fully",
    "remembering",
    "remove_nftables_leftovers",
]

log = structlog.get_logger(__name__)

LEGACY_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
"""Which legacy tables exist. Looked at first, because merely listing one brings it into being."""


def remembering(runner: Runner = run) -> Runner:
    """Return a runner that answers the same question once: for the moment of the start.

    A program that gets input, which may change something, is run each time.
    """
    answers: dict[tuple[str, ...], Result] = {}

    def ask(argv: Sequence[str], input: Input | None, timeout_seconds: float) -> Result:
        if input is not None:
            return runner(argv, input, timeout_seconds)
        question = tuple(argv)
        if question not in answers:
            answers[question] = runner(argv, None, timeout_seconds)
        return answers[question]

    return ask


def detect_variant(override: str = "auto", runner: Runner = run) -> Verdict:
    """Find out which iptables this node uses. Each program takes time, so none runs for nothing.

    Raises:
        Unsupported: the variant named by *override* does not work, or none does, or the one that
            this node uses, or may use.
    """
    if override != "auto":
        asked = _evidence(Variant(override), runner, list(Family)[:1])
        return choose_variant(override, nft=asked, legacy=asked)
    nft = _evidence(Variant.NFT, runner)
    legacy = Evidence(problem="not used on this node so far", absent=True)
    if not nft.works or any(map(_legacy_tables, Family)):
        legacy = _evidence(Variant.LEGACY, runner)
    if nft.works and legacy.works and not decides(nft, legacy):
        # Takes seconds on a large node.
        nft = replace(nft, rules=_rule_count(Variant.NFT, runner))
        legacy = replace(legacy, rules=_rule_count(Variant.LEGACY, runner))
    verdict = choose_variant(override, nft, legacy)
    if verdict.variant is Variant.NFT and not legacy.works and not legacy.absent:
        log.warning("legacy tables exist and are not looked after", reason=legacy.problem)
    return verdict


def available_tools(variant: Variant, runner: Runner = run) -> dict[Family, Tools]:
    """Return the tools of each IP family this node supports, IPv4 first.

    Raises:
        Unsupported: neither family works.
    """
    found: dict[Family, Tools] = {}
    problems = []
    for family in Family:
        if family is Family.IPV6 and not _has_ipv6():
            problems.append("IPv6 is switched off on this node")
            continue
        tools = _tools(family, variant, runner)
        problem = _nat_problem(tools, runner)
        if problem:
            problems.append(problem)
        else:
            found[family] = tools
    if not found:
        raise Unsupported(
            f"no usable IP family: {'; '.join(problems)}; "
            "run as root (NET_ADMIN), with the nat table in the kernel"
        )
    for problem in problems:
        log.info("IP family left out", reason=problem)
    return found


def parameters(config: Config, families: Iterable[Family]) -> list[Parameter]:
    """Return the kernel parameters of iptables mode. Never set back.

    They do not depend on the node's addresses: ``primary`` never includes localhost, whether its
    address is known already or not.
    """
    if any(localhost_serves_nodeports(config, family) for family in families):
        return [Parameter("net/ipv4/conf/all/route_localnet", 1)]
    return []


def random_fully(tools: Tools, runner: Runner = run) -> bool:
    """Tell whether MASQUERADE can randomize ports fully with these tools, of whatever family."""
    asked = replace(tools, family=Family.IPV4)
    result = runner(asked.version(), None, QUICK_SECONDS)
    return isinstance(result, Finished) and supports_random_fully(
        result.stdout.decode(errors="replace")
    )


NFTABLES_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""What kube-proxy's nftables mode makes."""


class Removed(dict[str, int]):
    """How many chains were removed, by program name."""


class Removal(Struct, frozen=True):
    """What is to be taken out of one table: jumps and chains of ours, of any mode."""

    tools: Tools
    table: str
    jumps: tuple[str, ...]
    chains: tuple[tuple[str, int], ...]  # with the number of rules in each

    @property
    def lines(self) -> list[str]:
        """Restore lines: first jumps, then contents, then chains."""
        return [
            *("-D" + jump[2:] for jump in self.jumps),
            *(f":{chain} - [0:0]" for chain, _ in self.chains),
            *(f"-X {chain}" for chain, _ in self.chains),
        ]

    @property
    def described(self) -> Iterator[str]:
        """A line for a reader on each thing that goes."""
        where = f"{self.tools.program}, table {self.table}:"
        for jump in self.jumps:
            yield f"{where} rule {jump}"
        for chain, rules in self.chains:
            yield f"{where} chain {chain} with {rules} rule{'' if rules == 1 else 's'}"


def plan_removal(runner: Runner = run) -> tuple[list[Removal], list[str]]:
    """Look for every chain and jump of ours, of any mode, in both variants and both families.

    What kubelet shares (KUBE-FIREWALL and its jumps) and what is kubelet's own is not among them.
    Changes nothing. Returns what was found, and a sentence for what could not be looked at.
    """
    found: list[Removal] = []
    problems = []
    looked = False
    for variant in Variant:
        for family in Family:
            if variant is Variant.LEGACY and not _legacy_tables(family):
                continue
            tools = _tools(family, variant, runner)
            if isinstance(runner(tools.version(), None, QUICK_SECONDS), NotStarted):
                continue
            looked = True
            try:
                tables = read_tables(tools, runner)
            except HostError as error:
                problems.append(f"{error}; {_privileges(variant)}")
                continue
            removals = (_removal(tools, name, table) for name, table in tables.items())
            found += [removal for removal in removals if removal.jumps or removal.chains]
    if not looked:
        problems.append(
            "no iptables program is installed, so nothing could be looked at; "
            "install the iptables package"
        )
    return found, problems


def clean_up(runner: Runner = run) -> tuple[Removed, list[str]]:
    """Remove what `plan_removal` finds.

    No rule of ours matches a set afterwards, so the sets of ipvs mode can go. Returns what was
    removed and a sentence for each table that could not be cleaned.
    """
    removed = Removed()
    removals, problems = plan_removal(runner)
    for removal in removals:
        text = "\n".join([f"*{removal.table}", *removal.lines, "COMMIT", ""]).encode()
        argv = removal.tools.restore()
        result = runner(argv, text, QUICK_SECONDS + len(removal.lines) * 0.1)
        if isinstance(result, Finished) and result.exit_status == 0:
            removed[argv[0]] = removed.get(argv[0], 0) + len(removal.chains)
        else:
            told = _told(removal.tools, result)
            problems.append(f"{argv[0]}, table {removal.table}: {told}")
    return removed, problems


def find_nftables_leftovers(runner: Runner = run) -> list[tuple[str, str]]:
    """Return family and name of the nftables tables that kube-proxy's nftables mode left.

    A node without the nft program has none.
    """
    found = []
    for family, name in NFTABLES_TABLES:
        # By name: "list tables" reads every rule of every table, 15 s for 10 000 Services.
        listing = runner(["nft", "--terse", "list", "table", family, name], None, QUICK_SECONDS)
        if isinstance(listing, Finished) and listing.exit_status == 0:
            found.append((family, name))
    return found


def remove_nftables_leftovers(runner: Runner = run) -> tuple[list[str], list[str]]:
    """Remove those tables; return what they are called, and a sentence for each that stays.

    Left in place they would go on redirecting by what the cluster was then.
    """
    removed, problems = [], []
    for family, name in find_nftables_leftovers(runner):
        result = runner(["nft", "delete", "table", family, name], None, QUICK_SECONDS)
        if isinstance(result, Finished) and result.exit_status == 0:
            removed.append(f"table {family} {name}")
        else:
            problems.append(f"nft, table {family} {name}: {describe(result)}")
    return removed, problems


def _removal(tools: Tools, name: str, table: SavedTable) -> Removal:
    ours = [chain for chain in table.chains if is_own_chain(name, chain)]
    jumps = tuple(line for _, line in jumps_of(table, ours))
    return Removal(tools, name, jumps, tuple((c, len(table.chains[c])) for c in ours))


def _told(tools: Tools, result: Result) -> str:
    """How *result* is a failure, and which right is missing if it is for want of one."""
    said = describe(result)
    lacking = _lacking(tools.variant, said)
    return f"{said} ({lacking})" if lacking else said


def _lacking(variant: Variant, said: str) -> str:
    """Which right is missing, by what the tools of *variant* said; empty if it is not that."""
    if "open lock file" in said:
        return "it takes the node's /run/xtables.lock, mounted writable"
    denied = any(words in said for words in ("Permission denied", "not permitted"))
    return _privileges(variant) if denied else ""


def _privileges(variant: Variant) -> str:
    """What it takes to use the tools of *variant*."""
    if variant is Variant.NFT:
        return "it takes root with capability NET_ADMIN"
    # It asks the kernel by way of a raw socket.
    return "it takes root with capabilities NET_ADMIN and NET_RAW"


def _evidence(
    variant: Variant, runner: Runner, families: Sequence[Family] = tuple(Family)
) -> Evidence:
    found: set[str] = set()
    unread = []
    for family in families:
        tools = _tools(family, variant, runner)
        if variant is Variant.NFT:
            found |= _marks_by_name(tools, runner)
            continue
        try:
            found |= _marks_in_mangle(tools, runner)
        except HostError as error:
            log.debug("table not read", reason=str(error))
            lacking = _lacking(variant, str(error))
            if lacking and "mangle" in _legacy_tables(family):
                unread.append(f"{error} ({lacking})")
    served, hinted = CANARY in found, not found.isdisjoint(HINT_CHAINS)
    problem = _problem(variant, runner, in_use=hinted or served)
    return Evidence(not problem, hinted, served, problem=problem, unread="; ".join(unread))


_MARKS = (CANARY, *HINT_CHAINS)
"""The chains in mangle that tell who uses a variant."""


def _marks_by_name(tools: Tools, runner: Runner) -> set[str]:
    # For a listing of one table the nf_tables tools read the rules of all (2 s for 10 000
    # Services).
    return {
        mark for mark in _MARKS if _is_listed(tools.iptables("-S", mark, "-t", "mangle"), runner)
    }


def _marks_in_mangle(tools: Tools, runner: Runner) -> set[str]:
    """Raises HostError where the table cannot be read."""
    table = read_tables(tools, runner, "mangle").get("mangle")
    return {mark for mark in _MARKS if table is not None and mark in table.chains}


def _is_listed(argv: Sequence[str], runner: Runner) -> bool:
    result = runner(argv, None, QUICK_SECONDS)
    return isinstance(result, Finished) and result.exit_status == 0


def _rule_count(variant: Variant, runner: Runner) -> int:
    count = 0
    for family in Family:
        result = runner(_tools(family, variant, runner).save(), None, QUICK_SECONDS)
        if isinstance(result, Finished) and result.exit_status == 0:
            count += result.stdout.count(b"\n-A ")
    return count


def _problem(variant: Variant, runner: Runner, *, in_use: bool) -> str:
    """Why neither family of *variant* works; empty if one does.

    *in_use*: somebody's rules are there, so that a look is enough to know that it works.
    """
    works = _nat_problem if in_use or variant is Variant.LEGACY else _refusal
    problems = []
    for family in Family:
        problem = works(_tools(family, variant, runner), runner)
        if not problem:
            return ""
        problems.append(problem)
    return "; ".join(problems)


def _refusal(tools: Tools, runner: Runner) -> str:
    """Why a chain cannot be made, tried by one that is gone in the same commit.

    The nf_tables tools list tables without complaint on a kernel whose nf_tables lack NAT.
    """
    text = f"*nat\n:{_TRIAL} - [0:0]\n-X {_TRIAL}\nCOMMIT\n".encode()
    result = runner(tools.restore(), text, QUICK_SECONDS)
    if isinstance(result, Finished) and result.exit_status == 0:
        return ""
    return f"{tools.restore()[0]}: {_told(tools, result)}"


_TRIAL = "KUBE-VARIANT-TRIAL"


def _tools(family: Family, variant: Variant, runner: Runner) -> Tools:
    """Prefer the programs that name their variant; a plain ``iptables`` must be of *variant*.

    Those of IPv4 are asked for both families: they are one program.
    """
    suffixed = Tools(Family.IPV4, variant)
    if not isinstance(runner(suffixed.version(), None, QUICK_SECONDS), Finished):
        plain = Tools(Family.IPV4, variant, suffixed=False)
        result = runner(plain.version(), None, QUICK_SECONDS)
        if isinstance(result, Finished) and _is_variant(result.stdout, variant):
            return Tools(family, variant, suffixed=False)
    return Tools(family, variant)


def _is_variant(version: bytes, variant: Variant) -> bool:
    # Up to 1.6 there was only one, and it did not say which.
    return (b"nf_tables" in version) == (variant is Variant.NFT)


def _nat_problem(tools: Tools, runner: Runner) -> str:
    argv = tools.iptables("-S", "POSTROUTING", "-t", "nat")
    result = runner(argv, None, QUICK_SECONDS)
    if isinstance(result, Finished) and result.exit_status == 0:
        return ""
    return f"{' '.join(argv)}: {_told(tools, result)}"


def _has_ipv6() -> bool:
    if not Path("/proc/net/if_inet6").exists():
        return False
    try:
        return Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text().strip() != "1"
    except OSError:
        return True


def _legacy_tables(family: Family) -> list[str]:
    try:
        return LEGACY_TABLES[family].read_text().split()
    except OSError:
        return []
