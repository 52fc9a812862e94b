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
    shown,
)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        pytest.param(Type.BOOL, "T", True, id="every spelling of Go"),
        pytest.param(Type.INT, "0x10", 16, id="hexadecimal"),
        pytest.param(Type.INT, "010", 8, id="a leading zero is octal"),
        pytest.param(Type.INT, "-0_17", -15, id="octal with a sign and an underscore"),
        pytest.param(Type.INT, "0", 0, id="zero is no octal"),
        pytest.param(Type.INT, "00", 0, id="zero in octal"),
        pytest.param(Type.INT, "+0b1_01", 5, id="binary"),
        pytest.param(Type.INT, "0O17", 15, id="octal as Go writes it now"),
        pytest.param(Type.INT, "0x_1F", 31, id="an underscore behind the base"),
        pytest.param(Type.INT, "1_000", 1000, id="an underscore between digits"),
        pytest.param(Type.INT, "-5", -5, id="negative"),
        pytest.param(Type.INT, "-2147483648", -(2**31), id="the least"),
        pytest.param(Type.LEVEL, "4", 4, id="level"),
        pytest.param(Type.LEVEL, "010", 10, id="a level is decimal"),
        pytest.param(Type.LEVEL, "2147483647", 2**31 - 1, id="the highest level"),
        pytest.param(Type.FLOAT, "2.5", 2.5, id="float"),
        pytest.param(Type.FLOAT, "-.5e+1", -5.0, id="float with an exponent"),
        pytest.param(Type.FLOAT, "1_0.5", 10.5, id="float with an underscore, as in Go"),
        pytest.param(Type.SECONDS, "1m", 60.0, id="duration"),
        pytest.param(Type.TEXTS, "a,b", ("a", "b"), id="list"),
        pytest.param(Type.TEXTS, "", (), id="empty list"),
        pytest.param(Type.GATES, "A=true, B=false", {"A": True, "B": False}, id="gates"),
        pytest.param(Type.SIZE, "64Ki", "64Ki", id="size"),
        pytest.param(Type.VMODULE, "a=1,b*=2", ("a=1", "b*=2"), id="verbosity by file"),
        pytest.param(Type.VMODULE, "a=1,", ("a=1",), id="a comma at the end"),
    ],
)
def test_flag_text_is_read_by_type(kind, text, expected):
    assert expected == from_text(kind, text, "--x")


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Type.BOOL, "yes", "'yes': must be true or false"),
        (Type.INT, "ten", "'ten': must be an integer of 32 bits"),
        (Type.INT, "4294967296", "'4294967296': must be an integer of 32 bits"),
        (Type.INT, "9" * 5000, "must be an integer of 32 bits"),
        (Type.INT, "08", "'08': must be an integer of 32 bits"),
        (Type.INT, "0x", "must be an integer"),
        (Type.INT, "1__0", "must be an integer"),
        (Type.INT, "_1", "must be an integer"),
        (Type.INT, "1_", "must be an integer"),
        (Type.INT, "+-1", "must be an integer"),
        (Type.INT, " 1", "must be an integer"),
        (Type.INT, "1\n", "must be an integer"),
        (Type.INT, "\u0663", "must be an integer"),
        (Type.INT, "", "must be an integer"),
        (Type.LEVEL, "-1", "'-1': must be a number from 0 to 2147483647 in decimal digits"),
        (Type.LEVEL, "+1", "must be a number from 0"),
        (Type.LEVEL, "0x1", "must be a number from 0"),
        (Type.LEVEL, "1_0", "must be a number from 0"),
        (Type.LEVEL, "2147483648", "must be a number from 0"),
        (Type.LEVEL, "\u0663", "must be a number from 0"),
        (Type.LEVEL, " 1", "must be a number from 0"),
        (Type.FLOAT, " 1.5", "must be a number"),
        (Type.FLOAT, "1.5\n", "must be a number"),
        (Type.FLOAT, "1__0", "must be a number"),
        (Type.FLOAT, "\u0663.5", "must be a number"),
        (Type.FLOAT, "x", "'x': must be a number"),
        (Type.FLOAT, "nan", "'nan': must be a number"),
        (Type.FLOAT, "1e39", "'1e39': must be a number"),
        (Type.SECONDS, "30", "'30': must be a duration such as 30s, 1h30m or 0"),
        (Type.SIZE, "big", "'big': must be a size such as 0 or 64Ki"),
        (Type.GATES, "A", "'A': must be of the form Name=true,Name=false"),
        (Type.VMODULE, "a=x", "'a=x': must be of the form pattern=N,pattern=N"),
        (Type.VMODULE, "=1", "must be of the form pattern=N"),
        (Type.VMODULE, "a=b=1", "must be of the form pattern=N"),
        (Type.VMODULE, "a=2147483648", "must be of the form pattern=N"),
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
        (Type.LEVEL, 3.0, 3),
        (Type.GATES, {True: True}, {"true": True}),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": 3}], ("a=3",)),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": 3.0}], ("a=3",)),
        (Type.VMODULE, [{"filePattern": "a", "x": 1}, {"filePattern": "b"}], ("a=0", "b=0")),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": None}], ("a=0",)),
    ],
)
def test_document_values_are_read_by_type(kind, value, expected):
    assert expected == from_document(kind, value, "x")


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
        pytest.param(Type.INT, 16**5000, id="a long number"),
        (Type.VMODULE, [None]),
        (Type.VMODULE, [{"verbosity": 1}]),
        (Type.VMODULE, [{"filePattern": "a"}, "b"]),
        (Type.VMODULE, [{"filePattern": "", "verbosity": 1}]),
        (Type.VMODULE, [{"filePattern": "a=1", "verbosity": 1}]),
        (Type.VMODULE, [{"filePattern": "a\0", "verbosity": 1}]),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": "1"}]),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": 1.5}]),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": -1}]),
        pytest.param(Type.VMODULE, [{"filePattern": "a", "verbosity": 16**5000}], id="verbosity"),
        (Type.VMODULE, [{"filePattern": "a", "verbosity": True}]),
        (Type.VMODULE, [{"filePattern": "a,b", "verbosity": 1}]),
    ],
)
def test_a_document_value_of_another_type_is_an_error(kind, value):
    with pytest.raises(ConfigError, match=r"^x: invalid value .*: must be "):
        from_document(kind, value, "x")


@pytest.mark.parametrize(
    ("value", "expected"),
    [(True, "true"), ([False, None], "[false, null]"), ({"a": True}, "{'a': true}")],
)
def test_a_message_says_true_and_null_as_yaml_does(value, expected):
    assert expected == shown(value)


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
        Type.LEVEL: int,
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
