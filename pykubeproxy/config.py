"""The effective configuration: one frozen value, complete and checked.

`pykubeproxy.configbuild` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct, field, structs

from pykubeproxy.settings import GATES, Value

__all__ = [
    "MODES",
    "MODES_NOT_YET",
    "Command",
    "Config",
    "ConntrackConfig",
    "DetectLocalMode",
    "IpvsConfig",
    "is_same",
]


class Command(Enum):
    """What this process is to do."""

    RUN = "run"
    INIT = "init"
    CLEANUP = "cleanup"
    WRITE_CONFIG = "write-config"
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


class ConntrackConfig(Struct, frozen=True):
    """What to do with the sysctls of connection tracking; 0 and false leave the kernel's value.

    ``min`` is the least size of the table, if ``max_per_core`` is not 0. Nothing given means the
    values below, as in kube-proxy.
    """

    max_per_core: int = 32768
    min: int = 131072
    tcp_be_liberal: bool = False
    tcp_established_seconds: float = 86400.0
    tcp_close_wait_seconds: float = 3600.0
    udp_seconds: float = 0.0
    udp_stream_seconds: float = 0.0


class Config(Struct, frozen=True):
    """The effective configuration. Addresses and CIDRs are canonical, times are seconds.

    ``min_sync_period_seconds`` is ``None`` when not given or 0: pacing is adaptive then.
    ``healthz_address`` is ``None`` when that server is switched off.
    ``cluster_cidrs``, ``bridge_interface`` and ``interface_name_prefix`` are empty unless
    ``detect_local_mode`` uses them.
    ``feature_gates`` has every gate of `GATES`.
    ``settings`` are the fields of a KubeProxyConfiguration with an effective value other than the
    default, as settings (`pykubeproxy.configwrite` makes a document of them); lists as given.
    ``flags`` are the flags that were given, also those that a file silences.
    ``notices`` are sentences to log once at start.
    """

    command: Command = Command.RUN
    dry_run: bool = False  # with CLEANUP
    write_config_to: str = ""  # with WRITE_CONFIG
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
    conntrack: ConntrackConfig = ConntrackConfig()
    oom_score_adj: int = -999
    profiling: bool = False
    state_directory: str = "/run/pykubeproxy"  # "": nothing is remembered over a restart
    allow_external_ips: bool = True
    feature_gates: Mapping[str, bool] = field(default_factory=lambda: dict(GATES))
    verbosity: int = 0
    log_format: str = "text"  # text or json
    settings: Mapping[str, Value] = {}
    flags: Mapping[str, Value] = {}
    notices: tuple[str, ...] = ()


MODES = ("iptables", "ipvs", "nftables")
# Valid modes that cannot run yet; taking a name out of here is all it takes to offer it.
MODES_NOT_YET = frozenset({"nftables"})


def is_same(one: Config, other: Config) -> bool:
    """Tell whether two configurations differ in nothing but what is said about them."""
    return structs.replace(one, notices=()) == structs.replace(other, notices=())
