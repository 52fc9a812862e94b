"""Makes the effective configuration of settings, from flags or from a file.

Defaults, canonical spelling, validation with all problems in one message, and a notice for every
setting that was given but is not applied. Nothing is accepted and ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from msgspec import structs

from pykubeproxy.config import (
    MODES,
    MODES_NOT_YET,
    Command,
    Config,
    ConntrackConfig,
    DetectLocalMode,
    IpvsConfig,
)
from pykubeproxy.durations import format_duration
from pykubeproxy.errors import ConfigError
from pykubeproxy.model.addresses import canonical_cidr, canonical_ip
from pykubeproxy.settings import (
    GATE_STAGES,
    GATES,
    LOCKED_GATES,
    SETTINGS,
    Given,
    Type,
    Value,
    shown,
)

__all__ = ["build"]

_CIDR = "write a CIDR such as 10.0.0.0/8 or fd00::/64"


def build(
    given: Mapping[str, Given],
    notices: tuple[str, ...] = (),
    problems: Sequence[tuple[str, str]] = (),
) -> Config:
    """Return the effective configuration that *given* asks for.

    *given* holds only what was set (keys of `SETTINGS`); *notices* and *problems* are those that
    reading found, and come before the ones found here. Whether a value came from a file is told
    by its ``where``: file form has one rule of its own, an IPv6 ``bindAddress`` moves the default
    health and metrics addresses to IPv6.

    Raises:
        ConfigError: one or more values cannot be used; the message lists all of them.
    """
    return _Builder(given, notices, problems).config()


class _Builder:
    """Collects problems and notices while the fields are put together."""

    def __init__(
        self,
        given: Mapping[str, Given],
        notices: tuple[str, ...],
        problems: Sequence[tuple[str, str]],
    ) -> None:
        self._given = given
        self._problems = list(problems)
        self._notices = list(notices)

    def config(self) -> Config:
        proxy_mode = self._mode()
        section = "iptables" if proxy_mode == "ipvs" else proxy_mode
        sync_period, min_sync_period = self._periods(proxy_mode)
        mode = self._detect_local_mode()
        gates = self._gates()
        config = Config(
            command=self._command(),
            dry_run=self._dry_run(),
            write_config_to=self._text("--write-config-to"),
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
            nodeport_addresses=self._nodeport_addresses(proxy_mode),
            masquerade_all=self._bool(self._of_mode(section, "masqueradeAll")),
            masquerade_bit=self._masquerade_bit(section),
            localhost_nodeports=self._bool("iptables.localhostNodePorts"),
            sync_period_seconds=sync_period,
            min_sync_period_seconds=min_sync_period,
            iptables_variant=self._choice("--iptables-variant", ("auto", "nft", "legacy")),
            iptables_service_index=self._choice(
                "--iptables-service-index", ("auto", "always", "never")
            ),
            state_directory=self._text("--state-directory"),
            ipvs=self._ipvs() if proxy_mode == "ipvs" else self._ipvs_left(),
            conntrack=self._conntrack(),
            oom_score_adj=self._oom_score_adj(),
            profiling=self._bool("enableProfiling"),
            allow_external_ips=gates["AllowServiceExternalIPs"],
            feature_gates=gates,
            verbosity=self._verbosity(),
            log_format=self._choice("logging.format", ("text", "json")),
        )
        self._check_rest()
        self._check_sources(config)
        self._note_unapplied(proxy_mode)
        if self._problems:
            raise ConfigError.of(self._problems)
        return structs.replace(
            config, settings=self._settings(config), notices=tuple(self._notices)
        )

    def _settings(self, config: Config) -> dict[str, Value]:
        """What a file would have to say for *config*, as far as it is not the default."""
        settings = {
            path: given.value for path, given in self._given.items() if not path.startswith("--")
        }
        host, port = config.healthz_address or ("", 0)
        settings |= {
            "mode": config.mode,
            "hostnameOverride": config.node_name,
            "bindAddress": config.bind_address,
            "detectLocalMode": config.detect_local_mode.value,
            "healthzBindAddress": _joined(host, port) if host else "",
            "metricsBindAddress": _joined(*config.metrics_address),
            # Lists are told as they were given: masked they are what rules need.
            "nodePortAddresses": self._texts("nodePortAddresses") or config.nodeport_addresses,
        }
        section = "iptables" if config.mode == "ipvs" else config.mode
        settings[f"{section}.masqueradeAll"] = config.masquerade_all
        for name in MODES:  # only those of the active mode count, so only they are said
            settings.pop(f"{name}.syncPeriod", None)
            settings.pop(f"{name}.minSyncPeriod", None)
        settings[f"{config.mode}.syncPeriod"] = config.sync_period_seconds
        settings[f"{config.mode}.minSyncPeriod"] = config.min_sync_period_seconds or 0.0
        return {path: value for path, value in settings.items() if _counts(path, value)}

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
        text = format_duration(value) if isinstance(value, float) else shown(value)
        self._problems.append((self._where(name), f"invalid value {text}: {reason}"))

    def _of_mode(self, section: str, name: str) -> str:
        """Where *name* is found that *section* has; flags are one for two of them."""
        shared = self._given.get(f"iptables.{name}")
        if section == "nftables" and shared is not None and shared.where.startswith("-"):
            return f"iptables.{name}"
        return f"{section}.{name}"

    def _at_least_0(self, name: str) -> float:
        """Return the duration or number *name*, which must not be negative."""
        value = self._value(name)
        assert isinstance(value, int | float)
        if value < 0:
            self._problem(name, value, "must be greater than or equal to 0")
        return value

    def _choice(self, name: str, allowed: tuple[str, ...]) -> str:
        value = self._text(name)
        if value not in allowed:
            self._problem(name, value, f"must be one of {', '.join(allowed)}")
        return value

    # --- single fields ------------------------------------------------------------------------

    def _command(self) -> Command:
        if self._text("--write-config-to"):
            return Command.WRITE_CONFIG
        if self._bool("--cleanup"):
            return Command.CLEANUP
        return Command.INIT if self._bool("--init-only") else Command.RUN

    def _dry_run(self) -> bool:
        dry_run = self._bool("--dry-run")
        if dry_run and not self._bool("--cleanup"):
            self._problems.append(("--dry-run", "must go along with --cleanup, which it tries out"))
        return dry_run

    def _mode(self) -> str:
        mode = self._choice("mode", MODES) if self._text("mode") else "iptables"
        if mode not in MODES:
            return "iptables"
        # Cleaning up is the same for every mode, so it is never refused.
        if mode in MODES_NOT_YET and not self._bool("--cleanup"):
            self._problem("mode", mode, "must be ipvs or iptables; not part of this version yet")
        return mode

    def _node_name(self) -> str:
        override = self._text("hostnameOverride")
        name = override.strip().lower()
        if override and not name:
            self._problem(
                "hostnameOverride", override, "must not be blank; write the name of the Node"
            )
        return name

    def _bind_address(self) -> str:
        text = self._text("bindAddress") or "0.0.0.0"
        parsed = canonical_ip(text)
        if parsed is None:
            self._problem("bindAddress", text, "must be an IP address")
            return text
        return parsed[1]

    def _healthz_address(self) -> tuple[str, int] | None:
        host = "::" if self._file_binds_ipv6() else "0.0.0.0"
        address = self._address("healthzBindAddress", "--healthz-port", host)
        return None if self._value("--healthz-port") == 0 else address

    def _metrics_address(self) -> tuple[str, int]:
        if self._value("--metrics-port") == 0:
            self._problem("--metrics-port", 0, "must be a valid port (1-65535); no way to go off")
        address = "::1" if self._file_binds_ipv6() else "127.0.0.1"
        return self._address("metricsBindAddress", "--metrics-port", address)

    def _address(self, name: str, port_flag: str, default_host: str) -> tuple[str, int]:
        """Read an address whose port may come from a flag of its own.

        As in kube-proxy that flag has nothing to say where the address has a port, which the
        default has.
        """
        port = self._int(port_flag)
        default_port = SETTINGS[port_flag].default
        assert isinstance(default_port, int)
        if port == 0:
            default_port = 0
        given = self._given.get(name)
        if given is not None and given.value and canonical_ip(str(given.value)) is not None:
            return self._host_port(name, str(given.value), port)
        if port not in (0, default_port):
            address = given.value if given is not None and given.value else SETTINGS[name].default
            self._notices.append(
                f"{port_flag}={port} is not used: {name} ({address}) has a port of its own; "
                f"write {port_flag.replace('port', 'bind-address')}=IP:{port}"
            )
        text = given.value if given is not None else ""
        if not text:
            return default_host, default_port
        return self._host_port(name, str(text), default_port)

    def _file_binds_ipv6(self) -> bool:
        found = self._given.get("bindAddress")
        return found is not None and not found.where.startswith("--") and ":" in str(found.value)

    def _host_port(self, name: str, text: str, default_port: int) -> tuple[str, int]:
        """Read ``IP``, ``IP:port`` or ``[IPv6]:port``; a missing port is *default_port*.

        Where that is 0 the flag of the port has said so, and 0 is no fault of the address.
        """
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
            port_text.isascii()
            and port_text.isdigit()
            and min(default_port, 1) <= int(port_text[:6]) <= 65535
        )
        if parsed is None:
            self._problem(name, text, "must be IP:port with a valid IP, IPv6 as [IP]:port")
            return text, 0
        if not port_is_valid:
            what = shown(port_text) if port_text else "is missing; it"
            self._problem(name, text, f"port {what} must be a valid port (1-65535)")
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
            self._problem(
                "clusterCIDR", ",".join(given), "must be at most one CIDR of each IP family"
            )
        elif len(parsed) == 2 and (":" in parsed[0]) == (":" in parsed[1]):
            self._problem(
                "clusterCIDR",
                ",".join(given),
                "must be one CIDR, or one IPv4 and one IPv6 CIDR; both are of one IP family",
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
        if mode is not wanted:
            if interface:
                where = self._where(name)
                self._notices.append(f"{where} is not used with detectLocalMode {mode.value}")
            return ""
        if not interface:
            self._problem(name, interface, f"must not be empty with detectLocalMode {mode.value}")
        # IFNAMSIZ is 16 with the final NUL, and a prefix is followed by something.
        longest = 14 if wanted is DetectLocalMode.INTERFACE_NAME_PREFIX else 15
        odd = any(char.isspace() or char in "/\0" for char in interface)
        if odd or len(interface.encode("utf-8", "surrogatepass")) > longest:
            reason = f"must be 1-{longest} bytes without blanks or '/', as interface names are"
            self._problem(name, interface, reason)
        return interface

    def _nodeport_addresses(self, mode: str) -> tuple[str, ...]:
        given = self._texts("nodePortAddresses")
        if mode == "nftables" and not given:
            return ("primary",)
        if "primary" not in given:
            return self._cidrs("nodePortAddresses", given)
        if given != ("primary",):
            self._problem(
                "nodePortAddresses",
                ",".join(given),
                "can't use both 'primary' and CIDRs; write one or the other",
            )
        return ("primary",)

    def _masquerade_bit(self, section: str) -> int:
        for name in dict.fromkeys(("iptables.masqueradeBit", f"{section}.masqueradeBit")):
            bit = self._int(name)
            if not 0 <= bit <= 31:
                reason = "must be within the range [0, 31]; pick a bit that nobody else marks with"
                self._problem(name, bit, reason)
        return self._int(f"{section}.masqueradeBit")

    def _periods(self, mode: str) -> tuple[float, float | None]:
        name = self._of_mode(mode, "syncPeriod")
        sync = self._seconds(name)
        if sync <= 0:
            self._problem(name, sync, "must be greater than 0")
        minimum_name = self._of_mode(mode, "minSyncPeriod")
        minimum = self._at_least_0(minimum_name)
        if minimum > sync > 0:
            longest = f"must not exceed {self._where(name)} ({format_duration(sync)})"
            self._problem(minimum_name, minimum, longest)
        return sync, minimum or None

    def _conntrack(self) -> ConntrackConfig:
        return ConntrackConfig(
            max_per_core=int(self._at_least_0("conntrack.maxPerCore")),
            min=int(self._at_least_0("conntrack.min")),
            tcp_be_liberal=self._bool("conntrack.tcpBeLiberal"),
            tcp_established_seconds=self._at_least_0("conntrack.tcpEstablishedTimeout"),
            tcp_close_wait_seconds=self._at_least_0("conntrack.tcpCloseWaitTimeout"),
            udp_seconds=self._at_least_0("conntrack.udpTimeout"),
            udp_stream_seconds=self._at_least_0("conntrack.udpStreamTimeout"),
        )

    def _oom_score_adj(self) -> int:
        score = self._int("oomScoreAdj")
        if not -1000 <= score <= 1000:
            self._problem("oomScoreAdj", score, "must be within the range [-1000, 1000]")
        return score

    def _ipvs_left(self) -> IpvsConfig:
        """What counts in other modes, where leftovers of ipvs mode are removed.

        kube-proxy judges the list in ipvs mode only, so a start goes on with what can be read of
        it. Cleaning up does not: it would remove what it was told to leave.
        """
        name = "ipvs.excludeCIDRs"
        given = self._texts(name)
        if self._bool("--cleanup"):
            return IpvsConfig(exclude_cidrs=self._cidrs(name, given))
        readable = []
        for text in given:
            cidr = canonical_cidr(text)
            if cidr is not None:
                readable.append(cidr[1])
                continue
            self._notices.append(
                f"{self._where(name)}: {shown(text)} is no valid CIDR and protects nothing where "
                f"leftovers of ipvs mode are removed; {_CIDR}"
            )
        return IpvsConfig(exclude_cidrs=tuple(readable))

    def _ipvs(self) -> IpvsConfig:
        fallback = self._choice("--ipvs-fallback", ("iptables", "fail"))
        scheduler = self._text("ipvs.scheduler").strip() or "rr"
        if not (scheduler.isascii() and scheduler.isalnum() and len(scheduler) <= 15):
            reason = "must be the name of an IPVS scheduler, such as rr, lc or mh"
            self._problem("ipvs.scheduler", scheduler, reason)
        return IpvsConfig(
            scheduler=scheduler,
            exclude_cidrs=self._cidrs("ipvs.excludeCIDRs", self._texts("ipvs.excludeCIDRs")),
            strict_arp=self._bool("ipvs.strictARP"),
            tcp_timeout_seconds=self._at_least_0("ipvs.tcpTimeout"),
            tcp_fin_timeout_seconds=self._at_least_0("ipvs.tcpFinTimeout"),
            udp_timeout_seconds=self._at_least_0("ipvs.udpTimeout"),
            drain_seconds=self._at_least_0("--ipvs-drain-timeout"),
            falls_back=fallback == "iptables",
        )

    def _verbosity(self) -> int:
        return int(self._at_least_0("logging.verbosity"))

    def _gates(self) -> dict[str, bool]:
        given = self._value("featureGates")
        assert isinstance(given, dict)
        where = self._where("featureGates")
        for gate, flag in given.items():
            if gate not in GATES:
                near = get_close_matches(gate, GATES, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self._notices.append(
                    f"{where}: unknown feature gate {_said(gate, Type.TEXT)}, ignored{hint}"
                )
            elif gate in LOCKED_GATES and not flag:
                self._problem("featureGates", f"{gate}=false", "must be true, it is locked to that")
            elif flag != GATES[gate] and gate not in _GATES_WITH_EFFECT:
                self._notices.append(f"{where}: {gate}={str(flag).lower()} changes nothing here")
        groups: dict[str, bool] = {}
        for group, stage in (("AllAlpha", "ALPHA"), ("AllBeta", "BETA")):
            if group in given:
                members = (gate for gate in GATES if GATE_STAGES[gate] == stage)
                groups.update((member, given[group]) for member in members)
        return {**GATES, **groups, **{gate: given[gate] for gate in given if gate in GATES}}

    def _check_rest(self) -> None:
        """Judge what has no field in `Config`."""
        period = self._seconds("configSyncPeriod")
        if period <= 0:
            self._problem("configSyncPeriod", period, "must be greater than 0")
        self._at_least_0("clientConnection.burst")
        version = self._text("showHiddenMetricsForVersion")
        if version not in ("", _PREVIOUS_MINOR):
            reason = f"must be empty or {_PREVIOUS_MINOR}, the previous minor version"
            self._problem("showHiddenMetricsForVersion", version, reason)

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
            used = not setting.modes or mode in setting.modes or self._of_mode_is(mode, name)
            if not used and given.value != setting.default and not self._bool("--cleanup"):
                self._notices.append(f"{given.where} is not used in mode {mode}")
            if setting.unapplied and given.value not in (setting.default, *setting.harmless):
                self._notices.append(
                    f"{given.where}={_said(given.value, setting.type)} is understood but not "
                    f"applied: {setting.unapplied}"
                )

    def _of_mode_is(self, mode: str, name: str) -> bool:
        section, _, last = name.partition(".")
        return section == "iptables" and self._of_mode(mode, last) == name


# Of the gates that may be changed at all.
_GATES_WITH_EFFECT = frozenset(
    {"AllBeta", "AllowServiceExternalIPs", "ComponentFlagz", "ComponentStatusz"}
)
_PREVIOUS_MINOR = "1.35"


def _counts(path: str, value: Value) -> bool:
    """Whether *value* is one that a file can say, and another than the default."""
    if value == SETTINGS[path].default or (SETTINGS[path].zero_is_unset and value == 0):
        return False
    # No health server: a file cannot ask for that, but it is what is in force.
    return value not in ("", (), {}) or path == "healthzBindAddress"


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _said(value: object, kind: Type) -> str:
    if kind is Type.SECONDS and isinstance(value, int | float):
        return format_duration(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return shown(value)
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return text if text.isprintable() and len(text) <= 100 else shown(text)
