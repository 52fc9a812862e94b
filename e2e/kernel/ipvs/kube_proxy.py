"""What kube-proxy's ipvs mode leaves on a node, made by hand with the tools that it uses.

One Service in each IP version with node port, two pods, and things that are out of date or
belong to others.
"""

from __future__ import annotations

from e2e.kernel.ipvs.ipvs_node import DEVICE, at
from e2e.lab import Lab
from e2e.lab.addresses import BOUND_VIP, CLUSTER_CIDR

__all__ = [
    "EXCLUDED",
    "NODE_PORT",
    "OTHERS",
    "STALE",
    "WEB",
    "leave_as_kube_proxy",
    "node_addresses",
]

WEB = {4: "10.96.0.50", 6: "fd00:96::50"}
NODE_PORT = 30100
STALE = {4: "10.96.0.99", 6: "fd00:96::99"}
"""A Service that is gone: virtual server, address, entries."""
OTHERS = {4: "198.18.0.1", 6: "2001:db8:198::1"}
"""Somebody else's virtual server, which kube-proxy would remove as well."""
EXCLUDED = "10.96.7.0/24"
"""Where somebody else's virtual server is as well, but protected."""
PODS = ("p1", "p2")

_HASHES = ("CLUSTER-IP", "EXTERNAL-IP", "EXTERNAL-IP-LOCAL", "LOAD-BALANCER", "LOAD-BALANCER-LOCAL")
_SETS = {
    "LOOP-BACK": "hash:ip,port,ip",
    **dict.fromkeys((*_HASHES, "LOAD-BALANCER-FW"), "hash:ip,port"),
    "LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "NODE-PORT-SCTP-HASH": "hash:ip,port",
    "NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    "IPVS-IPS": "hash:ip",
    **dict.fromkeys(
        ("NODE-PORT-TCP", "NODE-PORT-LOCAL-TCP", "NODE-PORT-UDP", "NODE-PORT-LOCAL-UDP"),
        "bitmap:port",
    ),
    "HEALTH-CHECK-NODE-PORT": "bitmap:port",
}
# Only rules about sets that are not empty, as kube-proxy writes them.
_RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -s {loopback} -j RETURN
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving \
hairpin purpose" -m set --match-set {sets}LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-NODE-PORT -p tcp -m comment --comment "Kubernetes nodeport TCP port for masquerade \
purpose" -m set --match-set {sets}NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade \
purpose" -m set --match-set {sets}CLUSTER-IP dst,dst ! -s {cluster} -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m set --match-set {sets}CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" \
-j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-I FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-I INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-I INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-I INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-I OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-SOURCE-RANGES-FIREWALL -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 \
-j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack \
--ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-NODE-PORT -m comment --comment "Kubernetes health check node port" -m set \
--match-set {sets}HEALTH-CHECK-NODE-PORT dst -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set {sets}LOAD-BALANCER dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {sets}CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {sets}EXTERNAL-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {sets}EXTERNAL-IP-LOCAL dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m set --match-set {sets}HEALTH-CHECK-NODE-PORT dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {sets}IPVS-IPS dst -j REJECT
COMMIT
"""


def leave_as_kube_proxy(lab: Lab) -> None:
    """Build it all on the node."""
    for name in ("conntrack", "expire_nodest_conn", "expire_quiescent_template"):
        lab.sysctl("node", {f"net/ipv4/vs/{name}": "1"})
    lab.run("node", "ip", "link", "add", DEVICE, "type", "dummy")
    for version in (4, 6):
        _leave(lab, version)
    lab.run("node", "ipvsadm", "-R", input="-A -t 10.96.7.7:80 -s rr\n-A -f 7 -s rr\n")


def node_addresses(version: int) -> tuple[str, str]:
    """Where node ports are served."""
    return Lab.address("node", version), BOUND_VIP[version]


def _leave(lab: Lab, version: int) -> None:
    sets = {4: "KUBE-", 6: "KUBE-6-"}[version]
    web, stale = WEB[version], STALE[version]
    reals = [Lab.address(pod, version) for pod in PODS]

    lines = []
    for name, kind in _SETS.items():
        inet = {4: "inet", 6: "inet6"}[version]
        options = f"family {inet} hashsize 1024 maxelem 65536"
        if kind == "bitmap:port":
            options = "range 0-65535"
        lines.append(f"create {(sets + name)[:31]} {kind} {options}")
    lines += [f"add {sets}CLUSTER-IP {ip},tcp:80" for ip in (web, stale)]
    lines += [f"add {sets}IPVS-IPS {ip}" for ip in (web, stale)]
    lines += [f"add {sets}LOOP-BACK {ip},tcp:8080,{ip}" for ip in reals]
    lines += [f"add {sets}NODE-PORT-TCP {port}" for port in (NODE_PORT + version, 31999)]
    lab.run("node", "ipset", "restore", input="\n".join([*lines, ""]))

    for ip in (web, stale):
        lab.run("node", "ip", "addr", "add", f"{ip}/{32 if version == 4 else 128}", "dev", DEVICE)
    virtuals = [at(web, 80), *(at(a, NODE_PORT + version) for a in node_addresses(version))]
    lines = [f"-A -t {virtual} -s rr" for virtual in virtuals]
    lines += [f"-a -t {v} -r {at(ip, 8080)} -m -w 1" for v in virtuals for ip in reals]
    # One that drained when kube-proxy ended and came back since, one that did not come back.
    lines.append(f"-e -t {at(web, 80)} -r {at(reals[1], 8080)} -m -w 0")
    lines.append(f"-a -t {at(web, 80)} -r {at(Lab.address('p3', version), 8080)} -m -w 0")
    for ip in (stale, OTHERS[version]):
        lines += [f"-A -t {at(ip, 80)} -s rr", f"-a -t {at(ip, 80)} -r {at(reals[0], 8080)} -m"]
    lab.run("node", "ipvsadm", "-R", input="\n".join([*lines, ""]))

    tool = {4: "iptables", 6: "ip6tables"}[version]
    loopback = {4: "127.0.0.0/8", 6: "::1/128"}[version]
    rules = _RULES.format(sets=sets, loopback=loopback, cluster=CLUSTER_CIDR[version])
    lab.run("node", f"{tool}-legacy-restore", "--noflush", input=rules)
