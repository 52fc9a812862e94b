"""One Service, its slices and this node become routes: all Kubernetes policy is spent here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from pykubeproxy.model.addresses import canonical_cidr, canonical_ip, contains, prefix_length
from pykubeproxy.model.kinds import Action, Family, FrontendKind, Masquerade, Pool, Protocol
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import EndpointSlice, Service, ServicePort, ServiceSpec
from pykubeproxy.model.route import Frontend, PortKey, Route, Verdict
from pykubeproxy.sync.endpoints import Candidate, Candidates, candidates_by_port
from pykubeproxy.sync.policy import Pools, TrafficPolicy, usable_endpoints

__all__ = ["NOTHING", "ServiceRoutes", "service_routes"]

DEFAULT_AFFINITY_SECONDS = 10800
_EXTERNAL_TYPES = ("LoadBalancer", "NodePort")

_REFUSED = Verdict(Action.REJECT)
_DROPPED = Verdict(Action.DROP)
_ANYWHERE = Verdict(Action.FORWARD, Pool.CLUSTER, Masquerade.ALWAYS)
_HERE = Verdict(Action.FORWARD, Pool.LOCAL, Masquerade.NEVER)
_SHORT_CIRCUIT = Verdict(Action.FORWARD, Pool.CLUSTER, Masquerade.NODE)


class ServiceRoutes(Struct, frozen=True, gc=False):
    """What one Service means on this node, in one family.

    ``local_ready`` counts the distinct addresses of ready endpoints on this node over all ports:
    the figure a health check node port answers with. ``endpoint_count`` is the number of
    endpoints of any condition over all ports. ``no_local_internal`` and ``no_local_external``
    count the ports that a Local policy leaves without endpoints here. ``problems`` are sentences
    about fields that were passed over.
    """

    routes: tuple[Route, ...] = ()
    health_check_port: int = 0
    local_ready: int = 0
    endpoint_count: int = 0
    no_local_internal: int = 0
    no_local_external: int = 0
    problems: tuple[str, ...] = ()


NOTHING = ServiceRoutes()


def service_routes(
    service: Service, slices: Iterable[EndpointSlice], node: NodeContext
) -> ServiceRoutes:
    """Decide what happens to packets for *service* on *node*.

    Headless and ExternalName Services, and Services without a cluster IP of the node's family,
    have no routes. A field that cannot be used is passed over and named in ``problems``.
    """
    spec = service.spec
    if spec.type == "ExternalName" or not spec.cluster_ip or spec.cluster_ip == "None":
        return NOTHING
    cluster_ip = _cluster_ip(spec, node.family)
    if cluster_ip is None:
        return NOTHING
    addresses = _Addresses.of(service, cluster_ip, node)
    problems = list(addresses.problems)
    candidates = candidates_by_port(slices, node.family, node.name, problems)

    external_local = spec.external_traffic_policy == "Local" and (
        spec.type in _EXTERNAL_TYPES
        or (spec.type in (None, "", "ClusterIP") and bool(spec.external_ips))
    )
    health_check_port = 0
    if spec.type == "LoadBalancer" and external_local:
        health_check_port = spec.health_check_node_port or 0
        if not health_check_port:
            problems.append(
                "externalTrafficPolicy is Local but spec.healthCheckNodePort is 0: "
                "load balancers cannot tell whether this node has endpoints"
            )

    service_key = service.key
    routes: list[Route] = []
    endpoint_count = no_local_internal = no_local_external = 0
    for port in spec.ports or ():
        protocol = Protocol.of(port.protocol)
        if protocol is None:
            problems.append(f"spec.ports[{port.name or port.port}].protocol {port.protocol!r}")
            continue
        policy = TrafficPolicy(
            internal_local=spec.internal_traffic_policy == "Local",
            external_local=external_local,
            externally_accessible=bool(port.node_port) or addresses.any_external,
        )
        own = candidates.get((port.name or "", protocol), [])
        endpoint_count += len(own)
        pools = usable_endpoints(own, policy, node.name, node.zone)
        if pools.has_any and not pools.local:
            no_local_internal += policy.internal_local
            no_local_external += policy.external_local
        routes.append(
            Route(
                key=PortKey(service_key, port.name or "", protocol),
                frontends=_frontends(port, addresses, policy, pools, node),
                cluster_endpoints=tuple([c.endpoint for c in pools.cluster]),
                local_endpoints=tuple([c.endpoint for c in pools.local]),
                serving_endpoints=_serving(own) if protocol is Protocol.UDP else frozenset(),
                node_endpoints=tuple([c.endpoint for c in own if c.endpoint.node_local]),
                affinity_seconds=_affinity_seconds(spec),
                health_check_port=health_check_port,
                external_local=external_local,
                scheduler=service.ipvs_scheduler,
            )
        )
    if not routes:
        health_check_port = 0
    return ServiceRoutes(
        routes=tuple(routes),
        health_check_port=health_check_port,
        local_ready=_local_ready(candidates) if health_check_port else 0,
        endpoint_count=endpoint_count,
        no_local_internal=no_local_internal,
        no_local_external=no_local_external,
        problems=tuple(problems),
    )


class _Addresses(Struct, frozen=True, gc=False):
    """The addresses of a Service in one family, canonical, and who may use them."""

    cluster_ip: str
    external_ips: tuple[str, ...]
    load_balancer_ips: tuple[str, ...]
    source_ranges: tuple[str, ...]
    any_external: bool
    problems: tuple[str, ...]

    @classmethod
    def of(cls, service: Service, cluster_ip: str, node: NodeContext) -> _Addresses:
        spec = service.spec
        problems: list[str] = []
        external_ips = _of_family(
            spec.external_ips or (), "spec.externalIPs", node.family, problems
        )
        # ipMode Proxy: the load balancer delivers to the node's own address (KEP-1860).
        load_balancer_ips = _of_family(
            [i.ip for i in service.ingress if i.ip and i.ip_mode in (None, "VIP")],
            "status.loadBalancer.ingress",
            node.family,
            problems,
        )
        return cls(
            cluster_ip=cluster_ip,
            external_ips=external_ips if node.allow_external_ips else (),
            load_balancer_ips=load_balancer_ips,
            source_ranges=_source_ranges(spec, load_balancer_ips, node, problems),
            any_external=bool(external_ips or load_balancer_ips),
            problems=tuple(problems),
        )


def _cluster_ip(spec: ServiceSpec, family: Family) -> str | None:
    text: str | None = spec.cluster_ip
    if spec.ip_families:
        if family not in spec.ip_families:
            return None
        index = spec.ip_families.index(family)
        addresses = spec.cluster_ips or ()
        text = addresses[index] if index < len(addresses) else None
    parsed = canonical_ip(text or "")
    return parsed[1] if parsed is not None and parsed[0] is family else None


def _of_family(
    texts: Sequence[str], where: str, family: Family, problems: list[str]
) -> tuple[str, ...]:
    """Canonical addresses of *family*, in order, each once."""
    if not texts:
        return ()
    found: dict[str, None] = {}
    for text in texts:
        parsed = canonical_ip(text)
        if parsed is None:
            if text.strip():
                problems.append(f"{where}: {text!r} is no IP address")
        elif parsed[0] is family:
            found[parsed[1]] = None
    return tuple(found)


def _source_ranges(
    spec: ServiceSpec, load_balancer_ips: tuple[str, ...], node: NodeContext, problems: list[str]
) -> tuple[str, ...]:
    """Who may use the load balancer addresses; empty means everybody.

    A range that covers this node lets the load balancer addresses themselves in too: what the
    node sends to one of them loops back with that address as its source.
    """
    ranges: dict[str, None] = {}
    for text in spec.load_balancer_source_ranges or ():
        parsed = canonical_cidr(text.strip())
        if parsed is None:
            problems.append(f"spec.loadBalancerSourceRanges: {text!r} is no CIDR")
        elif parsed[0] is node.family:
            ranges[parsed[1]] = None
    if not ranges or any(prefix_length(cidr) == 0 for cidr in ranges):
        return ()
    if node.address and any(contains(cidr, node.address) for cidr in ranges):
        ranges.update(dict.fromkeys(load_balancer_ips))
    return tuple(ranges)


def _affinity_seconds(spec: ServiceSpec) -> int:
    if spec.session_affinity != "ClientIP":
        return 0
    config = spec.session_affinity_config
    timeout = config.client_ip.timeout_seconds if config and config.client_ip else None
    return DEFAULT_AFFINITY_SECONDS if timeout is None else timeout


def _serving(candidates: Iterable[Candidate]) -> frozenset[str]:
    return frozenset(c.text for c in candidates if c.serving)


def _local_ready(candidates: Candidates) -> int:
    return len(
        {
            c.endpoint.address
            for port in candidates.values()
            for c in port
            if c.ready and c.endpoint.node_local
        }
    )


def _frontends(
    port: ServicePort,
    addresses: _Addresses,
    policy: TrafficPolicy,
    pools: Pools,
    node: NodeContext,
) -> tuple[Frontend, ...]:
    internal = _internal_verdict(policy, pools, node)
    outside, inside = _external_verdicts(policy, pools)
    number = port.port
    frontends = [
        Frontend(FrontendKind.CLUSTER_IP, addresses.cluster_ip, number, internal, internal)
    ]
    frontends += [
        Frontend(FrontendKind.EXTERNAL_IP, address, number, outside, inside)
        for address in addresses.external_ips
    ]
    frontends += [
        Frontend(
            FrontendKind.LOAD_BALANCER, address, number, outside, inside, addresses.source_ranges
        )
        for address in addresses.load_balancer_ips
    ]
    if port.node_port:
        frontends.append(Frontend(FrontendKind.NODE_PORT, None, port.node_port, outside, inside))
    return tuple(frontends)


def _internal_verdict(policy: TrafficPolicy, pools: Pools, node: NodeContext) -> Verdict:
    if not pools.has_any:
        return _REFUSED
    if policy.internal_local and not pools.local:
        return _DROPPED
    if node.masquerade_all:
        masquerade = Masquerade.ALWAYS
    elif node.pod_traffic is not None:
        masquerade = Masquerade.NOT_PODS
    else:
        masquerade = Masquerade.NEVER
    return Verdict(
        Action.FORWARD, Pool.LOCAL if policy.internal_local else Pool.CLUSTER, masquerade
    )


def _external_verdicts(policy: TrafficPolicy, pools: Pools) -> tuple[Verdict, Verdict]:
    """The verdicts for clients outside, and for this node and its pods."""
    if not pools.has_any:
        return _REFUSED, _REFUSED
    if not policy.external_local:
        # The answer must come back through this node, whichever node the endpoint is on.
        return _ANYWHERE, _ANYWHERE
    if not pools.local:
        return _DROPPED, _SHORT_CIRCUIT
    return _HERE, _SHORT_CIRCUIT
