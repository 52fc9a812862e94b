"""The bytes an API server sends for a world, with all that a proxy skips."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from bench.worlds import uid
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import manifest

__all__ = ["as_sent", "end_of_list", "watch_line", "watch_lines"]

_MANAGED_FIELDS = {
    Service: (
        "kubectl-client-side-apply",
        {
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {
                "f:internalTrafficPolicy": {},
                "f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}},
                "f:selector": {},
                "f:sessionAffinity": {},
                "f:type": {},
            },
        },
    ),
    EndpointSlice: (
        "kube-controller-manager",
        {
            "f:addressType": {},
            "f:endpoints": {},
            "f:metadata": {"f:generateName": {}, "f:labels": {".": {}}, "f:ownerReferences": {}},
            "f:ports": {},
        },
    ),
}


def as_sent(obj: Service | EndpointSlice, version: int = 1) -> dict[str, Any]:
    """The object as a cluster has it: owners, managed fields, what an endpoint stands for."""
    body = manifest(obj)
    metadata = body["metadata"]
    manager, fields = _MANAGED_FIELDS[type(obj)]
    metadata |= {
        "uid": uid(metadata["name"]),
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "labels": {"app.kubernetes.io/name": "bench", **metadata.get("labels", {})},
        "managedFields": [
            {
                "manager": manager,
                "operation": "Update",
                "apiVersion": body["apiVersion"],
                "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": fields,
            }
        ],
    }
    for endpoint in body.get("endpoints", ()):
        name = f"pod-{endpoint['addresses'][0]}"
        endpoint["targetRef"] = {
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": name,
            "uid": uid(name),
        }
    return body


def watch_line(obj: Service | EndpointSlice) -> bytes:
    """One event of a watch, with its line break."""
    return msgspec.json.encode({"type": "ADDED", "object": as_sent(obj)}) + b"\n"


def watch_lines(objects: Iterable[Service | EndpointSlice]) -> list[bytes]:
    return [watch_line(obj) for obj in objects]


def end_of_list(version: int) -> bytes:
    """The bookmark that says that a streaming list is complete."""
    metadata = {
        "resourceVersion": str(version),
        "annotations": {"k8s.io/initial-events-end": "true"},
    }
    return msgspec.json.encode({"type": "BOOKMARK", "object": {"metadata": metadata}}) + b"\n"
