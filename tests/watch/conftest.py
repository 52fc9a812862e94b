"""A stand-in API server, a client of it, and a scripted API without sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pykubeproxy.watch.client import ApiServer
from tests.fakes.apiserver import FakeApiServer


@pytest.fixture
def fake() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def client(fake: FakeApiServer, tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer.from_flags(str(fake.write_kubeconfig(tmp_path)), None)
    yield made
    made.close()
