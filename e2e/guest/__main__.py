"""``python -m e2e.guest -- COMMAND``: run a command on a kernel with IPVS.

Right here where the running kernel has it, else in a guest. Exit status: the command's; 2 where
there cannot be a guest; 125 when the guest died; 130 when the run was given up.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.guest.boot import MEMORY_MIB, GuestError, run, why_not_here
from e2e.guest.capability import has_ip_vs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    options = _parser().parse_args(argv)
    if has_ip_vs() and not options.always:
        return subprocess.run(options.command, check=False).returncode
    if problem := why_not_here():
        sys.stderr.write(f"guest: {problem}\n")
        return 2
    try:
        return run(
            options.command, cwd=Path.cwd(), seconds=options.seconds, memory_mib=options.memory
        )
    except GuestError as error:
        sys.stderr.write(f"guest: {error}\n")
        return 125
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader went away: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m e2e.guest",
        description="Run a command on a kernel with IPVS: here, or in a User-Mode Linux guest.",
    )
    parser.add_argument("--always", action="store_true", help="in a guest even if not needed")
    parser.add_argument("--memory", type=int, default=MEMORY_MIB, metavar="MIB")
    parser.add_argument("--seconds", type=float, help="end it after so long (default: never)")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser


if __name__ == "__main__":
    sys.exit(main())
