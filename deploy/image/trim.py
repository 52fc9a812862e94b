"""Takes out of the image's Python environment what nothing in it can reach.

The kubernetes package would be most of the size: 126 MB with bytecode, of which the daemon imports
less than 2 MB (credentials and TLS, see docs/decisions/0002-dependencies.md). What goes are whole
branches that are imported by name alone; e2e/image imports everything that stays. A path that is
not there is an error: then the package has been rearranged, and the list below wants another look.

    trim.py /opt/pykubeproxy
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

UNREACHABLE = (
    # The asynchronous client: a second copy of everything.
    "kubernetes/aio",
    # One class of methods for each API group, and one module for each type; loaded by
    # kubernetes.client when somebody asks for one. Bodies bypass them here.
    "kubernetes/client/api",
    "kubernetes/client/apis",
    "kubernetes/client/models/[!_]*.py",
    # The previous major version once more, for programs that still use it.
    "pydantic/v1",
    "pyroute2/dhcp",
)
TESTS = ("**/*_test.py", "**/tests", "kubernetes/**/test_*.py")
PROGRAMS = ("python*", "pykubeproxy")
"""What stays in bin/. The rest are shell snippets and programs that come with libraries."""


def unreachable(environment: Path) -> Iterator[Path]:
    """Yield the files and directories to remove.

    Raises:
        SystemExit: a pattern of `UNREACHABLE` fits nothing.
    """
    (packages,) = environment.glob("lib/python3.*/site-packages")
    for pattern in UNREACHABLE:
        found = list(packages.glob(pattern))
        if not found:
            raise SystemExit(
                f"trim.py: nothing is called {packages / pattern}: the package was rearranged; "
                "look where that went and adapt UNREACHABLE in deploy/image/trim.py"
            )
        yield from found
    for pattern in TESTS:
        yield from packages.glob(pattern)
    yield environment / "include"  # of the interpreter's C interface: empty
    for program in (environment / "bin").iterdir():
        if not any(program.match(name) for name in PROGRAMS):
            yield program


def remove(path: Path) -> None:
    """Remove a file or a directory; one that went with its parent is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    (environment,) = map(Path, sys.argv[1:])
    for path in list(unreachable(environment)):
        remove(path)


if __name__ == "__main__":
    main()
