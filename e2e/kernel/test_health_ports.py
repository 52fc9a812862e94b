"""healthCheckNodePort, asked over HTTP from where a cloud's load balancer would ask."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Lab
from e2e.lab.addresses import BOUND_VIP, address_of
from e2e.lab.fetch import Response, fetch
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
    """Status, ``localEndpoints`` and weight; status 0 where nothing listens."""
    try:
        reply = ask(lab, host)
    except ConnectionRefusedError:
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
