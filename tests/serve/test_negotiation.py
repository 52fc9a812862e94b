from __future__ import annotations

import pytest

from pykubeproxy.serve.negotiation import exposition, takes_gzip

PROTO = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
OF_PROMETHEUS_2_42 = (
    f"{PROTO},application/openmetrics-text;version=1.0.0;q=0.8,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
OF_PROMETHEUS_3 = (
    f"{PROTO};escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;"
    "escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        pytest.param("", False, id="nothing"),
        pytest.param("*/*", False, id="anything"),
        pytest.param("text/html", False, id="what there is not"),
        pytest.param("application/openmetrics-text;version=1.0.0", False, id="OpenMetrics"),
        pytest.param(PROTO, True, id="protobuf"),
        pytest.param(PROTO.replace(";", " ; "), True, id="blanks"),
        pytest.param(OF_PROMETHEUS_2_42, True, id="Prometheus 2.42 with native histograms"),
        pytest.param(OF_PROMETHEUS_3, True, id="Prometheus 3"),
        pytest.param(f"{PROTO};q=0.3,text/plain;version=0.0.4;q=0.5", False, id="text preferred"),
        pytest.param(f"text/plain;version=0.0.4;q=0.3,{PROTO};q=0.5", True, id="text liked less"),
        pytest.param(f"text/plain,{PROTO}", False, id="both as much, text first"),
        pytest.param(f"{PROTO},text/plain", True, id="both as much, protobuf first"),
        pytest.param(f"text/plain;version=1.0.0,{PROTO};q=0.1", True, id="text of another version"),
        pytest.param(f"*/*,{PROTO};q=0.1", True, id="anything, and protobuf by name"),
        pytest.param(PROTO.replace("delimited", "text"), False, id="another encoding"),
        pytest.param(
            f"{PROTO.replace('delimited', 'compact-text')},{PROTO};q=0.1", True,
            id="another encoding preferred",
        ),
        pytest.param(PROTO.replace("MetricFamily", "Metric"), False, id="another message"),
        pytest.param("application/vnd.google.protobuf", False, id="no message named"),
        pytest.param("nonsense,;=,/", False, id="nonsense"),
    ],
)  # fmt: skip
def test_metrics_are_protobuf_where_that_is_preferred(accept, expected):
    form = exposition(accept)
    assert (expected, expected) == (form.is_protobuf, "protobuf" in form.content_type)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "underscores"),
        ("text/plain", "underscores"),
        *((f"text/plain;escaping={name}", name) for name in ("allow-utf-8", "dots", "values")),
        ("text/plain;escaping=other", "underscores"),
        (f"{PROTO};escaping=dots;q=0.5,text/plain;escaping=values;q=0.4", "dots"),
        ("text/plain;escaping=values;q=0.4,text/plain;q=0.5", "underscores"),
        ("application/openmetrics-text;escaping=dots,text/plain;q=0.5", "dots"),
        (OF_PROMETHEUS_3, "allow-utf-8"),
    ],
)
def test_the_escaping_is_the_one_named_last_up_to_the_choice(accept, expected):
    assert expected == exposition(accept).content_type.rpartition("; escaping=")[2]


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", False),
        ("identity, gzip", False),
        ("gzip, identity", False),
        ("identity;q=0.5, gzip", True),
        ("gzip;q=0.5,identity;q=0.6", False),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
        ("identity;q=0, gzip;q=0.1", True),
        ("*", False),
        ("*;q=0.5, gzip", True),
        ("gzip, *", False),
        ("deflate , gzip ; q=0.5", True),
        ("gzip;level=9", False),
        ("gzip, br;level=9, identity", True),
        ("gzip;q=2", False),
        ("gzip;q=.5", False),
        ("br gzip", False),
        (", gzip", False),
        ("gzip,", True),
    ],
)
def test_gzip_is_for_who_likes_it_better_than_plain(accepted, expected):
    assert expected is takes_gzip(accepted)
