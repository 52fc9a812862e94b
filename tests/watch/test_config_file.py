from __future__ import annotations

import errno
import os
import queue
import threading
import time

import pytest
from structlog.testing import capture_logs

from pykubeproxy.watch import config_file
from pykubeproxy.watch.config_file import ConfigFile, way_to

SECONDS = 60.0


class Followed:
    """A followed file; `heard` waits for the next text."""

    def __init__(self, path, text="one"):
        self._texts: queue.Queue[str] = queue.Queue()
        self._file = ConfigFile(path, text, self._texts.put)

    def __enter__(self):
        self._file.start()
        return self

    def __exit__(self, *_):
        self._file.stop()

    def heard(self):
        return self._texts.get(timeout=SECONDS)

    def silent(self):
        """Whether nothing was told that was not asked for."""
        return self._texts.empty()


def eventually(holds):
    """Whether *holds* comes true."""
    pause, deadline = threading.Event(), time.monotonic() + SECONDS
    while not holds() and time.monotonic() < deadline:
        pause.wait(0.01)
    return holds()


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch):
    monkeypatch.setattr(config_file, "PATIENCE_SECONDS", 0.3)


def write(path, text):
    path.write_text(text)


def rename_over(path, text):
    beside = path.with_name("beside")
    beside.write_text(text)
    beside.rename(path)


def delete_and_create(path, text):
    path.unlink()
    path.write_text(text)


def in_pieces(path, text):
    with path.open("w") as file:
        for letter in text:
            file.write(letter)
            file.flush()


@pytest.mark.parametrize("change", [write, rename_over, delete_and_create, in_pieces])
def test_a_changed_file_is_noticed(tmp_path, change):
    path = tmp_path / "config"
    path.write_text("one")
    with Followed(path) as followed:
        for text in ("two", "three"):
            change(path, text)
            assert text == followed.heard()
        assert followed.silent()


class Volume:
    """A directory as kubelet fills it with a ConfigMap."""

    def __init__(self, directory):
        self._directory = directory
        self._version = 0
        self.path = directory / "config.conf"
        directory.mkdir(parents=True, exist_ok=True)

    def publish(self, text):
        """As kubelet's AtomicWriter: a new directory, one renamed symlink, the old one gone."""
        before = self._version
        self._version += 1
        version = self._directory / f"..2026_{self._version}"
        version.mkdir()
        (version / "config.conf").write_text(text)
        temporary = self._directory / "..data_tmp"
        temporary.symlink_to(version.name)
        temporary.rename(self._directory / "..data")
        if not before:
            self.path.symlink_to("..data/config.conf")
            return
        old = self._directory / f"..2026_{before}"
        (old / "config.conf").unlink()
        old.rmdir()


def test_the_symlink_swap_of_a_configmap_is_noticed(tmp_path):
    volume = Volume(tmp_path / "volume")
    volume.publish("one")
    with Followed(volume.path) as followed:
        for text in ("two", "three", "four"):
            volume.publish(text)
            assert text == followed.heard()
        assert followed.silent()


@pytest.mark.parametrize(
    ("link", "target"),
    [("config", "volume/config.conf"), ("deep/config", "../volume/config.conf")],
)
def test_a_link_to_a_link_is_followed_to_its_end(tmp_path, link, target):
    volume = Volume(tmp_path / "volume")
    volume.publish("one")
    path = tmp_path / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    with Followed(path) as followed:
        volume.publish("two")
        assert "two" == followed.heard()
        other = tmp_path / "other"
        other.write_text("three")
        path.unlink()
        path.symlink_to(other)
        assert "three" == followed.heard()


def test_a_replaced_directory_is_noticed(tmp_path):
    directory = tmp_path / "here" / "below"
    directory.mkdir(parents=True)
    path = directory / "config"
    path.write_text("one")
    with Followed(path) as followed:
        (tmp_path / "here").rename(tmp_path / "away")
        directory.mkdir(parents=True)
        path.write_text("two")
        assert "two" == followed.heard()
        path.write_text("three")
        assert "three" == followed.heard()


def test_a_change_before_the_start_is_noticed(tmp_path):
    path = tmp_path / "config"
    path.write_text("two")
    with Followed(path, "one") as followed:
        assert "two" == followed.heard()


def test_the_same_text_again_is_no_change(tmp_path):
    path = tmp_path / "config"
    path.write_text("one")
    with Followed(path) as followed:
        rename_over(path, "one")
        path.touch()
        path.chmod(0o600)
        (tmp_path / "neighbour").write_text("x")
        rename_over(path, "two")
        assert "two" == followed.heard()
        assert followed.silent()


def test_a_relative_path_is_that_of_the_start(tmp_path, monkeypatch):
    (tmp_path / "config").write_text("one")
    monkeypatch.chdir(tmp_path)
    followed = Followed("config")
    monkeypatch.chdir("/")
    with followed:
        (tmp_path / "config").write_text("two")
        assert "two" == followed.heard()


def test_a_file_that_stays_empty_is_told(tmp_path):
    path = tmp_path / "config"
    path.write_text("one")
    with Followed(path) as followed:
        path.write_text("")
        assert "" == followed.heard()
        path.write_text("one")
        assert "one" == followed.heard()


def test_a_file_that_is_gone_is_reported_and_waited_for(tmp_path):
    path = tmp_path / "config"
    path.write_text("one")
    with capture_logs() as logs, Followed(path) as followed:
        path.unlink()
        assert eventually(lambda: logs)
        path.write_text("two")
        assert "two" == followed.heard()
        assert followed.silent()
    assert ["error", "info"] == [entry["log_level"] for entry in logs]
    assert "No such file or directory" == logs[0]["reason"]
    assert "configuration file is there again" == logs[1]["event"]


def test_without_inotify_the_file_is_looked_at(tmp_path, monkeypatch):
    class NoInotify:
        def __init__(self):
            raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(config_file, "RETRY_SECONDS", 0.05)
    path = tmp_path / "config"
    path.write_text("one")
    with capture_logs() as logs, monkeypatch.context() as patched:
        patched.setattr(config_file, "INotify", NoInotify)
        with Followed(path) as followed:
            path.write_text("two")
            assert "two" == followed.heard()
            patched.undo()
            path.write_text("three")
            assert "three" == followed.heard()
    told = [entry["event"] for entry in logs]
    assert "configuration file not watched, looked at every 30 s" == told[0]
    assert 1 == told.count(told[0])


def test_nothing_is_left_behind(tmp_path):
    path = tmp_path / "config"
    path.write_text("one")
    before = set(os.listdir("/proc/self/fd"))
    with Followed(path):
        pass
    assert before == set(os.listdir("/proc/self/fd"))
    assert not [thread for thread in threading.enumerate() if thread.name == "config-file"]


@pytest.mark.parametrize(
    ("made", "path", "expected"),
    [
        pytest.param([], "a", [("", "a")], id="missing"),
        pytest.param([("a", None)], "a", [("", "a")], id="a file"),
        pytest.param([("a", "b"), ("b", None)], "a", [("", "a"), ("", "b")], id="a link"),
        pytest.param([("a", "b")], "a", [("", "a"), ("", "b")], id="a link to nothing"),
        pytest.param([("a", "a")], "a", [("", "a")], id="a loop"),
        pytest.param(
            [("d/x", "../e/y"), ("e/y", None)], "d/x",
            [("", "d"), ("d", "x"), ("", "e"), ("e", "y")], id="through the parent",
        ),
        pytest.param(
            [("v/c", "..data/c"), ("v/..data", "..1"), ("v/..1/c", None)], "v/c",
            [("", "v"), ("v", "c"), ("v", "..data"), ("v", "..1"), ("v/..1", "c")],
            id="a ConfigMap",
        ),
    ],
)  # fmt: skip
def test_the_way_to_a_file(tmp_path, made, path, expected):
    for name, target in made:
        at = tmp_path / name
        at.parent.mkdir(parents=True, exist_ok=True)
        if target is None:
            at.write_text("")
        else:
            at.symlink_to(target)
    root = str(tmp_path)
    below = [
        (d[len(root) :].lstrip("/"), n) for d, n in way_to(tmp_path / path) if d.startswith(root)
    ]
    assert expected == below
