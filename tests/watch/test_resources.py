"""URLs and selectors are the ones kube-proxy uses."""

from __future__ import annotations

import pytest

from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.resources import RESOURCES, selectors


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Kind.SERVICE, "/api/v1/services"),
        (Kind.ENDPOINT_SLICE, "/apis/discovery.k8s.io/v1/endpointslices"),
        (Kind.NODE, "/api/v1/nodes"),
        (Kind.SERVICE_CIDR, "/apis/networking.k8s.io/v1/servicecidrs"),
    ],
)
def test_paths(kind: Kind, path: str) -> None:
    assert path == RESOURCES[kind].path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            Kind.SERVICE,
            {
                "labelSelector": "!service.kubernetes.io/service-proxy-name",
                "fieldSelector": "spec.clusterIP!=None",
            },
        ),
        (
            Kind.ENDPOINT_SLICE,
            {"labelSelector": "!service.kubernetes.io/headless"},
        ),
        (Kind.NODE, {"fieldSelector": "metadata.name=node-0"}),
        (Kind.SERVICE_CIDR, {}),
    ],
)
def test_selectors(kind: Kind, expected: dict[str, str]) -> None:
    assert expected == selectors(kind, "node-0")
