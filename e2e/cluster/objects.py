"""Services with endpoints in the lab, in a few words."""

from __future__ import annotations

from e2e.cluster.api import ApiUnderTest
from e2e.lab.addresses import LOCAL_PODS, NODE_NAME, REMOTE_NODE_NAME, address_of
from pykubeproxy.model.objects import EndpointSlice, Service, SliceEndpoint
from tests.build import endpoint, port, service, slice_, slice_port

__all__ = ["endpoints_of", "pod", "put_web", "web", "web_slice"]


def pod(name: str, **options: object) -> SliceEndpoint:
    where = NODE_NAME if name in LOCAL_PODS else REMOTE_NODE_NAME
    return endpoint(address_of(name, 4), **{"node": where, **options})  # type: ignore[arg-type]


def web(api: ApiUnderTest, name: str = "web", **options: object) -> Service:
    """A Service on port 80 whose cluster IP is the server's choice."""
    options = {"cluster_ip": None, "ports": [port(80, "http")], "created": None, **options}
    return service(name, namespace=api.namespace, **options)  # type: ignore[arg-type]


def web_slice(api: ApiUnderTest, *pods: str, name: str = "web") -> EndpointSlice:
    return endpoints_of(api, *map(pod, pods), name=name)


def endpoints_of(api: ApiUnderTest, *endpoints: SliceEndpoint, name: str = "web") -> EndpointSlice:
    ports = [slice_port(8080, "http")]
    return slice_(name, *endpoints, namespace=api.namespace, ports=ports, address_type="IPv4")


def put_web(api: ApiUnderTest, *pods: str, name: str = "web", **options: object) -> str:
    """Create or change both; return the cluster IP."""
    api.put(web(api, name, **options))
    api.put(web_slice(api, *pods, name=name))
    return api.cluster_ip(name)
