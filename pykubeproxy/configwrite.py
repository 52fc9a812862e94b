"""Writes a configuration: as a KubeProxyConfiguration in YAML or JSON, and flag by flag.

What is written are effective values, also where flags asked for them. What a file cannot say is
not in it: --master, our own flags, and a health server that is switched off.
"""

from __future__ import annotations

from typing import Any

import msgspec
import yaml

from pykubeproxy.config import MODES, Config
from pykubeproxy.configfile import API_VERSION, FLOAT, KIND
from pykubeproxy.durations import format_duration
from pykubeproxy.flags import texts
from pykubeproxy.settings import SETTINGS, Type, Value

__all__ = ["changed_paths", "configz_json", "document", "flagz", "to_yaml"]


def document(config: Config) -> dict[str, Any]:
    """Return *config* as the tree of a KubeProxyConfiguration, in the order of Go's type.

    Times are texts in Go's form, an empty list is ``None``, and of the periods only those of the
    active mode are told: kube-proxy's form.
    """
    tree: dict[str, Any] = {"kind": KIND, "apiVersion": API_VERSION}
    for path in _ORDER:
        value = config.settings.get(path, SETTINGS[path].default)
        section, _, name = path.rpartition(".")
        if section in MODES and section != config.mode and name in ("syncPeriod", "minSyncPeriod"):
            value = 0.0
        if path in _ONLY_IF_SET and not value:
            continue
        place = tree
        for part in filter(None, section.split(".")):
            place = place.setdefault(part, {})
        place[name] = _plain(SETTINGS[path].type, value)
    return tree


def to_yaml(config: Config) -> str:
    """Return *config* as a file that says the same, in the form of kube-proxy's own."""
    return yaml.dump(
        document(config), Dumper=_Dumper, sort_keys=True, allow_unicode=True, width=2**31
    )


def configz_json(config: Config) -> bytes:
    """Return the body of ``/configz``."""
    return msgspec.json.encode({_GROUP: document(config)})


def flagz(config: Config) -> dict[str, str]:
    """Return every flag's value, by name without dashes: as given, else its default.

    As in kube-proxy this is the command line, also where --config silences a flag: ``/configz``
    tells what came of it.
    """
    return texts(config.flags)


def changed_paths(one: Config, other: Config) -> list[str]:
    """Return the fields whose effective values differ, sorted."""
    before, after = one.settings, other.settings
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


_GROUP = API_VERSION.partition("/")[0]

# Go leaves these out when they are empty.
_ONLY_IF_SET = frozenset(
    {
        *("featureGates", "logging.vmodule", "windowsRunAsService"),
        *("logging.options.json.splitStream", "logging.options.text.splitStream"),
    }
)

# Fields in the order of Go's type, which JSON shows.
_ORDER = (
    "featureGates",
    *(
        f"clientConnection.{name}"
        for name in ("kubeconfig", "acceptContentTypes", "contentType", "qps", "burst")
    ),
    *(f"logging.{name}" for name in ("format", "flushFrequency", "verbosity", "vmodule")),
    *(
        f"logging.options.{form}.{name}"
        for form in ("text", "json")
        for name in ("splitStream", "infoBufferSize")
    ),
    *("hostnameOverride", "bindAddress", "healthzBindAddress", "metricsBindAddress"),
    *("bindAddressHardFail", "enableProfiling", "showHiddenMetricsForVersion", "mode"),
    *(f"iptables.{name}" for name in ("masqueradeBit", "masqueradeAll", "localhostNodePorts")),
    *("iptables.syncPeriod", "iptables.minSyncPeriod", "ipvs.syncPeriod", "ipvs.minSyncPeriod"),
    *("ipvs.scheduler", "ipvs.excludeCIDRs", "ipvs.strictARP"),
    *("ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout"),
    *(
        f"nftables.{name}"
        for name in ("masqueradeBit", "masqueradeAll", "syncPeriod", "minSyncPeriod")
    ),
    *("winkernel.networkName", "winkernel.sourceVip", "winkernel.enableDSR"),
    *("winkernel.rootHnsEndpointName", "winkernel.forwardHealthCheckVip"),
    *("detectLocalMode", "detectLocal.bridgeInterface", "detectLocal.interfaceNamePrefix"),
    *("clusterCIDR", "nodePortAddresses", "oomScoreAdj"),
    *("conntrack.maxPerCore", "conntrack.min", "conntrack.tcpEstablishedTimeout"),
    *("conntrack.tcpCloseWaitTimeout", "conntrack.tcpBeLiberal"),
    *("conntrack.udpTimeout", "conntrack.udpStreamTimeout"),
    *("configSyncPeriod", "portRange", "windowsRunAsService"),
)


def _plain(kind: Type, value: Value) -> Any:
    match kind, value:
        case Type.SECONDS, int() | float():
            return format_duration(value)
        case Type.COMMA_TEXT, tuple():
            return ",".join(value)
        case Type.VMODULE, tuple():
            items = [item.rpartition("=") for item in value]
            return [{"filePattern": one, "verbosity": int(number)} for one, _, number in items]
        case Type.TEXTS, tuple():
            return list(value) or None
        case Type.FLOAT, float() if value.is_integer():
            return int(value)
    return value


class _Dumper(yaml.SafeDumper):
    """Writes as Go's library does: texts that would read as something else in double quotes."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    tag = "tag:yaml.org,2002:str"
    plain = dumper.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return dumper.represent_scalar(tag, text, style=None if plain == tag and text else '"')


def _float(dumper: _Dumper, number: float) -> yaml.Node:
    # With a point before any exponent, as YAML 1.1 wants it.
    text = repr(number)
    text = text if "." in text or "e" not in text else text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_implicit_resolver(*FLOAT)
_Dumper.add_representer(str, _text)
_Dumper.add_representer(float, _float)
