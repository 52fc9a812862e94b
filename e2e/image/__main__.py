"""``python -m e2e.image DIRECTORY``: build the image without a container engine, and weigh it.

DIRECTORY/root is the image's root file system afterwards: ``chroot DIRECTORY/root`` to look
around, ``tar -C DIRECTORY/root -c . | docker import - NAME`` where an engine is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from e2e.image.roots import RootError, make_base
from e2e.image.stages import build, tar_bytes


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m e2e.image DIRECTORY")
    target = Path(sys.argv[1]) / "root"
    if target.exists():
        raise SystemExit(f"{target} is there already; remove it first, or name another directory")
    with TemporaryDirectory(prefix="image-") as directory:
        base = Path(directory, "base")
        try:
            make_base(base)
            image = build(Path(__file__).resolve().parents[2], base, Path(directory, "stages"))
        except RootError as error:
            raise SystemExit(str(error)) from error
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(image.root, target)
    print(f"{image.base_bytes / 1e6:7.1f} MB  base")
    for layer in image.layers:
        print(f"{layer.size_bytes / 1e6:7.1f} MB  {layer.instruction[:80]}")
    print(f"{image.size_bytes / 1e6:7.1f} MB  {target}, as a tar {tar_bytes(target) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
