"""The real daemon against an API server over real HTTPS; needs root, as e2e/kernel does.

With ``--real-cluster`` the API is that of the cluster in KUBECONFIG. Only tests that ask for the
fixture ``api`` run then; the others script misfortune, or say what the node is like.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.api import ApiUnderTest, RealCluster, StandIn
from e2e.cluster.process import ApiDaemon
from e2e.lab import Lab

HERE = Path(__file__).parent
TOOLS = ("ip", "nsenter", "iptables-nft-restore", "iptables-legacy-restore", "conntrack")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-cluster", action="store_true", help="test against the cluster in KUBECONFIG"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--real-cluster", default=False):
        return
    unfit = [
        item
        for item in items
        if HERE in item.path.parents and "api" not in getattr(item, "fixturenames", ())
    ]
    config.hook.pytest_deselected(items=unfit)
    items[:] = [item for item in items if item not in unfit]


@pytest.fixture(scope="session", autouse=True)
def capable_machine() -> None:
    """Fail, with the reason, rather than skip."""
    if os.geteuid() != 0:
        pytest.exit("e2e/cluster needs root: it makes network namespaces", returncode=2)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"e2e/cluster needs these programs: {', '.join(missing)}", returncode=2)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def api(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ApiUnderTest]:
    """The server under test, whichever it is."""
    made: ApiUnderTest
    if request.config.getoption("--real-cluster", default=False):
        made = RealCluster(lab, tmp_path, os.environ["KUBECONFIG"])
    else:
        made = StandIn(lab, tmp_path)
    yield made
    made.close()


@pytest.fixture
def stand_in(lab: Lab, tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(lab, tmp_path)
    yield made
    made.close()


@pytest.fixture
def daemon(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Iterator[ApiDaemon]:
    """Not started yet; its API is the one that the test asks for."""
    name = "stand_in" if "stand_in" in request.fixturenames else "api"
    server: ApiUnderTest = request.getfixturevalue(name)
    daemon = ApiDaemon(lab, server.kubeconfig, tmp_path)
    yield daemon
    assert daemon.stop() == 0, daemon.text()
    assert "Traceback" not in daemon.text(), daemon.text()
