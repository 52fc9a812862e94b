"""The effective configuration: one frozen value, complete and checked.

`build` turns settings (from flags or from a file, see `pykubeproxy.settings`) into a `Config`:
defaults, canonical spelling, validation with all problems in one message, and a notice for every
setting that was given but is not applied. Nothing is accepted and ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct, structs

from pykubeproxy.configfile import Document, load_file
from pykubeproxy.durations import format_duration
from pykubeproxy.errors import ConfigError
from pykubeproxy.model.addresses import canonical_cidr, canonical_ip
from pykubeproxy.settings import GATES, LOCKED_GATES, SETTINGS, Given, Type

__all__ = ["Command", "Config", "DetectLocalMode", "Document", "IpvsConfig", "build", "load_file"]


class Command(Enum):
    """What this process is to do."""

    RUN = "run"
    CLEANUP = "cleanup"
    VERSION = "version"


class DetectLocalMode(Enum):
    """How traffic from pods of this node is told from other traffic (model of kube-proxy)."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class IpvsConfig(Struct, frozen=True):
    """What only ipvs mode asks for. Times are seconds; a timeout of 0 leaves the kernel's.

    ``drain_seconds`` is how long connections to a removed endpoint may go on, 0 for ever.
    ``falls_back``: where the kernel cannot do it, run in iptables mode; else exit.
    """

    scheduler: str = "rr"
    exclude_cidrs: tuple[str, ...] = ()
    strict_arp: bool = False
    tcp_timeout_seconds: float = 0.0
    tcp_fin_timeout_seconds: float = 0.0
    udp_timeout_seconds: float = 0.0
    drain_seconds: float = 30.0
    falls_back: bool = True


class Config(Struct, frozen=True):
    """The effective configuration. Addresses and CIDRs are canonical, times are seconds.

    ``min_sync_period_seconds`` is ``None`` when not given or 0: pacing is adaptive then.
    ``healthz_address`` is ``None`` when that server is switched off.
    ``cluster_cidrs`` is empty unless ``detect_local_mode`` uses it.
    ``notices`` are sentences to log once at start.
    """

    command: Command = Command.RUN
    mode: str = "iptables"
    node_name: str = ""  # "" means the host name
    kubeconfig: str = ""  # "" with no master and no manifests: in-cluster
    master: str = ""
    manifests: str = ""
    bind_address: str = "0.0.0.0"
    bind_address_hard_fail: bool = False
    healthz_address: tuple[str, int] | None = ("0.0.0.0", 10256)
    metrics_address: tuple[str, int] = ("127.0.0.1", 10249)
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    cluster_cidrs: tuple[str, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    nodeport_addresses: tuple[str, ...] = ()  # CIDRs, or ("primary",)
    masquerade_all: bool = False
    masquerade_bit: int = 14
    localhost_nodeports: bool = True
    sync_period_seconds: float = 30.0
    min_sync_period_seconds: float | None = None
    iptables_variant: str = "auto"  # auto, nft or legacy
    iptables_service_index: str = "auto"  # auto, always or never
    ipvs: IpvsConfig = IpvsConfig()
    state_directory: str = "/run/pykubeproxy"  # "": nothing is remembered over a restart
    allow_external_ips: bool = True
    verbosity: int = 0
    log_format: str = "text"  # text or json
    notices: tuple[str, ...] = ()


MODES = ("iptables", "ipvs", "nftables")
# Valid modes that cannot run yet; taking a name out of here is all it takes to offer it.
MODES_NOT_YET = frozenset({"nftables"})

_CIDR = "write a CIDR such as 10.0.0.0/8 or fd00::/64"


def build(given: Mapping[str, Given], notices: tuple[str, ...] = ()) -> Config:
    """Return the effective configuration that *given* asks for.

    *given* holds only what was set (keys of `SETTINGS`); *notices* come before the ones found
    here. Whether a value came from a file is told by its ``where``: file form has one rule of
    its own, an IPv6 ``bindAddress`` moves the default health and metrics addresses to IPv6.

    Raises:
        ConfigError: one or more values cannot be used; the message lists all of them.
    """
    return _Builder(given, notices).config()


class _Builder:
    """Collects problems and notices while the fields are put together."""

    def __init__(self, given: Mapping[str, Given], notices: tuple[str, ...]) -> None:
        self._given = given
        self._problems: list[tuple[str, str]] = []
        self._notices = list(notices)

    def config(self) -> Config:
        proxy_mode = self._mode()
        sync_period, min_sync_period = self._periods("ipvs" if proxy_mode == "ipvs" else "iptables")
        mode = self._detect_local_mode()
        config = Config(
            command=self._command(),
            mode=proxy_mode,
            node_name=self._node_name(),
            kubeconfig=self._text("clientConnection.kubeconfig"),
            master=self._text("--master"),
            manifests=self._text("--manifests"),
            bind_address=self._bind_address(),
            bind_address_hard_fail=self._bool("bindAddressHardFail"),
            healthz_address=self._healthz_address(),
            metrics_address=self._metrics_address(),
            detect_local_mode=mode,
            cluster_cidrs=self._cluster_cidrs(mode),
            bridge_interface=self._interface(
                mode, DetectLocalMode.BRIDGE_INTERFACE, "detectLocal.bridgeInterface"
            ),
            interface_name_prefix=self._interface(
                mode, DetectLocalMode.INTERFACE_NAME_PREFIX, "detectLocal.interfaceNamePrefix"
            ),
            nodeport_addresses=self._nodeport_addresses(),
            masquerade_all=self._bool("iptables.masqueradeAll"),
            masquerade_bit=self._masquerade_bit(),
            localhost_nodeports=self._bool("iptables.localhostNodePorts"),
            sync_period_seconds=sync_period,
            min_sync_period_seconds=min_sync_period,
            iptables_variant=self._choice("--iptables-variant", ("auto", "nft", "legacy")),
            iptables_service_index=self._choice(
                "--iptables-service-index", ("auto", "always", "never")
            ),
            state_directory=self._text("--state-directory"),
            ipvs=self._ipvs() if proxy_mode == "ipvs" else self._ipvs_left(),
            allow_external_ips=self._gates()["AllowServiceExternalIPs"],
            verbosity=self._verbosity(),
            log_format=self._choice("logging.format", ("text", "json")),
        )
        self._check_sources(config)
        self._note_unapplied(proxy_mode)
        if len(self._problems) == 1:
            raise ConfigError(*self._problems[0])
        if self._problems:
            lines = "".join(f"\n  {where}: {problem}" for where, problem in self._problems)
            raise ConfigError("configuration", f"{len(self._problems)} problems:{lines}")
        return structs.replace(config, notices=tuple(self._notices))

    # --- looking up ---------------------------------------------------------------------------

    def _value(self, name: str) -> object:
        found = self._given.get(name)
        return SETTINGS[name].default if found is None else found.value

    def _where(self, name: str) -> str:
        found = self._given.get(name)
        return name if found is None else found.where

    def _text(self, name: str) -> str:
        value = self._value(name)
        assert isinstance(value, str)
        return value

    def _texts(self, name: str) -> tuple[str, ...]:
        value = self._value(name)
        assert isinstance(value, tuple)
        return value

    def _bool(self, name: str) -> bool:
        value = self._value(name)
        assert isinstance(value, bool)
        return value

    def _int(self, name: str) -> int:
        value = self._value(name)
        assert isinstance(value, int)
        return value

    def _seconds(self, name: str) -> float:
        value = self._value(name)
        assert isinstance(value, int | float)
        return float(value)

    def _problem(self, name: str, value: object, reason: str) -> None:
        shown = format_duration(value) if isinstance(value, float) else repr(value)
        self._problems.append((self._where(name), f"invalid value {shown}: {reason}"))

    def _choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self._text(name)
        if value not in allowed:
            self._problem(name, value, f"must be one of {', '.join(allowed)}")
        return value

    # --- single fields ------------------------------------------------------------------------

    def _command(self) -> Command:
        for flag, instead in (
            ("--write-config-to", "the file would not be written"),
            ("--init-only", "the proxy would run on instead of exiting"),
        ):
            if self._value(flag):
                self._problems.append(
                    (flag, f"not part of this version yet ({instead}); leave it out")
                )
        return Command.CLEANUP if self._bool("--cleanup") else Command.RUN

    def _mode(self) -> str:
        mode = self._choice("mode", MODES)
        # Cleaning up is the same for every mode, so it is never refused.
        if mode in MODES_NOT_YET and not self._bool("--cleanup"):
            self._problem("mode", mode, "not part of this version yet; use ipvs or iptables")
        return mode

    def _node_name(self) -> str:
        override = self._text("hostnameOverride")
        name = override.strip().lower()
        if override and not name:
            self._problem("hostnameOverride", override, "is blank; write the name of the Node")
        return name

    def _bind_address(self) -> str:
        text = self._text("bindAddress") or "0.0.0.0"
        parsed = canonical_ip(text)
        if parsed is None:
            self._problem("bindAddress", text, "must be an IP address")
            return text
        return parsed[1]

    def _healthz_address(self) -> tuple[str, int] | None:
        port = self._int("--healthz-port")
        if port == 0:
            return None
        ipv6 = self._file_binds_ipv6()
        text = self._text("healthzBindAddress") or ("::" if ipv6 else "0.0.0.0")
        return self._host_port("healthzBindAddress", text, port)

    def _metrics_address(self) -> tuple[str, int]:
        port = self._int("--metrics-port")
        if port == 0:
            self._problem("--metrics-port", 0, "the metrics server cannot be switched off; 1-65535")
        text = self._text("metricsBindAddress") or (
            "::1" if self._file_binds_ipv6() else "127.0.0.1"
        )
        return self._host_port("metricsBindAddress", text, port)

    def _file_binds_ipv6(self) -> bool:
        found = self._given.get("bindAddress")
        return found is not None and not found.where.startswith("--") and ":" in str(found.value)

    def _host_port(self, name: str, text: str, default_port: int) -> tuple[str, int]:
        """Read ``IP``, ``IP:port`` or ``[IPv6]:port``; a missing port is *default_port*."""
        bare = canonical_ip(text)
        if bare is not None:
            host, port_text = text, str(default_port)
        else:
            host, _, port_text = text.rpartition(":")
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            elif ":" in host:
                host = ""
        parsed = canonical_ip(host)
        port_is_valid = (
            port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:6]) <= 65535
        )
        if parsed is None:
            self._problem(name, text, "must be IP or IP:port, IPv6 as [IP]:port")
            return text, 0
        if not port_is_valid:
            if bare is None or default_port != 0:  # a port flag of 0 has its own message
                self._problem(name, text, f"port {port_text} must be within 1-65535")
            return parsed[1], 0
        return parsed[1], int(port_text)

    def _detect_local_mode(self) -> DetectLocalMode:
        text = self._text("detectLocalMode") or DetectLocalMode.CLUSTER_CIDR.value
        try:
            return DetectLocalMode(text)
        except ValueError:
            allowed = ", ".join(mode.value for mode in DetectLocalMode)
            self._problem("detectLocalMode", text, f"must be one of {allowed}")
            return DetectLocalMode.CLUSTER_CIDR

    def _cluster_cidrs(self, mode: DetectLocalMode) -> tuple[str, ...]:
        given = self._texts("clusterCIDR")
        if mode is not DetectLocalMode.CLUSTER_CIDR:
            if given:
                self._notices.append(
                    f"{self._where('clusterCIDR')} is not used with detectLocalMode {mode.value}"
                )
            return ()
        parsed = self._cidrs("clusterCIDR", given)
        if len(given) > 2:
            self._problem("clusterCIDR", ",".join(given), "at most one CIDR of each IP family")
        elif len(parsed) == 2 and (":" in parsed[0]) == (":" in parsed[1]):
            self._problem(
                "clusterCIDR",
                ",".join(given),
                "both are of one IP family; give one CIDR, or one IPv4 and one IPv6 CIDR",
            )
        return parsed

    def _cidrs(self, name: str, given: tuple[str, ...]) -> tuple[str, ...]:
        parsed = []
        for text in given:
            cidr = canonical_cidr(text)
            if cidr is None:
                self._problem(name, text, f"must be a valid CIDR; {_CIDR}")
            else:
                parsed.append(cidr[1])
        return tuple(parsed)

    def _interface(self, mode: DetectLocalMode, wanted: DetectLocalMode, name: str) -> str:
        interface = self._text(name)
        if mode is wanted and not interface:
            self._problem(name, interface, f"must not be empty with detectLocalMode {mode.value}")
        # IFNAMSIZ is 16 with the final NUL, and a prefix is followed by something.
        longest = 14 if wanted is DetectLocalMode.INTERFACE_NAME_PREFIX else 15
        odd = any(char.isspace() or char in "/\0" for char in interface)
        if odd or len(interface.encode("utf-8", "surrogatepass")) > longest:
            reason = f"must be 1-{longest} bytes without blanks or '/', as interface names are"
            self._problem(name, interface, reason)
        if mode is not wanted and interface:
            where = self._where(name)
            self._notices.append(f"{where} is not used with detectLocalMode {mode.value}")
        return interface

    def _nodeport_addresses(self) -> tuple[str, ...]:
        given = self._texts("nodePortAddresses")
        if "primary" not in given:
            return self._cidrs("nodePortAddresses", given)
        if given != ("primary",):
            self._problem(
                "nodePortAddresses", ",".join(given), "'primary' cannot be mixed with anything"
            )
        return ("primary",)

    def _masquerade_bit(self) -> int:
        bit = self._int("iptables.masqueradeBit")
        if not 0 <= bit <= 31:
            reason = "must be within 0-31; pick a bit that no other program marks packets with"
            self._problem("iptables.masqueradeBit", bit, reason)
        return bit

    def _periods(self, section: str) -> tuple[float, float | None]:
        sync = self._seconds(f"{section}.syncPeriod")
        minimum = self._seconds(f"{section}.minSyncPeriod")
        if sync <= 0:
            self._problem(f"{section}.syncPeriod", sync, "must be greater than 0")
        if minimum < 0:
            self._problem(f"{section}.minSyncPeriod", minimum, "must be 0 or more")
        elif minimum > sync > 0:
            longest = f"must not exceed {section}.syncPeriod ({format_duration(sync)})"
            self._problem(f"{section}.minSyncPeriod", minimum, longest)
        return sync, minimum or None

    def _ipvs_left(self) -> IpvsConfig:
        """What counts in other modes, where leftovers of ipvs mode are removed."""
        given = map(canonical_cidr, self._texts("ipvs.excludeCIDRs"))
        return IpvsConfig(exclude_cidrs=tuple(cidr[1] for cidr in given if cidr is not None))

    def _ipvs(self) -> IpvsConfig:
        fallback = self._choice("--ipvs-fallback", ("iptables", "fail"))
        seconds = {
            name: self._seconds(name)
            for name in (
                "ipvs.tcpTimeout",
                "ipvs.tcpFinTimeout",
                "ipvs.udpTimeout",
                "--ipvs-drain-timeout",
            )
        }
        for name, value in seconds.items():
            if value < 0:
                self._problem(name, value, "must be 0 or more")
        scheduler = self._text("ipvs.scheduler").strip() or "rr"
        if not (scheduler.isascii() and scheduler.isalnum() and len(scheduler) <= 15):
            reason = "must be the name of an IPVS scheduler, such as rr, lc or mh"
            self._problem("ipvs.scheduler", scheduler, reason)
        return IpvsConfig(
            scheduler=scheduler,
            exclude_cidrs=self._cidrs("ipvs.excludeCIDRs", self._texts("ipvs.excludeCIDRs")),
            strict_arp=self._bool("ipvs.strictARP"),
            tcp_timeout_seconds=seconds["ipvs.tcpTimeout"],
            tcp_fin_timeout_seconds=seconds["ipvs.tcpFinTimeout"],
            udp_timeout_seconds=seconds["ipvs.udpTimeout"],
            drain_seconds=seconds["--ipvs-drain-timeout"],
            falls_back=fallback == "iptables",
        )

    def _verbosity(self) -> int:
        verbosity = self._int("logging.verbosity")
        if verbosity < 0:
            self._problem("logging.verbosity", verbosity, "must be 0 or more")
        return verbosity

    def _gates(self) -> dict[str, bool]:
        given = self._value("featureGates")
        assert isinstance(given, dict)
        where = self._where("featureGates")
        for gate, flag in given.items():
            if gate not in GATES:
                self._notices.append(f"{where}: unknown feature gate {gate}, ignored")
            elif gate in LOCKED_GATES and not flag:
                self._problem("featureGates", f"{gate}=false", "this gate is locked to true")
            elif flag != GATES[gate] and gate != "AllowServiceExternalIPs":
                self._notices.append(f"{where}: {gate}={str(flag).lower()} changes nothing here")
        return {**GATES, **given}

    # --- across fields ------------------------------------------------------------------------

    def _check_sources(self, config: Config) -> None:
        if not config.manifests:
            return
        for name, value in (
            ("clientConnection.kubeconfig", config.kubeconfig),
            ("--master", config.master),
        ):
            if value:
                self._problems.append(
                    (
                        "--manifests",
                        f"cannot be combined with {self._where(name)}: objects come either from "
                        "a directory or from an API server; drop one of the two",
                    )
                )

    def _note_unapplied(self, mode: str) -> None:
        for name, given in self._given.items():
            setting = SETTINGS[name]
            elsewhere = setting.modes and mode not in setting.modes
            if elsewhere and given.value != setting.default and not self._bool("--cleanup"):
                self._notices.append(f"{given.where} is not used in mode {mode}")
            if setting.unapplied and given.value not in (setting.default, *setting.harmless):
                self._notices.append(
                    f"{given.where}={_shown(given.value, setting.type)} is understood but not "
                    f"applied: {setting.unapplied}"
                )


def _shown(value: object, kind: Type) -> object:
    if kind is Type.SECONDS and isinstance(value, int | float):
        return format_duration(value)
    return ",".join(value) if isinstance(value, tuple) else value
