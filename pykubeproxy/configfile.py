"""Reads a KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1) into settings.

Strict first, then lenient, as kube-proxy: an unknown or duplicate field is a notice that names
its path, every other fault is an error. Meaning is left to `pykubeproxy.config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from msgspec import Struct

from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import SETTINGS, Given, from_document

__all__ = ["API_VERSION", "KIND", "Document", "load_file", "parse_document"]

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

_SECTIONS = frozenset(
    path.rsplit(".", depth)[0]
    for path in SETTINGS
    if not path.startswith("--")
    for depth in range(1, path.count(".") + 1)
)

# What PyYAML's constructors raise on tagged scalars such as `!!bool x` or `!!int ''`; recursion is
# what an anchor within itself ends in.
_BAD_VALUE = (
    *(ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    RecursionError,
)


class Document(Struct, frozen=True):
    """What a file says: only fields that count as set, under their paths, and what was odd."""

    given: Mapping[str, Given]
    notices: tuple[str, ...] = ()


def load_file(path: Path) -> Document:
    """Read and parse the file at *path*.

    Raises:
        ConfigError: unreadable, not YAML or JSON, another kind, or a value of a wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("--config", f"cannot read {path}: {error}") from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """Parse *text*; *name* is what messages call the file.

    Raises:
        ConfigError: as `load_file`.
    """
    duplicates: list[str] = []
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError("--config", f"{name} is neither YAML nor JSON: {problem}") from error
    loader.duplicates = duplicates
    try:
        document = loader.get_single_data()
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError("--config", f"{name} is neither YAML nor JSON: {problem}") from error
    except _BAD_VALUE as error:
        raise ConfigError("--config", f"{name}{_culprit(loader)}") from error
    finally:
        loader.dispose()
    if not isinstance(document, dict):
        raise ConfigError("--config", f"{name} must hold a mapping with apiVersion and kind")
    for field, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if document.get(field) != wanted:
            found = repr(document[field]) if field in document else "missing"
            raise ConfigError(field, f"{found} in {name}; must be {wanted!r}")

    given: dict[str, Given] = {}
    unknown: list[str] = []
    for field_path, value in _leaves(document, unknown):
        setting = SETTINGS[field_path]
        if value is None:
            continue
        parsed = from_document(setting.type, value, field_path)
        if parsed in ("", (), {}) or (setting.zero_is_unset and parsed == 0):
            continue
        given[field_path] = Given(parsed, field_path)
    return Document(
        given,
        tuple(f"{name}: unknown field {path}, ignored" for path in unknown)
        + tuple(f"{name}: field {path} is given twice, the last one counts" for path in duplicates),
    )


def _culprit(loader: _Loader) -> str:
    """Where and what the value is whose construction failed: the last that was begun."""
    nodes: list[yaml.Node] = list(loader.recursive_objects)
    if not nodes:
        return " holds a value that cannot be read"
    what = nodes[-1].tag.replace("tag:yaml.org,2002:", "!!")
    return f":{nodes[-1].start_mark.line + 1}: {nodes[-1].value!r} cannot be read as {what}"


def _leaves(
    section: dict[object, object], unknown: list[str], prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield path and value of every known field; append the paths of others to *unknown*."""
    for name, value in section.items():
        path = f"{prefix}{name}"
        if path in SETTINGS and not path.startswith("--"):
            yield path, value
        elif path in _SECTIONS:
            if isinstance(value, dict):
                yield from _leaves(value, unknown, f"{path}.")
            elif value is not None:
                raise ConfigError(path, f"{value!r} has the wrong type; a mapping belongs here")
        elif path not in ("apiVersion", "kind"):
            unknown.append(path)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as SafeLoader reads it, but duplicate keys are noted with their path.

    Plain scalars that look like dates stay text, as in Go.
    """

    duplicates: list[str]

    def construct_document(self, node: yaml.Node) -> object:
        self._note_duplicates(node, "")
        return super().construct_document(node)

    def _note_duplicates(self, node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key, value in node.value:
            path = f"{prefix}{key.value}"
            if path in seen:
                self.duplicates.append(path)
            seen.add(path)
            self._note_duplicates(value, f"{path}.")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
