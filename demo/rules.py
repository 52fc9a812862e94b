"""What iptables-save prints about one Service, in reading order, and what each rule means.

Only the demo reads rules as text, and only to explain them; the daemon never does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

__all__ = ["explain", "mentions", "rules_of"]

_JUMP = re.compile(r" -j (KUBE-(?:SVC|SVL|SEP|EXT|FW)-\w+)")
_COMMENT = re.compile(r' -m comment --comment (?:"[^"]*"|\S+)')
_DESTINATION = re.compile(r" -d (\S+?)/\d+ ")
_PORT = re.compile(r"--dport (\d+)")
_DNAT = re.compile(r"--to-destination (\S+)")
_SOURCE = re.compile(r"(! )?-s (\S+)")
_PROBABILITY = re.compile(r"--probability ([\d.]+)")


def mentions(saved: Iterable[str], service: str) -> list[str]:
    """The lines that name *service* (``namespace/name``) in their comment."""
    name = re.compile(rf"\b{re.escape(service)}(?![\w-])")
    return [line for line in saved if line.startswith("-A ") and name.search(line)]


def rules_of(saved: Sequence[str], address: str) -> list[str]:
    """The rules that a packet to the cluster IP *address* may meet, each chain after its jump."""
    start = [line for line in saved if line.startswith(f"-A KUBE-SERVICES -d {address}/")]
    found = list(start)
    for rule in start:
        _follow(saved, rule, found)
    return found


def _follow(saved: Sequence[str], rule: str, found: list[str]) -> None:
    jump = _JUMP.search(rule)
    if jump is None:
        return
    chain = [line for line in saved if line.startswith(f"-A {jump[1]} ")]
    found.extend(line for line in chain if line not in found)
    for line in chain:
        _follow(saved, line, found)


def explain(rule: str, saved: Sequence[str], owner: Callable[[str], str]) -> tuple[str, str]:
    """*rule* without its comment, and its meaning; *owner* names whose address something is."""
    short = _COMMENT.sub("", rule)
    short = short.replace(" -m tcp", "").replace(" -m udp", "").removeprefix("-A ")
    return short, _meaning(short, saved, owner)


def _meaning(rule: str, saved: Sequence[str], owner: Callable[[str], str]) -> str:
    chain = rule.split(" ", 1)[0]
    if match := _DNAT.search(rule):
        return f"the packet gets its new destination: {_pod(match[1], owner)}"
    if rule.endswith("KUBE-MARK-MASQ"):
        source = _SOURCE.search(rule)
        if source is None:
            return "remember to masquerade"
        if source[1]:
            return f"a client outside {source[2]}? its answer must come back through this node"
        return f"{owner(source[2].split('/')[0])} calling itself? it must not notice"
    if match := _PROBABILITY.search(rule):
        return f"one in {round(1 / float(match[1]))} that come here: {_target(rule, saved, owner)}"
    if chain == "KUBE-SERVICES":
        destination, port = _DESTINATION.search(rule), _PORT.search(rule)
        if destination and port:
            return f"to {destination[1]} port {port[1]}? then this Service decides"
    return f"everybody else: {_target(rule, saved, owner)}"


def _target(rule: str, saved: Sequence[str], owner: Callable[[str], str]) -> str:
    """The endpoint behind the chain that *rule* jumps to."""
    if jump := _JUMP.search(rule):
        for line in saved:
            if line.startswith(f"-A {jump[1]} ") and (match := _DNAT.search(line)):
                return _pod(match[1], owner)
    return "the next chain"


def _pod(endpoint: str, owner: Callable[[str], str]) -> str:
    address, _, port = endpoint.rpartition(":")
    return f"{owner(address)} ({address}:{port})"
