"""Builders of API objects with sensible defaults, and the JSON an API server would send for them.

::

    service("web", cluster_ip="10.96.0.1", ports=[port(80, "http", node_port=30080)])
    slice_("web", endpoint("10.244.0.11", node="node"), ports=[slice_port(8080, "http")])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pykubeproxy.model.objects import (
    ClientIPConfig,
    Conditions,
    EndpointSlice,
    Hint,
    Hints,
    LoadBalancerIngress,
    LoadBalancerStatus,
    Node,
    NodeAddress,
    NodeLabels,
    NodeMeta,
    NodeSpec,
    NodeStatus,
    Service,
    ServiceAnnotations,
    ServiceCIDR,
    ServiceCIDRMeta,
    ServiceCIDRSpec,
    ServiceLabels,
    ServiceMeta,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
    SliceEndpoint,
    SliceLabels,
    SliceMeta,
    SlicePort,
    Taint,
    WireObject,
)

__all__ = [
    "endpoint",
    "manifest",
    "node",
    "port",
    "service",
    "service_cidr",
    "slice_",
    "slice_port",
    "to_json",
]

_API_VERSIONS = {
    Service: "v1",
    Node: "v1",
    EndpointSlice: "discovery.k8s.io/v1",
    ServiceCIDR: "networking.k8s.io/v1",
}


def port(
    number: int, name: str = "", protocol: str = "TCP", node_port: int | None = None
) -> ServicePort:
    return ServicePort(port=number, name=name or None, protocol=protocol, node_port=node_port)


def service(
    name: str = "web",
    *,
    namespace: str = "default",
    cluster_ip: str | None = "10.96.0.1",
    cluster_ips: Sequence[str] | None = None,
    ip_families: Sequence[str] | None = None,
    ports: Iterable[ServicePort | int] = (80,),
    type: str = "ClusterIP",
    affinity_seconds: int | None = None,
    external_policy: str | None = None,
    internal_policy: str | None = None,
    external_ips: Sequence[str] = (),
    vips: Iterable[str | LoadBalancerIngress] = (),
    source_ranges: Sequence[str] = (),
    health_check_node_port: int | None = None,
    created: str | None = "2024-01-01T00:00:00Z",
    proxy_name: str | None = None,
    scheduler: str | None = None,
) -> Service:
    """A Service; a bare number among *ports* is an unnamed TCP port."""
    ingress = tuple(LoadBalancerIngress(ip=vip) if isinstance(vip, str) else vip for vip in vips)
    affinity = None
    if affinity_seconds is not None:
        affinity = SessionAffinityConfig(client_ip=ClientIPConfig(affinity_seconds))
    return Service(
        metadata=ServiceMeta(
            name=name,
            namespace=namespace,
            creation_timestamp=created,
            labels=None if proxy_name is None else ServiceLabels(proxy_name=proxy_name),
            annotations=None if scheduler is None else ServiceAnnotations(scheduler),
        ),
        spec=ServiceSpec(
            type=type,
            cluster_ip=cluster_ip,
            cluster_ips=None if cluster_ips is None else tuple(cluster_ips),
            ip_families=None if ip_families is None else tuple(ip_families),
            ports=tuple(port(p) if isinstance(p, int) else p for p in ports),
            session_affinity=None if affinity is None else "ClientIP",
            session_affinity_config=affinity,
            external_traffic_policy=external_policy,
            internal_traffic_policy=internal_policy,
            external_ips=tuple(external_ips) or None,
            load_balancer_source_ranges=tuple(source_ranges) or None,
            health_check_node_port=health_check_node_port,
        ),
        status=ServiceStatus(LoadBalancerStatus(ingress)) if ingress else None,
    )


def endpoint(
    address: str,
    *,
    node: str | None = None,
    ready: bool | None = None,
    serving: bool | None = None,
    terminating: bool | None = None,
    zones: Iterable[str] = (),
    nodes: Iterable[str] = (),
) -> SliceEndpoint:
    """An endpoint, ready by default (conditions absent); *zones* and *nodes* are its hints."""
    conditions = None
    if (ready, serving, terminating) != (None, None, None):
        conditions = Conditions(ready, serving, terminating)
    for_zones, for_nodes = tuple(map(Hint, zones)), tuple(map(Hint, nodes))
    hints = Hints(for_zones or None, for_nodes or None) if for_zones or for_nodes else None
    return SliceEndpoint((address,), conditions, node, hints)


def slice_port(
    number: int | None, name: str | None = "", protocol: str | None = "TCP"
) -> SlicePort:
    return SlicePort(name=name, protocol=protocol, port=number)


def slice_(
    service: str | None,
    *endpoints: SliceEndpoint,
    namespace: str = "default",
    name: str | None = None,
    ports: Iterable[SlicePort | int] = (8080,),
    address_type: str | None = None,
    headless: str | None = None,
) -> EndpointSlice:
    """A slice of *service*; the address type follows from the first endpoint unless given."""
    if address_type is None:
        first = endpoints[0].addresses if endpoints else None
        address_type = "IPv6" if first and ":" in first[0] else "IPv4"
    return EndpointSlice(
        metadata=SliceMeta(
            name=name or f"{service}-1",
            namespace=namespace,
            labels=SliceLabels(service_name=service, headless=headless),
        ),
        address_type=address_type,
        endpoints=endpoints,
        ports=tuple(slice_port(p) if isinstance(p, int) else p for p in ports),
    )


def node(
    name: str = "node",
    *,
    zone: str | None = None,
    addresses: Iterable[str] = ("192.0.2.10", "2001:db8:2::10"),
    pod_cidrs: Sequence[str] = (),
    taints: Iterable[str] = (),
) -> Node:
    return Node(
        metadata=NodeMeta(name=name, labels=None if zone is None else NodeLabels(zone=zone)),
        spec=NodeSpec(pod_cidrs=tuple(pod_cidrs) or None, taints=tuple(map(Taint, taints)) or None),
        status=NodeStatus(tuple(NodeAddress("InternalIP", address) for address in addresses)),
    )


def service_cidr(name: str = "kubernetes", *cidrs: str) -> ServiceCIDR:
    return ServiceCIDR(ServiceCIDRMeta(name), ServiceCIDRSpec(cidrs))


def manifest(obj: WireObject) -> dict[str, Any]:
    """The object as an API server would send it, without absent fields."""
    kind = type(obj)
    body = _without_absent(msgspec.to_builtins(obj))
    return {"apiVersion": _API_VERSIONS[kind], "kind": kind.__name__, **body}


def to_json(obj: WireObject) -> bytes:
    return msgspec.json.encode(manifest(obj))


def _without_absent(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_absent(item) for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_without_absent(item) for item in value]
    return value
