"""One stand-in for the base image and two builds for the whole session: two to three minutes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.image.dockerfile import ignored
from e2e.image.roots import make_base
from e2e.image.stages import Image, build

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("chroot", "debootstrap", "ip", "nsenter", "tar", "unshare")


@pytest.fixture(scope="session")
def capable_machine() -> None:
    """Fail, with the reason, rather than skip: an image never built is a hope."""
    if os.geteuid() != 0:
        pytest.exit("e2e/image needs root: it makes root file systems", returncode=2)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"e2e/image needs these programs: {', '.join(missing)}", returncode=2)


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for root file systems; too much to be left for later."""
    room = tmp_path_factory.mktemp("image")
    yield room
    shutil.rmtree(room)


@pytest.fixture(scope="session")
def base(capable_machine: None, room: Path) -> Path:
    make_base(room / "base")
    return room / "base"


@pytest.fixture(scope="session")
def context(room: Path) -> Path:
    """What a builder is sent, as it is now: both builds get the same."""
    left_out = ignored((REPOSITORY / ".dockerignore").read_text())
    context = room / "context"
    context.mkdir()
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copy2(REPOSITORY / name, context)
    wanted = ("pyproject.toml", "README.md", "LICENSE", "pykubeproxy", "deploy/image")
    for top in wanted:
        paths = [REPOSITORY / top, *(REPOSITORY / top).rglob("*")]
        for path in (path for path in paths if path.is_file()):
            place = context / path.relative_to(REPOSITORY)
            if not left_out(str(path.relative_to(REPOSITORY))):
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
    return context


@pytest.fixture(scope="session")
def builds(base: Path, context: Path, room: Path) -> tuple[Image, Image]:
    """Two builds of the same sources, side by side, neither knowing of the other."""
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(build, context, base, room / "first", {"REVISION": "0123abc"})
        second = pool.submit(build, context, base, room / "second", {"REVISION": "0123abc"})
        return first.result(), second.result()


@pytest.fixture(scope="session")
def image(builds: tuple[Image, Image]) -> Image:
    """As it was built: to be looked at, and run, but not changed."""
    return builds[0]


@pytest.fixture(scope="session")
def spare(image: Image, room: Path) -> Image:
    """Another copy, in which places may be made for what is lent."""
    return image.copy(room / "spare")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The time limit is for a test; making the roots, which the first one has to, has its own."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(func_only=True))
