from __future__ import annotations

import pytest

from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import (
    GATE_STAGES,
    GATES,
    SETTINGS,
    Type,
    from_document,
    from_text,
)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        pytest.param(Type.BOOL, "T", True, id="every spelling of Go"),
        pytest.param(Type.INT, "0x10", 16, id="hexadecimal"),
        pytest.param(Type.INT, "010", 10, id="a leading zero is decimal"),
        pytest.param(Type.INT, "-5", -5, id="negative"),
        pytest.param(Type.FLOAT, "2.5", 2.5, id="float"),
        pytest.param(Type.SECONDS, "1m", 60.0, id="duration"),
        pytest.param(Type.TEXTS, "a,b", ("a", "b"), id="list"),
        pytest.param(Type.TEXTS, "", (), id="empty list"),
        pytest.param(Type.GATES, "A=true, B=false", {"A": True, "B": False}, id="gates"),
        pytest.param(Type.SIZE, "64Ki", "64Ki", id="size"),
        pytest.param(Type.VMODULE, "a=1,b*=2", ("a=1", "b*=2"), id="verbosity by file"),
    ],
)
def test_flag_text_is_read_by_type(kind, text, expected):
    assert from_text(kind, text, "--x") == expected


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Type.BOOL, "yes", "'yes': must be true or false"),
        (Type.INT, "ten", "'ten': must be an integer of 32 bits"),
        (Type.INT, "4294967296", "'4294967296': must be an integer of 32 bits"),
        (Type.INT, "9" * 5000, "must be an integer of 32 bits"),
        (Type.FLOAT, "x", "'x': must be a number"),
        (Type.FLOAT, "nan", "'nan': must be a number"),
        (Type.FLOAT, "1e39", "'1e39': must be a number"),
        (Type.SECONDS, "30", "'30': must be a duration such as 30s, 1h30m or 0"),
        (Type.SIZE, "big", "'big': must be a size such as 0 or 64Ki"),
        (Type.GATES, "A", "'A': must be of the form Name=true,Name=false"),
        (Type.VMODULE, "a=x", "'a=x': must be of the form pattern=N,pattern=N"),
        (Type.TEXT, "caf\udce9", "must be a string, of Unicode characters other than NUL"),
    ],
)
def test_unreadable_flag_text_names_the_flag(kind, text, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        from_text(kind, text, "--x")
    assert caught.value.where == "--x"


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Type.TEXT, "x", "x"),
        (Type.BOOL, False, False),
        (Type.INT, 3, 3),
        (Type.INT, 14.0, 14),
        (Type.FLOAT, 3, 3.0),
        (Type.SECONDS, "30s", 30.0),
        (Type.SECONDS, 0, 0.0),
        (Type.COMMA_TEXT, "a,b", ("a", "b")),
        (Type.TEXTS, ["a", "b"], ("a", "b")),
        (Type.SIZE, 0, "0"),
        (Type.GATES, {"A": True}, {"A": True}),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": 3}], ("a=3",)),
    ],
)
def test_document_values_are_read_by_type(kind, value, expected):
    assert from_document(kind, value, "x") == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Type.TEXT, 3),
        (Type.BOOL, "true"),
        (Type.INT, True),
        (Type.INT, "3"),
        (Type.INT, 2**31),
        (Type.FLOAT, True),
        (Type.SECONDS, 30),
        (Type.TEXTS, "a,b"),
        (Type.TEXTS, [1]),
        (Type.COMMA_TEXT, ["a"]),
        (Type.GATES, {"A": "true"}),
        (Type.TEXT, "a\0b"),
        (Type.TEXT, "\ud800"),
        (Type.TEXTS, ["a\0"]),
        (Type.SIZE, "x"),
        (Type.SIZE, True),
        (Type.FLOAT, float("nan")),
        (Type.INT, 1.5),
        (Type.SECONDS, "30"),
        (Type.VMODULE, "a=1"),
        (Type.VMODULE, [{"filePattern": "a"}]),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": True}]),
        (Type.VMODULE, [{"filePattern": "a,b", "verbosity": 1}]),
    ],
)
def test_a_document_value_of_another_type_is_an_error(kind, value):
    with pytest.raises(ConfigError, match=r"^x: invalid value .*: must be "):
        from_document(kind, value, "x")


def test_a_message_stays_short_and_on_its_line():
    endless: list[object] = ["x" * 1000, "a\nb"]
    endless.append(endless)
    with pytest.raises(ConfigError) as caught:
        from_document(Type.TEXT, endless, "x")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_nanoseconds_are_legal_for_the_flush_frequency_only():
    assert from_document(Type.SECONDS, 5_000_000_000, "logging.flushFrequency") == 5.0


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_default_has_the_type_of_its_setting(name):
    types = {
        Type.TEXT: str,
        Type.SIZE: str,
        Type.BOOL: bool,
        Type.INT: int,
        Type.FLOAT: float,
        Type.SECONDS: float,
        Type.TEXTS: tuple,
        Type.COMMA_TEXT: tuple,
        Type.GATES: dict,
        Type.VMODULE: tuple,
    }
    assert type(SETTINGS[name].default) is types[SETTINGS[name].type]


def test_every_gate_has_a_stage():
    assert GATES.keys() == GATE_STAGES.keys()
