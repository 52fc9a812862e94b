"""What the API server lets through of events.k8s.io/v1 Events, after Kubernetes 1.36.

Rules: pkg/apis/core/validation/events.go, and RFC 7386 for merge patches.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from tests.fakes.apistore import Object

__all__ = ["merged", "problem_with_change", "problem_with_event"]

NOTE_BYTES = 1024
SHORT = 128
_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)")
MERGE_PATCH = "application/merge-patch+json"


def problem_with_event(event: Object, namespace: str) -> str | None:
    """Say why an Event may not be created in *namespace*."""
    metadata = event.get("metadata", {})
    name = metadata.get("name") or f"{metadata.get('generateName', '')}x7k2p"
    if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
        return f'metadata.name: Invalid value: "{name}": a lowercase RFC 1123 subdomain'
    if metadata.get("namespace", namespace) != namespace:
        return "the namespace of the provided object does not match the request"
    regarding = event.get("regarding", {})
    if (regarding.get("namespace") or "default") != namespace:
        return "involvedObject.namespace: Invalid value: does not match event.namespace"
    if not _MICRO_TIME.fullmatch(event.get("eventTime") or ""):
        return "eventTime: Required value"
    if not _QUALIFIED.fullmatch(event.get("reportingController", "")):
        return "reportingController: Required value"
    for field in ("reportingInstance", "action", "reason"):
        text = event.get(field, "")
        if not text or len(text) > SHORT:
            return f"{field}: Required value, and at most {SHORT} characters"
    if len(event.get("note", "").encode()) > NOTE_BYTES:
        return f"message: Invalid value: can have at most {NOTE_BYTES} characters"
    if event.get("type") not in ("Normal", "Warning"):
        return 'type: Invalid value: "": has invalid value'
    return _problem_with_series(event.get("series"))


def problem_with_change(old: Object, new: Object) -> str | None:
    """Say why an Event may not become another: all but its series is immutable."""
    for field in old.keys() | new.keys():
        if field not in ("series", "metadata") and old.get(field) != new.get(field):
            return f"{field}: Invalid value: field is immutable"
    return _problem_with_series(new.get("series"))


def merged(target: Any, patch: Any) -> Any:
    """Apply a merge patch."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _problem_with_series(series: Object | None) -> str | None:
    if series is None:
        return None
    if series.get("count", 0) < 2:
        return "series.count: Invalid value: should be at least 2"
    if not _MICRO_TIME.fullmatch(series.get("lastObservedTime") or ""):
        return "series.lastObservedTime: Required value"
    return None
