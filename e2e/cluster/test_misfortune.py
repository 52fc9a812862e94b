"""Whatever happens to the API server or the way to it: nothing is lost, nothing goes wrongly.

A connection through a Service that nobody touches stays open through every test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.api import StandIn
from e2e.cluster.objects import put_web, web, web_slice
from e2e.cluster.process import ApiDaemon, eventually
from e2e.lab import Lab
from pykubeproxy.model.objects import Kind
from pykubeproxy.watch import reflector
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.reflector import KubernetesSource
from tests.fakes.apiserver import Answer, FakeApiServer, Request, status_body
from tests.fakes.apistore import Object
from tests.fakes.sink import RecordingSink


class Served:
    """A running daemon with four Services, and the proof that it came through."""

    def __init__(self, api: StandIn, daemon: ApiDaemon) -> None:
        self.api, self.server, self.daemon = api, api.server, daemon
        self.web = put_web(api, "p1")
        self.steady = put_web(api, "p2", name="steady")
        put_web(api, "p1", name="old")
        daemon.start()
        self.server.wait_for_watches(3)
        self._connection = daemon.lab.connect("p3", self.steady, 80)
        self.rules = daemon.rules()

    def change_much(self) -> None:
        """What happens in the cluster meanwhile."""
        self.api.put(web_slice(self.api, "p2"))
        self.api.delete(web(self.api, "old"))
        self.api.delete(web_slice(self.api, name="old"))
        put_web(self.api, "p1", name="new")

    def has_caught_up(self) -> None:
        daemon, new = self.daemon, self.api.cluster_ip("new")
        eventually(lambda: daemon.answered_by(self.web) == "p2", "a changed endpoint answers", 25)
        eventually(lambda: daemon.answered_by(new) == "p1", "a new Service answers", 25)
        eventually(lambda: not daemon.rules_about("default/old"), "a deleted Service is gone", 25)

    def goes_on(self) -> None:
        """Nothing was removed wrongly, and what comes next arrives."""
        assert self._connection.ask() == b"ping\n"
        assert self.daemon.answered_by(self.steady) == "p2"
        self.api.put(web_slice(self.api, "p1"))
        eventually(lambda: self.daemon.answered_by(self.web) == "p1", "a later change arrives", 25)
        assert self.daemon.runs

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def served(stand_in: StandIn, daemon: ApiDaemon) -> Iterator[Served]:
    made = Served(stand_in, daemon)
    yield made
    made.close()


def of(plural: str, *, watch: bool) -> Callable[[Request], bool]:
    return lambda r: r.path.endswith(plural) and r.is_watch == watch


def refusal(code: int, reason: str, **more: Any) -> Answer:
    body = json.dumps(status_body(code, reason, "as scripted")).encode()
    headers = {"Content-Type": "application/json", **more.pop("headers", {})}
    return Answer(code, body, headers, **more)


# --- streams that end, history that expires ----------------------------------------------------


def cut_in_mid_line(server: FakeApiServer) -> None:
    server.cut(in_mid_line=True)


def expire_by_error_event(server: FakeApiServer) -> None:
    server.store.compact()
    server.end_watches()


def expire_by_http_status(server: FakeApiServer) -> None:
    server.answer_next(
        *(
            refusal(410, "Expired", matches=of(plural, watch=True))
            for plural in ("services", "endpointslices", "nodes")
        )
    )
    server.end_watches()


def restart(server: FakeApiServer, code: int) -> None:
    """Come up again, and refuse for a while."""
    server.fail_next(5, code, "InternalError" if code == 500 else "ServiceUnavailable")
    server.cut()


@pytest.mark.parametrize(
    ("strike", "lists"),
    [
        pytest.param(cut_in_mid_line, 0, id="cut in mid-line"),
        pytest.param(FakeApiServer.end_watches, 0, id="ended by the server"),
        pytest.param(expire_by_error_event, 1, id="410 as an ERROR event"),
        pytest.param(expire_by_http_status, 1, id="410 as a status"),
        pytest.param(lambda server: restart(server, 500), 0, id="500 for a while"),
        pytest.param(lambda server: restart(server, 503), 0, id="503 for a while"),
    ],
)
def test_a_broken_watch_loses_nothing(
    served: Served, strike: Callable[[FakeApiServer], None], lists: int
) -> None:
    served.server.requests.clear()
    strike(served.server)
    served.change_much()
    served.has_caught_up()
    served.goes_on()
    fresh = served.server.count(lambda r: "sendInitialEvents" in r.query and "serv" in r.path)
    assert fresh == lists
    assert not served.server.script


# --- refusals ----------------------------------------------------------------------------------


def test_retry_after_is_obeyed(served: Served) -> None:
    asked_at: list[float] = []

    def noted(request: Request) -> bool:
        if of("services", watch=True)(request):
            asked_at.append(time.monotonic())
            return True
        return False

    busy = refusal(429, "TooManyRequests", headers={"Retry-After": "2"}, matches=noted)
    served.server.requests.clear()
    served.server.answer_next(busy)
    served.server.cut()
    served.change_much()
    served.has_caught_up()
    since_refusal = time.monotonic() - asked_at[0]
    assert since_refusal >= 2.0
    assert served.server.count(of("services", watch=True)) == 2
    assert served.daemon.says("asked to wait", "retry_seconds=2.0")
    served.goes_on()


def test_a_rotated_token_is_used_after_a_401(lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("proxy-token\n")
    api = StandIn(lab, tmp_path, user={"tokenFile": str(token)})
    daemon = ApiDaemon(lab, api.kubeconfig, tmp_path)
    try:
        served = Served(api, daemon)
        api.server.tokens = {"rotated": "system:kube-proxy"}
        api.server.cut()
        served.change_much()
        eventually(lambda: daemon.says("access denied", "(401)", f"{token}"), "the 401 is told")
        assert daemon.rules() == served.rules
        token.write_text("rotated\n")
        served.has_caught_up()
        served.goes_on()
        served.close()
    finally:
        daemon.stop()
        api.close()


def test_a_missing_right_is_named_and_waited_for(served: Served) -> None:
    served.server.forbidden.add("endpointslices")
    served.server.cut()
    served.change_much()
    eventually(
        lambda: served.daemon.says(
            "access denied", "grant verb", "cannot watch resource", "endpointslices"
        ),
        "the right is named",
    )
    assert served.daemon.answered_by(served.web) == "p1"
    served.server.forbidden.discard("endpointslices")
    served.has_caught_up()
    served.goes_on()


# --- a server that goes away -------------------------------------------------------------------


def test_rules_stay_while_the_server_is_away_and_its_new_content_comes_by_one_list(
    served: Served,
) -> None:
    served.api.stop()
    eventually(lambda: served.daemon.says("contact lost"), "the outage is told")
    served.change_much()
    served.api.store.compact()
    assert served.daemon.rules() == served.rules
    served.server.requests.clear()
    served.api.start()
    served.has_caught_up()
    served.goes_on()
    for plural in ("services", "endpointslices", "nodes"):

        def lists(plural: str = plural) -> int:
            return served.server.count(
                lambda r: plural in r.path and ("sendInitialEvents" in r.query or not r.is_watch)
            )

        served.server.wait_until(lists)
        assert lists() == 1, plural
    assert served.daemon.says("contact regained")


def test_a_server_back_with_the_same_content_makes_no_transaction(served: Served) -> None:
    before = served.daemon.transactions()
    served.api.stop()
    eventually(lambda: served.daemon.says("contact lost"), "the outage is told")
    served.api.store.compact()  # so that everything is listed afresh
    served.server.requests.clear()
    served.api.start()
    served.server.wait_until(
        lambda: sum("sendInitialEvents" in r.query for r in served.server.requests) == 3
    )
    served.server.wait_for_watches(3)
    served.api.put(web_slice(served.api, "p2"))
    eventually(lambda: served.daemon.answered_by(served.web) == "p2", "a change arrives")
    assert served.daemon.transactions() - before == 1  # the change
    served.goes_on()


def test_a_half_open_connection_is_noticed_by_the_read_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: the deadline of 150 s is no setting of the daemon."""
    monkeypatch.setattr(reflector, "STREAM_READ_SECONDS", 0.3)
    with FakeApiServer() as server:
        client = ApiServer.from_flags(str(server.write_kubeconfig(tmp_path)), None)
        source, sink = KubernetesSource(client, "node", {Kind.SERVICE}), RecordingSink()
        source.start(sink)
        try:
            sink.wait_until(lambda: bool(sink.listings(Kind.SERVICE)))
            server.wait_for_watches(1)
            server.frozen.set()
            server.store.put({"kind": "Service", **metadata("meanwhile"), "spec": {}})
            server.wait_until(lambda: server.count(lambda r: "resourceVersion" in r.query) >= 1)
            server.frozen.clear()
            sink.wait_until(lambda: "meanwhile" in sink.names())
        finally:
            server.frozen.clear()
            source.stop()


# --- objects that cannot be read ---------------------------------------------------------------


def metadata(name: str) -> Object:
    return {"metadata": {"namespace": "default", "name": name}}


def broken(name: str) -> Object:
    spec = {"clusterIP": "10.96.7.7", "ports": [{"port": "eighty"}]}
    return {"kind": "Service", **metadata(name), "spec": spec}


@pytest.mark.parametrize("streaming", ["on", "error"])
def test_a_malformed_object_is_named_and_the_others_go_on(
    stand_in: StandIn, daemon: ApiDaemon, streaming: str
) -> None:
    stand_in.server.streaming_lists = streaming
    stand_in.put(broken("bad-in-list"))
    served = Served(stand_in, daemon)
    assert daemon.says("object unreadable", "default/bad-in-list", "spec.ports[0].port")
    stand_in.put(broken("bad-in-stream"))
    stand_in.put(broken("steady"))  # keeps what it had
    served.change_much()
    served.has_caught_up()
    assert daemon.says("object unreadable", "default/bad-in-stream", "spec.ports[0].port")
    assert daemon.says("object unreadable", "default/steady")
    served.goes_on()
    served.close()
