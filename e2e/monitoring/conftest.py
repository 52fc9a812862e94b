"""Monitoring as an operator has it, by Debian's Prometheus; needs root, as e2e/kernel does."""

from __future__ import annotations

import os
import shutil

import pytest

TOOLS = ("ip", "nsenter", "iptables-nft-restore", "conntrack", "prometheus", "promtool")


@pytest.fixture(scope="session", autouse=True)
def capable_machine() -> None:
    """Fail, with the reason, rather than skip."""
    if os.geteuid() != 0:
        pytest.exit("e2e/monitoring needs root: it makes network namespaces", returncode=2)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.exit(f"e2e/monitoring needs these programs: {', '.join(missing)}", returncode=2)
