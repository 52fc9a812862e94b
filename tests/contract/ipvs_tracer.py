"""Follows a packet through a fake kernel in ipvs mode: rules, sets, and virtual servers.

The hooks are those of net/netfilter/ipvs/ip_vs_core.c with ``net.ipv4.vs.conntrack`` on. What
comes from elsewhere is translated at the end of LOCAL_IN, behind filter INPUT; what the node sends
itself at LOCAL_OUT, behind nat OUTPUT and before filter OUTPUT. Either then leaves by way of
filter OUTPUT and nat POSTROUTING, never by FORWARD, with its own source and its new destination.
Where the real server is an address of the node, the packet stays where it is and is delivered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network

from msgspec.structs import replace

from tests.contract.tracer import At, Fate, Netfilter, Outcome, Sent, merged, walk_hook
from tests.fakes.ipvs import DEVICE, FakeKernel, ServiceId
from tests.fakes.ipvs_servers import Service
from tests.fakes.ipvs_sets import FakeSet
from tests.fakes.xtables import Xtables

__all__ = ["trace"]

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_BITMAP_PROTOCOLS = ("tcp", "udp")
"""ip_set_get_ip_port knows no others."""


def trace(
    kernel: FakeKernel,
    rules: Xtables,
    packet: Sent,
    node_addresses: frozenset[str],
    persistent: Mapping[str, frozenset[str]] | None = None,
) -> list[Outcome]:
    """Return everything that may become of *packet*, with probabilities that add up to 1.

    *node_addresses* are those on other interfaces than the dummy device. *persistent* says which
    clients stay with which real server, by the names of `Outcome.remembers`.
    """
    here = node_addresses | set(kernel.bound(DEVICE))

    def is_local(address: str) -> bool:
        return address in here or ip_address(address).is_loopback

    def in_set(name: str, directions: Sequence[str], sent: Sent) -> bool:
        return _contains(kernel.sets_table.sets[name], directions, sent)

    tables = {name: rules.table(name) for name in ("nat", "filter")}
    netfilter = Netfilter(tables, is_local, persistent or {}, in_set)
    path = _own if packet.interface == "" else _from_elsewhere
    return merged(path(netfilter, kernel, packet))


def _from_elsewhere(
    netfilter: Netfilter, kernel: FakeKernel, packet: Sent
) -> Iterator[tuple[Fate, At]]:
    for verdict, at in walk_hook(netfilter, "nat", "PREROUTING", packet):
        if verdict != "accept":
            yield Fate(verdict), at
        elif netfilter.is_local(at.packet.target):
            yield from _delivered(netfilter, kernel, at)
        else:
            hooks = (("filter", "FORWARD"), ("nat", "POSTROUTING"))
            for verdict_, after in _through(netfilter, hooks, at):
                yield (Fate("untouched" if verdict_ == "accept" else verdict_), after)


def _delivered(netfilter: Netfilter, kernel: FakeKernel, at: At) -> Iterator[tuple[Fate, At]]:
    for verdict, inside in _through(netfilter, (("filter", "INPUT"),), at):
        service = _service(kernel, inside.packet)
        if verdict != "accept":
            yield Fate(verdict), inside
        elif service is None:
            yield Fate("untouched"), inside
        else:
            for chosen in _scheduled(netfilter, service, inside):
                if chosen is None:
                    yield Fate("reject"), inside
                elif netfilter.is_local(chosen.packet.target):
                    yield _forwarded(chosen.packet), chosen
                else:
                    yield from _sent_on(netfilter, chosen)


def _own(netfilter: Netfilter, kernel: FakeKernel, packet: Sent) -> Iterator[tuple[Fate, At]]:
    for verdict, at in walk_hook(netfilter, "nat", "OUTPUT", packet):
        if verdict != "accept":
            yield Fate(verdict), at
            continue
        service = _service(kernel, at.packet)
        if service is not None:
            for chosen in _scheduled(netfilter, service, at):
                if chosen is None:
                    yield Fate("reject"), at
                else:
                    yield from _sent_on(netfilter, chosen)
            continue
        hooks = [("filter", "OUTPUT"), ("nat", "POSTROUTING")]
        for verdict_, sent in _through(netfilter, hooks, at):
            if verdict_ != "accept":
                yield Fate(verdict_), sent
            elif netfilter.is_local(sent.packet.target):
                # It comes in again, over lo.
                back = sent._replace(packet=replace(sent.packet, interface="lo"))
                yield from _delivered(netfilter, kernel, back)
            else:
                yield Fate("untouched"), sent


def _sent_on(netfilter: Netfilter, at: At) -> Iterator[tuple[Fate, At]]:
    """What is left to pass for a packet that IPVS has translated."""
    here = netfilter.is_local(at.packet.target)
    out = at._replace(packet=replace(at.packet, interface=""))
    for verdict, sent in _through(netfilter, (("filter", "OUTPUT"), ("nat", "POSTROUTING")), out):
        if verdict != "accept":
            yield Fate(verdict), sent
        elif not here:
            yield _forwarded(sent.packet), sent
        else:
            back = sent._replace(packet=replace(sent.packet, interface="lo"))
            for last, inside in _through(netfilter, (("filter", "INPUT"),), back):
                yield (_forwarded(inside.packet) if last == "accept" else Fate(last)), inside


def _forwarded(packet: Sent) -> Fate:
    return Fate("forward", packet.destination, packet.masqueraded)


def _through(
    netfilter: Netfilter, hooks: Sequence[tuple[str, str]], start: At
) -> Iterator[tuple[str, At]]:
    """Yield ``accept`` for what passed all *hooks*, else the verdict that stopped it."""
    (table, chain), *others = hooks
    for verdict, at in walk_hook(netfilter, table, chain, start.packet, start.probability):
        if verdict == "accept" and others:
            yield from _through(netfilter, others, at)
        else:
            yield verdict, at


# --- virtual servers -------------------------------------------------------------------------


def _service(kernel: FakeKernel, packet: Sent) -> tuple[ServiceId, Service] | None:
    if packet.virtual is not None:
        return None  # IPVS looks at a packet once
    key = ServiceId(packet.protocol.upper(), packet.target, packet.port)
    service = kernel.servers.services.get(key)
    return None if service is None else (key, service)


def _scheduled(
    netfilter: Netfilter, found: tuple[ServiceId, Service], at: At
) -> Iterator[At | None]:
    """Yield every choice; ``None`` if there is nobody to choose, which ICMP tells the client."""
    key, service = found
    usable = {place for place, dest in service.destinations.items() if dest.weight > 0}
    names = {place: f"{key} -> {place[0]} {place[1]}" for place in usable}
    if service.persistent:
        held = {p for p in usable if at.packet.source in netfilter.recent.get(names[p], ())}
        usable = held or usable
    if not usable:
        yield None
    for host, port in sorted(usable):
        remembers = at.packet.remembers
        if service.persistent:
            remembers |= {names[host, port]}
        packet = replace(
            at.packet,
            target=host,
            port=port,
            virtual=(at.packet.protocol, key.address, key.port),
            remembers=remembers,
        )
        yield At(packet, at.probability / len(usable))


# --- sets --------------------------------------------------------------------------------------


def _contains(found: FakeSet, directions: Sequence[str], packet: Sent) -> bool:
    parts = found.type.partition(":")[2].split(",")
    if len(directions) < len(parts):
        return False
    if parts == ["port"]:
        if packet.protocol not in _BITMAP_PROTOCOLS:
            return False
        return any(entry == (_port(directions[0], packet),) for entry in found.entries.values())
    asked: tuple[object, ...] = (_host(directions[0], packet),)
    if len(parts) > 1:
        asked = (*asked, _PROTOCOLS[packet.protocol], _port(directions[1], packet))
    other = _host(directions[2], packet) if len(parts) > 2 else ""
    for entry in found.entries.values():
        if entry[: len(asked)] != asked:
            continue
        if not other:
            return True
        net, length = entry[len(asked) :]
        if ip_address(other) in ip_network(f"{net}/{length}" if length is not None else str(net)):
            return True
    return False


def _host(direction: str, packet: Sent) -> str:
    return packet.source if direction == "src" else packet.target


def _port(direction: str, packet: Sent) -> int:
    if direction == "src":
        raise NotImplementedError("the tracer's packets have no source port")
    return packet.port
