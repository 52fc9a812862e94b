from __future__ import annotations

import pytest

from pykubeproxy.errors import ConfigError
from pykubeproxy.flags import FLAGS, parse, usage
from pykubeproxy.settings import SETTINGS


def values(*argv):
    parsed = parse(argv)
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
        pytest.param(["-h"], {"--help": True}, id="-h"),
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
        pytest.param(["--zzzzzz"], "see --help", id="nothing near"),
        pytest.param(["run"], "'run': is neither a flag", id="positional"),
        pytest.param(["--", "run"], "'run': is neither a flag", id="after --"),
        pytest.param(["-"], "'-': is neither a flag", id="dash"),
        pytest.param(["--masquerade-all", "false"], "bools need --flag=value", id="bool value"),
        pytest.param(["--proxy-mode"], "--proxy-mode: needs a value", id="no value"),
        pytest.param(["--masquerade-all=x"], "'x' is no bool", id="bad value"),
    ],
)
def test_a_wrong_command_line_is_refused(argv, problem):
    with pytest.raises(ConfigError, match=problem.replace("?", r"\?")):
        parse(argv)


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
    assert flag.help or setting.unapplied, "neither explained nor declared as not applied"
    assert flag.name in usage()


def test_the_help_fits_a_terminal():
    assert max(map(len, usage().splitlines())) <= 100
