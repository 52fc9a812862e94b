"""Worlds of any size: N Services with M endpoints each, addresses as clusters spread them."""

from __future__ import annotations

from pykubeproxy.model.objects import (
    EndpointSlice,
    Service,
    ServiceMeta,
    ServicePort,
    ServiceSpec,
    SliceEndpoint,
    SliceLabels,
    SliceMeta,
    SlicePort,
)

__all__ = ["service", "slice_of"]

NAMESPACES = 50


def _namespace(index: int) -> str:
    return f"team-{index % NAMESPACES}"


def service(index: int) -> Service:
    """The Service number *index*, a ClusterIP one with one TCP port."""
    return Service(
        ServiceMeta(f"service-{index}", _namespace(index), "2026-01-01T00:00:00Z"),
        ServiceSpec(
            cluster_ip=f"10.{96 + (index >> 16)}.{index >> 8 & 255}.{index & 255}",
            ports=(ServicePort(80, "http", "TCP"),),
        ),
    )


def slice_of(index: int, endpoints: int, generation: int = 0) -> EndpointSlice:
    """The slice of Service *index*; another *generation* has another last endpoint."""
    last = endpoints - 1
    return EndpointSlice(
        SliceMeta(f"service-{index}-abcde", _namespace(index), SliceLabels(f"service-{index}")),
        "IPv4",
        tuple(
            SliceEndpoint(
                (_pod(index * endpoints + n + (generation * 1_000_000 if n == last else 0)),)
            )
            for n in range(endpoints)
        ),
        (SlicePort("http", "TCP", 8080),),
    )


def _pod(number: int) -> str:
    # /24 per node, 110 pods on each, as kubelet's default has it.
    node, pod = divmod(number, 110)
    return f"10.{128 + (node >> 8) % 100}.{node & 255}.{pod + 2}"
