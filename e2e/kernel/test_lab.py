"""The network laboratory itself: what every packet test takes for granted."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.lab import REFUSED, TIMEOUT, Answer, AttendedTime, Lab, LabError
from e2e.lab.addresses import BOUND_VIP
from pykubeproxy.model.kinds import Family
from tests.contract.world import ADDRESS_OF, address

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONS = {4: Family.IPV4, 6: Family.IPV6}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def namespaces() -> set[str]:
    return {entry.name for entry in Path("/run/netns").iterdir()}


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("sender", "target"),
    [("client", "p1"), ("p1", "p3"), ("p2", "r1"), ("r1", "p1"), ("r1", "r2"), ("node", "p2"),
     ("node", "r2"), ("client", "node"), ("p1", "node"), ("client", "far")],
)  # fmt: skip
def test_everybody_is_reached_under_the_own_address(
    lab: Lab, sender: str, target: str, version: int, protocol: str
) -> None:
    answer = lab.probe(sender, lab.address(target, version), 8080, protocol, timeout=2.0)
    assert Answer(target, 8080, lab.address(sender, version)) == answer


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("version", [4, 6])
def test_refusal_and_silence_are_told_apart(lab: Lab, version: int, protocol: str) -> None:
    nobody = {4: "203.0.113.9", 6: "2001:db8:113::9"}[version]
    node = lab.address("node", version)
    assert lab.probe("client", node, 81, protocol, timeout=3.0) is REFUSED
    assert lab.probe("client", nobody, 80, protocol) is TIMEOUT


def test_a_burst_counts_servers_and_sources(lab: Lab) -> None:
    burst = lab.burst("client", lab.address("p1"), 8080, 150)
    assert Counter({"p1:8080": 150}) == burst.servers
    assert Counter({"192.0.2.100": 150}) == burst.sources
    assert not burst.silent


def test_a_connection_stays_open(lab: Lab) -> None:
    connection = lab.connect("client", lab.address("p2"), 8081)
    assert Answer("p2", 8081, "192.0.2.100") == connection.answer
    assert connection.ask(b"hello\n") == b"hello\n"
    connection.close()


@pytest.mark.parametrize(
    ("attended", "looks"),
    [
        pytest.param(0.75, (0.25, 0.5, 0.75), id="all of it"),
        pytest.param(1.25, (0.25, 60.25, 60.75), id="what stood still counts as one step"),
    ],
)
def test_a_machine_that_stands_still_uses_up_no_timeout(
    attended: float, looks: tuple[float, ...]
) -> None:
    moments = iter((0.0, *looks))
    time = AttendedTime(step=0.5, clock=lambda: next(moments))
    assert attended == [time.look() for _ in looks][-1]


def test_labs_stand_side_by_side_and_leave_nothing(lab: Lab) -> None:
    before = namespaces()
    with Lab() as other:
        answer = other.probe("client", other.address("p1"), 8080, timeout=2.0)
        assert isinstance(answer, Answer)
    assert before == namespaces()
    assert isinstance(lab.probe("client", lab.address("p1"), 8080, timeout=2.0), Answer)


def test_an_exception_removes_the_lab() -> None:
    before = namespaces()

    def fail() -> None:
        with Lab(serve=()):
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert before == namespaces()


def test_what_a_killed_process_left_is_swept() -> None:
    code = (
        "import os, signal; from e2e.lab import Lab\n"
        "with Lab(serve=()) as lab: print(lab.namespace('node'), flush=True);"
        " os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False
    )
    left = done.stdout.decode().strip()
    assert left in namespaces()
    # Any lab that is built sweeps first; so may this one, or another test run beside it.
    Lab.sweep()
    assert left not in namespaces()


@pytest.mark.parametrize("version", [4, 6])
def test_the_packet_tables_use_the_addresses_of_the_lab(version: int) -> None:
    family = VERSIONS[version]
    tables = {role: address(text, family) for role, text in ADDRESS_OF.items()}
    assert tables == {role: Lab.address(role, version) for role in ADDRESS_OF}
    assert address("203.0.113.250", family) == BOUND_VIP[version]


def test_it_is_refused_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab().__enter__()
