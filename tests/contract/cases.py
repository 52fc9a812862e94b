"""The packet tables: small clusters, packets into them, and what must become of each packet.

Expected values come from what Kubernetes promises (and kube-proxy does), never from this program.
Endpoints are written ``p1:8080``: p1, p2, p3 run on the node under test, r1 and r2 on another.
``forward(own=…)`` lists endpoints that see the client's own address, ``forward(node=…)`` those
that see the node's because the connection is masqueraded. An endpoint that reaches itself through
a Service is always masqueraded.

By default pods are told by the cluster CIDR 10.244.0.0/16, which r1 and r2 are in as well.
"""

from __future__ import annotations

from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.model.objects import LoadBalancerIngress, SliceEndpoint, WireObject
from tests.build import endpoint, port, service, slice_, slice_port
from tests.contract.world import (
    ADDRESS_OF,
    DROP,
    LOCALHOST,
    NODE_ADDRESS,
    NOT_A_SERVICE,
    REJECT,
    Detect,
    Packet,
    Settings,
    World,
    forward,
    packet,
    sticky,
)

__all__ = ["WORLDS"]

UDP, SCTP = Protocol.UDP, Protocol.SCTP
IP1, IP2, IP3, IP4, IP5, IP6, IP7, IP8, IP9 = (f"10.96.0.{n}" for n in range(1, 10))
VIP, EXTERNAL, VIP2 = "203.0.113.1", "203.0.113.2", "203.0.113.3"
BOUND_VIP = "203.0.113.250"  # on the node's own lo
PODS = "pod other_pod remote_pod"
EVERYBODY = f"{PODS} client node"
NODE_PORT = 30080


def on(name: str, **options: object) -> SliceEndpoint:
    """The endpoint *name*, with the node it runs on."""
    where = "far" if name.startswith("r") else "node"
    return endpoint(ADDRESS_OF[name], **{"node": where, **options})  # type: ignore[arg-type]


def ready(names: str) -> list[SliceEndpoint]:
    return [on(name) for name in names.split()]


def draining(name: str, **options: object) -> SliceEndpoint:
    """Terminating, still serving."""
    return on(name, ready=False, serving=True, terminating=True, **options)


def gone(name: str) -> SliceEndpoint:
    """Terminating and no longer serving."""
    return on(name, ready=False, serving=False, terminating=True)


def unready(name: str, **options: object) -> SliceEndpoint:
    return on(name, ready=False, serving=False, terminating=False, **options)


def web(endpoints: str | list[SliceEndpoint], **options: object) -> list[WireObject]:
    """One Service ``web`` on port 80, its endpoints on 8080."""
    chosen = ready(endpoints) if isinstance(endpoints, str) else endpoints
    return named("web", IP1, chosen, **options)


def named(
    name: str, cluster_ip: str, endpoints: list[SliceEndpoint], **options: object
) -> list[WireObject]:
    made = service(name, cluster_ip=cluster_ip, **options)  # type: ignore[arg-type]
    return [made, slice_(name, *endpoints)] if endpoints else [made]


def everywhere(endpoints: str | list[SliceEndpoint], **options: object) -> list[WireObject]:
    """`web`, reachable in every way: cluster IP, VIP, external IP and node port."""
    return web(
        endpoints,
        **{
            "type": "LoadBalancer",
            "ports": [port(80, node_port=NODE_PORT)],
            "vips": [VIP],
            "external_ips": [EXTERNAL],
            **options,
        },
    )


def outer(senders: str, expected: object) -> list[Packet]:
    """To the VIP, the external IP and the node port on the node's address."""
    return [
        p
        for target, number in ((VIP, 80), (EXTERNAL, 80), (NODE_ADDRESS, NODE_PORT))
        for p in packet(senders, target, number, expected)  # type: ignore[arg-type]
    ]


def world(
    name: str,
    build: object,
    *packets: list[Packet],
    settings: Settings = Settings(),  # noqa: B008 - a frozen value
    families: tuple[Family, ...] = (Family.IPV4, Family.IPV6),
) -> World:
    return World(name, build, tuple(p for ps in packets for p in ps), settings, families)  # type: ignore[arg-type]


# --- how packets reach a Service ---------------------------------------------------------------

FRONTENDS = [
    world(
        "a cluster IP spreads over all endpoints and masquerades who is no pod",
        lambda: web("p1 p2 r1"),
        packet("pod", IP1, 80, forward(own="p2:8080 r1:8080", node="p1:8080")),
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080 r1:8080")),
        packet("remote_pod", IP1, 80, forward(own="p1:8080 p2:8080", node="r1:8080")),
        packet("client node", IP1, 80, forward(node="p1:8080 p2:8080 r1:8080")),
        packet(EVERYBODY, IP1, 81, NOT_A_SERVICE),
        packet(EVERYBODY, IP1, 80, NOT_A_SERVICE, protocol=UDP),
    ),
    world(
        "an endpoint that is alone reaches itself, masqueraded",
        lambda: web("p1"),
        packet("pod client node", IP1, 80, forward(node="p1:8080")),
        packet("other_pod remote_pod", IP1, 80, forward(own="p1:8080")),
    ),
    world(
        "a pod on the host network is an endpoint like any other",
        # What is delivered on this node never leaves it, so there is nothing to masquerade.
        lambda: [
            service("web", cluster_ip=IP1),
            slice_("web", endpoint(NODE_ADDRESS, node="node"), ports=[9090]),
        ],
        packet("pod other_pod remote_pod client", IP1, 80, forward(own="node:9090")),
        packet("node", IP1, 80, forward(node="node:9090")),
    ),
    world(
        "external destinations are masqueraded for everybody, pods included",
        lambda: everywhere("p1 p2 r1"),
        outer(EVERYBODY, forward(node="p1:8080 p2:8080 r1:8080")),
        packet(
            "node", LOCALHOST, NODE_PORT, forward(node="p1:8080 p2:8080 r1:8080"), only=Family.IPV4
        ),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE, only=Family.IPV6),
        packet(EVERYBODY, BOUND_VIP, NODE_PORT, forward(node="p1:8080 p2:8080 r1:8080")),
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080 r1:8080")),
        packet("client node", IP1, 80, forward(node="p1:8080 p2:8080 r1:8080")),
        packet(EVERYBODY, VIP, NODE_PORT, NOT_A_SERVICE),
        packet(EVERYBODY, IP1, NODE_PORT, NOT_A_SERVICE),
        packet(EVERYBODY, NODE_ADDRESS, 80, NOT_A_SERVICE),
        packet(EVERYBODY, VIP, 81, NOT_A_SERVICE),
    ),
    world(
        "node ports, VIPs and external IPs count whatever the type says",
        lambda: everywhere("p1 r1", type="ClusterIP"),
        outer(EVERYBODY, forward(node="p1:8080 r1:8080")),
    ),
    world(
        "several VIPs and external IPs all lead to the Service",
        lambda: everywhere("p2", vips=[VIP, VIP2], external_ips=[EXTERNAL]),
        packet("client pod", VIP, 80, forward(node="p2:8080")),
        packet("client pod", VIP2, 80, forward(node="p2:8080")),
        packet("client pod", EXTERNAL, 80, forward(node="p2:8080")),
    ),
    world(
        "an ingress of mode Proxy is left to the load balancer",
        lambda: everywhere(
            "p1",
            vips=[LoadBalancerIngress(VIP, "Proxy"), LoadBalancerIngress(VIP2, "VIP")],
            source_ranges=["192.0.2.100/32"],
        ),
        packet(EVERYBODY, VIP, 80, NOT_A_SERVICE),
        packet("client", VIP2, 80, forward(node="p1:8080")),
        packet("other_pod", VIP2, 80, DROP),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(node="p1:8080")),
    ),
    world(
        "an ingress of mode Proxy is not refused for want of endpoints either",
        lambda: everywhere([], vips=[LoadBalancerIngress(VIP, "Proxy")]),
        packet(EVERYBODY, VIP, 80, NOT_A_SERVICE),
        packet("client", EXTERNAL, 80, REJECT),
    ),
    world(
        "only new destinations of the right protocol match",
        lambda: [
            service(
                "dns",
                cluster_ip=IP1,
                ports=[port(53, "dns", "UDP", 30080), port(53, "dns-tcp", "TCP", 30081)],
                type="NodePort",
            ),
            slice_(
                "dns",
                *ready("p1 p2"),
                ports=[
                    slice_port(9090, "dns", "UDP"),
                    slice_port(9091, "dns-tcp", "TCP"),
                ],
            ),
        ],
        packet("other_pod", IP1, 53, forward(own="p1:9090 p2:9090"), protocol=UDP),
        packet("other_pod", IP1, 53, forward(own="p1:9091 p2:9091")),
        packet("pod", IP1, 53, forward(own="p2:9090", node="p1:9090"), protocol=UDP),
        packet("client node", IP1, 53, forward(node="p1:9090 p2:9090"), protocol=UDP),
        packet(
            "client pod node", NODE_ADDRESS, 30080, forward(node="p1:9090 p2:9090"), protocol=UDP
        ),
        packet("client pod node", NODE_ADDRESS, 30081, forward(node="p1:9091 p2:9091")),
        packet("client pod", NODE_ADDRESS, 30080, NOT_A_SERVICE),
        packet("client pod", NODE_ADDRESS, 30081, NOT_A_SERVICE, protocol=UDP),
        packet(
            "node",
            LOCALHOST,
            30080,
            forward(node="p1:9090 p2:9090"),
            protocol=UDP,
            only=Family.IPV4,
        ),
    ),
    world(
        "SCTP is carried like the others",
        lambda: [
            service(
                "sig",
                cluster_ip=IP1,
                ports=[port(80, "m3ua", "SCTP", NODE_PORT)],
                type="LoadBalancer",
                vips=[VIP],
            ),
            slice_("sig", *ready("p1 r1"), ports=[slice_port(8080, "m3ua", "SCTP")]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080"), protocol=SCTP),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080"), protocol=SCTP),
        packet("client", VIP, 80, forward(node="p1:8080 r1:8080"), protocol=SCTP),
        packet("other_pod", IP1, 80, NOT_A_SERVICE),
    ),
    world(
        "each port of a Service has its own endpoints, joined by port name",
        lambda: [
            service("web", cluster_ip=IP1, ports=[port(80, "http"), port(81, "admin"), 82]),
            slice_("web", *ready("p1 p2"), name="web-1", ports=[slice_port(8080, "http")]),
            slice_("web", *ready("p2 r1"), name="web-2", ports=[slice_port(9090, "admin")]),
            slice_("web", *ready("r1"), name="web-3", ports=[slice_port(8081, "")]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080")),
        packet("other_pod", IP1, 81, forward(own="p2:9090 r1:9090")),
        packet("other_pod", IP1, 82, forward(own="r1:8081")),
    ),
]

# --- externalTrafficPolicy and internalTrafficPolicy ---------------------------------------------

POLICIES = [
    world(
        "under external policy Local outsiders keep their address and stay on the node",
        lambda: everywhere("p1 p2 r1", external_policy="Local", health_check_node_port=30090),
        outer("client", forward(own="p1:8080 p2:8080")),
        outer("other_pod", forward(own="p1:8080 p2:8080 r1:8080")),
        outer("pod", forward(own="p2:8080 r1:8080", node="p1:8080")),
        outer("remote_pod", forward(own="p1:8080 p2:8080", node="r1:8080")),
        outer("node", forward(node="p1:8080 p2:8080 r1:8080")),
        packet(
            "node", LOCALHOST, NODE_PORT, forward(node="p1:8080 p2:8080 r1:8080"), only=Family.IPV4
        ),
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080 r1:8080")),
        packet("client node", IP1, 80, forward(node="p1:8080 p2:8080 r1:8080")),
    ),
    world(
        "external policy Local without local endpoints drops outsiders, not pods or the node",
        lambda: everywhere("r1 r2", external_policy="Local", health_check_node_port=30090),
        outer("client", DROP),
        outer("pod other_pod", forward(own="r1:8080 r2:8080")),
        outer("remote_pod", forward(own="r2:8080", node="r1:8080")),
        outer("node", forward(node="r1:8080 r2:8080")),
        packet("client node", IP1, 80, forward(node="r1:8080 r2:8080")),
        packet("other_pod", IP1, 80, forward(own="r1:8080 r2:8080")),
    ),
    world(
        "an endpoint without a node name is never local, nor is one with another spelling",
        lambda: everywhere(
            [endpoint(ADDRESS_OF["p1"]), endpoint(ADDRESS_OF["p2"], node="NODE")],
            external_policy="Local",
        ),
        outer("client", DROP),
        outer("other_pod", forward(own="p1:8080 p2:8080")),
    ),
    world(
        "external policy Local means nothing on a plain cluster IP Service",
        lambda: web(
            "r1", external_policy="Local", ports=[port(80, node_port=NODE_PORT)], vips=[VIP]
        ),
        packet("other_pod", IP1, 80, forward(own="r1:8080")),
        packet("client node", IP1, 80, forward(node="r1:8080")),
        packet("client other_pod", NODE_ADDRESS, NODE_PORT, forward(node="r1:8080")),
        packet("client other_pod", VIP, 80, forward(node="r1:8080")),
    ),
    world(
        "external policy Local counts on a cluster IP Service with external IPs",
        lambda: web(
            "p1 r1",
            external_policy="Local",
            external_ips=[EXTERNAL],
            ports=[port(80, node_port=NODE_PORT)],
        ),
        packet("client", EXTERNAL, 80, forward(own="p1:8080")),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(own="p1:8080")),
        packet("other_pod", EXTERNAL, 80, forward(own="p1:8080 r1:8080")),
    ),
    world(
        "internal policy Local keeps the cluster IP on the node and leaves the outside alone",
        lambda: everywhere("p1 r1", internal_policy="Local"),
        packet("other_pod remote_pod", IP1, 80, forward(own="p1:8080")),
        packet("pod client node", IP1, 80, forward(node="p1:8080")),
        outer(EVERYBODY, forward(node="p1:8080 r1:8080")),
    ),
    world(
        "internal policy Local without local endpoints drops the cluster IP only",
        lambda: everywhere("r1", internal_policy="Local"),
        packet(EVERYBODY, IP1, 80, DROP),
        outer(EVERYBODY, forward(node="r1:8080")),
    ),
    world(
        "internal policy Local on an internal Service",
        lambda: [
            *named("here", IP1, ready("p2 r1"), internal_policy="Local"),
            *named("there", IP2, ready("r1"), internal_policy="Local"),
            *named("nowhere", IP3, [], internal_policy="Local"),
        ],
        packet("other_pod", IP1, 80, forward(own="p2:8080")),
        packet(EVERYBODY, IP2, 80, DROP),
        packet(EVERYBODY, IP3, 80, REJECT),
    ),
    world(
        "both policies Local with nothing local",
        lambda: everywhere("r1", internal_policy="Local", external_policy="Local"),
        packet(EVERYBODY, IP1, 80, DROP),
        outer("client", DROP),
        outer("pod other_pod", forward(own="r1:8080")),
        outer("node", forward(node="r1:8080")),
    ),
    world(
        "both policies Local with something local",
        lambda: everywhere("p1 r1", internal_policy="Local", external_policy="Local"),
        packet("other_pod", IP1, 80, forward(own="p1:8080")),
        packet("client node", IP1, 80, forward(node="p1:8080")),
        outer("client", forward(own="p1:8080")),
        outer("other_pod", forward(own="p1:8080 r1:8080")),
        outer("node", forward(node="p1:8080 r1:8080")),
    ),
]

# --- no endpoints --------------------------------------------------------------------------------

_NOBODY = (
    packet(EVERYBODY, IP1, 80, REJECT),
    outer(PODS, REJECT),
    outer("client", REJECT),
    packet("node", NODE_ADDRESS, NODE_PORT, REJECT),
    packet("node", LOCALHOST, NODE_PORT, REJECT, only=Family.IPV4),
    # Kept from kube-proxy: what the node itself sends outside is not checked for endpoints.
    packet("node", VIP, 80, NOT_A_SERVICE),
    packet("node", EXTERNAL, 80, NOT_A_SERVICE),
)

EMPTY = [
    world("a Service without endpoints refuses", lambda: everywhere([]), *_NOBODY),
    world(
        "a Service without endpoints refuses under policy Local too",
        lambda: everywhere([], external_policy="Local", internal_policy="Local"),
        *_NOBODY,
    ),
    world(
        "a Service with an empty slice refuses",
        lambda: [*everywhere([]), slice_("web")],
        *_NOBODY,
    ),
    world(
        "endpoints that are not ready are none",
        lambda: everywhere(
            [unready("p1"), on("p2", ready=False, serving=True, terminating=False), gone("r1")]
        ),
        *_NOBODY,
    ),
    world(
        "a UDP Service without endpoints refuses",
        lambda: web([], ports=[port(53, "dns", "UDP", NODE_PORT)], type="NodePort"),
        packet(EVERYBODY, IP1, 53, REJECT, protocol=UDP),
        packet("client pod node", NODE_ADDRESS, NODE_PORT, REJECT, protocol=UDP),
        packet("client", NODE_ADDRESS, NODE_PORT, NOT_A_SERVICE),
    ),
    world(
        "slices count only with the right port name, protocol, number, family and label",
        lambda: [
            service("name", cluster_ip=IP1, ports=[port(80, "http")]),
            slice_("name", *ready("p1"), ports=[slice_port(8080, "https")]),
            service("protocol", cluster_ip=IP2, ports=[port(80, "http")]),
            slice_("protocol", *ready("p1"), ports=[slice_port(8080, "http", "UDP")]),
            service("nil-name", cluster_ip=IP3),
            slice_("nil-name", *ready("p1"), ports=[slice_port(8080, None)]),
            service("number", cluster_ip=IP4),
            slice_("number", *ready("p1"), ports=[slice_port(None)]),
            service("fqdn", cluster_ip=IP5),
            slice_("fqdn", endpoint("example.com"), address_type="FQDN"),
            service("other-family", cluster_ip=IP6),
            slice_("other-family", endpoint("fd00:244::12", node="node")),
            service("unlabelled", cluster_ip=IP7),
            slice_(None, *ready("p1"), name="unlabelled-1"),
            service("headless-slice", cluster_ip=IP8),
            slice_("headless-slice", *ready("p1"), headless=""),
        ],
        *(
            # An absent port name never gets as far as a wire: the API, and the manifest source
            # in its place, make it "".
            packet("other_pod client node", f"10.96.0.{n}", 80, REJECT, on_wire=n != 3)
            for n in range(1, 9)
        ),
    ),
]

# --- source ranges -------------------------------------------------------------------------------

RANGES = [
    world(
        "source ranges guard the VIP and nothing else",
        lambda: everywhere("p2", source_ranges=["  192.0.2.100/32 ", "10.244.0.13/32", "junk"]),
        packet("client other_pod", VIP, 80, forward(node="p2:8080")),
        packet("pod remote_pod node", VIP, 80, DROP),
        packet(EVERYBODY, EXTERNAL, 80, forward(node="p2:8080")),
        packet(EVERYBODY, NODE_ADDRESS, NODE_PORT, forward(node="p2:8080")),
        packet("pod", IP1, 80, forward(own="p2:8080")),
        packet("client", IP1, 80, forward(node="p2:8080")),
        packet("client", VIP, 81, NOT_A_SERVICE),
    ),
    world(
        "who is in no range is dropped",
        lambda: everywhere("p2 r1", source_ranges=["198.51.100.0/24"]),
        packet(EVERYBODY, VIP, 80, DROP),
        packet("client", EXTERNAL, 80, forward(node="p2:8080 r1:8080")),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(node="p2:8080 r1:8080")),
    ),
    world(
        "a range with host bits set means its network",
        lambda: everywhere("p2", source_ranges=["192.0.2.77/24"]),
        packet("client node", VIP, 80, forward(node="p2:8080")),
        packet("pod", VIP, 80, DROP),
    ),
    world(
        "a range of everybody is no filter, whatever else stands beside it",
        lambda: everywhere("p2", source_ranges=["198.51.100.0/24", "0.0.0.0/0"]),
        packet(EVERYBODY, VIP, 80, forward(node="p2:8080")),
    ),
    world(
        "ranges of the other family alone are no filter",
        lambda: everywhere("p2", source_ranges=["2001:db8:51::/64"]),
        packet(EVERYBODY, VIP, 80, forward(node="p2:8080")),
    ),
    world(
        "a range with the node lets the node in with its VIP as source",
        lambda: everywhere("p2", vips=[BOUND_VIP], source_ranges=["192.0.2.10/32"]),
        packet("node", BOUND_VIP, 80, forward(node="p2:8080"), source=NODE_ADDRESS),
        packet("node", BOUND_VIP, 80, forward(node="p2:8080"), source=BOUND_VIP),
        packet("client pod remote_pod", BOUND_VIP, 80, DROP),
    ),
    world(
        "source ranges and policy Local",
        lambda: everywhere(
            "p1 r1", external_policy="Local", source_ranges=["192.0.2.100/32", "10.244.0.13/32"]
        ),
        packet("client", VIP, 80, forward(own="p1:8080")),
        packet("other_pod", VIP, 80, forward(own="p1:8080 r1:8080")),
        packet("pod remote_pod node", VIP, 80, DROP),
        packet("client", EXTERNAL, 80, forward(own="p1:8080")),
    ),
    world(
        "source ranges and policy Local with nothing local",
        lambda: everywhere(
            "r1", external_policy="Local", source_ranges=["192.0.2.100/32", "10.244.0.13/32"]
        ),
        packet("client pod node", VIP, 80, DROP),
        packet("other_pod", VIP, 80, forward(own="r1:8080")),
    ),
    world(
        "without endpoints the VIP refuses even those in no range",
        lambda: everywhere([], source_ranges=["198.51.100.0/24"]),
        packet("client pod", VIP, 80, REJECT),
    ),
]

# --- which endpoints -----------------------------------------------------------------------------


def _hinted(*endpoints: SliceEndpoint) -> list[list[SliceEndpoint]]:
    return [list(endpoints)]


ENDPOINTS = [
    world(
        "draining endpoints serve only when nothing is ready",
        lambda: [
            *named("mixed", IP1, [on("p1"), draining("p2"), draining("r1")]),
            *named("draining", IP2, [draining("p1"), draining("r1"), gone("p2")]),
            *named("gone", IP3, [gone("p1"), gone("r1")]),
            *named("explicit", IP4, [on("p1", ready=True, serving=True, terminating=False)]),
            *named("published", IP5, [on("p1", ready=True, serving=True, terminating=True)]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod client node", IP3, 80, REJECT),
        packet("other_pod", IP4, 80, forward(own="p1:8080")),
        packet("other_pod", IP5, 80, forward(own="p1:8080")),
    ),
    world(
        "a draining local endpoint serves outsiders while the cluster IP uses a ready remote one",
        lambda: everywhere([draining("p1"), on("r1")], external_policy="Local"),
        outer("client", forward(own="p1:8080")),
        outer("other_pod", forward(own="r1:8080")),
        outer("node", forward(node="r1:8080")),
        packet("other_pod", IP1, 80, forward(own="r1:8080")),
    ),
    world(
        "a ready local endpoint goes before a draining local one",
        lambda: everywhere([on("p1"), draining("p2"), on("r1")], external_policy="Local"),
        outer("client", forward(own="p1:8080")),
    ),
    world(
        "draining endpoints elsewhere make outsiders dropped, not refused",
        lambda: everywhere([draining("r1")], external_policy="Local"),
        outer("client", DROP),
        outer("other_pod", forward(own="r1:8080")),
        packet("other_pod", IP1, 80, forward(own="r1:8080")),
    ),
    world(
        "internal policy Local falls back to a draining local endpoint",
        lambda: [
            *named("here", IP1, [draining("p1"), on("r1")], internal_policy="Local"),
            *named("there", IP2, [draining("r1")], internal_policy="Local"),
            *named("gone", IP3, [gone("p1"), gone("r1")], internal_policy="Local"),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080")),
        packet("other_pod client node", IP2, 80, DROP),
        packet("other_pod client node", IP3, 80, REJECT),
    ),
    world(
        "zone hints keep traffic in the zone when every ready endpoint has one",
        lambda: [
            *named(
                "zones",
                IP1,
                [
                    on("p1", zones=["zone-a"]),
                    on("p2", zones=["zone-b"]),
                    on("r1", zones=["zone-b", "zone-a"]),
                ],
            ),
            *named("one-bare", IP2, [on("p1", zones=["zone-a"]), on("r1")]),
            *named("elsewhere", IP3, [on("p1", zones=["zone-b"]), on("r1", zones=["zone-c"])]),
            *named(
                "bare-unready",
                IP4,
                [on("p1", zones=["zone-a"]), on("r1", zones=["zone-b"]), unready("p2")],
            ),
            *named(
                "only-unready", IP5, [unready("p1", zones=["zone-a"]), on("r1", zones=["zone-b"])]
            ),
            *named(
                "draining",
                IP6,
                [draining("p1", zones=["zone-b"]), draining("r1", zones=["zone-a"])],
            ),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP3, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP4, 80, forward(own="p1:8080")),
        packet("other_pod", IP5, 80, forward(own="r1:8080")),
        packet("other_pod", IP6, 80, forward(own="p1:8080 r1:8080")),
    ),
    world(
        "node hints go before zone hints, and failing ones fall to the zone",
        lambda: [
            *named(
                "nodes",
                IP1,
                [
                    on("p1", nodes=["node"], zones=["zone-a"]),
                    on("p2", nodes=["far"], zones=["zone-a"]),
                    on("r1", nodes=["far", "node"], zones=["zone-b"]),
                ],
            ),
            *named(
                "not-here",
                IP2,
                [
                    on("p1", nodes=["x"], zones=["zone-a"]),
                    on("r1", nodes=["far"], zones=["zone-b"]),
                ],
            ),
            *named(
                "one-bare",
                IP3,
                [on("p1", nodes=["node"], zones=["zone-b"]), on("r1", zones=["zone-a"])],
            ),
            *named("nothing-left", IP4, [on("p1", nodes=["node"]), on("r1")]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080")),
        packet("other_pod", IP3, 80, forward(own="r1:8080")),
        packet("other_pod", IP4, 80, forward(own="p1:8080 r1:8080")),
    ),
    world(
        "local endpoints are never filtered by hints",
        lambda: everywhere(
            [on("p1", zones=["zone-b"]), on("r1", zones=["zone-a"])], external_policy="Local"
        ),
        outer("client", forward(own="p1:8080")),
        outer("other_pod", forward(own="r1:8080")),
        packet("other_pod", IP1, 80, forward(own="r1:8080")),
    ),
    world(
        "a node without a zone ignores zone hints",
        lambda: [
            *named("zones", IP1, [on("p1", zones=["zone-a"]), on("r1", zones=["zone-b"])]),
            *named("empty-zone", IP2, [on("p1", zones=[""]), on("r1", zones=["zone-b"])]),
            *named("nodes", IP3, [on("p1", nodes=["node"]), on("r1", nodes=["far"])]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080 r1:8080")),
        packet("other_pod", IP3, 80, forward(own="p1:8080")),
        settings=Settings(zone=None),
    ),
    world(
        "an empty zone label is no zone",
        lambda: named("empty-zone", IP1, [on("p1", zones=[""]), on("r1", zones=["zone-b"])]),
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        settings=Settings(zone=""),
    ),
    world(
        "two slices with different numbers for one port are used together",
        lambda: [
            service("web", cluster_ip=IP1),
            slice_("web", *ready("p1"), name="web-1", ports=[8080]),
            slice_("web", *ready("p1 p2"), name="web-2", ports=[8081]),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 p1:8081 p2:8081")),
    ),
    world(
        "a duplicate of a ready endpoint does not count, draining or not",
        lambda: [
            service("web", cluster_ip=IP1),
            slice_("web", *ready("p1 p2"), name="web-1"),
            slice_("web", draining("p1"), on("p2"), name="web-2"),
            service("back", cluster_ip=IP2),
            slice_("back", draining("p1"), name="back-1"),
            slice_("back", *ready("p1"), name="back-2"),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080")),
    ),
    world(
        "two Services may share endpoints",
        lambda: [*named("a", IP1, ready("p1 p2")), *named("b", IP2, ready("p1 p2"))],
        packet("other_pod", IP1, 80, forward(own="p1:8080 p2:8080")),
        packet("other_pod", IP2, 80, forward(own="p1:8080 p2:8080")),
    ),
]

# --- what is no Service here ---------------------------------------------------------------------

IGNORED = [
    world(
        "headless, external, delegated and unset Services are left alone",
        lambda: [
            *named("headless", "None", ready("p1"), external_ips=[VIP]),
            *named("unset", "", ready("p1"), external_ips=[EXTERNAL]),
            *named("outside", IP1, ready("p1"), type="ExternalName"),
            *named("delegated", IP2, ready("p1"), proxy_name=""),
            *named(
                "mesh",
                IP3,
                ready("p1"),
                proxy_name="mesh",
                ports=[port(80, node_port=NODE_PORT)],
                vips=[VIP2],
            ),
        ],
        packet(EVERYBODY, VIP, 80, NOT_A_SERVICE),
        packet(EVERYBODY, EXTERNAL, 80, NOT_A_SERVICE),
        packet(EVERYBODY, IP1, 80, NOT_A_SERVICE),
        packet(EVERYBODY, IP2, 80, NOT_A_SERVICE),
        packet(EVERYBODY, IP3, 80, NOT_A_SERVICE),
        packet(EVERYBODY, VIP2, 80, NOT_A_SERVICE),
        packet("client", NODE_ADDRESS, NODE_PORT, NOT_A_SERVICE),
    ),
    world(
        "a Service without a cluster IP of the family does not exist in it",
        lambda: [
            service(
                "web",
                cluster_ip="fd00:96::3",
                external_ips=[EXTERNAL],
                ports=[port(80, node_port=NODE_PORT)],
            ),
            slice_("web", *ready("p1")),
        ],
        packet("client pod", EXTERNAL, 80, NOT_A_SERVICE),
        packet("client pod", NODE_ADDRESS, NODE_PORT, NOT_A_SERVICE),
    ),
    world(
        "a dual-stack Service has the cluster IP at the place of the family",
        lambda: [
            service(
                "web",
                cluster_ip="fd00:96::3",
                cluster_ips=["fd00:96::3", IP1],
                ip_families=["IPv6", "IPv4"],
                external_ips=[EXTERNAL, "2001:db8:113::3"],
            ),
            slice_("web", *ready("p1")),
        ],
        packet("other_pod", IP1, 80, forward(own="p1:8080")),
        packet("client", EXTERNAL, 80, forward(node="p1:8080")),
    ),
    world(
        "addresses with leading zeros are the addresses without them",
        lambda: [
            service(
                "web",
                cluster_ip="010.096.000.007",
                type="LoadBalancer",
                external_ips=["203.0.113.002"],
                vips=["203.0.113.001"],
                source_ranges=["192.0.2.100/032"],
            ),
            slice_(
                "web",
                endpoint("10.244.0.011", node="node"),
                endpoint("010.244.000.012", node="node"),
            ),
        ],
        packet("other_pod", IP7, 80, forward(own="p1:8080 p2:8080")),
        packet("client", EXTERNAL, 80, forward(node="p1:8080 p2:8080")),
        packet("client", VIP, 80, forward(node="p1:8080 p2:8080")),
        packet("other_pod", VIP, 80, DROP),
    ),
]

# --- session affinity ----------------------------------------------------------------------------

AFFINITY = [
    world(
        "client affinity keeps a client on one endpoint",
        lambda: everywhere("p1 p2 r1", affinity_seconds=10800),
        packet("other_pod", IP1, 80, sticky(own="p1:8080 p2:8080 r1:8080")),
        packet("client", IP1, 80, sticky(node="p1:8080 p2:8080 r1:8080")),
        outer("client", sticky(node="p1:8080 p2:8080 r1:8080")),
        outer("other_pod", sticky(node="p1:8080 p2:8080 r1:8080")),
    ),
    world(
        "client affinity under policy Local stays on the node",
        lambda: everywhere("p1 p2 r1", affinity_seconds=60, external_policy="Local"),
        outer("client", sticky(own="p1:8080 p2:8080")),
        outer("other_pod", sticky(own="p1:8080 p2:8080 r1:8080")),
    ),
    world(
        "client affinity holds for UDP",
        lambda: [
            service("dns", cluster_ip=IP1, ports=[port(53, "dns", "UDP")], affinity_seconds=60),
            slice_("dns", *ready("p1 p2"), ports=[slice_port(9090, "dns", "UDP")]),
        ],
        packet("other_pod", IP1, 53, sticky(own="p1:9090 p2:9090"), protocol=UDP),
    ),
]

# --- settings of the proxy -----------------------------------------------------------------------

SETTINGS = [
    world(
        "masquerade-all masquerades the cluster IP for everybody",
        lambda: everywhere("p1 r1", external_policy="Local"),
        packet(EVERYBODY, IP1, 80, forward(node="p1:8080 r1:8080")),
        outer("client", forward(own="p1:8080")),
        outer("other_pod", forward(own="p1:8080 r1:8080")),
        settings=Settings(masquerade_all=True),
    ),
    world(
        "without a way to tell pods the cluster IP is never masqueraded",
        lambda: everywhere("p1 r1"),
        packet("pod", IP1, 80, forward(own="r1:8080", node="p1:8080")),
        packet("other_pod client node", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("remote_pod", IP1, 80, forward(own="p1:8080", node="r1:8080")),
        outer(EVERYBODY, forward(node="p1:8080 r1:8080")),
        settings=Settings(detect=None),
    ),
    world(
        "without a way to tell pods they are outsiders to policy Local",
        lambda: everywhere("p1 p2 r1", external_policy="Local"),
        outer("client other_pod remote_pod", forward(own="p1:8080 p2:8080")),
        outer("pod", forward(own="p2:8080", node="p1:8080")),
        outer("node", forward(node="p1:8080 p2:8080 r1:8080")),
        settings=Settings(detect=None),
    ),
    world(
        "without a way to tell pods policy Local with nothing local drops them",
        lambda: everywhere("r1", external_policy="Local"),
        outer("client pod other_pod remote_pod", DROP),
        outer("node", forward(node="r1:8080")),
        settings=Settings(detect=None),
    ),
    world(
        "pods told by an interface prefix are those of this node",
        lambda: everywhere("p1 r1", external_policy="Local"),
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("pod", IP1, 80, forward(own="r1:8080", node="p1:8080")),
        packet("remote_pod client node", IP1, 80, forward(node="p1:8080 r1:8080")),
        outer("other_pod", forward(own="p1:8080 r1:8080")),
        outer("remote_pod client", forward(own="p1:8080")),
        outer("node", forward(node="p1:8080 r1:8080")),
        settings=Settings(detect=Detect("InterfaceNamePrefix", "veth-")),
    ),
    world(
        "pods told by a bridge are those behind it",
        lambda: everywhere("p1 r1", external_policy="Local"),
        packet("pod", IP1, 80, forward(own="r1:8080", node="p1:8080")),
        packet("other_pod remote_pod client node", IP1, 80, forward(node="p1:8080 r1:8080")),
        outer("pod", forward(own="r1:8080", node="p1:8080")),
        outer("other_pod remote_pod client", forward(own="p1:8080")),
        settings=Settings(detect=Detect("BridgeInterface", "veth-p1")),
    ),
    world(
        "pods told by the node's own CIDR are those of this node",
        lambda: everywhere("p1 r1", external_policy="Local"),
        packet("other_pod", IP1, 80, forward(own="p1:8080 r1:8080")),
        packet("remote_pod client node", IP1, 80, forward(node="p1:8080 r1:8080")),
        outer("other_pod", forward(own="p1:8080 r1:8080")),
        outer("remote_pod client", forward(own="p1:8080")),
        settings=Settings(detect=Detect("NodeCIDR", "10.244.0.0/24")),
    ),
    world(
        "a cluster CIDR with host bits set means its network",
        lambda: web("p2"),
        packet("other_pod", IP1, 80, forward(own="p2:8080")),
        packet("client", IP1, 80, forward(node="p2:8080")),
        settings=Settings(detect=Detect("ClusterCIDR", "10.244.0.13/16")),
        families=(Family.IPV4,),
    ),
    world(
        "node ports answer only on the chosen addresses",
        lambda: everywhere("p1 r1"),
        packet(EVERYBODY, NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("client pod node", BOUND_VIP, NODE_PORT, NOT_A_SERVICE),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE),
        packet("client", VIP, 80, forward(node="p1:8080 r1:8080")),
        settings=Settings(nodeport_addresses=("192.0.2.0/24", "2001:db8:2::/64")),
    ),
    world(
        "node ports on primary addresses answer there only",
        lambda: everywhere("p1 r1"),
        packet(EVERYBODY, NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("client pod node", BOUND_VIP, NODE_PORT, NOT_A_SERVICE),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE),
        settings=Settings(nodeport_addresses=("primary",)),
    ),
    world(
        "node port addresses with loopback serve localhost in IPv4",
        lambda: everywhere("p1 r1"),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("client", BOUND_VIP, NODE_PORT, NOT_A_SERVICE),
        packet("node", LOCALHOST, NODE_PORT, forward(node="p1:8080 r1:8080"), only=Family.IPV4),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE, only=Family.IPV6),
        settings=Settings(
            nodeport_addresses=("127.0.0.0/8", "::1/128", "192.0.2.0/24", "2001:db8:2::/64")
        ),
    ),
    world(
        "node port addresses of IPv4 alone leave IPv6 open",
        lambda: everywhere("p1 r1"),
        packet("client", NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("client", BOUND_VIP, NODE_PORT, forward(node="p1:8080 r1:8080"), only=Family.IPV6),
        packet("client", BOUND_VIP, NODE_PORT, NOT_A_SERVICE, only=Family.IPV4),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE),
        settings=Settings(nodeport_addresses=("192.0.2.10/32",)),
    ),
    world(
        "node ports on localhost can be turned off",
        lambda: everywhere("p1 r1"),
        packet(EVERYBODY, NODE_ADDRESS, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("client", BOUND_VIP, NODE_PORT, forward(node="p1:8080 r1:8080")),
        packet("node", LOCALHOST, NODE_PORT, NOT_A_SERVICE),
        packet("client", LOCALHOST, 22, NOT_A_SERVICE, only=Family.IPV4, on_wire=False),
        settings=Settings(localhost_nodeports=False),
    ),
    world(
        "neighbours cannot reach what listens on localhost",
        # route_localnet, which node ports on localhost need, would otherwise let them in.
        lambda: everywhere("p1"),
        packet("client pod", LOCALHOST, 22, DROP, only=Family.IPV4, on_wire=False),
        packet("node", LOCALHOST, 22, NOT_A_SERVICE),
    ),
]

WORLDS: list[World] = [
    *FRONTENDS,
    *POLICIES,
    *EMPTY,
    *RANGES,
    *ENDPOINTS,
    *IGNORED,
    *AFFINITY,
    *SETTINGS,
]
