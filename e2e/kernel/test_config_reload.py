"""A changed configuration file, with real rules, real connections and a real process."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.kernel.confined import ConfinedDaemon
from e2e.kernel.running import Customers, RunningDaemon, eventually
from e2e.lab import Lab
from e2e.lab.fetch import fetch
from tests.build import endpoint, port, service, slice_, slice_port

# Nothing in here depends on the variant of the tools.
pytestmark = pytest.mark.parametrize("variant", ["nft"])

WEB = "10.96.0.10"
OBJECTS = (
    service("web", cluster_ip=WEB, ports=[port(80, "http")]),
    slice_("web", endpoint("10.244.0.11", node="node"), ports=[slice_port(8080, "http")]),
)
MACHINES = "conntrack: {maxPerCore: 0}"  # the table's size belongs to the machine
SIGNALS = (1 << (signal.SIGTERM - 1)) | (1 << (signal.SIGINT - 1))


class Volume:
    """A ConfigMap as kubelet mounts it: it replaces files by redirecting one symlink."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.path = directory / "config.conf"
        self.path.symlink_to("..data/config.conf")
        self._versions = 0

    def publish(self, *lines: str, metrics: int = 10249) -> None:
        """Replace the file by one that says *lines* too."""
        self.publish_text(
            "\n".join(
                [
                    "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
                    "kind: KubeProxyConfiguration",
                    "clusterCIDR: 10.244.0.0/16,fd00:244::/31",
                    f"metricsBindAddress: 127.0.0.1:{metrics}",
                    *lines,
                    *(() if any("conntrack" in line for line in lines) else (MACHINES,)),
                    "",
                ]
            )
        )

    def publish_text(self, text: str) -> None:
        self._versions += 1
        version = self._directory / f"..2026_{self._versions}"
        version.mkdir()
        (version / "config.conf").write_text(text)
        temporary = self._directory / "..data_tmp"
        temporary.symlink_to(version.name)
        temporary.rename(self._directory / "..data")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "volume")
    volume.publish()
    return volume


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path, volume: Volume) -> Iterator[RunningDaemon]:
    with RunningDaemon(lab, variant, tmp_path, f"--config={volume.path}") as daemon:
        daemon.write("web", *OBJECTS)
        eventually(lambda: daemon.rules_about("default/web"), "the Service is there")
        yield daemon


def pid(daemon: RunningDaemon) -> int:
    """Of the daemon itself, which the lab's way into the namespace turned into."""
    assert daemon.process is not None
    command = Path(f"/proc/{daemon.process.pid}/cmdline").read_bytes().split(b"\0")
    assert b"pykubeproxy" in command
    return daemon.process.pid


def metrics(daemon: RunningDaemon, number: int) -> list[str]:
    """Lines of ``/metrics`` on port *number*; none while nobody listens there."""
    try:
        return fetch(daemon.lab, "/metrics", number).body.splitlines()
    except OSError as error:
        if error.errno not in (errno.ECONNREFUSED, errno.ECONNRESET):
            raise
        return []


def valid(daemon: RunningDaemon, number: int) -> float | None:
    """What the metric says about the file on disk."""
    for line in metrics(daemon, number):
        if line.startswith("pykubeproxy_config_file_valid "):
            return float(line.split()[1])
    return None


def begun(daemon: RunningDaemon) -> int:
    return daemon.text().count(" starting version=")


def test_a_new_configuration_comes_into_force_in_the_same_process(
    daemon: RunningDaemon, volume: Volume
) -> None:
    before = pid(daemon)
    assert "-j MARK --set-xmark 0x4000/0x4000" in "\n".join(daemon.saved())
    assert 1 == valid(daemon, 10249)
    with Customers(daemon.lab, ("client", WEB, 80, "TCP"), timeout=0.9) as customers:
        volume.publish("iptables: {masqueradeBit: 20}", metrics=10250)
        eventually(lambda: valid(daemon, 10250) == 1, "the new port answers")
        eventually(lambda: "0x100000/0x100000" in "\n".join(daemon.saved()), "the new mark is used")
        # And once more: what begins anew follows the file too.
        volume.publish("iptables: {masqueradeBit: 21}", metrics=10251)
        eventually(lambda: valid(daemon, 10251) == 1, "the next port answers")
        eventually(lambda: "0x200000/0x200000" in "\n".join(daemon.saved()), "the next mark")
        customers.go_on()
    assert [] == customers.failures
    assert 3 == begun(daemon)
    assert before == pid(daemon)
    assert [] == metrics(daemon, 10249) + metrics(daemon, 10250)
    assert daemon.says("configuration file changed", "iptables.masqueradeBit, metricsBindAddress")


def test_a_file_that_cannot_be_used_changes_nothing(daemon: RunningDaemon, volume: Volume) -> None:
    rules = daemon.saved()
    volume.publish("mode: tables", "oomScoreAdj: 5000", "iptables: {masqueradeBit: x}")
    eventually(lambda: valid(daemon, 10249) == 0, "the file is refused")
    for field in ("mode", "oomScoreAdj", "iptables.masqueradeBit"):
        assert daemon.says("ERROR", "configuration refused", f"field={field} ")
    volume.publish_text("")
    eventually(lambda: daemon.says("must hold a mapping"), "an empty one too")
    assert 0 == valid(daemon, 10249)

    volume.publish("# as it was")
    eventually(lambda: valid(daemon, 10249) == 1, "the corrected file is taken")
    assert daemon.says("nothing that it asks for")
    assert (1, rules) == (begun(daemon), daemon.saved())


@pytest.mark.parametrize("line", ["file changed, restarting", "stopped; rules stay"])
def test_a_file_that_is_spoilt_during_the_restart_does_not_end_the_process(
    daemon: RunningDaemon, volume: Volume, line: str
) -> None:
    number = pid(daemon)
    volume.publish("iptables: {masqueradeBit: 20}")
    eventually(lambda: line in daemon.text(), "the restart is under way")
    volume.publish_text("kind: nonsense")
    eventually(lambda: "0x100000/0x100000" in "\n".join(daemon.saved()), "what was judged is used")
    eventually(lambda: valid(daemon, 10249) == 0, "and what is there now is refused")
    assert daemon.says("configuration refused", "field=kind", "nonsense")
    volume.publish("iptables: {masqueradeBit: 21}")
    eventually(lambda: "0x200000/0x200000" in "\n".join(daemon.saved()), "the corrected file")
    assert (3, number) == (begun(daemon), pid(daemon))


def test_what_the_node_cannot_do_changes_nothing(
    lab: Lab, variant: str, tmp_path: Path, volume: Volume
) -> None:
    flags = (f"--config={volume.path}", "--ipvs-fallback=fail")
    with RunningDaemon(lab, variant, tmp_path, *flags) as daemon:
        volume.publish("mode: ipvs", "ipvs: {scheduler: nosuch}")
        eventually(lambda: valid(daemon, 10249) == 0, "the file is refused")
        assert daemon.says("ERROR", "configuration refused", "nosuch")
        assert 1 == begun(daemon)


def test_another_timeout_is_no_reason_to_refuse_all_that_changed(
    lab: Lab, variant: str, tmp_path: Path, volume: Volume
) -> None:
    """A container that may not set it takes the rest, and says what it did not do."""
    daemon = ConfinedDaemon(lab, variant, tmp_path, f"--config={volume.path}")
    daemon.initialise()
    with daemon:
        volume.publish("conntrack: {maxPerCore: 0, tcpCloseWaitTimeout: 50m}", metrics=10250)
        eventually(lambda: valid(daemon, 10250) == 1, "the file is taken")
        assert not daemon.says("configuration refused")
        assert daemon.says("connections are tracked with the values found", "must be 3000 (Read-")
    assert 2 == begun(daemon)


def test_a_beginning_anew_can_be_ended_like_any_other(
    daemon: RunningDaemon, volume: Volume
) -> None:
    volume.publish(metrics=10250)
    eventually(lambda: metrics(daemon, 10250), "the new port answers")
    status = Path(f"/proc/{pid(daemon)}/status").read_text()
    blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
    assert 0 == int(blocked, 16) & SIGNALS
    assert 0 == daemon.stop()
    assert daemon.rules_about("default/web")


@pytest.mark.parametrize(
    ("line", "times"),
    [
        pytest.param("configuration file changed, restarting", 1, id="before the end"),
        pytest.param("stopped; rules stay in place", 1, id="between the two programs"),
        pytest.param(" starting version=", 2, id="into the new start"),
    ],
)
def test_a_signal_during_the_change_is_obeyed(
    daemon: RunningDaemon, volume: Volume, line: str, times: int
) -> None:
    number = pid(daemon)
    volume.publish(metrics=10250)
    eventually(lambda: daemon.text().count(line) == times, "it is that far")
    os.kill(number, signal.SIGTERM)
    assert daemon.process is not None
    assert 0 == daemon.process.wait(60)
    assert daemon.rules_about("default/web")


def test_the_mode_changes_without_a_failed_connection(
    daemon: RunningDaemon, volume: Volume
) -> None:
    """Where the kernel has no IPVS this is the fallback, which is a beginning anew as well."""
    with Customers(daemon.lab, ("client", WEB, 80, "TCP"), timeout=0.9) as customers:
        volume.publish("mode: ipvs", metrics=10250)
        sample = 'configured="ipvs"'
        eventually(
            lambda: any(sample in line for line in metrics(daemon, 10250)), "the new mode", 30
        )
        customers.go_on()
    assert [] == customers.failures
