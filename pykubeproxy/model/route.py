"""What must happen to packets, with no Kubernetes vocabulary left.

A `Route` is one load-balanced port in one IP family. A backend loops over its frontends and
pools and needs to know nothing about traffic policies, conditions, hints or Service types.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from pykubeproxy.model.kinds import Action, FrontendKind, Masquerade, Pool, Protocol
from pykubeproxy.model.objects import ServiceKey

__all__ = ["Endpoint", "Frontend", "PortKey", "Route", "Verdict"]


class PortKey(NamedTuple):
    """Identity of a load-balanced port: Service, port name (may be empty) and protocol."""

    service: ServiceKey
    port_name: str
    protocol: Protocol

    def __str__(self) -> str:
        """``ns/name`` or ``ns/name:port``: the form in rule comments, logs and hash inputs."""
        return f"{self.service}:{self.port_name}" if self.port_name else str(self.service)


class Endpoint(Struct, frozen=True, gc=False):
    """A pod address that may receive traffic now; conditions and hints are already spent."""

    address: str  # canonical text form, never bracketed
    port: int
    node_local: bool  # runs on this node

    def __str__(self) -> str:
        """``IP:port`` or ``[IPv6]:port``: the sort key and the DNAT target."""
        if ":" in self.address:
            return f"[{self.address}]:{self.port}"
        return f"{self.address}:{self.port}"


class Verdict(Struct, frozen=True, gc=False):
    """What happens to a new connection, and from where it is served."""

    action: Action
    pool: Pool = Pool.CLUSTER
    masquerade: Masquerade = Masquerade.NEVER


class Frontend(Struct, frozen=True, gc=False):
    """An address and port that clients use.

    ``address`` is ``None`` for a node port: every node-port address of this node.
    ``outside`` holds for clients off the node, ``inside`` for this node and its pods; they
    differ only under externalTrafficPolicy Local (the short circuit of KEP-1669).
    ``source_ranges`` are canonical CIDRs or bare addresses; empty means everybody.
    """

    kind: FrontendKind
    address: str | None
    port: int
    outside: Verdict
    inside: Verdict
    source_ranges: tuple[str, ...] = ()


class Route(Struct, frozen=True, gc=False):
    """One load-balanced port of one family: all that a backend needs.

    ``cluster_endpoints`` and ``local_endpoints`` are sorted by their text and hold only what a
    verdict may pick from. ``serving_endpoints`` are all endpoints with the serving condition,
    whatever the policies say: a UDP flow to one of them must not be cut. ``node_endpoints`` are
    all endpoints on this node, whatever their condition: those that could talk to themselves.
    ``affinity_seconds`` is 0 without client affinity, ``health_check_port`` 0 without one.
    ``external_local``: clients off this node are meant for endpoints on it, even if it has none.
    ``scheduler`` is what the Service asks an IPVS node to choose by, as written; empty: nothing.
    """

    key: PortKey
    frontends: tuple[Frontend, ...]
    cluster_endpoints: tuple[Endpoint, ...]
    local_endpoints: tuple[Endpoint, ...]
    serving_endpoints: frozenset[str] = frozenset()
    node_endpoints: tuple[Endpoint, ...] = ()
    affinity_seconds: int = 0
    health_check_port: int = 0
    external_local: bool = False
    scheduler: str = ""
