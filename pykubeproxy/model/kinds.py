"""The small closed sets that everything else is written in."""

from __future__ import annotations

from enum import Enum, StrEnum

__all__ = ["Action", "Family", "FrontendKind", "Masquerade", "Pool", "Protocol"]


class Family(StrEnum):
    """An IP family, spelled as the API and the ``ip_family`` metric label spell it."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"

    @property
    def host_prefix(self) -> int:
        """Length of the prefix that holds one address: 32 or 128."""
        return 32 if self is Family.IPV4 else 128

    @property
    def other(self) -> Family:
        return Family.IPV6 if self is Family.IPV4 else Family.IPV4


class Protocol(StrEnum):
    """A transport protocol, spelled as the API spells it."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"

    @staticmethod
    def of(text: str | None) -> Protocol | None:
        """Read what the API says: nothing means TCP, ``None`` comes back for what is unknown."""
        # A quarter of what calling the class costs, without an exception to catch.
        return _PROTOCOLS.get(text or "TCP")


_PROTOCOLS = {protocol.value: protocol for protocol in Protocol}


class FrontendKind(Enum):
    """What sort of destination a client used."""

    CLUSTER_IP = "cluster IP"
    EXTERNAL_IP = "external IP"
    LOAD_BALANCER = "loadbalancer IP"
    NODE_PORT = "node port"


class Action(Enum):
    """What happens to a new connection."""

    FORWARD = "forward"
    REJECT = "reject"  # refused at once: nobody serves this anywhere
    DROP = "drop"  # silence: served, but not through this node


class Pool(Enum):
    """Which endpoints of a route are picked from."""

    CLUSTER = "cluster"
    LOCAL = "local"


class Masquerade(Enum):
    """Which clients get this node's address as their source.

    An endpoint that reaches itself is always masqueraded, whatever stands here.
    """

    NEVER = "never"
    ALWAYS = "always"
    NOT_PODS = "not pods"  # everybody but the pods of this node
    NODE = "node"  # only what this node itself sends
