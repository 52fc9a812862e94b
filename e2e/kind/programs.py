"""docker, kind and kubectl: which they are, and how they are run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from e2e.kind.versions import KIND, KUBECTL_MINORS

__all__ = ["KindError", "Kubectl", "check_programs", "run"]

_REMEDIES = {
    "docker": "https://docs.docker.com/engine/install/",
    "kind": f"go install sigs.k8s.io/kind@{KIND}, or https://kind.sigs.k8s.io",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/",
}


class KindError(RuntimeError):
    """A step failed; the text says which, with what its program said."""


def run(*argv: str, input: str | None = None, seconds: float = 300.0, loud: bool = False) -> str:
    """Run a program to its end and return what it printed.

    *loud*: to the terminal instead, for what takes long.

    Raises:
        KindError: it failed, or took more than *seconds*.
    """
    print(f"$ {' '.join(argv)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            argv,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=sys.stderr if loud else subprocess.PIPE,
            stderr=None if loud else subprocess.PIPE,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise KindError(f"{' '.join(argv)}: not done in {seconds:g} s") from error
    if done.returncode:
        said = "" if loud else f"\n{done.stdout}{done.stderr}".rstrip()
        raise KindError(f"{' '.join(argv)}: exit {done.returncode}{said}")
    return done.stdout or ""


def check_programs() -> None:
    """Raises KindError for one that is missing, or of another version than the pinned."""
    missing = [name for name in _REMEDIES if shutil.which(name) is None]
    if missing:
        lines = [f"{name} is not installed: {_REMEDIES[name]}" for name in missing]
        raise KindError("\n".join(lines))
    kind = run("kind", "version")
    if KIND not in kind.split():
        raise KindError(f"this is {kind.strip()}; its node images differ: {_REMEDIES['kind']}")
    minor = json.loads(run("kubectl", "version", "--client", "--output=json"))["clientVersion"]
    if int(minor["minor"].rstrip("+")) not in KUBECTL_MINORS:
        allowed = ", ".join(f"1.{minor}" for minor in KUBECTL_MINORS)
        raise KindError(f"kubectl is {minor['gitVersion']}; want one of {allowed}")
    run("docker", "version", "--format={{.Server.Version}}")


class Kubectl:
    """kubectl for one cluster, with a kubeconfig of its own: the user's is not touched."""

    def __init__(self, kubeconfig: Path) -> None:
        self._prefix = ("kubectl", f"--kubeconfig={kubeconfig}")

    def __call__(self, *arguments: str, input: str | None = None, seconds: float = 300.0) -> str:
        return run(*self._prefix, *arguments, input=input, seconds=seconds)

    def json(self, *arguments: str) -> object:
        return json.loads(self(*arguments, "--output=json"))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """One that goes on in the background."""
        argv = [*self._prefix, *arguments]
        print(f"$ {' '.join(argv)} &", file=sys.stderr, flush=True)
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
