"""Tests on a real kernel with IPVS: the running one, or that of a guest if it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.guest.replay import run_in_guests

HERE = Path(__file__).parent


def pytest_collection_finish(session: pytest.Session) -> None:
    run_in_guests(session, HERE)
