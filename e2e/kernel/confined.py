"""The daemon within the walls that our manifest puts around its container."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from e2e.kernel.running import REPOSITORY, RunningDaemon
from e2e.lab.confinement import confined

__all__ = ["MANIFEST", "ConfinedDaemon", "capabilities_of", "container"]

MANIFEST = REPOSITORY / "deploy/daemonset.yaml"
XTABLES_LOCK = Path("/run/xtables.lock")
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13}
"""Their numbers (linux/capability.h)."""


@cache
def container(name: str = "pykubeproxy") -> dict[str, Any]:
    """The container *name*, or init container, of the DaemonSet."""
    for document in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")):
        if document["kind"] == "DaemonSet":
            pod = document["spec"]["template"]["spec"]
            (found,) = [
                c for c in (*pod["initContainers"], *pod["containers"]) if c["name"] == name
            ]
            return dict(found)
    raise LookupError(f"{MANIFEST} has no DaemonSet")


def capabilities_of(pid: int) -> dict[str, set[str]]:
    """The capabilities of a process by set (``CapEff`` and the others); unknown ones by number."""
    names = {number: name for name, number in CAPABILITIES.items()}
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        kind, _, text = line.partition(":\t")
        if kind.startswith("Cap"):
            bits = int(text, 16)
            numbers = [n for n in range(bits.bit_length()) if bits >> n & 1]
            found[kind] = {names.get(n, str(n)) for n in numbers}
    return found


class ConfinedDaemon(RunningDaemon):
    """`RunningDaemon` with the security context of the main container, state and lock mounted.

    `initialise` is what the init container does. *capabilities* stand in for the manifest's;
    without *lock* the node's /run/xtables.lock is not mounted.
    """

    capabilities: tuple[str, ...] | None = None
    lock: bool = True

    def argv(self, *flags: str) -> list[str]:
        security = container()["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        state = self.manifests.parent / "state"
        state.mkdir(exist_ok=True)
        XTABLES_LOCK.touch()
        given = self.capabilities
        names = security["capabilities"]["add"] if given is None else given
        command = [sys.executable, "-m", "pykubeproxy", *flags]
        writable = [state, XTABLES_LOCK] if self.lock else [state]
        return self.lab.argv("node", confined(command, names, writable))

    def initialise(self) -> str:
        """Do what the init container does, within its walls; returns what that logged."""
        init = container("init")
        assert init["securityContext"]["privileged"] is True
        assert init["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {mount["mountPath"] for mount in init["volumeMounts"]}
        XTABLES_LOCK.touch()
        # Neither where objects come from nor a state directory is known to it.
        flags = [
            flag
            for flag in self.serving_flags()
            if not flag.startswith(("--manifests", "--state-directory"))
        ]
        command = [sys.executable, "-m", "pykubeproxy", "--init-only", *flags]
        writable = [path for path in (XTABLES_LOCK,) if str(path) in mounted]
        done = subprocess.run(
            self.lab.argv("node", confined(command, None, writable)),
            cwd=REPOSITORY,
            env=self._environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        text = done.stdout.decode() + done.stderr.decode()
        assert done.returncode == 0, text
        return text
