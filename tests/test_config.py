from __future__ import annotations

import pytest

from pykubeproxy.config import Command, Config, DetectLocalMode, build
from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import Given


def file(**fields):
    """Settings as from a file; ``__`` stands for the dot."""
    paths = {name.replace("__", "."): value for name, value in fields.items()}
    return {path: Given(value, path) for path, value in paths.items()}


def flag(setting, value, name="--some-flag"):
    return {setting: Given(value, name)}


def test_nothing_given_is_the_default_configuration():
    assert build({}) == Config()


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        pytest.param(file(hostnameOverride=" Node-A "), "node_name", "node-a", id="node name"),
        pytest.param(file(bindAddress="10.0.0.01"), "bind_address", "10.0.0.1", id="canonical"),
        pytest.param(
            file(healthzBindAddress="127.0.0.1"), "healthz_address", ("127.0.0.1", 10256),
            id="default port",
        ),
        pytest.param(
            file(healthzBindAddress="[FD00::1]:99"), "healthz_address", ("fd00::1", 99), id="IPv6",
        ),
        pytest.param(file(metricsBindAddress="::"), "metrics_address", ("::", 10249), id="bare v6"),
        pytest.param(file(bindAddress="::"), "healthz_address", ("::", 10256), id="healthz on v6"),
        pytest.param(file(bindAddress="::"), "metrics_address", ("::1", 10249), id="metrics on v6"),
        pytest.param(
            flag("bindAddress", "::"), "metrics_address", ("127.0.0.1", 10249), id="flag form",
        ),
        pytest.param(flag("--healthz-port", 0), "healthz_address", None, id="no health server"),
        pytest.param(
            flag("--healthz-port", 99), "healthz_address", ("0.0.0.0", 99), id="health port",
        ),
        pytest.param(
            file(clusterCIDR=("10.1.2.3/08", "FD00::/64")), "cluster_cidrs",
            ("10.0.0.0/8", "fd00::/64"), id="cluster CIDRs",
        ),
        pytest.param(
            file(nodePortAddresses=("primary",)), "nodeport_addresses", ("primary",), id="primary",
        ),
        pytest.param(
            file(iptables__minSyncPeriod=2.0), "min_sync_period_seconds", 2.0, id="fixed pacing",
        ),
        pytest.param(
            flag("iptables.minSyncPeriod", 0.0), "min_sync_period_seconds", None, id="adaptive",
        ),
        pytest.param(
            file(featureGates={"AllowServiceExternalIPs": False}), "allow_external_ips", False,
            id="external IPs off",
        ),
        pytest.param(flag("--cleanup", True), "command", Command.CLEANUP, id="cleanup"),
        pytest.param(
            file(detectLocalMode="NodeCIDR"), "detect_local_mode", DetectLocalMode.NODE_CIDR,
            id="detect mode",
        ),
    ],
)  # fmt: skip
def test_a_setting_reaches_its_field(given, field, expected):
    assert getattr(build(given), field) == expected


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        pytest.param({}, "scheduler", "rr", id="scheduler by default"),
        pytest.param(file(ipvs__scheduler=""), "scheduler", "rr", id="empty scheduler"),
        pytest.param(file(ipvs__scheduler="mh"), "scheduler", "mh", id="scheduler"),
        pytest.param(
            file(ipvs__excludeCIDRs=("192.0.2.1/24",)), "exclude_cidrs", ("192.0.2.0/24",),
            id="exclude",
        ),
        pytest.param(file(ipvs__strictARP=True), "strict_arp", True, id="ARP"),
        pytest.param(file(ipvs__tcpTimeout=9.0), "tcp_timeout_seconds", 9.0, id="tcp"),
        pytest.param(file(ipvs__tcpFinTimeout=9.0), "tcp_fin_timeout_seconds", 9.0, id="fin"),
        pytest.param(file(ipvs__udpTimeout=9.0), "udp_timeout_seconds", 9.0, id="udp"),
        pytest.param(flag("--ipvs-drain-timeout", 0.0), "drain_seconds", 0.0, id="drain"),
        pytest.param(flag("--ipvs-fallback", "fail"), "falls_back", False, id="fallback"),
    ],
)  # fmt: skip
def test_an_ipvs_setting_reaches_its_field(given, field, expected):
    assert expected == getattr(build({**file(mode="ipvs"), **given}).ipvs, field)


def test_each_mode_has_its_own_periods():
    given = {**file(ipvs__syncPeriod=7.0, iptables__syncPeriod=8.0)}
    assert [7.0, 8.0] == [
        build({**given, **file(mode=mode)}).sync_period_seconds for mode in ("ipvs", "iptables")
    ]


@pytest.mark.parametrize(
    ("mode", "setting"),
    [("iptables", "ipvs__scheduler"), ("ipvs", "iptables__localhostNodePorts")],
)
def test_a_setting_of_another_mode_is_noticed(mode, setting):
    value = "lc" if setting == "ipvs__scheduler" else False
    notices = build({**file(mode=mode), **file(**{setting: value})}).notices
    assert [f"{setting.replace('__', '.')} is not used in mode {mode}"] == list(notices)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param(
            file(mode="ipvs", ipvs__minSyncPeriod=60.0), "ipvs.minSyncPeriod: .*must not exceed",
            id="ipvs min above max",
        ),
        pytest.param(
            file(mode="ipvs", ipvs__tcpTimeout=-1.0), "ipvs.tcpTimeout: .*0 or more", id="timeout",
        ),
        pytest.param(
            file(mode="ipvs", ipvs__excludeCIDRs=("10.0.0.0",)), "excludeCIDRs: .*valid CIDR",
            id="exclude",
        ),
        pytest.param(
            file(mode="ipvs", ipvs__scheduler="r r"), "name of an IPVS scheduler", id="scheduler",
        ),
        pytest.param(
            {**file(mode="ipvs"), **flag("--ipvs-fallback", "no")}, "one of iptables, fail",
            id="fallback",
        ),
        pytest.param(
            {**file(mode="ipvs"), **flag("--ipvs-drain-timeout", -1.0)}, "0 or more", id="drain",
        ),
        pytest.param(file(mode="nftables"), "not part of this version yet", id="nftables"),
        pytest.param(file(mode="userspace"), "must be one of iptables, ipvs, nftables", id="mode"),
        pytest.param(file(hostnameOverride="  "), "is blank", id="blank node name"),
        pytest.param(file(bindAddress="localhost"), "must be an IP address", id="bind address"),
        pytest.param(file(healthzBindAddress=":10256"), "must be IP or IP:port", id="no host"),
        pytest.param(file(healthzBindAddress="::1:10256:x"), "must be IP or IP:port", id="odd"),
        pytest.param(file(metricsBindAddress="1.2.3.4:0"), "within 1-65535", id="port 0"),
        pytest.param(file(metricsBindAddress="1.2.3.4:99999"), "within 1-65535", id="high port"),
        pytest.param(file(metricsBindAddress="1.2.3.4:"), "within 1-65535", id="empty port"),
        pytest.param(flag("--metrics-port", 0), "cannot be switched off", id="metrics off"),
        pytest.param(file(clusterCIDR=("10.0.0.0",)), "must be a valid CIDR", id="no CIDR"),
        pytest.param(
            file(clusterCIDR=("10.0.0.0/8", "11.0.0.0/8")), "both are of one IP family", id="twice",
        ),
        pytest.param(
            file(clusterCIDR=("10.0.0.0/8", "fd00::/8", "fe00::/8")), "at most one", id="three",
        ),
        pytest.param(file(detectLocalMode="Other"), "must be one of ClusterCIDR", id="detect"),
        pytest.param(
            file(detectLocalMode="BridgeInterface"),
            "detectLocal.bridgeInterface: .*must not be empty", id="bridge",
        ),
        pytest.param(
            file(detectLocalMode="InterfaceNamePrefix"),
            "detectLocal.interfaceNamePrefix: .*must not be empty", id="prefix",
        ),
        pytest.param(
            file(detectLocalMode="BridgeInterface", detectLocal__bridgeInterface="b" * 16),
            "detectLocal.bridgeInterface: .*must be 1-15 bytes", id="long bridge",
        ),
        pytest.param(
            file(detectLocalMode="BridgeInterface", detectLocal__bridgeInterface="ä" * 8),
            "detectLocal.bridgeInterface: .*must be 1-15 bytes", id="bridge of 16 bytes",
        ),
        pytest.param(
            file(detectLocalMode="BridgeInterface", detectLocal__bridgeInterface="cni 0"),
            "without blanks", id="blank in bridge",
        ),
        pytest.param(
            file(detectLocalMode="InterfaceNamePrefix", detectLocal__interfaceNamePrefix="v" * 15),
            "detectLocal.interfaceNamePrefix: .*must be 1-14 bytes", id="long prefix",
        ),
        pytest.param(
            file(detectLocalMode="InterfaceNamePrefix", detectLocal__interfaceNamePrefix="a/"),
            "without blanks or '/'", id="slash in prefix",
        ),
        pytest.param(file(nodePortAddresses=("x",)), "must be a valid CIDR", id="nodeport"),
        pytest.param(
            file(nodePortAddresses=("primary", "10.0.0.0/8")), "cannot be mixed", id="primary +",
        ),
        pytest.param(file(iptables__masqueradeBit=32), "within 0-31", id="bit"),
        pytest.param(flag("iptables.syncPeriod", 0.0), "greater than 0", id="sync period"),
        pytest.param(file(iptables__minSyncPeriod=-1.0), "0 or more", id="min sync period"),
        pytest.param(file(iptables__minSyncPeriod=60.0), "must not exceed", id="min above max"),
        pytest.param(flag("--iptables-variant", "x"), "auto, nft, legacy", id="variant"),
        pytest.param(
            flag("--iptables-service-index", "no"), "auto, always, never", id="service index"
        ),
        pytest.param(file(logging__format="xml"), "must be one of text, json", id="log format"),
        pytest.param(file(logging__verbosity=-1), "0 or more", id="verbosity"),
        pytest.param(file(featureGates={"NFTablesProxyMode": False}), "locked", id="locked gate"),
        pytest.param(flag("--init-only", True), "not part of this version yet", id="init only"),
        pytest.param(flag("--write-config-to", "x"), "not part of this version", id="write"),
        pytest.param(
            {**flag("--manifests", "/x"), **flag("--master", "http://y", "--master")},
            "--manifests: cannot be combined with --master", id="two sources",
        ),
        pytest.param(
            {**flag("--manifests", "/x"), **file(clientConnection__kubeconfig="k")},
            "cannot be combined with clientConnection.kubeconfig", id="file and manifests",
        ),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_refused(given, problem):
    with pytest.raises(ConfigError, match=problem):
        build(given)


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as caught:
        build({**file(iptables__masqueradeBit=99), **flag("bindAddress", "x", "--bind-address")})
    assert str(caught.value).splitlines()[0] == "configuration: 2 problems:"
    assert "  --bind-address: invalid value 'x': must be an IP address" in str(caught.value)
    assert "  iptables.masqueradeBit: invalid value 99: must be within 0-31" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            file(oomScoreAdj=-500),
            "oomScoreAdj=-500 is understood but not applied: "
            "the OOM score stays as the container runtime or systemd set it",
            id="file",
        ),
        pytest.param(
            flag("configSyncPeriod", 60.0, "--config-sync-period"),
            "--config-sync-period=1m0s is understood but not applied: "
            "there is no informer cache whose objects come again",
            id="flag",
        ),
        pytest.param(
            file(detectLocalMode="NodeCIDR", clusterCIDR=("10.0.0.0/8",)),
            "clusterCIDR is not used with detectLocalMode NodeCIDR",
            id="another detect mode",
        ),
        pytest.param(
            file(featureGates={"Foo": True}), "featureGates: unknown feature gate Foo, ignored",
            id="unknown gate",
        ),
        pytest.param(
            file(featureGates={"ComponentFlagz": False}),
            "featureGates: ComponentFlagz=false changes nothing here", id="gate without effect",
        ),
    ],
)  # fmt: skip
def test_what_is_not_applied_is_said(given, expected):
    assert build(given).notices == (expected,)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(file(oomScoreAdj=-999), id="the default"),
        pytest.param(file(conntrack__maxPerCore=0), id="asks for nothing"),
        pytest.param(file(clientConnection__contentType="application/json"), id="is done anyway"),
    ],
)
def test_what_changes_nothing_is_not_said(given):
    assert build(given).notices == ()


def test_cleanup_works_for_modes_that_cannot_run_yet():
    assert build({**file(mode="ipvs"), **flag("--cleanup", True)}).command is Command.CLEANUP
