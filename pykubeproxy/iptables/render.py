"""Changes become iptables-restore input, cut into transactions.

A transaction is what the kernel commits at once: one table of one restore run. The input is
meant for ``--noflush``, where a chain line creates or empties that chain and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from pykubeproxy.iptables.names import (
    CANARY_TABLES,
    IPVS_CHAINS,
    LOAD_BALANCER,
    MARK_MASQ,
    NODE_PORT,
    NODEPORTS,
    PROXY_FIREWALL,
    SOURCE_RANGES_FIREWALL,
    is_service_chain,
)
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Key,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import BASE, Change, Transaction, is_leftover

__all__ = ["owner_of_line", "plan", "restore_input"]

IptablesChange = Change[Key, Rules]
IptablesTransaction = Transaction[Key, Rules]

TABLES = ("filter", "nat", "mangle")

assert set(CANARY_TABLES) == set(TABLES)

_LEVELS = {"KUBE-FW-": 4, "KUBE-EXT": 3, "KUBE-SVC": 2, "KUBE-SVL": 2, "KUBE-SEP": 1}
"""Of chains of Services: each only jumps to lower ones, and all of them to KUBE-MARK-MASQ (0)."""
_MIDDLE_LEVEL = 5
"""Of chains that fixed chains jump to, and that may jump to those of Services."""
_TOP_LEVEL = 6
_RULE_LEVEL = 7
"""Of rules in chains that are not ours: the way in goes before where it leads to."""

_MIDDLE = (NODEPORTS, NODE_PORT, LOAD_BALANCER, SOURCE_RANGES_FIREWALL)
_IPVS_FIREWALL = frozenset(Chain("filter", name) for name in IPVS_CHAINS["filter"])


def plan(
    changes: Sequence[IptablesChange], chains_per_transaction: int | None
) -> list[IptablesTransaction]:
    """Cut *changes* into transactions, in the order they must land.

    Small changes become one transaction per table (see `_at_once`). Larger ones are staged:
    chains that only other chains of the same owner reach, in batches of about
    *chains_per_transaction* (``None``: no limit) cut between owners where possible; then
    everything that directs traffic to them, at once; then removals. Interrupted anywhere, that
    leaves unreachable chains, never a jump into the void. Batches because the nf_tables tools
    take time quadratic in the chains of one run. Chains that were left over come last and apart:
    where one cannot go (somebody's own chain jumps to it), no other change waits for it.

    When the mode changes, a packet always meets one mode or the other, never none:

    * iptables to ipvs. Virtual servers and their addresses are there before, and unused: nat
      rewrites the destination before IPVS looks. Filter gains the rules of ipvs mode, which
      concern only packets for an address of the dummy device, and those that nat does not
      redirect now are refused or dropped then as well. One commit of nat replaces KUBE-SERVICES
      and KUBE-POSTROUTING: from then on packets keep their destination, are the node's own, and
      IPVS takes them. Known connections keep their translation, which conntrack remembers. Only
      then go filter's KUBE-SERVICES and KUBE-EXTERNAL-SERVICES with the jumps to them (a refusal
      in both modes, or one that now comes too early), and the chains of Services, which nothing
      reaches since that commit.
    * ipvs to iptables. Chains of Services are filled first, and nothing reaches them.
      KUBE-MARK-MASQ among them, which says the same in both modes, but not KUBE-POSTROUTING,
      whose rule for pods that meet themselves is needed as long as IPVS has the packets. One
      commit of nat redirects everything at PREROUTING and OUTPUT, before IPVS. Filter's
      KUBE-PROXY-FIREWALL must wait for it: in iptables mode it drops whatever still has the
      address of a restricted load balancer, which in ipvs mode is all of its traffic (see
      `_at_once`). Chains that match sets go last, and the sets, virtual servers and addresses
      after them.
    """
    changes = sorted(changes, key=_precedence)
    before: list[IptablesTransaction] = []
    rest = changes
    limit = chains_per_transaction
    if limit is not None and sum(map(_leaves_put, changes)) > limit:
        rest = [_part(c, lambda key: not _is_leaf(key), drops=True) for c in rest]
        before = list(_batches([_part(c, _is_leaf, drops=False) for c in changes], limit))
    later = [c for c in changes if is_leftover(c.owner)]
    if limit is not None and sum(map(_chains_dropped, changes)) > limit:
        later = changes
    apart = {c.owner for c in later}
    rest = [_without_chain_drops(c) if c.owner in apart else c for c in rest]
    after = list(_batches([_only_chain_drops(c) for c in later], limit))
    return [*before, *_at_once(rest, _replaces_ipvs(changes)), *after]


def _at_once(
    changes: Sequence[IptablesChange], firewall_later: bool
) -> Iterator[IptablesTransaction]:
    """One transaction per table, and filter's removals after nat.

    A refusal in filter counts only for what nat did not redirect. So it comes before nat's jump
    goes, and goes after nat's jump came: no new connection finds neither of them. With
    *firewall_later* KUBE-PROXY-FIREWALL is rewritten after nat, together with the removal of the
    jumps that send it more than new connections.
    """
    filters = [_of_table(c, "filter") for c in changes]
    sooner = [_only_puts(c) for c in filters]
    later = [_only_drops(c) for c in filters]
    if firewall_later:
        sooner = [_part(c, lambda key: not _is_firewall(key), drops=False) for c in filters]
        later = [_part(c, _is_firewall, drops=True) for c in filters]
    yield from _transaction("filter", sooner)
    yield from _transaction("nat", [_of_table(c, "nat") for c in changes])
    yield from _transaction("mangle", [_of_table(c, "mangle") for c in changes])
    yield from _transaction("filter", later)


def _replaces_ipvs(changes: Iterable[IptablesChange]) -> bool:
    return any(not _IPVS_FIREWALL.isdisjoint(c.drop) for c in changes)


def _is_firewall(key: Key) -> bool:
    match key:
        case SharedChain(_, name) | Chain(_, name):
            return name == PROXY_FIREWALL
        case DispatchRule(_, chain, _):
            return chain == PROXY_FIREWALL
        case Jump(_, _, target):
            return target == PROXY_FIREWALL
        case TailRule() | Presence():
            return False


def _transaction(table: str, changes: Iterable[IptablesChange]) -> Iterator[IptablesTransaction]:
    some = tuple(c for c in changes if c.put or c.drop)
    if some:
        yield Transaction(table, some)


def restore_input(transaction: IptablesTransaction) -> tuple[bytes, int, int]:
    """Return the input for one run of iptables-restore, its lines, and how many set a rule."""
    lines = [line for _, line in _lines(transaction)]
    lines.append("")
    rules = sum(line.startswith(("-A", "-I")) for line in lines)
    return "\n".join(lines).encode(), len(lines) - 1, rules


def owner_of_line(transaction: IptablesTransaction, number: int) -> tuple[ServiceKey | None, str]:
    """Return who caused line *number* (from 1) of the input, and its text."""
    for at, (owner, line) in enumerate(_lines(transaction), start=1):
        if at == number:
            return owner, line
    return None, ""


def _lines(transaction: IptablesTransaction) -> Iterator[tuple[ServiceKey | None, str]]:
    """All input lines in an order that never jumps to, or removes, what is not ready for it."""
    changes = transaction.changes
    emptied: set[str] = set()
    yield None, f"*{transaction.scope}"
    for change in changes:
        for key in change.put:
            match key:
                case SharedChain(_, name):
                    emptied.add(name)
                    yield change.owner, f":{name} - [0:0]"
                case Chain(_, name) | Presence(_, name):
                    yield change.owner, f":{name} - [0:0]"
    for change in changes:
        for key in change.drop:
            if isinstance(key, Chain):
                yield change.owner, f":{key.name} - [0:0]"
    for change in changes:
        for key, rules in change.put.items():
            if isinstance(key, Chain):
                for rule in rules:
                    yield change.owner, f"-A {key.name} {rule}"
            elif isinstance(key, TailRule):
                yield change.owner, f"-A {key.chain} {key.rule}"
    for change in changes:
        yield from _rules_in_shared_chains(change, emptied)
    for change in changes:
        for key in change.drop:
            if isinstance(key, Chain):
                yield change.owner, f"-X {key.name}"
    yield None, "COMMIT"


def _rules_in_shared_chains(
    change: IptablesChange, emptied: set[str]
) -> Iterator[tuple[ServiceKey, str]]:
    """New rules at the head, so that the tail stays last; then the ones they replace go."""
    for key, rules in change.put.items():
        match key:
            case DispatchRule(_, chain, _) | Jump(_, chain, _):
                for rule in reversed(rules):
                    yield change.owner, f"-I {chain} {rule}"
    for gone in (change.old, change.drop):
        for key, rules in gone.items():
            match key:
                case DispatchRule(_, chain, _) | TailRule(_, chain, _) if chain in emptied:
                    pass
                case DispatchRule(_, chain, _) | TailRule(_, chain, _) | Jump(_, chain, _):
                    for rule in rules:
                        yield change.owner, f"-D {chain} {rule}"


# --- cutting ---


def _precedence(change: IptablesChange) -> tuple[bool, int]:
    """The base first, and leftovers from the top down: each may still jump to one below."""
    if not is_leftover(change.owner):
        return change.owner != BASE, 0
    return True, -max(map(_level, change.drop), default=0)


def _is_leaf(key: Key) -> bool:
    """Only rules of ours lead to it, and it leads nowhere but to its like."""
    return (
        isinstance(key, Chain)
        and key.table == "nat"
        and (key.name == MARK_MASQ or is_service_chain(key.name))
    )


def _level(key: Key) -> int:
    if not isinstance(key, Chain):
        return _RULE_LEVEL
    if is_service_chain(key.name):
        return _LEVELS[key.name[:8]]
    if key.name == MARK_MASQ:
        return 0
    return _MIDDLE_LEVEL if key.name in _MIDDLE else _TOP_LEVEL


def _leaves_put(change: IptablesChange) -> int:
    return sum(1 for key in change.put if _is_leaf(key))


def _chains_dropped(change: IptablesChange) -> int:
    return sum(1 for key in change.drop if isinstance(key, Chain))


def _part(change: IptablesChange, chosen: Callable[[Key], bool], *, drops: bool) -> IptablesChange:
    put = {k: v for k, v in change.put.items() if chosen(k)}
    old = {k: v for k, v in change.old.items() if k in put}
    return Change(change.owner, put, change.drop if drops else {}, old)


def _only_puts(change: IptablesChange) -> IptablesChange:
    return Change(change.owner, change.put, {}, change.old)


def _only_drops(change: IptablesChange) -> IptablesChange:
    return Change(change.owner, {}, change.drop, {})


def _only_chain_drops(change: IptablesChange) -> IptablesChange:
    return Change(
        change.owner, {}, {k: v for k, v in change.drop.items() if isinstance(k, Chain)}, {}
    )


def _without_chain_drops(change: IptablesChange) -> IptablesChange:
    drop: dict[Key, Rules] = {k: v for k, v in change.drop.items() if not isinstance(k, Chain)}
    return Change(change.owner, change.put, drop, change.old)


def _of_table(change: IptablesChange, table: str) -> IptablesChange:
    return Change(
        change.owner,
        {k: v for k, v in change.put.items() if k.table == table},
        {k: v for k, v in change.drop.items() if k.table == table},
        {k: v for k, v in change.old.items() if k.table == table},
    )


def _batches(
    changes: Iterable[IptablesChange], chains_per_transaction: int | None
) -> Iterator[IptablesTransaction]:
    """Group per table, cutting between owners, or inside one that is larger than a batch."""
    for table in TABLES:
        batch: list[IptablesChange] = []
        count = 0
        for change in changes:
            for piece in _pieces(_of_table(change, table), chains_per_transaction):
                size = len(piece.put) + len(piece.drop)
                if batch and _exceeds(count + size, chains_per_transaction):
                    yield Transaction(table, tuple(batch))
                    batch, count = [], 0
                batch.append(piece)
                count += size
        if batch:
            yield Transaction(table, tuple(batch))


def _exceeds(count: int, most: int | None) -> bool:
    return most is not None and count > most


def _pieces(change: IptablesChange, most: int | None) -> Iterator[IptablesChange]:
    """Cut an owner with more than *most* chains, so that no piece jumps to a later one.

    Chains are put from the endpoints up, and dropped from the top down.
    """
    if most is None or len(change.put) + len(change.drop) <= most:
        if change.put or change.drop:
            yield change
        return
    puts = sorted(change.put, key=_level)
    for start in range(0, len(puts), most):
        part = puts[start : start + most]
        yield Change(
            change.owner,
            {k: change.put[k] for k in part},
            {},
            {k: change.old[k] for k in part if k in change.old},
        )
    drops = sorted(change.drop, key=_level, reverse=True)
    for start in range(0, len(drops), most):
        part = drops[start : start + most]
        yield Change(change.owner, {}, {k: change.drop[k] for k in part}, {})
