"""The files of deploy/monitoring, and what is in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from e2e.kernel.running import REPOSITORY

__all__ = [
    "MONITORING",
    "OF_IPVS_MODE",
    "RULES",
    "Query",
    "alerts",
    "dashboard",
    "filled_in",
    "metric_names",
    "panels",
    "queries",
]

MONITORING = REPOSITORY / "deploy" / "monitoring"
RULES = MONITORING / "rules.yaml"

OF_IPVS_MODE = frozenset(
    {
        "pykubeproxy_virtual_servers",
        "pykubeproxy_real_servers",
        "pykubeproxy_netlink_messages_total",
    }
)
"""Metrics that a daemon in iptables mode does not have."""

_VARIABLES = {
    "$job": ".+",
    "$instance": ".+",
    "$ip_family": ".*",
    "$__rate_interval": "1m",
    "$__range": "1m",
}
_NOT_METRICS = re.compile(
    r'"(?:[^"\\]|\\.)*"'  # strings
    r"|\{[^}]*\}"  # matchers
    r"|\[[^]]*\]"  # ranges
    r"|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)"
    r"|\b\d[\w.]*"  # numbers and durations
)
_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_NAME = re.compile(r"\b([a-zA-Z_:][\w:]*)\b(?!\s*\()")


class Query(NamedTuple):
    """One query of a panel."""

    panel: str
    letter: str
    text: str

    def __str__(self) -> str:
        return f"{self.panel} {self.letter}"


def alerts() -> list[dict[str, Any]]:
    """All alert rules, as written."""
    content = yaml.safe_load(RULES.read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text())
    return content


def panels() -> Iterator[dict[str, Any]]:
    """All panels but the headings of rows."""
    return (panel for panel in dashboard()["panels"] if panel["type"] != "row")


def queries() -> list[Query]:
    """Every query of the dashboard, with its variables filled in; annotations are one panel."""
    found = [
        Query(panel["title"], target["refId"], filled_in(target["expr"]))
        for panel in panels()
        for target in panel["targets"]
    ]
    notes = dashboard()["annotations"]["list"]
    return found + [Query("annotation", note["name"], filled_in(note["expr"])) for note in notes]


def filled_in(text: str) -> str:
    """*text* with all selected, as Grafana would send it."""
    for variable, value in _VARIABLES.items():
        text = text.replace(variable, value)
    if "$" in text:
        raise ValueError(f"an unknown variable: {text}")
    return text


def metric_names(text: str) -> set[str]:
    """The names of metrics in a PromQL expression, histograms by the names of their parts."""
    # Matchers first: a name may be followed by them, and must not be taken for a function.
    rest = _NOT_METRICS.sub(" ", text)
    return {name for name in _NAME.findall(rest) if name not in _KEYWORDS}
