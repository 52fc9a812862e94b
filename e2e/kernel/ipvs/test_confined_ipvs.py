"""ipvs mode with the rights of our manifest's main container, after its init container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.confined import ConfinedDaemon, capabilities_of, container
from e2e.kernel.ipvs.ipvs_node import BRISK, IpvsDaemon, answers, app
from e2e.kernel.running import eventually
from e2e.lab import Lab

WEB = {4: "10.96.0.91", 6: "fd00:96::91"}
VS = "net/ipv4/vs/"


class ConfinedIpvs(ConfinedDaemon, IpvsDaemon):
    """Both: their `argv` and their `start`."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        ConfinedDaemon.__init__(self, lab, "legacy", directory, BRISK, mode="ipvs")

    def start(self) -> None:
        IpvsDaemon.start(self)


@pytest.fixture
def daemon(lab: Lab, tmp_path: Path) -> Iterator[ConfinedIpvs]:
    daemon = ConfinedIpvs(lab, tmp_path)
    yield daemon
    daemon.stop()


def test_it_does_its_full_job_with_the_rights_of_the_manifest(daemon: ConfinedIpvs) -> None:
    lab = daemon.lab
    said = daemon.run_to_end(*daemon.serving_flags()).stderr.decode()
    for name in ("conntrack", "expire_nodest_conn", "expire_quiescent_template"):
        assert f"/proc/sys/{VS}{name} is 0, must be 1 (Read-only file system)" in said
        assert f"sysctl -w net.ipv4.vs.{name}=1" in said

    daemon.initialise()
    assert "1" == lab.read_sysctl("node", f"{VS}conntrack")
    for version, ip in WEB.items():
        daemon.write(f"web-{version}", *app(f"web-{version}", ip, "p1", node_port=30090 + version))
    daemon.start()
    assert daemon.process is not None
    wanted = set(container()["securityContext"]["capabilities"]["add"])
    assert wanted == capabilities_of(daemon.process.pid)["CapEff"]
    assert set(WEB.values()) == daemon.bound()
    for version, ip in WEB.items():
        eventually(lambda ip=ip: answers(lab, ip) == "p1", f"cluster IP {ip}")
        node = lab.address("node", version)
        assert "p1" == answers(lab, node, 30090 + version)

    daemon.write("web-4", *app("web-4", WEB[4], "p2"))
    eventually(lambda: daemon.serves(WEB[4], "p2"), "a change")
    daemon.stop()
    done = daemon.run_to_end("--cleanup", "--dry-run", "--state-directory=")
    before = daemon.state()
    listed = done.stdout.decode().splitlines()
    assert "device kube-ipvs0" in listed
    assert f"virtual server tcp {WEB[4]}:80" in listed
    assert any(line.startswith("ipset KUBE-CLUSTER-IP with ") for line in listed)
    assert before == daemon.state()
    sets = {line.split()[1] for line in listed if line.startswith("ipset ")}
    assert sets == set(daemon.tool("ipset", "list", "-n").split())
    assert 0 == daemon.run_to_end("--cleanup", "--state-directory=").returncode
    assert [] == daemon.traces()
