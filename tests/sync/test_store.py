from __future__ import annotations

import pytest

from pykubeproxy.model.objects import Kind, ObjectKey, ServiceKey
from pykubeproxy.sync.store import Store, Touched
from tests.build import endpoint, node, service, service_cidr, slice_

WEB = ServiceKey("default", "web")
DB = ServiceKey("default", "db")
NOTHING = Touched()


def filled(*objects):
    """A store that has forgotten what was touched by *objects*."""
    store = Store()
    for obj in objects:
        store.put(obj)
    store.take()
    return store


WEB_SLICE = slice_("web", endpoint("10.0.0.1"))


@pytest.mark.parametrize(
    ("before", "obj", "expected"),
    [
        pytest.param([], service("web"), Touched(frozenset({WEB})), id="new service"),
        pytest.param([service("web")], service("web"), NOTHING, id="service again"),
        pytest.param(
            [service("web")], service("web", ports=[81]), Touched(frozenset({WEB})), id="changed"
        ),
        pytest.param(
            [],
            WEB_SLICE,
            Touched(frozenset({WEB}), frozenset({(WEB, "IPv4")})),
            id="slice without service",
        ),
        pytest.param([WEB_SLICE], WEB_SLICE, NOTHING, id="slice again"),
        pytest.param([], slice_(None, endpoint("10.0.0.1"), name="x"), NOTHING, id="orphan slice"),
        pytest.param([], slice_("", endpoint("10.0.0.1"), name="x"), NOTHING, id="empty owner"),
        pytest.param(
            [slice_("db", endpoint("10.0.0.1"), name="x")],
            slice_("web", endpoint("10.0.0.1"), name="x"),
            Touched(frozenset({WEB, DB}), frozenset({(WEB, "IPv4"), (DB, "IPv4")})),
            id="a slice changes hands",
        ),
        pytest.param(
            [slice_("db", endpoint("10.0.0.1"), name="x")],
            slice_(None, endpoint("10.0.0.1"), name="x"),
            Touched(frozenset({DB}), frozenset({(DB, "IPv4")})),
            id="a slice loses its owner",
        ),
        pytest.param([], node(), Touched(node=True), id="node"),
        pytest.param([node()], node(), NOTHING, id="node again"),
        pytest.param([node()], node(zone="z"), Touched(node=True), id="node moves"),
        pytest.param([], service_cidr("a", "10.0.0.0/8"), Touched(service_cidrs=True), id="CIDR"),
        pytest.param(
            [service_cidr("a", "10.0.0.0/8")], service_cidr("a", "10.0.0.0/8"), NOTHING, id="again"
        ),
    ],
)
def test_only_what_differs_touches(before, obj, expected):
    store = filled(*before)
    store.put(obj)
    assert expected == store.take()


@pytest.mark.parametrize(
    ("before", "kind", "key", "expected"),
    [
        pytest.param(
            [service("web")], Kind.SERVICE, WEB, Touched(frozenset({WEB})), id="a service"
        ),
        pytest.param([], Kind.SERVICE, WEB, NOTHING, id="an unknown service"),
        pytest.param(
            [WEB_SLICE],
            Kind.ENDPOINT_SLICE,
            ("default", "web-1"),
            Touched(frozenset({WEB}), frozenset({(WEB, "IPv4")})),
            id="a slice",
        ),
        pytest.param([], Kind.ENDPOINT_SLICE, ("default", "x"), NOTHING, id="an unknown slice"),
        pytest.param(
            [slice_(None, name="x")], Kind.ENDPOINT_SLICE, ("default", "x"), NOTHING, id="orphan"
        ),
        pytest.param([node()], Kind.NODE, ("", "node"), NOTHING, id="the node"),
        pytest.param(
            [service_cidr("a")],
            Kind.SERVICE_CIDR,
            ("", "a"),
            Touched(service_cidrs=True),
            id="a service CIDR",
        ),
        pytest.param([], Kind.SERVICE_CIDR, ("", "a"), NOTHING, id="an unknown CIDR"),
    ],
)
def test_a_deletion_touches_what_was_there(before, kind, key, expected):
    store = filled(*before)
    store.drop(kind, ObjectKey(*key))
    assert expected == store.take()


def test_a_node_that_vanishes_keeps_its_last_value():
    store = filled(node(zone="z"))
    store.drop(Kind.NODE, ObjectKey("", "node"))
    assert store.node == node(zone="z")


def test_a_listing_without_the_node_keeps_its_last_value():
    store = filled(node(zone="z"))
    store.replace(Kind.NODE, [], frozenset())
    assert store.node == node(zone="z")


def test_what_was_touched_is_taken_once():
    store = Store()
    store.put(service("web"))
    store.take()
    assert store.take() == NOTHING


def test_nothing_touched_is_false():
    assert not NOTHING


@pytest.mark.parametrize(
    "touched",
    [Touched(frozenset({WEB})), Touched(node=True), Touched(service_cidrs=True)],
    ids=["service", "node", "service CIDRs"],
)
def test_anything_touched_is_true(touched):
    assert touched


def test_a_listing_removes_what_it_does_not_name():
    store = filled(service("web"), service("db"))
    store.replace(Kind.SERVICE, [service("web")], frozenset())
    assert store.take() == Touched(frozenset({DB}))


def test_a_listing_keeps_what_it_could_not_read():
    store = filled(service("web"), service("db"))
    store.replace(Kind.SERVICE, [service("web")], frozenset({ObjectKey("default", "db")}))
    assert store.take() == NOTHING


def test_a_listing_of_slices_removes_what_it_does_not_name():
    other = slice_("web", endpoint("10.0.0.2"), name="web-2")
    store = filled(WEB_SLICE, other)
    store.replace(Kind.ENDPOINT_SLICE, [other], frozenset())
    assert list(store.slices(WEB)) == [other]


def test_a_listing_of_service_cidrs_removes_what_it_does_not_name():
    store = filled(service_cidr("a", "10.0.0.0/8"), service_cidr("b", "11.0.0.0/8"))
    store.replace(Kind.SERVICE_CIDR, [service_cidr("b", "11.0.0.0/8")], frozenset())
    assert store.service_cidrs == ("11.0.0.0/8",)


def test_a_listing_makes_its_kind_complete():
    store = Store()
    store.replace(Kind.SERVICE, [], frozenset())
    assert store.complete == {Kind.SERVICE}


def test_single_objects_do_not_make_a_kind_complete():
    assert filled(service("web")).complete == set()


def test_slices_are_found_by_service():
    second = slice_("web", endpoint("10.0.0.2"), name="web-2")
    store = filled(WEB_SLICE, second, slice_("db", endpoint("10.0.0.3")))
    assert list(store.slices(WEB)) == [WEB_SLICE, second]


def test_slices_do_not_cross_namespaces():
    store = filled(slice_("web", endpoint("10.0.0.1"), namespace="other"))
    assert list(store.slices(WEB)) == []


def test_nothing_is_left_of_a_service_whose_last_slice_goes():
    store = filled(WEB_SLICE)
    store.drop(Kind.ENDPOINT_SLICE, WEB_SLICE.key)
    assert store._slices_of == {}


def test_overlapping_service_cidrs_survive_the_deletion_of_one():
    store = filled(service_cidr("a", "10.0.0.0/8"), service_cidr("b", "10.0.0.0/8", "fd00::/64"))
    store.drop(Kind.SERVICE_CIDR, ObjectKey("", "a"))
    assert store.service_cidrs == ("10.0.0.0/8", "fd00::/64")
