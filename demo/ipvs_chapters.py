"""The chapters that only ipvs mode has: virtual servers, sets, addresses, draining, a restart."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from demo.cast import NODE, NODE_PORT, WEB, WEB_FILE, WEB_PODS
from demo.chapters import chains, echoes
from demo.screen import Screen
from demo.servers import Virtual, explain, explain_real, virtual_servers
from demo.stage import Stage, expect
from e2e.lab import Connection

__all__ = [
    "COLUMN",
    "LAST_PODS",
    "NONE_LEFT",
    "OURS",
    "WRITTEN",
    "after_changes",
    "before_changes",
    "count",
    "to_look_with",
    "traces",
]

WRITTEN = "netlink messages and rules"
COLUMN = "sent"
OURS = "what ipvs mode makes"
NONE_LEFT = "nothing of ours is left"
LAST_PODS = WEB_PODS

_DEVICE = "kube-ipvs0"
_SET = "KUBE-CLUSTER-IP"
_HEADLESS_PORT = 5432
_SECONDS_TO_DRAIN = 30


def before_changes(stage: Stage, screen: Screen, connection: Connection) -> None:
    _virtual_servers(stage, screen)
    _around_them(stage, screen)
    _restart(stage, screen, connection)


def after_changes(stage: Stage, screen: Screen, connection: Connection) -> None:
    screen.heading("An endpoint leaves, its connection stays")
    leaving = connection.answer.server
    others = [pod for pod in WEB_PODS if pod != leaving]
    screen.say(f"{leaving} is taken out of web, and p3 has had a connection to it all the time:")
    stage.set_endpoints(WEB_FILE, others)
    endpoint = f"{stage.lab.address(leaving)}:8080"
    stage.wait_for(lambda: _weights(stage).get(endpoint) == 0, f"weight 0 for {leaving}")
    _show(stage, screen, _web(stage))
    counts = stage.counts("p3", WEB, 80, n=40)
    expect(set(counts) == set(others), f"while {leaving} drains, web was answered by {counts}")
    screen.answers("p3", f"{WEB}:80", counts)
    expect(echoes(connection), f"the connection to {leaving} is dead while it drains")
    screen.check(f"nothing new for {leaving}, and its connection goes on")
    screen.say(
        f"It may do so for {_SECONDS_TO_DRAIN} s (--ipvs-drain-timeout). But now {leaving} comes "
        "back:"
    )
    position = stage.log_length()
    stage.set_endpoints(WEB_FILE, LAST_PODS)
    stage.wait_for(lambda: _weights(stage).get(endpoint) == 1, f"weight 1 for {leaving}")
    stage.wait_for(lambda: stage.synced(position), "log line about the return")
    sent = sum(one["lines"] for one in stage.synced(position))
    expect(echoes(connection), f"the connection to {leaving} died when it came back")
    screen.check(f"back at weight 1, by an edit ({sent} sent), its connection untouched")


def to_look_with(stage: Stage) -> list[str]:
    return [
        "ipvsadm -Ln",
        f"ipset list {_SET}",
        f"ip address show {_DEVICE}",
        f"iptables-{stage.variant}-save | less",
    ]


def traces(stage: Stage) -> set[str]:
    found = chains(stage.saved())
    found |= {one.line for one in virtual_servers(stage.shown("ipvsadm", "-Ln"))}
    found |= {f"set {name}" for name in stage.shown("ipset", "list", "-n")}
    links = stage.shown("ip", "-o", "link")
    return found | {f"device {_DEVICE}" for line in links if f" {_DEVICE}:" in line}


def count(traces: Collection[str]) -> str:
    servers = sum(one.startswith(("TCP ", "UDP ", "SCTP ")) for one in traces)
    return f"{servers} virtual servers"


# --- chapters ---


def _virtual_servers(stage: Stage, screen: Screen) -> None:
    screen.heading("What the kernel holds: virtual servers")
    screen.say("A virtual server is what clients connect to, its real servers are the endpoints:")
    screen.command(["ipvsadm", "-Ln", "-t", f"{WEB}:80"])
    web = _web(stage)
    expect(set(_weights(stage).values()) == {1}, f"weights of web: {_weights(stage)}")
    _show(stage, screen, web)
    listed = virtual_servers(stage.shown("ipvsadm", "-Ln"))
    ports = [one for one in listed if one.port == NODE_PORT]
    expect(NODE in {one.address for one in ports}, f"no virtual server at {NODE}:{NODE_PORT}")
    behind = {real.endpoint.rpartition(":")[2] for one in listed for real in one.reals}
    expect(str(_HEADLESS_PORT) not in behind, "the headless Service has a virtual server")
    screen.check(f"{len(listed)} of them stand for 6 Services, one for each address and port")
    screen.check(f"{len(ports)} are for node port {NODE_PORT}: one at each address of the node")
    screen.check("none for db (headless) and payments (an alias in DNS)")


def _around_them(stage: Stage, screen: Screen) -> None:
    screen.heading("What is around them: addresses, sets, rules")
    screen.say(
        f"So that packets for Services come to IPVS at all, device {_DEVICE} has their addresses. "
        "It is down and carries nothing:"
    )
    screen.command(["ip", "-4", "-o", "address", "show", _DEVICE])
    bound = re.findall(r"inet (\S+)", "\n".join(stage.shown("ip", "-4", "-o", "a", "s", _DEVICE)))
    expect(f"{WEB}/32" in bound, f"{WEB} is not on {_DEVICE}: {bound}")
    screen.picture("  ".join(bound[:3]) + "\n" + "  ".join(bound[3:]))
    screen.say("Rules do not name Services. They ask sets, and a change touches the set alone:")
    screen.command(["ipset", "list", _SET])
    printed = stage.shown("ipset", "list", _SET)
    members = sorted(printed[printed.index("Members:") + 1 :])
    expect(f"{WEB},tcp:80" in members, f"{WEB} is not in {_SET}: {members}")
    screen.picture("  ".join(members[:3]) + "\n" + "  ".join(members[3:]))
    asking = [rule for rule in stage.saved() if f"--match-set {_SET} " in rule and "! -s" in rule]
    expect(len(asking) == 1, f"rules about who is masqueraded: {asking}")
    rule = re.sub(r' -m comment --comment ("[^"]*"|\S+)', "", asking[0]).removeprefix("-A ")
    screen.rule_line(rule, "to a cluster IP, from outside the pods? remember to masquerade")


def _restart(stage: Stage, screen: Screen, connection: Connection) -> None:
    screen.heading("A restart")
    before = _everything(stage)
    stage.stop()
    seconds = stage.start()
    stage.wait_for(lambda: stage.synced(family="IPv6"), "the first look at IPv6")
    passes = stage.synced() + stage.synced(family="IPv6")
    sent = sum(one["lines"] for one in passes)
    expect(not sent, f"{sent} messages and rules were sent, though nothing had changed")
    after = _everything(stage)
    changed = [name for name, lines in before.items() if lines != after[name]]
    expect(not changed, f"the restart changed {', '.join(changed)}")
    expect(echoes(connection), "the connection through the virtual server died")
    screen.check(f"the daemon ended, came back and compared all of it in {seconds * 1000:.0f} ms")
    screen.check("it sent no message that changes something, and wrote no rule")
    screen.check(f"the connection from p3 to {connection.answer.server} goes on")


# --- what the kernel holds ---


def _web(stage: Stage) -> Virtual:
    return virtual_servers(stage.shown("ipvsadm", "-Ln", "-t", f"{WEB}:80"))[0]


def _weights(stage: Stage) -> dict[str, int]:
    """Of the real servers of web."""
    return {real.endpoint: real.weight for real in _web(stage).reals}


def _show(stage: Stage, screen: Screen, virtual: Virtual) -> None:
    screen.rule_line(virtual.line.strip(), explain(virtual))
    for real in virtual.reals:
        screen.rule_line(real.line.strip(), explain_real(real, stage.lab.owner))


def _everything(stage: Stage) -> Mapping[str, list[str]]:
    """All that the daemon writes, in an order that says nothing."""
    rules = stage.saved() + stage.shown(f"ip6tables-{stage.variant}-save")
    return {
        "virtual servers": sorted(stage.shown("ipvsadm", "-Sn")),
        "sets": sorted(stage.shown("ipset", "save")),
        "addresses": sorted(stage.shown("ip", "-o", "address", "show", _DEVICE)),
        "rules": [line for line in rules if line.startswith("-A ")],
    }
