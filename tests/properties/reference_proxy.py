"""What kube-proxy 1.36 writes in iptables mode, straight from its description.

A full sync and nothing else, as dumb as possible and sharing no code with the program: section
numbers are those of the reference (``model.md``, ``iptables.md``, ``conntrack.md``). Only the
API objects are the program's, with none of their conveniences used.
"""

from __future__ import annotations

from base64 import b32encode
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import AddressValueError, IPv6Address, ip_address, ip_network

__all__ = ["LAST", "Settings", "SliceTracker", "rules", "stale_flows"]

LAST = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"


@dataclass(frozen=True)
class Settings:
    """One node and one configuration, for one family (``IPv4`` or ``IPv6``)."""

    family: str = "IPv4"
    name: str = "node"
    zone: str = ""
    address: str = "127.0.0.1"  # loopback while unknown
    nodeport_addresses: tuple[str, ...] = ()
    local_addresses: tuple[str, ...] = ()
    detect_mode: str = "ClusterCIDR"
    detect_value: tuple[str, ...] | str = ()
    masquerade_all: bool = False
    localhost_nodeports: bool = True
    random_fully: bool = False
    nfacct: bool = True
    liberal: bool = False
    mark_bit: int = 14


# --- addresses: sloppy in, canonical out (model §3) ---


def _dotted(text):
    octets = text.split(".")
    if len(octets) != 4 or not all(o.isascii() and o.isdigit() and int(o) < 256 for o in octets):
        return None
    return ".".join(str(int(o)) for o in octets)


def read_ip(text):
    """Return (family, canonical text) or ``None``."""
    if ":" not in text:
        dotted = _dotted(text)
        return None if dotted is None else ("IPv4", dotted)
    head, _, tail = text.rpartition(":")
    if "." in tail:
        dotted = _dotted(tail)
        if dotted is None:
            return None
        text = f"{head}:{dotted}"
    try:
        address = IPv6Address(text)
    except AddressValueError:
        return None
    if address.ipv4_mapped is not None:
        return "IPv4", str(address.ipv4_mapped)
    return "IPv6", str(address)


def read_cidr(text):
    """Return (family, canonical text) or ``None``; mapped networks are not supported."""
    address, slash, length = text.partition("/")
    found = read_ip(address)
    if found is None or not slash or not (length.isascii() and length.isdigit()):
        return None
    family, ip = found
    if int(length) > (32 if family == "IPv4" else 128):
        return None
    return family, str(ip_network(f"{ip}/{int(length)}", strict=False))


def cidrs_of(family, texts):
    found = [read_cidr(text) for text in texts]
    return [cidr[1] for cidr in found if cidr is not None and cidr[0] == family]


def ips_of(family, texts):
    found = [read_ip(text) for text in texts]
    return [ip[1] for ip in found if ip is not None and ip[0] == family]


def covers(cidr, ip):
    return ip_address(ip) in ip_network(cidr)


# --- endpoints (model §6, §7) ---


@dataclass(frozen=True)
class Ep:
    ip: str
    port: int
    ready: bool
    serving: bool
    terminating: bool
    local: bool
    zones: frozenset[str]
    nodes: frozenset[str]

    def __str__(self):
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


def definite(condition, default):
    return default if condition is None else condition


def endpoint_map(slices, node):
    """(namespace, service, port name, protocol) → endpoints sorted by their text."""
    found = {}
    for slice_ in slices:
        meta = slice_.metadata
        owner = meta.labels.service_name if meta.labels else None
        if slice_.address_type != node.family or not (owner and meta.name and meta.namespace):
            continue
        for port in slice_.ports or ():
            if port.name is None or not port.port:
                continue
            merged = found.setdefault((meta.namespace, owner, port.name, port.protocol), {})
            for raw in slice_.endpoints or ():
                if not raw.addresses:
                    continue
                given = raw.conditions
                hints = raw.hints
                ep = Ep(
                    ip=read_ip(raw.addresses[0])[1],
                    port=port.port,
                    ready=definite(given and given.ready, True),
                    serving=definite(given and given.serving, True),
                    terminating=definite(given and given.terminating, False),
                    local=raw.node_name is not None and raw.node_name == node.name,
                    zones=frozenset(h.name for h in (hints and hints.for_zones) or ()),
                    nodes=frozenset(h.name for h in (hints and hints.for_nodes) or ()),
                )
                if str(ep) not in merged or not ep.terminating:
                    merged[str(ep)] = ep
    return {key: [eps[text] for text in sorted(eps)] for key, eps in found.items() if eps}


# --- service ports (model §1-§5) ---


@dataclass
class Port:
    namespace: str
    service: str
    name: str
    protocol: str
    port: int
    node_port: int
    cluster_ip: str
    external_ips: list[str]
    vips: list[str]
    ranges: list[str]
    external_local: bool
    internal_local: bool
    health_port: int
    affinity: bool
    seconds: int

    @property
    def text(self):
        name = f"{self.namespace}/{self.service}"
        return f"{name}:{self.name}" if self.name else name

    @property
    def key(self):
        return self.namespace, self.service, self.name, self.protocol

    @property
    def accessible(self):
        return bool(self.node_port or self.vips or self.external_ips)

    @property
    def uses_cluster(self):
        return not self.internal_local or self.accessible

    @property
    def uses_local(self):
        return self.internal_local or (self.external_local and self.accessible)


def cluster_ip_of(spec, family):
    if not spec.ip_families:
        texts = [spec.cluster_ip]
    else:
        families = list(spec.ip_families)
        if family not in families:
            return None
        at = families.index(family)
        texts = (spec.cluster_ips or ())[at : at + 1]
    found = ips_of(family, texts)
    return found[0] if found else None


def service_ports(services, node):
    found = []
    for service in services:
        spec = service.spec
        if spec.type == "ExternalName" or not spec.cluster_ip or spec.cluster_ip == "None":
            continue
        cluster_ip = cluster_ip_of(spec, node.family)
        if cluster_ip is None:
            continue
        external_local = spec.external_traffic_policy == "Local" and (
            spec.type in ("LoadBalancer", "NodePort")
            or (spec.type == "ClusterIP" and bool(spec.external_ips))
        )
        status = service.status and service.status.load_balancer
        ingress = (status and status.ingress) or ()
        ranges = cidrs_of(node.family, [r.strip() for r in spec.load_balancer_source_ranges or ()])
        if any(r.endswith("/0") for r in ranges):
            ranges = []
        sticky = spec.session_affinity == "ClientIP"
        health = spec.type == "LoadBalancer" and external_local
        found.extend(
            Port(
                namespace=service.metadata.namespace,
                service=service.metadata.name,
                name=port.name or "",
                protocol=port.protocol,
                port=port.port,
                node_port=port.node_port or 0,
                cluster_ip=cluster_ip,
                external_ips=ips_of(node.family, spec.external_ips or ()),
                vips=ips_of(
                    node.family, [i.ip for i in ingress if i.ip and i.ip_mode in (None, "VIP")]
                ),
                ranges=ranges,
                external_local=external_local,
                internal_local=spec.internal_traffic_policy == "Local",
                health_port=(spec.health_check_node_port or 0) if health else 0,
                affinity=sticky,
                seconds=spec.session_affinity_config.client_ip.timeout_seconds if sticky else 0,
            )
            for port in spec.ports or ()
        )
    return found


# --- selection (model §8) ---


@dataclass
class Selection:
    cluster: list[Ep] = field(default_factory=list)
    local: list[Ep] = field(default_factory=list)
    reachable: list[Ep] = field(default_factory=list)
    any: bool = False


def topology_mode(ready, node):
    if not ready:
        return ""
    if all(e.nodes for e in ready) and any(node.name in e.nodes for e in ready):
        return "PreferSameNode"
    if node.zone and all(e.zones for e in ready) and any(node.zone in e.zones for e in ready):
        return "PreferSameZone"
    return ""


def select(port, endpoints, node):
    chosen = Selection()
    if not endpoints:
        return chosen
    ready = [e for e in endpoints if e.ready]
    draining = [e for e in endpoints if e.serving and e.terminating]
    mode = ""
    if port.uses_cluster:
        mode = topology_mode(ready, node)
        chosen.cluster = ready
        if mode == "PreferSameNode":
            chosen.cluster = [e for e in ready if node.name in e.nodes]
        elif mode == "PreferSameZone":
            chosen.cluster = [e for e in ready if node.zone in e.zones]
        if not chosen.cluster:
            chosen.cluster = draining
        chosen.any = bool(chosen.cluster)
    if not port.uses_local:
        chosen.reachable = chosen.cluster
        return chosen
    if ready or draining:
        chosen.any = True
    fallback = False
    chosen.local = [e for e in ready if e.local]
    if not chosen.local:
        chosen.local = [e for e in draining if e.local]
        fallback = bool(chosen.local)
    if not port.uses_cluster:
        chosen.reachable = chosen.local
    elif mode == "" and not fallback:
        chosen.reachable = chosen.cluster
    else:
        chosen.reachable = list({str(e): e for e in chosen.cluster + chosen.local}.values())
    return chosen


# --- rules (iptables §2-§7) ---


def short_hash(text):
    return b32encode(sha256(text.encode()).digest()).decode()[:16]


def comment(text):
    return f'-m comment --comment "{text}"'


class Localhost:
    """nodePortAddresses as one family sees them (model §11, iptables §12)."""

    def __init__(self, node):
        v4 = node.family == "IPv4"
        texts = list(node.nodeport_addresses)
        if texts == ["primary"]:
            known = not ip_address(node.address).is_loopback
            texts = [f"{node.address}/{32 if v4 else 128}"] if known else []
        cidrs = cidrs_of(node.family, texts) or ["0.0.0.0/0" if v4 else "::/0"]
        self.all = any(c.endswith("/0") for c in cidrs)
        loopback = any(
            ip_network(c).subnet_of(ip_network("127.0.0.0/8")) or covers(c, "127.0.0.0")
            for c in cidrs
            if v4
        )
        self.effective = node.localhost_nodeports and v4 and loopback
        self.addresses = []
        for ip in node.local_addresses:
            if any(covers(c, ip) for c in cidrs) and ip not in self.addresses:
                self.addresses.append(ip)


def local_match(node):
    """(is local, is not local), or ``None`` without a detector (model §10)."""
    if node.detect_mode == "BridgeInterface":
        return f"-i {node.detect_value}", f"! -i {node.detect_value}"
    if node.detect_mode == "InterfaceNamePrefix":
        return f"-i {node.detect_value}+", f"! -i {node.detect_value}+"
    cidrs = cidrs_of(node.family, node.detect_value)
    return (f"-s {cidrs[0]}", f"! -s {cidrs[0]}") if cidrs else None


def jumps():
    """Built-in chains on a fresh system, top first (iptables §3)."""
    new = "-m conntrack --ctstate NEW "
    external = f"{new}{comment('kubernetes externally-visible service portals')} "
    portals = comment("kubernetes service portals")
    firewall = f"{new}{comment('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL"
    return {
        ("filter", "INPUT"): [
            "-j KUBE-FIREWALL",
            firewall,
            f"{comment('kubernetes health check service ports')} -j KUBE-NODEPORTS",
            f"{external}-j KUBE-EXTERNAL-SERVICES",
        ],
        ("filter", "FORWARD"): [
            firewall,
            f"{comment('kubernetes forwarding rules')} -j KUBE-FORWARD",
            f"{new}{portals} -j KUBE-SERVICES",
            f"{external}-j KUBE-EXTERNAL-SERVICES",
        ],
        ("filter", "OUTPUT"): [
            "-j KUBE-FIREWALL",
            firewall,
            f"{new}{portals} -j KUBE-SERVICES",
        ],
        ("nat", "OUTPUT"): [f"{portals} -j KUBE-SERVICES"],
        ("nat", "PREROUTING"): [f"{portals} -j KUBE-SERVICES"],
        ("nat", "POSTROUTING"): [
            f"{comment('kubernetes postrouting rules')} -j KUBE-POSTROUTING",
        ],
    }


def rules(services, slices, node):
    """Return (table, chain) → rule bodies; chains without rules are there, too."""
    chains = jumps()
    for chain in ("SERVICES", "EXTERNAL-SERVICES", "FORWARD", "NODEPORTS", "PROXY-FIREWALL"):
        chains["filter", f"KUBE-{chain}"] = []
    chains["filter", "KUBE-FIREWALL"] = []
    for chain in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ"):
        chains["nat", f"KUBE-{chain}"] = []
    for table in ("mangle", "nat", "filter"):
        chains[table, "KUBE-PROXY-CANARY"] = []

    def add(table, chain, *parts):
        chains.setdefault((table, chain), []).append(" ".join(p for p in parts if p))

    localhost = Localhost(node)
    mark = f"0x{1 << node.mark_bit:08x}"

    # §5
    add("nat", "KUBE-POSTROUTING", f"-m mark ! --mark {mark}/{mark} -j RETURN")
    add("nat", "KUBE-POSTROUTING", f"-j MARK --xor-mark {mark}")
    add(
        "nat",
        "KUBE-POSTROUTING",
        comment("kubernetes service traffic requiring SNAT"),
        "-j MASQUERADE",
        "--random-fully" if node.random_fully else "",
    )
    add("nat", "KUBE-MARK-MASQ", f"-j MARK --or-mark {mark}")
    if localhost.effective:
        add(
            "filter",
            "KUBE-FIREWALL",
            comment("block incoming localnet connections"),
            "-d 127.0.0.0/8 ! -s 127.0.0.0/8",
            "-m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
        )

    endpoints = endpoint_map(slices, node)
    ports = service_ports(services, node)
    large = sum(len(endpoints.get(port.key, ())) for port in ports) > 1000
    for port in ports:
        one_port(add, port, select(port, endpoints.get(port.key, []), node), node, large)

    # §7
    if localhost.all:
        except_ = "! -d ::1/128" if node.family == "IPv6" else ""
        if node.family == "IPv4" and not localhost.effective:
            except_ = "! -d 127.0.0.0/8"
        destinations = [f"-m addrtype --dst-type LOCAL {except_}".strip()]
    else:
        destinations = [
            f"-d {ip}"
            for ip in localhost.addresses
            if localhost.effective or not ip_address(ip).is_loopback
        ]
    for destination in destinations:
        add("nat", "KUBE-SERVICES", comment(LAST), destination, "-j KUBE-NODEPORTS")
    if not node.liberal:
        counter = "-m nfacct --nfacct-name ct_state_invalid_dropped_pkts" if node.nfacct else ""
        add("filter", "KUBE-FORWARD", "-m conntrack --ctstate INVALID", counter, "-j DROP")
    forwarding = comment("kubernetes forwarding rules")
    add("filter", "KUBE-FORWARD", forwarding, f"-m mark --mark {mark}/{mark} -j ACCEPT")
    add(
        "filter",
        "KUBE-FORWARD",
        comment("kubernetes forwarding conntrack rule"),
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )
    return chains


def one_port(add, port, chosen, node, large):
    svc, p = port.text, port.protocol.lower()
    suffix = short_hash(svc + p)
    SVC, SVL, EXT, FW = (f"KUBE-{kind}-{suffix}" for kind in ("SVC", "SVL", "EXT", "FW"))
    match = f"-m {p} -p {p}"
    has = chosen.any
    has_internal = has and not (port.internal_local and not chosen.local)
    has_external = has and not (port.external_local and not chosen.local)
    internal_chain = SVL if port.internal_local else SVC
    external_chain = SVL if port.external_local else SVC
    uses_fw = has and bool(port.vips) and bool(port.ranges)
    verdict = "-j DROP" if has else "-j REJECT"
    refusal = comment(f"{svc} has no local endpoints" if has else f"{svc} has no endpoints")

    # §6.1
    to_cluster_ip = f"{match} -d {port.cluster_ip} --dport {port.port}"
    if has_internal:
        add(
            "nat",
            "KUBE-SERVICES",
            comment(f"{svc} cluster IP"),
            to_cluster_ip,
            "-j",
            internal_chain,
        )
    else:
        add("filter", "KUBE-SERVICES", refusal, to_cluster_ip, verdict)
    for ip in port.external_ips:
        to = f"{match} -d {ip} --dport {port.port}"
        if has:
            add("nat", "KUBE-SERVICES", comment(f"{svc} external IP"), to, "-j", EXT)
        if not has_external:
            add("filter", "KUBE-EXTERNAL-SERVICES", refusal, to, verdict)
    for vip in port.vips:
        to = f"{match} -d {vip} --dport {port.port}"
        if has:
            target = FW if uses_fw else EXT
            add("nat", "KUBE-SERVICES", comment(f"{svc} loadbalancer IP"), to, "-j", target)
        if uses_fw:
            why = comment(f"{svc} traffic not accepted by {FW}")
            add("filter", "KUBE-PROXY-FIREWALL", why, to, "-j DROP")
        if not has_external:
            add("filter", "KUBE-EXTERNAL-SERVICES", refusal, to, verdict)
    if port.node_port:
        bare = f"-m comment --comment {svc} {match}"
        to = f"--dport {port.node_port}"
        if has and Localhost(node).effective and node.nfacct:
            counter = "-m nfacct --nfacct-name localhost_nps_accepted_pkts"
            add("nat", "KUBE-NODEPORTS", bare, "-d 127.0.0.0/8", to, counter, "-j", EXT)
        if has:
            add("nat", "KUBE-NODEPORTS", bare, to, "-j", EXT)
        if not has_external:
            local = "-m addrtype --dst-type LOCAL"
            add("filter", "KUBE-EXTERNAL-SERVICES", refusal, local, match, to, verdict)
    if port.health_port:
        why = comment(f"{svc} health check node port")
        to = f"-m tcp -p tcp --dport {port.health_port} -j ACCEPT"
        add("filter", "KUBE-NODEPORTS", why, to)

    # §6.2
    local = local_match(node)
    if has_internal:
        why = comment(f"{svc} cluster IP")
        if node.masquerade_all:
            add("nat", internal_chain, why, to_cluster_ip, "-j KUBE-MARK-MASQ")
        elif local:
            add("nat", internal_chain, why, to_cluster_ip, local[1], "-j KUBE-MARK-MASQ")
    if has and port.accessible:
        if not port.external_local:
            why = comment(f"masquerade traffic for {svc} external destinations")
            add("nat", EXT, why, "-j KUBE-MARK-MASQ")
        else:
            if local:
                why = comment(f"pod traffic for {svc} external destinations")
                add("nat", EXT, why, local[0], "-j", SVC)
            here = "-m addrtype --src-type LOCAL"
            why = comment(f"masquerade LOCAL traffic for {svc} external destinations")
            add("nat", EXT, why, here, "-j KUBE-MARK-MASQ")
            why = comment(f"route LOCAL traffic for {svc} external destinations")
            add("nat", EXT, why, here, "-j", SVC)
        if has_external:
            add("nat", EXT, "-j", external_chain)
    if uses_fw:
        why = comment(f"{svc} loadbalancer IP")
        from_node = any(covers(r, node.address) for r in port.ranges)
        for source in port.ranges + (port.vips if from_node else []):
            add("nat", FW, why, f"-s {source}", "-j", EXT)
        add("nat", FW, comment(f"other traffic to {svc} will be dropped by KUBE-PROXY-FIREWALL"))
    if chosen.cluster and port.uses_cluster:
        balance(add, SVC, port, chosen.cluster, large)
    if chosen.local and port.uses_local:
        balance(add, SVL, port, chosen.local, large)
    for ep in chosen.reachable:
        chain = sep_chain(port, ep)
        why = "" if large else f"-m comment --comment {svc}"
        remember = f"-m recent --name {chain} --set" if port.affinity else ""
        add("nat", chain, why, f"-s {ep.ip} -j KUBE-MARK-MASQ")
        add("nat", chain, why, remember, match, f"-j DNAT --to-destination {ep}")


def sep_chain(port, ep):
    return f"KUBE-SEP-{short_hash(port.text + port.protocol.lower() + str(ep))}"


def balance(add, chain, port, eps, large):
    def why(ep):
        return "" if large else comment(f"{port.text} -> {ep}")

    if port.affinity:
        for ep in eps:
            sep = sep_chain(port, ep)
            seen = f"-m recent --name {sep} --rcheck --seconds {port.seconds} --reap"
            add("nat", chain, why(ep), seen, "-j", sep)
    for i, ep in enumerate(eps):
        left = len(eps) - i
        dice = f"-m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        add("nat", chain, why(ep), dice, "-j", sep_chain(port, ep))


# --- UDP flows (conntrack §1-§3, model §7) ---


class SliceTracker:
    """Which services' slices changed since the last sync, and whether a cleanup run is due."""

    def __init__(self, node):
        self.node = node
        self.applied = {}
        self.pending = {}
        self.owners = {}

    def event(self, key, slice_):
        """*slice_* is the new object, ``None`` for its deletion."""
        if slice_ is not None and slice_.address_type != self.node.family:
            return
        if self.pending.get(key, self.applied.get(key)) == slice_:
            return
        self.pending[key] = slice_
        if slice_ is not None:
            meta = slice_.metadata
            self.owners[key] = (meta.namespace, meta.labels.service_name)

    def sync(self, before, after):
        """Fold in; say whether conntrackCleanupRequired is set, and whether this program sets it.

        kube-proxy looks at slices alone. The program counts only serving endpoints to which a
        port of the Services *before* or *after* leads, so it may run later: a known difference.
        """

        def udp(services):
            found = endpoint_map([s for s in self.applied.values() if s], self.node)
            led_to = {port.key for port in service_ports(services, self.node)}
            found = {key: eps for key, eps in found.items() if key[3] == "UDP"}
            serving = {
                k[:2] for k, eps in found.items() if k in led_to and any(e.serving for e in eps)
            }
            return {key[:2] for key in found}, serving

        changed = {self.owners[key] for key in self.pending}
        any_before, serving_before = udp(before)
        self.applied |= self.pending
        self.pending = {}
        any_after, serving_after = udp(after)
        return (
            bool(changed & (any_before | any_after)),
            bool(changed & (serving_before | serving_after)),
        )


def served(services, slices, node):
    """(by address, by node port) → serving endpoints of UDP service ports (conntrack §2)."""
    endpoints = endpoint_map(slices, node)
    by_address, by_node_port = {}, {}
    for port in service_ports(services, node):
        serving = {(e.ip, e.port) for e in endpoints.get(port.key, ()) if e.serving}
        if port.protocol != "UDP" or not serving:
            continue
        for ip in [port.cluster_ip, *port.vips, *port.external_ips]:
            by_address[ip, port.port] = serving
        if port.node_port:
            by_node_port[port.node_port] = serving
    return by_address, by_node_port


def stale_flows(services, slices, node, entries):
    """Which of *entries* (protocol, destination, port, reply source, port) a run deletes (§3)."""
    by_address, by_node_port = served(services, slices, node)
    gone = set()
    for entry in entries:
        protocol, ip, number, reply_ip, reply_number = entry
        if protocol != 17:
            continue
        reply = (reply_ip, reply_number)
        if (ip, number) in by_address and reply not in by_address[ip, number]:
            gone.add(entry)
        if number in by_node_port and reply not in by_node_port[number]:
            gone.add(entry)
    return gone
