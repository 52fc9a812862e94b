"""The manifests of deploy/: read, and put together as kustomize does.

Only the part of kustomize that the overlays use: resources, and strategic merges of mappings.
Whatever else a kustomization says is an error here, so that none is believed untested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["DEPLOY", "OVERLAYS", "Object", "kustomized", "load", "the"]

Object = dict[str, Any]

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir() if path.is_dir())


def load(path: Path) -> list[Object]:
    """Every document of a file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def the(objects: list[Object], kind: str, name: str = "pykubeproxy") -> Object:
    """The only object of that kind and name."""
    [found] = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def kustomized(directory: Path) -> list[Object]:
    """What ``kubectl kustomize DIRECTORY`` prints, in the order of the files."""
    objects: list[Object] = []
    _accumulate(directory.resolve(), objects)
    return objects


def _accumulate(directory: Path, objects: list[Object]) -> None:
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    assert "Kustomization" == kustomization.pop("kind")
    assert "kustomize.config.k8s.io/v1beta1" == kustomization.pop("apiVersion")
    for entry in kustomization.pop("resources", ()):
        path = (directory / entry).resolve()
        if path.is_dir():
            # kustomize calls this a cycle.
            assert not directory.is_relative_to(path), f"{path} contains {directory}"
            _accumulate(path, objects)
        else:
            assert path.is_relative_to(directory), f"{path} is not below {directory}"
            objects += load(path)
    for entry in kustomization.pop("patches", ()):
        assert ["path"] == list(entry)
        [patch] = load(directory / entry["path"])
        target = the(objects, patch["kind"], patch["metadata"]["name"])
        assert target["metadata"]["namespace"] == patch["metadata"]["namespace"]
        _merge(target, patch)
    assert {} == kustomization


def _merge(target: Object, patch: Object) -> None:
    for key, value in patch.items():
        assert not isinstance(value, list), (
            f"{key}: lists have merge keys, which are not known here"
        )
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = value
