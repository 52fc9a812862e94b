from __future__ import annotations

from collections import Counter

import msgspec
import pytest

from pykubeproxy.model.objects import EndpointSlice, Kind, ObjectKey, ServiceKey
from pykubeproxy.sync.store import Arrivals, Store, Touched
from tests.build import endpoint, manifest, node, service, service_cidr, slice_

WEB = ServiceKey("default", "web")
DB = ServiceKey("default", "db")
NOTHING = Touched()
TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"


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


# --- what came ---

LATER = "2026-01-02T03:04:05Z"


def triggered(slice_, time=LATER):
    """*slice_* as it comes from the wire, with the time of its cause."""
    document = manifest(slice_)
    document["metadata"]["annotations"] = {TRIGGER: time, "other": "x"}
    return msgspec.convert(document, EndpointSlice)


def test_every_event_counts_once_changed_or_not():
    store = Store()
    for _ in range(2):
        store.put(service("web"))
        store.put(WEB_SLICE)
    store.put(slice_(None, endpoint("10.0.0.1"), name="orphan"))
    store.put(node())
    store.drop(Kind.SERVICE, ObjectKey(*WEB))
    store.drop(Kind.ENDPOINT_SLICE, ObjectKey("default", "unknown"))
    store.drop(Kind.ENDPOINT_SLICE, WEB_SLICE.key)
    assert Arrivals(services=3, slices=Counter(IPv4=3), changed_slices=Counter(IPv4=2)) == (
        store.take_arrivals()
    )
    assert Arrivals() == store.take_arrivals()


def test_a_listing_counts_its_objects_and_what_it_ends():
    store = filled(service("web"), WEB_SLICE)
    store.take_arrivals()
    store.replace(Kind.SERVICE, [service("web"), service("db")], frozenset())
    store.replace(Kind.ENDPOINT_SLICE, [], frozenset())
    assert Arrivals(services=2, slices=Counter(IPv4=1), changed_slices=Counter(IPv4=1)) == (
        store.take_arrivals()
    )


def test_changed_services_are_counted_apart_from_their_slices():
    store = Store()
    store.put(service("web"))
    store.put(service("web", ports=[81]))
    store.put(slice_("db", endpoint("10.0.0.1")))
    assert 1 == store.changed_services
    store.take()
    assert 0 == store.changed_services


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (service("web"), 0),
        (service("web", ports=[81]), 1),
        (WEB_SLICE, 0),
        (slice_("web", endpoint("10.0.0.2")), 1),
        (node(zone="z"), 1),
        (service_cidr("a", "10.0.0.0/8"), 1),
        (slice_(None, endpoint("10.0.0.1"), name="orphan"), 0),
    ],
)
def test_changes_are_what_a_pass_may_have_to_write(obj, expected):
    store = filled(service("web"), WEB_SLICE)
    before = store.changes
    store.put(obj)
    assert expected == store.changes - before


def test_the_time_of_a_cause_goes_with_the_change_and_is_not_kept():
    store = Store()
    changed = triggered(WEB_SLICE)
    store.put(changed)
    assert {"IPv4": (LATER,)} == store.take().triggers
    assert changed.metadata.annotations is None
    assert {} == store.take().triggers


def test_a_slice_that_says_nothing_new_has_no_cause():
    store = filled(WEB_SLICE)
    store.put(triggered(WEB_SLICE))
    assert NOTHING == store.take()


def test_every_slice_and_every_change_has_its_own_cause():
    store = Store()
    store.put(triggered(slice_("web", endpoint("10.0.0.1")), "t1"))
    store.put(triggered(slice_("web", endpoint("10.0.0.2")), "t2"))
    store.put(triggered(slice_("web", endpoint("10.0.0.3"), name="web-2"), "t3"))
    store.put(triggered(slice_("web", endpoint("fd00::1"), name="web-6"), "t4"))
    triggers = store.take().triggers
    assert {"IPv4": ("t1", "t2", "t3"), "IPv6": ("t4",)} == triggers


def test_a_deleted_slice_takes_the_causes_of_its_service_along():
    store = Store()
    store.put(triggered(WEB_SLICE))
    store.put(triggered(slice_("web", endpoint("10.0.0.2"), name="web-2")))
    store.put(triggered(slice_("db", endpoint("10.0.0.3")), "db"))
    store.drop(Kind.ENDPOINT_SLICE, WEB_SLICE.key)
    assert {"IPv4": ("db",)} == store.take().triggers


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-01-02T03:04:04.999Z", ()),
        ("2026-01-02T03:04:05Z", ("2026-01-02T03:04:05Z",)),
        ("2026-01-02T03:04:05.1Z", ("2026-01-02T03:04:05.1Z",)),
        ("2026-01-02T02:04:09-01:00", ("2026-01-02T02:04:09-01:00",)),
    ],
)
def test_causes_before_the_beginning_are_not_noted(time, expected):
    store = Store(began="2026-01-02T03:04:05")
    store.put(triggered(WEB_SLICE, time))
    assert expected == store.take().triggers.get("IPv4", ())
