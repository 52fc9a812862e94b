"""What the dashboard asks of ipvs mode alone: Prometheus has it from the running daemon."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import pytest

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, app
from e2e.kernel.running import eventually
from e2e.lab import Lab
from e2e.monitoring.files import OF_IPVS_MODE, Query, metric_names, queries
from e2e.monitoring.prometheus import Prometheus

PATIENCE_SECONDS = 60
IP = {4: "10.96.0.60", 6: "fd00:96::60"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("prometheus")
    with (
        Lab() as lab,
        IpvsDaemon(lab, directory) as daemon,
        Prometheus(lab, directory) as prometheus,
    ):
        for version, ip in IP.items():
            daemon.write(f"web-{version}", *app(f"web-{version}", ip, "p1", "p2"))
            eventually(partial(daemon.serves, ip, "p1", "p2"), "served", PATIENCE_SECONDS)
        yield prometheus


@pytest.mark.parametrize(
    "query", [q for q in queries() if metric_names(q.text) & OF_IPVS_MODE], ids=str
)
def test_a_query_about_ipvs_has_an_answer(prometheus: Prometheus, query: Query) -> None:
    def answered() -> bool:
        return any(not math.isnan(one.value) for one in prometheus.query(query.text))

    eventually(answered, query.text, PATIENCE_SECONDS)


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("name", "expected"), [("pykubeproxy_virtual_servers", 1), ("pykubeproxy_real_servers", 2)]
)
def test_servers_are_counted(prometheus: Prometheus, name: str, family: str, expected: int) -> None:
    selected = f'{name}{{ip_family="{family}"}}'
    eventually(lambda: expected == prometheus.value(selected), selected, PATIENCE_SECONDS)


def test_an_alert_about_the_mode_is_silent(prometheus: Prometheus) -> None:
    running = 'pykubeproxy_proxy_mode{running="ipvs", configured="ipvs"}'
    eventually(lambda: 1 == prometheus.value(running), running, PATIENCE_SECONDS)
    assert [] == prometheus.alerts("PykubeproxyModeFallback")
