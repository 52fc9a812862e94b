"""A strict, atomic, in-memory stand-in for iptables, iptables-restore and iptables-save.

One `Xtables` is one family of one variant. It understands what a service proxy writes and
refuses what the real tools (1.8.9) refuse, with their exit statuses and line numbers;
e2e/kernel/test_fake_against_tools.py holds it to that. What it does not know at all is refused as
an unknown option, never ignored. It is called like `pykubeproxy.host.exec.run`.
"""

from __future__ import annotations

import re
import signal as signals
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import PurePath

from msgspec import Struct

from pykubeproxy.host.exec import Finished, Input, Killed, NotStarted, Result, TimedOut

__all__ = ["BUILTIN", "Condition", "Fault", "Refused", "Rule", "Table", "Xtables", "parse_rule"]

BUILTIN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
}
MAX_CHAIN_NAME = 28
MAX_COMMENT = 255
MAX_SET_NAME = 31
MAX_SET_DIRECTIONS = 6
LOCK_STATUS = 4


# --- rules -------------------------------------------------------------------------------------


class Condition(Struct, frozen=True, gc=False):
    """One test of a rule: ``-d``, ``--dport``, ``--ctstate``, … with its canonical value."""

    match: str  # "" for the basic ones
    option: str
    value: str = ""
    negated: bool = False

    def text(self) -> str:
        bang = "! " if self.negated else ""
        if self.option == "--comment":
            return f"{bang}{self.option} {_quoted(self.value)}"
        if self.option == "--nfacct-name":  # two blanks, as the real tool prints it
            return f"{bang}{self.option}  {self.value}"
        return f"{bang}{self.option} {self.value}".rstrip()


class Rule(Struct, frozen=True):
    """A parsed rule; two rules are the same rule when their `text` is the same."""

    text: str
    conditions: tuple[Condition, ...]
    target: str = ""
    target_options: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """What a tool says when it gives up; *late* ones surface when the table is committed."""

    def __init__(self, status: int, message: str, *, late: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.late = late


def _usage(message: str) -> Refused:
    return Refused(2, message)


_VERDICTS = frozenset({"ACCEPT", "DROP", "RETURN", "QUEUE"})
_TARGET_TABLES = {"DNAT": ("nat",), "MASQUERADE": ("nat",), "REJECT": ("filter",)}
_TARGET_HOOKS = {"DNAT": ("PREROUTING", "OUTPUT"), "MASQUERADE": ("POSTROUTING",)}
_TARGETS: dict[str, frozenset[str]] = {
    "DNAT": frozenset({"--to-destination"}),
    "MASQUERADE": frozenset({"--random-fully"}),
    "MARK": frozenset({"--xor-mark", "--or-mark", "--and-mark", "--set-mark", "--set-xmark"}),
    "REJECT": frozenset({"--reject-with"}),
}
_REJECT_WITH = {
    4: ("icmp-port-unreachable", {"icmp-port-unreachable", "icmp-host-unreachable", "tcp-reset"}),
    6: (
        "icmp6-port-unreachable",
        {"icmp6-port-unreachable", "icmp6-addr-unreachable", "tcp-reset"},
    ),
}
_FLAGS = frozenset(
    {
        *("--set", "--rcheck", "--update", "--reap", "--rsource", "--random-fully"),
        *("--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged"),
    }
)
_MATCHES: dict[str, tuple[str, ...]] = {
    # options in the order in which they are printed
    "comment": ("--comment",),
    "tcp": ("--sport", "--dport"),
    "udp": ("--sport", "--dport"),
    "sctp": ("--sport", "--dport"),
    "conntrack": ("--ctstate",),
    "mark": ("--mark",),
    "addrtype": ("--src-type", "--dst-type"),
    "statistic": ("--mode", "--probability"),
    "recent": (
        "--set",
        "--rcheck",
        "--update",
        "--seconds",
        "--reap",
        "--name",
        "--mask",
        "--rsource",
    ),
    "nfacct": ("--nfacct-name",),
    "set": ("--match-set",),
    "physdev": ("--physdev-is-in", "--physdev-is-out", "--physdev-is-bridged"),
    "ipvs": ("--vproto", "--vaddr", "--vport"),
}
_STATES = ("INVALID", "NEW", "RELATED", "ESTABLISHED", "UNTRACKED", "SNAT", "DNAT")
_ADDRESS_TYPES = frozenset({"LOCAL", "UNICAST", "BROADCAST", "MULTICAST", "UNREACHABLE"})
_PROTOCOLS = {
    "tcp": "tcp",
    "udp": "udp",
    "sctp": "sctp",
    "6": "tcp",
    "17": "udp",
    "132": "sctp",
    "icmp": "icmp",
    "ipv6-icmp": "ipv6-icmp",
    "icmpv6": "ipv6-icmp",
    "all": "",
}
_BASIC = {
    "-s": "-s",
    "--source": "-s",
    "--src": "-s",
    "-d": "-d",
    "--destination": "-d",
    "--dst": "-d",
    "-i": "-i",
    "--in-interface": "-i",
    "-o": "-o",
    "--out-interface": "-o",
    "-p": "-p",
    "--protocol": "-p",
}
_PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_PLAIN = re.compile(r"[A-Za-z0-9_-]+")


@lru_cache(maxsize=1 << 16)
def parse_rule(text: str, version: int, nft: bool = True) -> Rule:
    """Parse the part of a rule behind the chain name.

    Raises:
        Refused: the tools would refuse it, whatever table and chain it is for.
    """
    return _Parser(_split(text), version, nft).rule()


class _Parser:
    def __init__(self, tokens: list[str], version: int, nft: bool) -> None:
        self.tokens = tokens
        self.at = 0
        self.version = version
        self.nft = nft
        self.basic: dict[str, Condition] = {}
        self.loaded: list[tuple[str, dict[str, Condition]]] = []
        self.target = ""
        self.target_options: dict[str, str] = {}

    def rule(self) -> Rule:
        while self.at < len(self.tokens):
            negated = self.tokens[self.at] == "!"
            if negated:
                self.at += 1
                if self.at >= len(self.tokens):
                    raise _usage("Bad argument `!'")
            self.option(self.tokens[self.at], negated)
        return self.finished()

    def value(self, option: str) -> str:
        if self.at >= len(self.tokens):
            raise _usage(f'option "{option}" requires an argument')
        self.at += 1
        return self.tokens[self.at - 1]

    def option(self, option: str, negated: bool) -> None:
        self.at += 1
        if option in _BASIC:
            self.basic_option(_BASIC[option], negated)
        elif option in ("-m", "--match"):
            name = self.value(option)
            if name not in _MATCHES:
                raise _usage(f"Couldn't load match `{name}':No such file or directory\n")
            self.loaded.append((name, {}))
        elif option in ("-j", "--jump"):
            if self.target:
                raise _usage("multiple -j flags not allowed")
            self.target = self.value(option)
            if not self.target:
                raise _usage("Invalid target name (too short)")
        elif not option.startswith("-"):
            raise _usage(f"Bad argument `{option}'")
        elif option in _TARGETS.get(self.target, ()):
            self.target_options[option] = "" if option in _FLAGS else self.value(option)
        else:
            self.match_option(option, negated)

    def basic_option(self, option: str, negated: bool) -> None:
        value = self.value(option)
        if option in self.basic:
            raise _usage(f"multiple {option} flags not allowed")
        if option in ("-s", "-d"):
            value = self.network(value)
        elif option == "-p":
            if value.lower() not in _PROTOCOLS:
                raise _usage(f'unknown protocol "{value}" specified')
            value = _PROTOCOLS[value.lower()]
            if not value:
                return
        elif len(value) > 15:
            raise _usage(f"interface name `{value}' must be shorter than IFNAMSIZ (15)")
        self.basic[option] = Condition("", option, value, negated)

    def match_option(self, option: str, negated: bool) -> None:
        found = next((each for each in reversed(self.loaded) if option in _MATCHES[each[0]]), None)
        if found is None:
            protocol = self.basic.get("-p")
            if protocol is None or option not in _MATCHES.get(protocol.value, ()):
                raise _usage(f'unknown option "{option}"')
            found = (protocol.value, {})
            self.loaded.append(found)
        name, options = found
        if option in options:
            raise _usage(f'{name}: option "{option}" can only be used once')
        value = "" if option in _FLAGS else self.value(option)
        if option == "--match-set":
            if self.at >= len(self.tokens) or self.tokens[self.at].startswith(("-", "!")):
                raise _usage("--match-set requires two args.")
            value += f" {self.value(option)}"
        options[option] = Condition(name, option, self.canonical(name, option, value), negated)

    def canonical(self, name: str, option: str, value: str) -> str:
        match option:
            case "--dport" | "--sport":
                return ":".join(str(_port(part)) for part in value.split(":", 1))
            case "--comment":
                return value.encode()[:MAX_COMMENT].decode(errors="ignore")
            case "--ctstate":
                states = value.upper().split(",")
                if bad := [state for state in states if state not in _STATES]:
                    raise _usage(f'Bad ctstate "{bad[0]}"')
                return ",".join(state for state in _STATES if state in states)
            case "--mark":
                return _mark_and_mask(value)
            case "--src-type" | "--dst-type":
                if value not in _ADDRESS_TYPES:
                    raise _usage(f"addrtype: bad type `{value}'")
                return value
            case "--mode":
                if value != "random":
                    raise _usage(f'bad mode "{value}"')
                return value
            case "--probability":
                return _probability(value)
            case "--seconds":
                if not value.isdigit():
                    raise _usage(f'recent: bad value for option "--seconds": {value}')
                return value
            case "--nfacct-name":
                if len(value) > 31:
                    raise _usage("nfacct: name too long")
                return value
            case "--match-set":
                return _set_and_directions(value)
            case "--vproto":
                found = _PROTOCOLS.get(value.lower(), "")
                if found not in _PROTOCOL_NUMBERS:
                    raise _usage(f'unknown protocol "{value}" specified')
                return str(_PROTOCOL_NUMBERS[found])
            case "--vaddr":
                host, _, length = value.partition("/")
                if not _is_ip(host, self.version):
                    raise _usage("getaddrinfo: Address family for hostname not supported\n")
                # Bits beyond the prefix stay, unlike those of -s and -d.
                full = ip_address(host).max_prefixlen
                return str(ip_address(host)) + ("" if length in ("", str(full)) else f"/{length}")
            case "--vport":
                return str(_number(value) & 0xFFFF)  # 70000 is 4464, without a word
            case _:
                return value

    def network(self, value: str) -> str:
        try:
            # A bare number after the slash or a mask, as in the real tools.
            network = ip_network(value, strict=False)
        except ValueError:
            network = None
        if network is None or network.version != self.version:
            host, slash, length = value.partition("/")
            if slash and _is_ip(host, self.version):
                raise _usage(f"invalid mask `{length}' specified")
            raise _usage(f"host/network `{host}' not found")
        return str(network)

    def finished(self) -> Rule:
        conditions: list[Condition] = []
        parts: list[str] = []
        for option in ("-s", "-d", "-i", "-o", "-p"):
            if (condition := self.basic.get(option)) is not None:
                if option in ("-s", "-d") and condition.value in ("0.0.0.0/0", "::/0"):
                    if condition.negated:
                        parts.append(condition.text())
                        conditions.append(condition)
                    continue
                parts.append(condition.text())
                conditions.append(condition)
        for name, options in self.loaded:
            self.check(name, options)
            parts.append(f"-m {name}")
            for option in _MATCHES[name]:
                if option in options:
                    parts.append(options[option].text())
                    conditions.append(options[option])
        if self.target:
            parts.append(f"-j {self.target}")
            parts += [f"{key} {value}".rstrip() for key, value in self.target_text()]
        options_ = tuple(self.target_text())
        return Rule(" ".join(parts), tuple(conditions), self.target, options_)

    def check(self, name: str, options: dict[str, Condition]) -> None:
        if name in ("tcp", "udp", "sctp"):
            protocol = self.basic.get("-p")
            if protocol is None or protocol.value != name or protocol.negated:
                if self.nft and name in ("tcp", "udp"):
                    raise _usage(f"{name.upper()} match requires '-p {name}'")
                raise Refused(1, f"match {name} without -p {name}", late=True)
        elif name == "recent":
            if not {"--set", "--rcheck", "--update"} & options.keys():
                raise _usage("recent: you must specify one of `--set', `--rcheck' …")
            mask = "255.255.255.255" if self.version == 4 else ":".join(["ffff"] * 8)
            options.setdefault("--name", Condition("recent", "--name", "DEFAULT"))
            options.setdefault("--mask", Condition("recent", "--mask", mask))
            options.setdefault("--rsource", Condition("recent", "--rsource"))
            if "--reap" in options and "--seconds" not in options:
                raise _usage('recent: option "--reap" also requires "--seconds"')
        elif name == "statistic":
            if "--mode" not in options or "--probability" not in options:
                raise _usage('statistic: option "--mode" must be specified')
        elif name == "set" and not options:
            raise _usage("You must specify `--match-set' with proper arguments")
        elif name == "physdev" and not options:
            raise _usage("PHYSDEV: no physdev option specified")
        elif name == "ipvs" and not options:
            raise _usage("IPVS: At least one option is required")
        elif name in ("comment", "mark", "nfacct", "conntrack") and not options:
            raise _usage(f"{name}: you must specify an option")
        elif name == "addrtype" and not options:
            raise _usage("addrtype: you must specify --src-type or --dst-type")

    def target_text(self) -> Iterator[tuple[str, str]]:
        match self.target:
            case "DNAT":
                destination = self.target_options.get("--to-destination")
                if destination is None:
                    raise _usage('DNAT: option "--to-destination" must be specified')
                self.check_destination(destination)
                yield "--to-destination", destination
            case "MARK":
                if len(self.target_options) != 1:
                    raise _usage("MARK: One of the --set-xmark … options is required")
                ((option, value),) = self.target_options.items()
                yield "--set-xmark", _xmark(option, value)
            case "REJECT":
                default, known = _REJECT_WITH[self.version]
                chosen = self.target_options.get("--reject-with", default)
                if chosen not in known:
                    raise _usage(f'unknown reject type "{chosen}"')
                yield "--reject-with", chosen
            case "MASQUERADE":
                yield from self.target_options.items()

    def check_destination(self, text: str) -> None:
        host, port = text, ""
        if text.startswith("["):
            host, _, port = text[1:].partition("]")
            port = port.removeprefix(":")
        elif self.version == 4:
            host, _, port = text.partition(":")
        if not _is_ip(host, self.version):
            raise _usage(f'Bad IP address "{host}"')
        if port:
            protocol = self.basic.get("-p")
            if protocol is None or protocol.value not in ("tcp", "udp", "sctp"):
                raise _usage("Need TCP, UDP, SCTP or DCCP with port specification")
            if not port.isdigit() or not 1 <= int(port) <= 65535:
                raise _usage(f"Port `{port}' not valid")


def _is_ip(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise _usage(f"invalid port/service `{text}' specified")
    return int(text)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise _usage(f"bad integer value `{text}'") from None


def _mark_and_mask(text: str) -> str:
    mark, slash, mask = text.partition("/")
    return f"{_number(mark):#x}/{_number(mask):#x}" if slash else f"{_number(mark):#x}"


def _xmark(option: str, value: str) -> str:
    """All ways to set a mark are printed as ``--set-xmark value/mask`` (clear mask, xor value)."""
    full = 0xFFFFFFFF
    text, _, mask_text = value.partition("/")
    number = _number(text)
    mask = _number(mask_text) if mask_text else full
    match option:
        case "--or-mark":
            mask = number
        case "--xor-mark":
            mask = 0
        case "--and-mark":
            number, mask = 0, ~number & full
        case "--set-mark":
            mask |= number
    return f"{number:#x}/{mask:#x}"


def _set_and_directions(text: str) -> str:
    name, _, directions = text.partition(" ")
    if len(name) > MAX_SET_NAME:
        raise _usage(f"setname `{name}' too long, max {MAX_SET_NAME} characters.")
    words = directions.split(",")
    if len(words) > MAX_SET_DIRECTIONS:
        raise _usage(f"Can't be more src/dst options than {MAX_SET_DIRECTIONS}.")
    if not set(words) <= {"src", "dst"}:
        raise _usage("You must spefify (the comma separated list of) 'src' or 'dst'.")
    return text


def _probability(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _usage('statistic: bad value for option "--probability", or out of range (0-1).\n')
    return f"{round(value * 0x80000000) / 0x80000000:.11f}"  # the kernel keeps 31 bits


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"([\"\\'])", r"\\\1", text)
    return f'"{escaped}"'


def _split(text: str) -> list[str]:
    """Split as iptables-restore does: only double quotes quote, and a backslash only in them."""
    if '"' not in text:
        return text.split()
    words: list[str] = []
    for quoted, plain in _is_word.findall(text):
        words.append(_is_escape.sub(r"\1", quoted[1:-1]) if quoted else plain)
    return words


_is_word = re.compile(r'("(?:[^"\\]|\\.)*")|([^\s"]+)')
_is_escape = re.compile(r"\\(.)")


# --- tables ------------------------------------------------------------------------------------


class Table:
    """The chains of one table, and how many rules jump to each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.policies = dict.fromkeys(BUILTIN[name], "ACCEPT")
        self.chains: dict[str, list[Rule]] = {chain: [] for chain in BUILTIN[name]}
        self.jumps: Counter[str] = Counter()
        self._own: set[str] = set()  # chains whose list no other table shares

    def copy(self) -> Table:
        """A copy to work on; rule lists are shared until `edit` or `set_rules` touches them."""
        other = Table.__new__(Table)
        other.name = self.name
        other.policies = dict(self.policies)
        other.chains = dict(self.chains)
        other.jumps = Counter(self.jumps)
        other._own = set()
        self._own = set()
        return other

    def edit(self, chain: str) -> list[Rule]:
        """The rules of a chain, to be changed; the caller keeps `jumps` right."""
        if chain not in self._own:
            self.chains[chain] = list(self.chains[chain])
            self._own.add(chain)
        return self.chains[chain]

    def set_rules(self, chain: str, rules: list[Rule]) -> None:
        for rule in self.chains.get(chain, ()):
            self.jumps[rule.target] -= 1
        for rule in rules:
            self.jumps[rule.target] += 1
        self.chains[chain] = rules
        self._own.discard(chain)

    def saved(self) -> str:
        """The table as iptables-save prints it."""
        user = sorted(chain for chain in self.chains if chain not in self.policies)
        lines = [f"*{self.name}"]
        lines += [f":{chain} {policy} [0:0]" for chain, policy in self.policies.items()]
        lines += [f":{chain} - [0:0]" for chain in user]
        for chain in (*self.policies, *user):
            lines += [f"-A {chain} {rule.text}".rstrip() for rule in self.chains[chain]]
        return "\n".join([*lines, "COMMIT", ""])


class Fault(Enum):
    """A way for a call to go wrong that the caller did not cause."""

    REFUSE = "the kernel refuses the transaction"
    LOCKED = "another program holds the xtables lock"
    DIE_BEFORE = "killed before anything was committed"
    DIE_AFTER = "killed after everything was committed"
    TIME_OUT_BEFORE = "hangs before anything is committed"
    TIME_OUT_AFTER = "hangs after everything is committed"
    MISSING = "the program cannot be started"


class _Planned(Struct):
    fault: Fault
    when: Callable[[list[str], str], bool]
    times: int | None
    text: str = ""


class Xtables:
    """The tools and the kernel of one family.

    *nfacct* are the counters that exist; rules that name others are refused. *sets* tells the
    IP version of an ipset, 0 for one of numbers, ``None`` where there is none.
    """

    def __init__(
        self,
        version: int = 4,
        *,
        nft: bool = True,
        nfacct: Sequence[str] = (),
        lock: bool = False,
        sets: Callable[[str], int | None] = lambda name: None,
    ) -> None:
        self.version = version
        self.nft = nft
        self.nfacct = set(nfacct)
        self.version_of_set = sets
        self.tables: dict[str, Table] = {}
        self.calls: Counter[str] = Counter()
        self.lines = 0
        self.bytes = 0
        self.inputs: list[str] = []
        self.locked = lock
        self._planned: list[_Planned] = []
        self._trigger = ""

    # --- faults and looks ---

    def fail(
        self,
        fault: Fault,
        when: Callable[[list[str], str], bool] | str = "",
        times: int | None = 1,
    ) -> None:
        """Plan a fault for the next *times* restore runs (``None``: all) that match.

        *when* is a predicate over arguments and input, or text that the input contains (a
        refusal then names the first line with it).
        """
        if isinstance(when, str):
            wanted = when
            self._planned.append(_Planned(fault, lambda _, text: wanted in text, times, wanted))
        else:
            self._planned.append(_Planned(fault, when, times))

    def heal(self) -> None:
        """Forget all planned faults."""
        self._planned.clear()

    def table(self, name: str) -> Table:
        if name not in self.tables:
            self.tables[name] = Table(name)
        return self.tables[name]

    def rules(self, table: str, chain: str) -> list[str]:
        """The rules of a chain as iptables-save prints them, without ``-A CHAIN``."""
        return [rule.text for rule in self.table(table).chains[chain]]

    def uses_of_set(self, name: str) -> int:
        """How many rules match an ipset, which therefore cannot be destroyed."""
        return sum(
            condition.option == "--match-set" and condition.value.partition(" ")[0] == name
            for table in self.tables.values()
            for rules in table.chains.values()
            for rule in rules
            for condition in rule.conditions
        )

    def flush(self) -> None:
        """Somebody else clears everything."""
        self.tables.clear()

    def state(self) -> dict[str, dict[str, list[str]]]:
        """All rules by table and chain, for comparisons."""
        return {
            name: {chain: [rule.text for rule in rules] for chain, rules in table.chains.items()}
            for name, table in sorted(self.tables.items())
        }

    # --- running ---

    def __call__(
        self, argv: Sequence[str], input: Input | None = None, timeout_seconds: float = 60.0
    ) -> Result:
        return self.run(argv, input, timeout_seconds)

    def run(
        self, argv: Sequence[str], input: Input | None = None, timeout_seconds: float = 60.0
    ) -> Result:
        """Do what the tool named by ``argv[0]`` would do."""
        tool = PurePath(argv[0]).name
        stem = "iptables" if self.version == 4 else "ip6tables"
        kind = re.fullmatch(rf"{stem}(?:-(?:nft|legacy))?(-restore|-save)?", tool)
        if kind is None:
            return NotStarted(f"{argv[0]}: No such file or directory")
        arguments = list(argv[1:])
        self.calls[f"iptables{kind[1] or ''}"] += 1
        if "--version" in arguments or "-V" in arguments:
            name = "nf_tables" if self.nft else "legacy"
            return Finished(0, f"{tool} v1.8.9 ({name})\n".encode(), b"")
        if self.locked and kind[1] != "-save":
            return _locked()
        try:
            match kind[1]:
                case "-restore":
                    text = bytes(input or b"").decode()
                    return self._faulty_restore(tool, arguments, text, timeout_seconds)
                case "-save":
                    return Finished(0, self._save(arguments).encode(), b"")
                case _:
                    return Finished(0, self._command(arguments).encode(), b"")
        except Refused as refused:
            name = "nf_tables" if self.nft else "legacy"
            head = f"{tool} v1.8.9 ({name}): " if refused.status != 1 else f"{stem}: "
            return Finished(refused.status, b"", f"{head}{refused.message}\n".encode())

    def _faulty_restore(
        self, tool: str, arguments: list[str], text: str, timeout_seconds: float
    ) -> Result:
        self.lines += text.count("\n")
        self.bytes += len(text)
        self.inputs.append(text)
        fault = self._next_fault(arguments, text)
        match fault:
            case Fault.LOCKED:
                return _locked()
            case Fault.MISSING:
                return NotStarted(f"{tool}: No such file or directory")
            case Fault.REFUSE:
                return self._refusal(tool, Refused(1, "told to refuse"), self._refused_at(text))
            case Fault.DIE_BEFORE:
                return Killed(signals.SIGKILL, b"")
            case Fault.TIME_OUT_BEFORE:
                return TimedOut(timeout_seconds, b"")
        done = self._restore(tool, arguments, text)
        if fault is Fault.DIE_AFTER:
            return Killed(signals.SIGKILL, b"")
        if fault is Fault.TIME_OUT_AFTER:
            return TimedOut(timeout_seconds, b"")
        return done

    def _refused_at(self, text: str) -> int:
        """The line with the text a fault waited for; the legacy tool only knows COMMIT's."""
        lines = text.splitlines()
        if self.nft and self._trigger:
            return next(i for i, line in enumerate(lines, start=1) if self._trigger in line)
        return lines.index("COMMIT") + 1

    def _next_fault(self, arguments: list[str], text: str) -> Fault | None:
        for planned in self._planned:
            if planned.when(arguments, text):
                if planned.times is not None:
                    planned.times -= 1
                    if planned.times <= 0:
                        self._planned.remove(planned)
                self._trigger = planned.text
                return planned.fault
        return None

    def _save(self, arguments: list[str]) -> str:
        wanted = None
        if "-t" in arguments:
            wanted = arguments[arguments.index("-t") + 1]
            if wanted not in BUILTIN:
                raise _usage(f"table name `{wanted}' does not exist")
            self.table(wanted)
        names = [name for name in BUILTIN if name in self.tables and wanted in (None, name)]
        return "".join(
            f"# Generated by iptables-save\n{self.tables[n].saved()}# Completed\n" for n in names
        )

    # --- restore ---

    def _restore(self, tool: str, arguments: list[str], text: str) -> Finished:
        noflush = "--noflush" in arguments or "-n" in arguments
        only = arguments[arguments.index("-T") + 1] if "-T" in arguments else None
        work: Table | None = None
        skipping = False
        late: tuple[int, Refused] | None = None
        body: list[tuple[int, str]] = []
        number = 0
        try:
            for number, line in enumerate(text.split("\n"), start=1):
                if not line.strip() or line.startswith("#"):
                    continue
                if line.startswith("*") and work is None:
                    skipping = only is not None and line[1:].strip() != only
                    work = self._opened(line[1:].strip(), noflush)
                    late, body = None, []
                elif work is None:
                    raise _usage(f"{line.split()[0]}: no table is open")
                elif line.strip() == "COMMIT":
                    self._check_commit(work, late, body, number, tool)
                    if not skipping:
                        self.tables[work.name] = work
                    work = None
                else:
                    body.append((number, line))
                    try:
                        self._line(work, line)
                    except Refused as refused:
                        if not refused.late:
                            raise
                        late = late or (number, refused)
        except _Late as stopped:
            return stopped.finished
        except Refused as refused:
            return self._refusal(tool, refused, number)
        if work is not None:
            last = text.rstrip("\n").count("\n") + 2
            return Finished(1, b"", f"{tool}: COMMIT expected at line {last}\n".encode())
        return Finished(0, b"", b"")

    def _opened(self, name: str, noflush: bool) -> Table:
        if name not in BUILTIN:
            raise _usage(f"table name '{name}' invalid")
        if noflush:
            return self.table(name).copy()
        fresh = Table(name)
        fresh.policies = dict(self.table(name).policies)
        return fresh

    def _line(self, work: Table, line: str) -> None:
        if line.startswith(":"):
            self._chain_line(work, line)
            return
        command, _, rest = line.partition(" ")
        chain, _, rule = rest.strip().partition(" ")
        if chain.startswith("-") and command.startswith("-"):
            raise _usage(f'option "{command}" requires an argument')
        if not command.startswith("-"):
            raise _usage(f"Bad argument `{command}'")
        self._edit(work, command, chain, rule.strip())

    def _chain_line(self, work: Table, line: str) -> None:
        words = line[1:].split()
        if len(words) < 2:
            raise _usage(f"bad chain line `{line}'")
        chain, policy = words[0], words[1]
        if chain in work.policies:
            if policy in ("ACCEPT", "DROP"):
                work.policies[chain] = policy
            elif policy != "-":
                raise _usage(f"Can't set policy `{policy}' on `{chain}'")
            return
        _check_name(chain)
        if policy != "-" and not self.nft:
            raise Refused(1, f"Can't set policy `{policy}' on `{chain}': Bad built-in chain name")
        work.set_rules(chain, [])

    def _edit(self, work: Table, command: str, chain: str, text: str) -> None:
        if command == "-N":
            _check_name(chain)
            if chain in work.chains:
                raise Refused(1, "Chain already exists.")
            work.set_rules(chain, [])
            return
        if command in ("-A", "-I", "-D", "-C"):
            position, text = _position(command, text)
            rule = None
            if text or command != "-D" or position is None:
                rule = self._rule(work, chain, text)
            if chain not in work.chains:
                if command in ("-D", "-C"):
                    raise Refused(1, _NO_RULE)
                raise Refused(1, _NO_CHAIN)
            self._edit_rule(work, command, chain, rule, position)
            return
        if command not in ("-F", "-X", "-P"):
            raise _usage(f'unknown option "{command}"')
        if chain not in work.chains:
            raise Refused(1, _NO_CHAIN)
        if command == "-F":
            work.set_rules(chain, [])
        elif command == "-P":
            if chain not in work.policies or text not in ("ACCEPT", "DROP"):
                raise Refused(1, "Bad built-in chain name.")
            work.policies[chain] = text
        elif chain in work.policies or work.chains[chain] or work.jumps[chain] > 0:
            raise self._busy(chain, bool(work.chains[chain]))
        else:
            del work.chains[chain]

    def _busy(self, chain: str, has_rules: bool) -> Refused:
        if self.nft:
            return Refused(
                4, f"CHAIN_DEL failed (Device or resource busy): chain {chain}", late=True
            )
        return Refused(1, "Directory not empty." if has_rules else "Too many links.")

    def _edit_rule(
        self, work: Table, command: str, chain: str, rule: Rule | None, position: int | None
    ) -> None:
        rules = work.chains[chain]
        match command:
            case "-A" if rule is not None:
                at = len(rules)
            case "-I" if rule is not None:
                at = (position or 1) - 1
                if at > len(rules):
                    raise Refused(1, "Index of insertion too big.")
            case "-D" if rule is None and position is not None:
                at = position - 1
                if not 0 <= at < len(rules):
                    raise Refused(1, "Index of deletion too big.")
            case _:
                at = next((i for i, r in enumerate(rules) if rule and r.text == rule.text), -1)
                if at < 0:
                    raise Refused(1, _NO_RULE)
        if command in ("-A", "-I") and rule is not None:
            work.edit(chain).insert(at, rule)
            work.jumps[rule.target] += 1
        elif command == "-D":
            work.jumps[work.edit(chain).pop(at).target] -= 1

    def _rule(self, work: Table, chain: str, text: str) -> Rule:
        rule = parse_rule(text, self.version, self.nft)
        for condition in rule.conditions:
            if condition.option == "-i" and chain in ("OUTPUT", "POSTROUTING"):
                raise _usage(f"Can't use -i with {chain}\n")
            if condition.option == "-o" and chain in ("INPUT", "PREROUTING"):
                raise _usage(f"Can't use -o with {chain}\n")
            if condition.option == "--match-set":
                self._check_set(condition.value.partition(" ")[0])
        target = rule.target
        if target == "DROP" and work.name == "nat":
            raise _usage(
                '\nThe "nat" table is not intended for filtering, '
                "the use of DROP is therefore inhibited.\n\n"
            )
        if target and target not in _VERDICTS and target not in _TARGETS:
            if target in BUILTIN[work.name]:
                raise Refused(
                    4 if self.nft else 1,
                    f"RULE_APPEND failed (Operation not supported): rule in chain {chain}",
                    late=self.nft,
                )
            if target not in work.chains:
                if self.nft:
                    raise _MissingChain(f"Chain '{target}' does not exist")
                raise _usage(f"Couldn't load target `{target}':No such file or directory\n")
        return rule

    def _check_set(self, name: str) -> None:
        version = self.version_of_set(name)
        if version is None:
            raise _usage(f"Set {name} doesn't exist.\n")
        if version not in (0, self.version):
            raise _usage(
                f"The protocol family of set {name} is IPv{version}, which is not applicable.\n"
            )

    def _check_commit(
        self,
        work: Table,
        late: tuple[int, Refused] | None,
        body: list[tuple[int, str]],
        number: int,
        tool: str,
    ) -> None:
        if late is not None:
            line, refused = late
            if isinstance(refused, _MissingChain):
                raise Refused(2, refused.message)
            raise _Late(self._late(tool, refused.message, line, number))
        problem = self._illegal(work)
        if problem is not None:
            line = self._guilty_line(work.name, body, number) if self.nft else number
            raise _Late(self._late(tool, problem, line, number))

    def _guilty_line(self, table: str, body: list[tuple[int, str]], commit: int) -> int:
        """The kernel refuses the first rule that makes its table illegal."""
        work = self.table(table).copy()
        for number, line in body:
            self._line(work, line)
            if self._illegal(work) is not None:
                return number
        return commit

    def _late(self, tool: str, message: str, line: int, commit: int) -> Finished:
        if self.nft:
            text = f"{tool} v1.8.9 (nf_tables): \nline {line}: {message}\n"
            return Finished(4, b"", text.encode())
        return Finished(1, b"", f"{tool}: line {commit} failed\n".encode())

    def _illegal(self, work: Table) -> str | None:
        """What only the kernel sees: targets in the wrong place, missing counters, loops."""
        previous = self.tables.get(work.name)
        for chain, rules in work.chains.items():
            if previous is not None and previous.chains.get(chain) is rules:
                continue
            for rule in rules:
                if work.name not in _TARGET_TABLES.get(rule.target, (work.name,)):
                    return f"RULE_APPEND failed (Invalid argument): rule in chain {chain}"
                for condition in rule.conditions:
                    if condition.option == "--nfacct-name" and condition.value not in self.nfacct:
                        return (
                            f"RULE_APPEND failed (No such file or directory): rule in chain {chain}"
                        )
        return _bad_path(work)

    def _refusal(self, tool: str, refused: Refused, number: int) -> Finished:
        if refused.status == 1:
            suffix = f": {refused.message}" if self.nft else ""
            return Finished(1, b"", f"{tool}: line {number} failed{suffix}\n".encode())
        name = "nf_tables" if self.nft else "legacy"
        text = (
            f"{tool} v1.8.9 ({name}): {refused.message}\nError occurred at line: {number}\n"
            f"Try `{tool} -h' or '{tool} --help' for more information.\n"
        )
        return Finished(refused.status, b"", text.encode())

    # --- single commands ---

    def _command(self, arguments: list[str]) -> str:
        table, rest = "filter", []
        tokens = iter(arguments)
        for token in tokens:
            if token in ("-t", "--table"):
                table = next(tokens)
            elif token in ("-w", "--wait"):
                if (seconds := next(tokens, None)) is not None and not seconds.isdigit():
                    rest.append(seconds)
            else:
                rest.append(token)
        if table not in BUILTIN:
            raise Refused(3, f"can't initialize iptables table `{table}': Table does not exist")
        if not rest:
            raise _usage("no command specified")
        work = self.table(table).copy()
        command, operands = rest[0], rest[1:]
        if command == "-S":
            return self._list(work, operands)
        if command in ("-F", "-X", "-Z") and not operands:
            for chain in list(work.chains) if command != "-Z" else ():
                if command == "-F":
                    work.set_rules(chain, [])
                elif chain not in work.policies:
                    self._edit(work, "-X", chain, "")
        else:
            if not operands:
                raise _usage(f'option "{command}" requires an argument')
            text = " ".join(_requoted(word) for word in operands[1:])
            self._edit(work, command, operands[0], text)
        problem = self._illegal(work)
        if problem is not None:
            raise Refused(4 if self.nft else 1, problem)
        self.tables[table] = work
        return ""

    def _list(self, work: Table, operands: list[str]) -> str:
        chains = [*work.policies, *sorted(set(work.chains) - set(work.policies))]
        if operands:
            if operands[0] not in work.chains:
                raise Refused(1, _NO_CHAIN)
            chains = operands[:1]
        lines = [
            f"-P {chain} {work.policies[chain]}" if chain in work.policies else f"-N {chain}"
            for chain in chains
        ]
        for chain in chains:
            lines += [f"-A {chain} {rule.text}".rstrip() for rule in work.chains[chain]]
        return "\n".join([*lines, ""])


class _Late(Exception):
    def __init__(self, finished: Finished) -> None:
        super().__init__()
        self.finished = finished


class _MissingChain(Refused):
    """iptables-nft looks a jump's target up when it commits, and then speaks of COMMIT's line."""

    def __init__(self, message: str) -> None:
        super().__init__(2, message, late=True)


_NO_CHAIN = "No chain/target/match by that name."
_NO_RULE = "Bad rule (does a matching rule exist in that chain?)."


def _locked() -> Finished:
    text = (
        "Another app is currently holding the xtables lock. "
        "Perhaps you want to use the -w option?\n"
    )
    return Finished(LOCK_STATUS, b"", text.encode())


def _requoted(word: str) -> str:
    if word and not re.search(r'[\s"\\]', word):
        return word
    escaped = re.sub(r'(["\\])', r"\\\1", word)
    return f'"{escaped}"'


def _check_name(chain: str) -> None:
    if len(chain) > MAX_CHAIN_NAME:
        raise _usage(f"chain name `{chain}' too long (must be under 29 chars)")
    if chain.startswith(("-", "!")) or chain in _VERDICTS or chain in _TARGETS:
        raise _usage(f"Invalid chain name `{chain}'")


def _position(command: str, text: str) -> tuple[int | None, str]:
    first, _, rest = text.partition(" ")
    if command in ("-I", "-D") and first.isdigit():
        return int(first), rest.strip()
    return None, text


def _bad_path(work: Table) -> str | None:
    """Walk from the built-in chains: loops, and targets that do not work at that hook."""
    for hook in BUILTIN[work.name]:
        done: set[str] = set()
        path: set[str] = set()
        stack: list[tuple[str, Iterator[Rule]]] = [(hook, iter(work.chains[hook]))]
        path.add(hook)
        while stack:
            chain, rules = stack[-1]
            rule = next(rules, None)
            if rule is None:
                stack.pop()
                path.discard(chain)
                done.add(chain)
                continue
            target = rule.target
            if hook not in _TARGET_HOOKS.get(target, (hook,)):
                return f"RULE_APPEND failed (Operation not supported): rule in chain {chain}"
            if target in work.chains:
                if target in path:
                    return f"RULE_APPEND failed (Too many links): rule in chain {chain}"
                if target not in done:
                    path.add(target)
                    stack.append((target, iter(work.chains[target])))
    return None
