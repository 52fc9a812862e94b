from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pykubeproxy.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("30s", 30.0),
        ("1h30m", 5400.0),
        ("1m0.5s", 60.5),
        ("500ms", 0.5),
        (".5s", 0.5),
        ("5.s", 5.0),
        ("+1s", 1.0),
        ("-1s", -1.0),
        ("24h0m0s", 86400.0),
        ("100us", 0.0001),
        ("100µs", 0.0001),
        ("0.3ns", 0.0),
        ("1.0000000019s", 1.000000001),
        ("2562047h47m16.854775807s", 9223372036.854775807),
    ],
)
def test_go_durations_become_seconds(text, expected):
    assert parse_duration(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    ["", "-", "30", "s", ".s", "1d", "1h 30m", "1s ", "1e3s", "abc", "3000000h", "٣s",
     "2562047h47m16.854775808s", "9" * 10_000 + "s"],
)  # fmt: skip
def test_what_go_refuses_is_refused(text):
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (30.0, "30s"), (900, "15m0s"), (3600, "1h0m0s"), (0.5, "500ms"), (60.5, "1m0.5s"),
     (1e-5, "10µs"), (-1, "-1s"), (1e-9, "1ns"), (0.0015, "1.5ms"), (0.9999999999, "1s"),
     (3600.000000001, "1h0m0.000000001s"), (-0.25, "-250ms")],
)  # fmt: skip
def test_seconds_print_as_go_prints_them(seconds, expected):
    assert format_duration(seconds) == expected


@given(st.integers(-(2**63) + 1, 2**63 - 1))
def test_what_is_printed_reads_as_the_same(nanoseconds):
    seconds = nanoseconds / 10**9
    assert seconds == parse_duration(format_duration(seconds))
