"""The two scripts that run in pods, run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

INSIDE = Path(__file__).parent / "inside"


@pytest.fixture
def port() -> Iterator[int]:
    server = subprocess.Popen(
        [sys.executable, str(INSIDE / "server.py"), "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server:
        yield int(server.stdout.readline())
        server.terminate()


def client(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, str(INSIDE / "client.py"), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_who_answered_is_counted_in_both_families(port: int, host: str) -> None:
    expected = {"answers": {os.uname().nodename: 5}, "failures": []}
    assert expected == client("ask", f"http://{host}:{port}", "5")


def test_a_connection_that_is_refused_is_a_failure() -> None:
    found = client("ask", "http://127.0.0.1:1", "2")
    assert {} == found["answers"]
    assert 2 == len(found["failures"])
    assert "refused" in found["failures"][0]


def test_it_goes_on_until_it_is_told_to_stop(port: int, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    running = subprocess.Popen(
        [sys.executable, str(INSIDE / "client.py"), "go-on", f"http://127.0.0.1:{port}", str(stop)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with running:
        client("ask", f"http://127.0.0.1:{port}", "20")
        assert None is running.poll()
        stop.touch()
        found = json.loads(running.communicate(timeout=30)[0])
    assert [] == found["failures"]


def test_names_are_resolved() -> None:
    assert "127.0.0.1" in client("resolve", "localhost")
