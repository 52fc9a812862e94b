from __future__ import annotations

import os
import select
import signal
from threading import Event

import pytest

from pykubeproxy.host import exec as exec_module
from pykubeproxy.host.exec import Finished, Killed, NotStarted, Stream, TimedOut, run


def test_output_and_status_come_back():
    assert run(["sh", "-c", "cat; echo oops >&2; exit 3"], b"in", 10) == Finished(
        3, b"in", b"oops\n"
    )


def test_the_complaint_is_text():
    assert Finished(1, b"", b" bad \xff\n").complaint == "bad \ufffd"


def test_no_input_is_an_empty_one():
    assert run(["cat"], None, 10) == Finished(0, b"", b"")


def test_a_missing_tool_is_not_started():
    assert run(["no-such-tool-at-all"], None, 10) == NotStarted(
        "no-such-tool-at-all: No such file or directory"
    )


def test_a_file_that_is_no_program_is_not_started():
    assert run(["/etc/passwd"], None, 10) == NotStarted("/etc/passwd: Permission denied")


def test_a_slow_tool_and_its_children_are_killed(tmp_path):
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    result = run(["sh", "-c", f"sleep 1000 >{fifo} & wait"], None, 0.2)
    assert result == TimedOut(0.2, b"")
    # End of file comes when the last process that can write is gone.
    assert select.select([held], [], [], 10) == ([held], [], [])
    assert os.read(held, 1) == b""
    os.close(held)


def test_a_tool_killed_from_outside_is_told_apart():
    assert run(["sh", "-c", "kill -9 $$"], None, 10) == Killed(signal.SIGKILL, b"")


def test_the_tool_speaks_english_and_finds_sbin():
    result = run(["sh", "-c", 'printf %s "$LC_ALL $PATH"'], None, 10)
    assert isinstance(result, Finished)
    assert result.stdout.startswith(b"C ")
    assert b"/usr/sbin" in result.stdout


def test_large_input_and_output_do_not_block_each_other():
    data = bytes(20_000_000)
    assert run(["cat"], data, 60) == Finished(0, data, b"")


def test_a_tool_that_does_not_read_its_input_is_no_fault():
    assert run(["true"], bytes(1_000_000), 10) == Finished(0, b"", b"")


def test_a_tool_that_outlives_the_first_look_gets_all_its_input_and_output():
    script = "sleep 0.7; cat"
    data = b"x" * 3_000_000
    assert run(["sh", "-c", script], data, 30.0, Event()) == Finished(0, data, b"")


def test_a_cancelled_tool_may_still_finish():
    cancel = Event()
    cancel.set()
    assert run(["sh", "-c", "echo done"], None, 30.0, cancel) == Finished(0, b"done\n", b"")


def test_a_cancelled_tool_that_hangs_is_killed(monkeypatch):
    monkeypatch.setattr(exec_module, "CANCEL_SECONDS", 0.1)
    cancel = Event()
    cancel.set()
    assert run(["sleep", "60"], None, 60.0, cancel) == Killed(signal.SIGKILL, b"")


# --- input in pieces ---


def stream(*pieces: bytes) -> Stream:
    return Stream(lambda: iter(pieces))


def test_pieces_are_the_same_as_all_at_once():
    pieces = (b"a\n", b"", b"b\n")
    assert b"a\nb\n" == bytes(stream(*pieces))
    assert Finished(0, b"a\nb\n", b"") == run(["cat"], stream(*pieces), 10)


def test_pieces_are_made_while_the_tool_runs(tmp_path):
    """The second is made of what the tool wrote after the first."""
    answer = tmp_path / "answer"
    os.mkfifo(answer)

    def pieces():
        yield b"ping\n"
        yield answer.read_bytes()

    result = run(["sh", "-c", f'read word; echo "$word pong" > {answer}; cat'], Stream(pieces), 10)
    assert Finished(0, b"ping pong\n", b"") == result


def test_a_tool_that_wants_no_more_input_ends_as_it_says():
    endless = Stream(lambda: iter(lambda: bytes(65536), None))
    assert Finished(3, b"", b"no\n") == run(["sh", "-c", "echo no >&2; exit 3"], endless, 10)


def test_a_tool_that_reads_nothing_is_killed_when_its_time_is_up():
    endless = Stream(lambda: iter(lambda: bytes(65536), None))
    assert TimedOut(0.2, b"") == run(["sleep", "1000"], endless, 0.2)


def test_a_fault_of_ours_while_making_the_input_leaves_no_tool_behind(tmp_path):
    note = tmp_path / "pid"

    def broken():
        yield b"go\n"
        while not note.exists() or not note.read_text().strip():
            yield b"go\n"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(["sh", "-c", f"echo $$ > {note}; exec sleep 1000"], Stream(broken), 10)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
