from __future__ import annotations

import json

import pytest

from pykubeproxy.config import build
from pykubeproxy.configfile import load_file, parse_document
from pykubeproxy.errors import ConfigError

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"

KUBEADM = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
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
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"""


def values(text):
    return {path: given.value for path, given in parse_document(text, "f").given.items()}


def test_a_file_written_by_kubeadm_loads_without_a_notice():
    document = parse_document(KUBEADM, "config.conf")
    config = build(document.given, document.notices)
    assert config.notices == ()
    assert config.cluster_cidrs == ("10.244.0.0/16",)
    assert config.kubeconfig == "/var/lib/kube-proxy/kubeconfig.conf"
    assert config.min_sync_period_seconds is None


def test_json_is_as_good_as_yaml():
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "iptables": {"masqueradeBit": 3},
    }
    assert values(json.dumps(document)) == {"iptables.masqueradeBit": 3}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("iptables: {syncPeriod: 0s}", {}, id="a zero duration is unset"),
        pytest.param("iptables: {masqueradeBit: 0}", {"iptables.masqueradeBit": 0}, id="bit 0"),
        pytest.param(
            "conntrack: {tcpCloseWaitTimeout: 0s}",
            {"conntrack.tcpCloseWaitTimeout": 0.0},
            id="zero is kept where Go has a pointer",
        ),
        pytest.param(
            "iptables: {localhostNodePorts: false}",
            {"iptables.localhostNodePorts": False},
            id="false is kept",
        ),
        pytest.param("mode: ''", {}, id="empty text is unset"),
        pytest.param("iptables:", {}, id="an empty section"),
        pytest.param("bindAddress: '::'", {"bindAddress": "::"}, id="quoted IPv6"),
        pytest.param("hostnameOverride: 2024-01-02", {"hostnameOverride": "2024-01-02"}, id="date"),
    ],
)
def test_fields_count_as_set_or_unset(text, expected):
    assert values(HEAD + text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("iptable: 1", "f: unknown field iptable, ignored", id="top level"),
        pytest.param("iptables: {bit: 1}", "f: unknown field iptables.bit, ignored", id="nested"),
        pytest.param(
            "MODE: iptables", "f: unknown field MODE, ignored", id="names are case sensitive"
        ),
        pytest.param(
            "mode: ipvs\nmode: iptables",
            "f: field mode is given twice, the last one counts",
            id="duplicate",
        ),
        pytest.param("--master: x", "f: unknown field --master, ignored", id="a flag is no field"),
    ],
)
def test_an_odd_field_is_a_notice(text, expected):
    assert parse_document(HEAD + text, "f").notices == (expected,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", "must hold a mapping", id="empty"),
        pytest.param("- a", "must hold a mapping", id="list"),
        pytest.param("a: [", "neither YAML nor JSON", id="broken"),
        pytest.param("kind: KubeProxyConfiguration", "apiVersion: missing", id="no apiVersion"),
        pytest.param(
            HEAD.replace("KubeProxy", "Kubelet"), "kind: 'KubeletConfiguration'", id="another kind"
        ),
        pytest.param(HEAD + "iptables: 3", "a mapping belongs here", id="no section"),
        pytest.param(
            HEAD + "iptables: {masqueradeBit: x}", "iptables.masqueradeBit: 'x'", id="type"
        ),
        pytest.param(
            HEAD + "mode: !!bool x", "--config: f:3: 'x' cannot be read as !!bool", id="tag bool"
        ),
        pytest.param(HEAD + "mode: !!int ''", "f:3: '' cannot be read as !!int", id="tag int"),
        pytest.param(HEAD + "mode: !!timestamp x", "f:3: 'x' cannot be read", id="tag time"),
        pytest.param(HEAD + "mode: !!float ''", "f:3: '' cannot be read", id="tag float"),
        pytest.param(HEAD + "x: &a {y: *a}", "f holds a value that cannot", id="recursion"),
        pytest.param(HEAD + "mode: \x07", "f is neither YAML nor JSON", id="control character"),
    ],
)
def test_a_file_that_cannot_be_meant_is_an_error(text, problem):
    with pytest.raises(ConfigError, match=problem.replace("(", r"\(")):
        parse_document(text, "f")


def test_an_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"--config: cannot read .*absent"):
        load_file(tmp_path / "absent")
