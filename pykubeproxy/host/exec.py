"""Runs a tool to its end and tells apart the ways that can go.

A failure is a value: callers decide what a refused transaction or a missing tool means.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event, Thread

from msgspec import Struct

__all__ = ["Finished", "Input", "Killed", "NotStarted", "Result", "Stream", "TimedOut", "run"]

_SBIN = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# How long to wait for the pipes of a killed tool: a grandchild outside its group may hold them.
_REAP_SECONDS = 1.0
CANCEL_SECONDS = 5.0
_POLL_SECONDS = 0.5


class Finished(Struct, frozen=True):
    """The tool ran to its end; its exit status may still be a failure."""

    exit_status: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """What it wrote to standard error, as text on lines, stripped."""
        return self.stderr.decode(errors="replace").strip()


class NotStarted(Struct, frozen=True):
    """The tool is missing or cannot be executed; nothing happened."""

    reason: str


class TimedOut(Struct, frozen=True):
    """The tool and its process group were killed; what it did until then is unknown."""

    seconds: float
    stderr: bytes


class Killed(Struct, frozen=True):
    """Somebody else (the OOM killer, an operator) ended the tool; what it did is unknown."""

    signal: int
    stderr: bytes


Result = Finished | NotStarted | TimedOut | Killed


class Stream(Struct, frozen=True):
    """Input that is made while the tool reads it: neither waits for all of it, or holds it."""

    chunks: Callable[[], Iterator[bytes]]

    def __bytes__(self) -> bytes:
        return b"".join(self.chunks())


Input = bytes | Stream


def run(
    argv: Sequence[str],
    input: Input | None,
    timeout_seconds: float,
    cancel: Event | None = None,
) -> Result:
    """Run *argv* with *input* on its standard input (``None``: empty) and collect its output.

    The tool gets LC_ALL=C and a PATH with the sbin directories, and a session of its own so that
    all of it can be killed. When *cancel* is set while it runs, it is killed `CANCEL_SECONDS`
    later at the latest. Input of any size is fed while output is read. About 1 ms on top of
    what the tool itself takes (vfork, no preexec).
    """
    # Into memory outside of this process, since `Popen.communicate` needs twice the room for it.
    with open(os.memfd_create("stdout"), "rb", buffering=0) as stdout:
        result = _run(argv, input, timeout_seconds, cancel, stdout.fileno())
        if isinstance(result, Finished):
            stdout.seek(0)
            result = Finished(result.exit_status, stdout.readall(), result.stderr)
    return result


def _run(
    argv: Sequence[str],
    input: Input | None,
    timeout_seconds: float,
    cancel: Event | None,
    stdout: int,
) -> Result:
    """The same with its output going to *stdout*."""
    path = os.environ.get("PATH", "")
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{path}:{_SBIN}" if path else _SBIN}
    try:
        process = subprocess.Popen(
            argv,
            # Found here: Popen would try to execute it in each directory of PATH, and a failed
            # try costs as much as a new process (User-Mode Linux: 3 to 60 ms).
            executable=shutil.which(argv[0], path=environment["PATH"]),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        return NotStarted(f"{argv[0]}: {error.strerror}")
    with process:
        try:
            with _killed_when(cancel, process):
                stderr = _communicate(process, input, timeout_seconds)[1]
        except subprocess.TimeoutExpired:
            _kill_group(process)
            return TimedOut(timeout_seconds, _rest_of_stderr(process))
        except BaseException:  # an interrupt of the whole program: leave no child behind
            _kill_group(process)
            raise
    if process.returncode < 0:
        return Killed(-process.returncode, stderr)
    return Finished(process.returncode, b"", stderr)


def _communicate(
    process: subprocess.Popen[bytes], input: Input | None, timeout_seconds: float
) -> tuple[bytes, bytes]:
    """`Popen.communicate`, which knows no input in pieces."""
    if not isinstance(input, Stream):
        return process.communicate(input, timeout=timeout_seconds)
    pipe, process.stdin = process.stdin, None
    assert pipe is not None
    with ThreadPoolExecutor(1, "output") as reader:
        # A tool that hangs is killed when its time is up, which also ends a write to it.
        output = reader.submit(_output, process, timeout_seconds)
        try:
            with suppress(BrokenPipeError), pipe:
                for chunk in input.chunks():
                    pipe.write(chunk)
                    pipe.flush()
        except BaseException:
            _kill_group(process)
            raise
        return output.result()


def _output(process: subprocess.Popen[bytes], timeout_seconds: float) -> tuple[bytes, bytes]:
    try:
        return process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        raise


@contextmanager
def _killed_when(cancel: Event | None, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill *process* some seconds after *cancel* was set, if it has not ended by itself.

    From a thread, because `Popen.communicate` cannot be resumed with input that is not written
    yet (CPython 3.11 never writes the rest).
    """
    if cancel is None:
        yield
        return
    done = Event()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            if cancel.is_set():
                if not done.wait(CANCEL_SECONDS):
                    _kill_group(process)
                return

    watcher = Thread(target=watch, name="cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _rest_of_stderr(process: subprocess.Popen[bytes]) -> bytes:
    try:
        return process.communicate(timeout=_REAP_SECONDS)[1]
    except subprocess.TimeoutExpired as error:
        return error.stderr or b""
