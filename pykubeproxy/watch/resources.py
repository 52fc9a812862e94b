"""Which resources are followed, how URLs and RBAC rules spell them, and which objects of each.

The selectors are upstream's (kube-proxy ``cmd/kube-proxy/app/server.go``): what another proxy or
nobody should forward is not even sent. An object that stops matching arrives as a deletion.
"""

from __future__ import annotations

from msgspec import Struct

from pykubeproxy.model.objects import Kind

__all__ = ["EVENTS", "HEADLESS", "PROXY_NAME", "RESOURCES", "Resource", "selectors"]

PROXY_NAME = "service.kubernetes.io/service-proxy-name"
HEADLESS = "service.kubernetes.io/headless"


class Resource(Struct, frozen=True):
    """How a kind is spelled in URLs and in RBAC rules."""

    group: str
    version: str
    plural: str

    @property
    def path(self) -> str:
        root = f"/apis/{self.group}" if self.group else "/api"
        return f"{root}/{self.version}/{self.plural}"


RESOURCES: dict[Kind, Resource] = {
    Kind.SERVICE: Resource("", "v1", "services"),
    Kind.ENDPOINT_SLICE: Resource("discovery.k8s.io", "v1", "endpointslices"),
    Kind.NODE: Resource("", "v1", "nodes"),
    Kind.SERVICE_CIDR: Resource("networking.k8s.io", "v1", "servicecidrs"),
}
EVENTS = Resource("events.k8s.io", "v1", "events")


def selectors(kind: Kind, node_name: str) -> dict[str, str]:
    """The label and field selectors of a list or watch of *kind*, as query parameters."""
    match kind:
        case Kind.SERVICE:
            return {"labelSelector": f"!{PROXY_NAME}", "fieldSelector": "spec.clusterIP!=None"}
        case Kind.ENDPOINT_SLICE:
            return {"labelSelector": f"!{HEADLESS}"}
        case Kind.NODE:
            return {"fieldSelector": f"metadata.name={node_name}"}
        case Kind.SERVICE_CIDR:
            return {}
