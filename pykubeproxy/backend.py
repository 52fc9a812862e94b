"""What a proxy mode brings along: the one thing the daemon asks of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Event
from typing import Any

from msgspec import Struct

from pykubeproxy.config import Config
from pykubeproxy.host.state import StateDirectory
from pykubeproxy.iptables.kernel import Runner
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.loop import FamilyProxy, Suspicions
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family

__all__ = ["Backend", "Surroundings"]


def _at_once(job: Callable[[], None]) -> None:
    job()


def _not_told() -> None:
    return None


class Surroundings(Struct, frozen=True):
    """What every mode is built from. ``tools`` are those of the IP families this node has.

    ``ask`` runs programs that only look, and remembers what they said since the start.
    ``beside`` runs slow looks at the kernel on a thread of their own. ``generation`` is the
    kernel's count of changes to nf_tables. ``state`` is where to keep what a restart can use in
    the same ``place``, a boot and a network namespace.
    """

    config: Config
    tools: Mapping[Family, Tools]
    ask: Runner
    metrics: Metrics
    suspicions: Suspicions
    clock: Callable[[], float]
    stop: Event
    beside: Callable[[Callable[[], None]], None] = _at_once
    generation: Callable[[], int | None] = _not_told
    state: StateDirectory | None = None
    place: tuple[str, str] = ("", "")


class Backend(Struct, frozen=True):
    """One mode, ready to run.

    ``start`` is called with what to call after an address of this node came or went, ``close``
    at the end.
    """

    families: Sequence[FamilyProxy[Any, Any]]
    start: Callable[[Callable[[], None]], None]
    close: Callable[[], None]
