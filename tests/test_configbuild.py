from __future__ import annotations

import pytest

from pykubeproxy.config import Command, Config, ConntrackConfig, DetectLocalMode
from pykubeproxy.configbuild import build
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
        *(
            pytest.param(
                {**flag("--healthz-port", 0), **flag("healthzBindAddress", address)},
                "healthz_address", None, id=f"no health server at {address}",
            )
            for address in ("10.0.0.1", "10.0.0.1:99", "10.0.0.1:0")
        ),
        pytest.param(
            flag("--healthz-port", 99), "healthz_address", ("0.0.0.0", 10256),
            id="the default address has a port of its own",
        ),
        pytest.param(
            {**flag("--healthz-port", 99), **flag("healthzBindAddress", "10.0.0.1")},
            "healthz_address", ("10.0.0.1", 99), id="health port",
        ),
        pytest.param(
            {**flag("--metrics-port", 99), **flag("metricsBindAddress", "::")},
            "metrics_address", ("::", 99), id="metrics port",
        ),
        pytest.param(
            {**flag("--metrics-port", 99), **flag("metricsBindAddress", "10.0.0.1:98")},
            "metrics_address", ("10.0.0.1", 98), id="the address wins",
        ),
        pytest.param(file(mode=""), "mode", "iptables", id="no mode"),
        pytest.param(file(oomScoreAdj=-998), "oom_score_adj", -998, id="OOM score"),
        pytest.param(file(enableProfiling=True), "profiling", True, id="profiling"),
        pytest.param(
            file(conntrack__maxPerCore=0, conntrack__min=0, conntrack__tcpEstablishedTimeout=0.0,
                 conntrack__tcpCloseWaitTimeout=0.0),
            "conntrack", ConntrackConfig(0, 0, False, 0.0, 0.0), id="conntrack left alone",
        ),
        pytest.param(
            file(conntrack__maxPerCore=1, conntrack__min=2, conntrack__tcpBeLiberal=True,
                 conntrack__tcpEstablishedTimeout=3.0, conntrack__tcpCloseWaitTimeout=4.0,
                 conntrack__udpTimeout=5.0, conntrack__udpStreamTimeout=6.0),
            "conntrack", ConntrackConfig(1, 2, True, 3.0, 4.0, 5.0, 6.0), id="conntrack",
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
        pytest.param(flag("--init-only", True), "command", Command.INIT, id="init"),
        pytest.param(
            {**flag("--cleanup", True), **flag("--init-only", True)}, "command", Command.CLEANUP,
            id="cleaning up before initialising",
        ),
        pytest.param(
            {**flag("--cleanup", True), **flag("--write-config-to", "f")}, "command",
            Command.WRITE_CONFIG, id="writing before all",
        ),
        pytest.param(
            {**flag("--cleanup", True), **flag("--dry-run", True)}, "dry_run", True, id="dry run",
        ),
        *(
            pytest.param(
                file(**{f"detectLocal__{name}": "a / b" * 9}), field, "", id=f"unused {name}",
            )
            for name, field in (("bridgeInterface", "bridge_interface"),
                                ("interfaceNamePrefix", "interface_name_prefix"))
        ),
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


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_rules_are_made_of_networks_however_those_are_written(mode):
    ports = ("10.1.2.3/8", "010.0.0.0/8")
    config = build(file(mode=mode, nodePortAddresses=ports, ipvs__excludeCIDRs=("FD00::1/8",)))
    assert (("10.0.0.0/8", "10.0.0.0/8"), ("fd00::/8",)) == (
        config.nodeport_addresses, config.ipvs.exclude_cidrs,
    )  # fmt: skip


def test_what_can_be_read_of_a_list_protects_in_other_modes():
    config = build(file(ipvs__excludeCIDRs=("10.0.0.0/8x", "10.1.2.3/8")))
    assert ("10.0.0.0/8",) == config.ipvs.exclude_cidrs


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
            file(mode="ipvs", ipvs__tcpTimeout=-1.0),
            "ipvs.tcpTimeout: .*greater than or equal to 0", id="timeout",
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
            {**file(mode="ipvs"), **flag("--ipvs-drain-timeout", -1.0)},
            "greater than or equal to 0", id="drain",
        ),
        pytest.param(file(mode="nftables"), "not part of this version yet", id="nftables"),
        pytest.param(file(mode="userspace"), "must be one of iptables, ipvs, nftables", id="mode"),
        pytest.param(file(hostnameOverride="  "), "must not be blank", id="blank node name"),
        pytest.param(file(bindAddress="localhost"), "must be an IP address", id="bind address"),
        pytest.param(file(healthzBindAddress=":10256"), "must be IP:port", id="no host"),
        pytest.param(file(healthzBindAddress="::1:10256:x"), "must be IP:port", id="odd"),
        pytest.param(file(metricsBindAddress="1.2.3.4:0"), "must be a valid port", id="port 0"),
        pytest.param(
            file(metricsBindAddress="1.2.3.4:99999"), "must be a valid port", id="high port",
        ),
        pytest.param(file(metricsBindAddress="1.2.3.4:"), "must be a valid port", id="empty port"),
        pytest.param(flag("--metrics-port", 0), "must be a valid port", id="metrics off"),
        *(
            pytest.param(
                {**flag(f"--{name}-port", 0), **flag(f"{name}BindAddress", address, "--address")},
                f"--address: .*{problem}", id=f"{name} off, at {address}",
            )
            for name in ("healthz", "metrics")
            for address, problem in (("localhost", "must be IP:port"),
                                     ("10.0.0.1:99999", "'99999' must be a valid port"))
        ),
        pytest.param(
            {**flag("ipvs.excludeCIDRs", ("10.0.0.0/8x",), "--ipvs-exclude-cidrs"),
             **flag("--cleanup", True)},
            "--ipvs-exclude-cidrs: invalid value '10.0.0.0/8x': must be a valid CIDR",
            id="exclude, cleaning up",
        ),
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
            file(nodePortAddresses=("primary", "10.0.0.0/8")),
            "can't use both 'primary' and CIDRs", id="primary +",
        ),
        pytest.param(file(iptables__masqueradeBit=32), r"within the range \[0, 31\]", id="bit"),
        pytest.param(
            file(mode="ipvs", iptables__masqueradeBit=-1), r"within the range \[0, 31\]",
            id="bit in ipvs mode",
        ),
        pytest.param(
            file(oomScoreAdj=1001), r"oomScoreAdj: .*1001: .*within the range \[-1000, 1000\]",
            id="OOM score",
        ),
        *(
            pytest.param(
                {f"conntrack.{name}": Given(-1, f"conntrack.{name}")},
                f"conntrack.{name}: invalid value -1: must be greater than or equal to 0", id=name,
            )
            for name in ("maxPerCore", "min", "tcpEstablishedTimeout", "tcpCloseWaitTimeout",
                         "udpTimeout", "udpStreamTimeout")
        ),
        pytest.param(file(clientConnection__burst=-1), "burst: .*or equal to 0", id="burst"),
        pytest.param(
            flag("configSyncPeriod", 0.0, "--config-sync-period"),
            "--config-sync-period: invalid value 0s: must be greater than 0", id="informers",
        ),
        pytest.param(
            file(showHiddenMetricsForVersion="1.34"), "must be empty or 1.35", id="hidden metrics",
        ),
        pytest.param(flag("--dry-run", True), "go along with --cleanup", id="dry run of what"),
        pytest.param(flag("iptables.syncPeriod", 0.0), "greater than 0", id="sync period"),
        pytest.param(file(iptables__minSyncPeriod=-1.0), "equal to 0", id="min sync period"),
        pytest.param(file(iptables__minSyncPeriod=60.0), "must not exceed", id="min above max"),
        pytest.param(flag("--iptables-variant", "x"), "auto, nft, legacy", id="variant"),
        pytest.param(
            flag("--iptables-service-index", "no"), "auto, always, never", id="service index"
        ),
        pytest.param(file(logging__format="xml"), "must be one of text, json", id="log format"),
        pytest.param(file(logging__verbosity=-1), "equal to 0", id="verbosity"),
        pytest.param(file(featureGates={"NFTablesProxyMode": False}), "locked", id="locked gate"),
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
    assert "  iptables.masqueradeBit: invalid value 99: must be within the range [0, 31]" in str(
        caught.value
    )
    assert ["--bind-address", "iptables.masqueradeBit"] == sorted(
        where for where, _ in caught.value.problems
    )


def test_what_reading_found_comes_first():
    with pytest.raises(ConfigError) as caught:
        build(file(oomScoreAdj=2000), problems=[("mode", "of a wrong type")])
    assert ["mode", "oomScoreAdj"] == [where for where, _ in caught.value.problems]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param(
            file(winkernel__networkName="n"),
            "winkernel.networkName=n is understood but not applied: it is for Windows nodes",
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
        *(
            pytest.param(
                file(detectLocalMode="NodeCIDR", **{f"detectLocal__{name}": "a / b" * 9}),
                f"detectLocal.{name} is not used with detectLocalMode NodeCIDR",
                id=f"{name} with another detect mode, not judged",
            )
            for name in ("bridgeInterface", "interfaceNamePrefix")
        ),
        pytest.param(
            file(ipvs__excludeCIDRs=("10.0.0.0/8", "10.0.0.0/8x")),
            "ipvs.excludeCIDRs: '10.0.0.0/8x' is no valid CIDR and protects nothing where "
            "leftovers of ipvs mode are removed; "
            "write a CIDR such as 10.0.0.0/8 or fd00::/64", id="exclude in another mode",
        ),
        pytest.param(
            file(winkernel__enableDSR=True),
            "winkernel.enableDSR=true is understood but not applied: it is for Windows nodes",
            id="a bool",
        ),
        pytest.param(
            file(featureGates={"Foo": True}), "featureGates: unknown feature gate Foo, ignored",
            id="unknown gate",
        ),
        pytest.param(
            file(featureGates={"ComponentFlags": True}),
            "featureGates: unknown feature gate ComponentFlags, ignored; "
            "did you mean ComponentFlagz?",
            id="nearly a gate",
        ),
        pytest.param(
            file(featureGates={"NativeHistograms": True}),
            "featureGates: NativeHistograms=true changes nothing here", id="gate without effect",
        ),
        pytest.param(
            flag("--healthz-port", 99, "--healthz-port"),
            "--healthz-port=99 is not used: healthzBindAddress (0.0.0.0:10256) has a port of its "
            "own; write --healthz-bind-address=IP:99", id="a port that is not used",
        ),
        pytest.param(
            file(logging__vmodule=("a=1", "b=2")),
            "logging.vmodule=a=1,b=2 is understood but not applied: "
            "verbosity is the same for all modules", id="vmodule",
        ),
    ],
)  # fmt: skip
def test_what_is_not_applied_is_said(given, expected):
    assert build(given).notices == (expected,)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(file(configSyncPeriod=900.0), id="the default"),
        pytest.param(file(featureGates={"ComponentFlagz": False}), id="a gate that counts"),
        pytest.param(flag("--healthz-port", 10256), id="the default port"),
        pytest.param(file(clientConnection__contentType="application/json"), id="is done anyway"),
    ],
)
def test_what_changes_nothing_is_not_said(given):
    assert build(given).notices == ()


def test_cleanup_works_for_modes_that_cannot_run_yet():
    assert build({**file(mode="ipvs"), **flag("--cleanup", True)}).command is Command.CLEANUP


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        pytest.param({}, (True, True, False), id="defaults"),
        pytest.param({"ComponentFlagz": False}, (False, True, False), id="one"),
        pytest.param({"AllBeta": False}, (False, False, False), id="a group"),
        pytest.param(
            {"AllBeta": False, "ComponentStatusz": True}, (False, True, False),
            id="one of a group wins",
        ),
        pytest.param({"AllAlpha": True}, (True, True, True), id="the other group"),
    ],
)  # fmt: skip
def test_gates_and_their_groups(gates, expected):
    effective = build(file(featureGates=gates)).feature_gates
    names = ("ComponentFlagz", "ComponentStatusz", "NativeHistograms")
    assert expected == tuple(effective[name] for name in names)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, (30.0, None, False, 14, ("primary",)), id="defaults"),
        pytest.param(
            file(nftables__syncPeriod=9.0, nftables__minSyncPeriod=2.0,
                 nftables__masqueradeAll=True, nftables__masqueradeBit=3,
                 nodePortAddresses=("10.0.0.0/8",)),
            (9.0, 2.0, True, 3, ("10.0.0.0/8",)), id="a section of its own",
        ),
        pytest.param(
            file(iptables__syncPeriod=9.0, iptables__minSyncPeriod=2.0,
                 iptables__masqueradeAll=True, iptables__masqueradeBit=3),
            (30.0, None, False, 14, ("primary",)), id="the section of iptables is another",
        ),
        pytest.param(
            {**flag("iptables.syncPeriod", 9.0), **flag("iptables.minSyncPeriod", 2.0),
             **flag("iptables.masqueradeAll", True), **flag("iptables.masqueradeBit", 3)},
            (9.0, 2.0, True, 14, ("primary",)), id="flags are the same for both, but the bit",
        ),
    ],
)  # fmt: skip
def test_settings_of_nftables_mode(given, expected):
    # Where any mode can be told: this version does not run it.
    config = build({**file(mode="nftables"), **flag("--cleanup", True), **given})
    assert expected == (
        config.sync_period_seconds, config.min_sync_period_seconds, config.masquerade_all,
        config.masquerade_bit, config.nodeport_addresses,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, {}, id="defaults"),
        pytest.param(file(mode="iptables", bindAddress="0.0.0.0"), {}, id="defaults given"),
        pytest.param(
            flag("--healthz-port", 0), {"healthzBindAddress": ""}, id="no health server"
        ),
        pytest.param(
            file(bindAddress="::"),
            {
                "bindAddress": "::", "healthzBindAddress": "[::]:10256",
                "metricsBindAddress": "[::1]:10249",
            },
            id="what follows is told too",
        ),
        pytest.param(
            file(mode="ipvs", ipvs__minSyncPeriod=1.0, iptables__minSyncPeriod=2.0),
            {"mode": "ipvs", "ipvs.minSyncPeriod": 1.0}, id="periods of the active mode",
        ),
        pytest.param(flag("hostnameOverride", " A "), {"hostnameOverride": "a"}, id="canonical"),
        pytest.param(
            file(nodePortAddresses=("10.1.2.3/8", "010.0.0.0/8"), ipvs__excludeCIDRs=("FD00::1/8",),
                 clusterCIDR=("10.1.2.3/9",)),
            {"nodePortAddresses": ("10.1.2.3/8", "010.0.0.0/8"),
             "ipvs.excludeCIDRs": ("FD00::1/8",), "clusterCIDR": ("10.1.2.3/9",)},
            id="lists as given",
        ),
        pytest.param(
            file(ipvs__excludeCIDRs=("x", "10.0.0.0/8")),
            {"ipvs.excludeCIDRs": ("x", "10.0.0.0/8")}, id="what cannot be read too",
        ),
        pytest.param(
            {**file(mode="nftables"), **flag("--cleanup", True)},
            {"mode": "nftables", "nodePortAddresses": ("primary",)}, id="a list by default",
        ),
        pytest.param(flag("clientConnection.qps", 0.0), {}, id="zero means the default"),
        pytest.param(flag("--manifests", "d"), {}, id="what a file cannot say"),
    ],
)  # fmt: skip
def test_effective_settings_are_kept_where_they_are_no_defaults(given, expected):
    assert expected == build(given).settings
