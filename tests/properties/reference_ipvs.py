"""What kube-proxy 1.36 makes of a node in ipvs mode, straight from its description.

A full sync and nothing else, as dumb as possible and sharing no code with the program: section
numbers are those of the reference (``ipvs.md`` unless another file is named). Endpoints, service
ports and selection are those of the other oracle, which has them from ``model.md``.

One thing kube-proxy has not: a scheduler of its own for a Service, by annotation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from tests.properties.reference_proxy import (
    Settings,
    cidrs_of,
    covers,
    endpoint_map,
    local_match,
    select,
    service_ports,
)

__all__ = ["SETS", "IpvsSettings", "State", "mode", "node_ips", "rules"]

PERSISTENT, SOURCE_HASH_PORT = 0x1, 0x10

SETS = {  # §6: name → (type, comment)
    "KUBE-LOOP-BACK": (
        "hash:ip,port,ip",
        "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
    ),
    "KUBE-CLUSTER-IP": (
        "hash:ip,port",
        "Kubernetes service cluster ip + port for masquerade purpose",
    ),
    "KUBE-EXTERNAL-IP": (
        "hash:ip,port",
        "Kubernetes service external ip + port for masquerade and filter purpose",
    ),
    "KUBE-EXTERNAL-IP-LOCAL": (
        "hash:ip,port",
        "Kubernetes service external ip + port with externalTrafficPolicy=local",
    ),
    "KUBE-LOAD-BALANCER": ("hash:ip,port", "Kubernetes service lb portal"),
    "KUBE-LOAD-BALANCER-LOCAL": (
        "hash:ip,port",
        "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
    ),
    "KUBE-LOAD-BALANCER-FW": (
        "hash:ip,port",
        "Kubernetes service load balancer ip + port for load balancer with sourceRange",
    ),
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": (
        "hash:ip,port,net",
        "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
    ),
    "KUBE-LOAD-BALANCER-SOURCE-IP": (
        "hash:ip,port,ip",
        "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
    ),
    "KUBE-NODE-PORT-TCP": ("bitmap:port", "Kubernetes nodeport TCP port for masquerade purpose"),
    "KUBE-NODE-PORT-UDP": ("bitmap:port", "Kubernetes nodeport UDP port for masquerade purpose"),
    "KUBE-NODE-PORT-LOCAL-TCP": (
        "bitmap:port",
        "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
    ),
    "KUBE-NODE-PORT-LOCAL-UDP": (
        "bitmap:port",
        "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
    ),
    "KUBE-NODE-PORT-SCTP-HASH": (
        "hash:ip,port",
        "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
    ),
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": (
        "hash:ip,port",
        "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
    ),
    "KUBE-HEALTH-CHECK-NODE-PORT": ("bitmap:port", "Kubernetes health check node port"),
    "KUBE-IPVS-IPS": ("hash:ip", "Addresses on the ipvs interface"),
}


@dataclass(frozen=True)
class IpvsSettings(Settings):
    """One node and one configuration; `local_addresses` are of all interfaces but kube-ipvs0."""

    scheduler: str = "rr"
    schedulers: tuple[str, ...] = ()  # those that an annotation may ask for
    allow_external_ips: bool = True


@dataclass(frozen=True)
class Server:
    """A virtual server and its real servers, each (address, port), all of weight 1 and NAT."""

    scheduler: str
    flags: int
    timeout: int
    reals: frozenset


@dataclass
class State:
    servers: dict = field(default_factory=dict)  # (protocol, address, port) → Server
    bound: set = field(default_factory=set)  # on kube-ipvs0
    sets: dict = field(default_factory=lambda: {name: set() for name in SETS})
    out_filter: list = field(default_factory=list)  # rules of KUBE-IPVS-OUT-FILTER
    no_local_internal: set = field(default_factory=set)  # Services
    no_local_external: set = field(default_factory=set)
    health_ports: dict = field(default_factory=dict)  # Service → port
    health_counts: dict = field(default_factory=dict)  # Service → local ready addresses


def set_name(name, family):
    return name if family == "IPv4" else name.replace("KUBE-", "KUBE-6-", 1)[:31]


def is_link_local(ip):
    return ":" in ip and covers("fe80::/10", ip)


def node_addresses(node):
    """On interfaces other than kube-ipvs0 (§3)."""
    return [
        ip
        for ip in node.local_addresses
        if not ip_address(ip).is_loopback and not is_link_local(ip)
    ]


def node_ips(node):
    """Where node ports are served (model §11)."""
    v4 = node.family == "IPv4"
    texts = list(node.nodeport_addresses)
    if texts == ["primary"]:
        known = not ip_address(node.address).is_loopback
        texts = [f"{node.address}/{32 if v4 else 128}"] if known else []
    cidrs = cidrs_of(node.family, texts) or ["0.0.0.0/0" if v4 else "::/0"]
    if any(cidr.endswith("/0") for cidr in cidrs):
        return sorted(set(node_addresses(node)))
    return sorted(
        {
            ip
            for ip in node.local_addresses
            if any(covers(cidr, ip) for cidr in cidrs) and not ip_address(ip).is_loopback
        }
    )


def mode(services, slices, node):
    """Return the `State` after one sync of these objects; of two claims the first one counts."""
    state = State()
    endpoints = endpoint_map(slices, node)
    schedulers = {
        (s.metadata.namespace, s.metadata.name): s.metadata.annotations.ipvs_scheduler
        for s in services
        if s.metadata.annotations is not None
    }
    for port in service_ports(services, node):
        wish = schedulers.get((port.namespace, port.service))
        scheduler = wish if wish in node.schedulers else node.scheduler
        one_port(state, port, endpoints.get(port.key, []), scheduler, node)
    state.sets["KUBE-IPVS-IPS"] = set(state.bound)
    health(state, service_ports(services, node), endpoints)
    state.sets = {set_name(name, node.family): found for name, found in state.sets.items()}
    return state


def one_port(state, port, all_endpoints, scheduler, node):
    chosen = select(port, all_endpoints, node)
    owner = f"{port.namespace}/{port.service}"
    p = port.protocol.lower()
    own = set(node_addresses(node))

    def add(name, *parts):
        state.sets[name].add(",".join(parts))

    # §4, §5
    def serve(ip, number, only_local, bind):
        reals = chosen.cluster
        if only_local:
            if chosen.local:
                reals = chosen.local
            elif chosen.any:
                if port.internal_local:
                    state.no_local_internal.add(owner)
                if port.external_local:
                    state.no_local_external.add(owner)
        flags = PERSISTENT if port.affinity else 0
        if scheduler == "mh":
            flags |= SOURCE_HASH_PORT
        server = Server(
            scheduler,
            flags,
            port.seconds if port.affinity else 0,
            frozenset((e.ip, e.port) for e in reals),
        )
        state.servers.setdefault((port.protocol, ip, number), server)
        if bind:
            state.bound.add(ip)

    for ep in all_endpoints:
        if ep.local:
            add("KUBE-LOOP-BACK", ep.ip, f"{p}:{ep.port}", ep.ip)

    add("KUBE-CLUSTER-IP", port.cluster_ip, f"{p}:{port.port}")
    serve(port.cluster_ip, port.port, port.internal_local, True)

    for ip in port.external_ips if node.allow_external_ips else ():
        name = "KUBE-EXTERNAL-IP-LOCAL" if port.external_local else "KUBE-EXTERNAL-IP"
        add(name, ip, f"{p}:{port.port}")
        serve(ip, port.port, port.external_local, ip not in own)

    from_node = any(covers(cidr, node.address) for cidr in port.ranges)
    for vip in port.vips:
        target = (vip, f"{p}:{port.port}")
        add("KUBE-LOAD-BALANCER", *target)
        if port.external_local:
            add("KUBE-LOAD-BALANCER-LOCAL", *target)
        if port.ranges:
            add("KUBE-LOAD-BALANCER-FW", *target)
            for cidr in port.ranges:
                whole = "/32" if node.family == "IPv4" else "/128"
                add("KUBE-LOAD-BALANCER-SOURCE-CIDR", *target, cidr.removesuffix(whole))
            if from_node:
                add("KUBE-LOAD-BALANCER-SOURCE-IP", *target, vip)
            else:
                state.out_filter.append(
                    f"-s {vip} -m ipvs --vaddr {vip} --vproto {p} --vport {port.port} -j DROP"
                )
        serve(vip, port.port, port.external_local, vip not in own)

    if port.node_port:
        ips = node_ips(node)
        if not ips:
            return  # and no health check entry
        names = [f"KUBE-NODE-PORT-{port.protocol}"]
        if port.external_local:
            names.append(f"KUBE-NODE-PORT-LOCAL-{port.protocol}")
        for name in names:
            if port.protocol == "SCTP":
                for ip in ips:
                    add(f"{name}-HASH", ip, f"sctp:{port.node_port}")
            else:
                add(name, str(port.node_port))
        for ip in ips:
            serve(ip, port.node_port, port.external_local, False)

    if port.health_port:
        add("KUBE-HEALTH-CHECK-NODE-PORT", str(port.health_port))


def health(state, ports, endpoints):
    """Listeners and what they count (model §7)."""
    for port in ports:
        if port.health_port:
            owner = (port.namespace, port.service)
            state.health_ports[owner] = port.health_port
            state.health_counts[owner] = len(
                {
                    ep.ip
                    for key, found in endpoints.items()
                    if key[:2] == owner
                    for ep in found
                    if ep.local and ep.ready
                }
            )


def rules(node):
    """(table, chain) → rule bodies, all of them, as if no set were ever empty (§7)."""
    mark = f"0x{1 << node.mark_bit:08x}"
    random_fully = " --random-fully" if node.random_fully else ""
    found = {
        ("nat", "OUTPUT"): ["kubernetes service portals|KUBE-SERVICES"],
        ("nat", "PREROUTING"): ["kubernetes service portals|KUBE-SERVICES"],
        ("nat", "POSTROUTING"): ["kubernetes postrouting rules|KUBE-POSTROUTING"],
        ("filter", "FORWARD"): [
            "kube-proxy firewall rules|KUBE-PROXY-FIREWALL",
            "kubernetes forwarding rules|KUBE-FORWARD",
        ],
        ("filter", "INPUT"): [
            "kubernetes ipvs access filter|KUBE-IPVS-FILTER",
            "kube-proxy firewall rules|KUBE-PROXY-FIREWALL",
            "kubernetes health check rules|KUBE-NODE-PORT",
        ],
        ("filter", "OUTPUT"): ["kubernetes ipvs access filter|KUBE-IPVS-OUT-FILTER"],
    }
    for at, jumps in found.items():
        split = [jump.split("|") for jump in jumps]
        found[at] = [f'-m comment --comment "{why}" -j {chain}' for why, chain in split]

    def add(table, chain, body):
        found.setdefault((table, chain), []).append(body)

    def match(name, directions, comment=True):
        why = f'-m comment --comment "{SETS[name][1]}" ' if comment else ""
        return f"{why}-m set --match-set {set_name(name, node.family)} {directions}"

    services = ("nat", "KUBE-SERVICES")
    add(*services, f"-s {'127.0.0.0/8' if node.family == 'IPv4' else '::1/128'} -j RETURN")
    add("nat", "KUBE-POSTROUTING", f"{match('KUBE-LOOP-BACK', 'dst,dst,src')} -j MASQUERADE")
    add(*services, f"{match('KUBE-LOAD-BALANCER', 'dst,dst')} -j KUBE-LOAD-BALANCER")
    add(
        "nat",
        "KUBE-LOAD-BALANCER",
        f"{match('KUBE-LOAD-BALANCER-LOCAL', 'dst,dst')} -j RETURN",
    )
    for p, suffix, directions in (
        ("tcp", "TCP", "dst"),
        ("udp", "UDP", "dst"),
        ("sctp", "SCTP-HASH", "dst,dst"),
    ):
        for name, target in (("LOCAL-", "RETURN"), ("", "KUBE-MARK-MASQ")):
            ports = match(f"KUBE-NODE-PORT-{name}{suffix}", directions)
            add("nat", "KUBE-NODE-PORT", f"-p {p} {ports} -j {target}")
    local = local_match(node)
    if node.masquerade_all:
        add(*services, f"{match('KUBE-CLUSTER-IP', 'dst,dst')} -j KUBE-MARK-MASQ")
    elif local:
        add(*services, f"{match('KUBE-CLUSTER-IP', 'dst,dst')} {local[1]} -j KUBE-MARK-MASQ")
    else:
        add(*services, f"{match('KUBE-CLUSTER-IP', 'src,dst')} -j KUBE-MARK-MASQ")
    add(*services, f"{match('KUBE-EXTERNAL-IP', 'dst,dst')} -j KUBE-MARK-MASQ")
    for name in ("KUBE-EXTERNAL-IP", "KUBE-EXTERNAL-IP-LOCAL"):
        outside = "-m physdev ! --physdev-is-in -m addrtype ! --src-type LOCAL"
        add(*services, f"{match(name, 'dst,dst')} {outside} -j ACCEPT")
        add(*services, f"{match(name, 'dst,dst')} -m addrtype --dst-type LOCAL -j ACCEPT")
    add(*services, "-m addrtype --dst-type LOCAL -j KUBE-NODE-PORT")
    add("nat", "KUBE-LOAD-BALANCER", "-j KUBE-MARK-MASQ")
    for name in ("KUBE-CLUSTER-IP", "KUBE-LOAD-BALANCER"):
        add(*services, f"{match(name, 'dst,dst', comment=False)} -j ACCEPT")
    add("nat", "KUBE-POSTROUTING", f"-m mark ! --mark {mark}/{mark} -j RETURN")
    add("nat", "KUBE-POSTROUTING", f"-j MARK --xor-mark {mark}")
    add(
        "nat",
        "KUBE-POSTROUTING",
        '-m comment --comment "kubernetes service traffic requiring SNAT"'
        f" -j MASQUERADE{random_fully}",
    )
    add("nat", "KUBE-MARK-MASQ", f"-j MARK --or-mark {mark}")

    add(
        "filter",
        "KUBE-PROXY-FIREWALL",
        f"{match('KUBE-LOAD-BALANCER-FW', 'dst,dst')} -j KUBE-SOURCE-RANGES-FIREWALL",
    )
    for name in ("KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-LOAD-BALANCER-SOURCE-IP"):
        add("filter", "KUBE-SOURCE-RANGES-FIREWALL", f"{match(name, 'dst,dst,src')} -j RETURN")
    add("filter", "KUBE-SOURCE-RANGES-FIREWALL", "-j DROP")
    add(
        "filter",
        "KUBE-FORWARD",
        f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {mark}/{mark}'
        " -j ACCEPT",
    )
    add(
        "filter",
        "KUBE-FORWARD",
        '-m comment --comment "kubernetes forwarding conntrack rule"'
        " -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )
    checks = match("KUBE-HEALTH-CHECK-NODE-PORT", "dst")
    add("filter", "KUBE-NODE-PORT", f"{checks} -j ACCEPT")
    for name, directions in (
        ("KUBE-LOAD-BALANCER", "dst,dst"),
        ("KUBE-CLUSTER-IP", "dst,dst"),
        ("KUBE-EXTERNAL-IP", "dst,dst"),
        ("KUBE-EXTERNAL-IP-LOCAL", "dst,dst"),
        ("KUBE-HEALTH-CHECK-NODE-PORT", "dst"),
    ):
        add("filter", "KUBE-IPVS-FILTER", f"{match(name, directions, comment=False)} -j RETURN")
    ips = match("KUBE-IPVS-IPS", "dst", comment=False)
    add("filter", "KUBE-IPVS-FILTER", f"-m conntrack --ctstate NEW {ips} -j REJECT")
    return found
