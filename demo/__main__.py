"""Options, preconditions, signals and exit statuses of the demo; the story is in `story`.

Exit status 0: everything shown was as it should be. 1: something was not, the text says what.
2: the demo cannot run here. 130: interrupted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["main"]

_REPOSITORY = Path(__file__).resolve().parents[1]
_TOOLS = ("ip", "nsenter", "iptables-save", "iptables-restore")
_IPVS_TOOLS = ("ipset", "ipvsadm")
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _parser().parse_args(arguments)
    # A root shell that came from plain `su` does not find the iptables tools.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if problem := _why_not_here(options.mode):
        sys.stderr.write(f"demo: {problem}\n")
        return 2
    from e2e.guest import has_ip_vs, in_guest

    if options.mode == "ipvs" and not in_guest() and not has_ip_vs():
        return _in_guest(arguments, keep=options.keep)
    if in_guest() and options.variant == "auto":
        options.variant = "legacy"  # the only one that works there

    from demo.screen import Screen
    from demo.stage import Stage, Unmet
    from demo.story import tell
    from e2e.lab import LabError

    began = time.monotonic()
    screen = Screen(sys.stdout, fast=options.fast)
    try:
        with _endings() as no_more, Stage(options.variant, options.mode) as stage:
            try:
                tell(stage, screen, keep=options.keep)
            finally:
                no_more()
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted; everything it made has been removed\n")
        return 130
    except BrokenPipeError:
        # The reader went away (`make demo | head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Unmet, LabError) as error:
        sys.stderr.write(f"\ndemo: {error}\n")
        return 1
    if left := stage.leftovers():
        sys.stderr.write(f"demo: still there: {', '.join(left)}\n")
        return 1
    screen.check(
        f"namespaces and processes of the demo are gone ({time.monotonic() - began:.0f} s in all)"
    )
    return 0


def _in_guest(arguments: Sequence[str], *, keep: bool) -> int:
    """Run this program once more, on a kernel that has IPVS; returns its exit status."""
    from e2e.guest import GuestError, run, why_not_here

    if keep:
        sys.stderr.write(
            "demo: this kernel has no IPVS, and what runs in a guest cannot be looked at from "
            "another terminal; leave --keep out, or run it where `modprobe ip_vs` works\n"
        )
        return 2
    if problem := why_not_here():
        sys.stderr.write(f"demo: {problem}\n")
        return 2
    try:
        return run([sys.executable, "-m", "demo", *arguments], cwd=_REPOSITORY)
    except KeyboardInterrupt:
        sys.stderr.write("\ndemo: interrupted; everything it made has been removed\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except GuestError as error:
        sys.stderr.write(f"\ndemo: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="A node, five pods and a client in network namespaces, the real daemon on "
        "examples/, and real connections that show what it does.",
    )
    parser.add_argument(
        "--mode",
        choices=("iptables", "ipvs"),
        default="iptables",
        help="how the daemon proxies (default: iptables); for ipvs, a guest with a kernel that "
        "has it is booted if the running one has not",
    )
    parser.add_argument(
        "--variant",
        choices=("auto", "nft", "legacy"),
        default="auto",
        help="which iptables tools the daemon uses (default: it finds out)",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="before the end, leave everything running to look around, until Ctrl-C",
    )
    parser.add_argument("--fast", action="store_true", help="no pauses for reading")
    return parser


def _why_not_here(mode: str) -> str:
    """One sentence about what the demo lacks on this machine, or nothing."""
    if os.geteuid() != 0:
        return (
            "making network namespaces needs root; run `make demo` (it asks sudo), "
            "or this command as root"
        )
    needed = _TOOLS if mode == "iptables" else _TOOLS + _IPVS_TOOLS
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        return f"these programs are missing: {', '.join(missing)}; `make setup` installs them"
    return ""


@contextmanager
def _endings() -> Iterator[Callable[[], None]]:
    """Let the first of the ending signals unwind the story, and no second one disturb that.

    Yields what to call when the unwinding begins without a signal.
    """

    def no_more() -> None:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        no_more()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDING}
    try:
        yield no_more
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
