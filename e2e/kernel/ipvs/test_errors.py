"""The kernel refuses what a Service needs in ipvs mode: the others are served, and it is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, answers, app
from e2e.kernel.running import eventually
from e2e.lab import Lab

FULL, ROOMY = "KUBE-EXTERNAL-IP", "TEST-ROOMY"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[IpvsDaemon]:
    """It does not look at the sets on its own while a test exchanges them."""
    with Lab() as lab, IpvsDaemon(lab, tmp_path, "--ipvs-sync-period=10m") as daemon:
        yield daemon


@contextmanager
def a_full_set(daemon: IpvsDaemon) -> Iterator[None]:
    """Put a set with room for one entry, which it has, in the place of ours."""
    kind = f"create {ROOMY} hash:ip,port family inet hashsize 64 maxelem 1"
    swap = f"swap {ROOMY} {FULL}"
    full = "\n".join([kind, f"add {ROOMY} 198.18.0.1,tcp:9", swap, ""])
    daemon.tool("ipset", "restore", input=full)
    yield
    daemon.tool("ipset", "restore", input=f"{swap}\ndestroy {ROOMY}\n")


def test_a_refused_service_is_named_and_the_others_are_served(daemon: IpvsDaemon) -> None:
    bad = app("bad", "10.96.0.70", "p1", external_ips=["203.0.113.70"])
    good = [obj for n in range(71, 80) for obj in app(f"good-{n}", f"10.96.0.{n}", "p2")]
    labels = {"namespace": "default", "service": "bad", "ip_family": "IPv4"}

    def shown() -> float:
        return daemon.metric("pykubeproxy_service_quarantined", **labels)

    with a_full_set(daemon):
        daemon.write("all", *bad, *good)
        words = ("service=default/bad", "203.0.113.70,tcp:80", FULL)
        eventually(lambda: daemon.says("service quarantined", *words), "the refusal is reported")
        assert {"p2"} == {answers(daemon.lab, f"10.96.0.{n}") for n in range(71, 80)}
        assert not daemon.says("service quarantined", "good")
        eventually(lambda: shown() == 1, "it is shown")
    eventually(lambda: daemon.says("out of quarantine", "default/bad"), "there is room again", 40)
    assert ["p1", "p1"] == [answers(daemon.lab, ip) for ip in ("10.96.0.70", "203.0.113.70")]
    assert {"203.0.113.70,tcp:80"} == daemon.entries(FULL)
    eventually(lambda: shown() == 0, "it is not shown any more")
