"""The newest value of every object, which Services changed since the last look, what came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct, field

from pykubeproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectKey,
    Service,
    ServiceCIDR,
    ServiceKey,
    WireObject,
)

__all__ = ["Arrivals", "Store", "Touched"]


class Arrivals(Struct):
    """What came, to be counted: each object of a listing is one event, each that it ends another.

    ``slices`` counts, by address type, the events about slices that name a Service, and
    ``changed_slices`` those of them that said something new.
    """

    services: int = 0
    slices: Counter[str] = field(default_factory=Counter)
    changed_slices: Counter[str] = field(default_factory=Counter)


class Touched(Struct, frozen=True):
    """What changed since the last `Store.take`.

    ``services``: every Service whose own object or slices changed; ``by_slices``: those with a
    changed slice, along with its address type; ``node`` and ``service_cidrs``: whether those
    objects changed. ``triggers`` are the times, as written, at which the changed slices of an
    address type say that their cause was; those of a Service that lost a slice are forgotten, as
    in kube-proxy.
    """

    services: frozenset[ServiceKey] = frozenset()
    by_slices: frozenset[tuple[ServiceKey, str]] = frozenset()
    node: bool = False
    service_cidrs: bool = False
    triggers: Mapping[str, tuple[str, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self.services or self.node or self.service_cidrs)


class Store:
    """Objects by identity; not safe for several threads, the sync thread owns it.

    A value equal to the one held touches nothing, so re-delivered objects and metadata edits
    cost one comparison.
    """

    def __init__(self, began: str = "") -> None:
        """*began*: RFC 3339 in UTC, without a zone; causes before that second are not noted."""
        self._began = began
        self.changes = 0
        """How many objects of any kind were new, changed or gone, ever."""
        self.complete: set[Kind] = set()
        self.node: Node | None = None
        self._services: dict[ServiceKey, Service] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        # A tuple, because nearly every Service has one slice: a dict of one takes 290 bytes, and
        # with 10,000 endpoints there are a hundred slices, which are copied in a microsecond.
        self._slices_of: dict[ServiceKey, tuple[EndpointSlice, ...]] = {}
        self._cidrs: dict[ObjectKey, ServiceCIDR] = {}
        self._touched: set[ServiceKey] = set()
        self._changed_services: set[ServiceKey] = set()
        self._by_slices: set[tuple[ServiceKey, str]] = set()
        self._triggers: dict[tuple[ServiceKey, str], list[str]] = {}
        self._arrivals = Arrivals()
        self._node_touched = False
        self._cidrs_touched = False

    # --- reading ---

    def service(self, key: ServiceKey) -> Service | None:
        return self._services.get(key)

    def slices(self, key: ServiceKey) -> Iterable[EndpointSlice]:
        return self._slices_of.get(key, ())

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        return self._services

    @property
    def service_cidrs(self) -> tuple[str, ...]:
        """The union of all ServiceCIDR objects, sorted."""
        return tuple(sorted({c for obj in self._cidrs.values() for c in obj.spec.cidrs or ()}))

    @property
    def has_touched(self) -> bool:
        """Whether anything but the Node changed since the last `take`."""
        return bool(self._touched) or self._cidrs_touched

    @property
    def changed_services(self) -> int:
        """How many Service objects changed since the last `take`."""
        return len(self._changed_services)

    def take_arrivals(self) -> Arrivals:
        """Return what came since the last call, and begin anew."""
        arrivals, self._arrivals = self._arrivals, Arrivals()
        return arrivals

    def take(self) -> Touched:
        """Return what was touched since the last call, and forget it."""
        triggers: dict[str, list[str]] = {}
        for (_, address_type), times in self._triggers.items():
            triggers.setdefault(address_type, []).extend(times)
        touched = Touched(
            frozenset(self._touched),
            frozenset(self._by_slices),
            self._node_touched,
            self._cidrs_touched,
            {address_type: tuple(times) for address_type, times in triggers.items()},
        )
        self._touched.clear()
        self._changed_services.clear()
        self._by_slices.clear()
        self._triggers.clear()
        self._node_touched = self._cidrs_touched = False
        return touched

    # --- writing ---

    def put(self, obj: WireObject) -> None:
        """Hold a new or changed object."""
        match obj:
            case Service():
                key = obj.key
                self._arrivals.services += 1
                if self._services.get(key) != obj:
                    self._services[key] = obj
                    self._touch_service(key)
            case EndpointSlice():
                self._put_slice(obj)
            case Node():
                if self.node != obj:
                    self.node = obj
                    self._node_touched = True
                    self.changes += 1
            case ServiceCIDR():
                if self._cidrs.get(obj.key) != obj:
                    self._cidrs[obj.key] = obj
                    self._cidrs_touched = True
                    self.changes += 1

    def drop(self, kind: Kind, key: ObjectKey) -> None:
        """Let go of a deleted object; an unknown one touches nothing."""
        match kind:
            case Kind.SERVICE:
                service_key = ServiceKey(*key)
                self._arrivals.services += 1
                if self._services.pop(service_key, None) is not None:
                    self._touch_service(service_key)
            case Kind.ENDPOINT_SLICE:
                held = self._slices.pop(key, None)
                if held is not None:
                    if held.service is not None:
                        self._arrivals.slices[held.address_type] += 1
                    self._unlink(held)
            case Kind.NODE:
                # The last value is kept: a node that vanished from the API still runs (the
                # packets prove it), and its zone and addresses have not changed.
                pass
            case Kind.SERVICE_CIDR:
                if self._cidrs.pop(key, None) is not None:
                    self._cidrs_touched = True
                    self.changes += 1

    def replace(
        self, kind: Kind, objects: Iterable[WireObject], unreadable: frozenset[ObjectKey]
    ) -> None:
        """Take a complete listing: what is in neither *objects* nor *unreadable* is gone."""
        present: set[tuple[str, str]] = set(unreadable)
        for obj in objects:
            self.put(obj)
            present.add(obj.key)
        held: Iterable[tuple[str, str]] = ()
        match kind:
            case Kind.SERVICE:
                held = self._services
            case Kind.ENDPOINT_SLICE:
                held = self._slices
            case Kind.SERVICE_CIDR:
                held = self._cidrs
            case Kind.NODE:
                pass
        for key in [key for key in held if key not in present]:
            self.drop(kind, ObjectKey(*key))
        self.complete.add(kind)

    def _put_slice(self, new: EndpointSlice) -> None:
        trigger = new.take_trigger_time()
        key, owner = new.key, new.service
        if owner is not None:
            self._arrivals.slices[new.address_type] += 1
        old = self._slices.get(key)
        if old == new:
            return
        if old is not None and old.service != owner:
            self._unlink(old)
        self._slices[key] = new
        if owner is not None:
            self._slices_of[owner] = (*self._siblings(owner, old), new)
            self._touch_slice(owner, new.address_type)
            # As text, in which Kubernetes' times (all end with Z) sort by time. A first list of
            # 10,000 slices has none that matters, and to note them would take 10 ms.
            if trigger is not None and (trigger > self._began or not trigger.endswith("Z")):
                self._triggers.setdefault((owner, new.address_type), []).append(trigger)

    def _unlink(self, old: EndpointSlice) -> None:
        owner = old.service
        if owner is None:
            return
        siblings = self._siblings(owner, old)
        if siblings:
            self._slices_of[owner] = siblings
        else:
            self._slices_of.pop(owner, None)
        self._touch_slice(owner, old.address_type)
        self._triggers.pop((owner, old.address_type), None)

    def _touch_service(self, key: ServiceKey) -> None:
        self._touched.add(key)
        self._changed_services.add(key)
        self.changes += 1

    def _touch_slice(self, owner: ServiceKey, address_type: str) -> None:
        self._touched.add(owner)
        self._by_slices.add((owner, address_type))
        self._arrivals.changed_slices[address_type] += 1
        self.changes += 1

    def _siblings(
        self, owner: ServiceKey, slice_: EndpointSlice | None
    ) -> tuple[EndpointSlice, ...]:
        """The slices of *owner* but this one."""
        return tuple([held for held in self._slices_of.get(owner, ()) if held is not slice_])
