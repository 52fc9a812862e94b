from __future__ import annotations

import math
import struct
from collections import defaultdict

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import Metric, SummaryMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from pykubeproxy.metrics.counting import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.serve.exposition import text
from pykubeproxy.serve.protobuf import delimited

TYPES = {0: "counter", 1: "gauge", 2: "summary", 3: "unknown", 4: "histogram"}


@pytest.fixture
def registry():
    return CollectorRegistry()


def test_a_counter_to_the_byte(registry):
    Counter("a", "Hi", ["z", "b"], registry=registry).labels("", "y").inc(3)
    assert (
        b"\x2b"  # so long is the family
        b"\x0a\x07a_total" b"\x12\x02Hi" b"\x18\x00"
        b"\x22\x1a"
        b"\x0a\x06\x0a\x01b\x12\x01y"
        b"\x0a\x05\x0a\x01z\x12\x00"
        b"\x1a\x09\x09\x00\x00\x00\x00\x00\x00\x08\x40"
    ) == delimited(registry.collect())  # fmt: skip


def test_a_histogram_to_the_byte(registry):
    histogram = Histogram("h", "H", buckets=(0.5, 1), registry=registry)
    for _ in range(200):
        histogram.observe(1)
    assert (
        b"\x33"
        b"\x0a\x01h" b"\x12\x01H" b"\x18\x04"
        b"\x22\x29"
        b"\x3a\x27"
        b"\x08\xc8\x01" b"\x11\x00\x00\x00\x00\x00\x00\x69\x40"
        b"\x1a\x0b\x08\x00\x11\x00\x00\x00\x00\x00\x00\xe0\x3f"
        b"\x1a\x0c\x08\xc8\x01\x11\x00\x00\x00\x00\x00\x00\xf0\x3f"
    ) == delimited(registry.collect())  # fmt: skip


def test_what_has_no_series_is_left_out(registry):
    Gauge("labelled", "No series yet", ["x"], registry=registry)
    assert b"" == delimited(registry.collect())


# --- a decoder ---


def varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def fields(message):
    """What is in *message*, by the number of the field."""
    found, at = defaultdict(list), 0
    while at < len(message):
        tag, at = varint(message, at)
        match tag & 7:
            case 0:
                value, at = varint(message, at)
            case 1:
                (value,) = struct.unpack_from("<d", message, at)
                at += 8
            case 2:
                length, at = varint(message, at)
                value = message[at : at + length]
                at += length
                assert at <= len(message)
            case other:
                raise AssertionError(other)
        found[tag >> 3].append(value)
    return found


def messages(page):
    at = 0
    while at < len(page):
        length, at = varint(page, at)
        yield fields(page[at : at + length])
        at += length


def samples(name, kind, metric):
    """Name, labels and value of each sample of one Metric, as the text has them."""
    pairs = (fields(pair) for pair in metric[1])
    labels = {pair[1][0].decode(): pair[2][0].decode() for pair in pairs}
    field = {"gauge": 2, "counter": 3, "summary": 4, "unknown": 5, "histogram": 7}[kind]
    assert {1, field} >= metric.keys() - {1} == {field}
    (value,) = map(fields, metric[field])
    if kind not in ("histogram", "summary"):
        yield name, labels, value[1][0]
        return
    ((count,), (total,)) = value[1], value[2]
    yield f"{name}_count", labels, count
    yield f"{name}_sum", labels, total
    for part in map(fields, value[3]):
        if kind == "summary":
            yield name, labels | {"quantile": part[1][0]}, part[2][0]
        else:
            yield f"{name}_bucket", labels | {"le": part[2][0]}, part[1][0]
    if kind == "histogram":
        yield f"{name}_bucket", labels | {"le": math.inf}, count


def decoded(page):
    return {
        family[1][0].decode(): (
            TYPES[family[3][0]],
            family[2][0].decode(),
            series(
                sample
                for metric in map(fields, family[4])
                for sample in samples(family[1][0].decode(), TYPES[family[3][0]], metric)
            ),
        )
        for family in messages(page)
    }


def of_text(page):
    numbers = ("le", "quantile")
    return {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            family.documentation,
            series(
                (
                    sample.name,
                    {n: float(v) if n in numbers else v for n, v in sample.labels.items()},
                    sample.value,
                )
                for sample in family.samples
            ),
        )
        for family in text_string_to_metric_families(page.decode())
    }


def series(triples):
    return {
        (name, *sorted(labels.items())): "NaN" if math.isnan(value) else value
        for name, labels, value in triples
    }


def test_it_says_what_the_text_says(registry):
    Counter("a", "Count \\ \n", ["x"], registry=registry).labels('q"\\\nq').inc(0)
    Gauge("nothing", "N", registry=registry).set(math.nan)
    Gauge("most", "M", registry=registry).set(-math.inf)
    Info("build", "Info", registry=registry).info({"version": "\u00e9" * 200})
    summary = SummaryMetricFamily("s", "S", labels=["x"])
    summary.add_metric(["y"], 5, 1.5)
    summary.add_sample("s", {"x": "y", "quantile": "0.5"}, 0.25)
    untyped = Metric("u", "U", "untyped")
    untyped.add_sample("u", {}, 300)
    metrics = [*registry.collect(), summary, untyped]
    assert of_text(text(metrics)) == decoded(delimited(metrics))


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_the_daemons_metrics_are_the_same_as_in_the_text(mode):
    metrics = Metrics(mode)
    for family in Family:
        metrics.started(family)
        metrics.sync_ended(family, 0.3, full=True)
        metrics.programmed(family, [0.1, 700.0])
    metrics.received(services=3, slices=400, changed_slices=2)
    collected = list(metrics.registry.collect())
    expected = of_text(text(collected))
    assert 20 < len(expected)
    assert expected == decoded(delimited(collected))
    assert list(expected) == list(decoded(delimited(collected)))
