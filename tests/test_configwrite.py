from __future__ import annotations

import json

import msgspec
import pytest
import yaml

from pykubeproxy.config import Config, is_same
from pykubeproxy.configbuild import build
from pykubeproxy.configfile import parse_document
from pykubeproxy.configwrite import changed_paths, configz_json, document, flagz, to_yaml
from pykubeproxy.settings import SETTINGS, Given

DEFAULTS = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 10
  contentType: application/vnd.kubernetes.protobuf
  kubeconfig: ""
  qps: 5
clusterCIDR: ""
configSyncPeriod: 15m0s
conntrack:
  maxPerCore: 32768
  min: 131072
  tcpBeLiberal: false
  tcpCloseWaitTimeout: 1h0m0s
  tcpEstablishedTimeout: 24h0m0s
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ClusterCIDR
enableProfiling: false
healthzBindAddress: 0.0.0.0:10256
hostnameOverride: ""
iptables:
  localhostNodePorts: true
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 30s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 5s
  format: text
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: 127.0.0.1:10249
mode: iptables
nftables:
  masqueradeAll: false
  masqueradeBit: 14
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: -999
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""
"""kube-proxy's own, but iptables.minSyncPeriod: 0s is adaptive pacing, where it says 1s."""


def config(**settings):
    """As from a file; ``__`` stands for the dot."""
    paths = {name.replace("__", "."): value for name, value in settings.items()}
    return build({path: Given(value, path) for path, value in paths.items()})


def test_the_defaults_are_written_as_kube_proxy_writes_them():
    assert DEFAULTS == to_yaml(Config())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({"nodePortAddresses": ("10.0.0.0/8",)}, "nodePortAddresses:\n- 10.0.0.0/8\n",
                     id="a list"),
        pytest.param({"nodePortAddresses": ("10.1.2.3/8", "010.0.0.0/8")},
                     "nodePortAddresses:\n- 10.1.2.3/8\n- 010.0.0.0/8\n", id="a list as given"),
        pytest.param({"ipvs__excludeCIDRs": ("x", "10.1.2.3/8")},
                     "  excludeCIDRs:\n  - x\n  - 10.1.2.3/8\n", id="also what is no CIDR"),
        pytest.param({"featureGates": {"B": True, "A": False}},
                     "featureGates:\n  A: false\n  B: true\n", id="gates, if there are any"),
        pytest.param({"windowsRunAsService": True}, "windowsRunAsService: true\n",
                     id="the Windows service, if it is one"),
        pytest.param({"logging__vmodule": ("a=1",)},
                     "  vmodule:\n  - filePattern: a\n    verbosity: 1\n", id="verbosity by file"),
        pytest.param({"clientConnection__qps": 2.5}, "  qps: 2.5\n", id="a number"),
        pytest.param({"clientConnection__qps": 3e20}, "  qps: 300000000000000000000\n",
                     id="a great number"),
        pytest.param({"clusterCIDR": ("10.0.0.0/8", "fd00::/8")},
                     "clusterCIDR: 10.0.0.0/8,fd00::/8\n", id="a list in a text"),
        pytest.param({"bindAddress": "::"}, "healthzBindAddress: '[::]:10256'\n", id="IPv6"),
        pytest.param({"hostnameOverride": "1e3"}, 'hostnameOverride: "1e3"\n', id="like a number"),
        pytest.param({"hostnameOverride": "yes"}, 'hostnameOverride: "yes"\n', id="like a bool"),
        pytest.param({"hostnameOverride": "2024-01-02"}, 'hostnameOverride: "2024-01-02"\n',
                     id="like a date"),
        pytest.param({"iptables__syncPeriod": 0.5}, "  syncPeriod: 500ms\n", id="a duration"),
    ],
)  # fmt: skip
def test_a_value_is_written_as_go_writes_it(settings, expected):
    text = to_yaml(config(**settings))
    assert expected in text
    assert text.count("\n") < 85


@pytest.mark.parametrize("mode", ["iptables", "ipvs"])
def test_only_the_active_section_tells_its_periods(mode):
    tree = document(config(mode=mode, iptables__syncPeriod=7.0, ipvs__syncPeriod=7.0))
    expected = {name: "7s" if name == mode else "0s" for name in ("iptables", "ipvs", "nftables")}
    assert expected == {name: tree[name]["syncPeriod"] for name in expected}


def test_every_field_of_a_file_is_written():
    tree = document(config(
        featureGates={"Foo": True}, windowsRunAsService=True, logging__vmodule=("a=1",),
        logging__options__json__splitStream=True, logging__options__text__splitStream=True,
    ))  # fmt: skip

    def paths(section, prefix=""):
        for name, value in section.items():
            below = isinstance(value, dict) and f"{prefix}{name}" not in SETTINGS
            yield from paths(value, f"{prefix}{name}.") if below else [f"{prefix}{name}"]

    fields = {path for path in SETTINGS if not path.startswith("--")}
    assert fields | {"kind", "apiVersion"} == set(paths(tree))


def test_configz_is_the_same_as_compact_json():
    body = configz_json(config(mode="ipvs", nodePortAddresses=("10.0.0.0/8",)))
    start = (
        b'{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration",'
        b'"apiVersion":"kubeproxy.config.k8s.io/v1alpha1",'
    )
    assert body.startswith(start)
    assert b'"nodePortAddresses":["10.0.0.0/8"]' in body
    same = config(mode="ipvs", nodePortAddresses=("10.0.0.0/8",))
    assert {"kubeproxy.config.k8s.io": yaml.safe_load(to_yaml(same))} == json.loads(body)


def test_configz_can_be_loaded_as_a_file():
    body = msgspec.json.decode(configz_json(config(mode="ipvs")))["kubeproxy.config.k8s.io"]
    read = parse_document(json.dumps(body), "f")
    assert config(mode="ipvs") == build(read.given, read.notices, read.problems)


def test_flags_are_told_as_given_or_by_default():
    told = flagz(Config(flags={"mode": "ipvs", "--config": "/f"}))
    assert ("ipvs", "/f", "14") == (
        told["proxy-mode"], told["config"], told["iptables-masquerade-bit"],
    )  # fmt: skip


def test_what_differs_is_named():
    one, other = config(mode="ipvs", oomScoreAdj=1), config(mode="ipvs", portRange="x")
    assert ["oomScoreAdj", "portRange"] == changed_paths(one, other)
    assert [] == changed_paths(one, one)


@pytest.mark.parametrize("name", ["nodePortAddresses", "ipvs__excludeCIDRs", "clusterCIDR"])
def test_a_network_in_other_words_is_another_text_in_configz(name):
    one, other = config(**{name: ("10.1.2.3/8",)}), config(**{name: ("10.0.0.0/8",)})
    assert [name.replace("__", ".")] == changed_paths(one, other)
    assert not is_same(one, other)
