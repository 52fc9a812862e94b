"""Inside: a pytest plugin that writes what happens, one JSON object a line, as it happens.

``pytest -p e2e.guest.reporting`` with the file in the environment. `replay` reads it outside.
"""

from __future__ import annotations

import json
import os
from typing import IO, Any

import pytest

__all__ = ["REPORTS_VARIABLE", "ReportWriter"]

REPORTS_VARIABLE = "PYKUBEPROXY_GUEST_REPORTS"


class ReportWriter:
    """The hooks; *file* is written to its end after every line, to be seen from outside."""

    def __init__(self, config: pytest.Config, file: IO[str]) -> None:
        self._config = config
        self._file = file

    def _write(self, kind: str, value: Any) -> None:
        self._file.write(json.dumps([kind, value], default=repr) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write("start", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write("report", data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write("finish", nodeid)


def pytest_configure(config: pytest.Config) -> None:
    file = open(os.environ[REPORTS_VARIABLE], "a", encoding="utf-8")  # noqa: SIM115 - closed below
    config.add_cleanup(file.close)
    config.pluginmanager.register(ReportWriter(config, file))
