"""What of the story depends on the mode, and what the chapters of both modes share."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Protocol

from demo.screen import Screen
from demo.stage import Stage
from e2e.lab import Connection

__all__ = ["Chapters", "chains", "echoes"]

_OURS = re.compile(r"^:(KUBE-\S+)")
_FOREIGN = {"KUBE-FIREWALL"}  # shared with kubelet, so a proxy never removes it


class Chapters(Protocol):
    """A module for each mode: `demo.iptables_chapters`, `demo.ipvs_chapters`."""

    @property
    def WRITTEN(self) -> str:
        """What the daemon writes and counts, in a sentence."""

    @property
    def COLUMN(self) -> str:
        """The same as the head of a column."""

    @property
    def OURS(self) -> str:
        """What `traces` finds, in a sentence."""

    @property
    def NONE_LEFT(self) -> str:
        """What there is after ``--cleanup``."""

    @property
    def LAST_PODS(self) -> Collection[str]:
        """The endpoints of web after `after_changes`."""

    def before_changes(self, stage: Stage, screen: Screen, connection: Connection) -> None:
        """Chapters after the first connections; *connection* is open, from p3 to web."""

    def after_changes(self, stage: Stage, screen: Screen, connection: Connection) -> None:
        """Chapters after the live changes."""

    def to_look_with(self, stage: Stage) -> Sequence[str]:
        """Commands for the node that show what the kernel holds."""

    def traces(self, stage: Stage) -> set[str]:
        """What of ours the kernel holds, by name."""

    def count(self, traces: Collection[str]) -> str:
        """How much *traces* is, in a few words."""


def chains(saved: Sequence[str]) -> set[str]:
    """Our chains in what iptables-save printed."""
    return {match[1] for line in saved if (match := _OURS.match(line))} - _FOREIGN


def echoes(connection: Connection) -> bool:
    """Tell whether the server at the other end still answers."""
    try:
        return connection.ask(b"still there?\n") == b"still there?\n"
    except OSError:
        return False
