"""Boot a guest, hear its output, end it; nothing of it outlives the process that booted it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from e2e.guest.capability import GUEST_VARIABLE
from e2e.guest.script import SYSTEM_PATH, modprobe_script, process_one

__all__ = ["MEMORY_MIB", "Guest", "GuestError", "run", "why_not_here"]

MODULES = Path("/usr/lib/uml/modules")
MEMORY_MIB = 1024

_TOOLS = ("linux.uml", "modprobe", "setpriv", "setsid", "stty", "unshare")
_POWER_OFF_SECONDS = 20.0
_TAIL_BYTES = 4096


class GuestError(RuntimeError):
    """No guest can be booted here, or one ended before its command; the text says why."""


class Guest:
    """Context manager: one guest that runs one command and then powers off.

    Every piece of the command's output, stdout and stderr in one stream, is given to *output* on
    a thread of this guest's. *terminal* (columns, lines) makes it believe in a terminal.
    Enter it on a thread that lives as long as the guest shall: its end is the guest's.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        output: Callable[[bytes], object],
        environment: Mapping[str, str] | None = None,
        terminal: tuple[int, int] | None = None,
        memory_mib: int = MEMORY_MIB,
    ) -> None:
        self._command = tuple(command)
        self._cwd = cwd
        self._output = output
        self._environment = dict(os.environ if environment is None else environment)
        self._terminal = terminal
        self._memory_mib = memory_mib
        self._broken: OSError | None = None  # what became of *output*
        self._parts = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if missing := why_not_here():
            raise GuestError(missing)
        with contextlib.ExitStack() as parts:
            directory = parts.enter_context(tempfile.TemporaryDirectory(prefix="guest-"))
            self._directory = Path(directory)
            self._furnish()
            self._boot(parts)
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _furnish(self) -> None:
        """Write what the guest finds in its directory."""
        directory = self._directory
        for name in ("bin", "lib", "tmp"):
            (directory / name).mkdir()
        (directory / "lib/modules").symlink_to(MODULES)
        path = f"{directory}/bin:{self._environment.get('PATH', os.defpath)}:{SYSTEM_PATH}"
        environment = self._environment | {
            "PATH": path,
            "TMPDIR": f"{directory}/tmp",
            "PYTHONDONTWRITEBYTECODE": "1",
            GUEST_VARIABLE: "1",
        }
        script = process_one(
            self._command,
            directory=directory,
            cwd=self._cwd,
            environment=environment,
            terminal=self._terminal,
        )
        for name, text in (("init", script), ("bin/modprobe", modprobe_script(directory))):
            (directory / name).write_text(text)
            (directory / name).chmod(0o700)

    def _boot(self, parts: contextlib.ExitStack) -> None:
        output, output_end = os.pipe2(os.O_CLOEXEC)
        keys_end, keys = os.pipe2(os.O_CLOEXEC)
        parts.callback(os.close, keys)
        self._keys = keys
        with (self._directory / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [
                    # A guest is many processes, some of which survive a killed first one; in a
                    # process namespace they end with it, and it with us.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--pid", "--fork", "--kill-child"),
                    # Not itself the first in there: that one cannot abort, as a panic does.
                    *("sh", "-c", '"$@"; exit $?', "sh"),
                    *("linux.uml", f"mem={self._memory_mib}M", "oops=panic"),
                    *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "quiet"),
                    *(f"uml_dir={self._directory}/", "umid=guest"),
                    f"init={self._directory}/init",
                    *("con=null", "con0=null,fd:1"),
                    *(f"con1=null,fd:{output_end}", f"con2=fd:{keys_end},null"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                cwd=self._directory,
                pass_fds=(output_end, keys_end),
                env=os.environ | {"TMPDIR": _place_for(self._memory_mib)},
                # Ctrl-C in the terminal is not the guest's business but its caller's.
                start_new_session=True,
            )
        os.close(output_end)
        os.close(keys_end)
        self._listener = threading.Thread(target=self._listen, args=(output,), name="guest-output")
        self._listener.start()
        parts.callback(self._end)

    def _listen(self, source: int) -> None:
        with open(source, "rb", buffering=0) as stream:
            while piece := stream.read(65536):
                if self._broken is None:
                    try:
                        self._output(piece)
                    except OSError as error:  # nobody listens any more
                        self._broken = error
                        self._process.kill()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join()

    def close(self) -> None:
        """End the guest, if it runs, and remove its files; may be called twice."""
        self._parts.close()

    def interrupt(self) -> None:
        """Press Ctrl-C on the command's terminal."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._keys, b"\x03")

    def running(self) -> bool:
        return self._process.poll() is None

    def wait(self, seconds: float | None = None) -> int:
        """Wait until the guest is off; returns the exit status of the command.

        Raises:
            GuestError: the guest died before its command ended, or *seconds* were not enough.
            OSError: what *output* raised, if it did.
        """
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise GuestError(
                f"{self._command[0]} did not end within {seconds:g} s in the guest"
            ) from None
        self._listener.join()
        if self._broken is not None:
            raise self._broken
        try:
            return int((self._directory / "status").read_text())
        except (OSError, ValueError):
            raise GuestError(f"the guest died; its console said:\n{self.console()}") from None

    def console(self) -> str:
        """The end of what the guest's kernel and its process 1 said."""
        return (self._directory / "console").read_bytes()[-_TAIL_BYTES:].decode(errors="replace")


def run(
    command: Sequence[str],
    *,
    cwd: Path,
    seconds: float | None = None,
    memory_mib: int = MEMORY_MIB,
) -> int:
    """Run *command* in a guest and show its output here; returns its exit status.

    Ctrl-C is passed on to the command. For the main thread: it handles signals.

    Raises:
        GuestError: as `Guest.wait`, or there cannot be a guest here.
        KeyboardInterrupt: SIGTERM or SIGHUP came; the guest is gone.
        BrokenPipeError: nobody reads our output any more; the guest is gone.
    """
    sys.stdout.flush()
    size = shutil.get_terminal_size() if sys.stdout.isatty() else None
    guest = Guest(command, cwd=cwd, output=_show, terminal=size, memory_mib=memory_mib)
    with guest, _signals(guest):
        return guest.wait(seconds)


def why_not_here() -> str:
    """One sentence about what a guest lacks on this machine, or nothing."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
    if missing or not MODULES.is_dir():
        return (
            "this kernel has no IPVS, and to boot one that has, these are missing: "
            f"{', '.join(missing or [str(MODULES)])}; `make setup` installs them"
        )
    if os.geteuid() != 0:
        return "booting a kernel with IPVS needs root"
    return ""


def _show(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _place_for(memory_mib: int) -> str:
    """A directory for the file that is the guest's memory; in containers /dev/shm is tiny."""
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    return "/dev/shm" if free >= memory_mib << 20 else "/tmp"


@contextlib.contextmanager
def _signals(guest: Guest) -> Iterator[None]:
    def pass_on(_number: int, _frame: FrameType | None) -> None:
        guest.interrupt()

    def give_up(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: pass_on, signal.SIGTERM: give_up, signal.SIGHUP: give_up}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
