"""Every setting there is: its type, its default, and what is not done with it in this version.

One table for both places a setting can come from. A name with dots is the path in a
KubeProxyConfiguration; a name that starts with ``--`` exists as a flag only. Reading a value out
of flag text or out of a document is here too, since it depends on the type alone; whether the
value makes sense is decided in `pykubeproxy.config`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from msgspec import Struct

from pykubeproxy.durations import parse_duration
from pykubeproxy.errors import ConfigError

__all__ = [
    "GATES",
    "LOCKED_GATES",
    "SETTINGS",
    "Given",
    "Setting",
    "Type",
    "from_document",
    "from_text",
]

Value = str | bool | int | float | tuple[str, ...] | dict[str, bool]


class Type(Enum):
    """What a value looks like; the value of a member is how ``--help`` names it."""

    TEXT = "text"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    SECONDS = "duration"  # a Go duration, held as seconds
    TEXTS = "list"  # comma list in a flag, array in a document
    COMMA_TEXT = "list, "  # comma list in a flag, comma separated text in a document
    GATES = "A=true,B=false"
    SIZE = "size"  # a resource.Quantity, kept as text


class Setting(Struct, frozen=True):
    """One row of the table.

    ``unapplied`` says what this version does not do with the setting, as the end of a sentence;
    empty where it is applied. ``harmless`` are values that ask for just that.
    ``zero_is_unset``: a zero in a document means the default (Go's defaulting cannot tell).
    ``modes`` are the proxy modes that use it; empty: all.
    """

    type: Type
    default: Value
    unapplied: str = ""
    harmless: tuple[Value, ...] = ()
    zero_is_unset: bool = False
    modes: tuple[str, ...] = ()


class Given(Struct, frozen=True):
    """A value somebody gave, and where: the flag or the path in the file, for messages."""

    value: Value
    where: str


_CONNTRACK = "conntrack sysctls are left as they are; set them with sysctl.d on the node"
_TIMEOUT = "conntrack timeouts are left as they are; set them with sysctl.d on the node"
_NFTABLES = "only mode nftables would use it, which is not part of this version yet"
_WINDOWS = "it is for Windows nodes"
_RATE = "requests are not rate limited: a proxy sends four list and watch requests"
_CONTENT = "objects are always fetched as JSON"
_LOG_STREAM = "logs go to standard error, unbuffered"


def _seconds(
    default: float,
    unapplied: str = "",
    harmless: tuple[Value, ...] = (),
    modes: tuple[str, ...] = (),
) -> Setting:
    return Setting(Type.SECONDS, default, unapplied, harmless, zero_is_unset=True, modes=modes)


SETTINGS: Mapping[str, Setting] = {
    "bindAddress": Setting(Type.TEXT, "0.0.0.0"),
    "bindAddressHardFail": Setting(Type.BOOL, False),
    "clientConnection.acceptContentTypes": Setting(Type.TEXT, "", _CONTENT),
    "clientConnection.burst": Setting(Type.INT, 10, _RATE, zero_is_unset=True),
    "clientConnection.contentType": Setting(
        Type.TEXT, "application/vnd.kubernetes.protobuf", _CONTENT, ("application/json",)
    ),
    "clientConnection.kubeconfig": Setting(Type.TEXT, ""),
    "clientConnection.qps": Setting(Type.FLOAT, 5.0, _RATE, zero_is_unset=True),
    "clusterCIDR": Setting(Type.COMMA_TEXT, ()),
    "configSyncPeriod": _seconds(900.0, "there is no informer cache whose objects come again"),
    "conntrack.maxPerCore": Setting(Type.INT, 32768, _CONNTRACK, (0,)),
    "conntrack.min": Setting(Type.INT, 131072, _CONNTRACK),
    "conntrack.tcpBeLiberal": Setting(Type.BOOL, False, _CONNTRACK),
    "conntrack.tcpCloseWaitTimeout": Setting(Type.SECONDS, 3600.0, _TIMEOUT, (0.0,)),
    "conntrack.tcpEstablishedTimeout": Setting(Type.SECONDS, 86400.0, _TIMEOUT, (0.0,)),
    "conntrack.udpStreamTimeout": _seconds(0.0, _TIMEOUT),
    "conntrack.udpTimeout": _seconds(0.0, _TIMEOUT),
    "detectLocal.bridgeInterface": Setting(Type.TEXT, ""),
    "detectLocal.interfaceNamePrefix": Setting(Type.TEXT, ""),
    "detectLocalMode": Setting(Type.TEXT, "ClusterCIDR"),
    "enableProfiling": Setting(Type.BOOL, False, "there are no Go profiles; use py-spy"),
    "featureGates": Setting(Type.GATES, {}),
    "healthzBindAddress": Setting(Type.TEXT, ""),
    "hostnameOverride": Setting(Type.TEXT, ""),
    "iptables.localhostNodePorts": Setting(Type.BOOL, True, modes=("iptables",)),
    "iptables.masqueradeAll": Setting(Type.BOOL, False),
    "iptables.masqueradeBit": Setting(Type.INT, 14),
    "iptables.minSyncPeriod": _seconds(0.0, modes=("iptables", "nftables")),
    "iptables.syncPeriod": _seconds(30.0, modes=("iptables", "nftables")),
    "ipvs.excludeCIDRs": Setting(Type.TEXTS, ()),
    "ipvs.minSyncPeriod": _seconds(0.0, modes=("ipvs",)),
    "ipvs.scheduler": Setting(Type.TEXT, "", modes=("ipvs",)),
    "ipvs.strictARP": Setting(Type.BOOL, False, modes=("ipvs",)),
    "ipvs.syncPeriod": _seconds(30.0, modes=("ipvs",)),
    "ipvs.tcpFinTimeout": _seconds(0.0, modes=("ipvs",)),
    "ipvs.tcpTimeout": _seconds(0.0, modes=("ipvs",)),
    "ipvs.udpTimeout": _seconds(0.0, modes=("ipvs",)),
    "logging.flushFrequency": _seconds(5.0, _LOG_STREAM),
    "logging.format": Setting(Type.TEXT, "text"),
    "logging.options.json.infoBufferSize": Setting(Type.SIZE, "0", _LOG_STREAM),
    "logging.options.json.splitStream": Setting(Type.BOOL, False, _LOG_STREAM),
    "logging.options.text.infoBufferSize": Setting(Type.SIZE, "0", _LOG_STREAM),
    "logging.options.text.splitStream": Setting(Type.BOOL, False, _LOG_STREAM),
    "logging.verbosity": Setting(Type.INT, 0),
    "logging.vmodule": Setting(Type.TEXT, "", "verbosity is the same for all modules"),
    "metricsBindAddress": Setting(Type.TEXT, ""),
    "mode": Setting(Type.TEXT, "iptables"),
    "nftables.masqueradeAll": Setting(Type.BOOL, False, _NFTABLES),
    "nftables.masqueradeBit": Setting(Type.INT, 14, _NFTABLES),
    "nftables.minSyncPeriod": _seconds(1.0, _NFTABLES),
    "nftables.syncPeriod": _seconds(30.0, _NFTABLES),
    "nodePortAddresses": Setting(Type.TEXTS, ()),
    "oomScoreAdj": Setting(
        Type.INT, -999, "the OOM score stays as the container runtime or systemd set it"
    ),
    "portRange": Setting(Type.TEXT, "", "kube-proxy does not use it either"),
    "showHiddenMetricsForVersion": Setting(Type.TEXT, "", "no metric is hidden"),
    "windowsRunAsService": Setting(Type.BOOL, False, _WINDOWS),
    "winkernel.enableDSR": Setting(Type.BOOL, False, _WINDOWS),
    "winkernel.forwardHealthCheckVip": Setting(Type.BOOL, False, _WINDOWS),
    "winkernel.networkName": Setting(Type.TEXT, "", _WINDOWS),
    "winkernel.rootHnsEndpointName": Setting(Type.TEXT, "", _WINDOWS),
    "winkernel.sourceVip": Setting(Type.TEXT, "", _WINDOWS),
    "--boot-id-file": Setting(Type.TEXT, "", "it has no effect on proxying"),
    "--cleanup": Setting(Type.BOOL, False),
    "--ipvs-drain-timeout": Setting(Type.SECONDS, 30.0, modes=("ipvs",)),
    "--ipvs-fallback": Setting(Type.TEXT, "iptables", modes=("ipvs",)),
    "--config": Setting(Type.TEXT, ""),
    "--healthz-port": Setting(Type.INT, 10256),
    "--help": Setting(Type.BOOL, False),
    "--init-only": Setting(Type.BOOL, False),
    "--iptables-variant": Setting(Type.TEXT, "auto"),
    "--iptables-service-index": Setting(Type.TEXT, "auto"),
    "--machine-id-file": Setting(Type.TEXT, "", "it has no effect on proxying"),
    "--manifests": Setting(Type.TEXT, ""),
    "--master": Setting(Type.TEXT, ""),
    "--metrics-port": Setting(Type.INT, 10249),
    "--state-directory": Setting(Type.TEXT, "/run/pykubeproxy"),
    "--version": Setting(Type.TEXT, "false"),
    "--write-config-to": Setting(Type.TEXT, ""),
}

GATES = {  # feature gates of 1.36 with their defaults; those in LOCKED_GATES are fixed
    "AllAlpha": False,
    "AllBeta": False,
    "AllowServiceExternalIPs": True,
    "ComponentFlagz": True,
    "ComponentStatusz": True,
    "ContextualLogging": True,
    "LoggingAlphaOptions": False,
    "LoggingBetaOptions": True,
    "MultiCIDRServiceAllocator": True,
    "NFTablesProxyMode": True,
    "NativeHistograms": False,
    "PreferSameTrafficDistribution": True,
}
LOCKED_GATES = frozenset(
    {"MultiCIDRServiceAllocator", "NFTablesProxyMode", "PreferSameTrafficDistribution"}
)

# Go's strconv.ParseBool takes these and no others.
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_INT_RANGE = range(-(2**31), 2**31)


def from_text(kind: Type, text: str, where: str) -> Value:
    """Read a flag's text.

    Raises:
        ConfigError: *text* is not of this type; names *where* and what would be.
    """
    match kind:
        case Type.TEXT | Type.SIZE:
            return text
        case Type.BOOL:
            if text not in _BOOLS:
                raise ConfigError(where, f"{text!r} is no bool; write true or false")
            return _BOOLS[text]
        case Type.INT:
            return _int(text, where)
        case Type.FLOAT:
            try:
                return float(text)
            except ValueError:
                raise ConfigError(where, f"{text!r} is no number") from None
        case Type.SECONDS:
            return _duration(text, where)
        case Type.TEXTS | Type.COMMA_TEXT:
            return tuple(text.split(",")) if text else ()
        case Type.GATES:
            return _gates(text, where)


def from_document(kind: Type, value: Any, where: str) -> Value:
    """Read a value of a decoded YAML or JSON document, as strictly as Go's decoder.

    Raises:
        ConfigError: *value* has another type; names *where* and the type that belongs there.
    """
    match kind, value:
        case ((Type.TEXT | Type.SIZE), str(text)):
            return text
        case Type.BOOL, bool(flag):
            return flag
        case Type.SIZE, int() if not isinstance(value, bool):
            return str(value)
        case Type.COMMA_TEXT, str():
            return tuple(value.split(",")) if value else ()
        case Type.INT, int() if not isinstance(value, bool) and value in _INT_RANGE:
            return int(value)
        case Type.FLOAT, int() | float() if not isinstance(value, bool):
            return float(value)
        case Type.SECONDS, str():
            return _duration(value, where)
        # logging.flushFrequency only, upstream: nanoseconds. Elsewhere a number other than zero
        # is more likely meant as seconds, so it is refused.
        case Type.SECONDS, int() if not isinstance(value, bool) and (
            value == 0 or where.endswith("flushFrequency")
        ):
            return float(value) / 1e9
        case Type.TEXTS, list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case Type.GATES, dict() if all(isinstance(flag, bool) for flag in value.values()):
            return {str(gate): flag for gate, flag in value.items()}
    raise ConfigError(where, f"{value!r} has the wrong type; {_EXPECTED[kind]} belongs here")


_EXPECTED = {
    Type.TEXT: "a string",
    Type.SIZE: "a size such as 0 or 64Ki",
    Type.COMMA_TEXT: "a comma separated string",
    Type.BOOL: "true or false",
    Type.INT: "a 32 bit integer",
    Type.FLOAT: "a number",
    Type.SECONDS: "a duration in quotes such as 30s or 1h30m",
    Type.TEXTS: "a list of strings",
    Type.GATES: "a map of feature names to true or false",
}


def _int(text: str, where: str) -> int:
    try:
        number = int(text, 10 if text.lstrip("+-").isdigit() else 0)
    except ValueError:
        raise ConfigError(where, f"{text!r} is no integer") from None
    if number not in _INT_RANGE:
        raise ConfigError(where, f"{text} does not fit into 32 bits")
    return number


def _duration(text: str, where: str) -> float:
    seconds = parse_duration(text)
    if seconds is None:
        raise ConfigError(where, f"{text!r} is no duration; write for example 30s, 1h30m or 0")
    return seconds


def _gates(text: str, where: str) -> dict[str, bool]:
    gates: dict[str, bool] = {}
    for item in filter(None, text.split(",")):
        name, equals, flag = (part.strip() for part in item.partition("="))
        if not equals or flag not in _BOOLS:
            raise ConfigError(where, f"{item!r} is not of the form Name=true or Name=false")
        gates[name] = _BOOLS[flag]
    return gates
