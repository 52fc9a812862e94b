"""Every setting there is: its type, its default, and what is not done with it in this version.

One table for both places a setting can come from. A name with dots is the path in a
KubeProxyConfiguration; a name that starts with ``--`` exists as a flag only. Reading a value out
of flag text or out of a document is here too, since it depends on the type alone; whether the
value makes sense is decided in `pykubeproxy.configbuild`.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from enum import Enum
from typing import Any

from msgspec import Struct

from pykubeproxy.durations import parse_duration
from pykubeproxy.errors import ConfigError

__all__ = [
    "GATES",
    "GATE_STAGES",
    "LOCKED_GATES",
    "SECTIONS",
    "SETTINGS",
    "VMODULE_FIELDS",
    "Given",
    "Setting",
    "Type",
    "Value",
    "from_document",
    "from_text",
    "shown",
]

Value = str | bool | int | float | tuple[str, ...] | dict[str, bool]


class Type(Enum):
    """What a value looks like; the value of a member is how ``--help`` names it."""

    TEXT = "text"
    BOOL = "bool"
    INT = "int"
    LEVEL = "level"  # an int that a flag takes as decimal digits only
    FLOAT = "float"
    SECONDS = "duration"  # a Go duration, held as seconds
    TEXTS = "list"  # comma list in a flag, array in a document
    COMMA_TEXT = "list, "  # comma list in a flag, comma separated text in a document
    GATES = "A=true,B=false"
    SIZE = "size"  # a resource.Quantity, kept as text
    VMODULE = "pattern=N,..."  # per file verbosity; items as in the flag


class Setting(Struct, frozen=True):
    """One row of the table.

    ``unapplied`` says why nothing is done with the setting, as the end of a sentence; empty where
    it is applied. ``harmless`` are values that ask for just that.
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


_WINDOWS = "it is for Windows nodes"
_RATE = "requests are not rate limited: there is one watch per kind of object, and Events"
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
    "conntrack.maxPerCore": Setting(Type.INT, 32768),
    "conntrack.min": Setting(Type.INT, 131072),
    "conntrack.tcpBeLiberal": Setting(Type.BOOL, False),
    "conntrack.tcpCloseWaitTimeout": Setting(Type.SECONDS, 3600.0),
    "conntrack.tcpEstablishedTimeout": Setting(Type.SECONDS, 86400.0),
    "conntrack.udpStreamTimeout": _seconds(0.0),
    "conntrack.udpTimeout": _seconds(0.0),
    "detectLocal.bridgeInterface": Setting(Type.TEXT, ""),
    "detectLocal.interfaceNamePrefix": Setting(Type.TEXT, ""),
    "detectLocalMode": Setting(Type.TEXT, "ClusterCIDR"),
    "enableProfiling": Setting(Type.BOOL, False),
    "featureGates": Setting(Type.GATES, {}),
    "healthzBindAddress": Setting(Type.TEXT, "0.0.0.0:10256"),
    "hostnameOverride": Setting(Type.TEXT, ""),
    "iptables.localhostNodePorts": Setting(Type.BOOL, True, modes=("iptables",)),
    "iptables.masqueradeAll": Setting(Type.BOOL, False),
    "iptables.masqueradeBit": Setting(Type.INT, 14, modes=("iptables", "ipvs")),
    "iptables.minSyncPeriod": _seconds(0.0, modes=("iptables",)),
    "iptables.syncPeriod": _seconds(30.0, modes=("iptables",)),
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
    "logging.verbosity": Setting(Type.LEVEL, 0),
    "logging.vmodule": Setting(Type.VMODULE, (), "verbosity is the same for all modules"),
    "metricsBindAddress": Setting(Type.TEXT, "127.0.0.1:10249"),
    "mode": Setting(Type.TEXT, "iptables"),
    "nftables.masqueradeAll": Setting(Type.BOOL, False, modes=("nftables",)),
    "nftables.masqueradeBit": Setting(Type.INT, 14, modes=("nftables",)),
    "nftables.minSyncPeriod": _seconds(0.0, modes=("nftables",)),
    "nftables.syncPeriod": _seconds(30.0, modes=("nftables",)),
    "nodePortAddresses": Setting(Type.TEXTS, ()),
    "oomScoreAdj": Setting(Type.INT, -999),
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
    "--dry-run": Setting(Type.BOOL, False),
    "--healthz-port": Setting(Type.INT, 10256),
    "--help": Setting(Type.TEXT, "false"),
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

SECTIONS = frozenset(
    path.rsplit(".", depth)[0]
    for path in SETTINGS
    if not path.startswith("--")
    for depth in range(1, path.count(".") + 1)
)
"""Paths of the mappings in a KubeProxyConfiguration."""

VMODULE_FIELDS = ("filePattern", "verbosity")
"""What an item of ``logging.vmodule`` has in a document."""

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

_ALPHA = ("AllAlpha", "LoggingAlphaOptions", "NativeHistograms")
_BETA = (
    *("AllBeta", "ComponentFlagz", "ComponentStatusz", "ContextualLogging"),
    "LoggingBetaOptions",
)
GATE_STAGES: Mapping[str, str] = {
    **dict.fromkeys(GATES, ""),
    **dict.fromkeys(_ALPHA, "ALPHA"),
    **dict.fromkeys(_BETA, "BETA"),
}
"""As kube-proxy's metrics name them; a feature that is generally available has no stage."""

# Go's strconv.ParseBool takes these and no others.
_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_INT_RANGE = range(-(2**31), 2**31)
_LEVELS = range(2**31)

_SIZE = re.compile(
    r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?", re.ASCII
)
# What Python reads in a number and Go does not: blanks around it, and digits of other scripts.
_NUMBER = re.compile(r"[-+.\w]+", re.ASCII)
_OCTAL = re.compile(r"[-+]?0[0-9_]", re.ASCII)
_LEVEL = re.compile(r"0*([0-9]{1,10})", re.ASCII)


def from_text(kind: Type, text: str, where: str) -> Value:
    """Read a flag's text.

    Raises:
        ConfigError: *text* is not of this type; names *where* and what would be.
    """
    if not _is_text(text):
        raise _unfit(kind, text, where)
    match kind:
        case Type.TEXT:
            return text
        case Type.SIZE if _SIZE.fullmatch(text):
            return text
        case Type.BOOL if text in _BOOLS:
            return _BOOLS[text]
        case Type.INT:
            number = _int(text)
            if number is not None:
                return number
        case Type.LEVEL:
            level = _level(text)
            if level is not None:
                return level
        case Type.FLOAT:
            real = _float(text)
            if real is not None:
                return real
        case Type.SECONDS:
            seconds = parse_duration(text)
            if seconds is not None:
                return seconds
        case Type.TEXTS | Type.COMMA_TEXT:
            return tuple(text.split(",")) if text else ()
        case Type.VMODULE:
            items = tuple(filter(None, text.split(",")))
            if all(map(_is_vmodule_item, items)):
                return items
        case Type.GATES:
            gates = _gates(text)
            if gates is not None:
                return gates
    raise _unfit(kind, text, where)


def from_document(kind: Type, value: Any, where: str) -> Value:
    """Read a value of a decoded YAML or JSON document, as strictly as Go's decoder.

    Raises:
        ConfigError: *value* has another type; names *where* and the type that belongs there.
    """
    if not _is_text(value):
        raise _unfit(kind, value, where)
    # A bool is an int to Python only; a whole float is what JSON's 14.0 is to Go.
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, float) and value.is_integer():
        whole, value = True, int(value)
    match kind, value:
        case Type.TEXT, str(text):
            return text
        case Type.SIZE, str(text) if _SIZE.fullmatch(text):
            return text
        case Type.SIZE, int() if whole:
            return str(value)
        case Type.BOOL, bool(flag):
            return flag
        case Type.COMMA_TEXT, str():
            return tuple(value.split(",")) if value else ()
        case Type.INT | Type.LEVEL, int() if whole and value in _INT_RANGE:
            return int(value)
        case Type.FLOAT, int() | float() if not isinstance(value, bool) and abs(value) < _FLOAT_MAX:
            return float(value)
        case Type.SECONDS, str():
            seconds = parse_duration(value)
            if seconds is not None:
                return seconds
        # logging.flushFrequency only, upstream: nanoseconds. Elsewhere a number other than zero
        # is more likely meant as seconds, so it is refused.
        case Type.SECONDS, int() if (
            whole and (value == 0 or where.endswith("flushFrequency")) and abs(value) < 2**63
        ):
            return float(value) / 1e9
        case Type.TEXTS, list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case Type.VMODULE, list():
            items = tuple(filter(None, map(_vmodule_item, value)))
            if len(items) == len(value):
                return items
        case Type.GATES, dict() if all(isinstance(flag, bool) for flag in value.values()):
            names = (gate if isinstance(gate, str) else shown(gate) for gate in value)
            return dict(zip(names, value.values(), strict=True))
    raise _unfit(kind, value, where)


def shown(value: object) -> str:
    """Return *value* as messages show it: of a bounded length, on one line, YAML's constants."""
    return _shortened.repr(value)


class _Shortened(reprlib.Repr):
    def repr_bool(self, value: bool, _level: int) -> str:
        return str(value).lower()

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write very long ones in decimal, which YAML can hold in hexadecimal.
        fits = value.bit_length() <= 1000
        return super().repr_int(value, level) if fits else "an integer of many digits"

    def repr_NoneType(self, _value: None, _level: int) -> str:
        return "null"


_shortened = _Shortened()
_shortened.maxstring = _shortened.maxother = 80
_shortened.maxlevel = 2
_shortened.maxdict = _shortened.maxlist = _shortened.maxlong = 40

_EXPECTED = {
    Type.TEXT: "a string",
    Type.SIZE: "a size such as 0 or 64Ki",
    Type.COMMA_TEXT: "a comma separated string",
    Type.BOOL: "true or false",
    Type.INT: "an integer of 32 bits",
    Type.LEVEL: "an integer of 32 bits",
    Type.FLOAT: "a number",
    Type.SECONDS: "a duration such as 30s or 1h30m",
    Type.TEXTS: "a list of strings",
    Type.VMODULE: "a list of filePattern and verbosity",
    Type.GATES: "a map of feature names to true or false",
}
_EXPECTED_TEXT = {
    **_EXPECTED,
    Type.LEVEL: f"a number from 0 to {_LEVELS[-1]} in decimal digits",
    Type.SECONDS: "a duration such as 30s, 1h30m or 0",
    Type.VMODULE: "of the form pattern=N,pattern=N",
    Type.GATES: "of the form Name=true,Name=false",
}
"""In a flag."""


def _unfit(kind: Type, value: object, where: str) -> ConfigError:
    expected = (_EXPECTED_TEXT if where.startswith("-") else _EXPECTED)[kind]
    if not _is_text(value):
        expected += ", of Unicode characters other than NUL"
    return ConfigError(where, f"invalid value {shown(value)}: must be {expected}")


def _is_text(value: object) -> bool:
    """Whether what is text in *value* can be written and handed to the kernel."""
    match value:
        case str():
            return "\0" not in value and not _SURROGATE.search(value)
        case list() | dict():
            return all(_is_text(item) for item in value if isinstance(item, str))
    return True


_SURROGATE = re.compile("[\ud800-\udfff]")

# kube-proxy holds these as 32 bit floats.
_FLOAT_MAX = 3.4e38


def _float(text: str) -> float | None:
    """Read *text* as Go's ParseFloat, but no ``0x1p-2``; underscores may stand between digits."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) < _FLOAT_MAX else None


def _int(text: str) -> int | None:
    """Read *text* as Go's ParseInt with base 0: as Python's with base 0, but 010 is 8."""
    if not _NUMBER.fullmatch(text):
        return None
    try:
        number = int(text, 8 if _OCTAL.match(text) else 0)
    except ValueError:
        return None
    return number if number in _INT_RANGE else None


def _level(text: str) -> int | None:
    """Read *text* as Go's ParseUint with base 10 and 31 bits: no sign, no underscores."""
    digits = _LEVEL.fullmatch(text)
    number = int(digits[1]) if digits else -1
    return number if number in _LEVELS else None


def _is_vmodule_item(item: str) -> bool:
    pattern, _, level = item.partition("=")
    return bool(pattern) and "," not in pattern and _level(level) is not None


def _vmodule_item(item: object) -> str:
    """Return an *item* of a document in the form of the flag, or nothing if it is none."""
    if not isinstance(item, dict):
        return ""
    pattern, level = (item.get(name) for name in VMODULE_FIELDS)
    try:
        number = 0 if level is None else from_document(Type.LEVEL, level, "verbosity")
    except ConfigError:
        return ""
    text = f"{pattern}={number}"
    fits = isinstance(pattern, str) and _is_text(pattern) and "=" not in pattern
    return text if fits and _is_vmodule_item(text) else ""


def _gates(text: str) -> dict[str, bool] | None:
    gates: dict[str, bool] = {}
    for item in filter(None, text.split(",")):
        name, equals, flag = (part.strip() for part in item.partition("="))
        if not equals or flag not in _BOOLS:
            return None
        gates[name] = _BOOLS[flag]
    return gates
