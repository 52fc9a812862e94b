from __future__ import annotations

import gzip
import json
import threading

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.pages import Pages

CONFIGZ = b'{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"}}'
STARTED = 1_767_312_245.5
TEXT = ("Content-Type", "text/plain; charset=utf-8")
NOSNIFF = ("X-Content-Type-Options", "nosniff")
NOT_FOUND = (404, b"404 page not found\n")


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("kubeproxy_things", "Things", registry=registry).inc(2)
    Histogram("took_seconds", "Time", buckets=(1, 2), registry=registry).observe(1)
    return registry


@pytest.fixture
def make(registry):
    def make(**options):
        return Pages(
            registry, "iptables", version="0.1.0", emulated_version="1.36",
            started_unix_seconds=STARTED, configz=CONFIGZ, flags={"v": "2"},
            **options,
        )  # fmt: skip

    return make


@pytest.fixture
def pages(make):
    return make()


def ask(pages, path, method="GET", query="", body=b"", **headers):
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return pages.answer(Request(method, path, query, fields, body=body))


def test_metrics_are_prometheus_text_as_kube_proxy_writes_it(pages):
    answer = ask(pages, "/metrics")
    assert (
        200,
        (
            ("Content-Type", "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"),
            ("Process-Start-Time-Unix", "1767312245"),
        ),
    ) == (answer.code, answer.headers)
    lines = answer.body.decode().splitlines()
    assert "kubeproxy_things_total 2" in lines
    assert 'took_seconds_bucket{le="1"} 1' in lines
    assert not any("_created" in line for line in lines)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/slis"])
def test_metrics_are_protobuf_for_who_asks_for_it(pages, path):
    media_type = "application/vnd.google.protobuf"
    message = "io.prometheus.client.MetricFamily"
    accept = f"{media_type};proto={message};encoding=delimited"
    answer = ask(pages, path, accept=accept, accept_encoding="gzip")
    expected = f"{media_type}; proto={message}; encoding=delimited; escaping=underscores"
    assert (200, expected) == (answer.code, dict(answer.headers)["Content-Type"])
    page = gzip.decompress(answer.body)
    first = {"/metrics": b"kubeproxy_things_total", "/metrics/slis": b"process_start_time_seconds"}
    assert first[path] == page[3 : 3 + page[2]]


def test_the_escaping_asked_for_is_told(pages):
    answer = ask(pages, "/metrics", accept="text/plain;version=0.0.4;escaping=allow-utf-8")
    expected = "text/plain; version=0.0.4; charset=utf-8; escaping=allow-utf-8"
    assert expected == dict(answer.headers)["Content-Type"]


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_metrics_are_told_whatever_the_method_and_never_reset(pages, method):
    assert ask(pages, "/metrics").body == ask(pages, "/metrics", method).body


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("br, GZIP", False),
        ("gzip, identity", False),
        ("", False),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip;q=0.0", False),
    ],
)
def test_metrics_are_compressed_for_who_takes_that(pages, accepted, expected):
    plain = ask(pages, "/metrics").body
    answer = ask(pages, "/metrics", accept_encoding=accepted)
    assert expected is (("Content-Encoding", "gzip") in answer.headers)
    assert plain == (gzip.decompress(answer.body) if expected else answer.body)


def slis(pages):
    page = ask(pages, "/metrics/slis").body.decode()
    return {
        (sample.name, *sample.labels.items()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_health_checks_of_this_server_are_counted_until_they_are_deleted(pages):
    assert {("process_start_time_seconds",): STARTED} == slis(pages)
    ask(pages, "/healthz")
    ask(pages, "/healthz", query="verbose")
    ask(pages, "/healthz", query="exclude=ping")
    ask(pages, "/healthz/ping")
    told = ("name", "ping"), ("type", "healthz")
    status = ("status", "success")
    assert {
        ("kubernetes_healthcheck", *told): 1,
        ("kubernetes_healthchecks_total", told[0], status, told[1]): 2,
        ("process_start_time_seconds",): STARTED,
    } == slis(pages)
    answer = ask(pages, "/metrics/slis", "DELETE")
    assert (200, b"metrics reset\n") == (answer.code, answer.body)
    assert b"" == ask(pages, "/metrics/slis").body
    ask(pages, "/healthz")
    assert {
        ("kubernetes_healthcheck", *told): 1,
        ("kubernetes_healthchecks_total", told[0], status, told[1]): 1,
    } == slis(pages)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "ok"),
        ("verbose", "[+]ping ok\nhealthz check passed\n"),
        ("verbose=1", "[+]ping ok\nhealthz check passed\n"),
        ("exclude=ping", "ok"),
        ("verbose&exclude=ping", "[+]ping excluded: ok\nhealthz check passed\n"),
        (
            "verbose&exclude=b&exclude=a",
            "[+]ping ok\nwarn: some health checks cannot be excluded: no matches for "
            '"a","b"\nhealthz check passed\n',
        ),
    ],
)
def test_health_of_the_metrics_server(pages, query, expected):
    answer = ask(pages, "/healthz", query=query)
    assert (200, expected, (TEXT, NOSNIFF)) == (answer.code, answer.body.decode(), answer.headers)


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/healthz/ping", b"ok", (TEXT,)),
        ("/proxyMode", b"iptables", (TEXT, NOSNIFF)),
        ("/configz", CONFIGZ, (("Content-Type", "application/json"), NOSNIFF)),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_simple_pages(pages, path, body, headers, method):
    answer = ask(pages, path, method)
    assert (200, body, headers) == (answer.code, answer.body, answer.headers)


@pytest.mark.parametrize(
    "path",
    ["/", "/other", "/healthz/", "/healthz/other", "/metrics/", "/proxymode", "/livez", "/readyz",
     "/debug", "/debug/pprof", "/debug/pprof/", "/debug/pprof/goroutine", "/debug/flags",
     "/debug/flags/v", "/debug/flags/foo", ""],
)  # fmt: skip
def test_other_paths_are_not_found(pages, path):
    answer = ask(pages, path)
    assert NOT_FOUND == (answer.code, answer.body)
    assert (TEXT, NOSNIFF) == answer.headers


def test_flags_and_status(pages):
    assert b"\nkube-proxy flagz\n" in ask(pages, "/flagz").body
    accept = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz"
    status = json.loads(ask(pages, "/statusz", accept=accept).body)
    assert ("0.1.0", "1.36") == (status["binaryVersion"], status["emulationVersion"])
    assert status["goVersion"].startswith("Python 3.")
    assert ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"] == status["paths"]


@pytest.mark.parametrize(("gate", "path"), [("has_flagz", "/flagz"), ("has_statusz", "/statusz")])
def test_a_gate_switches_a_page_off(make, gate, path):
    pages = make(**{gate: False})
    assert 404 == ask(pages, path).code
    if path == "/flagz":
        assert b"/flagz" not in ask(pages, "/statusz").body


def test_every_path_that_is_listed_answers(pages):
    accept = "application/json;v=v1beta1;g=config.k8s.io;as=Statusz"
    for path in json.loads(ask(pages, "/statusz", accept=accept).body)["paths"]:
        assert 200 == ask(pages, path).code, path


# --- with profiling ---


@pytest.fixture
def verbosities():
    return []


@pytest.fixture
def profiled(make, verbosities):
    return make(profiling=True, set_verbosity=verbosities.append)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4", 4), ("0", 0), ("+10", 10), ("-1", -1), ("0" * 20 + "7", 7), ("2147483647", 2**31 - 1)],
)
def test_verbosity_can_be_put(profiled, verbosities, text, expected):
    answer = ask(profiled, "/debug/flags/v", "PUT", body=text.encode())
    said = f"successfully set klog.logging.verbosity to {text}\n"
    assert (200, said.encode()) == (answer.code, answer.body)
    assert [expected] == verbosities


@pytest.mark.parametrize(
    ("text", "quoted", "why"),
    [
        ("abc", '"abc"', "invalid syntax"),
        ("", '""', "invalid syntax"),
        (" 4\n", r'" 4\n"', "invalid syntax"),
        ("1.5", '"1.5"', "invalid syntax"),
        ("1_0", '"1_0"', "invalid syntax"),
        ("\u0664", '"\u0664"', "invalid syntax"),
        ('"\\\x01\u200b\U000e0001', r'"\"\\\x01\u200b\U000e0001"', "invalid syntax"),
        ("2147483648", '"2147483648"', "value out of range"),
        ("-2147483649", '"-2147483649"', "value out of range"),
        ("1" * 5000, f'"{"1" * 5000}"', "value out of range"),
    ],
    ids=range(10),
)
def test_what_is_no_verbosity_is_refused_in_the_words_of_go(
    profiled, verbosities, text, quoted, why
):
    answer = ask(profiled, "/debug/flags/v", "PUT", body=text.encode())
    said = f"failed set klog.logging.verbosity {text}: strconv.ParseInt: parsing {quoted}: {why}\n"
    assert (400, said) == (answer.code, answer.body.decode())
    assert [] == verbosities


def test_verbosity_is_put_and_nothing_else(profiled):
    answer = ask(profiled, "/debug/flags/v")
    assert (406, b"unsupported http method\n") == (answer.code, answer.body)


def test_the_stack_of_each_thread_can_be_read(profiled):
    go, ready = threading.Event(), threading.Event()

    def wait_here():
        ready.set()
        go.wait(60)

    thread = threading.Thread(target=wait_here, name="waits-there")
    thread.start()
    ready.wait(60)
    page = ask(profiled, "/debug/pprof/goroutine", query="debug=2").body.decode()
    go.set()
    thread.join()
    assert "thread waits-there (" in page
    assert "in wait_here" in page


def test_profiles_are_in_a_folder(profiled):
    answer = ask(profiled, "/debug/pprof", query="debug=1")
    assert (302, b'<a href="/debug/pprof/">Found</a>.\n\n') == (answer.code, answer.body)
    assert "/debug/pprof/" == dict(answer.headers)["Location"]


@pytest.mark.parametrize("path", ["/debug/flags/", "/debug/flags/foo", "/debug/flags/v/x"])
def test_flags_that_there_are_not_are_answered_with_those_there_are(profiled, path):
    index = ask(profiled, "/debug/flags")
    assert (200, index.body) == (ask(profiled, path).code, ask(profiled, path).body)


@pytest.mark.parametrize("path", ["/debug/flags", "/debug/pprof/", "/debug/pprof/cmdline"])
def test_what_else_there_is_for_debugging(profiled, path):
    assert 200 == ask(profiled, path).code


def test_what_python_has_not_is_explained(profiled):
    answer = ask(profiled, "/debug/pprof/heap")
    assert 404 == answer.code
    assert b"py-spy" in answer.body


def test_a_scrape_makes_the_values_anew(registry, pages):
    gauge = Gauge("now", "Now", registry=registry)
    for value in (1, 2):
        gauge.set(value)
        assert f"\nnow {value}\n".encode() in ask(pages, "/metrics").body
