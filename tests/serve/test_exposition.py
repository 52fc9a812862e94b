from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.parser import text_string_to_metric_families

from pykubeproxy.serve.exposition import go_float, text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (1, "1"),
        (-1, "-1"),
        (0.5, "0.5"),
        (0.001, "0.001"),
        (16.384, "16.384"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (100000, "100000"),
        (999999.5, "999999.5"),
        (1000000, "1e+06"),
        (1048576, "1.048576e+06"),
        (4194304, "4.194304e+06"),
        (16777216, "1.6777216e+07"),
        (-1234567.25, "-1.23456725e+06"),
        (1767312245.25, "1.76731224525e+09"),
        (1e16, "1e+16"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_written_as_go_writes_them(value, expected):
    assert expected == go_float(value)


@pytest.fixture
def registry():
    return CollectorRegistry()


def test_a_page(registry):
    histogram = Histogram("b_seconds", "How long", ["f"], buckets=(0.25, 1, 60), registry=registry)
    histogram.labels("IPv4").observe(0.5)
    Gauge("c", "A\\b\nc", registry=registry).set(1_700_000)
    Counter("a", "Count", ["z", "b"], registry=registry).labels('x"\\\n', "y").inc(3)
    assert (
        r"""
# HELP a_total Count
# TYPE a_total counter
a_total{b="y",z="x\"\\\n"} 3
# HELP b_seconds How long
# TYPE b_seconds histogram
b_seconds_bucket{f="IPv4",le="0.25"} 0
b_seconds_bucket{f="IPv4",le="1"} 1
b_seconds_bucket{f="IPv4",le="60"} 1
b_seconds_bucket{f="IPv4",le="+Inf"} 1
b_seconds_sum{f="IPv4"} 0.5
b_seconds_count{f="IPv4"} 1
# HELP c A\\b\nc
# TYPE c gauge
c 1.7e+06
""".lstrip()
        == text(registry.collect()).decode()
    )


def test_what_has_no_series_is_left_out(registry):
    Gauge("labelled", "No series yet", ["x"], registry=registry)
    assert b"" == text(registry.collect())


def test_it_reads_back(registry):
    Counter("a", "Count", ["x"], registry=registry).labels('q"\\\nq').inc()
    Histogram("h", "Histogram", registry=registry).observe(3)
    Info("build", "Info", registry=registry).info({"version": "1"})
    read = {family.name: family for family in text_string_to_metric_families(
        text(registry.collect()).decode()
    )}  # fmt: skip
    assert {"a": "counter", "h": "histogram", "build_info": "gauge"} == {
        name: family.type for name, family in read.items()
    }
    assert {"x": 'q"\\\nq'} == read["a"].samples[0].labels
