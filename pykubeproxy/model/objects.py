"""The API objects, cut down to the fields a proxy reads.

Decoded straight from JSON by msgspec, which skips everything else (managedFields, targetRef, …).
Two values that compare equal mean the same to the proxy, so a new resourceVersion or a status
heartbeat is no change. Absent, ``null`` and empty lists are all legal on the wire (an empty
EndpointSlice says ``"endpoints": null``); the properties below even that out.

Field meanings: Kubernetes API reference, core/v1 and discovery.k8s.io/v1.
"""

from __future__ import annotations

from enum import StrEnum
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

    def __post_init__(self) -> None:
        # Only foreign annotations, or none at all: the same to a proxy, so it must compare equal.
        if self.annotations == _NO_ANNOTATIONS:
            structs.force_setattr(self, "annotations", None)


class ServicePort(Struct, frozen=True, gc=False):
    port: int
    name: str | None = None
    protocol: str | None = None
    node_port: int | None = field(name="nodePort", default=None)


class ClientIPConfig(Struct, frozen=True, gc=False):
    timeout_seconds: int | None = field(name="timeoutSeconds", default=None)


class SessionAffinityConfig(Struct, frozen=True, gc=False):
    client_ip: ClientIPConfig | None = field(name="clientIP", default=None)


class ServiceSpec(Struct, frozen=True):
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


class LoadBalancerIngress(Struct, frozen=True, gc=False):
    ip: str | None = None
    ip_mode: str | None = field(name="ipMode", default=None)


class LoadBalancerStatus(Struct, frozen=True):
    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Struct, frozen=True):
    load_balancer: LoadBalancerStatus | None = field(name="loadBalancer", default=None)


class Service(Struct, frozen=True):
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


class SliceMeta(Struct, frozen=True, gc=False):
    name: str
    namespace: str = ""
    labels: SliceLabels | None = None


class Conditions(Struct, frozen=True, gc=False):
    """Endpoint conditions as sent; ``None`` is an answer of its own (KEP-1672)."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


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


class SlicePort(Struct, frozen=True, gc=False):
    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class EndpointSlice(Struct, frozen=True):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    address_type: str = field(name="addressType", default="")
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None

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


# --- Node --------------------------------------------------------------------------------------


class NodeLabels(Struct, frozen=True, gc=False):
    zone: str | None = field(name="topology.kubernetes.io/zone", default=None)


class NodeMeta(Struct, frozen=True, gc=False):
    name: str
    labels: NodeLabels | None = None
    deletion_timestamp: str | None = field(name="deletionTimestamp", default=None)


class Taint(Struct, frozen=True, gc=False):
    key: str = ""


class NodeSpec(Struct, frozen=True):
    pod_cidrs: tuple[str, ...] | None = field(name="podCIDRs", default=None)
    taints: tuple[Taint, ...] | None = None


class NodeAddress(Struct, frozen=True, gc=False):
    type: str = ""
    address: str = ""


class NodeStatus(Struct, frozen=True):
    addresses: tuple[NodeAddress, ...] | None = None


class Node(Struct, frozen=True):
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


class ServiceCIDRSpec(Struct, frozen=True):
    cidrs: tuple[str, ...] | None = None


class ServiceCIDR(Struct, frozen=True):
    """networking.k8s.io/v1 ServiceCIDR."""

    metadata: ServiceCIDRMeta
    spec: ServiceCIDRSpec = ServiceCIDRSpec()

    @property
    def key(self) -> ObjectKey:
        return ObjectKey("", self.metadata.name)


WireObject = Service | EndpointSlice | Node | ServiceCIDR
