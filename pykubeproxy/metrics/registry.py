"""Measures as Prometheus' client library shows them, and what Kubernetes says of its own registry.

A family without a series is left out altogether, as Go's client does. Bounds of histograms are
written as in Go (``1``, not ``1.0``): they are label values, which queries compare as text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pykubeproxy.measures import Counts, Distribution, Labels, Measure, Readings, Text

__all__ = ["Measures", "Registry", "go_float"]

T = TypeVar("T")


class Registry(CollectorRegistry):
    """Leaves out what has no series yet."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            if metric.samples:
                yield metric


class Measures(Collector):
    """All measures of the process, in the order they were added."""

    def __init__(self) -> None:
        self._known: list[Measure] = []
        for measure in _meta(self._registered):
            self.add(measure)

    def add(self, measure: Measure) -> None:
        self._known.append(measure)

    def collect(self) -> Iterable[Metric]:
        return [_family(measure) for measure in tuple(self._known)]

    def describe(self) -> Iterable[Metric]:
        """Without this, registering would read the kernel."""
        return ()

    def _registered(self) -> dict[Labels, float]:
        levels = Counter(m.text.stability for m in self._known if m.text.stability)
        return {(level, ""): float(count) for level, count in levels.items()}


def go_float(value: float) -> str:
    """Write *value* as Go's ``strconv.FormatFloat(value, 'g', -1, 64)``; not negative."""
    text: str = floatToGoString(value)  # type: ignore[no-untyped-call]  # not annotated there
    return text.removesuffix(".0")


def _family(measure: Measure) -> Metric:
    text = measure.text
    said = f"[{text.stability}] {text.help}" if text.stability else text.help
    if isinstance(measure, Distribution):
        histogram = HistogramMetricFamily(text.name, said, labels=text.labels)
        bounds = [go_float(bound) for bound in (*measure.bounds, float("inf"))]
        for labels, spread in _in_order(text, measure.read()):
            buckets = list(zip(bounds, spread.cumulative, strict=True))
            histogram.add_metric(labels, buckets, spread.total)
        return histogram
    is_counter = isinstance(measure, Counts) or (isinstance(measure, Readings) and measure.counter)
    # The library adds the "_total" of a counter by itself.
    single: CounterMetricFamily | GaugeMetricFamily = (
        CounterMetricFamily(text.name.removesuffix("_total"), said, labels=text.labels)
        if is_counter
        else GaugeMetricFamily(text.name, said, labels=text.labels)
    )
    for labels, value in _in_order(text, measure.read()):
        single.add_metric(labels, value)
    return single


def _in_order(text: Text, series: Mapping[Labels, T]) -> list[tuple[Labels, T]]:
    """By the values of labels, the labels by name: as Go's client shows them."""
    places = sorted(range(len(text.labels)), key=text.labels.__getitem__)
    return sorted(series.items(), key=lambda item: [item[0][place] for place in places])


def _meta(registered: Callable[[], Mapping[Labels, float]]) -> Iterable[Measure]:
    """Kubernetes' metrics about metrics. Nothing is hidden or disabled here, ever."""
    yield Readings(
        Text(
            "registered_metrics_total",
            "The count of registered metrics broken by stability level and deprecation version.",
            ("stability_level", "deprecated_version"),
            "BETA",
        ),
        registered,
        counter=True,
    )
    for name, help_, stability in (
        ("disabled_metrics_total", "The count of disabled metrics.", "BETA"),
        ("hidden_metrics_total", "The count of hidden metrics.", "BETA"),
        (
            "cardinality_enforcement_unexpected_categorizations_total",
            "The count of unexpected categorizations during cardinality enforcement.",
            "ALPHA",
        ),
    ):
        yield Counts(Text(name, help_, (), stability))
