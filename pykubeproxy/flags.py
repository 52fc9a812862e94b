"""The command line: kube-proxy's flag names in Go's (pflag) spelling, from one table.

Only syntax is decided here: which flag was given with which text, and how a value is written as
one. `pykubeproxy.settings` reads the texts, `pykubeproxy.configbuild` judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from textwrap import wrap

from msgspec import Struct

from pykubeproxy.durations import format_duration
from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import SETTINGS, Given, Type, Value, from_text, shown

__all__ = ["ACTIONS", "FLAGS", "Flag", "Parsed", "full_usage", "parse", "texts", "usage"]


class Flag(Struct, frozen=True):
    """One flag. ``with_file``: it still counts when ``--config`` is given."""

    name: str  # with its dashes
    setting: str  # key of SETTINGS
    group: str
    help: str
    with_file: bool = False
    common: bool = False  # on the first screen of help

    @property
    def type(self) -> Type:
        return SETTINGS[self.setting].type


def _group(group: str, *rows: tuple[str, str, str], with_file: bool = False) -> tuple[Flag, ...]:
    return tuple(
        Flag(name, setting, group, text, with_file, name in _COMMON) for name, setting, text in rows
    )


ACTIONS = "What to do (without one of these: serve)"

_COMMON = frozenset(
    {
        *("--config", "--cleanup", "--dry-run", "--init-only", "--write-config-to"),
        *("--version", "--help", "--kubeconfig", "--master", "--manifests"),
        *("--hostname-override", "--proxy-mode", "--cluster-cidr", "--detect-local-mode"),
        *("--masquerade-all", "--nodeport-addresses", "--healthz-bind-address"),
        *("--metrics-bind-address", "--v", "--logging-format"),
    }
)


# fmt: off
FLAGS: tuple[Flag, ...] = (
    *_group(ACTIONS,
        ("--config", "--config",
         "Read a KubeProxyConfiguration file, and follow it; flags not marked * are then ignored."),
        ("--init-only", "--init-only",
         "Do what needs more than CAP_NET_ADMIN (sysctls, modules) and exit."),
        ("--cleanup", "--cleanup", "Remove every rule of this proxy and exit."),
        ("--dry-run", "--dry-run", "With --cleanup: only list what it would remove."),
        ("--write-config-to", "--write-config-to",
         "Write the effective configuration to this file, as YAML, and exit."),
        ("--version", "--version", "Print the version and exit; --version=raw for its parts."),
        ("--help", "--help", "Print this text and exit; --help=all explains every flag."),
        with_file=True),
    *_group("Where objects come from",
        ("--manifests", "--manifests",
         "Directory of Service, EndpointSlice and Node manifests to follow, with no API server."),
        ("--master", "--master", "URL of the API server; overrides the kubeconfig."),
        ("--hostname-override", "hostnameOverride", "Name of this Node; the host name by default."),
        with_file=True),
    *_group("Where objects come from",
        ("--kubeconfig", "clientConnection.kubeconfig",
         "Kubeconfig file; in-cluster credentials by default.")),
    *_group("Rules",
        ("--proxy-mode", "mode", "iptables or ipvs; nftables is not part of this version yet."),
        ("--masquerade-all", "iptables.masqueradeAll",
         "Masquerade everything that goes to cluster IPs."),
        ("--iptables-masquerade-bit", "iptables.masqueradeBit",
         "Bit of the packet mark that asks for masquerading, 0-31."),
        ("--iptables-localhost-nodeports", "iptables.localhostNodePorts",
         "Serve node ports on 127.0.0.1 (sets route_localnet)."),
        ("--iptables-sync-period", "iptables.syncPeriod",
         "Retry after a failure and check for lost rules this often."),
        ("--iptables-min-sync-period", "iptables.minSyncPeriod",
         "Wait at least this long between two writes; 0 adapts to the load."),
        ("--nodeport-addresses", "nodePortAddresses",
         "CIDRs of the local addresses that serve node ports, or primary; all by default."),
        ("--bind-address", "bindAddress",
         "Overrides the primary IP of the node; nothing is bound to it.")),
    *_group("Rules",
        ("--iptables-variant", "--iptables-variant",
         "Which iptables tools to use: auto, nft or legacy."),
        ("--iptables-service-index", "--iptables-service-index",
         "Chains with a rule per Service as trees: auto (if long), always or never."),
        ("--state-directory", "--state-directory",
         "Where to note which iptables rules were written, so that a restart need not read or "
         "write them; empty: nowhere."),
        with_file=True),
    *_group("IPVS mode",
        ("--ipvs-scheduler", "ipvs.scheduler",
         "How virtual servers choose: rr (unless given), wrr, lc, wlc, sh, dh, mh, ...; for one "
         "Service its annotation pykubeproxy.io/ipvs-scheduler."),
        ("--ipvs-exclude-cidrs", "ipvs.excludeCIDRs",
         "Virtual servers at these addresses are somebody else's and never removed."),
        ("--ipvs-strict-arp", "ipvs.strictARP",
         "Answer ARP only for addresses of the interface asked (arp_ignore 1, arp_announce 2)."),
        ("--ipvs-tcp-timeout", "ipvs.tcpTimeout", "Forget idle TCP connections; 0 leaves it."),
        ("--ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout",
         "Forget TCP connections after FIN; 0 leaves it."),
        ("--ipvs-udp-timeout", "ipvs.udpTimeout", "Forget idle UDP flows; 0 leaves it."),
        ("--ipvs-sync-period", "ipvs.syncPeriod",
         "Retry after a failure and check what the kernel holds this often."),
        ("--ipvs-min-sync-period", "ipvs.minSyncPeriod",
         "Wait at least this long between two writes; 0 adapts to the load.")),
    *_group("IPVS mode",
        ("--ipvs-drain-timeout", "--ipvs-drain-timeout",
         "Cut TCP connections to a removed endpoint after this long; 0 never."),
        ("--ipvs-fallback", "--ipvs-fallback",
         "Where the kernel cannot do IPVS: iptables (run in that mode) or fail (exit)."),
        with_file=True),
    *_group("Which traffic is from pods of this node",
        ("--detect-local-mode", "detectLocalMode",
         "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix."),
        ("--cluster-cidr", "clusterCIDR", "Pod network: one CIDR, or one of each IP family."),
        ("--pod-bridge-interface", "detectLocal.bridgeInterface",
         "Bridge of the pods, in mode BridgeInterface."),
        ("--pod-interface-name-prefix", "detectLocal.interfaceNamePrefix",
         "How pod interfaces begin, in mode InterfaceNamePrefix.")),
    *_group("Servers",
        ("--healthz-bind-address", "healthzBindAddress",
         "IP or IP:port of the health server."),
        ("--healthz-port", "--healthz-port",
         "Port of the health server where --healthz-bind-address has none; 0 switches it off."),
        ("--metrics-bind-address", "metricsBindAddress",
         "IP or IP:port of the metrics server."),
        ("--metrics-port", "--metrics-port",
         "Port of the metrics server where --metrics-bind-address has none."),
        ("--bind-address-hard-fail", "bindAddressHardFail",
         "Exit when the health or metrics server cannot listen; else tried again every 5 s."),
        ("--profiling", "enableProfiling", "Debugging pages on the metrics server.")),
    *_group("The node",
        ("--conntrack-max-per-core", "conntrack.maxPerCore",
         "Connections to track per CPU (nf_conntrack_max); 0 leaves the limit and ignores the "
         "next."),
        ("--conntrack-min", "conntrack.min", "At least this many in all."),
        ("--conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout",
         "Forget idle TCP connections; 0 leaves it."),
        ("--conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout",
         "Forget TCP connections in CLOSE_WAIT; 0 leaves it."),
        ("--conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal",
         "Track TCP packets outside of the window as valid."),
        ("--conntrack-udp-timeout", "conntrack.udpTimeout",
         "Forget UDP flows without an answer; 0 leaves it."),
        ("--conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout",
         "Forget UDP flows with answers; 0 leaves it."),
        ("--oom-score-adj", "oomScoreAdj",
         "How soon this process goes when memory runs out, -1000 to 1000."),
        ("--feature-gates", "featureGates",
         "Features to switch: AllowServiceExternalIPs, ComponentFlagz, ComponentStatusz.")),
    *_group("Logging",
        ("--v", "logging.verbosity", "Verbosity; 4 and more show debugging output. Also -v."),
        ("--logging-format", "logging.format", "text or json."),
        with_file=True),
    *_group("Accepted for kube-proxy's sake (changes nothing here; a line in the log says so)",
        ("--config-sync-period", "configSyncPeriod", ""),
        ("--kube-api-burst", "clientConnection.burst", ""),
        ("--kube-api-content-type", "clientConnection.contentType", ""),
        ("--kube-api-qps", "clientConnection.qps", ""),
        ("--show-hidden-metrics-for-version", "showHiddenMetricsForVersion", "")),
    *_group("Accepted for kube-proxy's sake (changes nothing here; a line in the log says so)",
        ("--boot-id-file", "--boot-id-file", ""),
        ("--log-flush-frequency", "logging.flushFrequency", ""),
        ("--log-json-info-buffer-size", "logging.options.json.infoBufferSize", ""),
        ("--log-json-split-stream", "logging.options.json.splitStream", ""),
        ("--log-text-info-buffer-size", "logging.options.text.infoBufferSize", ""),
        ("--log-text-split-stream", "logging.options.text.splitStream", ""),
        ("--machine-id-file", "--machine-id-file", ""),
        ("--vmodule", "logging.vmodule", ""),
        with_file=True),
)
# fmt: on

_BY_NAME = {flag.name: flag for flag in FLAGS}
_SHORT = {"v": _BY_NAME["--v"], "h": _BY_NAME["--help"]}
# Given without "=value" these are true, and never take the next argument.
_ALONE = frozenset({"--version", "--help"})
# kube-proxy's flags for IP addresses pass over an empty text, also after one that is not.
_EMPTY_IS_PASSED_OVER = frozenset({"bindAddress", "healthzBindAddress", "metricsBindAddress"})
# An empty text is as if the flag were not given at all: then the file or the host has the name.
_EMPTY_IS_ABSENT = frozenset({"hostnameOverride"})


class Parsed(Struct, frozen=True):
    """The flags that were given: those that always count, and those that ``--config`` silences.

    With ``problems`` (where, and what it is) the command line must not be used.
    """

    always: dict[str, Given]
    without_file: dict[str, Given]
    problems: tuple[tuple[str, str], ...] = ()


def parse(argv: Sequence[str]) -> Parsed:
    """Read the arguments behind the program name, all of them also after one that is wrong.

    Lists and feature gates accumulate when repeated; of other flags the last one counts.
    """
    always: dict[str, Given] = {}
    without_file: dict[str, Given] = {}
    problems: list[tuple[str, str]] = []
    rest = list(reversed(argv))
    while rest:
        try:
            taken = _take(rest)
            if taken is None:
                continue
            flag, text, where = taken
            target = always if flag.with_file else without_file
            if not text and flag.setting in _EMPTY_IS_ABSENT:
                target.pop(flag.setting, None)
            elif text or flag.setting not in _EMPTY_IS_PASSED_OVER:
                _put(target, flag.setting, Given(from_text(flag.type, text, where), where))
        except ConfigError as error:
            problems += error.problems
    return Parsed(always, without_file, tuple(problems))


def _put(target: dict[str, Given], setting: str, given: Given) -> None:
    earlier, value = target.get(setting), given.value
    if earlier is not None and isinstance(value, tuple) and isinstance(earlier.value, tuple):
        value = earlier.value + value
    if earlier is not None and isinstance(value, dict) and isinstance(earlier.value, dict):
        value = {**earlier.value, **value}
    target[setting] = Given(value, given.where)


def _take(rest: list[str]) -> tuple[Flag, str, str] | None:
    """Take a flag and its text off *rest*, whose last item is the next argument.

    Returns both and the name to use in messages, or ``None`` for an empty argument.

    Raises:
        ConfigError: unknown flag, missing value, or a positional argument.
    """
    argument = rest.pop()
    if argument == "--":
        words, rest[:] = [word for word in reversed(rest) if word], []
        if words:
            raise ConfigError.of([_positional(word) for word in words])
        return None
    if not argument:
        return None
    if argument.startswith("--"):
        name, equals, text = argument.partition("=")
        flag = _find(name)
    elif argument.startswith("-") and argument != "-":
        # -v2, -v=2 and -v 2 mean the same; -h takes a value after "=" only.
        flag = _find_short(argument)
        text = argument[2:]
        equals = "=" if text else ""
        text = text.removeprefix("=")
    else:
        raise ConfigError(*_positional(argument))
    where = "-v" if flag is _SHORT["v"] and not argument.startswith("--") else flag.name
    if not equals:
        if flag.type is Type.BOOL or flag.name in _ALONE:
            text = "true"
        elif rest:
            text = rest.pop()
        else:
            raise ConfigError(where, f"needs a value; write {where}={flag.type.name.upper()}")
    return flag, text, where


def _positional(word: str) -> tuple[str, str]:
    return shown(word), "is neither a flag nor the value of one; bools need --flag=value"


def _find(text: str) -> Flag:
    name = "--" + text[2:].replace("_", "-")
    flag = _BY_NAME.get(name)
    if flag is None:
        raise ConfigError(_shown(text), f"unknown flag; {_suggestion(name)}")
    return flag


def _find_short(argument: str) -> Flag:
    if argument.startswith("-v") and not (argument[2:].isdigit() or argument[2:3] in ("", "=")):
        raise ConfigError(_shown(argument), f"unknown flag; {_suggestion('-' + argument)}")
    flag = _SHORT.get(argument[1])
    if flag is None or (flag.name in _ALONE and argument[2:3] not in ("", "=")):
        raise ConfigError(_shown(argument), f"unknown flag; {_suggestion('-' + argument)}")
    return flag


def _shown(argument: str) -> str:
    return argument if argument.isprintable() and len(argument) <= 100 else shown(argument)


def _suggestion(name: str) -> str:
    name = name.partition("=")[0].replace("_", "-")
    near = get_close_matches(name, _BY_NAME, n=1, cutoff=0.6)
    # An abbreviation is refused like any other unknown name, but it tells what was meant.
    near = near or sorted(known for known in _BY_NAME if known.startswith(name) and name != "--")
    return f"did you mean {near[0]}?" if near else "see --help for those there are"


def texts(given: Mapping[str, Value]) -> dict[str, str]:
    """Return the value of every flag, by name without dashes, as Go's flag library prints it.

    *given* are values by setting; what is not among them has its default.
    """
    return {
        flag.name[2:]: _text(flag.type, given.get(flag.setting, SETTINGS[flag.setting].default))
        for flag in FLAGS
    }


def _text(kind: Type, value: Value) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float() | int() if kind is Type.SECONDS:
            return format_duration(value)
        case float():
            return str(int(value)) if value.is_integer() else f"{value:g}"
        case tuple():
            return f"[{','.join(value)}]" if kind is not Type.VMODULE else ",".join(value)
        case dict():
            return ",".join(f"{name}={str(flag).lower()}" for name, flag in sorted(value.items()))
    return str(value)


def usage() -> str:
    """Return the text of ``--help``: the flags that matter most, and the names of the others.

    At most 100 columns wide.
    """
    others: dict[str, list[str]] = {}
    for flag in FLAGS:
        if not flag.common:
            others.setdefault(flag.group, []).append(flag.name)
    lines = [
        "Usage: pykubeproxy [FLAG...]",
        "",
        "Keeps the packet rules of a Linux node in step with the cluster's Services.",
        "",
        "  On a node of a cluster:  pykubeproxy --config=/var/lib/kube-proxy/config.conf",
        "  Without a cluster:       pykubeproxy --manifests=DIR --hostname-override=NAME",
        *_explained([flag for flag in FLAGS if flag.common]),
        "",
        "Further flags, explained by --help=all:",
    ]
    for group, names in others.items():
        head = group.partition(" (")[0]
        lines += ["", f"  {head}:"]
        lines += wrap(" ".join(names), 98, initial_indent="    ", subsequent_indent="    ",
                      break_on_hyphens=False)  # fmt: skip
    lines += ["", _MARKED]
    return "\n".join(lines) + "\n"


def full_usage() -> str:
    """Return the text of ``--help=all``: every flag explained, grouped, 100 columns wide."""
    return "\n".join(["Every flag of pykubeproxy.", "", _MARKED, *_explained(FLAGS)]) + "\n"


_MARKED = "Flags marked * count also when --config is given; of the others the file speaks."


def _explained(flags: Iterable[Flag]) -> list[str]:
    lines = []
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        groups.setdefault(flag.group, []).append(flag)
    for group, members in groups.items():
        lines += ["", f"{group}:"]
        for flag in members:
            head = f"  {flag.name}{'*' if flag.with_file else ''} {_placeholder(flag)}".rstrip()
            why = SETTINGS[flag.setting].unapplied
            told = flag.help or f"{why[:1].upper()}{why[1:]}."
            text = f"{told}{_default(flag)}"
            body = wrap(text, 100 - 42, break_on_hyphens=False)
            if len(head) > 40:
                lines.append(head)
                head = ""
            lines.append(f"{head:<42}{body[0]}".rstrip())
            lines += [f"{'':<42}{more}" for more in body[1:]]
    return lines


def _placeholder(flag: Flag) -> str:
    if flag.type is Type.BOOL or flag.name in _ALONE:
        return ""
    if flag.type in (Type.GATES, Type.VMODULE):
        return str(flag.type.value)
    return str(flag.type.value).rstrip(", ").upper()


def _default(flag: Flag) -> str:
    default = SETTINGS[flag.setting].default
    if default in ("", (), {}, "false", 0) or default is False:
        return ""
    return f" (default {_text(flag.type, default)})"
