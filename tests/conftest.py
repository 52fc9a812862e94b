"""For all tests without a network of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from pykubeproxy.host import sysctls, tuning

NOWHERE = Path("/nonexistent")


@pytest.fixture(scope="session", autouse=True)
def untouched_machine() -> Iterator[None]:
    """Kernel parameters and the OOM score of the machine that runs the tests are out of reach.

    A test that wants some brings a directory of its own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sysctls, "ROOT", NOWHERE / "proc/sys")
        patch.setattr(sysctls, "SYS", NOWHERE / "sys")
        patch.setattr(tuning, "OOM_SCORE", NOWHERE / "oom_score_adj")
        yield


@pytest.fixture(autouse=True)
def logs_of_its_own() -> Iterator[None]:
    """Whoever sets up logging leaves none of it behind, such as a captured, closed stream."""
    yield
    structlog.reset_defaults()
