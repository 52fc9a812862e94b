"""``--golden`` writes the dumps anew instead of comparing with them (``make golden``)."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", action="store_true", help="write the scenario dumps anew")
