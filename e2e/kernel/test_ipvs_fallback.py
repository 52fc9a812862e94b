"""A node whose kernel cannot do what ipvs mode needs: another mode, or none, as one wants.

The scheduler that is asked for exists nowhere, so this holds with ip_vs and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.guest import in_guest
from e2e.kernel.running import RunningDaemon
from e2e.kernel.test_daemon import answered_by, web
from e2e.lab import TIMEOUT, Lab
from e2e.lab.fetch import fetch

SCHEDULER = "doesnotexist"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def make_daemon(lab: Lab, directory: Path, fallback: str) -> RunningDaemon:
    flags = (f"--ipvs-scheduler={SCHEDULER}", f"--ipvs-fallback={fallback}")
    variant = "legacy" if in_guest() else "nft"
    daemon = RunningDaemon(lab, variant, directory, *flags, mode="ipvs")
    daemon.write("web", *web("p1"))
    return daemon


def test_starting_fails_where_falling_back_is_not_wanted(lab: Lab, tmp_path: Path) -> None:
    daemon = make_daemon(lab, tmp_path, "fail")
    before = daemon.saved()
    done = daemon.run_to_end(*daemon.serving_flags())
    assert 1 == done.returncode
    said = (done.stdout + done.stderr).decode()
    assert "this node cannot run ipvs mode: the kernel" in said
    assert f"ip_vs_{SCHEDULER}" in said
    assert "ending, since --ipvs-fallback=fail" in said
    assert before == daemon.saved()
    assert answered_by(lab) == TIMEOUT.name


def test_iptables_mode_serves_instead(lab: Lab, tmp_path: Path) -> None:
    with make_daemon(lab, tmp_path, "iptables") as daemon:
        assert "p1" == answered_by(lab)
        assert daemon.says("ERROR", "cannot run ipvs mode", "modprobe -a", f"ip_vs_{SCHEDULER}")
        assert daemon.says("running in iptables mode instead")
        assert "iptables" == fetch(lab, "/proxyMode", 10249).body
        sample = 'pykubeproxy_proxy_mode{configured="ipvs",running="iptables"} 1'
        assert sample in fetch(lab, "/metrics", 10249).body.splitlines()
        assert [] == [c for c in daemon.chains() if "IPVS" in c]
