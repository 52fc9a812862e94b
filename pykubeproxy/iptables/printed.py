"""How iptables-save prints the rules of ours: the same text for both variants.

With it, what the kernel holds can be compared with what is wanted as text, without having
written it first. e2e/kernel/test_printed_rules.py holds it to the real tools (1.8.9).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from pykubeproxy.model.kinds import Family

__all__ = ["printed"]

_is_plain = re.compile(r"[A-Za-z0-9_-]+").fullmatch

_BASIC = ("-s", "-d", "-i", "-o", "-p")
"""In the order of printing, before all matches."""
_OPTIONS = {
    "--comment": 1,
    "--ctstate": 1,
    "--dport": 1,
    "--dst-type": 1,
    "--mark": 1,
    "--match-set": 2,
    "--mode": 1,
    "--name": 1,
    "--nfacct-name": 1,
    "--physdev-is-in": 0,
    "--probability": 1,
    "--rcheck": 0,
    "--reap": 0,
    "--seconds": 1,
    "--set": 0,
    "--src-type": 1,
    "--vaddr": 1,
    "--vport": 1,
    "--vproto": 1,
}
"""How many words follow each option of a match."""
_ORDERED = {
    "recent": ("--set", "--rcheck", "--seconds", "--reap", "--name", "--mask", "--rsource"),
    "ipvs": ("--vproto", "--vaddr", "--vport"),
}
"""Matches whose options we do not always write in the order of printing."""
_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
_PROTOCOL_NUMBERS = {"tcp": "6", "udp": "17", "sctp": "132"}
_RECENT_MASK = {Family.IPV4: "255.255.255.255", Family.IPV6: ":".join(["ffff"] * 8)}
_REJECT = {Family.IPV4: "icmp-port-unreachable", Family.IPV6: "icmp6-port-unreachable"}


def printed(rule: str, family: Family) -> str:
    """Return *rule*, a rule body as our compilers write it, as iptables-save prints it.

    What is printed already comes back as it is. Some 10 microseconds.

    Raises:
        ValueError: none of our rules has such a word.
    """
    words = iter(_split(rule))
    basic: dict[str, str] = {}
    matches: list[tuple[str, dict[str, str]]] = []
    target = bang = ""
    for word in words:
        count = _OPTIONS.get(word)
        if count is not None and matches:
            text = bang + word
            if count == 1:
                value = next(words, "")
                show = _SHOW.get(word)
                text += f" {show(value) if show else value}"
            elif count:
                text += f" {next(words, '')} {next(words, '')}"
            matches[-1][1][word] = text
        elif word == "-m":
            matches.append((next(words, ""), {}))
        elif word == "-j":
            target = _target(words, family)
        elif word in _BASIC:
            basic[word] = _basic(bang, word, next(words, ""), family)
        elif word == "!":
            bang = "! "
            continue
        elif word == "--mask":  # like --rsource the same in all rules, and added below
            next(words, "")
        elif word != "--rsource":
            raise ValueError(f"{word!r} is in no rule of ours: {rule}")
        bang = ""
    parts = [basic[option] for option in _BASIC if option in basic] if basic else []
    for name, options in matches:
        parts.append(f"-m {name}")
        if name == "recent":
            options |= {"--mask": f"--mask {_RECENT_MASK[family]}", "--rsource": "--rsource"}
        if name in _ORDERED:
            parts += [options[option] for option in _ORDERED[name] if option in options]
        else:
            parts += options.values()
    parts.append(target)
    return " ".join(part for part in parts if part)


def _split(rule: str) -> list[str]:
    """Split into words; only comments are quoted, and they hold no quotes."""
    if '"' not in rule:
        return rule.split()
    words: list[str] = []
    for index, piece in enumerate(rule.split('"')):
        words += [piece] if index % 2 else piece.split()
    return words


def _basic(bang: str, option: str, value: str, family: Family) -> str:
    if option in ("-s", "-d"):
        if "/" not in value:
            value = f"{value}/{family.host_prefix}"
        elif value.endswith("/0") and not bang:
            return ""
    return f"{bang}{option} {value}"


def _target(words: Iterable[str], family: Family) -> str:
    name, *options = words
    match name, options:
        case "MARK", ["--xor-mark", value]:
            return f"-j MARK --set-xmark {_number(value)}/0x0"
        case "MARK", ["--or-mark", value]:
            return f"-j MARK --set-xmark {_number(value)}/{_number(value)}"
        case "REJECT", []:
            return f"-j REJECT --reject-with {_REJECT[family]}"
        case _:
            return " ".join(["-j", name, *options])


def _number(text: str) -> str:
    return hex(int(text, 16))


def _comment(text: str) -> str:
    if _is_plain(text):
        return text
    escaped = text.replace("\\'", "'").replace("'", "\\'")
    return f'"{escaped}"'


def _mark(text: str) -> str:
    return "/".join(map(_number, text.split("/")))


def _states(text: str) -> str:
    named = text.split(",")
    return ",".join(state for state in _STATES if state in named)


def _probability(text: str) -> str:
    # The kernel keeps 31 bits of it.
    return f"{round(float(text) * (1 << 31)) / (1 << 31):.11f}"


_SHOW: dict[str, Callable[[str], str]] = {
    "--comment": _comment,
    "--ctstate": _states,
    "--mark": _mark,
    "--nfacct-name": lambda name: f" {name}",
    "--probability": _probability,
    "--vproto": lambda name: _PROTOCOL_NUMBERS.get(name, name),
}
