"""Tests on a real kernel, in network namespaces of their own; they need root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from e2e.lab import Lab

TOOLS = (
    "ip",
    "nsenter",
    "nfacct",
    "prometheus",
    *(
        f"{stem}-{variant}{kind}"
        for stem in ("iptables", "ip6tables")
        for variant in ("nft", "legacy")
        for kind in ("", "-restore", "-save")
    ),
)


@pytest.fixture(scope="session", autouse=True)
def capable_machine() -> None:
    """Fail, with the reason, rather than skip: rules never loaded into a kernel are a hope."""
    if os.geteuid() != 0:
        pytest.exit("e2e/kernel needs root: it makes network namespaces", returncode=2)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"e2e/kernel needs these programs: {', '.join(missing)}", returncode=2)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture(params=["nft", "legacy"])
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)
