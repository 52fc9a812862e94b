"""Is the proxy healthy, and may this node get traffic: values that the health servers answer from.

A `Status` is immutable. The sync thread builds the next one and publishes it; servers only read.
Time is an argument: each `Instant` has the wall clock for display and a steady one for deciding,
so a clock that is set forward does not make a node unhealthy.
Rules: kube-proxy's pkg/proxy/healthcheck/proxy_health.go. Readiness is ours: whether the node has
been served once. It never goes away again, since rules stay in the kernel whatever becomes of the
API: a node is not taken out of a rollout by the server's trouble.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from msgspec import Struct, structs

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Node

__all__ = ["AUTOSCALER_TAINT", "FamilyStatus", "Instant", "Status"]

AUTOSCALER_TAINT = "ToBeDeletedByClusterAutoscaler"


class Instant(NamedTuple):
    """One reading of both clocks."""

    unix_nanoseconds: int
    steady_seconds: float

    @property
    def unix_seconds(self) -> float:
        return self.unix_nanoseconds / 1e9


class FamilyStatus(Struct, frozen=True):
    """``queued`` is the oldest change that is not applied yet, ``updated`` the last success."""

    updated: Instant | None = None
    queued: Instant | None = None


class Status(Struct, frozen=True):
    """``stale_after_seconds`` is 2 x syncPeriod: how long a change may wait.

    ``waiting_for`` names what is missing for this proxy to be ready, for people.
    """

    stale_after_seconds: float
    families: dict[Family, FamilyStatus] = {}
    node_eligible: bool = False  # until the Node has been seen
    waiting_for: tuple[str, ...] = ("start of the sync loop",)

    def with_queued(self, family: Family, now: Instant) -> Status:
        """A change waits to be applied; an older one that still waits keeps its time."""
        known = self.families.get(family, FamilyStatus())
        if known.queued is not None:
            return self
        return self._with(family, structs.replace(known, queued=now))

    def with_updated(self, family: Family, now: Instant) -> Status:
        """Nothing waits: the sync loop starts, or a pass succeeded."""
        return self._with(family, FamilyStatus(updated=now))

    def with_node(self, node: Node | None) -> Status:
        """The own Node was seen; ``None`` (deleted) changes nothing, as upstream."""
        if node is None:
            return self
        leaving = node.metadata.deletion_timestamp is not None or any(
            taint.key == AUTOSCALER_TAINT for taint in node.spec.taints or ()
        )
        return structs.replace(self, node_eligible=not leaving)

    def with_waiting(self, missing: Iterable[str]) -> Status:
        """*missing* is what the first sync of every family waits for; nothing: ready, for good."""
        waiting_for = tuple(missing)
        if self.is_ready or waiting_for == self.waiting_for:
            return self
        return structs.replace(self, waiting_for=waiting_for)

    def with_ready(self) -> Status:
        """First lists were complete and every family was synced."""
        return self.with_waiting(())

    @property
    def is_ready(self) -> bool:
        return not self.waiting_for

    @property
    def reported(self) -> dict[Family, Instant]:
        """When each family was updated last; only those that ever were."""
        return {
            family: known.updated
            for family, known in sorted(self.families.items())
            if known.updated is not None
        }

    def family_is_healthy(self, family: Family, now: Instant) -> bool:
        known = self.families.get(family, FamilyStatus())
        queued = known.queued
        if queued is None or known.updated is None:
            return True
        return now.steady_seconds - queued.steady_seconds < self.stale_after_seconds

    def is_healthy(self, now: Instant) -> bool:
        """No family has a change that waits too long. Says nothing about the node."""
        return all(self.family_is_healthy(family, now) for family in self.families)

    def last_updated(self) -> Instant | None:
        """The latest success of any family."""
        return max(self.reported.values(), default=None)

    def _with(self, family: Family, known: FamilyStatus) -> Status:
        return structs.replace(self, families={**self.families, family: known})
