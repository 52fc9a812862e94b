"""A restart on unchanged objects writes no rule, and believes nothing that may be wrong."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Answer, Lab
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import endpoint, port, service, slice_, slice_port

WEB = "10.96.0.10"
POD = {"p1": "10.244.0.11", "p2": "10.244.0.12", "p3": "10.244.0.13"}
TABLES = ("nat", "filter", "mangle")


def web(*pods: str, name: str = "web", ip: str = WEB) -> tuple[Service, EndpointSlice]:
    """A Service on port 80 whose endpoints are *pods*."""
    return (
        service(name, cluster_ip=ip, ports=[port(80, "http")]),
        slice_(
            name, *(endpoint(POD[p], node="node") for p in pods), ports=[slice_port(8080, "http")]
        ),
    )


MANY = [obj for n in range(40) for obj in web("p1", "p3", name=f"s-{n}", ip=f"10.96.2.{n}")]


class Watched(RunningDaemon):
    """Stands before the tools and notes which were run."""

    def __init__(self, lab: Lab, variant: str, directory: Path) -> None:
        self.state = directory / "state"
        self.calls = directory / "calls"
        tools = directory / "tools"
        tools.mkdir()
        for family in ("iptables", "ip6tables"):
            for kind in ("save", "restore"):
                name = f"{family}-{variant}-{kind}"
                path = tools / name
                path.write_text(
                    f'#!/bin/sh\necho {name} "$@" >>{self.calls}\nexec /usr/sbin/{name} "$@"\n'
                )
                path.chmod(path.stat().st_mode | stat.S_IXUSR)
        super().__init__(lab, variant, directory, path=tools)

    @property
    def files(self) -> list[Path]:
        return sorted(self.state.glob("iptables-*")) if self.state.exists() else []

    def kernel(self) -> dict[tuple[str, int], list[str]]:
        """Everything, in order."""
        return {(t, f): self.saved(t, f) for t in TABLES for f in (4, 6)}

    def start(self) -> None:
        before = self.synced("IPv6")
        super().start()
        eventually(lambda: self.synced("IPv6") > before, "both families are synced")

    def restart(self, meanwhile: Callable[[Watched], object] = lambda _: None) -> None:
        self.stop()
        meanwhile(self)
        self.calls.unlink(missing_ok=True)
        self.start()

    def ran(self, kind: str) -> list[str]:
        """The runs of one kind of tool since the last start, for all tables or to write."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [x for x in lines if x.split()[0].endswith(f"-{kind}") and " -t " not in x]

    def last_pass(self) -> str:
        return [line for line in self.text().splitlines() if " synced family=IPv4 " in line][-1]

    def remembered(self) -> None:
        """Wait until what was written was read back and stored."""
        eventually(lambda: len(self.files) == 2, "the rules are remembered")


@pytest.fixture
def daemon(lab: Lab, variant: str, tmp_path: Path) -> Iterator[Watched]:
    daemon = Watched(lab, variant, tmp_path)
    daemon.write("many", *MANY)
    daemon.write("web", *web("p1"))
    daemon.start()
    yield daemon
    daemon.stop()


def answered_by(daemon: Watched, ip: str = WEB) -> str:
    reply = daemon.lab.probe("client", ip, 80)
    return reply.server if isinstance(reply, Answer) else reply.name


def iptables(daemon: Watched, *arguments: str) -> None:
    daemon.lab.run("node", f"iptables-{daemon.variant}", *arguments)


# --- nothing changed ---


@pytest.mark.parametrize("moment", ["at once", "after quiet"])
def test_a_restart_writes_no_rule_and_leaves_every_line_in_its_place(
    daemon: Watched, moment: str
) -> None:
    if moment == "after quiet":
        daemon.remembered()
    before = daemon.kernel()
    for _ in range(2):
        daemon.restart()
        assert [] == daemon.ran("restore")
        assert before == daemon.kernel()
        assert "written=0 removed=0 transactions=0 lines=0 " in daemon.last_pass()
    assert "p1" == answered_by(daemon)


def test_where_the_kernel_counts_changes_a_restart_does_not_read_the_rules(
    daemon: Watched, variant: str
) -> None:
    daemon.restart()
    if variant == "nft":
        assert [] == daemon.ran("save")
    else:
        assert daemon.ran("save")


def test_files_are_private(daemon: Watched) -> None:
    daemon.stop()
    assert 0o700 == stat.S_IMODE(daemon.state.stat().st_mode)
    assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in daemon.files}


def test_only_what_changed_meanwhile_is_written(daemon: Watched) -> None:
    daemon.restart(lambda d: d.write("web", *web("p1", "p2")))
    assert "written=2 removed=0 " in daemon.last_pass()
    daemon.restart(lambda d: d.write("web", *web("p2")))
    assert "written=1 removed=1 " in daemon.last_pass()
    assert "p2" == answered_by(daemon)


def test_what_is_gone_meanwhile_is_removed(daemon: Watched) -> None:
    daemon.restart(lambda d: d.remove("web"))
    assert not daemon.rules_about("default/web")
    assert not daemon.rules_about(WEB)


def test_changes_before_the_end_are_remembered(daemon: Watched) -> None:
    daemon.restart()
    for pods in (("p2",), ("p2", "p3")):
        passes = daemon.synced()
        daemon.write("web", *web(*pods))
        eventually(lambda passes=passes: daemon.synced() > passes, "a pass")
    daemon.restart()
    assert [] == daemon.ran("restore")


# --- somebody else, while we are away ---

SVC = "KUBE-SVC-"


def a_chain(daemon: Watched) -> str:
    return sorted(chain for chain in daemon.chains() if chain.startswith(SVC))[0]


def cni(daemon: Watched) -> None:
    """What a network plug-in does when a pod comes: it has nothing to do with us."""
    iptables(daemon, "-t", "nat", "-N", "CNI-DN-1")
    iptables(daemon, "-t", "nat", "-A", "CNI-DN-1", "-j", "RETURN")


def test_changes_that_are_not_ours_lead_to_a_look_and_no_write(daemon: Watched) -> None:
    cni(daemon)
    before = daemon.kernel()
    daemon.restart()
    assert [] == daemon.ran("restore")
    assert daemon.ran("save")
    assert before == daemon.kernel()


EDITS: dict[str, Callable[[Watched], None]] = {
    "a rule more": lambda d: iptables(d, "-t", "nat", "-A", a_chain(d), "-j", "RETURN"),
    "a rule less": lambda d: iptables(d, "-t", "nat", "-D", a_chain(d), "1"),
    "another rule": lambda d: iptables(
        d, "-t", "nat", "-R", a_chain(d), "1", "-s", "10.0.0.0/8", "-j", "RETURN"
    ),
    "a flushed chain": lambda d: iptables(d, "-t", "nat", "-F", a_chain(d)),
    "a flushed shared chain": lambda d: iptables(d, "-t", "nat", "-F", "KUBE-SERVICES"),
    "a rule before ours": lambda d: iptables(d, "-t", "nat", "-I", "KUBE-SERVICES", "-j", "RETURN"),
    "a jump that is gone": lambda d: iptables(d, "-t", "nat", "-F", "PREROUTING"),
    "everything flushed": lambda d: [iptables(d, "-t", "nat", f"-{x}") for x in "FX"] and None,
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("moment", ["stopped", "killed"])
def test_an_edit_is_undone_and_little_else_is_written(
    daemon: Watched, edit: str, moment: str
) -> None:
    before = {place: sorted(lines) for place, lines in daemon.kernel().items()}
    if moment == "stopped":
        daemon.restart(EDITS[edit])
    else:
        EDITS[edit](daemon)
        daemon.kill()
        daemon.restart()
    assert before == {place: sorted(lines) for place, lines in daemon.kernel().items()}
    assert "p1" == answered_by(daemon)
    if edit in ("a rule more", "a rule less", "another rule", "a flushed chain"):
        assert "written=1 removed=0 " in daemon.last_pass()


def test_edits_of_what_was_read_back_are_undone_alone(daemon: Watched) -> None:
    daemon.remembered()
    before = daemon.saved()
    chains = sorted(chain for chain in daemon.chains() if chain.startswith(SVC))

    def meanwhile(daemon: Watched) -> None:
        iptables(daemon, "-t", "nat", "-F", chains[0])
        iptables(daemon, "-t", "nat", "-A", chains[1], "-j", "RETURN")
        iptables(daemon, "-t", "nat", "-R", chains[2], "1", "-j", "RETURN")
        iptables(daemon, "-t", "nat", "-D", chains[3], "1")

    daemon.restart(meanwhile)
    assert before == daemon.saved()
    assert "written=4 removed=0 " in daemon.last_pass()


def test_an_edit_between_our_write_and_the_look_at_it_is_found(daemon: Watched) -> None:
    """It has the same number of rules and the same targets."""
    before = daemon.saved()
    iptables(
        daemon, "-t", "nat", "-R", a_chain(daemon), "1", "-s", "10.9.9.9", "-j", "KUBE-MARK-MASQ"
    )
    assert before != daemon.saved()
    eventually(lambda: before == daemon.saved(), "the edit is undone")
    assert daemon.says("somebody edited our rules")


# --- ends that are not orderly, and files that are not ours ---


@pytest.mark.parametrize("moment", ["early", "stored", "changed since"])
def test_a_killed_daemon_is_followed_by_one_that_knows_what_is_there(
    daemon: Watched, moment: str
) -> None:
    if moment != "early":
        daemon.restart()
    if moment == "changed since":
        daemon.write("web", *web("p2"))
        eventually(lambda: answered_by(daemon) == "p2", "the change is served")
    daemon.kill()
    before = daemon.kernel()
    daemon.restart()
    assert [] == daemon.ran("restore")
    assert before == daemon.kernel()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def of_another_boot(path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert boot in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(boot, b"0" * len(boot)))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(truncate, id="truncated"),
        pytest.param(spoil, id="damaged"),
        pytest.param(of_another_boot, id="of another boot"),
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.unlink(), id="lost"),
    ],
)
def test_a_file_that_is_not_as_we_wrote_it_is_never_believed(
    daemon: Watched, damage: Callable[[Path], None]
) -> None:
    before = daemon.saved()

    def meanwhile(daemon: Watched) -> None:
        for path in daemon.files:
            damage(path)
        iptables(daemon, "-t", "nat", "-F", a_chain(daemon))

    daemon.restart(meanwhile)
    assert daemon.ran("save")
    assert sorted(before) == sorted(daemon.saved())
    assert "written=1 removed=0 " in daemon.last_pass()


def test_the_file_of_another_network_namespace_is_not_believed(
    daemon: Watched, variant: str, tmp_path: Path
) -> None:
    daemon.stop()
    stored = [(path.name, path.read_bytes()) for path in daemon.files]
    with Lab() as elsewhere:
        place = tmp_path / "elsewhere"
        place.mkdir()
        other = Watched(elsewhere, variant, place)
        other.write("web", *web("p1"))
        with other:
            pass
        names = [path.name for path in other.files]
        assert not {name for name, _ in stored} & set(names)
        for name, (_, content) in zip(names, stored, strict=True):
            (other.state / name).write_bytes(content)
        iptables(other, "-t", "nat", "-F")
        with other:
            assert other.ran("restore")
            assert "p1" == answered_by(other)


def test_another_version_of_the_tools_is_looked_at(daemon: Watched, variant: str) -> None:
    daemon.stop()
    tool = daemon.calls.parent / "tools" / f"iptables-{variant}"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo iptables v1.9.9 && exit\n'
        f'exec /usr/sbin/{tool.name} "$@"\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    daemon.restart()
    assert daemon.ran("save")
    assert [] == daemon.ran("restore")


def test_a_directory_that_cannot_be_used_is_said_and_nothing_else(
    lab: Lab, variant: str, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    daemon = Watched(lab, variant, tmp_path)
    daemon.write("web", *web("p1"))
    with daemon:
        before = daemon.kernel()
        daemon.restart()
        assert daemon.says("a restart will read the kernel's rules back")
        assert [] == daemon.ran("restore")
        assert before == daemon.kernel()


def test_cleanup_removes_the_files(daemon: Watched) -> None:
    daemon.stop()
    done = daemon.run_to_end("--cleanup", f"--state-directory={daemon.state}")
    assert 0 == done.returncode, done.stderr.decode()
    assert not daemon.state.exists()
