"""Routes and the node become chains and rules. Rule text is kube-proxy's, to the letter."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from pykubeproxy.iptables.names import (
    CANARY,
    CANARY_TABLES,
    EXTERNAL_SERVICES,
    FIREWALL,
    FORWARD,
    MARK_MASQ,
    NODEPORTS,
    POSTROUTING,
    PROXY_FIREWALL,
    SERVICES,
    chain_hashes,
)
from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Key,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)
from pykubeproxy.iptables.shared import (
    forward_rules,
    mark_masq_rules,
    pod_match,
    postrouting_rules,
)
from pykubeproxy.model.kinds import Action, Family, FrontendKind, Masquerade, Pool
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.route import Endpoint, Frontend, Route, Verdict

__all__ = ["INVALID_COUNTER", "LOCALHOST_COUNTER", "IptablesCompiler", "XtablesSettings"]

LARGE_CLUSTER_ENDPOINTS = 1000
"""Above this, rules about single endpoints go without comments: on legacy iptables a comment
costs 256 bytes of kernel memory, copied at every change of the table."""

INVALID_COUNTER = "ct_state_invalid_dropped_pkts"
LOCALHOST_COUNTER = "localhost_nps_accepted_pkts"

_NODEPORTS_COMMENT = (
    '-m comment --comment "kubernetes service nodeports; '
    'NOTE: this must be the last rule in this chain"'
)


class XtablesSettings(Struct, frozen=True):
    """What the fixed rules depend on besides the node; settled once at start.

    ``masquerade_mark`` is the bit that carries "needs SNAT" from nat to POSTROUTING.
    ``localhost_nodeports``: node ports answer on 127.0.0.0/8 (IPv4 with route_localnet only).
    ``drop_invalid``: packets that conntrack calls invalid are dropped, because an un-NATed one
    would reset its connection (kubernetes/kubernetes#74839).
    ``count_invalid`` and ``count_localhost``: the nfacct counters exist.
    """

    masquerade_mark: int = 0x4000
    random_fully: bool = True
    localhost_nodeports: bool = True
    drop_invalid: bool = True
    count_invalid: bool = False
    count_localhost: bool = False


class IptablesCompiler:
    """The `pykubeproxy.sync.outcome.Compiler` of this backend, for one family."""

    def __init__(self, settings: XtablesSettings) -> None:
        self._settings = settings
        self._endpoint_comments = True

    def claim(self, key: Key) -> Key | None:
        return key if isinstance(key, DispatchRule) else None

    def problems(self, route: Route) -> tuple[str, ...]:
        return ()

    def resize(self, endpoint_count: int) -> None:
        # As in kube-proxy, crossing the limit leaves the rules of untouched Services alone.
        self._endpoint_comments = endpoint_count <= LARGE_CLUSTER_ENDPOINTS

    def base(self, node: NodeContext) -> dict[Key, Rules]:
        """Return the fixed chains, their jumps, the canaries and the node-port tail."""
        settings = self._settings
        objects: dict[Key, Rules] = {Presence(table, CANARY): () for table in CANARY_TABLES}
        for table, chain in (
            ("filter", SERVICES),
            ("filter", EXTERNAL_SERVICES),
            ("filter", NODEPORTS),
            ("filter", PROXY_FIREWALL),
            ("nat", SERVICES),
            ("nat", NODEPORTS),
        ):
            objects[SharedChain(table, chain)] = ()
        mark = settings.masquerade_mark
        objects[Chain("nat", POSTROUTING)] = postrouting_rules(
            mark, random_fully=settings.random_fully
        )
        objects[Chain("nat", MARK_MASQ)] = mark_masq_rules(mark)
        objects[Chain("filter", FORWARD)] = (*_invalid_rules(settings), *forward_rules(mark))
        if settings.localhost_nodeports:
            # With route_localnet a neighbour could reach services bound to 127.0.0.1.
            objects[Chain("filter", FIREWALL)] = (
                '-m comment --comment "block incoming localnet connections" -d 127.0.0.0/8 '
                "! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
            )
        else:
            objects[Presence("filter", FIREWALL)] = ()
        for rule in _nodeport_tails(settings, node):
            objects[TailRule("nat", SERVICES, rule)] = (rule,)
        for table, chain, target, match in _JUMPS:
            objects[Jump(table, chain, target)] = (f"{match} -j {target}".strip(),)
        return objects

    def compile(self, route: Route, node: NodeContext) -> dict[Key, Rules]:
        """Return the chains of one route and its rules in the shared chains."""
        return _RouteCompiler(route, node, self._settings, self._endpoint_comments).objects


def _invalid_rules(settings: XtablesSettings) -> Rules:
    if not settings.drop_invalid:
        return ()
    counter = f"-m nfacct --nfacct-name {INVALID_COUNTER} " if settings.count_invalid else ""
    return (f"-m conntrack --ctstate INVALID {counter}-j DROP",)


def _nodeport_tails(settings: XtablesSettings, node: NodeContext) -> list[str]:
    if node.nodeport_addresses is None:
        if node.family is Family.IPV6:
            loopback = "! -d ::1/128 "
        else:
            loopback = "" if settings.localhost_nodeports else "! -d 127.0.0.0/8 "
        return [f"{_NODEPORTS_COMMENT} -m addrtype --dst-type LOCAL {loopback}-j {NODEPORTS}"]
    return [
        f"{_NODEPORTS_COMMENT} -d {address} -j {NODEPORTS}"
        for address in node.nodeport_addresses
        if not _is_loopback(address) or (settings.localhost_nodeports and "." in address)
    ]


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


_NEW = "-m conntrack --ctstate NEW "
_JUMPS = (
    # In the order of insertion: each goes to the top, so the last one is looked at first.
    (
        "filter",
        "INPUT",
        EXTERNAL_SERVICES,
        _NEW + '-m comment --comment "kubernetes externally-visible service portals"',
    ),
    (
        "filter",
        "FORWARD",
        EXTERNAL_SERVICES,
        _NEW + '-m comment --comment "kubernetes externally-visible service portals"',
    ),
    (
        "filter",
        "INPUT",
        NODEPORTS,
        '-m comment --comment "kubernetes health check service ports"',
    ),
    (
        "filter",
        "FORWARD",
        SERVICES,
        _NEW + '-m comment --comment "kubernetes service portals"',
    ),
    ("filter", "OUTPUT", SERVICES, _NEW + '-m comment --comment "kubernetes service portals"'),
    ("filter", "FORWARD", FORWARD, '-m comment --comment "kubernetes forwarding rules"'),
    (
        "filter",
        "INPUT",
        PROXY_FIREWALL,
        _NEW + '-m comment --comment "kubernetes load balancer firewall"',
    ),
    (
        "filter",
        "OUTPUT",
        PROXY_FIREWALL,
        _NEW + '-m comment --comment "kubernetes load balancer firewall"',
    ),
    (
        "filter",
        "FORWARD",
        PROXY_FIREWALL,
        _NEW + '-m comment --comment "kubernetes load balancer firewall"',
    ),
    ("nat", "OUTPUT", SERVICES, '-m comment --comment "kubernetes service portals"'),
    ("nat", "PREROUTING", SERVICES, '-m comment --comment "kubernetes service portals"'),
    ("nat", "POSTROUTING", POSTROUTING, '-m comment --comment "kubernetes postrouting rules"'),
    ("filter", "INPUT", FIREWALL, ""),
    ("filter", "OUTPUT", FIREWALL, ""),
)


class _RouteCompiler:
    """The working state of compiling one route."""

    def __init__(
        self, route: Route, node: NodeContext, settings: XtablesSettings, endpoint_comments: bool
    ) -> None:
        self.objects: dict[Key, Rules] = {}
        self._route = route
        self._node = node
        self._settings = settings
        self._endpoint_comments = endpoint_comments
        self._name = str(route.key)
        self._protocol = route.key.protocol.lower()
        endpoints = route.cluster_endpoints
        if route.local_endpoints:
            endpoints = tuple(dict.fromkeys((*endpoints, *route.local_endpoints)))
        texts = [str(endpoint) for endpoint in endpoints]
        digest, digests = chain_hashes(self._name, self._protocol, texts)
        # Text and chain of each endpoint: asked for several times, and hashing is dear.
        self._endpoints = {
            endpoint: (text, f"KUBE-SEP-{short}")
            for endpoint, text, short in zip(endpoints, texts, digests, strict=True)
        }
        self._svc = f"KUBE-SVC-{digest}"
        self._svl = f"KUBE-SVL-{digest}"
        self._ext = f"KUBE-EXT-{digest}"
        self._fw = f"KUBE-FW-{digest}"

        for frontend in route.frontends:
            match frontend.kind:
                case FrontendKind.CLUSTER_IP:
                    self._cluster_ip(frontend)
                case FrontendKind.EXTERNAL_IP | FrontendKind.LOAD_BALANCER:
                    self._external_address(frontend)
                case FrontendKind.NODE_PORT:
                    self._node_port(frontend)
        if route.health_check_port:
            self._dispatch(
                "filter",
                NODEPORTS,
                f"health check {route.health_check_port} of {self._name}",
                f'-m comment --comment "{self._name} health check node port" '
                f"-m tcp -p tcp --dport {route.health_check_port} -j ACCEPT",
            )
        self._service_chains()

    # --- rules in shared chains ---

    def _cluster_ip(self, frontend: Frontend) -> None:
        verdict = frontend.inside
        if verdict.action is Action.FORWARD:
            self._dispatch_to(frontend, "cluster IP", self._pool_chain(verdict.pool))
        else:
            self._refuse(SERVICES, frontend, verdict)

    def _external_address(self, frontend: Frontend) -> None:
        if frontend.inside.action is Action.FORWARD:
            target = self._ext
            if frontend.source_ranges:
                target = self._fw
                self._dispatch(
                    "filter",
                    PROXY_FIREWALL,
                    self._match(frontend),
                    f'-m comment --comment "{self._name} traffic not accepted by {self._fw}" '
                    f"{self._destination(frontend)} -j DROP",
                )
            self._dispatch_to(frontend, frontend.kind.value, target)
        if frontend.outside.action is not Action.FORWARD:
            self._refuse(EXTERNAL_SERVICES, frontend, frontend.outside)

    def _node_port(self, frontend: Frontend) -> None:
        if frontend.inside.action is Action.FORWARD:
            comment = f"-m comment --comment {self._name} -m {self._protocol} -p {self._protocol}"
            rules = [f"{comment} --dport {frontend.port} -j {self._ext}"]
            if self._settings.count_localhost and self._settings.localhost_nodeports:
                rules.insert(
                    0,
                    f"{comment} -d 127.0.0.0/8 --dport {frontend.port} "
                    f"-m nfacct --nfacct-name {LOCALHOST_COUNTER} -j {self._ext}",
                )
            self._dispatch("nat", NODEPORTS, self._match(frontend), *rules)
        if frontend.outside.action is not Action.FORWARD:
            self._refuse(EXTERNAL_SERVICES, frontend, frontend.outside)

    def _dispatch_to(self, frontend: Frontend, what: str, target: str) -> None:
        self._dispatch(
            "nat",
            SERVICES,
            self._match(frontend),
            f'-m comment --comment "{self._name} {what}" {self._destination(frontend)} -j {target}',
        )

    def _refuse(self, chain: str, frontend: Frontend, verdict: Verdict) -> None:
        reason, target = (
            ("has no endpoints", "REJECT")
            if verdict.action is Action.REJECT
            else ("has no local endpoints", "DROP")
        )
        self._dispatch(
            "filter",
            chain,
            self._match(frontend),
            f'-m comment --comment "{self._name} {reason}" '
            f"{self._destination(frontend)} -j {target}",
        )

    def _dispatch(self, table: str, chain: str, match: str, *rules: str) -> None:
        # The first frontend with an address keeps it: a cluster IP before an external IP before
        # a load balancer IP, the order in which kube-proxy's rules would be met.
        self.objects.setdefault(DispatchRule(table, chain, match), rules)

    def _match(self, frontend: Frontend) -> str:
        return f"{self._protocol} {frontend.address or 'node port'} {frontend.port}"

    def _destination(self, frontend: Frontend) -> str:
        where = (
            f"-d {frontend.address}"
            if frontend.address is not None
            else "-m addrtype --dst-type LOCAL"
        )
        if frontend.address is None:
            return f"{where} -m {self._protocol} -p {self._protocol} --dport {frontend.port}"
        return f"-m {self._protocol} -p {self._protocol} {where} --dport {frontend.port}"

    # --- the route's own chains ---

    def _service_chains(self) -> None:
        route = self._route
        external = [f for f in route.frontends if f.kind is not FrontendKind.CLUSTER_IP]
        if external and external[0].inside.action is Action.FORWARD:
            self.objects[Chain("nat", self._ext)] = self._external_rules(external[0])
            ranged = [f for f in external if f.source_ranges]
            if ranged:
                self.objects[Chain("nat", self._fw)] = self._firewall_rules(ranged[0])
        head = self._masquerade_rules()
        if route.cluster_endpoints:
            self.objects[Chain("nat", self._svc)] = head.get(self._svc, ()) + self._pick_rules(
                route.cluster_endpoints
            )
        if route.local_endpoints:
            self.objects[Chain("nat", self._svl)] = head.get(self._svl, ()) + self._pick_rules(
                route.local_endpoints
            )
        self._endpoint_chains()

    def _masquerade_rules(self) -> dict[str, Rules]:
        """Rules at the head of the internal pool's chain, by chain name.

        They match address and port again, because external traffic passes the same chain and
        has its own masquerading behind it.
        """
        rules: dict[str, Rules] = {}
        for frontend in self._route.frontends:
            verdict = frontend.inside
            if frontend.kind is not FrontendKind.CLUSTER_IP or verdict.action is not Action.FORWARD:
                continue
            match verdict.masquerade:
                case Masquerade.ALWAYS:
                    who = ""
                case Masquerade.NOT_PODS:
                    who = f" {self._pods(inverted=True)}"
                case Masquerade.NEVER | Masquerade.NODE:
                    continue
            rules[self._pool_chain(verdict.pool)] = (
                f'-m comment --comment "{self._name} cluster IP" '
                f"{self._destination(frontend)}{who} -j {MARK_MASQ}",
            )
        return rules

    def _external_rules(self, frontend: Frontend) -> Rules:
        name = f"{self._name} external destinations"
        if frontend.inside == frontend.outside:
            return (
                f'-m comment --comment "masquerade traffic for {name}" -j {MARK_MASQ}',
                f"-j {self._pool_chain(frontend.outside.pool)}",
            )
        inside = self._pool_chain(frontend.inside.pool)
        rules = []
        if self._node.pod_traffic is not None:
            rules.append(
                f'-m comment --comment "pod traffic for {name}" '
                f"{self._pods(inverted=False)} -j {inside}"
            )
        rules += [
            f'-m comment --comment "masquerade LOCAL traffic for {name}" '
            f"-m addrtype --src-type LOCAL -j {MARK_MASQ}",
            f'-m comment --comment "route LOCAL traffic for {name}" '
            f"-m addrtype --src-type LOCAL -j {inside}",
        ]
        if frontend.outside.action is Action.FORWARD:
            rules.append(f"-j {self._pool_chain(frontend.outside.pool)}")
        return tuple(rules)

    def _firewall_rules(self, frontend: Frontend) -> Rules:
        # The last rule has no target: it only counts what filter's KUBE-PROXY-FIREWALL drops.
        return (
            *(
                f'-m comment --comment "{self._name} loadbalancer IP" -s {source} -j {self._ext}'
                for source in frontend.source_ranges
            ),
            f'-m comment --comment "other traffic to {self._name} '
            f'will be dropped by {PROXY_FIREWALL}"',
        )

    def _pick_rules(self, endpoints: tuple[Endpoint, ...]) -> Rules:
        timeout = self._route.affinity_seconds
        count = len(endpoints)
        sticky: list[str] = []
        random: list[str] = []
        comment = ""
        for left, endpoint in zip(range(count, 0, -1), endpoints, strict=True):
            text, sep = self._endpoints[endpoint]
            if self._endpoint_comments:
                comment = f'-m comment --comment "{self._name} -> {text}" '
            if timeout:
                sticky.append(
                    f"{comment}-m recent --name {sep} --rcheck --seconds {timeout} --reap -j {sep}"
                )
            random.append(f"{comment}{_one_of(left)}-j {sep}")
        return (*sticky, *random)

    def _endpoint_chains(self) -> None:
        # With `_pick_rules` the hot loop of a first pass: what does not change is outside.
        comment = f"-m comment --comment {self._name} " if self._endpoint_comments else ""
        send = f"-m {self._protocol} -p {self._protocol} -j DNAT --to-destination"
        sticky, objects = self._route.affinity_seconds, self.objects
        for endpoint, (text, sep) in self._endpoints.items():
            remember = f"-m recent --name {sep} --set " if sticky else ""
            objects[Chain("nat", sep)] = (
                f"{comment}-s {endpoint.address} -j {MARK_MASQ}",
                f"{comment}{remember}{send} {text}",
            )

    # --- words ---

    def _pool_chain(self, pool: Pool) -> str:
        return self._svc if pool is Pool.CLUSTER else self._svl

    def _pods(self, *, inverted: bool) -> str:
        pods = self._node.pod_traffic
        assert pods is not None, "asked how to tell pods where nothing tells them"
        return pod_match(pods, inverted=inverted)


@lru_cache(maxsize=1024)
def _one_of(count: int) -> str:
    """The match that lets one of *count* connections through; the last rule needs none."""
    # Ten decimals: 1/100001 must stay below 1/100000.
    return f"-m statistic --mode random --probability {1 / count:.10f} " if count > 1 else ""
