from __future__ import annotations

import json
import time

import pytest
import yaml

from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.zpages import SEPARATORS, Flagz, Statusz

STARTED = 1_767_312_245.5  # 2026-01-02T00:04:05.5Z
NOW = STARTED + 3 * 3600 + 4 * 60 + 5.9
STATUSZ = Statusz(
    STARTED, "Python 3.11.2", "0.1.0", "1.36", ("/healthz/ping", "/metrics", "/healthz", "/flagz")
)
FLAGS = {"v": "2", "cluster-cidr": "10.0.0.0/8"}
JSON, YAML, TEXT = "application/json", "application/yaml", "text/plain; charset=utf-8"
WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility "
    "guarantees and is for debugging purposes only.\n"
)


def first(choices):
    return choices[0]


def ask(page, accept=None, agent="Prometheus", query=""):
    headers = {"user-agent": agent} | ({} if accept is None else {"accept": accept})
    request = Request("GET", "/", query, headers)
    if page == "Flagz":
        return Flagz(FLAGS, first).answer(request)
    return STATUSZ.answer(request, NOW, first)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_flags_as_text(separator):
    page = Flagz(FLAGS, lambda _choices: separator)
    assert (
        f"\nkube-proxy flagz\n{WARNING}cluster-cidr{separator}10.0.0.0/8\nv{separator}2\n"
    ) == page.answer(Request("GET", "/flagz")).body.decode()


def test_the_separator_of_flags_is_drawn_once():
    drawn = iter(SEPARATORS)
    page = Flagz(FLAGS, lambda _choices: next(drawn))
    assert 1 == len({page.answer(Request("GET", "/flagz")).body for _ in range(3)})


@pytest.mark.parametrize("separator", SEPARATORS)
def test_status_as_text(monkeypatch, separator):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    answer = STATUSZ.answer(Request("GET", "/statusz"), NOW, lambda _choices: separator)
    monkeypatch.undo()
    time.tzset()
    assert (
        f"\nkube-proxy statusz\n{WARNING}\n"
        f"Started{separator} Fri Jan  2 00:04:05 UTC 2026\n"
        f"Up{separator} 3 hr 04 min 05 sec\n"
        f"Go version{separator} Python 3.11.2\n"
        f"Binary version{separator} 0.1.0\n"
        f"Emulation version{separator} 1.36\n"
        f"Paths{separator} /flagz /healthz /metrics\n"
    ) == answer.body.decode()


def wanted(media_type, version="v1beta1", group="config.k8s.io", kind="Statusz"):
    return f"{media_type};v={version};g={group};as={kind}"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        pytest.param(None, TEXT, id="nothing said"),
        pytest.param("  ", TEXT, id="blank"),
        pytest.param("*/*", TEXT, id="anything"),
        pytest.param("*", TEXT, id="anything, short"),
        pytest.param("text/plain", TEXT, id="text"),
        pytest.param("text/*", TEXT, id="any text"),
        pytest.param("text/html,*/*;q=0.8", TEXT, id="a browser"),
        pytest.param("application/xml", None, id="another type"),
        pytest.param("text/html", None, id="another text"),
        pytest.param("application/json", None, id="JSON without the type"),
        pytest.param("application/*", None, id="any application"),
        pytest.param("application/json;v=v1beta1;g=config.k8s.io", None, id="kind missing"),
        pytest.param("application/json;as=Statusz;g=config.k8s.io", None, id="version missing"),
        pytest.param("application/json;v=v1beta1;as=Statusz", None, id="group missing"),
        pytest.param(wanted(JSON), JSON, id="JSON"),
        pytest.param(wanted(YAML), YAML, id="YAML"),
        pytest.param(wanted(JSON).replace(";", " ; "), JSON, id="blanks"),
        pytest.param(wanted("application/*"), JSON, id="any application of the type"),
        pytest.param(wanted(JSON, version="v1"), None, id="unknown version"),
        pytest.param(wanted(JSON, group="apps"), None, id="another group"),
        pytest.param(wanted(JSON, kind="Flagz"), None, id="another kind"),
        pytest.param(wanted("text/plain"), None, id="text has no type"),
        pytest.param(wanted("application/vnd.kubernetes.protobuf"), None, id="protobuf"),
        pytest.param(f"{wanted(JSON)};stream=watch", None, id="a stream"),
        pytest.param(f"{wanted(JSON)};sv=v1", None, id="a server version"),
        pytest.param(f"{wanted(JSON, version='v0')},*/*", TEXT, id="fallback"),
        pytest.param(f"text/plain;q=0.5,{wanted(YAML)};q=0.9", YAML, id="the better one"),
        pytest.param(f"*/*,{wanted(YAML)}", YAML, id="the more specific one"),
    ],
)
def test_the_form_is_negotiated(accept, expected):
    answer = ask("Statusz", accept)
    assert (406 if expected is None else 200) == answer.code
    assert (expected or JSON) == dict(answer.headers)["Content-Type"]


EXPECTED = {
    "Statusz": {
        "startTime": "2026-01-02T00:04:05Z",
        "uptimeSeconds": 11045,
        "goVersion": "Python 3.11.2",
        "binaryVersion": "0.1.0",
        "emulationVersion": "1.36",
        "paths": ["/flagz", "/healthz", "/metrics"],
    },
    "Flagz": {"flags": FLAGS},
}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("version", ["v1beta1", "v1alpha1"])
@pytest.mark.parametrize(("media_type", "read"), [(JSON, json.loads), (YAML, yaml.safe_load)])
def test_the_form_for_programs(kind, version, media_type, read):
    answer = ask(kind, wanted(media_type, version, kind=kind))
    assert {
        "kind": kind,
        "apiVersion": f"config.k8s.io/{version}",
        "metadata": {"name": "kube-proxy"},
        **EXPECTED[kind],
    } == read(answer.body)
    warning = dict(answer.headers).get("Warning")
    assert (
        None
        if version == "v1beta1"
        else f'299 - "This version of the {kind.lower()} endpoint is deprecated. '
        'Please use a newer version."'
    ) == warning


@pytest.mark.parametrize(
    ("agent", "query", "is_indented"),
    [
        ("Prometheus/3", "", False),
        ("curl/8", "", True),
        ("Mozilla/5.0 (X11)", "", True),
        ("curl/8", "pretty=0", False),
        ("Prometheus/3", "pretty=1", True),
    ],
)
def test_json_is_indented_for_people(agent, query, is_indented):
    body = ask("Flagz", wanted(JSON, kind="Flagz"), agent, query).body
    assert is_indented is body.startswith(b'{\n  "kind"')
    assert body.endswith(b"}\n")


def test_a_refusal_is_a_status_object():
    status = json.loads(ask("Flagz", "application/xml").body)
    assert {"kind": "Status", "code": 406, "reason": "NotAcceptable"}.items() <= status.items()
    assert status["message"].startswith("only the following media types are accepted: ")
