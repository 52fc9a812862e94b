"""The storage half of the stand-in API server: objects, one resourceVersion counter, history."""

from __future__ import annotations

import base64
import copy
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

Object = dict[str, Any]
Key = tuple[str, str]
Match = Callable[[Object], bool]


@dataclass(frozen=True)
class ApiResource:
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    empty: Object  # what a Go struct of this kind without content is encoded as

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        return f"/apis/{self.api_version}/{self.plural}" if self.group else f"/api/v1/{self.plural}"


RESOURCES = (
    ApiResource(
        "", "v1", "services", "Service", True, {"spec": {}, "status": {"loadBalancer": {}}}
    ),
    ApiResource("", "v1", "nodes", "Node", False, {"spec": {}, "status": {}}),
    ApiResource("", "v1", "secrets", "Secret", True, {}),
    ApiResource(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        "EndpointSlice",
        True,
        {"addressType": "", "endpoints": None, "ports": None},
    ),
    ApiResource("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR", False, {"spec": {}}),
)
BY_KIND = {resource.kind: resource for resource in RESOURCES}


@dataclass(frozen=True)
class Change:
    version: int
    resource: ApiResource
    key: Key
    old: Object | None
    new: Object | None


class ClusterStore:
    """Objects with a history; every method may be called from any thread."""

    def __init__(self, version: int = 100) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.version = version
        self.compacted = 0
        self.log: list[Change] = []
        self._now: dict[str, dict[Key, Object]] = {r.plural: {} for r in RESOURCES}

    def put(self, obj: Object, version: int | None = None) -> int:
        """Create or replace an object (its ``kind`` says where); return its resourceVersion."""
        resource = BY_KIND[obj["kind"]]
        with self.changed:
            metadata = obj["metadata"]
            key = (metadata.get("namespace", ""), metadata["name"])
            now = self._now[resource.plural]
            old = now.get(key)
            self.version = self.version + 1 if version is None else max(version, self.version)
            new = copy.deepcopy(obj)
            new["metadata"]["resourceVersion"] = str(version or self.version)
            new["metadata"].setdefault("uid", str(uuid4()))
            now[key] = new
            self.log.append(Change(version or self.version, resource, key, old, new))
            self.changed.notify_all()
            return self.version

    def delete(self, kind: str, namespace: str, name: str) -> int:
        resource = BY_KIND[kind]
        with self.changed:
            key = (namespace, name)
            old = copy.deepcopy(self._now[resource.plural].pop(key))
            self.version += 1
            old["metadata"]["resourceVersion"] = str(self.version)
            self.log.append(Change(self.version, resource, key, old, None))
            self.changed.notify_all()
            return self.version

    def advance(self, to: int | None = None) -> None:
        """Let other objects of the cluster use up resourceVersions."""
        with self.changed:
            self.version = self.version + 1 if to is None else to
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget all history up to now."""
        with self.changed:
            self.version += 1
            self.compacted = self.version

    def replace_all(self, objects: list[Object], version: int) -> None:
        """As if etcd had been restored from a backup: other objects, and another counter."""
        with self.changed:
            self.log.clear()
            for known in self._now.values():
                known.clear()
            self.version, self.compacted = version, 0
            for obj in objects:
                self.put(obj)

    def state(self, resource: ApiResource, version: int | None = None) -> dict[Key, Object]:
        """The objects of *resource* as of *version* (default: now), in key order."""
        with self.changed:
            objects: dict[Key, Object] = {}
            for change in self.log:
                if change.resource is not resource:
                    continue
                if version is not None and change.version > version:
                    continue
                if change.new is None:
                    objects.pop(change.key, None)
                else:
                    objects[change.key] = change.new
            return dict(sorted(objects.items(), key=lambda item: "/".join(item[0])))

    def events(
        self, resource: ApiResource, since: int, match: Match
    ) -> Iterator[tuple[int, str, Object]]:
        """What a watch with a selector says about the changes after *since*."""
        with self.changed:
            changes = [c for c in self.log if c.resource is resource and c.version > since]
        for change in sorted(changes, key=lambda one: one.version):
            was = change.old is not None and match(change.old)
            if change.new is not None and match(change.new):
                yield change.version, "MODIFIED" if was else "ADDED", change.new
            elif was and change.old is not None:
                gone = copy.deepcopy(change.old)
                gone["metadata"]["resourceVersion"] = str(change.version)
                yield change.version, "DELETED", gone


def typed(resource: ApiResource, obj: Object) -> Object:
    """As in a watch: an object says its kind; in a list the list says it."""
    bare = {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}
    return {"kind": resource.kind, "apiVersion": resource.api_version, **bare}


def untyped(obj: Object) -> Object:
    return {k: v for k, v in obj.items() if k not in ("kind", "apiVersion")}


def selector(label_selector: str, field_selector: str) -> Match:
    """A predicate over objects; ``!key``, ``key``, ``key=value`` and ``key!=value``."""
    labels = [term for term in label_selector.split(",") if term]
    fields = [term for term in field_selector.split(",") if term]

    def match(obj: Object) -> bool:
        have = obj["metadata"].get("labels") or {}
        return all(_label(term, have) for term in labels) and all(
            _field(term, obj) for term in fields
        )

    return match


def _label(term: str, labels: dict[str, str]) -> bool:
    if term.startswith("!"):
        return term[1:] not in labels
    if "!=" in term:
        key, value = term.split("!=", 1)
        return labels.get(key) != value
    if "=" in term:
        key, value = term.split("=", 1)
        return labels.get(key) == value.lstrip("=")
    return term in labels


def _field(term: str, obj: Object) -> bool:
    negative = "!=" in term
    path, value = term.split("!=" if negative else "=", 1)
    found: Any = obj
    for part in path.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    return bool(found == value) != negative


def encode_token(version: int, key: Key) -> str:
    start = "/".join(part for part in key if part) + "\0"
    text = json.dumps({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_token(token: str) -> tuple[int, str]:
    """Return resourceVersion and start key.

    Raises:
        ValueError: the token is not one of ours.
    """
    text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    content = json.loads(text)
    return int(content["rv"]), str(content["start"]).lstrip("/")
