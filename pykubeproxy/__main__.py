"""``python -m pykubeproxy``."""

from __future__ import annotations

import sys

from pykubeproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
