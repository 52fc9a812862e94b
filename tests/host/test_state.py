"""Files that may be lost: whole or not there, and of nobody else."""

from __future__ import annotations

import os
import stat

import pytest

from pykubeproxy.host import state
from pykubeproxy.host.state import StateDirectory


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(
        state, "log", type("Log", (), {"warning": lambda _, text, **fields: lines.append(text)})()
    )
    return lines


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_was_written_is_read_again(tmp_path):
    directory = StateDirectory(tmp_path / "state" / "ours")
    one, other = directory.file("one"), directory.file("other")
    assert one.read() is None
    assert [True, True] == [one.write(b"first"), one.write(b"second")]
    assert (b"second", None) == (one.read(), other.read())
    assert ["one"] == os.listdir(tmp_path / "state" / "ours")
    assert (0o700, 0o600) == (mode(tmp_path / "state" / "ours"), mode(tmp_path / "state/ours/one"))


def test_a_rest_of_an_interrupted_write_is_replaced(tmp_path):
    (tmp_path / ".one").write_bytes(b"a longer rest of something")
    assert StateDirectory(tmp_path).file("one").write(b"new")
    assert {"one": b"new"} == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: path.chmod(0o620), id="writable by others"),
        pytest.param(
            lambda path: (path.rename(f"{path}2"), path.symlink_to(f"{path}2")), id="link"
        ),
        pytest.param(lambda path: (path.unlink(), path.mkdir()), id="directory"),
        pytest.param(lambda path: path.unlink(), id="gone"),
    ],
)
def test_what_others_could_have_made_is_not_read(tmp_path, spoil, said):
    file = StateDirectory(tmp_path).file("one")
    file.write(b"ours")
    spoil(tmp_path / "one")
    assert file.read() is None


@pytest.mark.parametrize(
    "obstacle",
    [
        pytest.param(lambda path: path.write_text("a file"), id="a file in its place"),
        pytest.param(
            lambda path: (path.mkdir(), (path / "one").mkdir()), id="file not replaceable"
        ),
    ],
)
def test_a_directory_that_cannot_be_used_is_said_once(tmp_path, obstacle, said):
    path = tmp_path / "state"
    obstacle(path)
    directory = StateDirectory(path)
    assert [False, False] == [directory.write("one", b"x"), directory.write("one", b"x")]
    assert 1 == len(said)
    assert not (path.is_dir() and (path / ".one").exists())


def test_files_are_listed_by_name(tmp_path):
    assert [] == StateDirectory(tmp_path / "none").files(lambda name: True)
    for name in ("b", "a", "theirs"):
        (tmp_path / name).touch()
    listed = StateDirectory(tmp_path).files(lambda name: name != "theirs")
    assert [tmp_path / "a", tmp_path / "b"] == listed


def test_only_our_files_are_cleared(tmp_path):
    path = tmp_path / "state"
    directory = StateDirectory(path)
    for name in ("ours-1", "ours-2", "theirs"):
        directory.write(name, b"")
    assert 2 == directory.clear(lambda name: name.startswith("ours"))
    assert ["theirs"] == os.listdir(path)
    assert 1 == directory.clear(lambda name: True)
    assert not path.exists()
    assert 0 == directory.clear(lambda name: True)
