"""Reads a KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1) into settings.

Strict first, then lenient, as kube-proxy: an unknown or duplicate field is a notice that names
its path, every other fault is a problem. Reading goes on after one, so that all are told at once.
Meaning is left to `pykubeproxy.configbuild`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct

from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import (
    SECTIONS,
    SETTINGS,
    VMODULE_FIELDS,
    Given,
    Type,
    from_document,
    shown,
)

__all__ = ["API_VERSION", "FLOAT", "KIND", "Document", "parse_document", "read_file"]

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

_FIELDS = frozenset(path for path in SETTINGS if not path.startswith("--"))

# What PyYAML's constructors raise on tagged scalars such as `!!bool x` or `!!int ''`; recursion is
# what an anchor within itself ends in.
_BAD_VALUE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    RecursionError,
)


class Document(Struct, frozen=True):
    """What a file says: only fields that count as set, under their paths, and what was odd.

    With ``problems`` (where, and what it is) the file must not be used.
    """

    given: Mapping[str, Given] = {}
    notices: tuple[str, ...] = ()
    problems: tuple[tuple[str, str], ...] = ()


def read_file(path: Path) -> str:
    """Return the text of the file at *path*.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError("--config", f"cannot read {path}: {error}") from error


def parse_document(text: str, name: str) -> Document:
    """Parse *text*; *name* is what messages call the file."""
    try:
        decoded = _decode(text, name)
        _check_kind(decoded.content, name)
    except ConfigError as error:
        return Document(problems=error.problems)
    fields = _Fields(name)
    fields.read(decoded.content)
    notices = fields.notices + [
        f"{name}: field {path} is given twice, the last one counts" for path in decoded.duplicates
    ]
    if decoded.has_more:
        notices.append(f"{name}: only the first YAML document is read, the rest is ignored")
    return Document(fields.given, tuple(notices), tuple(fields.problems))


class _Fields:
    """What was found in a document."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.given: dict[str, Given] = {}
        self.notices: list[str] = []
        self.problems: list[tuple[str, str]] = []

    def read(self, section: Mapping[object, object], prefix: str = "") -> None:
        for key, value in section.items():
            path = _path(prefix, key)
            # A key with a dot in it is no path.
            known = isinstance(key, str) and "." not in key
            if known and path in _FIELDS:
                self._read_field(path, value)
            elif known and path in SECTIONS:
                if isinstance(value, dict):
                    self.read(value, f"{path}.")
                elif value is not None:
                    expected = f"invalid value {shown(value)}: must be a mapping of fields"
                    self.problems.append((path, expected))
            elif path not in ("apiVersion", "kind"):
                hint = _suggestion(path)
                self.notices.append(f"{self._name}: unknown field {path}, ignored{hint}")

    def _read_field(self, path: str, value: object) -> None:
        if value is None:
            return
        setting = SETTINGS[path]
        if setting.type is Type.VMODULE and isinstance(value, list):
            self._note_items(path, value)
        try:
            parsed = from_document(setting.type, value, path)
        except ConfigError as error:
            self.problems += error.problems
            return
        if parsed in ("", (), {}) or (setting.zero_is_unset and parsed == 0):
            return
        self.given[path] = Given(parsed, path)

    def _note_items(self, path: str, items: list[object]) -> None:
        """Tell what is not known in the items of the list at *path*."""
        for index, item in enumerate(items):
            for key in item if isinstance(item, dict) else ():
                if key in VMODULE_FIELDS:
                    continue
                here = f"{path}[{index}]."
                near = get_close_matches(_path("", key), VMODULE_FIELDS, n=1, cutoff=0.7)
                hint = f"; did you mean {here}{near[0]}?" if near else ""
                unknown = f"unknown field {_path(here, key)}, ignored{hint}"
                self.notices.append(f"{self._name}: {unknown}")


def _path(prefix: str, key: object) -> str:
    """*key* below *prefix*, as text that stays on its line."""
    text = key if isinstance(key, str) else shown(key)
    return f"{prefix}{text if text.isprintable() and len(text) <= 100 else shown(text)}"


def _suggestion(path: str) -> str:
    """What was probably meant: a field of nearly this name here, or of this name elsewhere."""
    section, _, last = path[:100].lower().rpartition(".")
    elsewhere = {name.lower(): name for name in sorted(_FIELDS | SECTIONS)}
    here = {
        name.rpartition(".")[2]: name for name in elsewhere if name.rpartition(".")[0] == section
    }
    near = [here[name] for name in get_close_matches(last, here, n=1, cutoff=0.7)]
    near = near or [name for name in elsewhere if name.rpartition(".")[2] == last]
    return f"; did you mean {elsewhere[near[0]]}?" if near else ""


def _check_kind(document: object, name: str) -> None:
    if not isinstance(document, dict):
        raise ConfigError("--config", f"{name} must hold a mapping with apiVersion and kind")
    problems = []
    for field, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(field) != wanted:
            found = f"invalid value {shown(document[field])}" if field in document else "missing"
            problems.append((field, f"{found} in {name}: must be {wanted!r}"))
    if problems:
        raise ConfigError.of(problems)


# --- decoding ---


class _Decoded(Struct, frozen=True):
    """The first document of a text, the paths that it has twice, and whether others follow it."""

    content: Any
    duplicates: list[str]
    has_more: bool = False


def _decode(text: str, name: str) -> _Decoded:
    """Return what *text* holds.

    Raises:
        ConfigError: it is neither JSON nor YAML.
    """
    duplicates: list[str] = []
    is_object = text.lstrip().startswith("{")  # which kube-proxy takes for JSON: one, and the end
    if is_object:
        # YAML has most of JSON in it, but not tabs and not its escapes.
        try:
            pairs = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse)
            return _Decoded(_plain(pairs, "", duplicates), duplicates)
        except (ValueError, RecursionError):
            duplicates.clear()
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        raise _undecodable(name, error) from error
    loader.duplicates = duplicates
    try:
        if is_object:
            return _Decoded(loader.get_single_data(), duplicates)
        return _Decoded(loader.get_data(), duplicates, _has_more(loader))
    except yaml.YAMLError as error:
        raise _undecodable(name, error) from error
    except _BAD_VALUE as error:
        raise ConfigError("--config", f"{name}{_culprit(loader)}") from error
    finally:
        loader.dispose()


def _undecodable(name: str, error: yaml.YAMLError) -> ConfigError:
    problem = " ".join(str(error).split())
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        parts = " ".join(filter(None, (error.context, error.problem)))
        problem = f"line {error.problem_mark.line + 1}: {parts}"
    problem = "".join(char if char.isprintable() else "?" for char in problem)
    return ConfigError("--config", f"{name} is neither YAML nor JSON: {problem}")


def _has_more(loader: _Loader) -> bool:
    """Whether there is content behind the first document, which *loader* has read.

    kube-proxy's library does not look there, so it is nobody's fault if it is no YAML.
    """
    try:
        while not loader.check_event(yaml.StreamEndEvent):
            event = loader.get_event()  # type: ignore[no-untyped-call]  # the stubs lack it
            around = isinstance(event, yaml.DocumentStartEvent | yaml.DocumentEndEvent)
            if not around and getattr(event, "value", None) != "":
                return True
    except yaml.YAMLError:
        return True
    return False


class _Pairs(list[tuple[str, Any]]):
    """An object of a JSON text, with what is given twice still in it."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _plain(value: object, path: str, duplicates: list[str]) -> Any:
    if isinstance(value, _Pairs):
        seen: dict[str, Any] = {}
        for key, item in value:
            below = f"{path}.{key}" if path else key
            if key in seen:
                duplicates.append(below)
            seen[key] = _plain(item, below, duplicates)
        return seen
    if isinstance(value, list):
        return [_plain(item, f"{path}[{index}]", duplicates) for index, item in enumerate(value)]
    return value


def _culprit(loader: _Loader) -> str:
    """Where and what the value is whose construction failed: the last that was begun."""
    nodes: list[yaml.Node] = list(loader.recursive_objects)
    if not nodes:
        return " holds a value that cannot be read"
    what = nodes[-1].tag.replace("tag:yaml.org,2002:", "!!")
    value = nodes[-1].value
    text = shown(value) if isinstance(nodes[-1], yaml.ScalarNode) else "a mapping or list"
    return f":{nodes[-1].start_mark.line + 1}: {text} cannot be read as {what}"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as Go's library reads it, which differs from SafeLoader in some plain scalars.

    Those that look like dates or like numbers to base 60 (an IPv6 address may) stay text, and
    1e3 is a number. Duplicate keys are noted with their path.
    """

    duplicates: list[str]

    def construct_document(self, node: yaml.Node) -> object:
        self._note_duplicates(node, "", set())
        return super().construct_document(node)

    def _note_duplicates(self, node: yaml.Node, prefix: str, visited: set[int]) -> None:
        # An alias is the node it stands for: once is enough, and often would be exponential.
        if not isinstance(node, yaml.CollectionNode) or id(node) in visited:
            return
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self._note_duplicates(item, f"{prefix[:-1]}[{index}].", visited)
            return
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            path = _path(prefix, key.value)
            if path in seen:
                self.duplicates.append(path)
            seen.add(path)
            self._note_duplicates(value, f"{path}.", visited)


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":timestamp", ":int", ":float", ":value"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?0b[0-1_]+$|[-+]?0[0-7_]+$|[-+]?(?:0|[1-9][0-9_]*)$|[-+]?0x[0-9a-fA-F_]+$"),
    list("-+0123456789"),
)
FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$"
        r"|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)
"""How a plain scalar looks that is a number; for PyYAML's ``add_implicit_resolver``."""
_Loader.add_implicit_resolver(*FLOAT)
