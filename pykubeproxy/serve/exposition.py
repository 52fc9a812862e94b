"""Metrics as text, in the very form in which kube-proxy's libraries write them.

prometheus-client writes ``le="1.0"`` where Go writes ``le="1"``, and a series of the time at which
each counter was made. A label that reads otherwise is another series: queries that name a bucket
would find nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from math import isinf, isnan

from prometheus_client.core import Metric

__all__ = ["families", "full_name", "go_float", "text"]

_TYPES = {"unknown": "untyped", "info": "gauge", "stateset": "gauge"}
_SUFFIXES = {"counter": "_total", "info": "_info"}
_NUMBERS = frozenset({"le", "quantile"})


def families(metrics: Iterable[Metric]) -> list[Metric]:
    """Those of *metrics* that are shown, in the order of their names."""
    return sorted((metric for metric in metrics if metric.samples), key=full_name)


def full_name(metric: Metric) -> str:
    """Return the name as Go has it; prometheus-client leaves the end of some out."""
    return metric.name + _SUFFIXES.get(metric.type, "")


def text(metrics: Iterable[Metric]) -> bytes:
    """Write *metrics*, by name. Those without samples are left out, as in Go."""
    lines: list[str] = []
    for metric in families(metrics):
        name = full_name(metric)
        help_text = metric.documentation.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"# HELP {name} {help_text}")
        lines.append(f"# TYPE {name} {_TYPES.get(metric.type, metric.type)}")
        made = f"{metric.name}_created"
        count, total = f"{metric.name}_count", f"{metric.name}_sum"
        held = ""
        for sample in metric.samples:
            if sample.name == made:
                continue
            line = f"{sample.name}{_labels(sample.labels)} {go_float(sample.value)}"
            if sample.name == count and metric.type == "histogram":
                held = line  # Go writes it last
                continue
            lines.append(line)
            if held and sample.name == total:
                lines.append(held)
                held = ""
    lines.append("")
    return "\n".join(lines).encode()


@lru_cache(maxsize=4096)
def go_float(value: float) -> str:
    """Write *value* as Go's ``strconv`` does with format ``g`` and as few digits as are needed."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    shortest = repr(float(value))
    if "e" in shortest:
        return shortest
    whole, _, fraction = shortest.partition(".")
    sign, digits = ("-", whole[1:]) if whole[0] == "-" else ("", whole)
    if len(digits) > 6:
        mantissa = f"{digits}{fraction}".rstrip("0")
        point = "." if len(mantissa) > 1 else ""
        return f"{sign}{mantissa[0]}{point}{mantissa[1:]}e+{len(digits) - 1:02d}"
    return whole if fraction == "0" else shortest


def _labels(labels: Mapping[str, str]) -> str:
    """By name, and what makes a bucket last."""
    if not labels:
        return ""
    names = sorted(labels, key=lambda name: (name in _NUMBERS, name))
    shown = (
        f'{name}="{go_float(float(labels[name])) if name in _NUMBERS else _escaped(labels[name])}"'
        for name in names
    )
    return f"{{{','.join(shown)}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
