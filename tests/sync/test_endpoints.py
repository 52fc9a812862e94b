from __future__ import annotations

import pytest

from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import SliceEndpoint
from pykubeproxy.sync.endpoints import candidates_by_port
from tests.build import endpoint, slice_, slice_port

UNNAMED = ("", Protocol.TCP)


def merged(*slices, family=Family.IPV4, node="node"):
    return candidates_by_port(slices, family, node)


def texts(*slices, port=UNNAMED, family=Family.IPV4):
    return [c.text for c in merged(*slices, family=family).get(port, [])]


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        pytest.param([], {}, id="no slices"),
        pytest.param([slice_("s", ports=[80])], {}, id="no endpoints"),
        pytest.param([slice_("s", endpoint("10.0.0.1"), ports=())], {}, id="no ports"),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(80, "http")])],
            {("http", Protocol.TCP): ["10.0.0.1:80"]},
            id="named port",
        ),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(80, "")])],
            {UNNAMED: ["10.0.0.1:80"]},
            id="unnamed port",
        ),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(80, None)])],
            {},
            id="a nil name is skipped",
        ),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(None, "x")])],
            {},
            id="a nil number is skipped",
        ),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(0, "x")])],
            {},
            id="number 0 is skipped",
        ),
        pytest.param(
            [
                slice_(
                    "s",
                    endpoint("10.0.0.1"),
                    ports=[slice_port(53, "dns"), slice_port(53, "dns", "UDP")],
                )
            ],
            {("dns", Protocol.TCP): ["10.0.0.1:53"], ("dns", Protocol.UDP): ["10.0.0.1:53"]},
            id="one name, two protocols",
        ),
        pytest.param(
            [slice_("s", endpoint("10.0.0.1"), ports=[slice_port(80, "x", "QUIC")])],
            {},
            id="an unknown protocol is skipped",
        ),
        pytest.param(
            [
                slice_("s", endpoint("10.0.1.1"), name="a", ports=[80]),
                slice_("s", endpoint("10.0.1.1"), name="b", ports=[8080]),
            ],
            {UNNAMED: ["10.0.1.1:80", "10.0.1.1:8080"]},
            id="two numbers for one port name are used together",
        ),
        pytest.param(
            [
                slice_("s", endpoint("10.0.0.1"), name="a"),
                slice_("s", endpoint("10.0.0.2"), endpoint("10.0.0.1"), name="b"),
            ],
            {UNNAMED: ["10.0.0.1:8080", "10.0.0.2:8080"]},
            id="a duplicate is one endpoint",
        ),
    ],
)
def test_slices_are_merged_by_port_name_and_protocol(slices, expected):
    found = {name: [c.text for c in cs] for name, cs in merged(*slices).items()}
    assert expected == found


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        pytest.param(SliceEndpoint(None), [], id="nil addresses"),
        pytest.param(SliceEndpoint(()), [], id="no address"),
        pytest.param(SliceEndpoint(("10.0.0.1", "10.0.0.2")), ["10.0.0.1:8080"], id="first only"),
        pytest.param(SliceEndpoint(("010.0.0.01",)), ["10.0.0.1:8080"], id="canonical"),
        pytest.param(SliceEndpoint(("web.example",)), [], id="no address at all"),
        pytest.param(SliceEndpoint(("fd00::1",)), [], id="address of the other family"),
    ],
)
def test_an_endpoint_is_its_first_address(wire, expected):
    assert expected == texts(slice_("s", wire, address_type="IPv4"))


@pytest.mark.parametrize("address_type", ["IPv6", "FQDN", ""])
def test_slices_of_another_address_type_are_passed_over(address_type):
    assert texts(slice_("s", endpoint("10.0.0.1"), address_type=address_type)) == []


def test_ipv6_endpoints_are_bracketed():
    slice_object = slice_("s", endpoint("FD00::1"))
    assert texts(slice_object, family=Family.IPV6) == ["[fd00::1]:8080"]


def test_endpoints_sort_by_text_not_by_number():
    slice_object = slice_("s", *(endpoint(f"10.0.0.{n}") for n in (2, 10, 1)), ports=[80])
    assert texts(slice_object) == ["10.0.0.10:80", "10.0.0.1:80", "10.0.0.2:80"]


NIL = {"ready": None, "serving": None, "terminating": None}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        pytest.param({}, (True, True, False), id="no conditions"),
        pytest.param({"terminating": False}, (True, True, False), id="ready and serving unset"),
        pytest.param({"ready": False}, (False, True, False), id="serving unset"),
        pytest.param({"ready": False, "serving": False}, (False, False, False), id="broken"),
        pytest.param({"ready": False, "terminating": True}, (False, True, True), id="draining"),
        pytest.param({"ready": True, "serving": True}, (True, True, False), id="terminating unset"),
    ],
)
def test_unset_conditions_have_defaults(conditions, expected):
    (candidate,) = merged(slice_("s", endpoint("10.0.0.1", **conditions)))[UNNAMED]
    assert expected == (candidate.ready, candidate.serving, candidate.terminating)


DRAINING = {"ready": False, "serving": True, "terminating": True}


@pytest.mark.parametrize(
    ("first", "second", "terminating"),
    [
        pytest.param({}, DRAINING, False, id="terminating never overwrites"),
        pytest.param(DRAINING, {}, False, id="living overwrites"),
        pytest.param(DRAINING, DRAINING, True, id="both terminating"),
        pytest.param({"ready": False}, DRAINING, False, id="not even an unready one"),
    ],
)
def test_of_two_pods_with_one_address_the_living_one_counts(first, second, terminating):
    (candidate,) = merged(
        slice_("s", endpoint("10.0.0.1", **first), name="a"),
        slice_("s", endpoint("10.0.0.1", **second), name="b"),
    )[UNNAMED]
    assert terminating is candidate.terminating


def test_two_living_duplicates_resolve_alike_in_any_order():
    a = slice_("s", endpoint("10.0.0.1", ready=False), name="a")
    b = slice_("s", endpoint("10.0.0.1"), name="b")
    assert merged(a, b) == merged(b, a)


@pytest.mark.parametrize(
    ("node_name", "own_name", "expected"),
    [
        pytest.param("node", "node", True, id="same name"),
        pytest.param("Node", "node", False, id="compared exactly"),
        pytest.param("other", "node", False, id="another node"),
        pytest.param(None, "node", False, id="no node name"),
        pytest.param(None, "", False, id="no names at all"),
        pytest.param("", "", False, id="empty names"),
    ],
)
def test_an_endpoint_is_local_if_it_names_this_node(node_name, own_name, expected):
    found = merged(slice_("s", endpoint("10.0.0.1", node=node_name)), node=own_name)
    assert expected is found[UNNAMED][0].endpoint.node_local


def test_hints_are_kept_for_the_policy():
    (candidate,) = merged(slice_("s", endpoint("10.0.0.1", zones=["a"])))[UNNAMED]
    assert [hint.name for hint in candidate.hints.for_zones] == ["a"]
