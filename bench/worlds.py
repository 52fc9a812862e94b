"""Worlds of any size: N Services with M endpoints each, addresses as clusters spread them.

Everything follows from a Service's number, so two runs meet the same world, and any part of it
can be made without the rest.
"""

from __future__ import annotations

from hashlib import md5
from uuid import UUID

from msgspec import Struct

from pykubeproxy.model.objects import (
    Conditions,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Service,
    ServiceLabels,
    ServiceMeta,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SliceEndpoint,
    SliceLabels,
    SliceMeta,
    SlicePort,
)

__all__ = ["NODE_PORTS", "POD_PORT", "SERVICE_PORT", "World", "uid"]

SERVICE_PORT = 80
POD_PORT = 8080
NAMESPACES = 50
SLICE_ENDPOINTS = 100
"""As many as the EndpointSlice controller puts into one slice unless told otherwise."""
POD_SLOTS = 110
"""Pods on a node, as kubelet limits them; the rest of its /24 is for pods that come later."""
NODE_PORTS = {"NodePort": range(30000, 32000), "LoadBalancer": range(32000, 32768)}

_CIDR_BITS = 20  # 10.96.0.0/12 and fd00:96::/108
_STATIC_ADDRESSES = 256
"""The start of the range, which the API server leaves for addresses chosen by hand (KEP-3070)."""
_READY = Conditions(ready=True, serving=True, terminating=False)


def uid(name: str) -> str:
    """The UID of the object of that *name*."""
    return str(UUID(bytes=md5(name.encode(), usedforsecurity=False).digest()))


class World(Struct, frozen=True):
    """*services* Services with *endpoints* endpoints each, on IPv4 or on both families.

    The shares (0 to 1) say how many are NodePort, LoadBalancer, UDP, or without endpoints; node
    ports go as far as there are numbers for them (`NODE_PORTS`).
    """

    services: int
    endpoints: int
    node_ports: float = 0.0
    load_balancers: float = 0.0
    udp: float = 0.0
    empty: float = 0.0
    dual_stack: bool = False

    @classmethod
    def parse(cls, text: str) -> World:
        """Read ``10000x5``.

        Raises:
            ValueError: it is something else.
        """
        services, endpoints = map(int, text.split("x"))
        return cls(services, endpoints)

    def __str__(self) -> str:
        return f"{self.services}x{self.endpoints}"

    # --- objects ---

    def service(self, index: int) -> Service:
        """The Service number *index*, with one port; numbers beyond the world are fine."""
        kind, node_port = self._kind(index)
        both = self.dual_stack
        ingress = (LoadBalancerIngress(f"203.0.{113 + (index >> 8) % 100}.{index & 255}"),)
        return Service(
            ServiceMeta(
                f"service-{index}",
                _namespace(index),
                "2026-01-01T00:00:00Z",
                ServiceLabels(),
                uid=uid(f"service-{index}"),
            ),
            ServiceSpec(
                type=kind,
                cluster_ip=cluster_ip(index),
                cluster_ips=tuple(cluster_ip(index, v) for v in (4, 6)[: 1 + both]),
                ip_families=("IPv4", "IPv6")[: 1 + both],
                ports=(ServicePort(SERVICE_PORT, "http", self._protocol(index), node_port),),
                internal_traffic_policy="Cluster",
                external_traffic_policy=None if kind == "ClusterIP" else "Cluster",
                session_affinity="None",
            ),
            ServiceStatus(LoadBalancerStatus(ingress if kind == "LoadBalancer" else None)),
        )

    def slices(self, index: int) -> tuple[EndpointSlice, ...]:
        """All slices of Service *index*, of at most `SLICE_ENDPOINTS` endpoints each."""
        count = 0 if self._is_empty(index) else self.endpoints
        starts = range(0, max(1, count), SLICE_ENDPOINTS)
        return tuple(
            self._slice(index, version, start, min(count, start + SLICE_ENDPOINTS), 0)
            for version in ((4, 6) if self.dual_stack else (4,))
            for start in starts
        )

    def changed_slice(self, index: int, generation: int) -> EndpointSlice:
        """The last IPv4 slice after a pod was replaced: another *generation*, another last one."""
        start = (self.endpoints - 1) // SLICE_ENDPOINTS * SLICE_ENDPOINTS
        return self._slice(index, 4, start, self.endpoints, generation)

    def last_address(self, index: int, generation: int = 0) -> str:
        """The IPv4 address of the pod that `changed_slice` replaces."""
        return self._pod(index, self.endpoints - 1, generation, 4)

    def answers(self, index: int) -> bool:
        """Tell whether a TCP connection to the Service meets an endpoint."""
        return self._protocol(index) == "TCP" and not self._is_empty(index)

    # --- private ---

    def _kind(self, index: int) -> tuple[str, int | None]:
        shares = {"LoadBalancer": self.load_balancers, "NodePort": self.node_ports}
        for offset, (kind, share) in enumerate(shares.items()):
            ordinal, numbers = _ordinal(index, share, offset), NODE_PORTS[kind]
            if ordinal is not None and ordinal < len(numbers):
                return kind, numbers[ordinal]
        return "ClusterIP", None

    def _protocol(self, index: int) -> str:
        return "TCP" if _ordinal(index, self.udp, 2) is None else "UDP"

    def _is_empty(self, index: int) -> bool:
        return _ordinal(index, self.empty, 3) is not None

    def _slice(
        self, index: int, version: int, start: int, end: int, generation: int
    ) -> EndpointSlice:
        numbers = range(start, end)
        newest = self.endpoints - 1
        return EndpointSlice(
            SliceMeta(
                f"service-{index}-v{version}{start // SLICE_ENDPOINTS:03}",
                _namespace(index),
                SliceLabels(f"service-{index}"),
            ),
            f"IPv{version}",
            tuple(
                SliceEndpoint(
                    (self._pod(index, n, generation if n == newest else 0, version),),
                    _READY,
                    f"node-{self._place(index, n)[0]}",
                )
                for n in numbers
            ),
            (SlicePort("http", self._protocol(index), POD_PORT),),
        )

    def _place(self, index: int, number: int) -> tuple[int, int]:
        """Node and slot on it: pods of one Service are on different nodes, as schedulers do it.

        Services beyond the world are on nodes beyond it.
        """
        nodes = -(-self.services * self.endpoints // POD_SLOTS)
        beyond, index = divmod(index, self.services)
        slot, node = divmod(index * self.endpoints + number, nodes)
        return beyond * nodes + node, slot

    def _pod(self, index: int, number: int, generation: int, version: int) -> str:
        node, slot = self._place(index, number)
        if generation:
            # The pods that come later: on nodes and in slots that the first ones do not use.
            node, slot = 0x7FFF - generation // 250, generation % 250
        if version == 6:
            return f"fd00:128:{node:x}::{slot + 2:x}"
        return f"10.{128 + (node >> 8)}.{node & 255}.{slot + 2}"


def cluster_ip(index: int, version: int = 4) -> str:
    """The cluster IP number *index*: spread over the range as if drawn, each only once.

    Going on from what may not be had until something may keeps a permutation one.
    """
    number = _scatter(index + _STATIC_ADDRESSES)
    while number < _STATIC_ADDRESSES or number == (1 << _CIDR_BITS) - 1:
        number = _scatter(number)
    if version == 6:
        return f"fd00:96::{number >> 16:x}:{number & 0xFFFF:x}"
    return f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _scatter(number: int) -> int:
    """A fixed permutation of the numbers of `_CIDR_BITS` bits; every step can be undone."""
    mask = (1 << _CIDR_BITS) - 1
    for factor in (0x9E3B1, 0x5BD1F):
        number = (number ^ number >> 11) * factor & mask
    return number ^ number >> 9


def _ordinal(index: int, share: float, offset: int = 0) -> int | None:
    """Which of the *share* of all Services this one is, from 0; ``None`` if it is none of them.

    Equal shares with another *offset* are other Services.
    """
    before, after = int((index + offset) * share), int((index + offset + 1) * share)
    return before - int(offset * share) if after > before else None


def _namespace(index: int) -> str:
    return f"team-{index % NAMESPACES}"
