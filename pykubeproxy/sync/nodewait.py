"""How long a start waits for what only the Node object tells; pure, time is an argument.

As kube-proxy: a node that is unknown or has no address is served after half a minute all the
same; one without podCIDRs is not, where pods are told by them, and that ends the start.
"""

from __future__ import annotations

from msgspec import Struct

from pykubeproxy.config import Config, DetectLocalMode
from pykubeproxy.errors import NodeTimeout
from pykubeproxy.model.addresses import canonical_ip
from pykubeproxy.model.objects import Node

__all__ = ["NODE_SECONDS", "POD_CIDR_SECONDS", "NodeWait", "Waiting"]

NODE_SECONDS = 30.0
"""For the object and an address in it; from when the first list of Nodes is complete."""
POD_CIDR_SECONDS = 300.0
"""For podCIDRs, after the wait for the object."""


class Waiting(Struct, frozen=True):
    """What is missing and why, and until when it is waited for (``None``: without an end)."""

    missing: str
    reason: str
    until: float | None = None


class NodeWait:
    """One start's wait for the node *name*."""

    def __init__(self, config: Config, name: str) -> None:
        self._name = name
        self._needs_pod_cidrs = config.detect_local_mode is DetectLocalMode.NODE_CIDR
        # A directory of manifests need not have a Node; but what it lacks may come at any time.
        self._needs_node = not config.manifests
        self._node_by: float | None = None
        self._pod_cidrs_by: float | None = None

    def look(self, now: float, node: Node | None) -> Waiting | None:
        """Return what is waited for; ``None``: nothing (any more).

        To be called once the first list of Nodes is complete, after each change, and when the
        wait is over.

        Raises:
            NodeTimeout: what cannot be done without did not come in time.
        """
        if self._node_by is None:
            self._node_by = now + NODE_SECONDS
        if self._pod_cidrs_by is None and now < self._node_by:
            lacking = self.lacking(node)
            if lacking is not None:
                return lacking
        if not self._needs_pod_cidrs:
            return None
        if self._pod_cidrs_by is None:
            self._pod_cidrs_by = now + POD_CIDR_SECONDS
        if node is not None and node.spec.pod_cidrs:
            return None
        if self._needs_node and now >= self._pod_cidrs_by:
            raise NodeTimeout(self._timeout(node))
        return Waiting(
            f"podCIDRs of Node {self._name}" if node else f"Node {self._name}",
            "with detectLocalMode NodeCIDR pods are told by the podCIDRs that the cluster's "
            "controller-manager (--allocate-node-cidrs) or the network gives to the node",
            self._pod_cidrs_by if self._needs_node else None,
        )

    def lacking(self, node: Node | None) -> Waiting | None:
        """Return what *node* should tell, and does not; an end of the wait changes nothing here."""
        if not self._needs_node:
            return None
        if node is None:
            return Waiting(
                f"Node {self._name}",
                "the API has no Node of this name: the kubelet has not registered it yet, or it "
                "is called otherwise, see --hostname-override",
                self._node_by,
            )
        usable = ("InternalIP", "ExternalIP")
        if any(a.type in usable and canonical_ip(a.address) for a in node.addresses):
            return None
        return Waiting(
            f"addresses of Node {self._name}",
            "its status has neither InternalIP nor ExternalIP: the kubelet or the cloud's "
            "controller has not set them yet",
            self._node_by,
        )

    def _timeout(self, node: Node | None) -> str:
        if node is None:
            return f'timeout waiting for node "{self._name}" to exist; see --hostname-override'
        return (
            f'timeout waiting for PodCIDR allocation on node "{self._name}"; let the '
            "controller-manager allocate them, or choose another detectLocalMode"
        )
