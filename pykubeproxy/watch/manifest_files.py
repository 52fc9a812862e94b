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
# What PyYAML's constructors raise on tagged scalars such as `!!int ''` or `!!bool x`.
_BAD_SCALAR = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
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
    """What a file says.

    *broken* is set where it could not be read as YAML or JSON at all; *empty* where it says nothing
    (not even a List without items).
    """

    objects: tuple[Loaded, ...] = ()
    problems: tuple[Problem, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    broken: Problem | None = None
    empty: bool = False


class _Loader(_Base):  # type: ignore[misc]  # the base is chosen at run time
    """Safe YAML whose timestamps stay text, as in kubectl's YAML-to-JSON conversion."""


class _Refused(yaml.MarkedYAMLError):
    """YAML that could be read, or nearly, and is not wanted."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


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
    empty = True
    try:
        for value, node in _documents(text, is_json):
            empty = empty and value is None
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
    # ReaderError (control characters) has no mark; a ValueError is text that is no Unicode, or a
    # JSON number of thousands of digits.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return FileContent(broken=Problem(1, f"not {'JSON' if is_json else 'YAML'}: {error}"))
    return FileContent(tuple(objects), tuple(problems), tuple(skipped), empty=empty)


def _documents(text: str, is_json: bool) -> Iterator[tuple[Any, yaml.Node]]:
    if is_json:
        yield _json(text)
        return
    _check(text)
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            try:
                value = loader.construct_document(node)
            except _BAD_SCALAR as error:
                raise _Refused(*_culprit(loader, node, error)) from error
            yield value, node
    finally:
        loader.dispose()


def _json(text: str) -> tuple[Any, yaml.Node]:
    """The value as JSON has it; YAML, which is not quite a superset, knows only the lines."""
    twice: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for name, inner in found:
            if name in value:
                twice.append(name)
            value[name] = inner
        return value

    value = json.loads(text, object_pairs_hook=pairs)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    lines = text.replace("\t", " ")  # legal in JSON between values, and only there
    try:
        _check(lines)
        node: Any = yaml.compose(lines, Loader=_Loader)
    except _Refused:
        raise
    except (yaml.YAMLError, ValueError):
        start: Any = yaml.Mark("", 0, 0, 0, None, 0)
        node = yaml.ScalarNode("tag:yaml.org,2002:null", "", start, start)
    if twice:
        raise _Refused(f"key {twice[0]!r} appears twice", None)
    return value, node


def _culprit(loader: Any, node: yaml.Node, error: Exception) -> tuple[str, Any]:
    """What to say of the value whose construction failed: the last that was begun."""
    place = list(loader.recursive_objects or [node])[-1]
    what = str(place.tag).replace("tag:yaml.org,2002:", "!!")
    value = f"{place.value[:40]!r} " if isinstance(place, yaml.ScalarNode) else "a value "
    return f"{value}cannot be read as {what} ({type(error).__name__})", place.start_mark


def _check(text: str) -> None:
    """Refuse what no manifest needs, before anything is built.

    Depth, because libyaml's composer recurses in C and ends the process. Equal keys, because
    PyYAML lets the last of them win in silence; kubectl refuses them too.
    """
    # Of each open collection: the keys so far (None in a sequence), and whether one comes next.
    keys: set[str] | None = None
    at_key = False
    outer: list[tuple[set[str] | None, bool]] = []
    anchors: dict[str, str] = {}
    events: Any = yaml.parse(text, Loader=_Base)  # the stubs know other classes for each parser
    for event in events:
        if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
            if isinstance(event, yaml.AliasEvent):
                name = anchors.get(event.anchor or "")
            else:
                name = event.value
                if event.anchor is not None:
                    anchors[event.anchor] = name
            if keys is None:
                continue
            if at_key and name is not None and name != "<<":
                if name in keys:
                    raise _Refused(f"key {name!r} appears twice", event.start_mark)
                keys.add(name)
            at_key = not at_key
        elif isinstance(event, yaml.CollectionStartEvent):
            outer.append((keys, at_key))
            if len(outer) > MAX_DEPTH:
                raise _Refused(f"more than {MAX_DEPTH} levels deep", event.start_mark)
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            keys, at_key = (set() if is_mapping else None), is_mapping
        elif isinstance(event, yaml.CollectionEndEvent):
            keys, at_key = outer.pop()
            at_key = not at_key  # it was a key or a value itself; of no meaning in a sequence


def _items(value: Any, node: yaml.Node) -> Iterator[tuple[Any, yaml.Node]]:
    """The objects of a document: itself, or the items of a List."""
    if value is None:
        return  # an empty document, as between two `---`
    name = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in _LISTS:
        yield value, node
        return
    item_kind = _LISTS[name]
    items = value.get("items") or []
    if not isinstance(items, list):
        yield value, node
        return
    found = _child(node, "items")
    places = list(found.value) if isinstance(found, yaml.SequenceNode) else []
    if len(places) != len(items):
        places = [node] * len(items)  # e.g. merged in with `<<`
    for item, place in zip(items, places, strict=True):
        if item_kind is not None and isinstance(item, dict):
            # The items of a typed list need not repeat what the list says.
            item.setdefault("kind", str(item_kind))
            item.setdefault("apiVersion", value.get("apiVersion"))
        yield from _items(item, place)


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
        _each(value.get("endpoints"), lambda one: found.extend(_list(one.get("addresses"))))
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


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _family(address: str) -> str | None:
    try:
        return f"IPv{ipaddress.ip_address(address).version}"
    except ValueError:
        pass
    # Leading zeros are read as decimal by kube-proxy, and refused by ipaddress.
    octets = address.split(".")
    if len(octets) != 4 or not all(octet.isascii() and octet.isdecimal() for octet in octets):
        return None
    digits = [octet.lstrip("0") for octet in octets]
    return "IPv4" if all(len(d) < 4 and int(d or 0) < 256 for d in digits) else None


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
