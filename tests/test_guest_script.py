"""The parts of e2e/guest that need no guest: the script it runs, and who runs what."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from e2e.guest.replay import shares
from e2e.guest.script import modprobe_script, process_one


def script(command, terminal=None, environment=None):
    return process_one(
        command,
        directory=Path("/var/tmp/a guest"),
        cwd=Path("/srv/a b"),
        environment=environment or {},
        terminal=terminal,
    )


@pytest.mark.parametrize(
    "terminal", [pytest.param(None, id="pipe"), pytest.param((80, 24), id="terminal")]
)
def test_a_shell_can_read_it(terminal):
    text = script(["sh", "-c", 'echo "it\'s"; exit 3'], terminal, {"A": "b c"})
    assert subprocess.run(["sh", "-n"], input=text.encode(), check=False).returncode == 0


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["demo", "--fast"], id="plain"),
        pytest.param(["sh", "-c", "echo $HOME 'x' \"y\" {z}\nexit"], id="to be quoted"),
    ],
)
def test_the_command_arrives_as_it_was_given(words):
    line = script(words).partition(" exit $?' sh ")[2].partition(") </dev/tty2")[0]
    assert words == shlex.split(line)


def test_the_command_sees_the_given_environment_only():
    assert "env -i 'A=b c' B=" in script(["true"], environment={"A": "b c", "B": ""})


@pytest.mark.parametrize(
    ("terminal", "expected"),
    [
        pytest.param(None, ">/run/output 2>&1", id="a pipe, so nobody colours"),
        pytest.param((100, 30), ">/dev/tty1 2>&1", id="a terminal"),
    ],
)
def test_the_output_is_what_it_is_outside(terminal, expected):
    text = script(["true"], terminal)
    assert expected in text
    assert ("cols 100 rows 30" in text) is (terminal is not None)


def test_modules_are_looked_for_in_the_directory():
    assert "modprobe -d '/var/tmp/a guest' \"$@\"" in modprobe_script(Path("/var/tmp/a guest"))


@pytest.mark.parametrize(
    ("files", "most", "expected"),
    [
        pytest.param("aaabbc", 2, ["aaa", "bbc"], id="evenly"),
        pytest.param("abab", 2, ["aa", "bb"], id="files stay whole"),
        pytest.param("aab", 1, ["aab"], id="one guest"),
        pytest.param("aa", 2, ["aa"], id="one file"),
        pytest.param("abc", 9, ["a", "b", "c"], id="fewer files than guests"),
    ],
)
def test_files_are_dealt_out_to_guests(files, most, expected):
    items = [SimpleNamespace(path=Path(file)) for file in files]
    dealt = ["".join(str(item.path) for item in share) for share in shares(items, most)]
    assert expected == dealt
