"""Chain names, as kube-proxy makes them, so that either program adopts the other's chains."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct

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
    "PROBE",
    "PROXY_FIREWALL",
    "SERVICES",
    "SERVICE_CHAIN_PREFIXES",
    "SOURCE_RANGES_FIREWALL",
    "chain_hashes",
    "index_chain",
    "index_depth",
    "is_own_chain",
    "is_service_chain",
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
PROBE = "KUBE-PROXY-PROBE"
"""Made and removed in one commit, so that nobody ever sees it."""

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
"""Chains of an index begin as those of a Service do, so that kube-proxy removes those in nat when
it takes the node back: one it did not know would keep it from removing the chains below. Those in
filter lead to none of its chains, and stay unreachable until ``--cleanup``."""


def index_chain(what: str, depth: int) -> str:
    """Name the chain of an index for *what*, unique in its table, that is so many bits deep."""
    return f"{INDEX_PREFIX}{depth:03d}-{_short_hash(what)[:12]}"


def index_depth(name: str) -> int | None:
    """Return the depth of an index chain; ``None`` if *name* is no such chain."""
    if not name.startswith(INDEX_PREFIX) or name[15:16] != "-" or not name[12:15].isdecimal():
        return None
    return int(name[12:15])


def is_service_chain(name: str) -> bool:
    """Tell whether *name* is one that only a service proxy makes."""
    return name.startswith(SERVICE_CHAIN_PREFIXES)


def is_own_chain(table: str, name: str) -> bool:
    """Tell whether a service proxy alone made *name*, in whatever mode."""
    if name in BASE_CHAINS.get(table, ()):
        return True
    return is_service_chain(name) if table == "nat" else index_depth(name) is not None


def chain_hashes(port_name: str, protocol: str, endpoints: Iterable[str]) -> tuple[str, list[str]]:
    """The 16 characters that stand for a service port in the names of its chains.

    And those that stand for its endpoints (``IP:port``, IPv6 in brackets) in theirs. First 16
    characters of base32 over SHA-256 of the printed name of the port, the lower-case *protocol*
    and the endpoint, if any, with nothing between them.
    """
    port = sha256(f"{port_name}{protocol}".encode())
    hashes = []
    for endpoint in endpoints:
        # A copy takes half as long as hashing all of the text again.
        copy = port.copy()
        copy.update(endpoint.encode())
        hashes.append(_first_characters(copy.digest()))
    return _first_characters(port.digest()), hashes


def _short_hash(text: str) -> str:
    return _first_characters(sha256(text.encode()).digest())


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)
"""Two characters of base32 for every number of ten bits."""
_first_80_bits = Struct(">5H").unpack_from


def _first_characters(digest: bytes) -> str:
    """Return the first 16 characters of *digest* in base32.

    By pairs 0.6 us, with `base64.b32encode` 2.0 us: a tenth of a first pass. Five short numbers,
    because shifting one long one takes 0.4 us more.
    """
    two = _PAIRS
    a, b, c, d, e = _first_80_bits(digest)
    return (
        f"{two[a >> 6]}{two[(a & 63) << 4 | b >> 12]}{two[b >> 2 & 1023]}"
        f"{two[(b & 3) << 8 | c >> 8]}{two[(c & 255) << 2 | d >> 14]}"
        f"{two[d >> 4 & 1023]}{two[(d & 15) << 6 | e >> 10]}{two[e & 1023]}"
    )
