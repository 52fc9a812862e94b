from __future__ import annotations

import errno
import io
import json

import pytest
import structlog

from pykubeproxy import logs


@pytest.fixture
def output():
    stream = io.StringIO()
    yield stream
    structlog.reset_defaults()


def test_text_is_one_readable_line(output):
    logs.configure("text", 0, output)
    structlog.get_logger().warning("service quarantined", service="ns/a", reason='a "b"\nc', n=3)
    time, level, rest = output.getvalue().split(maxsplit=2)
    assert time.endswith("Z")
    assert level == "WARNING"
    assert rest == 'service quarantined service=ns/a reason="a \\"b\\"\\nc" n=3\n'


def test_json_has_the_same_fields(output):
    logs.configure("json", 0, output)
    structlog.get_logger().info("started", node="n")
    line = json.loads(output.getvalue())
    assert {**line, "time": ""} == {"event": "started", "level": "info", "node": "n", "time": ""}


@pytest.mark.parametrize(("verbosity", "expected"), [(0, ""), (3, ""), (4, "seen")])
def test_debug_events_show_from_verbosity_4(output, verbosity, expected):
    logs.configure("text", verbosity, output)
    structlog.get_logger().debug("seen")
    assert output.getvalue().strip().rpartition(" ")[2] == expected


def test_a_traceback_follows_its_line(output):
    logs.configure("text", 0, output)
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger().exception("failed")
    assert output.getvalue().splitlines()[0].endswith(" failed")
    assert output.getvalue().splitlines()[-1] == "ValueError: boom"


class Full(io.StringIO):
    """Nothing can be written to it."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self.write("")


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_log_that_cannot_be_written_ends_nothing(form):
    logs.configure(form, 0, Full())
    structlog.get_logger().info("started")
    structlog.reset_defaults()
