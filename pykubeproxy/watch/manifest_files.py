"""One manifest file as typed objects, with everything an API server would have filled in.

Decides what a file says; which file wins, and what changed, is decided in `manifests`. Every
problem names its line. YAML 1.1 is read as kubectl reads it: no timestamps, but ``yes`` and ``on``
are booleans and ``0755`` is octal, which the type check then reports where text is needed.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator
from typing import Any, assert_never

import msgspec
import yaml
from msgspec import Struct

from pykubeproxy.model.objects import (
    EndpointSlice,
    Kind,
    Node,
    ObjectKey,
    Service,
    ServiceCIDR,
    WireObject,
)
from pykubeproxy.watch.resources import RESOURCES
from pykubeproxy.watch.wire import NAMESPACED, key_of, problem_with, type_of

__all__ = ["FileContent", "Loaded", "Problem", "Skipped", "is_wanted", "parse"]

MAX_DEPTH = 100
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Any: one of two unrelated classes
_LISTS = {"List": None, **{f"{kind}List": kind for kind in Kind}}
_PATH = re.compile(r" - at `\$(.*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[\.\.\.\]")


class Loaded(Struct, frozen=True):
    """A usable object and the line its document begins on."""

    kind: Kind
    key: ObjectKey
    object: WireObject
    line: int


class Problem(Struct, frozen=True):
    """Something that has to be corrected; *key* where the object's name is known."""

    line: int
    text: str
    kind: Kind | None = None
    key: ObjectKey | None = None


class Skipped(Struct, frozen=True):
    """An object of a kind that a proxy has no use for."""

    line: int
    what: str


class FileContent(Struct, frozen=True):
    """What a file says. *broken* is set where it could not be read as YAML or JSON at all."""

    objects: tuple[Loaded, ...] = ()
    problems: tuple[Problem, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    broken: Problem | None = None


class _Loader(_Base):  # type: ignore[misc]  # the base is chosen at run time
    """Safe YAML whose timestamps stay text, as in kubectl's YAML-to-JSON conversion."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":value"))
    ]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def parse(text: str, *, is_json: bool = False) -> FileContent:
    """Read the documents of a file. Never raises: what is wrong is in the result."""
    objects: list[Loaded] = []
    problems: list[Problem] = []
    skipped: list[Skipped] = []
    try:
        for value, node in _documents(text, is_json):
            for item, place in _items(value, node):
                match _object(item, place):
                    case Loaded() as loaded:
                        objects.append(loaded)
                    case Problem() as problem:
                        problems.append(problem)
                    case Skipped() as other:
                        skipped.append(other)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        return FileContent(broken=Problem(line, error.problem or error.context or "not YAML"))
    except json.JSONDecodeError as error:
        return FileContent(broken=Problem(error.lineno, f"not JSON: {error.msg}"))
    # ReaderError (control characters) has no mark; a ValueError is a scalar like 2001-99-99.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return FileContent(broken=Problem(1, f"not YAML: {error}"))
    return FileContent(tuple(objects), tuple(problems), tuple(skipped))


def _documents(text: str, is_json: bool) -> Iterator[tuple[Any, yaml.Node]]:
    if is_json:
        json.loads(text)  # for its messages, which know what JSON is
        text = text.replace("\t", " ")  # legal in JSON between values, and only there
    _refuse_depth(text)
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            _refuse_duplicates(node, set())
            yield loader.construct_document(node), node
    finally:
        loader.dispose()


def _refuse_depth(text: str) -> None:
    """Refuse what no manifest needs: libyaml's composer recurses in C and ends the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                problem = f"more than {MAX_DEPTH} levels deep"
                mark: Any = event.start_mark  # the stubs know another class for each parser
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _refuse_duplicates(node: yaml.Node, seen: set[int]) -> None:
    """PyYAML lets the last of two equal keys win in silence; kubectl refuses, and so do we."""
    if id(node) in seen:
        return  # an anchor that was visited already
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, child in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in names:
                    problem = f"key {key.value!r} appears twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                names.add(key.value)
            _refuse_duplicates(child, seen)


def _items(value: Any, node: yaml.Node) -> Iterator[tuple[Any, yaml.Node]]:
    """The objects of a document: itself, or the items of a List."""
    if value is None:
        return  # an empty document, as between two `---`
    if isinstance(value, dict) and value.get("kind") in _LISTS:
        item_kind = _LISTS[value["kind"]]
        found = _child(node, "items")
        items = value.get("items") or []
        if not isinstance(items, list) or not isinstance(found, yaml.SequenceNode):
            if items:
                yield value, node
            return
        for item, place in zip(items, found.value, strict=True):
            if item_kind is not None and isinstance(item, dict):
                # The items of a typed list need not repeat what the list says.
                item.setdefault("kind", str(item_kind))
                item.setdefault("apiVersion", value.get("apiVersion"))
            yield from _items(item, place)
    else:
        yield value, node


def _object(value: Any, node: yaml.Node) -> Loaded | Problem | Skipped:
    line = node.start_mark.line + 1
    if not isinstance(value, dict):
        return Problem(line, "a document must be an object with apiVersion, kind and metadata")
    name = value.get("kind")
    version = value.get("apiVersion")
    if not isinstance(name, str) or not isinstance(version, str):
        return Problem(line, "apiVersion or kind is missing; begin with e.g. `apiVersion: v1`")
    if name not in set(Kind):
        return Skipped(line, f"{version} {name}")
    kind = Kind(name)
    resource = RESOURCES[kind]
    wanted = f"{resource.group}/{resource.version}" if resource.group else resource.version
    if version != wanted:
        if version.rpartition("/")[0] != resource.group:
            return Skipped(line, f"{version} {name}")  # e.g. a Knative Service
        return Problem(line, f"{name} of {version} is not read; write `apiVersion: {wanted}`")
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return Problem(line, f"{name} has no metadata; write `metadata:` with a name", kind)
    if kind in NAMESPACED and metadata.get("namespace") is None:
        metadata["namespace"] = "default"
    key = _key(kind, metadata)
    said = f"{name} {key}" if key else name
    try:
        problem = _default(kind, value)
        if problem is None:
            obj = msgspec.convert(value, type_of(kind))
            problem = problem_with(obj)
        if problem is None:
            return Loaded(kind, key_of(obj), obj, line)
    except msgspec.ValidationError as error:
        problem = str(error)
        if "got `bool`" in problem or "Expected `str" in problem:
            problem = f"{problem} (YAML reads this as another type: put it in quotes)"
            problem = re.sub(r"^(.*) (- at `.*`) (\(.*\))$", r"\1 \3 \2", problem)
    return Problem(_line_of(problem, node), f"{said}: {problem}", kind, key)


def _key(kind: Kind, metadata: dict[Any, Any]) -> ObjectKey | None:
    namespace = metadata.get("namespace", "") if kind in NAMESPACED else ""
    name = metadata.get("name")
    if isinstance(name, str) and name and isinstance(namespace, str):
        return ObjectKey(namespace, name)
    return None


def _default(kind: Kind, value: dict[Any, Any]) -> str | None:
    """Fill in what an API server would; return a problem that only a manifest can have."""
    match kind:
        case Kind.SERVICE:
            spec = value.get("spec")
            if not isinstance(spec, dict):
                return "has no spec; write `spec:` with clusterIP and ports - at `$.metadata`"
            return _default_service(spec)
        case Kind.ENDPOINT_SLICE:
            return _default_slice(value)
        case Kind.NODE | Kind.SERVICE_CIDR:
            return None


def _default_service(spec: dict[Any, Any]) -> str | None:
    spec.setdefault("type", "ClusterIP")
    if spec["type"] == "ExternalName":
        return None
    addresses = spec.get("clusterIPs")
    if not spec.get("clusterIP") and isinstance(addresses, list) and addresses:
        spec["clusterIP"] = addresses[0]
    address = spec.get("clusterIP")
    if not address:
        return (
            "has no clusterIP, and here is no API server to allocate one; write e.g. "
            "`clusterIP: 10.96.0.10` (or `clusterIP: None` for a headless one) - at `$.spec`"
        )
    if isinstance(address, str):
        if not addresses:
            addresses = spec["clusterIPs"] = [address]
        if address != "None" and isinstance(addresses, list):
            for index, one in enumerate(addresses):
                if isinstance(one, str) and _family(one) is None:
                    at = "clusterIP" if one == address else f"clusterIPs[{index}]"
                    return f"{one!r} is not an IP address - at `$.spec.{at}`"
            if not spec.get("ipFamilies"):
                spec["ipFamilies"] = [_family(one) for one in addresses if isinstance(one, str)]
    _each(spec.get("ports"), lambda port: port.setdefault("protocol", "TCP"))
    spec.setdefault("sessionAffinity", "None")
    if spec["sessionAffinity"] == "ClientIP" and not spec.get("sessionAffinityConfig"):
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": 10800}}
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer") or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    return None


def _default_slice(value: dict[Any, Any]) -> str | None:
    def port_defaults(port: dict[Any, Any]) -> None:
        port.setdefault("name", "")
        port.setdefault("protocol", "TCP")

    _each(value.get("ports"), port_defaults)
    if not value.get("addressType"):
        found: list[Any] = []
        _each(value.get("endpoints"), lambda one: found.extend(one.get("addresses") or ()))
        families = {_family(address) for address in found if isinstance(address, str)}
        if len(families) > 1:
            return "mixes address families; make a slice of each, with addressType - at `$`"
        value["addressType"] = (families.pop() if families else None) or "IPv4"
    return None


def _each(items: Any, change: Any) -> None:
    """Apply *change* to every mapping of a list; anything else is left to the type check."""
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict):
                change(item)


def _family(address: str) -> str | None:
    try:
        return f"IPv{ipaddress.ip_address(address).version}"
    except ValueError:
        pass
    # Leading zeros are read as decimal by kube-proxy, and refused by ipaddress.
    octets = address.split(".")
    plain = len(octets) == 4 and all(o.isdecimal() and int(o) < 256 for o in octets)
    return "IPv4" if plain else None


def _line_of(problem: str, node: yaml.Node) -> int:
    """The line of the path in a message such as ``… - at `$.spec.ports[0].port` ``."""
    match = _PATH.search(problem)
    place: yaml.Node = node
    for name, index in _STEP.findall(match[1]) if match else ():
        child = _child(place, name if name else int(index) if index else 0)
        if child is None:
            break
        place = child
    return int(place.start_mark.line) + 1


def _child(node: yaml.Node, step: str | int) -> yaml.Node | None:
    if isinstance(step, str) and isinstance(node, yaml.MappingNode):
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        for key, value in pairs:
            if isinstance(key, yaml.ScalarNode) and key.value == step:
                return value
    if isinstance(step, int) and isinstance(node, yaml.SequenceNode):
        items: list[yaml.Node] = node.value
        return items[step] if step < len(items) else None
    return None


def is_wanted(loaded: Loaded, node_name: str) -> bool:
    """Apply the selectors that an API server applies for us (`resources.selectors`)."""
    match loaded.object:
        case Service(metadata=metadata, spec=spec):
            proxied = metadata.labels is not None and metadata.labels.proxy_name is not None
            return not proxied and spec.cluster_ip != "None"
        case EndpointSlice(metadata=meta):
            labels = meta.labels
            return labels is None or labels.headless is None
        case Node():
            return loaded.key.name == node_name
        case ServiceCIDR():
            return True
        case _:
            assert_never(loaded.object)
