"""Starting: every first list, however it is to be had, and nothing written before the last one."""

from __future__ import annotations

import json

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.objects import put_web, web
from e2e.cluster.process import ApiDaemon, eventually
from pykubeproxy.iptables.names import index_depth
from tests.build import manifest
from tests.fakes.apiserver import Answer, Request
from tests.fakes.apistore import encode_token


def is_list_of(plural: str, request: Request) -> bool:
    return request.path.endswith(plural) and not request.is_watch


def test_streaming_lists_need_one_request_for_each_kind(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    address = put_web(stand_in, "p1")
    daemon.start()
    assert daemon.answered_by(address) == "p1"
    reads = [request for request in stand_in.server.requests if request.method == "GET"]
    assert {r.path.rpartition("/")[2] for r in reads} == {"services", "endpointslices", "nodes"}
    assert len(reads) == 3
    assert all(r.query["sendInitialEvents"] == "true" for r in reads)


@pytest.mark.parametrize("refusal", ["error", "invalid"])
def test_a_server_that_refuses_streaming_lists_is_listed_in_pages(
    stand_in: StandIn, daemon: ApiDaemon, refusal: str
) -> None:
    stand_in.server.streaming_lists = refusal
    address = put_web(stand_in, "p1")
    daemon.start()
    assert daemon.answered_by(address) == "p1"
    put_web(stand_in, "p2")
    eventually(lambda: daemon.answered_by(address) == "p2", "changes arrive by a plain watch")
    assert stand_in.server.count(lambda r: is_list_of("services", r)) == 1
    assert daemon.says("streaming lists not available", "listing in pages")


def test_a_continue_token_that_expires_in_mid_list_leads_to_a_complete_list(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    stand_in.server.streaming_lists = "error"
    addresses = [put_web(stand_in, "p1", name=name) for name in ("a", "b")]
    stand_in.store.compact()
    token = encode_token(1, (stand_in.namespace, "a"))
    page = {
        "kind": "ServiceList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "1", "continue": token},
        # Deleted since; an inconsistent list would keep it.
        "items": [manifest(web(stand_in, "long-gone", cluster_ip="10.96.0.99"))],
    }
    stand_in.server.answer_next(
        Answer(
            200,
            json.dumps(page).encode(),
            {"Content-Type": "application/json"},
            matches=lambda r: is_list_of("services", r),
        )
    )
    daemon.start()
    assert [daemon.answered_by(address) for address in addresses] == ["p1", "p1"]
    assert not daemon.rules_about("long-gone")
    assert stand_in.server.count(lambda r: r.query.get("continue") == token) == 1


def test_2000_services_arrive_complete_in_pages(stand_in: StandIn, daemon: ApiDaemon) -> None:
    stand_in.server.streaming_lists = "error"
    address = put_web(stand_in, "p1")
    daemon.start()
    stand_in.stop()
    for number in range(2000):
        name, ip = f"many-{number:04}", f"10.100.{number // 250}.{number % 250 + 1}"
        put_web(stand_in, "p1", "p2", name=name, cluster_ip=ip)
    stand_in.store.compact()
    stand_in.server.requests.clear()
    stand_in.start()

    # Sorted by name this is the last one, and dispatch rules are written after all chains.
    eventually(
        lambda: daemon.answered_by("10.100.7.250") in ("p1", "p2"), "the last one answers", 60
    )
    assert daemon.answered_by(address) == "p1"
    chains = [chain for chain in daemon.chains() if index_depth(chain) is None]
    assert sum(chain.startswith("KUBE-SVC-") for chain in chains) == 2001
    assert sum(chain.startswith("KUBE-SEP-") for chain in daemon.chains()) == 4001
    pages = [r for r in stand_in.server.requests if is_list_of("services", r)]
    assert [("continue" in r.query, r.query["limit"]) for r in pages] == [
        (False, "500"),
        *[(True, "500")] * 4,
    ]


def test_nothing_is_written_before_the_last_first_list_is_complete(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    address = put_web(stand_in, "p1")
    gone = put_web(stand_in, "p1", name="gone")
    daemon.start()
    daemon.stop()
    before = daemon.rules()
    put_web(stand_in, "p2")
    stand_in.delete(web(stand_in, "gone"))
    silence = Answer(200, b"", hang=True, matches=lambda r: r.path.endswith("endpointslices"))
    stand_in.server.answer_next(*[silence] * 9)

    daemon.start(wait=False)
    eventually(lambda: daemon.says("nothing written yet", "EndpointSlice"), "the log says so", 20)
    assert not daemon.says("nothing written yet", "Node")
    assert daemon.rules() == before
    assert daemon.answered_by(address) == "p1"
    assert daemon.answered_by(gone) == "p1"

    stand_in.server.script.clear()
    stand_in.server.cut()
    eventually(lambda: daemon.answered_by(address) == "p2", "the change of meanwhile arrives")
    eventually(lambda: not daemon.rules_about("default/gone"), "what was deleted goes")


def test_a_server_that_accepts_but_answers_late_is_waited_for(
    stand_in: StandIn, daemon: ApiDaemon
) -> None:
    address = put_web(stand_in, "p1")
    stand_in.server.frozen.set()
    daemon.start(wait=False)
    stand_in.server.wait_until(lambda: len(stand_in.server.requests) >= 3)
    assert "KUBE-SERVICES" not in daemon.chains()
    stand_in.server.frozen.clear()
    eventually(lambda: daemon.answered_by(address) == "p1", "served once it answers")
    assert not daemon.says("contact lost")


def test_a_server_that_is_not_there_yet_is_waited_for(stand_in: StandIn, daemon: ApiDaemon) -> None:
    address = put_web(stand_in, "p1")
    stand_in.stop()
    daemon.start(wait=False)
    eventually(lambda: daemon.says("contact lost"), "the failure is told")
    assert daemon.runs
    stand_in.start()
    eventually(lambda: daemon.answered_by(address) == "p1", "served once it is there")
