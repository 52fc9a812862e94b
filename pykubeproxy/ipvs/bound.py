"""Effects on the addresses of the dummy device: bind, unbind, read back."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import structlog

from pykubeproxy.errors import HostError
from pykubeproxy.host.addresses import is_link_local
from pykubeproxy.host.netlink import Netlink, Request, reason
from pykubeproxy.ipvs.messages import decode_address, del_address, get_addresses, new_address
from pykubeproxy.ipvs.objects import BoundAddress, Key, Present, Value
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Outcome, Partly, Transaction, Unknown

__all__ = ["BoundAddresses", "BoundObservation"]

log = structlog.get_logger(__name__)


class BoundObservation:
    def __init__(self, addresses: frozenset[str]) -> None:
        self._addresses = addresses

    def holds(self, key: BoundAddress, value: Value) -> bool:
        return key.address in self._addresses

    def strays(self, wanted: set[Key]) -> dict[Key, Value]:
        keys = map(BoundAddress, self._addresses)
        return {key: Present() for key in keys if key not in wanted}


class BoundAddresses:
    """One family's addresses on the device. *channel* is of rtnetlink.

    *device* returns the interface index, and makes the device where there is none (raises
    HostError). `expects` may be called from any thread.
    """

    def __init__(self, family: Family, channel: Netlink, device: Callable[[], int]) -> None:
        self._family = family
        self._channel = channel
        self._device = device
        self._index = 0
        self._bound: set[str] = set()
        self._lengths: Mapping[str, Sequence[int]] = {}  # of prefixes, as they were found
        self._touched: set[str] = set()

    def expects(self, address: str, present: bool) -> bool:
        """Tell whether a notice that *address* is there, or gone, is about our own doing."""
        return (address in self._bound) is present

    def observe(self) -> BoundObservation:
        """Raises HostError."""
        self._index = self._device()
        try:
            self._lengths = self._listed(self._channel)
        except OSError as error:
            raise HostError(f"listing bound addresses: {reason(error)}") from error
        self._bound = set(self._lengths)
        return BoundObservation(frozenset(self._bound))

    def look(self, channel: Netlink | None = None) -> Callable[[], bool]:
        """Prepare for a look at the addresses, made by calling the result, on any thread.

        It tells whether they are those that were written; what is written meanwhile does not
        count. Notices tell sooner, but not of what came and went within a moment. On another
        thread it needs a *channel* of its own.
        """
        expected = frozenset(self._bound)
        touched = self._touched = set()

        def surprises() -> set[str]:
            return (self._listed(channel or self._channel).keys() ^ expected) - touched

        def intact() -> bool:
            try:
                found = surprises()
                # A dump may pass over one while others change: what is seen twice counts.
                return not (found and found & surprises())
            except OSError as error:
                log.warning("bound addresses not looked at", reason=reason(error))
                return True

        return intact

    def _listed(self, channel: Netlink) -> dict[str, list[int]]:
        """The prefix lengths of each address on the device. Raises OSError."""
        found: dict[str, list[int]] = defaultdict(list)
        for data, start, end in channel.dump(*get_addresses(self._family)):
            one = decode_address(data, start, end)
            # The kernel itself gives link-local addresses to devices that are up.
            if one and one.index == self._index and not is_link_local(one.address):
                found[one.address].append(one.prefix_length)
        return found

    def _others(self, addresses: Iterable[str]) -> Iterator[Request]:
        """Remove *addresses* that somebody bound with a prefix length of their own."""
        for address in addresses:
            for length in self._lengths.get(address, ()):
                if length not in (32, 128):
                    yield del_address(self._index, address, length)

    def apply(self, transaction: Transaction[Key, Value]) -> Outcome:
        steps = [
            (change.owner, key, put)
            for change in transaction.changes
            for put, keys in ((True, change.put), (False, change.drop))
            for key in keys
            if isinstance(key, BoundAddress)
        ]
        # Noted before it is done: the notice may be read before the answer.
        self._touched.update(key.address for _, key, _ in steps)
        self._bound.update(key.address for _, key, put in steps if put)
        self._bound.difference_update(key.address for _, key, put in steps if not put)
        try:
            self._index = self._device()
            requests = [_request(self._index, key.address, put) for _, key, put in steps]
            # Last, so that what is refused of them tells nothing about the steps.
            requests += self._others(key.address for _, key, put in steps if not put)
            errors = self._channel.batch(requests)
        except (OSError, HostError) as error:
            return Unknown(f"binding addresses: {reason(error)}")
        refused: dict[ServiceKey, str] = {}
        failed: set[tuple[ServiceKey, Key]] = set()
        for (owner, key, put), code in zip(steps, errors, strict=False):
            if code == errno.ENODEV and put:
                return Unknown("the dummy device is gone, somebody deleted it")
            if code in (0, errno.EEXIST if put else errno.EADDRNOTAVAIL, errno.ENODEV):
                continue
            refused.setdefault(owner, f"{key}: {reason(OSError(code, os.strerror(code)))}")
            failed.add((owner, key))
            (self._bound.discard if put else self._bound.add)(key.address)
        size = sum(len(body) for _, _, body in requests)
        applied = Applied(len(requests), size, len(requests))
        if not refused:
            return applied
        return Partly(transaction.without(failed), refused, applied)


def _request(index: int, address: str, put: bool) -> Request:
    return (new_address if put else del_address)(index, address)
