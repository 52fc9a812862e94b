"""Effects on the addresses of the dummy device: bind, unbind, read back."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from pykubeproxy.errors import HostError
from pykubeproxy.host.netlink import Netlink, Request
from pykubeproxy.ipvs.messages import decode_address, del_address, get_addresses, new_address
from pykubeproxy.ipvs.objects import BoundAddress, Key, Present, Value
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.sync.outcome import Applied, Change, Outcome, Partly, Transaction, Unknown

__all__ = ["BoundAddresses", "BoundObservation"]


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
        self._bound: set[str] = set()

    def expects(self, address: str, present: bool) -> bool:
        """Tell whether a notice that *address* is there, or gone, is about our own doing."""
        return (address in self._bound) is present

    def observe(self) -> BoundObservation:
        """Raises HostError."""
        index = self._device()
        found = set()
        try:
            for data, start, end in self._channel.dump(*get_addresses(self._family)):
                address = decode_address(data, start, end)
                # The kernel itself gives link-local addresses to devices that are up.
                if address and address.index == index and address.scope == _GLOBAL:
                    found.add(address.address)
        except OSError as error:
            raise HostError(f"listing bound addresses: {_sentence(error)}") from error
        self._bound = found
        return BoundObservation(frozenset(found))

    def apply(self, transaction: Transaction[Key, Value]) -> Outcome:
        steps = [
            (change.owner, key, put)
            for change in transaction.changes
            for put, keys in ((True, change.put), (False, change.drop))
            for key in keys
            if isinstance(key, BoundAddress)
        ]
        # Noted before it is done: the notice may be read before the answer.
        self._bound.update(key.address for _, key, put in steps if put)
        self._bound.difference_update(key.address for _, key, put in steps if not put)
        try:
            index = self._device()
            requests = [_request(index, key.address, put) for _, key, put in steps]
            errors = self._channel.batch(requests)
        except (OSError, HostError) as error:
            return Unknown(f"binding addresses: {_sentence(error)}")
        refused: dict[ServiceKey, str] = {}
        failed: set[Key] = set()
        for (owner, key, put), code in zip(steps, errors, strict=True):
            if code == errno.ENODEV and put:
                return Unknown("the dummy device is gone, somebody deleted it")
            if code in (0, errno.EEXIST if put else errno.EADDRNOTAVAIL, errno.ENODEV):
                continue
            refused.setdefault(owner, f"{key}: {_sentence(OSError(code, os.strerror(code)))}")
            failed.add(key)
            (self._bound.discard if put else self._bound.add)(key.address)
        size = sum(len(body) for _, _, body in requests)
        applied = Applied(len(requests), size, len(requests))
        if not refused:
            return applied
        landed = tuple(
            Change(
                change.owner,
                {k: v for k, v in change.put.items() if k not in failed},
                {k: v for k, v in change.drop.items() if k not in failed},
                change.old,
            )
            for change in transaction.changes
        )
        return Partly(Transaction(transaction.scope, landed), refused, applied)


_GLOBAL = 0  # RT_SCOPE_UNIVERSE


def _request(index: int, address: str, put: bool) -> Request:
    return (new_address if put else del_address)(index, address)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.EPERM:
        return "not permitted; run as root (NET_ADMIN)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)
