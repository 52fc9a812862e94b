"""``python -m e2e.kind``: build the image, then a cluster for each mode, one after the other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from e2e.kind.cluster import FAMILIES, MODES, build_image, serve_and_test
from e2e.kind.programs import KindError, check_programs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.kind", description=__doc__)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)}; else all")
    parser.add_argument("--family", choices=FAMILIES, default="dual", help="of the cluster: dual")
    parser.add_argument("--keep", action="store_true", help="the cluster, to look around in it")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.modes) - set(MODES)):
        parser.error(f"unknown mode {', '.join(unknown)}: want {' or '.join(MODES)}")
    try:
        check_programs()
        build_image()
        for mode in given.modes or MODES:
            serve_and_test(mode, given.family, keep=given.keep)
            print(f"passed: {mode} mode, {given.family}")
    except KindError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
