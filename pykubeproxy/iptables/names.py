"""Chain names, as kube-proxy makes them, so that either program adopts the other's chains."""

from __future__ import annotations

from base64 import b32encode
from hashlib import sha256

from pykubeproxy.model.route import PortKey

__all__ = [
    "BASE_CHAINS",
    "CANARY",
    "CANARY_TABLES",
    "EXTERNAL_SERVICES",
    "FIREWALL",
    "FORWARD",
    "INDEX_PREFIX",
    "IPVS_CHAINS",
    "IPVS_FILTER",
    "IPVS_OUT_FILTER",
    "LOAD_BALANCER",
    "MARK_MASQ",
    "NODEPORTS",
    "NODE_PORT",
    "POSTROUTING",
    "PROXY_FIREWALL",
    "SERVICES",
    "SERVICE_CHAIN_PREFIXES",
    "SOURCE_RANGES_FIREWALL",
    "endpoint_hash",
    "index_chain",
    "index_depth",
    "is_service_chain",
    "port_hash",
]

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODEPORTS = "KUBE-NODEPORTS"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
FIREWALL = "KUBE-FIREWALL"
"""Shared with kubelet; never removed."""
CANARY = "KUBE-PROXY-CANARY"
CANARY_TABLES = ("mangle", "nat", "filter")

NODE_PORT = "KUBE-NODE-PORT"
LOAD_BALANCER = "KUBE-LOAD-BALANCER"
SOURCE_RANGES_FIREWALL = "KUBE-SOURCE-RANGES-FIREWALL"
IPVS_FILTER = "KUBE-IPVS-FILTER"
IPVS_OUT_FILTER = "KUBE-IPVS-OUT-FILTER"

IPVS_CHAINS: dict[str, tuple[str, ...]] = {
    "nat": (NODE_PORT, LOAD_BALANCER),
    "filter": (NODE_PORT, SOURCE_RANGES_FIREWALL, IPVS_FILTER, IPVS_OUT_FILTER),
}
"""The chains that only ipvs mode has, per table."""

BASE_CHAINS: dict[str, tuple[str, ...]] = {
    "nat": (SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ, CANARY, *IPVS_CHAINS["nat"]),
    "filter": (
        *(SERVICES, EXTERNAL_SERVICES, FORWARD, NODEPORTS, PROXY_FIREWALL, CANARY),
        *IPVS_CHAINS["filter"],
    ),
    "mangle": (CANARY,),
}
"""The chains that are ours alone in one mode or another, per table, service chains apart.

ipvs mode shares with iptables mode the names KUBE-SERVICES, KUBE-POSTROUTING and KUBE-MARK-MASQ
of nat, and KUBE-FORWARD and KUBE-PROXY-FIREWALL of filter. Not here, because kubelet's:
KUBE-FIREWALL, KUBE-MARK-DROP, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT.
"""

SERVICE_CHAIN_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-")


INDEX_PREFIX = "KUBE-SVC-IDX"
"""Chains of an index begin as those of a Service do, so that kube-proxy removes them too when it
takes the node back: one it did not know would keep it from removing the chains below."""


def index_chain(what: str, depth: int) -> str:
    """Name the chain of an index for *what*, unique in its table, that is so many bits deep."""
    return f"{INDEX_PREFIX}{depth:03d}-{_short_hash(what)[:12]}"


def index_depth(name: str) -> int | None:
    """Return the depth of an index chain; ``None`` if *name* is no such chain."""
    if not name.startswith(INDEX_PREFIX) or name[15:16] != "-":
        return None
    return int(name[12:15])


def is_service_chain(name: str) -> bool:
    """Tell whether *name* is one that only a service proxy makes."""
    return name.startswith(SERVICE_CHAIN_PREFIXES)


def port_hash(key: PortKey) -> str:
    """The 16 characters that stand for a service port in the names of its chains.

    First 16 characters of base32 over SHA-256 of the printed name and the lower-case protocol,
    with nothing between them.
    """
    return _short_hash(f"{key}{key.protocol.lower()}")


def endpoint_hash(key: PortKey, endpoint: str) -> str:
    """The same for one endpoint (``IP:port``, IPv6 in brackets) of a service port."""
    return _short_hash(f"{key}{key.protocol.lower()}{endpoint}")


def _short_hash(text: str) -> str:
    # Ten bytes are sixteen base32 characters.
    return b32encode(sha256(text.encode()).digest()[:10]).decode("ascii")
