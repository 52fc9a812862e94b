from __future__ import annotations

import os
import time

import pytest

from pykubeproxy.host.process import process_start


def test_this_process_began_a_while_ago():
    started = process_start()
    assert time.time() - 86400 < started <= time.time() + 1


def files(root, status, boot="cpu 1 2\nbtime 1000\n"):
    (root / "self").mkdir()
    (root / "self/stat").write_text(status)
    (root / "stat").write_text(boot)
    return root


def test_the_name_of_the_process_does_not_mislead(tmp_path):
    fields = " ".join(str(number) for number in range(3, 23))  # the 22nd is the start
    root = files(tmp_path, f"1 (a) b) {fields}\n")
    assert 1000 + 22 / os.sysconf("SC_CLK_TCK") == process_start(root)


@pytest.mark.parametrize(
    ("status", "boot"), [("", "btime 1\n"), ("1 (a) S 1", "btime 1\n"), ("1 (a) " + "1 " * 30, "")]
)
def test_what_cannot_be_read_is_unknown(tmp_path, status, boot):
    assert process_start(files(tmp_path, status, boot)) is None


def test_without_proc_it_is_unknown(tmp_path):
    assert process_start(tmp_path) is None
