"""Kernel parameters under /proc/sys and /sys: read first, write only what differs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.host.exec import Finished, run

__all__ = ["Parameter", "Refusal", "apply", "complain", "ensure", "foresee", "load_module", "read"]

log = structlog.get_logger(__name__)

ROOT = Path("/proc/sys")
SYS = Path("/sys")

MODPROBE_SECONDS = 10.0

_NO_RIGHT = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


class Parameter(Struct, frozen=True):
    """A kernel parameter and the value it is to have.

    ``name`` is its path below /proc/sys (``net/ipv4/ip_forward``), or below / if it begins with
    ``/sys/``. ``module`` is the kernel module that brings it, where there is one. ``at_least``: a
    larger value is right, too. ``is_tuning``: the node can be served with any value.
    """

    name: str
    value: int
    module: str = ""
    at_least: bool = False
    is_tuning: bool = False

    @property
    def path(self) -> Path:
        below_sys = self.name.startswith("/sys/")
        return SYS / self.name.removeprefix("/sys/") if below_sys else ROOT / self.name

    @property
    def command(self) -> str:
        """What sets it on the node."""
        if self.name.startswith("/"):
            return f"echo {self.value} > {self.name}"
        return f"sysctl -w {self.name.replace('/', '.')}={self.value}"

    def holds(self, value: int | None) -> bool:
        """Tell whether *value* is right."""
        return value == self.value or (self.at_least and value is not None and value > self.value)


class Refusal(Struct, frozen=True):
    """A parameter that could not be set, the value it has (``None``: it is not there), and why."""

    parameter: Parameter
    found: int | None
    error: str
    is_absent: bool = False
    lacks_right: bool = False  # somebody with more rights could set it

    @property
    def is_bearable(self) -> bool:
        """Whether the node can be served all the same: tuning that this process may only read."""
        return self.parameter.is_tuning and self.lacks_right and self.found is not None

    def __str__(self) -> str:
        wanted = self.parameter
        least = "at least " if wanted.at_least else ""
        found = "not there" if self.found is None else f"{self.found}"
        return f"{wanted.path} is {found}, must be {least}{wanted.value} ({self.error})"


def read(name: str) -> int | None:
    """Return the value of *name* (``net/ipv4/ip_forward``); ``None`` if absent or no number."""
    return _read(ROOT / name)


def apply(
    parameters: Iterable[Parameter], load: Callable[[str], object] | None = None
) -> list[Refusal]:
    """Make all *parameters* hold their values, in order; return those that were refused.

    *load* loads a kernel module by its name, where one is missing; once each.
    """
    refusals = []
    tried = {""}
    for parameter in parameters:
        if load is not None and parameter.module not in tried and not parameter.path.exists():
            tried.add(parameter.module)
            load(parameter.module)
        found = _read(parameter.path)
        if parameter.holds(found):
            continue
        try:
            parameter.path.write_text(f"{parameter.value}\n", encoding="ascii")
        except OSError as error:
            refusals.append(_refusal(parameter, found, error))
        else:
            log.info("kernel parameter set", name=parameter.name, before=found, now=parameter.value)
    return refusals


def foresee(parameters: Iterable[Parameter]) -> list[Refusal]:
    """Return those that `apply` would find refused; changes nothing.

    One that is not there is left out if a module brings it, which might be loaded then.
    """
    refusals = []
    for parameter in parameters:
        found = _read(parameter.path)
        if parameter.holds(found):
            continue
        try:
            parameter.path.open("ab").close()
        except OSError as error:
            refusal = _refusal(parameter, found, error)
            if not (refusal.is_absent and parameter.module):
                refusals.append(refusal)
    return refusals


def complain(refusals: Sequence[Refusal]) -> HostError:
    """Put all *refusals* and what to do about them into one error."""
    modules = dict.fromkeys(r.parameter.module for r in refusals if r.is_absent)
    commands = [f"modprobe {module}" for module in modules if module]
    commands += [refusal.parameter.command for refusal in refusals]
    one = len(refusals) == 1
    return HostError(
        f"kernel parameter{'' if one else 's'} not as needed: {'; '.join(map(str, refusals))}. "
        "Where they are read-only (a container that is not privileged) run this program once with "
        "--init-only in a privileged container before it, as the init container of our manifests "
        f"does, or run on the node: {' && '.join(commands)}"
    )


def ensure(parameters: Iterable[Parameter], load: Callable[[str], object] | None = None) -> None:
    """Make all *parameters* hold their values.

    Raises:
        HostError: one or more are refused; names all of them.
    """
    refusals = apply(parameters, load)
    if refusals:
        raise complain(refusals)


def load_module(name: str) -> bool:
    """Load a kernel module; return whether that was possible. Only root may."""
    result = run(["modprobe", "-va", name], None, MODPROBE_SECONDS)
    if isinstance(result, Finished):
        loaded, said = result.exit_status == 0, result.complaint
    else:
        loaded, said = False, str(result)
    if not loaded:
        log.debug("kernel module not loaded", module=name, reason=said)
    return loaded


def _refusal(parameter: Parameter, found: int | None, error: OSError) -> Refusal:
    # Not by the error: below /sys what is not there is EACCES, or EROFS, to who would write it.
    absent = not parameter.path.exists()
    reason = error.strerror or str(error)
    return Refusal(parameter, found, reason, absent, error.errno in _NO_RIGHT)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
