"""Metrics as messages of protocol buffers, which Prometheus asks for with native histograms.

The messages are those of prometheus/client_model, ``metrics.proto``, each behind its length. As
in Go's client, the bucket without a bound is left out (it is the count), and what is 0 is told.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from msgspec import Struct
from prometheus_client.core import Metric

from pykubeproxy.serve.exposition import families, full_name

__all__ = ["delimited"]


class _Kind(NamedTuple):
    """A MetricType, and the field of Metric that holds its values."""

    number: int
    field: int


_UNTYPED = _Kind(3, field=5)
_GAUGE = _Kind(1, field=2)
_KINDS = {
    "counter": _Kind(0, field=3),
    "gauge": _GAUGE,
    "info": _GAUGE,
    "stateset": _GAUGE,
    "summary": _Kind(2, field=4),
    "histogram": _Kind(4, field=7),
}

_VARINT, _FIXED64, _BYTES = 0, 1, 2

_LabelPairs = tuple[tuple[str, str], ...]


class _Spread(Struct):
    """A histogram or a summary, gathered from its samples."""

    count: int = 0
    total: float = 0.0
    parts: bytes = b""  # buckets or quantiles, encoded


def delimited(metrics: Iterable[Metric]) -> bytes:
    """Write *metrics*, by name. Those without samples are left out, as in the text."""
    page = bytearray()
    for metric in families(metrics):
        family = _family(metric)
        page += _varint(len(family))
        page += family
    return bytes(page)


def _family(metric: Metric) -> bytes:
    kind = _KINDS.get(metric.type, _UNTYPED)
    name, text = full_name(metric).encode(), metric.documentation.encode()
    message = bytearray(_bytes(1, name) + _bytes(2, text) + _unsigned(3, kind.number))
    values = _spreads(metric) if metric.type in ("histogram", "summary") else _numbers(metric)
    for labels, value in values:
        pairs = (_bytes(1, _bytes(1, n.encode()) + _bytes(2, v.encode())) for n, v in labels)
        message += _bytes(4, b"".join(pairs) + _bytes(kind.field, value))
    return bytes(message)


def _numbers(metric: Metric) -> Iterator[tuple[_LabelPairs, bytes]]:
    made = f"{metric.name}_created"
    for sample in metric.samples:
        if sample.name != made:
            yield _pairs(sample.labels), _double(1, sample.value)


def _spreads(metric: Metric) -> Iterator[tuple[_LabelPairs, bytes]]:
    spreads: dict[_LabelPairs, _Spread] = {}
    for sample in metric.samples:
        spread = spreads.setdefault(_pairs(sample.labels, without=("le", "quantile")), _Spread())
        match sample.name.removeprefix(metric.name):
            case "_count":
                spread.count = int(sample.value)
            case "_sum":
                spread.total = sample.value
            case "_bucket" if sample.labels["le"] != "+Inf":
                bound = float(sample.labels["le"])
                spread.parts += _bytes(3, _unsigned(1, int(sample.value)) + _double(2, bound))
            case "":
                quantile = float(sample.labels["quantile"])
                spread.parts += _bytes(3, _double(1, quantile) + _double(2, sample.value))
    for labels, spread in spreads.items():
        yield labels, _unsigned(1, spread.count) + _double(2, spread.total) + spread.parts


def _pairs(labels: Mapping[str, str], without: tuple[str, ...] = ()) -> _LabelPairs:
    return tuple(sorted(pair for pair in labels.items() if pair[0] not in without))


# --- the wire; all numbers of fields are less than 16 ---


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _unsigned(field: int, number: int) -> bytes:
    return bytes((field << 3 | _VARINT,)) + _varint(number)


def _double(field: int, value: float) -> bytes:
    return struct.pack("<Bd", field << 3 | _FIXED64, value)


def _bytes(field: int, content: bytes) -> bytes:
    return bytes((field << 3 | _BYTES,)) + _varint(len(content)) + content
