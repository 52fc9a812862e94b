"""Whether the configuration suits this node, said with the consequence where it does not.

What is fatal, and what is only said, is as with kube-proxy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from msgspec import Struct

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.model.addresses import (
    canonical_cidr,
    canonical_ip,
    contains,
    family_of,
    prefix_length,
)
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import LOOPBACK
from pykubeproxy.model.objects import Node
from pykubeproxy.sync.context import node_address

__all__ = ["Doubt", "cluster_cidr_mismatch", "doubts", "primary_family"]

_UNSPECIFIED = ("0.0.0.0", "::")


class Doubt(Struct, frozen=True):
    """A part of the configuration that does not suit the node; ``fatal``: it must not serve so."""

    where: str
    text: str
    fatal: bool = False


def primary_family(config: Config, node: Node | None) -> Family | None:
    """The IP family of the bind address, else of the node's first; ``None`` while unknown."""
    bound = canonical_ip(config.bind_address)
    if bound is not None and bound[1] not in _UNSPECIFIED:
        return bound[0]
    for kind in ("InternalIP", "ExternalIP"):
        for entry in node.addresses if node else ():
            parsed = canonical_ip(entry.address) if entry.type == kind else None
            if parsed is not None:
                return parsed[0]
    return None


def doubts(
    config: Config, node: Node | None, primary: Family, served: Collection[Family]
) -> list[Doubt]:
    """Return what does not suit a node whose first family is *primary*.

    *served* are the IP families that this node can serve.
    """
    if primary not in served:
        able = ", ".join(served)
        text = f'no support for primary IP family "{primary}": this node can serve {able}'
        return [Doubt("bindAddress", text, fatal=True)]
    pod_cidrs = (node.spec.pod_cidrs or ()) if node else ()
    return [
        *_open_node_ports(config, node, primary, pod_cidrs),
        *_wrong_family(config, primary, len(served) > 1, pod_cidrs),
    ]


def cluster_cidr_mismatch(config: Config, node: Node | None) -> tuple[str, ...]:
    """Return a sentence for each IP family whose pods here are outside the cluster CIDR."""
    if config.detect_local_mode is not DetectLocalMode.CLUSTER_CIDR or node is None:
        return ()
    found = []
    for family in Family:
        clusters = _of_family(config.cluster_cidrs, family)
        pods = _of_family(node.spec.pod_cidrs or (), family)
        if clusters and pods and not any(_within(p, c) for p in pods for c in clusters):
            found.append(
                f"the {family} podCIDRs of this node ({', '.join(pods)}) are not within "
                f"clusterCIDR ({', '.join(clusters)}): its pods are taken for strangers, so their "
                "traffic to cluster IPs is masqueraded and NetworkPolicies see this node's address "
                "in place of theirs; correct clusterCIDR, or set detectLocalMode: NodeCIDR"
            )
    return tuple(found)


def _open_node_ports(
    config: Config, node: Node | None, primary: Family, pod_cidrs: Collection[str]
) -> Iterable[Doubt]:
    where = "nodePortAddresses"
    ranges: tuple[str, ...] = config.nodeport_addresses
    if ranges == ("primary",):
        addresses = [(f, node_address(config, node, f)) for f in Family]
        ranges = tuple(f"{a}/{f.host_prefix}" for f, a in addresses if a != LOOPBACK[f])
    of_primary = len(_of_family(ranges, primary))
    lists = (config.cluster_cidrs, ranges, config.ipvs.exclude_cidrs, pod_cidrs)
    if not ranges:
        yield Doubt(
            where,
            "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. "
            "Consider using `--nodeport-addresses primary`",
        )
    elif of_primary == len(ranges) and any(map(_is_dual, lists)):
        yield Doubt(
            where,
            f"cluster appears to be dual-stack but nodePortAddresses contains only {primary} "
            f"addresses; NodePort connections will be accepted on all local {primary.other} IPs",
        )
    elif not of_primary:
        yield Doubt(
            where,
            f"cluster appears to be {primary}-primary but nodePortAddresses contains only "
            f"{primary.other} addresses; NodePort connections will be accepted on all local "
            f"{primary} IPs",
        )


def _wrong_family(
    config: Config, primary: Family, dual: bool, pod_cidrs: Collection[str]
) -> Iterable[Doubt]:
    wrong = primary.other
    cluster = f"cluster is {primary}-{'primary' if dual else 'only'} but"
    lists = [
        ("clusterCIDR", "clusterCIDRs", config.cluster_cidrs, not dual),
        (
            "detectLocalMode",
            "node.spec.podCIDRs",
            pod_cidrs,
            config.detect_local_mode is DetectLocalMode.NODE_CIDR,
        ),
    ]
    if not dual:
        lists.append(("ipvs.excludeCIDRs", "ipvs.excludeCIDRs", config.ipvs.exclude_cidrs, False))
    for where, name, cidrs, fatal in lists:
        if cidrs and len(_of_family(cidrs, wrong)) == len(cidrs):
            yield Doubt(where, f"{cluster} {name} contains only {wrong} addresses", fatal)
    if dual:
        return
    for name, address in (
        ("healthzBindAddress", config.healthz_address),
        ("metricsBindAddress", config.metrics_address),
    ):
        if address and address[0] not in _UNSPECIFIED and family_of(address[0]) is wrong:
            yield Doubt(name, f"{cluster} {name} is {wrong}")


def _is_dual(cidrs: Iterable[str]) -> bool:
    return len({parsed[0] for cidr in cidrs if (parsed := canonical_cidr(cidr))}) > 1


def _of_family(cidrs: Iterable[str], family: Family) -> list[str]:
    parsed = (canonical_cidr(cidr) for cidr in cidrs)
    return [found[1] for found in parsed if found is not None and found[0] is family]


def _within(inner: str, outer: str) -> bool:
    return prefix_length(inner) >= prefix_length(outer) and contains(outer, inner.partition("/")[0])
