from __future__ import annotations

import resource

import pytest
from structlog.testing import capture_logs

from pykubeproxy.host.limits import raise_open_files


class Limits:
    """Stands in for this process's limits."""

    RLIMIT_NOFILE = resource.RLIMIT_NOFILE

    def __init__(self, soft, hard, refuses=False):
        self.limits = soft, hard
        self.refuses = refuses

    def getrlimit(self, which):
        assert self.RLIMIT_NOFILE == which
        return self.limits

    def setrlimit(self, which, limits):
        if self.refuses:
            raise ValueError("not allowed to raise maximum limit")
        self.limits = limits


@pytest.mark.parametrize(
    ("limits", "expected", "warnings"),
    [
        pytest.param(Limits(1024, 524288), 524288, 0, id="raised"),
        pytest.param(Limits(4096, 4096, refuses=True), 4096, 0, id="nothing to raise"),
        pytest.param(Limits(1024, 4096, refuses=True), 1024, 1, id="refused"),
    ],
)
def test_as_many_files_as_allowed_may_be_open(monkeypatch, limits, expected, warnings):
    monkeypatch.setattr("pykubeproxy.host.limits.resource", limits)
    with capture_logs() as logged:
        assert expected == raise_open_files()
    assert expected == limits.limits[0]
    assert warnings == len(logged)
