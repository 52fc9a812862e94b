"""The command line: kube-proxy's flag names in Go's (pflag) spelling, from one table.

Only syntax is decided here: which flag was given with which text. `pykubeproxy.settings` reads
the texts, `pykubeproxy.config` judges the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from textwrap import wrap

from msgspec import Struct

from pykubeproxy.durations import format_duration
from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import SETTINGS, Given, Type, from_text

__all__ = ["FLAGS", "Flag", "Parsed", "parse", "usage"]


class Flag(Struct, frozen=True):
    """One flag. ``with_file``: it still counts when ``--config`` is given."""

    name: str  # with its dashes
    setting: str  # key of SETTINGS
    group: str
    help: str
    with_file: bool = False

    @property
    def type(self) -> Type:
        return SETTINGS[self.setting].type


def _group(group: str, *rows: tuple[str, str, str], with_file: bool = False) -> tuple[Flag, ...]:
    return tuple(Flag(name, setting, group, text, with_file) for name, setting, text in rows)


# fmt: off
FLAGS: tuple[Flag, ...] = (
    *_group("What to do",
        ("--config", "--config",
         "Read a KubeProxyConfiguration file; the flags not marked * are then ignored."),
        ("--cleanup", "--cleanup", "Remove every rule of this proxy and exit."),
        ("--version", "--version", "Print the version and exit."),
        ("--help", "--help", "Print this text and exit."),
        ("--write-config-to", "--write-config-to", "Not part of this version yet."),
        ("--init-only", "--init-only", "Not part of this version yet."),
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
        ("--proxy-mode", "mode", "iptables or ipvs (nftables is not part of this version yet)."),
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
         "How virtual servers choose: rr, wrr, lc, wlc, sh, dh, mh, ... (rr). One Service: "
         "annotation pykubeproxy.io/ipvs-scheduler."),
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
         "IP or IP:port of the health server (0.0.0.0:10256)."),
        ("--healthz-port", "--healthz-port",
         "Port of the health server where the address has none; 0 switches it off."),
        ("--metrics-bind-address", "metricsBindAddress",
         "IP or IP:port of the metrics server (127.0.0.1:10249)."),
        ("--metrics-port", "--metrics-port",
         "Port of the metrics server where the address has none."),
        ("--bind-address-hard-fail", "bindAddressHardFail",
         "Exit when the health or metrics server cannot listen."),
        ("--feature-gates", "featureGates",
         "Features to switch; AllowServiceExternalIPs is the one that matters.")),
    *_group("Logging",
        ("--v", "logging.verbosity", "Verbosity; 4 and more show debugging output. Also -v."),
        ("--logging-format", "logging.format", "text or json."),
        with_file=True),
    *_group("Understood, not applied by this version (a notice says why)",
        ("--conntrack-max-per-core", "conntrack.maxPerCore", ""),
        ("--conntrack-min", "conntrack.min", ""),
        ("--conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", ""),
        ("--conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", ""),
        ("--conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", ""),
        ("--conntrack-udp-timeout", "conntrack.udpTimeout", ""),
        ("--conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", ""),
        ("--config-sync-period", "configSyncPeriod", ""),
        ("--kube-api-burst", "clientConnection.burst", ""),
        ("--kube-api-content-type", "clientConnection.contentType", ""),
        ("--kube-api-qps", "clientConnection.qps", ""),
        ("--oom-score-adj", "oomScoreAdj", ""),
        ("--profiling", "enableProfiling", ""),
        ("--show-hidden-metrics-for-version", "showHiddenMetricsForVersion", "")),
    *_group("Understood, not applied by this version (a notice says why)",
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
# Given without "=value" these take the value on the right and never the next argument.
_ALONE = {Type.BOOL: "true"}
# An empty text keeps the default of these instead of being an error (kube-proxy's IP flags).
_EMPTY_KEEPS_DEFAULT = frozenset({"bindAddress", "healthzBindAddress", "metricsBindAddress"})


class Parsed(Struct, frozen=True):
    """The flags that were given: those that always count, and those that ``--config`` silences."""

    always: dict[str, Given]
    without_file: dict[str, Given]


def parse(argv: Sequence[str]) -> Parsed:
    """Read the arguments behind the program name.

    Lists and feature gates accumulate when repeated; of other flags the last one counts.

    Raises:
        ConfigError: unknown flag, missing or unreadable value, or a positional argument.
    """
    always: dict[str, Given] = {}
    without_file: dict[str, Given] = {}
    for flag, text, where in _pairs(argv):
        if not text and flag.setting in _EMPTY_KEEPS_DEFAULT:
            continue
        value = from_text(flag.type, text, where)
        target = always if flag.with_file else without_file
        earlier = target.get(flag.setting)
        if earlier is not None and isinstance(value, tuple) and isinstance(earlier.value, tuple):
            value = earlier.value + value
        if earlier is not None and isinstance(value, dict) and isinstance(earlier.value, dict):
            value = {**earlier.value, **value}
        target[flag.setting] = Given(value, where)
    return Parsed(always, without_file)


def _pairs(argv: Sequence[str]) -> Iterable[tuple[Flag, str, str]]:
    """Yield each flag with its text and the name to use in messages."""
    rest = list(reversed(argv))
    while rest:
        argument = rest.pop()
        if argument == "--":
            _refuse_positional(reversed(rest))
            return
        if argument.startswith("--"):
            name, equals, text = argument.partition("=")
            flag = _find(name)
        elif argument.startswith("-") and argument != "-":
            # -v2, -v=2 and -v 2 mean the same; a bool (-h) takes a value after "=" only.
            flag = _find_short(argument)
            text = argument[2:]
            equals = "=" if text else ""
            text = text.removeprefix("=")
        else:
            _refuse_positional([argument])
            continue
        shown = "-v" if flag is _SHORT["v"] and not argument.startswith("--") else flag.name
        if not equals:
            if flag.type is Type.BOOL or flag.name == "--version":
                text = "true"
            elif rest:
                text = rest.pop()
            else:
                raise ConfigError(shown, f"needs a value; write {shown}={flag.type.name.upper()}")
        yield flag, text, shown


def _refuse_positional(arguments: Iterable[str]) -> None:
    for argument in arguments:
        if argument:
            raise ConfigError(
                repr(argument), "is neither a flag nor the value of one; bools need --flag=value"
            )


def _find(text: str) -> Flag:
    name = "--" + text[2:].replace("_", "-")
    flag = _BY_NAME.get(name)
    if flag is None:
        raise ConfigError(text, f"unknown flag; {_suggestion(name)}")
    return flag


def _find_short(argument: str) -> Flag:
    if argument.startswith("-v") and not argument[2:].removeprefix("=").isdigit() and argument[2:]:
        raise ConfigError(argument, f"unknown flag; {_suggestion('-' + argument)}")
    flag = _SHORT.get(argument[1])
    if flag is None or (flag.type is Type.BOOL and argument[2:3] not in ("", "=")):
        raise ConfigError(argument, f"unknown flag; {_suggestion('-' + argument)}")
    return flag


def _suggestion(name: str) -> str:
    name = name.partition("=")[0].replace("_", "-")
    near = get_close_matches(name, _BY_NAME, n=1, cutoff=0.6)
    # An abbreviation is refused like any other unknown name, but it tells what was meant.
    near = near or sorted(known for known in _BY_NAME if known.startswith(name) and name != "--")
    return f"did you mean {near[0]}?" if near else "see --help for those there are"


def usage() -> str:
    """Return the text of ``--help``, grouped, at most 100 columns wide."""
    lines = [
        "pykubeproxy keeps the packet rules of a Linux node in step with the cluster's Services.",
        "",
        "Flags marked * count also when --config is given.",
    ]
    groups: dict[str, list[Flag]] = {}
    for flag in FLAGS:
        groups.setdefault(flag.group, []).append(flag)
    for group, flags in groups.items():
        lines += ["", f"{group}:"]
        for flag in flags:
            head = f"  {flag.name}{'*' if flag.with_file else ''} {_placeholder(flag)}".rstrip()
            text = f"{flag.help}{_default(flag)}".strip()
            body = wrap(text, 100 - 42) or [""]
            if len(head) > 40:
                lines.append(head)
                head = ""
            lines.append(f"{head:<42}{body[0]}".rstrip())
            lines += [f"{'':<42}{more}" for more in body[1:]]
    return "\n".join(lines) + "\n"


def _placeholder(flag: Flag) -> str:
    if flag.type is Type.BOOL or flag.name == "--version":
        return ""
    return flag.type.value.rstrip(", ").upper() if flag.type is not Type.GATES else Type.GATES.value


def _default(flag: Flag) -> str:
    default = SETTINGS[flag.setting].default
    if default in ("", (), {}, "false") or default is False:
        return ""
    if flag.type is Type.SECONDS:
        assert isinstance(default, int | float)
        return f" (default {format_duration(default)})" if default else ""
    if flag.type is Type.BOOL:
        return f" (default {str(default).lower()})"
    return f" (default {default})" if default else ""
