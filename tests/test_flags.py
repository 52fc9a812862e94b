from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykubeproxy.flags import FLAGS, full_usage, parse, texts, usage
from pykubeproxy.settings import SETTINGS

KUBE_PROXY_FLAGS = """
--bind-address --bind-address-hard-fail --boot-id-file --cleanup --cluster-cidr --config
--config-sync-period --conntrack-max-per-core --conntrack-min --conntrack-tcp-be-liberal
--conntrack-tcp-timeout-close-wait --conntrack-tcp-timeout-established --conntrack-udp-timeout
--conntrack-udp-timeout-stream --detect-local-mode --feature-gates --healthz-bind-address
--healthz-port --help --hostname-override --init-only --iptables-localhost-nodeports
--iptables-masquerade-bit --iptables-min-sync-period --iptables-sync-period --ipvs-exclude-cidrs
--ipvs-min-sync-period --ipvs-scheduler --ipvs-strict-arp --ipvs-sync-period --ipvs-tcp-timeout
--ipvs-tcpfin-timeout --ipvs-udp-timeout --kube-api-burst --kube-api-content-type --kube-api-qps
--kubeconfig --log-flush-frequency --log-json-info-buffer-size --log-json-split-stream
--log-text-info-buffer-size --log-text-split-stream --logging-format --machine-id-file
--masquerade-all --master --metrics-bind-address --metrics-port --nodeport-addresses
--oom-score-adj --pod-bridge-interface --pod-interface-name-prefix --profiling --proxy-mode
--show-hidden-metrics-for-version --v --version --vmodule --write-config-to
"""


def values(*argv):
    parsed = parse(argv)
    assert () == parsed.problems
    return {name: given.value for name, given in {**parsed.always, **parsed.without_file}.items()}


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        pytest.param(["--proxy-mode=iptables"], {"mode": "iptables"}, id="equals"),
        pytest.param(["--proxy-mode", "iptables"], {"mode": "iptables"}, id="next argument"),
        pytest.param(["--proxy_mode=iptables"], {"mode": "iptables"}, id="underscore"),
        pytest.param(["--masquerade-all"], {"iptables.masqueradeAll": True}, id="bool"),
        pytest.param(["--masquerade-all=f"], {"iptables.masqueradeAll": False}, id="bool value"),
        pytest.param(["-v", "2"], {"logging.verbosity": 2}, id="-v 2"),
        pytest.param(["-v=2"], {"logging.verbosity": 2}, id="-v=2"),
        pytest.param(["-v2"], {"logging.verbosity": 2}, id="-v2"),
        pytest.param(["--v=2"], {"logging.verbosity": 2}, id="--v=2"),
        pytest.param(["-h"], {"--help": "true"}, id="-h"),
        pytest.param(["--help", "--cleanup"], {"--help": "true", "--cleanup": True}, id="--help"),
        pytest.param(["--help=all"], {"--help": "all"}, id="--help=all"),
        pytest.param(
            ["--vmodule=a=1", "--vmodule=b=2,c=3"], {"logging.vmodule": ("a=1", "b=2", "c=3")},
            id="verbosity by file accumulates",
        ),
        pytest.param(["--version"], {"--version": "true"}, id="version"),
        pytest.param(["--version=raw"], {"--version": "raw"}, id="raw version"),
        pytest.param(
            ["--cluster-cidr=a,b", "--cluster-cidr", "c"], {"clusterCIDR": ("a", "b", "c")},
            id="lists accumulate",
        ),
        pytest.param(
            ["--feature-gates=A=true", "--feature-gates=B=false"],
            {"featureGates": {"A": True, "B": False}}, id="gates accumulate",
        ),
        pytest.param(["--master=a", "--master=b"], {"--master": "b"}, id="the last one counts"),
        pytest.param(["--master=a=b"], {"--master": "a=b"}, id="equals in the value"),
        pytest.param(["--master", "--cleanup"], {"--master": "--cleanup"}, id="value with dashes"),
        pytest.param(["--bind-address="], {}, id="an empty address keeps the default"),
        pytest.param(
            ["--bind-address=10.0.0.1", "--bind-address="], {"bindAddress": "10.0.0.1"},
            id="or what was said before",
        ),
        pytest.param(["--hostname-override="], {}, id="an empty name is none"),
        pytest.param(
            ["--hostname-override=a", "--hostname-override="], {}, id="also after another",
        ),
        pytest.param(
            ["--hostname-override=", "--hostname-override=a"], {"hostnameOverride": "a"},
            id="and not the last",
        ),
        pytest.param(["--proxy-mode="], {"mode": ""}, id="an empty mode is the default one"),
        pytest.param(["", "--", ""], {}, id="empty arguments"),
    ],
)  # fmt: skip
def test_flags_are_read_as_go_reads_them(argv, expected):
    assert values(*argv) == expected


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        pytest.param(["--proxy-mod=x"], "did you mean --proxy-mode?", id="typo"),
        pytest.param(["--clean"], "did you mean --cleanup?", id="abbreviation"),
        pytest.param(["-config=x"], "did you mean --config?", id="single dash"),
        pytest.param(["-x"], "-x: unknown flag", id="short"),
        pytest.param(["-vv"], "-vv: unknown flag", id="not a number"),
        pytest.param(["-v=-1"], "-v: invalid value '-1': must be a number from 0", id="below 0"),
        pytest.param(["-v", "0x1"], "-v: invalid value '0x1'", id="not in decimal digits"),
        pytest.param(["--zzzzzz"], "see --help", id="nothing near"),
        pytest.param(["run"], "'run': is neither a flag", id="positional"),
        pytest.param(["--", "run"], "'run': is neither a flag", id="after --"),
        pytest.param(["-"], "'-': is neither a flag", id="dash"),
        pytest.param(["--masquerade-all", "false"], "bools need --flag=value", id="bool value"),
        pytest.param(["--proxy-mode"], "--proxy-mode: needs a value", id="no value"),
        pytest.param(["--masquerade-all=x"], "--masquerade-all: invalid value 'x'", id="bad value"),
        pytest.param(["--a\nb"], "unknown flag; see --help", id="odd characters"),
        pytest.param(["-hv"], "-hv: unknown flag", id="letters in a row"),
    ],
)
def test_a_wrong_command_line_is_a_problem(argv, problem):
    (found,) = parse(argv).problems
    assert problem in ": ".join(found)
    assert "\n" not in ": ".join(found)


def test_all_that_is_wrong_is_told_at_once():
    parsed = parse(["--xyzzy", "--v=x", "--proxy-mode=ipvs", "word", "--healthz-port=x", "--", "a"])
    assert ["--xyzzy", "--v", "'word'", "--healthz-port", "'a'"] == [
        where for where, _ in parsed.problems
    ]
    assert "ipvs" == parsed.without_file["mode"].value


def test_flags_that_count_beside_a_file_are_kept_apart():
    parsed = parse(["--hostname-override=n", "--kubeconfig=k"])
    assert (
        list(parsed.always), list(parsed.without_file),
    ) == (["hostnameOverride"], ["clientConnection.kubeconfig"])  # fmt: skip


def test_a_value_remembers_its_flag():
    assert parse(["--cluster_cidr=a"]).without_file["clusterCIDR"].where == "--cluster-cidr"


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_every_flag_is_consistent(flag):
    setting = SETTINGS[flag.setting]
    assert bool(flag.help) != bool(setting.unapplied), "either explained, or why it is not applied"
    for text in (usage(), full_usage()):
        assert re.search(rf"(?<![\w-]){flag.name}(?![\w-])", text)


def test_every_flag_of_kube_proxy_is_there():
    assert set(KUBE_PROXY_FLAGS.split()) <= {flag.name for flag in FLAGS}


@pytest.mark.parametrize("text", [usage(), full_usage()], ids=["--help", "--help=all"])
def test_the_help_fits_a_terminal(text):
    assert max(map(len, text.splitlines())) <= 100


def test_what_matters_most_is_explained_on_the_first_screen():
    first = usage().splitlines()[:30]
    explained = {line.split()[0].rstrip("*") for line in first if line.startswith("  --")}
    assert {"--config", "--cleanup", "--kubeconfig", "--hostname-override"} <= explained


@pytest.mark.parametrize(
    ("given", "flag", "expected"),
    [
        ({}, "proxy-mode", "iptables"),
        ({}, "healthz-bind-address", "0.0.0.0:10256"),
        ({}, "cluster-cidr", "[]"),
        ({}, "kube-api-qps", "5"),
        ({}, "conntrack-tcp-timeout-established", "24h0m0s"),
        ({}, "iptables-localhost-nodeports", "true"),
        ({}, "feature-gates", ""),
        ({"clusterCIDR": ("a", "b")}, "cluster-cidr", "[a,b]"),
        ({"iptables.syncPeriod": 90.0}, "iptables-sync-period", "1m30s"),
        ({"oomScoreAdj": -5}, "oom-score-adj", "-5"),
        ({"clientConnection.qps": 2.5}, "kube-api-qps", "2.5"),
        ({"featureGates": {"B": False, "A": True}}, "feature-gates", "A=true,B=false"),
        ({"logging.vmodule": ("a=1", "b=2")}, "vmodule", "a=1,b=2"),
        ({"enableProfiling": True}, "profiling", "true"),
    ],
)
def test_values_are_written_as_go_writes_them(given, flag, expected):
    assert expected == texts(given)[flag]


def test_every_flag_has_a_text():
    assert [flag.name[2:] for flag in FLAGS] == list(texts({}))


PAGE = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_the_operators_page_tells_every_flag_with_its_field_and_default(flag):
    star = r"\*" if flag.with_file else ""
    (row,) = re.findall(rf"^\|.*`{flag.name}`{star}(?:,.*)? \|.*$", PAGE, re.MULTILINE)[-1:]
    _, _, field, default, _, _ = row.split("|")
    assert field.strip().strip("`") == (
        "\N{EN DASH}" if flag.setting.startswith("--") else flag.setting
    )
    assert default.strip().strip("`") == (texts({})[flag.name[2:]] or "\N{EN DASH}")


@pytest.mark.parametrize("path", [path for path in SETTINGS if not path.startswith("--")])
def test_the_operators_page_tells_every_field(path):
    assert f"`{path}`" in PAGE
