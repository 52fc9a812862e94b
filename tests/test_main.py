from __future__ import annotations

import subprocess
import sys


def test_the_package_runs_as_a_program():
    finished = subprocess.run(
        [sys.executable, "-m", "pykubeproxy", "--version"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("pykubeproxy ")
