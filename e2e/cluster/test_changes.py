"""Live changes in the API, as packets and rules see them."""

from __future__ import annotations

from msgspec.structs import replace

from e2e.cluster.api import ApiUnderTest, StandIn
from e2e.cluster.objects import endpoints_of, pod, put_web, web, web_slice
from e2e.cluster.process import ApiDaemon, eventually
from e2e.lab import REFUSED, TIMEOUT
from pykubeproxy.model.objects import ServiceLabels
from tests.build import node, port


def test_a_service_is_added_changed_and_deleted(api: ApiUnderTest, daemon: ApiDaemon) -> None:
    daemon.start()
    address = put_web(api, "p1")
    eventually(lambda: daemon.answered_by(address) == "p1", "the new Service answers")

    api.put(web(api, ports=[port(81, "http")]))
    eventually(lambda: daemon.answered_by(address, port=81) == "p1", "it answers at the new port")
    assert daemon.answered_by(address, port=80) != "p1"

    api.delete(web(api))
    eventually(lambda: not daemon.rules_about(f"{api.namespace}/web"), "its rules are gone")
    assert daemon.lab.probe("p3", address, 81) is TIMEOUT


def test_endpoints_come_and_go(api: ApiUnderTest, daemon: ApiDaemon) -> None:
    address = put_web(api, "p1")
    daemon.start()
    assert daemon.answered_by(address) == "p1"

    api.put(web_slice(api, "p2"))
    eventually(lambda: daemon.answered_by(address) == "p2", "the new endpoint answers")
    api.put(endpoints_of(api, pod("p1"), pod("p2", ready=False)))
    eventually(lambda: daemon.answered_by(address) == "p1", "the one that is ready answers")
    api.delete(web_slice(api))
    eventually(lambda: daemon.lab.probe("p3", address, 80) is REFUSED, "refused without a slice")
    api.put(web_slice(api, "p1", "p2"))
    eventually(
        lambda: set(daemon.lab.burst("p3", address, 80, 20).servers) == {"p1:8080", "p2:8080"},
        "both answer",
    )


def test_a_service_that_gets_another_proxy_goes_and_comes_back(
    api: ApiUnderTest, daemon: ApiDaemon
) -> None:
    address = put_web(api, "p1")
    daemon.start()
    plain = web(api)
    labelled = replace(
        plain, metadata=replace(plain.metadata, labels=ServiceLabels(proxy_name="another"))
    )
    api.put(labelled)
    eventually(lambda: not daemon.rules_about(f"{api.namespace}/web"), "its rules are gone")
    api.delete(labelled)
    again = put_web(api, "p2")
    eventually(lambda: daemon.answered_by(again) == "p2", "it is ours again")
    assert address  # a real cluster may give the second one another address


def test_a_node_that_changes_its_zone_takes_the_endpoints_of_the_new_zone(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    address = put_web(stand_in)
    stand_in.put(endpoints_of(stand_in, pod("p1", zones=["zone-a"]), pod("p2", zones=["zone-b"])))
    daemon.start()
    assert set(daemon.lab.burst("p3", address, 80, 20).servers) == {"p1:8080"}
    stand_in.put(node(zone="zone-b"))
    eventually(lambda: daemon.answered_by(address) == "p2", "the other zone's endpoint answers")
    assert set(daemon.lab.burst("p3", address, 80, 20).servers) == {"p2:8080"}


def test_one_endpoint_change_is_one_transaction(api: ApiUnderTest, daemon: ApiDaemon) -> None:
    address = put_web(api, "p1")
    daemon.start()
    before = daemon.transactions()
    api.put(web_slice(api, "p2"))
    eventually(lambda: daemon.answered_by(address) == "p2", "the change arrives")
    assert daemon.transactions() - before == 1


def test_a_new_resource_version_alone_writes_nothing(stand_in: StandIn, daemon: ApiDaemon) -> None:
    address = put_web(stand_in, "p1")
    other = put_web(stand_in, "p1", name="other")
    daemon.start()
    before = daemon.transactions()
    put_web(stand_in, "p1")
    stand_in.put(web_slice(stand_in, "p2", name="other"))  # a slice after a slice: in order
    eventually(lambda: daemon.answered_by(other) == "p2", "a later change arrives")
    assert daemon.transactions() - before == 1
    assert daemon.answered_by(address) == "p1"
