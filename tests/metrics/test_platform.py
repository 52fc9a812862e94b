"""What is told about the process and the build."""

from __future__ import annotations

import resource

import pytest

from pykubeproxy import __version__
from pykubeproxy.metrics import platform as module
from pykubeproxy.metrics.platform import build_measures, feature_gates, process_measures

NETSTAT = """\
TcpExt: SyncookiesSent InOctets
TcpExt: 1 2
IpExt: InNoRoutes InOctets OutOctets
IpExt: 0 1226259186 40004117
"""


def process(tmp_path, text):
    (tmp_path / "net").mkdir()
    if text is not None:
        (tmp_path / "net/netstat").write_text(text)
    return {measure.text.name: measure.read() for measure in process_measures(tmp_path)}


@pytest.mark.parametrize(
    ("text", "received", "sent"),
    [
        pytest.param(NETSTAT, {(): 1226259186.0}, {(): 40004117.0}, id="as the kernel says"),
        pytest.param("TcpExt: A\nTcpExt: 1\n", {}, {}, id="no such lines"),
        pytest.param("IpExt: InOctets\nIpExt: 5\n", {(): 5.0}, {}, id="one column"),
        pytest.param(None, {}, {}, id="no such file"),
    ],
)
def test_bytes_of_the_network_namespace(tmp_path, text, received, sent):
    found = process(tmp_path, text)
    assert received == found["process_network_receive_bytes_total"]
    assert sent == found["process_network_transmit_bytes_total"]


def test_this_kernel_tells_them():
    found = {measure.text.name: measure.read() for measure in process_measures()}
    assert [()] == list(found["process_network_receive_bytes_total"])


@pytest.mark.parametrize(
    ("limit", "expected"), [(resource.RLIM_INFINITY, float(2**64 - 1)), (1 << 30, float(1 << 30))]
)
def test_the_memory_limit_is_shown_as_by_go(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(module.resource, "getrlimit", lambda _which: (limit, limit))
    assert {(): expected} == process(tmp_path, NETSTAT)["process_virtual_memory_max_bytes"]


def test_the_build_says_which_kubernetes_and_which_proxy():
    kubernetes, ours = build_measures()
    [values] = kubernetes.read()
    labels = dict(zip(kubernetes.text.labels, values, strict=True))
    assert ("1", "36") == (labels["major"], labels["minor"])
    assert f"v1.36.2+pykubeproxy-{__version__}" == labels["git_version"]
    assert labels["platform"].startswith("linux/")
    assert [1.0] == list(kubernetes.read().values())
    assert [(__version__, module.platform.python_version())] == list(ours.read())


def test_feature_gates_have_a_stage_and_a_value():
    gates = {"AllowServiceExternalIPs": True, "ComponentFlagz": False, "NativeHistograms": False}
    assert {
        ("AllowServiceExternalIPs", ""): 1.0,
        ("ComponentFlagz", "BETA"): 0.0,
        ("NativeHistograms", "ALPHA"): 0.0,
    } == feature_gates(gates).read()
