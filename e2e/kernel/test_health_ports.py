"""healthCheckNodePort, asked over HTTP from where a cloud's load balancer would ask."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Lab
from e2e.lab.addresses import BOUND_VIP, address_of
from e2e.lab.fetch import Response, connect, fetch
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import endpoint, port, service, slice_, slice_port

HEALTH_PORT = 32100
NODE, OTHER = address_of("node", 4), BOUND_VIP[4]
WEIGHT = "X-Load-Balancing-Endpoint-Weight"
HERE, ELSEWHERE = ("p1", "node"), ("r1", "far")


def balanced(*pods: tuple[str, str], ready: bool = True) -> tuple[Service, EndpointSlice]:
    """A LoadBalancer with externalTrafficPolicy Local; *pods* are roles with their nodes."""
    return (
        service(
            "web",
            type="LoadBalancer",
            cluster_ip="10.96.0.10",
            ports=[port(80, "http", node_port=30080)],
            external_policy="Local",
            vips=["203.0.113.10"],
            health_check_node_port=HEALTH_PORT,
        ),
        slice_(
            "web",
            *(endpoint(address_of(pod, 4), node=host, ready=ready) for pod, host in pods),
            ports=[slice_port(8080, "http")],
        ),
    )


def ask(lab: Lab, host: str = NODE) -> Response:
    return fetch(lab, "/", HEALTH_PORT, host, role="client")


def verdict(lab: Lab, host: str = NODE) -> tuple[int, int, str | None]:
    """Status, ``localEndpoints`` and weight; status 0 where nobody answers."""
    try:
        reply = ask(lab, host)
    except ConnectionError:  # refused, or closed just now
        return 0, 0, None
    return reply.status, json.loads(reply.body)["localEndpoints"], reply.headers[WEIGHT]


def test_the_answer_follows_the_local_ready_endpoints(tmp_path: Path) -> None:
    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path) as daemon:
        assert verdict(lab) == (0, 0, None)

        daemon.write("web", *balanced(HERE, ("p2", "node"), ELSEWHERE))
        eventually(lambda: verdict(lab) == (200, 2, "2"), "two local endpoints")
        reply = ask(lab)
        assert reply.headers["Content-Type"] == "application/json"
        assert json.loads(reply.body) == {
            "service": {"namespace": "default", "name": "web"},
            "localEndpoints": 2,
            "serviceProxyHealthy": True,
        }

        daemon.write("web", *balanced(ELSEWHERE))
        eventually(lambda: verdict(lab) == (503, 0, "0"), "endpoints elsewhere only")

        daemon.write("web", *balanced(HERE))
        eventually(lambda: verdict(lab) == (200, 1, "1"), "a local endpoint again")

        daemon.write("web", *balanced(HERE, ready=False))
        eventually(lambda: verdict(lab) == (503, 0, "0"), "a local endpoint that is not ready")

        daemon.remove("web")
        eventually(lambda: verdict(lab) == (0, 0, None), "the Service is gone, and so its port")


@pytest.mark.parametrize(
    ("flags", "on_other"),
    [((), (200, 1, "1")), (("--nodeport-addresses=primary",), (0, 0, None))],
    ids=["everywhere", "primary"],
)
def test_it_listens_where_node_ports_are_served(
    tmp_path: Path, flags: tuple[str, ...], on_other: tuple[int, int, str | None]
) -> None:
    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path, *flags) as daemon:
        daemon.write("web", *balanced(HERE))
        eventually(lambda: verdict(lab) == (200, 1, "1"), "the InternalIP answers")
        assert verdict(lab, OTHER) == on_other


def test_a_load_balancer_may_keep_its_connection_while_counts_change(tmp_path: Path) -> None:
    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path) as daemon:
        daemon.write("web", *balanced(HERE))
        eventually(lambda: verdict(lab) == (200, 1, "1"), "a local endpoint")
        connection = connect(lab, HEALTH_PORT, NODE, role="client")
        ours = connection.sock.getsockname()

        def status() -> int:
            connection.request("GET", "/")
            return Response(connection.getresponse()).status

        assert 200 == status()
        daemon.write("web", *balanced(ELSEWHERE))
        eventually(lambda: status() == 503, "told over the same connection")
        assert ours == connection.sock.getsockname()
        daemon.remove("web")
        eventually(lambda: verdict(lab) == (0, 0, None), "its port is closed")
        assert b"" == connection.sock.recv(1)  # and so is what was open there
        connection.close()


def test_it_listens_for_the_family_of_the_service_alone_on_each_family(tmp_path: Path) -> None:
    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path) as daemon:
        daemon.write("web", *balanced(HERE))
        eventually(lambda: verdict(lab) == (200, 1, "1"), "over IPv4")
        # An IPv4 Service: the other family's responder has nothing to tell and is not there.
        assert (0, 0, None) == verdict(lab, address_of("node", 6))


MANY, FIRST_PORT = 300, 33000


def threads_of(daemon: RunningDaemon) -> int:
    assert daemon.process is not None
    return len(list(Path(f"/proc/{daemon.process.pid}/task").iterdir()))


def test_hundreds_of_ports_need_no_threads(tmp_path: Path) -> None:
    def numbered(number: int) -> list[Service | EndpointSlice]:
        name = f"web-{number}"
        return [
            service(
                name,
                type="LoadBalancer",
                cluster_ip=f"10.96.{1 + number // 200}.{1 + number % 200}",
                ports=[port(80, "http", node_port=30100 + number)],
                external_policy="Local",
                health_check_node_port=FIRST_PORT + number,
            ),
            slice_(
                name,
                endpoint(address_of("p1", 4), node="node"),
                ports=[slice_port(8080, "http")],
            ),
        ]

    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path) as daemon:
        before = threads_of(daemon)
        daemon.write("many", *(obj for number in range(MANY) for obj in numbered(number)))
        for number in range(MANY):
            eventually(lambda at=FIRST_PORT + number: status_at(lab, at) == 200, "it answers", 60)
        assert threads_of(daemon) <= before
        daemon.remove("many")
        for number in range(MANY):
            eventually(lambda at=FIRST_PORT + number: status_at(lab, at) == 0, "it is gone", 60)


def status_at(lab: Lab, number: int) -> int:
    try:
        return fetch(lab, "/", number, NODE, role="client").status
    except ConnectionError:  # refused, or closed just now
        return 0


def test_a_port_that_is_taken_is_tried_again(tmp_path: Path) -> None:
    with Lab() as lab, RunningDaemon(lab, "nft", tmp_path) as daemon:
        taken = lab.in_namespace("node", lambda: socket.create_server(("0.0.0.0", HEALTH_PORT)))
        daemon.write("web", *balanced(HERE))
        eventually(
            lambda: daemon.says(
                "health check node port not opened",
                f"listen tcp4 0.0.0.0:{HEALTH_PORT}: bind: address already in use",
            ),
            "it says so",
        )
        taken.close()
        daemon.write("web", *balanced(HERE, ("p2", "node")))
        eventually(lambda: verdict(lab) == (200, 2, "2"), "the next sync opens it")
