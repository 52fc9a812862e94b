from __future__ import annotations

import json

import pytest

from pykubeproxy.configbuild import build
from pykubeproxy.configfile import parse_document, read_file
from pykubeproxy.errors import ConfigError
from tests import kubeadm

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def values(text):
    document = parse_document(text, "f")
    assert () == document.problems
    return {path: given.value for path, given in document.given.items()}


def test_a_file_written_by_kubeadm_loads_without_a_notice():
    document = parse_document(kubeadm.CONFIG, "config.conf")
    config = build(document.given, document.notices, document.problems)
    assert config.notices == ()
    assert (32768, 131072, 86400.0, 3600.0, 0.0) == (
        config.conntrack.max_per_core,
        config.conntrack.min,
        config.conntrack.tcp_established_seconds,
        config.conntrack.tcp_close_wait_seconds,
        config.conntrack.udp_seconds,
    )
    assert (-999, "iptables") == (config.oom_score_adj, config.mode)
    assert (("0.0.0.0", 10256), ("127.0.0.1", 10249)) == (
        config.healthz_address,
        config.metrics_address,
    )
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


def test_json_need_not_be_yaml():
    text = (
        '{\t"apiVersion": "kubeproxy.config.k8s.io\\/v1alpha1",'
        '\t"kind": "KubeProxyConfiguration", "mode": "ipvs",\n\t"iptables":'
        ' {"masqueradeBit": 3, "masqueradeBit": 4}}'
    )
    assert {"mode": "ipvs", "iptables.masqueradeBit": 4} == values(text)
    notice = "f: field iptables.masqueradeBit is given twice, the last one counts"
    assert (notice,) == parse_document(text, "f").notices


def test_in_json_too_what_is_odd_in_an_item_is_a_notice():
    items = '[{"filePattern": "a"}, {"filePattern": "b", "filePattern": "c", "x": 1}]'
    text = (
        '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",'
        f'\t"logging": {{"vmodule": {items}}}}}'
    )
    assert {"logging.vmodule": ("a=0", "c=0")} == values(text)
    assert (
        "f: unknown field logging.vmodule[1].x, ignored",
        "f: field logging.vmodule[1].filePattern is given twice, the last one counts",
    ) == parse_document(text, "f").notices


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
        pytest.param("bindAddress: 1:2:3:4:5:6:7:8", {"bindAddress": "1:2:3:4:5:6:7:8"}, id="IPv6"),
        pytest.param("hostnameOverride: 12:30.5", {"hostnameOverride": "12:30.5"}, id="base 60"),
        pytest.param("clientConnection: {qps: 1e3}", {"clientConnection.qps": 1000.0}, id="1e3"),
        pytest.param("iptables: {masqueradeBit: 14.0}", {"iptables.masqueradeBit": 14}, id="14.0"),
        pytest.param("enableProfiling: on", {"enableProfiling": True}, id="on is true"),
        pytest.param(
            "logging: {vmodule: [{filePattern: 'p*', verbosity: 5}]}",
            {"logging.vmodule": ("p*=5",)},
            id="vmodule",
        ),
        pytest.param(
            "logging: {vmodule: [{filePattern: a}]}",
            {"logging.vmodule": ("a=0",)},
            id="vmodule without verbosity",
        ),
        pytest.param("---\n", {}, id="an empty document behind"),
        pytest.param("mode: ipvs\n---\n# end\n...\n---\n", {"mode": "ipvs"}, id="and remarks"),
    ],
)
def test_fields_count_as_set_or_unset(text, expected):
    assert values(HEAD + text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("xyzzy: 1", "f: unknown field xyzzy, ignored", id="top level"),
        pytest.param(
            "iptable: 1",
            "f: unknown field iptable, ignored; did you mean iptables?",
            id="a near name",
        ),
        pytest.param("iptables: {bit: 1}", "f: unknown field iptables.bit, ignored", id="nested"),
        pytest.param(
            "masqueradeBit: 1",
            "f: unknown field masqueradeBit, ignored; did you mean iptables.masqueradeBit?",
            id="in another place",
        ),
        pytest.param(
            "iptables.masqueradeBit: 1",
            "f: unknown field iptables.masqueradeBit, ignored; "
            "did you mean iptables.masqueradeBit?",
            id="a path is no key",
        ),
        pytest.param(
            "MODE: iptables",
            "f: unknown field MODE, ignored; did you mean mode?",
            id="names are case sensitive",
        ),
        pytest.param("1: x", "f: unknown field 1, ignored", id="a number"),
        pytest.param("on: x", "f: unknown field true, ignored", id="a bool"),
        pytest.param(
            "logging: {vmodule: [{filePattern: a, x: 1}]}",
            "f: unknown field logging.vmodule[0].x, ignored",
            id="in an item",
        ),
        pytest.param(
            "logging: {vmodule: [{filePattern: a}, {filePattern: b, verbosty: 1}]}",
            "f: unknown field logging.vmodule[1].verbosty, ignored; "
            "did you mean logging.vmodule[1].verbosity?",
            id="a near name in an item",
        ),
        pytest.param(
            "logging: {vmodule: [{filePattern: b, filePattern: c}]}",
            "f: field logging.vmodule[0].filePattern is given twice, the last one counts",
            id="duplicate in an item",
        ),
        pytest.param('"a\\nb": x', r"f: unknown field 'a\nb', ignored", id="stays on its line"),
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
    ("text", "where", "problem"),
    [
        pytest.param("", "--config", "must hold a mapping", id="empty"),
        pytest.param("- a", "--config", "must hold a mapping", id="list"),
        pytest.param("a: [", "--config", "f is neither YAML nor JSON: line 1: ", id="broken"),
        pytest.param("{", "--config", "neither YAML nor JSON", id="broken JSON"),
        pytest.param("---\n---\n" + HEAD, "--config", "must hold a mapping", id="empty at first"),
        pytest.param(HEAD + "]\n---\n", "--config", "neither YAML nor JSON", id="broken at first"),
        pytest.param("{a: 1}\nb: 2", "--config", "neither YAML nor JSON", id="garbage behind JSON"),
        pytest.param("? [a]\n: 1", "--config", "neither YAML nor JSON", id="a list as key"),
        pytest.param("kind: KubeProxyConfiguration", "apiVersion", "missing", id="no apiVersion"),
        pytest.param(
            HEAD.replace("KubeProxy", "Kubelet"),
            "kind",
            "invalid value 'KubeletConfiguration' in f: must be 'KubeProxyConfiguration'",
            id="another kind",
        ),
        pytest.param(HEAD + "iptables: 3", "iptables", "must be a mapping", id="no section"),
        pytest.param(
            HEAD + "iptables: {masqueradeBit: x}",
            "iptables.masqueradeBit",
            "invalid value 'x': must be an integer of 32 bits",
            id="type",
        ),
        pytest.param(HEAD + "mode: !!bool x", "--config", "f:3: 'x' cannot be read as !!bool",
                     id="tag bool"),
        pytest.param(HEAD + "mode: !!int ''", "--config", "f:3: '' cannot be read as !!int",
                     id="tag int"),
        pytest.param(HEAD + "mode: !!timestamp x", "--config", "f:3: 'x' cannot be read",
                     id="tag time"),
        pytest.param(HEAD + "mode: !!float ''", "--config", "f:3: '' cannot be read",
                     id="tag float"),
        pytest.param(HEAD + "mode: \x07", "--config", "f is neither YAML nor JSON",
                     id="control character"),
        pytest.param("[" * 10_000, "--config", "f", id="too deep"),
        pytest.param("{\"a\":" * 10_000, "--config", "f", id="too deep in JSON"),
        pytest.param(HEAD + "mode: " + "9" * 5000, "--config", "cannot be read as !!int",
                     id="a long number"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_meant_is_a_problem(text, where, problem):
    ((found, said),) = parse_document(text, "f").problems
    assert where == found
    assert problem in said


def test_every_wrong_type_is_told_at_once():
    text = HEAD + "mode: 3\nconntrack: []\niptables: {masqueradeBit: x, syncPeriod: 30}\nx: 1\n"
    document = parse_document(text, "f")
    assert ["mode", "conntrack", "iptables.masqueradeBit", "iptables.syncPeriod"] == [
        where for where, _ in document.problems
    ]
    assert ("f: unknown field x, ignored",) == document.notices


@pytest.mark.parametrize("rest", ["---\nmode: x", "---\n---\n- a", "---\n]", "...\nb", "--- ~"])
def test_of_several_documents_the_first_counts_since_kube_proxy_reads_no_other(rest):
    text = f"{HEAD}mode: ipvs\n{rest}\n"
    assert {"mode": "ipvs"} == values(text)
    notice = "f: only the first YAML document is read, the rest is ignored"
    assert (notice,) == parse_document(text, "f").notices


def test_both_of_a_wrong_kind_are_told_at_once():
    document = parse_document("apiVersion: v1\nkind: ConfigMap\n", "f")
    assert ["apiVersion", "kind"] == [where for where, _ in document.problems]


def test_aliases_of_aliases_are_read_once():
    levels = "".join(f"x{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 60))
    document = parse_document(f"{HEAD}x0: &a0 {{y: 1}}\n{levels}mode: *a59\n", "f")
    assert ["mode"] == [where for where, _ in document.problems]


def test_an_alias_in_itself_is_no_end():
    assert ["mode"] == [
        where for where, _ in parse_document(HEAD + "mode: &a {y: *a}", "f").problems
    ]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "config"
    path.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert HEAD == read_file(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["absent", "not UTF-8"])
def test_an_unreadable_file_is_an_error(tmp_path, content):
    path = tmp_path / "config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--config: cannot read {path}: "):
        read_file(path)
