"""The newest value of every object, and which Services changed since the last look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Struct

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

__all__ = ["Store", "Touched"]


class Touched(Struct, frozen=True):
    """What changed since the last `Store.take`.

    ``services``: every Service whose own object or slices changed; ``by_slices``: those with a
    changed slice, along with its address type; ``node`` and ``service_cidrs``: whether those
    objects changed.
    """

    services: frozenset[ServiceKey] = frozenset()
    by_slices: frozenset[tuple[ServiceKey, str]] = frozenset()
    node: bool = False
    service_cidrs: bool = False

    def __bool__(self) -> bool:
        return bool(self.services or self.node or self.service_cidrs)


class Store:
    """Objects by identity; not safe for several threads, the sync thread owns it.

    A value equal to the one held touches nothing, so re-delivered objects and metadata edits
    cost one comparison.
    """

    def __init__(self) -> None:
        self.complete: set[Kind] = set()
        self.node: Node | None = None
        self._services: dict[ServiceKey, Service] = {}
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        # A tuple, because nearly every Service has one slice: a dict of one takes 290 bytes, and
        # with 10,000 endpoints there are a hundred slices, which are copied in a microsecond.
        self._slices_of: dict[ServiceKey, tuple[EndpointSlice, ...]] = {}
        self._cidrs: dict[ObjectKey, ServiceCIDR] = {}
        self._touched: set[ServiceKey] = set()
        self._by_slices: set[tuple[ServiceKey, str]] = set()
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
        return bool(self._touched) or self._node_touched or self._cidrs_touched

    @property
    def node_touched(self) -> bool:
        return self._node_touched

    def take(self) -> Touched:
        """Return what was touched since the last call, and forget it."""
        touched = Touched(
            frozenset(self._touched),
            frozenset(self._by_slices),
            self._node_touched,
            self._cidrs_touched,
        )
        self._touched.clear()
        self._by_slices.clear()
        self._node_touched = self._cidrs_touched = False
        return touched

    # --- writing ---

    def put(self, obj: WireObject) -> None:
        """Hold a new or changed object."""
        match obj:
            case Service():
                key = obj.key
                if self._services.get(key) != obj:
                    self._services[key] = obj
                    self._touched.add(key)
            case EndpointSlice():
                self._put_slice(obj)
            case Node():
                if self.node != obj:
                    self.node = obj
                    self._node_touched = True
            case ServiceCIDR():
                if self._cidrs.get(obj.key) != obj:
                    self._cidrs[obj.key] = obj
                    self._cidrs_touched = True

    def drop(self, kind: Kind, key: ObjectKey) -> None:
        """Let go of a deleted object; an unknown one touches nothing."""
        match kind:
            case Kind.SERVICE:
                service_key = ServiceKey(*key)
                if self._services.pop(service_key, None) is not None:
                    self._touched.add(service_key)
            case Kind.ENDPOINT_SLICE:
                held = self._slices.pop(key, None)
                if held is not None:
                    self._unlink(held)
            case Kind.NODE:
                # The last value is kept: a node that vanished from the API still runs (the
                # packets prove it), and its zone and addresses have not changed.
                pass
            case Kind.SERVICE_CIDR:
                if self._cidrs.pop(key, None) is not None:
                    self._cidrs_touched = True

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
        key, owner = new.key, new.service
        old = self._slices.get(key)
        if old == new:
            return
        if old is not None and old.service != owner:
            self._unlink(old)
        self._slices[key] = new
        if owner is not None:
            self._slices_of[owner] = (*self._siblings(owner, old), new)
            self._touched.add(owner)
            self._by_slices.add((owner, new.address_type))

    def _unlink(self, old: EndpointSlice) -> None:
        owner = old.service
        if owner is None:
            return
        siblings = self._siblings(owner, old)
        if siblings:
            self._slices_of[owner] = siblings
        else:
            self._slices_of.pop(owner, None)
        self._touched.add(owner)
        self._by_slices.add((owner, old.address_type))

    def _siblings(
        self, owner: ServiceKey, slice_: EndpointSlice | None
    ) -> tuple[EndpointSlice, ...]:
        """The slices of *owner* but this one."""
        return tuple([held for held in self._slices_of.get(owner, ()) if held is not slice_])
