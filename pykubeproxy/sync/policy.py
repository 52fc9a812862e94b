"""Which endpoints may receive traffic: conditions, topology hints, locality, terminating fallback.

Follows KEP-1672 (terminating endpoints), KEP-2433 and KEP-3015 (hints), KEP-2086 (internal
traffic policy) and KEP-1669 (external traffic policy with terminating endpoints).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from pykubeproxy.model.objects import Hint
from pykubeproxy.sync.endpoints import Candidate

__all__ = ["Pools", "TrafficPolicy", "usable_endpoints"]


class TrafficPolicy(Struct, frozen=True, gc=False):
    """The policies of one service port, as far as they count.

    ``externally_accessible``: there is a node port, an external IP or a load balancer address,
    so that ``external_local`` has a meaning.
    """

    internal_local: bool = False
    external_local: bool = False
    externally_accessible: bool = False

    @property
    def uses_cluster(self) -> bool:
        """Traffic may go to endpoints on any node.

        Also with an internal policy of Local if there is an external address: this node and its
        pods reach that one short-circuited, as if they had used the cluster IP.
        """
        return not self.internal_local or self.externally_accessible

    @property
    def uses_local(self) -> bool:
        return self.internal_local or (self.external_local and self.externally_accessible)


class Pools(Struct, frozen=True, gc=False):
    """The outcome: endpoints for either pool, and whether anybody anywhere can serve."""

    cluster: tuple[Candidate, ...] = ()
    local: tuple[Candidate, ...] = ()
    has_any: bool = False


def usable_endpoints(
    candidates: Sequence[Candidate], policy: TrafficPolicy, node_name: str, zone: str
) -> Pools:
    """Select the pools of one service port; orders are kept.

    Terminating endpoints that still serve are used only where a pool has no ready one, decided
    for each pool on its own. Hints narrow the cluster pool only.
    """
    if not candidates:
        return Pools()
    ready = [c for c in candidates if c.ready]
    draining = [c for c in candidates if c.serving and c.terminating]
    cluster: list[Candidate] = []
    if policy.uses_cluster:
        cluster = _nearest(ready, node_name, zone) or draining
    if not policy.uses_local:
        return Pools(cluster=tuple(cluster), has_any=bool(cluster))
    local = [c for c in ready if c.endpoint.node_local] or [
        c for c in draining if c.endpoint.node_local
    ]
    # An endpoint elsewhere is enough to turn a refusal into silence: somebody does serve this.
    return Pools(tuple(cluster), tuple(local), has_any=bool(ready or draining))


def _nearest(ready: list[Candidate], node_name: str, zone: str) -> list[Candidate]:
    """Keep the endpoints hinted for this node, else for this zone, else all.

    A kind of hint counts only if every ready endpoint carries it and at least one names us:
    half-written hints must not starve or overload anybody.
    """
    for candidate in ready:
        if candidate.hints is None:  # nearly always the first one
            return ready
    for name, hinted in (
        (node_name, [c.hints.for_nodes if c.hints else None for c in ready]),
        (zone, [c.hints.for_zones if c.hints else None for c in ready]),
    ):
        if not name or not all(hinted):
            continue
        chosen = [c for c, hints in zip(ready, hinted, strict=True) if _names(hints, name)]
        if chosen:
            return chosen
    return ready


def _names(hints: tuple[Hint, ...] | None, name: str) -> bool:
    return any(hint.name == name for hint in hints or ())
