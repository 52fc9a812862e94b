from __future__ import annotations

import pytest

from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import SETTINGS, Type, from_document, from_text


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
    ],
)
def test_flag_text_is_read_by_type(kind, text, expected):
    assert from_text(kind, text, "--x") == expected


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (Type.BOOL, "yes", "'yes' is no bool; write true or false"),
        (Type.INT, "ten", "'ten' is no integer"),
        (Type.INT, "4294967296", "does not fit into 32 bits"),
        (Type.FLOAT, "x", "'x' is no number"),
        (Type.SECONDS, "30", "'30' is no duration"),
        (Type.GATES, "A", "'A' is not of the form"),
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
        (Type.FLOAT, 3, 3.0),
        (Type.SECONDS, "30s", 30.0),
        (Type.SECONDS, 0, 0.0),
        (Type.COMMA_TEXT, "a,b", ("a", "b")),
        (Type.TEXTS, ["a", "b"], ("a", "b")),
        (Type.SIZE, 0, "0"),
        (Type.GATES, {"A": True}, {"A": True}),
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
    ],
)
def test_a_document_value_of_another_type_is_an_error(kind, value):
    with pytest.raises(ConfigError, match="belongs here"):
        from_document(kind, value, "x")


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
    }
    assert type(SETTINGS[name].default) is types[SETTINGS[name].type]
