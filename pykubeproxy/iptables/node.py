"""What iptables is on this node: which variant, which families, and taking all of ours out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import structlog

from pykubeproxy.errors import HostError, Unsupported
from pykubeproxy.host.exec import Finished, NotStarted, run
from pykubeproxy.iptables.kernel import QUICK_SECONDS, Runner, describe, read_tables
from pykubeproxy.iptables.names import BASE_CHAINS, is_service_chain
from pykubeproxy.iptables.tools import (
    SavedTable,
    Tools,
    jumps_of,
    supports_random_fully,
)
from pykubeproxy.iptables.variant import HINT_CHAINS, Evidence, Variant, Verdict, choose_variant
from pykubeproxy.model.kinds import Family

__all__ = [
    "Removed",
    "available_tools",
    "clean_up",
    "detect_variant",
    "random_fully",
    "remove_nftables_leftovers",
]

log = structlog.get_logger(__name__)

LEGACY_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}
"""Which legacy tables exist. Looked at first, because merely listing one brings it into being."""


def detect_variant(override: str = "auto", runner: Runner = run) -> Verdict:
    """Find out which iptables this node uses.

    Raises:
        Unsupported: the variant named by *override* does not work, or none does.
    """
    nft = _evidence(Variant.NFT, runner)
    wanted = override == Variant.LEGACY or not nft.works or any(map(_legacy_tables, Family))
    legacy = Evidence(problem="not used on this node so far")
    if wanted:
        legacy = _evidence(Variant.LEGACY, runner)
    return choose_variant(override, nft, legacy)


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


def random_fully(tools: Tools, runner: Runner = run) -> bool:
    """Tell whether MASQUERADE can randomize ports fully with these tools."""
    result = runner(tools.version(), None, QUICK_SECONDS)
    return isinstance(result, Finished) and supports_random_fully(
        result.stdout.decode(errors="replace")
    )


NFTABLES_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
"""What kube-proxy's nftables mode makes."""


class Removed(dict[str, int]):
    """How many chains were removed, by program name."""


def clean_up(runner: Runner = run) -> tuple[Removed, list[str]]:
    """Remove every chain and jump of ours, of any mode, from both variants and both families.

    No rule of ours matches a set afterwards, so the sets of ipvs mode can go. What kubelet shares
    (KUBE-FIREWALL and its jumps) and what is kubelet's own stays. Returns what was removed and a
    sentence for each table that could not be cleaned.
    """
    removed, problems = Removed(), []
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
                problems.append(f"{error}; run as root (NET_ADMIN)")
                continue
            for name, table in tables.items():
                lines = list(_removal(name, table))
                if not lines:
                    continue
                text = "\n".join([f"*{name}", *lines, "COMMIT", ""]).encode()
                result = runner(tools.restore(), text, QUICK_SECONDS + len(lines) * 0.1)
                program = tools.restore()[0]
                if isinstance(result, Finished) and result.exit_status == 0:
                    count = sum(1 for line in lines if line.startswith("-X"))
                    removed[program] = removed.get(program, 0) + count
                else:
                    problems.append(f"{program}, table {name}: {describe(result)}")
    if not looked:
        problems.append("no iptables program is installed, so nothing could be looked at")
    return removed, problems


def remove_nftables_leftovers(runner: Runner = run) -> list[str]:
    """Remove the nftables tables that kube-proxy's nftables mode leaves; return their names.

    Left in place they would go on redirecting by what the cluster was then. A node without the
    nft program has none.
    """
    removed = []
    for family, name in NFTABLES_TABLES:
        # By name: "list tables" reads every rule of every table, 15 s for 10 000 Services.
        listing = runner(["nft", "--terse", "list", "table", family, name], None, QUICK_SECONDS)
        if not (isinstance(listing, Finished) and listing.exit_status == 0):
            continue
        result = runner(["nft", "delete", "table", family, name], None, QUICK_SECONDS)
        if isinstance(result, Finished) and result.exit_status == 0:
            removed.append(f"table {family} {name}")
        else:
            log.warning("nftables table not removed", table=name, reason=describe(result))
    return removed


def _removal(name: str, table: SavedTable) -> Iterator[str]:
    """Restore lines that take our part out of one table: jumps, then contents, then chains."""
    base = BASE_CHAINS.get(name, ())
    ours = [c for c in table.chains if c in base or (name == "nat" and is_service_chain(c))]
    for _, line in jumps_of(table, ours):
        yield "-D" + line[2:]
    for chain in ours:
        yield f":{chain} - [0:0]"
    for chain in ours:
        yield f"-X {chain}"


def _evidence(variant: Variant, runner: Runner) -> Evidence:
    works, hinted, rules, problems = False, False, 0, []
    for family in Family:
        tools = _tools(family, variant, runner)
        problem = _nat_problem(tools, runner)
        if problem:
            problems.append(problem)
            continue
        works = True
        try:
            mangle = read_tables(tools, runner, "mangle").get("mangle")
        except HostError as error:
            problems.append(str(error))
            continue
        hinted = hinted or (mangle is not None and any(h in mangle.chains for h in HINT_CHAINS))
    if works and not hinted:
        for family in Family:
            result = runner(_tools(family, variant, runner).save(), None, QUICK_SECONDS)
            if isinstance(result, Finished) and result.exit_status == 0:
                text = result.stdout.decode(errors="replace")
                rules += sum(1 for line in text.splitlines() if line.startswith("-A "))
    if works and not hinted and not rules and variant is Variant.NFT:
        refusals = [_refusal(_tools(family, variant, runner), runner) for family in Family]
        works = not all(refusals)
        problems += [refusal for refusal in refusals if refusal]
    return Evidence(works, hinted, rules, "; ".join(problems))


def _refusal(tools: Tools, runner: Runner) -> str:
    """Why a chain cannot be made, tried by one that is gone in the same commit.

    The nf_tables tools list tables without complaint on a kernel whose nf_tables lack NAT.
    """
    text = f"*nat\n:{_TRIAL} - [0:0]\n-X {_TRIAL}\nCOMMIT\n".encode()
    result = runner(tools.restore(), text, QUICK_SECONDS)
    if isinstance(result, Finished) and result.exit_status == 0:
        return ""
    return f"{tools.restore()[0]}: {describe(result)}"


_TRIAL = "KUBE-VARIANT-TRIAL"


def _tools(family: Family, variant: Variant, runner: Runner) -> Tools:
    """Prefer the programs that name their variant; a plain ``iptables`` must be of *variant*."""
    suffixed = Tools(family, variant)
    if isinstance(runner(suffixed.version(), None, QUICK_SECONDS), Finished):
        return suffixed
    plain = Tools(family, variant, suffixed=False)
    result = runner(plain.version(), None, QUICK_SECONDS)
    if isinstance(result, Finished) and _is_variant(result.stdout, variant):
        return plain
    return suffixed


def _is_variant(version: bytes, variant: Variant) -> bool:
    # Up to 1.6 there was only one, and it did not say which.
    return (b"nf_tables" in version) == (variant is Variant.NFT)


def _nat_problem(tools: Tools, runner: Runner) -> str:
    argv = tools.iptables("-S", "POSTROUTING", "-t", "nat")
    result = runner(argv, None, QUICK_SECONDS)
    if isinstance(result, Finished) and result.exit_status == 0:
        return ""
    return f"{' '.join(argv)}: {describe(result)}"


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
