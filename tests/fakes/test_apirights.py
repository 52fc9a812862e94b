"""Rights are read and refused as a kube-apiserver with RBAC does."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes import recordings
from tests.fakes.apianswers import Request
from tests.fakes.apirights import Asked, Rights, Use, asked_by, refusal

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"


def request(method: str, path: str, **query: str) -> Request:
    return Request(method, path, query, {})


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(
            request("GET", SLICES), ("list", "discovery.k8s.io", "endpointslices"), id="list"
        ),
        pytest.param(
            request("GET", SLICES, watch="1", sendInitialEvents="true"),
            ("watch", "discovery.k8s.io", "endpointslices"),
            id="a streaming list is a watch",
        ),
        pytest.param(
            request("GET", SLICES, watch="false"),
            ("list", "discovery.k8s.io", "endpointslices"),
            id="no watch",
        ),
        pytest.param(
            request("GET", "/api/v1/nodes", fieldSelector="metadata.name=n1"),
            ("list", "", "nodes", "", "", "n1"),
            id="a list of one object has its name",
        ),
        pytest.param(
            request("GET", "/api/v1/nodes", fieldSelector="metadata.name!=n1"),
            ("list", "", "nodes"),
            id="a list of all but one has none",
        ),
        pytest.param(
            request("GET", "/api/v1/nodes/n1"), ("get", "", "nodes", "", "", "n1"), id="get"
        ),
        pytest.param(
            request("POST", EVENTS),
            ("create", "events.k8s.io", "events", "", "default"),
            id="create",
        ),
        pytest.param(
            request("PATCH", f"{EVENTS}/n1.17"),
            ("patch", "events.k8s.io", "events", "", "default", "n1.17"),
            id="patch",
        ),
        pytest.param(
            request("PUT", "/api/v1/nodes/n1/status"),
            ("update", "", "nodes", "status", "", "n1"),
            id="a subresource",
        ),
        pytest.param(
            request("DELETE", "/api/v1/namespaces/default/services"),
            ("deletecollection", "", "services", "", "default"),
            id="delete all",
        ),
        pytest.param(
            request("GET", "/api/v1/namespaces/default"),
            ("get", "", "namespaces", "", "", "default"),
            id="a namespace itself",
        ),
        pytest.param(request("GET", "/version"), ("get", "", ""), id="a bare path"),
        pytest.param(request("POST", "/api"), ("post", "", ""), id="its HTTP method is the verb"),
    ],
)
def test_a_request_is_read_as_the_server_reads_it(made: Request, expected: tuple[str, ...]) -> None:
    verb, group, resource, subresource, namespace, name = (*expected, "", "", "")[:6]
    assert Asked(verb, made.path, group, resource, subresource, namespace, name) == asked_by(made)


def rule(**fields: list[str]) -> dict[str, Any]:
    return {"rules": [fields]}


LIST_SERVICES = asked_by(request("GET", "/api/v1/services"))
LIST_NODE = asked_by(request("GET", "/api/v1/nodes", fieldSelector="metadata.name=n1"))
STATUS = asked_by(request("PUT", "/api/v1/nodes/n1/status"))
VERSION = asked_by(request("GET", "/version"))


@pytest.mark.parametrize(
    ("role", "asked", "expected"),
    [
        pytest.param({"rules": None}, LIST_SERVICES, False, id="no rules"),
        pytest.param(
            rule(verbs=["list"], apiGroups=[""], resources=["services"]),
            LIST_SERVICES,
            True,
            id="the right",
        ),
        pytest.param(
            rule(verbs=["watch"], apiGroups=[""], resources=["services"]),
            LIST_SERVICES,
            False,
            id="another verb",
        ),
        pytest.param(
            rule(verbs=["list"], apiGroups=["discovery.k8s.io"], resources=["services"]),
            LIST_SERVICES,
            False,
            id="another group",
        ),
        pytest.param(
            rule(verbs=["list"], apiGroups=[""], resources=["nodes"]),
            LIST_SERVICES,
            False,
            id="another resource",
        ),
        pytest.param(
            rule(verbs=["*"], apiGroups=["*"], resources=["*"]), LIST_SERVICES, True, id="all"
        ),
        pytest.param(
            rule(verbs=["list"], apiGroups=[""], resources=["nodes"], resourceNames=["n1"]),
            LIST_NODE,
            True,
            id="the object that is named",
        ),
        pytest.param(
            rule(verbs=["list"], apiGroups=[""], resources=["nodes"], resourceNames=["n2"]),
            LIST_NODE,
            False,
            id="another object",
        ),
        pytest.param(
            rule(verbs=["update"], apiGroups=[""], resources=["nodes"]),
            STATUS,
            False,
            id="a resource is not its subresource",
        ),
        pytest.param(
            rule(verbs=["update"], apiGroups=[""], resources=["*/status"]),
            STATUS,
            True,
            id="this subresource of all",
        ),
        pytest.param(rule(verbs=["get"], nonResourceURLs=["/version"]), VERSION, True, id="path"),
        pytest.param(rule(verbs=["get"], nonResourceURLs=["/ver*"]), VERSION, True, id="prefix"),
        pytest.param(rule(verbs=["get"], nonResourceURLs=["/ver"]), VERSION, False, id="no prefix"),
        pytest.param(
            rule(verbs=["*"], apiGroups=["*"], resources=["*"]),
            VERSION,
            False,
            id="resources are no paths",
        ),
    ],
)
def test_a_rule_allows_what_it_says(role: dict[str, Any], asked: Asked, expected: bool) -> None:
    assert expected == Rights(role).allows(asked)


def test_what_was_granted_and_what_was_used_can_be_compared() -> None:
    rights = Rights(rule(verbs=["list", "watch"], apiGroups=[""], resources=["services"]))
    rights.allows(LIST_SERVICES)
    unused = rights.granted - set(rights.used)
    assert ["watch services"] == [str(use) for use in unused]


def test_what_was_refused_is_remembered() -> None:
    rights = Rights({"rules": []})
    rights.allows(STATUS)
    rights.allows(VERSION)
    expected = {Use("update", "", "nodes/status"): 1, Use("get", "", "/version"): 1}
    assert expected == rights.refused


def test_a_refusal_reads_as_recorded() -> None:
    recording = recordings.load("nodes-forbidden")
    asked = asked_by(request(recording.method, recording.target))
    assert recording.body == refusal("system:kube-proxy", asked)


@pytest.mark.parametrize(
    ("asked", "message", "details"),
    [
        pytest.param(
            asked_by(request("GET", SLICES)),
            'endpointslices.discovery.k8s.io is forbidden: User "x" cannot list resource '
            '"endpointslices" in API group "discovery.k8s.io" at the cluster scope',
            {"group": "discovery.k8s.io", "kind": "endpointslices"},
            id="of a group",
        ),
        pytest.param(
            LIST_NODE,
            'nodes "n1" is forbidden: User "x" cannot list resource "nodes" in API group "" at '
            "the cluster scope",
            {"name": "n1", "kind": "nodes"},
            id="of one object",
        ),
        pytest.param(
            asked_by(request("POST", EVENTS)),
            'events.events.k8s.io is forbidden: User "x" cannot create resource "events" in API '
            'group "events.k8s.io" in the namespace "default"',
            {"group": "events.k8s.io", "kind": "events"},
            id="in a namespace",
        ),
        pytest.param(
            VERSION, 'forbidden: User "x" cannot get path "/version"', {}, id="of a bare path"
        ),
    ],
)
def test_a_refusal_names_everything(asked: Asked, message: str, details: dict[str, str]) -> None:
    body = refusal("x", asked)
    assert (message, details) == (body["message"], body["details"])
