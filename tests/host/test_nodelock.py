"""One daemon at a time in a network namespace."""

from __future__ import annotations

import os
import re

import pytest

from pykubeproxy.host.nodelock import REPEAT_SECONDS, NodeLock, is_free, is_lock_file


class GaveUp(Exception):
    pass


class Clock:
    """Seconds that pass by pausing; *at* some pause something happens."""

    def __init__(self):
        self.now = 0.0
        self.at = {}

    def __call__(self):
        return self.now

    def pause(self, seconds):
        self.now += seconds
        for moment in sorted(self.at):
            if self.now >= moment:
                self.at.pop(moment)()
        if self.now > 100:
            raise GaveUp


@pytest.fixture
def pair(tmp_path):
    """Two that want the same lock, in a directory that does not exist yet."""
    locks = [NodeLock(tmp_path / "state", "cookie-1") for _ in range(2)]
    yield locks
    for lock in locks:
        lock.release()


def test_one_of_two_has_it(pair):
    first, second = pair
    assert (True, False) == (first.take(), second.take())
    first.release()
    assert second.take()


def test_who_has_it_may_take_it_again(pair):
    assert (True, True) == (pair[0].take(), pair[0].take())


def test_other_namespaces_have_locks_of_their_own(tmp_path, pair):
    assert pair[0].take()
    other = NodeLock(tmp_path / "state", "cookie-2")
    assert other.take()
    other.release()


def test_the_holder_is_told_by_process_and_time(pair):
    first, second = pair
    assert "unknown" == second.holder()
    first.take()
    assert re.fullmatch(rf"pid {os.getpid()} since \d{{4}}-\d\d-\d\dT\S+", second.holder())


def test_the_second_waits_and_says_so_again(pair, capsys):
    first, second = pair
    first.take()
    clock = Clock()
    clock.at[2.5 * REPEAT_SECONDS] = first.release
    second.wait(clock.pause, clock)
    assert not first.is_free
    said = capsys.readouterr().out
    assert 3 == said.count("waiting for its end")
    assert f"pid {os.getpid()}" in said


def test_waiting_can_be_given_up(pair):
    first, second = pair
    first.take()
    clock = Clock()
    with pytest.raises(GaveUp):
        second.wait(clock.pause, clock)


def test_without_a_place_for_the_file_it_goes_on(tmp_path, capsys):
    (tmp_path / "file").touch()
    clock = Clock()
    NodeLock(tmp_path / "file", "cookie-1").wait(clock.pause, clock)
    assert "not guarded" in capsys.readouterr().out
    assert 0.0 == clock.now


def test_a_lock_on_a_file_that_was_removed_is_none(pair, tmp_path):
    first, second = pair
    first.take()
    (tmp_path / "state/lock-cookie-1").unlink()
    assert second.take()


def test_what_a_lock_says_of_its_predecessor_is_gone(pair, tmp_path):
    path = tmp_path / "state/lock-cookie-1"
    path.parent.mkdir()
    path.write_text("pid 123456789 since the days of old, and much more that was there\n")
    pair[0].take()
    assert 1 == path.read_text().count("pid")


def test_a_link_is_not_followed(pair, tmp_path, capsys):
    (tmp_path / "state").mkdir()
    victim = tmp_path / "theirs"
    victim.write_text("precious")
    (tmp_path / "state/lock-cookie-1").symlink_to(victim)
    clock = Clock()
    pair[0].wait(clock.pause, clock)
    assert "precious" == victim.read_text()
    assert "not guarded" in capsys.readouterr().out


def test_whether_it_is_free(pair, tmp_path):
    first, second = pair
    path = tmp_path / "state/lock-cookie-1"
    assert is_free(path)
    first.take()
    assert (False, False) == (is_free(path), second.is_free)
    first.release()
    assert (True, True) == (is_free(path), second.is_free)


@pytest.mark.parametrize(
    ("name", "expected"), [("lock-cookie-1", True), ("iptables-IPv4-nft-cookie-1", False)]
)
def test_what_a_lock_file_is_called(name, expected):
    assert expected == is_lock_file(name)
