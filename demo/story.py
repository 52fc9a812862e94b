"""The story, chapter by chapter. Each claim is checked before it is printed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence

from demo import iptables_chapters, ipvs_chapters
from demo.cast import (
    CART,
    CLIENT,
    DNS,
    FAR,
    NODE,
    NODE_PORT,
    PICTURE,
    PUBLIC,
    WEB,
    WEB_FILE,
    WEB_PODS,
)
from demo.chapters import Chapters, echoes
from demo.following import follow
from demo.screen import Screen
from demo.stage import EXAMPLES, Stage, Unmet, expect, who
from e2e.guest import in_guest
from e2e.lab import REFUSED, Answer, Connection

__all__ = ["tell"]

_CHAPTERS: Mapping[str, Chapters] = {"iptables": iptables_chapters, "ipvs": ipvs_chapters}
_COLUMNS = (19, -12, -7, -6, -6, -11)


def tell(stage: Stage, screen: Screen, *, keep: bool) -> None:
    """Tell it all; with *keep*, wait before the end until interrupted.

    Raises:
        Unmet: something is not as the story says.
    """
    mode = _CHAPTERS[stage.mode]
    _network(screen)
    _start(stage, screen, mode)
    connection = stage.connect("p3", WEB, 80)
    try:
        for chapter in (_cluster_ip, _from_outside, _load_balancer, _affinity, _dns):
            chapter(stage, screen)
        mode.before_changes(stage, screen, connection)
        _changes(stage, screen, connection, mode)
        mode.after_changes(stage, screen, connection)
    finally:
        connection.close()
    if keep:
        _keep(stage, screen, mode)
    _ending(stage, screen, mode)


def _network(screen: Screen) -> None:
    screen.heading("A cluster that fits into one kernel")
    screen.say(
        "Network namespaces play two nodes, five pods and a client. The pods run small servers "
        "that answer with their name. Nobody owns an address in 10.96.0.0/12: Services live "
        "there, and only rules make them real."
    )
    screen.picture(PICTURE)
    if in_guest():
        screen.say(
            "The kernel is that of a User-Mode Linux guest, because the running one has no IPVS. "
            "It is slow: on a node everything takes a fraction of the times shown here."
        )


def _start(stage: Stage, screen: Screen, mode: Chapters) -> None:
    screen.heading("Start the daemon")
    before = stage.lab.probe("p3", WEB, 80)
    expect(not isinstance(before, Answer), f"{WEB} answered before there was a proxy")
    screen.say(f"Without a proxy, nobody answers at {WEB} ({who(before)}). So, on the node:")
    shown = [flag for flag in stage.flags if "manifests" not in flag and "logging" not in flag]
    screen.command(["pykubeproxy", "--manifests=examples/", *shown])
    seconds = stage.start()
    first = stage.synced()[0]
    verdict = next(one for one in stage.records() if one["event"] == "iptables variant")
    screen.check(f"iptables variant: {verdict['variant']} ({verdict['reason']})")
    screen.check(
        f"{len(list(EXAMPLES.glob('*.yaml')))} manifests read, {first['services']} Services "
        f"written: {first['lines']} {mode.WRITTEN} in {first['write_ms']:g} ms"
    )
    screen.check(f"{seconds * 1000:.0f} ms from start to rules in the kernel")


def _cluster_ip(stage: Stage, screen: Screen) -> None:
    screen.heading("One address, several servers")
    screen.say(
        f"Service web: {WEB} port 80 stands for p1, p2 and r1. Sixty connections from each side:"
    )
    for sender in ("p3", "node"):
        counts = stage.counts(sender, WEB, 80)
        expect(set(counts) == {"p1", "p2", "r1"}, f"{sender} -> {WEB}:80 was answered by {counts}")
        screen.answers(sender, f"{WEB}:80", counts)


def _from_outside(stage: Stage, screen: Screen) -> None:
    screen.heading("A port on the node: NodePort")
    screen.say(
        f"The same pods for somebody outside, who knows nothing but the node's port {NODE_PORT}:"
    )
    counts, sources = _with_sources(stage, "client", NODE, NODE_PORT)
    expect(set(counts) == {"p1", "p2", "r1"}, f"the node port was answered by {counts}")
    expect(sources == {NODE}, f"servers behind the node port saw {sources}, not the node")
    screen.answers("client", f"{NODE}:{NODE_PORT}", counts)
    screen.say(f"Servers saw the node ({NODE}) as their caller, so that answers find their way.")


def _load_balancer(stage: Stage, screen: Screen) -> None:
    screen.heading("A guest list: LoadBalancer with source ranges")
    screen.say(
        f"{PUBLIC} admits {CLIENT} only, and externalTrafficPolicy Local keeps to the pods of "
        "this node:"
    )
    counts, sources = _with_sources(stage, "client", PUBLIC, 80)
    expect(set(counts) == {"p1", "p2"}, f"{PUBLIC} was answered by {counts}")
    expect(sources == {CLIENT}, f"servers behind {PUBLIC} saw {sources}, not the client")
    screen.answers("client", f"{PUBLIC}:80", counts)
    refused = stage.counts("far", PUBLIC, 80, n=20)
    expect(set(refused) == {"timeout"}, f"{FAR} is not on the list, but got {refused}")
    screen.answers("far", f"{PUBLIC}:80", refused, "not on the list: dropped")
    screen.say(f"And with Local the servers saw the true caller, {CLIENT}.")


def _affinity(stage: Stage, screen: Screen) -> None:
    screen.heading("Session affinity")
    screen.say("Service cart has four endpoints, and sends each client back to its first one:")
    for sender in ("p3", "client", "far"):
        counts = stage.counts(sender, CART, 80, n=1)
        counts += stage.counts(sender, CART, 80, n=39)
        expect(
            len(counts) == 1 and set(counts) <= {"p1", "p2", "r1", "r2"},
            f"{sender} -> cart was answered by {counts}",
        )
        screen.answers(sender, f"{CART}:80", counts)


def _dns(stage: Stage, screen: Screen) -> None:
    screen.heading("UDP too: the cluster's name server")
    for sender in ("p3", "node"):
        counts = stage.counts(sender, DNS, 53, protocol="UDP")
        expect(set(counts) == {"p2", "r2"}, f"{sender} -> kube-dns was answered by {counts}")
        screen.answers(sender, f"{DNS}:53/udp", counts)


def _changes(stage: Stage, screen: Screen, connection: Connection, mode: Chapters) -> None:
    screen.heading("Live changes")
    screen.say(
        "The manifest of web is rewritten while p3 connects every millisecond. How long until new "
        "connections followed, how many were lost between old and new, and what the daemon wrote:"
    )
    screen.row(_cells("", "followed in", "probes", "lost", mode.COLUMN, "written in"), "quiet")
    three, four = list(WEB_PODS), [*WEB_PODS, "r2"]
    _change(stage, screen, "scale up 3 to 4", three, four)
    _change(stage, screen, "scale down 4 to 1", four, ["p1"])
    _change(stage, screen, "scale down 1 to 0", ["p1"], [])
    began = time.monotonic()
    reply = stage.lab.probe("p3", WEB, 80)
    refusal = time.monotonic() - began
    expect(reply is REFUSED, f"without endpoints web was answered by {who(reply)}")
    screen.check(f"nobody left: connection refused, after {refusal * 1000:.1f} ms, no timeout")
    _change(stage, screen, "scale up 0 to 3", [], three)
    counts = stage.counts("p3", WEB, 80)
    expect(set(counts) == {"p1", "p2", "r1"}, f"after scaling, web was answered by {counts}")
    screen.answers("p3", f"{WEB}:80", counts)
    expect(echoes(connection), "the connection opened at the start is dead")
    screen.check(
        f"and the connection that p3 opened to {connection.answer.server} at the very start "
        "still works"
    )


def _change(
    stage: Stage, screen: Screen, title: str, before: Sequence[str], after: Sequence[str]
) -> None:
    """Let the endpoints of web go from *before* to *after*, and show the figures."""
    position = stage.log_length()
    followed = follow(
        stage,
        "p3",
        WEB,
        80,
        lambda: stage.set_endpoints(WEB_FILE, after),
        before or ["refused"],
        after or ["refused"],
    )
    stage.wait_for(lambda: stage.synced(position), "log line about the change")
    passes = stage.synced(position)
    expect(
        all(one["services"] <= 1 for one in passes),
        "a change of one Service made the daemon look at others",
    )
    screen.row(
        _cells(
            title,
            f"{followed.seconds * 1000:.0f} ms",
            f"{followed.probes}",
            f"{followed.lost}",
            f"{sum(one['lines'] for one in passes)}",
            f"{sum(one['write_ms'] for one in passes):.1f} ms",
        )
    )


def _cells(*texts: str) -> list[tuple[str, int]]:
    return list(zip(texts, _COLUMNS, strict=True))


def _keep(stage: Stage, screen: Screen, mode: Chapters) -> None:
    screen.heading("Look around")
    node, client = (stage.lab.namespace(role) for role in ("node", "client"))
    screen.say("Everything keeps running. In another terminal, as root:")
    for command in (
        *(f"ip netns exec {node} {command}" for command in mode.to_look_with(stage)),
        f"ip netns exec {client} bash -c 'head -1 </dev/tcp/{NODE}/{NODE_PORT}'",
        f"ip netns exec {node} curl -s localhost:10249/metrics",
        f"$EDITOR {stage.manifests / WEB_FILE}",
        f"tail -f {stage.log}",
    ):
        screen.command([command])
    screen.say("Ctrl-C ends it: the last chapter, then everything is removed.")
    stage.wait_for_interrupt()


def _ending(stage: Stage, screen: Screen, mode: Chapters) -> None:
    screen.heading("The end")
    before = mode.traces(stage)
    status = stage.stop()
    expect(status == 0, f"the daemon ended with status {status}:\n{stage.last_words()}")
    after = mode.traces(stage)
    expect(after == before, f"stopping the daemon changed {mode.OURS}")
    counts = stage.counts("p3", WEB, 80, n=40)
    expect(set(counts) == set(mode.LAST_PODS), f"after SIGTERM web was answered by {counts}")
    screen.check(f"SIGTERM: the daemon is gone, its {mode.count(after)} stay, and still:")
    screen.answers("p3", f"{WEB}:80", counts)
    done = stage.clean_up()
    expect(done.returncode == 0, f"--cleanup failed: {done.stderr.decode()}")
    left = mode.traces(stage)
    expect(not left, f"--cleanup left {mode.OURS}: {', '.join(sorted(left))}")
    expect(not isinstance(stage.lab.probe("p3", WEB, 80), Answer), f"{WEB} answers after --cleanup")
    screen.check(f"pykubeproxy --cleanup: {mode.NONE_LEFT}, nobody answers any more")


def _with_sources(
    stage: Stage, sender: str, target: str, port: int
) -> tuple[Counter[str], set[str]]:
    burst = stage.lab.burst(sender, target, port, 60, timeout=1.0)
    if burst.silent:
        raise Unmet(f"{sender} -> {target}:{port}: {dict(burst.silent)} of 60 without an answer")
    counts = Counter({name.partition(":")[0]: n for name, n in burst.servers.items()})
    return counts, set(burst.sources)
