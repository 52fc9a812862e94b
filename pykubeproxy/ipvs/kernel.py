"""The dataplane of ipvs mode: virtual servers, sets and addresses here, rules by the iptables one.

Each kind of object is written by a part of its own; this joins them to what the sync core asks
for, and notices when somebody else interferes: addresses by the kernel's notices, the rest by
looking.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.host.netlink import Netlink
from pykubeproxy.iptables import objects as xtables
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.observation import XtablesObservation
from pykubeproxy.ipvs.bound import BoundAddresses, BoundObservation
from pykubeproxy.ipvs.objects import BoundAddress, IPSet, Key, Real, SetEntry, Value, Virtual
from pykubeproxy.ipvs.render import ADDRESSES, SERVERS, SETS, plan, rules_in
from pykubeproxy.ipvs.servers import Servers, ServersObservation
from pykubeproxy.ipvs.sets import Sets, SetsObservation
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Transaction

__all__ = ["IpvsDataplane", "IpvsObservation"]

log = structlog.get_logger(__name__)


class IpvsObservation:
    """The `pykubeproxy.sync.outcome.Observation` of one read-back."""

    def __init__(
        self,
        servers: ServersObservation,
        sets: SetsObservation,
        addresses: BoundObservation,
        rules: XtablesObservation,
        held_rules: dict[xtables.Key, xtables.Rules],
    ) -> None:
        """*held_rules* is filled with what `holds` says yes to."""
        self._servers = servers
        self._sets = sets
        self._addresses = addresses
        self._rules = rules
        self._held_rules = held_rules

    def holds(self, key: Key, value: Value) -> bool:
        match key:
            case Virtual() | Real():
                return self._servers.holds(key, value)
            case IPSet() | SetEntry():
                return self._sets.holds(key, value)
            case BoundAddress():
                return self._addresses.holds(key, value)
            case _:
                assert isinstance(value, tuple)
                held = self._rules.holds(key, value)
                if held:
                    self._held_rules[key] = value
                return held

    def strays(self, wanted: Iterable[Mapping[Key, Value]]) -> dict[Key, Value]:
        wanted = list(wanted)
        keys = {key for objects in wanted for key in objects}
        found: dict[Key, Value] = {}
        for part in (self._servers, self._sets, self._addresses):
            found.update(part.strays(keys))
        rules = self._rules.strays(list(map(rules_in, wanted)))
        return found | dict(rules.items())


class IpvsDataplane:
    """The `pykubeproxy.sync.outcome.Dataplane` for one family. Not safe for several threads.

    *suspect* is called when something of ours seems to be gone; the next `intact` says so. Looking
    at everything takes a second on a large node, so *beside* may do it on another thread, one job
    after the other: nothing that is written waits for it. *lookers* are sockets of its own for
    that: generic netlink, nfnetlink, rtnetlink.
    """

    def __init__(
        self,
        servers: Servers,
        sets: Sets,
        addresses: BoundAddresses,
        rules: XtablesDataplane,
        suspect: Callable[[], None],
        beside: Callable[[Callable[[], None]], None] = lambda job: job(),
        lookers: tuple[Netlink | None, Netlink | None, Netlink | None] = (None, None, None),
    ) -> None:
        self._servers = servers
        self._sets = sets
        self._addresses = addresses
        self._rules = rules
        self._tell = suspect
        self._lookers = lookers
        self._beside = beside
        self._suspicious = self._looking = False
        self._written: dict[xtables.Key, xtables.Rules] = {}

    # --- reading ---

    def observe(self) -> IpvsObservation:
        self._suspicious = False
        self._written = {}
        return IpvsObservation(
            self._servers.observe(),
            self._sets.observe(),
            self._addresses.observe(),
            self._rules.observe(),
            self._written,
        )

    def learn(
        self, applied: Sequence[Mapping[Key, Value]], *, anew: bool = True
    ) -> Callable[[], bool | None]:
        """Have the rules learnt; the rest is looked at by `intact`."""
        return self._rules.learn([dict(self._written)], anew=anew)

    def intact(self) -> bool:
        """Tell whether nothing seems to be gone, and have everything looked at."""
        if self._suspicious:
            return False
        if self._looking:
            return True
        self._looking = True
        generic, netfilter, route = self._lookers
        parts = (
            self._servers.look(generic),
            self._sets.look(netfilter),
            self._addresses.look(route),
            self._look_at_rules(),
        )

        def look() -> None:
            try:
                if not all(intact() for intact in parts):
                    self._suspect()
            finally:
                self._looking = False

        self._beside(look)
        return not self._suspicious

    def _look_at_rules(self) -> Callable[[], bool]:
        learn = self._rules.learn([dict(self._written)])

        def intact() -> bool:
            try:
                return learn() is not False
            except HostError as error:
                log.warning("rules not looked at", reason=str(error))
                return True

        return intact

    # --- writing ---

    def plan(self, changes: Sequence[Change[Key, Value]]) -> list[Transaction[Key, Value]]:
        return plan(changes, self._rules.plan)

    def apply(self, transaction: Transaction[Key, Any]) -> Outcome:
        writers: dict[str, Callable[[Transaction[Key, Any]], Outcome]] = {
            SETS: self._sets.apply,
            SERVERS: self._servers.apply,
            ADDRESSES: self._addresses.apply,
        }
        write = writers.get(transaction.scope)
        return self._apply_rules(transaction) if write is None else write(transaction)

    def accepts(self, scopes: Collection[str]) -> str | None:
        """Ask of the rules alone: netlink refuses message by message."""
        return self._rules.accepts(scopes)

    def _apply_rules(self, transaction: Transaction[Any, Any]) -> Outcome:
        outcome = self._rules.apply(transaction)
        if isinstance(outcome, Applied):
            for change in transaction.changes:
                self._written.update(change.put)
                for key in change.drop:
                    self._written.pop(key, None)
        return outcome

    # --- looking after ---

    def tend(self, now: float) -> float | None:
        return self._servers.tend(now, self._suspect)

    def address_noticed(self, address: str, present: bool) -> None:
        """An address came to the device, or went; from any thread."""
        if not self._addresses.expects(address, present):
            self._suspect()

    def _suspect(self) -> None:
        self._suspicious = True
        self._tell()
