"""What is counted of requests, under client-go's names."""

from __future__ import annotations

import pytest

from pykubeproxy.measures import Spread
from pykubeproxy.watch.requests import LATENCY_BOUNDS, SIZE_BOUNDS, RequestMeasures

SERVER = "https://10.96.0.1:443"
HOST = "10.96.0.1:443"


def read(requests):
    return {measure.text.name: measure.read() for measure in requests.measures()}


def test_what_is_there_before_the_first_request():
    found = read(RequestMeasures())
    assert {
        "rest_client_transport_cache_entries": {(): 1.0},
        "rest_client_transport_cert_rotation_gc_calls_total": {(): 0.0},
        "rest_client_exec_plugin_ttl_seconds": {(): float("inf")},
        "rest_client_exec_plugin_certificate_rotation_age": {(): Spread((0,) * 12, 0.0)},
    } == {name: series for name, series in found.items() if series}


def test_a_request_with_an_answer():
    requests = RequestMeasures()
    requests.asked("POST", SERVER, 100)
    requests.answered("POST", SERVER, 201)
    requests.read("POST", SERVER, 0.01, 700)
    found = read(requests)
    assert {("201", "POST", HOST): 1.0} == found["rest_client_requests_total"]
    [duration] = found["rest_client_request_duration_seconds"].values()
    assert (0, 1, 0.01) == (*duration.cumulative[:2], duration.total)
    assert 100 == found["rest_client_request_size_bytes"]["POST", HOST].total
    assert 700 == found["rest_client_response_size_bytes"]["POST", HOST].total
    assert 0 == found["rest_client_rate_limiter_duration_seconds"]["POST", HOST].total


def test_a_request_without_an_answer():
    requests = RequestMeasures()
    requests.asked("GET", SERVER, 0)
    requests.answered("GET", SERVER, None)
    requests.read("GET", SERVER, 10.0, None)
    found = read(requests)
    assert {("<error>", "GET", HOST): 1.0} == found["rest_client_requests_total"]
    assert {} == found["rest_client_response_size_bytes"]


def test_a_watch_has_neither_size_nor_duration_and_is_not_held_back():
    requests = RequestMeasures()
    requests.asked("GET", SERVER, None)
    requests.answered("GET", SERVER, 200)
    found = read(requests)
    assert {("200", "GET", HOST): 1.0} == found["rest_client_requests_total"]
    assert {} == found["rest_client_request_size_bytes"]
    assert {} == found["rest_client_request_duration_seconds"]
    assert {} == found["rest_client_rate_limiter_duration_seconds"]


def test_retries_are_counted_by_what_the_server_said():
    requests = RequestMeasures()
    requests.will_retry("GET", SERVER, 429)
    assert {("429", "GET", HOST): 1.0} == read(requests)["rest_client_request_retries_total"]


@pytest.mark.parametrize(
    ("worked", "calls", "ttl"),
    [
        (None, {}, {(): float("inf")}),
        (True, {("0", "no_error"): 1.0}, {}),
        (False, {("1", "plugin_execution_error"): 1.0}, {}),
    ],
)
def test_calls_of_exec_plugins_are_counted(worked, calls, ttl):
    requests = RequestMeasures()
    requests.transport_made(worked)
    found = read(requests)
    assert {("miss",): 1.0} == found["rest_client_transport_create_calls_total"]
    assert calls == found["rest_client_exec_plugin_call_total"]
    assert ttl == found["rest_client_exec_plugin_ttl_seconds"]


def test_bounds_are_those_of_client_go():
    assert (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60) == LATENCY_BOUNDS
    assert (
        *(64, 256, 512, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216),
    ) == SIZE_BOUNDS
