"""What this node is to a decision: configuration, Node object and interfaces put together."""

from __future__ import annotations

from collections.abc import Iterable

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.model.addresses import canonical_cidr, canonical_ip, contains, prefix_length
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import (
    LOOPBACK,
    NodeContext,
    PodCIDR,
    PodInterface,
    PodInterfacePrefix,
    PodTraffic,
)
from pykubeproxy.model.objects import Node

__all__ = ["describe_node", "localhost_serves_nodeports", "node_address"]


def describe_node(
    config: Config,
    name: str,
    node: Node | None,
    local_addresses: Iterable[str],
    family: Family,
    *,
    every_address: bool = False,
) -> NodeContext:
    """Put together what is known of this node.

    *node* is its API object, ``None`` while there is none. *local_addresses* are the canonical
    addresses of all interfaces; they count only where node ports are restricted to some of them,
    or where *every_address* matters to the backend.
    """
    local_addresses = tuple(local_addresses)
    address = node_address(config, node, family)
    return NodeContext(
        name=name,
        family=family,
        zone=node.zone if node else "",
        address=address,
        nodeport_addresses=_nodeport_addresses(config, address, local_addresses, family),
        addresses=local_addresses if every_address else (),
        pod_traffic=_pod_traffic(config, node, family),
        masquerade_all=config.masquerade_all,
        allow_external_ips=config.allow_external_ips,
    )


def localhost_serves_nodeports(config: Config, family: Family) -> bool:
    """Tell whether node ports answer on 127.0.0.0/8, which needs route_localnet.

    Never for IPv6, nor when the node port addresses exclude loopback.
    """
    if not config.localhost_nodeports or family is not Family.IPV4:
        return False
    if config.nodeport_addresses == ("primary",):
        return False
    ranges = _of_family(config.nodeport_addresses, family)
    return not ranges or any(
        contains(cidr, "127.0.0.0") or contains("127.0.0.0/8", cidr.partition("/")[0])
        for cidr in ranges
    )


def node_address(config: Config, node: Node | None, family: Family) -> str:
    """Return the node's address of *family*: the bind address, an internal, an external one.

    The loopback address as long as there is none of them.
    """
    bound = canonical_ip(config.bind_address)
    if bound is not None and bound[0] is family and bound[1] not in ("0.0.0.0", "::"):
        return bound[1]
    for kind in ("InternalIP", "ExternalIP"):
        for entry in node.addresses if node else ():
            parsed = canonical_ip(entry.address) if entry.type == kind else None
            if parsed is not None and parsed[0] is family:
                return parsed[1]
    return LOOPBACK[family]


def _nodeport_addresses(
    config: Config, address: str, local_addresses: Iterable[str], family: Family
) -> tuple[str, ...] | None:
    ranges: Iterable[str] = config.nodeport_addresses
    if config.nodeport_addresses == ("primary",):
        known = address != LOOPBACK[family]
        ranges = (f"{address}/{family.host_prefix}",) if known else ()
    ranges = _of_family(ranges, family)
    if not ranges or any(prefix_length(cidr) == 0 for cidr in ranges):
        return None
    return tuple(a for a in local_addresses if any(contains(cidr, a) for cidr in ranges))


def _pod_traffic(config: Config, node: Node | None, family: Family) -> PodTraffic | None:
    match config.detect_local_mode:
        case DetectLocalMode.CLUSTER_CIDR:
            cidrs = _of_family(config.cluster_cidrs, family)
        case DetectLocalMode.NODE_CIDR:
            cidrs = _of_family((node.spec.pod_cidrs or ()) if node else (), family)
        case DetectLocalMode.BRIDGE_INTERFACE:
            return PodInterface(config.bridge_interface)
        case DetectLocalMode.INTERFACE_NAME_PREFIX:
            return PodInterfacePrefix(config.interface_name_prefix)
    return PodCIDR(cidrs[0]) if cidrs else None


def _of_family(cidrs: Iterable[str], family: Family) -> tuple[str, ...]:
    parsed = (canonical_cidr(cidr) for cidr in cidrs)
    return tuple(found[1] for found in parsed if found is not None and found[0] is family)
