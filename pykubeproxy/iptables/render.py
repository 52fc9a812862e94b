"""Changes become iptables-restore input, cut into transactions.

A transaction is what the kernel commits at once: one table of one restore run. The input is
meant for ``--noflush``, where a chain line creates or empties that chain and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice

from pykubeproxy.iptables.index import Edit
from pykubeproxy.iptables.names import (
    CANARY_TABLES,
    IPVS_CHAINS,
    LOAD_BALANCER,
    MARK_MASQ,
    NODE_PORT,
    NODEPORTS,
    PROXY_FIREWALL,
    SOURCE_RANGES_FIREWALL,
    index_depth,
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
from pykubeproxy.iptables.prefixtree import Line
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import BASE, Change, Transaction, is_leftover

__all__ = ["TABLES", "Script", "batch_size", "leaf_chains", "plan", "scripts"]

IptablesChange = Change[Key, Rules]
IptablesTransaction = Transaction[Key, Rules]

LINES_IN_CHUNK = 500

TABLES = ("filter", "nat", "mangle")

assert set(CANARY_TABLES) == set(TABLES)

_LEVELS = {"KUBE-FW-": 4, "KUBE-EXT": 3, "KUBE-SVC": 2, "KUBE-SVL": 2, "KUBE-SEP": 1}
"""Of chains of Services: each only jumps to lower ones, and all of them to KUBE-MARK-MASQ (0)."""
_INDEX_LEVEL = 200
"""Of the top of an index; the deeper a chain of it, the lower."""
_MIDDLE_LEVEL = 201
"""Of chains that fixed chains jump to, and that may jump to those of Services."""
_TOP_LEVEL = 202
_RULE_LEVEL = 203
"""Of rules in chains that are not ours: the way in goes before where it leads to."""

_MIDDLE = (NODEPORTS, NODE_PORT, LOAD_BALANCER, SOURCE_RANGES_FIREWALL)
_IPVS_FIREWALL = frozenset(Chain("filter", name) for name in IPVS_CHAINS["filter"])


def batch_size(chains: int) -> int:
    """How many chains to write in one run of the nf_tables tools, of so many in all.

    A run costs the square of its chains (each line's chain is searched in a list of those in the
    run), and about the number of chains in the table (the kernel visits all when it commits):
    measured for 60 000, 600 is best, within a tenth from 400 to 900. Both together are least at
    the square root of all.
    """
    return max(300, round(2.5 * math.sqrt(chains)))


def leaf_chains(changes: Iterable[IptablesChange]) -> int:
    """How many chains come that only chains of their own owner lead to."""
    return sum(map(_leaves_put, changes))


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
    if limit is not None and leaf_chains(changes) > limit:
        cut = [_without_leaves(c) for c in changes]
        rest = [remainder for _, remainder in cut]
        before = list(_batches((leaves for leaves, _ in cut), limit))
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
    of = _by_table(changes)
    filters = of["filter"]
    sooner = [_only_puts(c) for c in filters]
    later = [_only_drops(c) for c in filters]
    if firewall_later:
        sooner = [_part(c, lambda key: not _is_firewall(key), drops=False) for c in filters]
        later = [_part(c, _is_firewall, drops=True) for c in filters]
    yield from _transaction("filter", sooner)
    yield from _transaction("nat", of["nat"])
    yield from _transaction("mangle", of["mangle"])
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


class Script:
    """Input for one run of iptables-restore.

    *edits* say how those shared chains of the table change that are trees, by chain.
    """

    def __init__(
        self, transaction: IptablesTransaction, edits: Mapping[str, Edit] | None = None
    ) -> None:
        self.lines = 0
        """How many lines there are, how many of them set a rule, and how many name a chain.

        Of the last `chunks`, once all of them were taken.
        """
        self.rules = 0
        self.chains = 0
        self.bytes = 0
        self._transaction = transaction
        self._edits = edits or {}

    def chunks(self) -> Iterator[bytes]:
        """The text in pieces: for 10 000 Services at once it has 18 MB, made while it is read."""
        self.lines = self.rules = self.chains = self.bytes = 0
        lines = (line for _, line in self._lines())
        while piece := list(islice(lines, LINES_IN_CHUNK)):
            self.lines += len(piece)
            self.rules += sum(line.startswith(("-A", "-I")) for line in piece)
            self.chains += sum(line.startswith(":") for line in piece)
            piece.append("")
            chunk = "\n".join(piece).encode()
            self.bytes += len(chunk)
            yield chunk

    def text(self) -> bytes:
        """All of it at once."""
        return b"".join(self.chunks())

    @property
    def most_lines(self) -> int:
        """No fewer than there are lines, without making them."""
        changes = self._transaction.changes
        parts = [part for c in changes for part in (c.put, c.drop, c.old)]
        objects = sum(len(part) for part in parts)
        rules = sum(len(rules) for part in parts for rules in part.values())
        chains = [rules for edit in self._edits.values() for rules in edit.filled.values()]
        return 2 * objects + rules + sum(2 + len(rules) for rules in chains) + 2

    def owner_of_line(self, number: int) -> tuple[ServiceKey | None, str]:
        """Return who caused line *number* (from 1), and its text."""
        return next(islice(self._lines(), number - 1, None), (None, ""))

    def _lines(self) -> Iterator[Line]:
        """All lines in an order that never jumps to, or removes, what is not ready for it.

        Chains of Services come in descending order of name. The legacy tool inserts each into a
        sorted list of all, the nf_tables tool each line's chain into one of those in this run,
        and both search from the front: 230 000 lines take the former 1.1 s instead of 2.4 s.
        """
        changes = self._transaction.changes
        fixed = list(self._fixed_chains())
        many = sorted(self._service_chains(), key=_name, reverse=True)
        dropped = sorted(self._dropped_chains(), key=_name, reverse=True)
        yield None, f"*{self._transaction.scope}"
        for name, owner, _ in (*fixed, *merge(many, dropped, key=_name, reverse=True)):
            yield owner, f":{name} - [0:0]"
        for name, _, lines in (*fixed, *many):
            for owner, rule in lines:
                yield owner, f"-A {name} {rule}"
        for change in changes:
            yield from self._tail(change)
        emptied = {name for name, *_ in fixed}
        for change in changes:
            yield from self._rules_in_lists(change, emptied)
        for name, owner, _ in dropped:
            yield owner, f"-X {name}"
        yield None, "COMMIT"

    def _fixed_chains(self) -> Iterator[_Block]:
        for name, edit in self._edits.items():
            if name in edit.filled:
                yield name, BASE, edit.filled[name]
        for change in self._transaction.changes:
            for key, rules in change.put.items():
                match key:
                    case SharedChain(_, name) | Presence(_, name) if name not in self._edits:
                        yield name, change.owner, ()
                    case Chain(_, name) if not is_service_chain(name):
                        yield name, change.owner, [(change.owner, rule) for rule in rules]

    def _service_chains(self) -> Iterator[_Block]:
        for shared, edit in self._edits.items():
            for name, lines in edit.filled.items():
                if name != shared:
                    yield name, None, lines
        for change in self._transaction.changes:
            for key, rules in change.put.items():
                if isinstance(key, Chain) and is_service_chain(key.name):
                    yield key.name, change.owner, [(change.owner, rule) for rule in rules]

    def _dropped_chains(self) -> Iterator[_Block]:
        for edit in self._edits.values():
            for name in edit.gone:
                yield name, None, ()
        for change in self._transaction.changes:
            for key in change.drop:
                if isinstance(key, Chain):
                    yield key.name, change.owner, ()

    def _tail(self, change: IptablesChange) -> Iterator[Line]:
        for key in change.put:
            if isinstance(key, TailRule) and key.chain not in self._edits:
                yield change.owner, f"-A {key.chain} {key.rule}"

    def _rules_in_lists(self, change: IptablesChange, emptied: Collection[str]) -> Iterator[Line]:
        """New rules at the head, so that the tail stays last; then the ones they replace go."""
        for key, rules in change.put.items():
            match key:
                case DispatchRule(_, chain, _) | Jump(_, chain, _) if chain not in self._edits:
                    for rule in reversed(rules):
                        yield change.owner, f"-I {chain} {rule}"
        for gone in (change.old, change.drop):
            for key, rules in gone.items():
                match key:
                    case DispatchRule(_, chain, _) | TailRule(_, chain, _) if (
                        chain in emptied or chain in self._edits
                    ):
                        pass
                    case DispatchRule(_, chain, _) | TailRule(_, chain, _) | Jump(_, chain, _):
                        for rule in rules:
                            yield change.owner, f"-D {chain} {rule}"


_Block = tuple[str, ServiceKey | None, Collection[Line]]
"""A chain, who wants it, and its rules."""


def _name(block: _Block) -> str:
    return block[0]


def scripts(
    transaction: IptablesTransaction, edits: Mapping[str, Edit], limit: int | None
) -> Iterator[Script]:
    """The runs that *transaction* takes: one, which commits all of it at once.

    Where more than *limit* chains of trees are new, these are filled before, in batches: nothing
    leads to them yet. Not where the chains that they lead to come in the same transaction.
    """
    new = sum(len(edit.new) for edit in edits.values())
    if limit is not None and new > limit and not leaf_chains(transaction.changes):
        for shared, edit in edits.items():
            # By name they come from the bottom up.
            names = sorted(edit.new, reverse=True)
            for start in range(0, len(names), limit):
                filled = {name: edit.filled[name] for name in names[start : start + limit]}
                part = Edit(filled, frozenset(filled), frozenset())
                yield Script(Transaction(transaction.scope, ()), {shared: part})
        edits = {shared: _without_new(edit) for shared, edit in edits.items()}
    yield Script(transaction, edits)


def _without_new(edit: Edit) -> Edit:
    filled = {name: lines for name, lines in edit.filled.items() if name not in edit.new}
    return Edit(filled, frozenset(), edit.gone)


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
    depth = index_depth(key.name)
    if depth is not None:
        return _INDEX_LEVEL - depth
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


def _without_leaves(change: IptablesChange) -> tuple[IptablesChange, IptablesChange]:
    """Return the leaf chains put by *change*, and all else of it."""
    leaves = {k: v for k, v in change.put.items() if _is_leaf(k)}
    rest = {k: v for k, v in change.put.items() if k not in leaves}
    return (
        Change(change.owner, leaves, {}, {k: v for k, v in change.old.items() if k in leaves}),
        Change(
            change.owner, rest, change.drop, {k: change.old[k] for k in change.old if k in rest}
        ),
    )


def _by_table(changes: Iterable[IptablesChange]) -> dict[str, list[IptablesChange]]:
    """What there is to do in each table, in the same order."""
    found: dict[str, list[IptablesChange]] = {table: [] for table in TABLES}
    for change in changes:
        tables = {key.table for part in (change.put, change.drop) for key in part}
        for table in tables:
            # Most owners are in one table only: nothing is copied then.
            found[table].append(change if len(tables) == 1 else _of_table(change, table))
    return found


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
    for table, some in _by_table(changes).items():
        batch: list[IptablesChange] = []
        count = 0
        for change in some:
            for piece in _pieces(change, chains_per_transaction):
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
