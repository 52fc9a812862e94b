"""The lock files: every dependency, one version, hashes."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from e2e.image.conftest import REPOSITORY
from e2e.image.test_contents import locked

LOCKS = ("requirements.lock", "build.lock")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_one_version_and_hashes(name: str) -> None:
    text = (REPOSITORY / "deploy/image" / name).read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert len(lines) > lines.count("")
    for line in filter(None, lines):
        assert re.fullmatch(r"[\w-]+==[\w.]+(\s+--hash=sha256:[0-9a-f]{64})+", line), line


@pytest.mark.parametrize("text", PROJECT["project"]["dependencies"])
def test_what_the_project_asks_for_is_locked(text: str) -> None:
    wanted = Requirement(text)
    assert wanted.specifier.contains(locked()[canonicalize_name(wanted.name)]), "run make lock"


def test_what_builds_the_wheel_is_locked() -> None:
    text = (REPOSITORY / "deploy/image/build.lock").read_text()
    for wanted in map(Requirement, PROJECT["build-system"]["requires"]):
        (version,) = re.findall(rf"^{wanted.name}==(\S+)", text, re.MULTILINE)
        assert wanted.specifier.contains(version), "run make lock"
