"""Measures in Prometheus' terms, as Go's client would show them."""

from __future__ import annotations

import pytest
from prometheus_client.exposition import generate_latest

from pykubeproxy.measures import Counts, Distribution, Gauges, Readings, Text
from pykubeproxy.metrics.registry import Measures, Registry, go_float

META = {
    "registered_metrics",
    "disabled_metrics",
    "hidden_metrics",
    "cardinality_enforcement_unexpected_categorizations",
}


def registry(*measures):
    made, collector = Registry(), Measures()
    made.register(collector)
    for measure in measures:
        collector.add(measure)
    return made


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.001, "0.001"),
        (16.384, "16.384"),
        (1.0, "1"),
        (300, "300"),
        (262144, "262144"),
        (1048576, "1.048576e+06"),
        (16777216, "1.6777216e+07"),
        (124416000, "1.24416e+08"),
        (float("inf"), "+Inf"),
    ],
)
def test_bounds_are_written_as_in_go(value, expected):
    assert expected == go_float(value)


def test_families_without_series_are_left_out():
    empty = Counts(Text("x_total", "An x", ("kind",)))
    assert {metric.name for metric in registry(empty).collect()} == META


def test_a_counter_keeps_its_name():
    counts = Counts(Text("x_total", "An x", ("kind",), "ALPHA"))
    counts.add("a", by=2)
    page = generate_latest(registry(counts)).decode()
    assert "# HELP x_total [ALPHA] An x\n# TYPE x_total counter\n" in page
    assert 'x_total{kind="a"} 2.0\n' in page


def test_series_are_in_the_order_of_their_labels_by_name():
    gauges = Gauges(Text("x", "An x", ("policy", "family")))
    for labels in (("internal", "IPv6"), ("internal", "IPv4"), ("external", "IPv4")):
        gauges.set(1, *labels)
    [family] = [metric for metric in registry(gauges).collect() if metric.name == "x"]
    assert [("IPv4", "external"), ("IPv4", "internal"), ("IPv6", "internal")] == [
        (sample.labels["family"], sample.labels["policy"]) for sample in family.samples
    ]


def test_a_gauge_may_be_called_total():
    gauges = Gauges(Text("x_total", "An x"))
    gauges.set(3)
    page = generate_latest(registry(gauges)).decode()
    assert "# HELP x_total An x\n# TYPE x_total gauge\nx_total 3.0\n" in page


def test_a_histogram_has_cumulative_buckets_a_count_and_a_sum():
    distribution = Distribution(Text("x_seconds", "An x", ("kind",)), (1, 2.5))
    distribution.observe_all((0.5, 2.0, 9.0), "a")
    page = generate_latest(registry(distribution)).decode()
    samples = [line for line in page.splitlines() if "x_" in line]
    assert [
        "# HELP x_seconds An x",
        "# TYPE x_seconds histogram",
        'x_seconds_bucket{kind="a",le="1"} 1.0',
        'x_seconds_bucket{kind="a",le="2.5"} 2.0',
        'x_seconds_bucket{kind="a",le="+Inf"} 3.0',
        'x_seconds_count{kind="a"} 3.0',
        'x_seconds_sum{kind="a"} 11.5',
    ] == samples


@pytest.mark.parametrize(("counter", "kind"), [(True, "counter"), (False, "gauge")])
def test_readings_are_asked_at_each_scrape(counter, kind):
    values = {("a",): 1.0}
    reading = Readings(Text("x_total", "An x", ("kind",)), lambda: values, counter=counter)
    made = registry(reading)
    assert 1.0 == made.get_sample_value("x_total", {"kind": "a"})
    values["a",] = 2.0
    assert f"# TYPE x_total {kind}" in generate_latest(made).decode()
    assert 2.0 == made.get_sample_value("x_total", {"kind": "a"})


def test_registering_asks_nobody():
    def asked():
        raise AssertionError

    registry(Readings(Text("x", "An x"), asked))


def test_what_is_registered_is_counted_by_its_stability():
    made = registry(
        Counts(Text("a_total", "An a", (), "ALPHA")),
        Counts(Text("b_total", "A b", (), "BETA")),
        Counts(Text("ours_total", "No promise")),
    )

    def registered(level):
        labels = {"stability_level": level, "deprecated_version": ""}
        return made.get_sample_value("registered_metrics_total", labels)

    # With the three BETA and the one ALPHA metric about metrics.
    assert (2, 4, None) == (registered("ALPHA"), registered("BETA"), registered(""))
