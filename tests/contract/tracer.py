"""Follows a packet through the rules of a fake kernel and reports everything that may become of it.

A random choice splits the walk, with the probabilities multiplied, so a test can check both who
may answer and how even the choice is. The path is the kernel's: nat PREROUTING or OUTPUT, routing,
filter INPUT or FORWARD or OUTPUT, nat POSTROUTING; what the node sends to itself passes OUTPUT,
POSTROUTING and then INPUT. Only packets that begin a connection (ctstate NEW) are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from tests.fakes.xtables import Condition, Rule, Table, Xtables

__all__ = ["At", "Fate", "Netfilter", "Outcome", "Sent", "merged", "trace", "walk_hook"]


class Sent(Struct, frozen=True):
    """A first packet. *interface* is where it comes in; empty: the node sends it itself."""

    source: str
    target: str
    port: int
    protocol: str = "tcp"
    interface: str = ""
    mark: int = 0
    dnat: bool = False
    masqueraded: bool = False
    remembers: frozenset[str] = frozenset()  # lists of "recent" that now hold the source
    virtual: tuple[str, str, int] | None = None  # whom IPVS translated it for

    @property
    def destination(self) -> str:
        host = f"[{self.target}]" if ":" in self.target else self.target
        return f"{host}:{self.port}"


class Fate(NamedTuple):
    """What becomes of a packet: ``forward`` (was DNATed), ``reject``, ``drop`` or ``untouched``."""

    kind: str
    destination: str = ""
    masqueraded: bool = False


class Outcome(Struct, frozen=True):
    fate: Fate
    probability: float
    remembers: frozenset[str] = frozenset()


def _no_sets(name: str, directions: Sequence[str], packet: Sent) -> bool:
    raise NotImplementedError(f"the tracer cannot tell whether ipset {name} matches")


class Netfilter(NamedTuple):
    """What rules ask. ``in_set`` takes the name of an ipset, the directions, and the packet."""

    tables: Mapping[str, Table]
    is_local: Callable[[str], bool]
    recent: Mapping[str, frozenset[str]]
    in_set: Callable[[str, Sequence[str], Sent], bool] = _no_sets


class At(NamedTuple):
    """A state of the walk."""

    packet: Sent
    probability: float


def trace(
    kernel: Xtables,
    packet: Sent,
    local_addresses: frozenset[str],
    recent: Mapping[str, frozenset[str]] | None = None,
) -> list[Outcome]:
    """Return everything that may become of *packet*, with probabilities that add up to 1.

    *recent* says which sources the affinity lists hold.
    """

    def is_local(address: str) -> bool:
        return address in local_addresses or ip_address(address).is_loopback

    world = Netfilter({n: kernel.table(n) for n in ("nat", "filter")}, is_local, recent or {})
    own = packet.interface == ""

    def fates() -> Iterator[tuple[Fate, At]]:
        for verdict, at in walk_hook(world, "nat", "OUTPUT" if own else "PREROUTING", packet):
            if verdict != "accept":
                yield Fate(verdict), at
            else:
                yield from _after_nat(world, at, own=own)

    return merged(fates())


def merged(ends: Iterable[tuple[Fate, At]]) -> list[Outcome]:
    """Add up the probabilities of equal ends."""
    shares: dict[tuple[Fate, frozenset[str]], float] = {}
    for fate, at in ends:
        key = (fate, at.packet.remembers)
        shares[key] = shares.get(key, 0.0) + at.probability
    return [Outcome(fate, probability, memory) for (fate, memory), probability in shares.items()]


def _after_nat(world: Netfilter, start: At, *, own: bool) -> Iterator[tuple[Fate, At]]:
    local = world.is_local(start.packet.target)
    if own:
        # What the node sends to itself comes in again, over lo.
        hooks = [("filter", "OUTPUT"), ("nat", "POSTROUTING")]
        hooks += [("filter", "INPUT")] if local else []
    elif local:
        hooks = [("filter", "INPUT")]
    else:
        hooks = [("filter", "FORWARD"), ("nat", "POSTROUTING")]
    states = [start]
    for table, chain in hooks:
        passed = []
        for at in states:
            packet = at.packet
            if own:
                packet = replace(packet, interface="lo" if chain == "INPUT" else "")
            for verdict, after in walk_hook(world, table, chain, packet, at.probability):
                if verdict == "accept":
                    passed.append(after)
                else:
                    yield Fate(verdict), after
        states = passed
    for at in states:
        if at.packet.dnat:
            yield Fate("forward", at.packet.destination, at.packet.masqueraded), at
        else:
            yield Fate("untouched"), at


def walk_hook(
    world: Netfilter, table: str, chain: str, packet: Sent, probability: float = 1.0
) -> Iterator[tuple[str, At]]:
    rules = world.tables[table]
    for verdict, at in _walk(world, rules, chain, At(packet, probability)):
        if verdict == "return":
            yield rules.policies[chain].lower(), at
        else:
            yield verdict, at


def _walk(world: Netfilter, table: Table, chain: str, start: At) -> Iterator[tuple[str, At]]:
    """Yield ``accept``, ``drop`` or ``reject``, or ``return`` at the end of the chain."""
    states = [start]
    for rule in table.chains[chain]:
        going_on: list[At] = []
        for at in states:
            yes, chance = _matches(world, rule, at.packet)
            if not yes:
                going_on.append(at)
                continue
            if chance < 1.0:
                going_on.append(at._replace(probability=at.probability * (1 - chance)))
            hit = At(_remember(rule, at.packet), at.probability * chance)
            for verdict, after in _target(world, table, rule, hit):
                if verdict == "continue":
                    going_on.append(after)
                else:
                    yield verdict, after
        states = going_on
        if not states:
            return
    for at in states:
        yield "return", at


def _target(world: Netfilter, table: Table, rule: Rule, at: At) -> Iterator[tuple[str, At]]:
    match rule.target:
        case "":
            yield "continue", at
        case "ACCEPT" | "DROP" | "RETURN" | "REJECT":
            yield rule.target.lower(), at
        case "MARK":
            ((_, text),) = rule.target_options
            value, mask = (int(part, 0) for part in text.split("/"))
            mark = (at.packet.mark & ~mask) ^ value
            yield "continue", at._replace(packet=replace(at.packet, mark=mark))
        case "MASQUERADE":
            yield "accept", at._replace(packet=replace(at.packet, masqueraded=True))
        case "DNAT":
            ((_, text),) = rule.target_options
            host, port = _host_and_port(text)
            packet = replace(at.packet, target=host, port=port or at.packet.port, dnat=True)
            yield "accept", at._replace(packet=packet)
        case chain:
            for verdict, after in _walk(world, table, chain, at):
                yield ("continue" if verdict == "return" else verdict), after


def _host_and_port(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]:")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    else:
        host, port = text, ""
    return host, int(port or 0)


def _remember(rule: Rule, packet: Sent) -> Sent:
    options = {condition.option: condition.value for condition in rule.conditions}
    if "--set" not in options:
        return packet
    return replace(packet, remembers=packet.remembers | {options["--name"]})


def _matches(world: Netfilter, rule: Rule, packet: Sent) -> tuple[bool, float]:
    chance = 1.0
    names = {c.option: c.value for c in rule.conditions if c.match == "recent"}
    for condition in rule.conditions:
        if condition.option == "--probability":
            chance *= float(condition.value)
        elif condition.match == "recent":
            if condition.option in ("--rcheck", "--update"):
                held = packet.source in world.recent.get(names["--name"], frozenset())
                if held == condition.negated:
                    return False, 0.0
        elif _holds(world, condition, packet) == condition.negated:
            return False, 0.0
    return chance > 0.0, chance


def _holds(world: Netfilter, condition: Condition, packet: Sent) -> bool:
    value = condition.value
    match condition.option:
        case "-s":
            return ip_address(packet.source) in ip_network(value)
        case "-d":
            return ip_address(packet.target) in ip_network(value)
        case "-p":
            return packet.protocol == value
        case "-i":
            return _is_interface(packet.interface, value)
        case "--dport":
            low, _, high = value.partition(":")
            return int(low) <= packet.port <= int(high or low)
        case "--ctstate":
            states = value.split(",")
            return "NEW" in states or (packet.dnat and "DNAT" in states)
        case "--mark":
            mark, _, mask = value.partition("/")
            return packet.mark & int(mask or "0xffffffff", 0) == int(mark, 0)
        case "--dst-type":
            return world.is_local(packet.target) == (value == "LOCAL")
        case "--src-type":
            return world.is_local(packet.source) == (value == "LOCAL")
        case "--match-set":
            name, _, directions = value.partition(" ")
            return world.in_set(name, directions.split(","), packet)
        case "--physdev-is-in":
            return False  # there is no bridge
        case "--vproto":
            return packet.virtual is not None and packet.virtual[0] == _NAMES.get(value)
        case "--vaddr":
            return packet.virtual is not None and packet.virtual[1] == value
        case "--vport":
            return packet.virtual is not None and packet.virtual[2] == int(value)
        case "--comment" | "--nfacct-name" | "--mode":
            return True
        case other:
            raise NotImplementedError(f"the tracer cannot tell whether {other} {value} holds")


_NAMES = {"6": "tcp", "17": "udp", "132": "sctp"}


def _is_interface(name: str, pattern: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern
