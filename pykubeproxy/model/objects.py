"""The API objects, cut down to the fields a proxy reads.

Decoded straight from JSON by msgspec, which skips everything else (managedFields, targetRef, …).
Two values that compare equal mean the same to the proxy, so a new resourceVersion or a status
heartbeat is no change. Absent, ``null`` and empty lists are all legal on the wire (an empty
EndpointSlice says ``"endpoints": null``); the properties below even that out.

They are most of what a large cluster costs in memory. None of them can be part of a cycle, so the
garbage collector need not know them (``gc=False``: of a first pass over 10,000 Services its visits
took a tenth, and now half of that), and texts that thousands of objects repeat are one object
(`_share`: 30 % of an EndpointSlice with five endpoints).

Field meanings: Kubernetes API reference, core/v1 and discovery.k8s.io/v1.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from itertools import product
from typing import NamedTuple

from msgspec import Struct, field, structs

__all__ = [
    "Conditions",
    "EndpointSlice",
    "Kind",
    "Node",
    "ObjectKey",
    "Service",
    "ServiceCIDR",
    "ServiceKey",
    "SliceEndpoint",
    "SlicePort",
    "WireObject",
]


class Kind(StrEnum):
    """The resources a proxy follows."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"


class ObjectKey(NamedTuple):
    """Identity of any object; cluster-scoped ones have an empty namespace."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class ServiceKey(NamedTuple):
    """Identity of a Service: the owner of every kernel object made for it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def _share(value: Struct, *names: str) -> None:
    """Make the texts in these fields of *value* one object with every equal text."""
    for name in names:
        text = getattr(value, name)
        if type(text) is str:
            structs.force_setattr(value, name, sys.intern(text))


# --- Service -----------------------------------------------------------------------------------


class ServiceLabels(Struct, frozen=True, gc=False):
    proxy_name: str | None = field(name="service.kubernetes.io/service-proxy-name", default=None)


class ServiceAnnotations(Struct, frozen=True, gc=False):
    ipvs_scheduler: str | None = field(name="pykubeproxy.io/ipvs-scheduler", default=None)


_NO_ANNOTATIONS = ServiceAnnotations()


class ServiceMeta(Struct, frozen=True, gc=False):
    name: str
    namespace: str = ""
    creation_timestamp: str | None = field(name="creationTimestamp", default=None)
    labels: ServiceLabels | None = None
    annotations: ServiceAnnotations | None = None
    uid: str = ""  # for Events: by it "kubectl describe" finds them

    def __post_init__(self) -> None:
        _share(self, "namespace")
        # Only foreign annotations, or none at all: the same to a proxy, so it must compare equal.
        if self.annotations == _NO_ANNOTATIONS:
            structs.force_setattr(self, "annotations", None)


class ServicePort(Struct, frozen=True, gc=False):
    port: int
    name: str | None = None
    protocol: str | None = None
    node_port: int | None = field(name="nodePort", default=None)

    def __post_init__(self) -> None:
        _share(self, "name", "protocol")


class ClientIPConfig(Struct, frozen=True, gc=False):
    timeout_seconds: int | None = field(name="timeoutSeconds", default=None)


class SessionAffinityConfig(Struct, frozen=True, gc=False):
    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


_FAMILIES: dict[tuple[str, ...], tuple[str, ...]] = {
    names: names for names in (("IPv4",), ("IPv6",), ("IPv4", "IPv6"), ("IPv6", "IPv4"))
}


class ServiceSpec(Struct, frozen=True, gc=False):
    type: str | None = None
    cluster_ip: str | None = field(name="clusterIP", default=None)
    cluster_ips: tuple[str, ...] | None = field(name="clusterIPs", default=None)
    ip_families: tuple[str, ...] | None = field(name="ipFamilies", default=None)
    ports: tuple[ServicePort, ...] | None = None
    session_affinity: str | None = field(name="sessionAffinity", default=None)
    session_affinity_config: SessionAffinityConfig | None = field(
        name="sessionAffinityConfig", default=None
    )
    external_traffic_policy: str | None = field(name="externalTrafficPolicy", default=None)
    internal_traffic_policy: str | None = field(name="internalTrafficPolicy", default=None)
    external_ips: tuple[str, ...] | None = field(name="externalIPs", default=None)
    load_balancer_source_ranges: tuple[str, ...] | None = field(
        name="loadBalancerSourceRanges", default=None
    )
    health_check_node_port: int | None = field(name="healthCheckNodePort", default=None)

    def __post_init__(self) -> None:
        _share(self, "type", "session_affinity")
        _share(self, "external_traffic_policy", "internal_traffic_policy")
        if self.ip_families is not None:
            families = _FAMILIES.get(self.ip_families, self.ip_families)
            structs.force_setattr(self, "ip_families", families)
        # The first of them is written twice.
        if self.cluster_ips and self.cluster_ips[0] == self.cluster_ip:
            structs.force_setattr(self, "cluster_ip", self.cluster_ips[0])


class LoadBalancerIngress(Struct, frozen=True, gc=False):
    ip: str | None = None
    ip_mode: str | None = field(name="ipMode", default=None)


class LoadBalancerStatus(Struct, frozen=True, gc=False):
    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Struct, frozen=True, gc=False):
    load_balancer: LoadBalancerStatus | None = field(name="loadBalancer", default=None)


class Service(Struct, frozen=True, gc=False):
    """core/v1 Service."""

    metadata: ServiceMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus | None = None

    @property
    def key(self) -> ServiceKey:
        return ServiceKey(self.metadata.namespace, self.metadata.name)

    @property
    def ipvs_scheduler(self) -> str:
        """What the annotation asks for, as written; empty without one."""
        annotations = self.metadata.annotations
        return (annotations.ipvs_scheduler or "") if annotations else ""

    @property
    def ingress(self) -> tuple[LoadBalancerIngress, ...]:
        if self.status is None or self.status.load_balancer is None:
            return ()
        return self.status.load_balancer.ingress or ()


# --- EndpointSlice -----------------------------------------------------------------------------


class SliceLabels(Struct, frozen=True, gc=False):
    service_name: str | None = field(name="kubernetes.io/service-name", default=None)
    headless: str | None = field(name="service.kubernetes.io/headless", default=None)


class SliceAnnotations(Struct, frozen=True, gc=False):
    trigger_time: str | None = field(
        name="endpoints.kubernetes.io/last-change-trigger-time", default=None
    )


class SliceMeta(Struct, frozen=True, gc=False):
    """``annotations`` are there from the wire to the store, which calls `take_trigger_time`."""

    name: str
    namespace: str = ""
    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None

    def __post_init__(self) -> None:
        _share(self, "namespace")


class Conditions(Struct, frozen=True, gc=False):
    """Endpoint conditions as sent; ``None`` is an answer of its own (KEP-1672)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


_CONDITIONS = {c: c for c in (Conditions(*c) for c in product((None, False, True), repeat=3))}


class Hint(Struct, frozen=True, gc=False):
    name: str = ""


class Hints(Struct, frozen=True, gc=False):
    for_zones: tuple[Hint, ...] | None = field(name="forZones", default=None)
    for_nodes: tuple[Hint, ...] | None = field(name="forNodes", default=None)


class SliceEndpoint(Struct, frozen=True, gc=False):
    addresses: tuple[str, ...] | None = None
    conditions: Conditions | None = None
    node_name: str | None = field(name="nodeName", default=None)
    hints: Hints | None = None

    def __post_init__(self) -> None:
        # As `_share`, but without a call: there are many of these.
        if type(self.node_name) is str:
            structs.force_setattr(self, "node_name", sys.intern(self.node_name))
        if self.conditions is not None:
            structs.force_setattr(self, "conditions", _CONDITIONS[self.conditions])


class SlicePort(Struct, frozen=True, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        _share(self, "name", "protocol")


class EndpointSlice(Struct, frozen=True, gc=False):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    address_type: str = field(name="addressType", default="")
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None

    def __post_init__(self) -> None:
        _share(self, "address_type")

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(self.metadata.namespace, self.metadata.name)

    @property
    def service(self) -> ServiceKey | None:
        """The Service this slice belongs to, or ``None`` where its label names none."""
        labels = self.metadata.labels
        if labels is None or not labels.service_name:
            return None
        return ServiceKey(self.metadata.namespace, labels.service_name)

    def take_trigger_time(self) -> str | None:
        """Return when what this slice says came about, as written, and forget it.

        It belongs to an event, not to the object: with it no two values would be equal, and it
        would take as much memory as an endpoint.
        """
        annotations = self.metadata.annotations
        if annotations is None:
            return None
        structs.force_setattr(self.metadata, "annotations", None)
        return annotations.trigger_time


# --- Node --------------------------------------------------------------------------------------


class NodeLabels(Struct, frozen=True, gc=False):
    zone: str | None = field(name="topology.kubernetes.io/zone", default=None)


class NodeMeta(Struct, frozen=True, gc=False):
    name: str
    labels: NodeLabels | None = None
    deletion_timestamp: str | None = field(name="deletionTimestamp", default=None)


class Taint(Struct, frozen=True, gc=False):
    key: str = ""


class NodeSpec(Struct, frozen=True, gc=False):
    pod_cidrs: tuple[str, ...] | None = field(name="podCIDRs", default=None)
    taints: tuple[Taint, ...] | None = None


class NodeAddress(Struct, frozen=True, gc=False):
    type: str = ""
    address: str = ""


class NodeStatus(Struct, frozen=True, gc=False):
    addresses: tuple[NodeAddress, ...] | None = None


class Node(Struct, frozen=True, gc=False):
    """core/v1 Node."""

    metadata: NodeMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus | None = None

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("", self.metadata.name)

    @property
    def zone(self) -> str:
        """The zone label; missing and empty mean the same."""
        return (self.metadata.labels.zone or "") if self.metadata.labels else ""

    @property
    def addresses(self) -> tuple[NodeAddress, ...]:
        return (self.status.addresses or ()) if self.status else ()


# --- ServiceCIDR -------------------------------------------------------------------------------


class ServiceCIDRMeta(Struct, frozen=True, gc=False):
    name: str


class ServiceCIDRSpec(Struct, frozen=True, gc=False):
    cidrs: tuple[str, ...] | None = None


class ServiceCIDR(Struct, frozen=True, gc=False):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: ServiceCIDRMeta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("", self.metadata.name)


WireObject = Service | EndpointSlice | Node | ServiceCIDR
