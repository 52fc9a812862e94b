"""The daemon from the image: a root that is read-only, and no shell in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from e2e.image.stages import Image
from e2e.kernel.running import RunningDaemon, eventually
from e2e.lab import Answer, Lab
from tests.build import endpoint, port, service, slice_, slice_port

WEB = {4: "10.96.0.10", 6: "fd00:96::10"}
SHELLS = ("sh", "dash", "bash", "rbash")


@pytest.fixture(scope="module")
def without_shell(image: Image, room: Path) -> Image:
    """A copy of the image that has no shell."""
    bare = image.copy(room / "without-shell")
    gone = [bare.root / "usr/bin" / name for name in SHELLS]
    for path in gone:
        path.unlink()
    assert (bare.root / "bin").is_symlink()
    assert bare.run("/bin/sh", "-c", "true").returncode == 127
    return bare


class Contained(RunningDaemon):
    """The daemon of an image instead of the sources', with what the DaemonSet mounts."""

    def __init__(self, image: Image, lab: Lab, variant: str, directory: Path) -> None:
        super().__init__(lab, variant, directory)
        lock = Path("/run/xtables.lock")
        lock.touch()
        (directory / "state").mkdir()
        self._image = image
        self._lent = (directory, lock)

    def argv(self, *flags: str) -> list[str]:
        command = self._image.command(*self._image.entrypoint, *flags, lent=self._lent)
        return self.lab.argv("node", command)


@pytest.fixture(params=["nft", "legacy"])
def daemon(
    request: pytest.FixtureRequest, without_shell: Image, tmp_path: Path
) -> Iterator[Contained]:
    with Lab() as lab, Contained(without_shell, lab, str(request.param), tmp_path) as daemon:
        yield daemon


def answers(lab: Lab, address: str) -> bool:
    return isinstance(lab.probe("client", address, 80), Answer)


def test_it_serves_both_families_and_ends_in_order(daemon: Contained) -> None:
    for family in (4, 6):
        daemon.write(
            f"web-{family}",
            service(f"web-{family}", cluster_ip=WEB[family], ports=[port(80, "http")]),
            slice_(
                f"web-{family}",
                endpoint(daemon.lab.address("p1", family), node="node"),
                ports=[slice_port(8080, "http")],
            ),
        )
    for family in (4, 6):
        eventually(partial(answers, daemon.lab, WEB[family]), f"{WEB[family]} answers")
        assert any(WEB[family] in line for line in daemon.saved(family=family))
    assert 0 == daemon.stop()
    assert not daemon.says("Read-only"), daemon.text()
    assert not daemon.says("[error"), daemon.text()


def test_cleanup_takes_everything_away_again(daemon: Contained) -> None:
    assert daemon.chains()
    daemon.stop()
    done = daemon.run_to_end("--cleanup")
    assert 0 == done.returncode, done.stderr
    assert not [name for name in daemon.chains() if name.startswith("KUBE-")]
