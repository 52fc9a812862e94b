"""What becomes of the connections to an endpoint that is removed in ipvs mode."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.ipvs.ipvs_node import IpvsDaemon, answers, app, connection, pods
from e2e.kernel.running import eventually
from e2e.lab import Answer, Connection, Lab

VERSIONS = pytest.mark.parametrize("version", [4, 6])
IP = {4: "10.96.0.30", 6: "fd00:96::30"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def patient(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IpvsDaemon]:
    """It waits for the end of connections as long as they last."""
    directory = tmp_path_factory.mktemp("patient")
    with IpvsDaemon(lab, directory, "--ipvs-drain-timeout=0") as daemon:
        yield daemon


@VERSIONS
def test_an_open_connection_outlives_its_endpoint(patient: IpvsDaemon, version: int) -> None:
    ip, lab = IP[version], patient.lab
    patient.write("web", *app("web", ip, "p1"))
    eventually(lambda: patient.serves(ip, "p1"), "served")
    with connection(lab, ip) as opened:
        patient.write("web", *app("web", ip, "p2"))
        eventually(lambda: patient.serves(ip, "p2"), "the endpoint is replaced")
        assert pods(ip, "p1", weight=0) | pods(ip, "p2") == patient.reals(ip)
        assert opened.ask()
        assert {"p2"} == {answers(lab, ip) for _ in range(4)}

        patient.write("web", *app("web", ip, "p1", "p2"))
        eventually(lambda: patient.serves(ip, "p1", "p2"), "the endpoint is back")
        assert {"p1", "p2"} == {answers(lab, ip) for _ in range(4)}
        assert opened.ask()

        patient.write("web", *app("web", ip, "p2"))
        eventually(lambda: patient.serves(ip, "p2"), "it goes again")
        patient.stop()
        patient.start()
        assert pods(ip, "p1", weight=0) | pods(ip, "p2") == patient.reals(ip)
        assert opened.ask()
        leave_at_once(opened)
    # The kernel remembers a reset connection for ten seconds.
    eventually(lambda: patient.reals(ip) == pods(ip, "p2"), "it goes with its connection", 40)
    patient.remove("web")
    eventually(lambda: patient.reals(ip) is None, "nothing is left")


def leave_at_once(opened: Connection) -> None:
    """By RST: no lingering states."""
    opened._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@VERSIONS
def test_udp_is_not_waited_for(patient: IpvsDaemon, version: int) -> None:
    ip, lab = IP[version], patient.lab
    dns = {"ports": (53,), "protocol": "UDP"}
    patient.write("dns", *app("dns", ip, "p1", **dns))
    eventually(lambda: patient.reals(ip, 53, "u") == pods(ip, "p1"), "served")
    asked = lab.probe("client", ip, 53, "UDP", timeout=2.0)
    assert isinstance(asked, Answer)
    patient.write("dns", *app("dns", ip, "p2", **dns))
    eventually(lambda: patient.reals(ip, 53, "u") == pods(ip, "p2"), "the other one only", 5)
    assert "p2" == answers(lab, ip, 53, protocol="UDP")
    patient.remove("dns")
    eventually(lambda: patient.reals(ip, 53, "u") is None, "nothing is left")


def test_patience_ends(patient: IpvsDaemon, tmp_path: Path) -> None:
    patient.stop()
    with IpvsDaemon(patient.lab, tmp_path, "--ipvs-drain-timeout=3s") as daemon:
        for ip in IP.values():
            daemon.write(f"web-{len(ip)}", *app(f"web-{len(ip)}", ip, "p1"))
        for ip in IP.values():
            eventually(lambda ip=ip: daemon.serves(ip, "p1"), "served")
        with connection(daemon.lab, IP[4]) as four, connection(daemon.lab, IP[6]) as six:
            for ip in IP.values():
                daemon.write(f"web-{len(ip)}", *app(f"web-{len(ip)}", ip, "p2"))
            for ip, opened in ((IP[4], four), (IP[6], six)):
                eventually(lambda ip=ip: daemon.serves(ip, "p2"), "the endpoint is replaced")
                assert opened.ask()
            for ip, opened in ((IP[4], four), (IP[6], six)):
                eventually(lambda ip=ip: daemon.reals(ip) == pods(ip, "p2"), "it is gone", 10)
                with pytest.raises(OSError):
                    opened.ask()
