"""A manifest says what an API server would have stored; what is wrong is told with its line."""

from __future__ import annotations

import json
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, Service
from pykubeproxy.watch.manifest_files import FileContent, is_wanted, parse

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels:
    kubernetes.io/service-name: web
endpoints:
- addresses: [10.0.0.1]
ports:
- port: 8080
"""


def only_service(text: str) -> Service:
    content = parse(dedent(text))
    assert content.broken is None
    assert content.problems == ()
    obj = content.objects[0].object
    assert isinstance(obj, Service)
    return obj


def only_slice(text: str) -> EndpointSlice:
    content = parse(dedent(text))
    assert content.problems == ()
    obj = content.objects[0].object
    assert isinstance(obj, EndpointSlice)
    return obj


# --- what an API server fills in ---------------------------------------------------------------


def test_a_service_gets_the_defaults_of_the_api() -> None:
    service = only_service(SERVICE)
    spec = service.spec
    assert service.key == ("default", "web")
    assert spec.type == "ClusterIP"
    assert spec.cluster_ips == ("10.96.0.10",)
    assert spec.ip_families == ("IPv4",)
    assert spec.session_affinity == "None"
    assert spec.internal_traffic_policy == "Cluster"
    assert spec.external_traffic_policy is None
    assert spec.ports is not None
    assert spec.ports[0].protocol == "TCP"


def test_a_dual_stack_service_may_name_only_cluster_ips() -> None:
    text = SERVICE.replace("clusterIP: 10.96.0.10", 'clusterIPs: ["fd00::a", 10.96.0.10]')
    spec = only_service(text).spec
    assert spec.cluster_ip == "fd00::a"
    assert spec.ip_families == ("IPv6", "IPv4")


def test_client_affinity_lasts_three_hours_unless_told() -> None:
    spec = only_service(SERVICE + "  sessionAffinity: ClientIP\n").spec
    assert spec.session_affinity_config is not None
    assert spec.session_affinity_config.client_ip is not None
    assert spec.session_affinity_config.client_ip.timeout_seconds == 10800


@pytest.mark.parametrize(
    "extra", ["type: NodePort", "type: LoadBalancer", "externalIPs: [1.2.3.4]"]
)
def test_services_reached_from_outside_get_a_policy(extra: str) -> None:
    assert only_service(f"{SERVICE}  {extra}\n").spec.external_traffic_policy == "Cluster"


def test_a_slice_gets_its_defaults() -> None:
    slice_ = only_slice(SLICE)
    assert slice_.address_type == "IPv4"
    assert slice_.ports is not None
    assert (
        slice_.ports[0].name,
        slice_.ports[0].protocol,
        slice_.ports[0].port,
    ) == ("", "TCP", 8080)


def test_the_address_type_is_derived_from_the_addresses() -> None:
    assert only_slice(SLICE.replace("10.0.0.1", '"fd00::1"')).address_type == "IPv6"


def test_given_values_are_left_as_they_are() -> None:
    spec = only_service(SERVICE + "  internalTrafficPolicy: Local\n  ipFamilies: [IPv4]\n").spec
    assert spec.internal_traffic_policy == "Local"


# --- documents ---------------------------------------------------------------------------------


def test_documents_lists_and_lists_of_a_kind_are_all_read() -> None:
    text = f"""\
---
---
{SERVICE}---
apiVersion: v1
kind: List
items:
- {json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})}
---
apiVersion: v1
kind: ServiceList
items:
- metadata: {{name: b, namespace: x}}
  spec: {{clusterIP: 10.96.0.11}}
---
"""
    content = parse(text)
    assert [
        (Kind.SERVICE, ObjectKey("default", "web"), 3),
        (Kind.NODE, ObjectKey("", "n"), 15),
        (Kind.SERVICE, ObjectKey("x", "b"), 20),
    ] == [(one.kind, one.key, one.line) for one in content.objects]


def test_json_is_read_tabs_and_all() -> None:
    obj = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "annotations": {"note": "a\u00e4/\\t"}},
        "spec": {"clusterIP": "10.96.0.1"},
    }
    content = parse(json.dumps(obj, indent="\t"), is_json=True)
    assert [obj["metadata"]["name"]] == [one.key.name for one in content.objects]  # type: ignore[index]  # a plain dict


def test_timestamps_stay_text_as_with_kubectl() -> None:
    text = SERVICE.replace("name: web", "name: web\n  creationTimestamp: 2026-11-20T17:32:40Z")
    assert only_service(text).metadata.creation_timestamp == "2026-11-20T17:32:40Z"


@pytest.mark.parametrize(
    ("version", "kind"),
    [("apps/v1", "Deployment"), ("v1", "ConfigMap"), ("serving.knative.dev/v1", "Service")],
)
def test_other_kinds_are_skipped_and_named(version: str, kind: str) -> None:
    content = parse(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x}}\n---\n{SERVICE}")
    assert [f"{version} {kind}"] == [one.what for one in content.skipped]
    assert len(content.objects) == 1
    assert content.problems == ()


# --- problems ----------------------------------------------------------------------------------

PROBLEMS = [
    pytest.param(
        SERVICE.replace("  clusterIP: 10.96.0.10\n", ""),
        6,
        "clusterIP: 10.96.0.10",
        id="no address",
    ),
    pytest.param(SERVICE.replace("10.96.0.10", '""'), 6, "allocate", id="empty address"),
    pytest.param(SERVICE.replace("10.96.0.10", "10.96.0.256"), 6, "not an IP", id="no IP"),
    pytest.param(SERVICE.replace("10.96.0.10", "none"), 6, "not an IP", id="headless misspelt"),
    pytest.param(SERVICE.replace("80", '"80"'), 8, "Expected `int`", id="port in quotes"),
    pytest.param(SERVICE.replace("80", "80000"), 8, "outside 1-65535", id="port too large"),
    pytest.param(SERVICE.replace("port: 80", "prot: 80"), 8, "`port`", id="port misspelt"),
    pytest.param(SERVICE + "    protocol: tcp\n", 9, "protocol", id="protocol in lower case"),
    pytest.param(SERVICE + "    name: 80\n", 9, "quotes", id="number as name"),
    pytest.param(SERVICE + "    name: on\n", 9, "quotes", id="boolean as name"),
    pytest.param(SERVICE.replace("name: web", "name: 7"), 4, "quotes", id="number as object name"),
    pytest.param(SERVICE.replace("  name: web", "  nam: web"), 4, "name", id="no name"),
    pytest.param(SERVICE.replace("name: web", 'name: ""'), 4, "name is empty", id="empty name"),
    pytest.param("apiVersion: v1\nkind: Service\n", 1, "metadata", id="no metadata"),
    pytest.param("kind: Service\n", 1, "apiVersion", id="no apiVersion"),
    pytest.param("- a\n- b\n", 1, "must be an object", id="a sequence"),
    pytest.param(
        SLICE.replace("k8s.io/v1", "k8s.io/v1beta1"), 1, "apiVersion: discovery", id="old version"
    ),
    pytest.param(SLICE.replace("10.0.0.1]", '10.0.0.1, "fd::1"]'), 1, "mixes", id="two families"),
    pytest.param(
        SLICE.replace("[10.0.0.1]", "10.0.0.1"), 8, "array", id="address without brackets"
    ),
    pytest.param(SLICE.replace("8080", "http"), 10, "Expected `int", id="port name as port"),
    pytest.param(SLICE.replace("service-name: web", "service-name: 1"), 6, "quotes", id="label"),
]


@pytest.mark.parametrize(("text", "line", "words"), PROBLEMS)
def test_a_problem_has_its_line_and_leaves_the_other_documents(
    text: str, line: int, words: str
) -> None:
    good = SERVICE.replace("name: web", "name: good")
    content = parse(f"{text}---\n{good}")
    assert content.broken is None
    assert [one.key.name for one in content.objects] == ["good"]
    assert [line] == [one.line for one in content.problems], content.problems
    assert words in content.problems[0].text


@pytest.mark.parametrize(
    ("text", "is_json", "line"),
    [
        pytest.param(SERVICE + "  - [\n", False, 9, id="yaml structure"),
        pytest.param(SERVICE + "\tx: 1\n", False, 9, id="tab"),
        pytest.param(SERVICE + "kind: Service\n", False, 9, id="key twice"),
        pytest.param("a: *nowhere\n", False, 1, id="unknown anchor"),
        pytest.param("a: !!python/object:os.system {}\n", False, 1, id="unsafe tag"),
        pytest.param("a: \x07\n", False, 1, id="control character"),
        pytest.param('{\n"a": 1,\n}', True, 3, id="json comma"),
        pytest.param("a: " + "[" * 3000, False, 1, id="very deep and open"),
        pytest.param("a: " + "[" * 200_000 + "]" * 200_000, False, 1, id="very deep"),
        pytest.param("[" * 200_000 + "]" * 200_000, True, 1, id="very deep json"),
    ],
)
def test_a_file_that_is_no_yaml_is_broken_at_a_line(text: str, is_json: bool, line: int) -> None:
    content = parse(text, is_json=is_json)
    assert content.broken is not None
    assert abs(content.broken.line - line) <= 1  # libyaml and PyYAML differ by one at line ends
    assert content.objects == ()


def test_a_known_name_is_kept_with_the_problem() -> None:
    content = parse(SERVICE.replace("80", "x"))
    assert ObjectKey("default", "web") == content.problems[0].key


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n"])
def test_an_empty_file_is_no_problem(text: str) -> None:
    assert FileContent(empty=True) == parse(text)


@pytest.mark.parametrize("text", [SERVICE, "a: 1\n", "apiVersion: v1\nkind: List\n", "kind: ["])
def test_a_file_that_says_something_is_not_empty(text: str) -> None:
    assert not parse(text).empty


# --- whatever the text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        pytest.param(
            "a: 1\nb: !!timestamp foo\n", 2, "'foo' cannot be read as !!timestamp", id="t"
        ),
        pytest.param("a: 1\nb: !!int ''\n", 2, "'' cannot be read as !!int", id="int"),
        pytest.param("a: 1\nb: {c: [!!float '']}\n", 2, "cannot be read as !!float", id="float"),
        pytest.param("a: 1\n---\nb: !!bool x\n", 3, "'x' cannot be read as !!bool", id="bool"),
        pytest.param("a: !!int x\n", 1, "'x' cannot be read as !!int", id="value"),
    ],
)
def test_a_scalar_that_is_not_what_its_tag_says_is_broken(text: str, line: int, words: str) -> None:
    broken = parse(text).broken
    assert broken is not None
    assert broken.line == line
    assert words in broken.text


@pytest.mark.parametrize("text", ["kind: []", "kind: {a: b}", "kind: 3", "- 1", "? [a]\n: b"])
def test_odd_documents_are_reported(text: str) -> None:
    content = parse(text)
    assert content.broken is not None or len(content.problems) == 1


def test_addresses_that_are_no_list_are_left_to_the_type_check() -> None:
    content = parse(SLICE.replace("[10.0.0.1]", "5"))
    assert "Expected `array" in content.problems[0].text
    assert content.problems[0].line == 8


def test_items_merged_into_a_list_are_read() -> None:
    item = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    text = f"apiVersion: v1\nkind: List\n<<: {{items: [{json.dumps(item)}]}}\n"
    assert [one.key.name for one in parse(text).objects] == ["n"]


def test_an_alias_does_not_hide_a_key_that_appears_twice() -> None:
    broken = parse("a: &x b\nc: {*x : 1, b: 2}\n").broken
    assert broken is not None
    assert broken.text == "key 'b' appears twice"


@pytest.mark.parametrize("note", ["\\ud83d\\ude00", "\x7f", "\\/"])
def test_all_of_json_is_read(note: str) -> None:
    text = (
        '{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web",\n'
        f'"annotations": {{"note": "{note}"}}}},\n"spec": {{"clusterIP": "10.96.0.1"}}}}'
    )
    content = parse(text, is_json=True)
    assert [one.key.name for one in content.objects] == ["web"]
    twice = parse(text.replace('"kind"', '"spec": 1, "kind"'), is_json=True)
    assert twice.broken is not None
    assert "appears twice" in twice.broken.text


def test_half_of_a_surrogate_pair_is_no_json() -> None:
    assert parse('{"a": "\\ud83d"}', is_json=True).broken is not None


WORDS = (
    *("apiVersion: v1\n", "apiVersion: discovery.k8s.io/v1\n", "kind: Service\n", "kind: List\n"),
    *("kind: EndpointSlice\n", "kind: ", "metadata: {name: a}\n", "spec: ", "items: ", "ports: "),
    *("endpoints: ", "addresses: ", "clusterIP: ", "clusterIPs: ", "type: ", "---\n", "\n", "  "),
    *("- ", "[", "]", "{", "}", ", ", ": ", "? ", "&a ", "*a ", "<<: ", "'", '"', "#", "|\n", "\t"),
    *("!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!omap ", "!!null "),
    *("!!map ", "!!seq ", "!!str ", "!x ", "1", "-1", "1.5", "1e999", "0x", "0b", "1:90", ".inf"),
    *("yes", "null", "2001-99-99", "10.0.0.1", "fd00::1", "9" * 5000, "x", "\x07", "\ud800", "é"),
)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(WORDS), max_size=24).map("".join), st.booleans())
def test_parse_never_raises(text: str, is_json: bool) -> None:
    parse(text, is_json=is_json)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1) | st.sampled_from(["", "a", "10.0.0.1", "None"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "addresses", "port", "clusterIP", "type"]), inner
        )
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    st.fixed_dictionaries(
        {"apiVersion": st.sampled_from(["v1", "discovery.k8s.io/v1"])}
        | {"kind": st.sampled_from(["Service", "EndpointSlice", "Node", "List", "ServiceList"])},
        optional=dict.fromkeys(
            ("metadata", "spec", "items", "endpoints", "ports", "addressType", "status"),
            JSON_VALUES,
        ),
    )
)
def test_parse_never_raises_whatever_the_types(value: dict[str, object]) -> None:
    parse(json.dumps(value))
    parse(json.dumps(value), is_json=True)


# --- selectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param(SERVICE, True, id="service"),
        pytest.param(SERVICE.replace("10.96.0.10", "None"), False, id="headless service"),
        pytest.param(
            SERVICE.replace(
                "name: web", 'name: web\n  labels: {service.kubernetes.io/service-proxy-name: ""}'
            ),
            False,
            id="another proxy",
        ),
        pytest.param(
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName}\n",
            True,
            id="external name passes the API's selector too",
        ),
        pytest.param(SLICE, True, id="slice"),
        pytest.param(
            SLICE.replace("labels:", 'labels:\n    service.kubernetes.io/headless: ""'),
            False,
            id="headless slice",
        ),
        pytest.param("apiVersion: v1\nkind: Node\nmetadata: {name: me}\n", True, id="this node"),
        pytest.param("apiVersion: v1\nkind: Node\nmetadata: {name: it}\n", False, id="other node"),
        pytest.param(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: k}\n"
            "spec: {cidrs: [10.96.0.0/12]}\n",
            True,
            id="service cidr",
        ),
    ],
)
def test_the_selectors_of_the_api_are_applied(text: str, wanted: bool) -> None:
    assert wanted == is_wanted(parse(text).objects[0], "me")
