from __future__ import annotations

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pykubeproxy import __version__, cli
from pykubeproxy.config import Command
from pykubeproxy.errors import HostError, Unsupported

FILE = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: from-file
logging: {verbosity: 1}
oddity: 1
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(FILE)
    return str(path)


class Supply:
    """Stands in for the source of objects."""

    def __init__(self, config):
        self.config = config
        self.started = False

    def start(self):
        self.started = True


@pytest.fixture
def daemon(monkeypatch):
    """Stands in for the daemon; remembers what it was called with."""
    called = []
    fake = SimpleNamespace(
        called=called,
        run=lambda config, supply: called.append(("run", config, supply)) or 0,
        cleanup=lambda config: called.append(("cleanup", config)) or 0,
    )
    monkeypatch.setitem(sys.modules, "pykubeproxy.daemon", fake)
    monkeypatch.setattr("pykubeproxy.daemon", fake, raising=False)
    monkeypatch.setattr("pykubeproxy.supply.Supply", Supply)
    return fake


def test_the_version_is_printed(capsys):
    assert cli.main(["--version", "--proxy-mode=nonsense"]) == 0
    assert capsys.readouterr().out == f"pykubeproxy {__version__}\n"


@pytest.mark.parametrize("flag", ["--version", "--help", "--no-such-flag"])
def test_what_needs_no_daemon_loads_none(flag):
    code = (
        "import sys; from pykubeproxy import cli; cli.main(sys.argv[1:]);"
        "heavy = {'structlog', 'kubernetes', 'urllib3', 'prometheus_client'} & set(sys.modules);"
        "print('loaded:', sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True)
    assert "loaded: []" == run.stdout.splitlines()[-1]


def test_help_goes_to_standard_output(capsys):
    assert cli.main(["--help"]) == 0
    assert "--cluster-cidr" in capsys.readouterr().out


def test_a_wrong_flag_ends_with_status_1_and_one_sentence(capsys):
    assert cli.main(["--proxy-mod=x"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "pykubeproxy: --proxy-mod: unknown flag; did you mean --proxy-mode?\n"
    assert captured.out == ""


def test_the_daemon_gets_the_configuration_and_a_source_that_is_being_opened(daemon):
    assert cli.main(["--hostname-override=Me"]) == 0
    [(what, config, supply)] = daemon.called
    assert (what, config.node_name) == ("run", "me")
    assert (config, True) == (supply.config, supply.started)


def test_cleanup_calls_cleanup(daemon):
    assert cli.main(["--cleanup"]) == 0
    [(what, config)] = daemon.called
    assert (what, config.command) == ("cleanup", Command.CLEANUP)


@pytest.mark.parametrize("error", [HostError, Unsupported])
def test_what_the_node_lacks_is_told(daemon, capsys, error):
    def run(_config, _supply):
        raise error("no iptables; install it")

    daemon.run = run
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "pykubeproxy: no iptables; install it\n"


def test_a_bug_is_not_dressed_up(daemon):
    daemon.run = lambda _config, _supply: 1 // 0
    with pytest.raises(ZeroDivisionError):
        cli.main([])


def test_the_file_is_the_whole_configuration(path):
    config = cli.configure([f"--config={path}", "--iptables-masquerade-bit=3", "--cluster-cidr=x"])
    assert config.masquerade_bit == 14
    assert config.notices == (
        f"ignored because --config is given: --iptables-masquerade-bit, --cluster-cidr; "
        f"set them in {path}",
        f"{path}: unknown field oddity, ignored",
    )


def test_some_flags_win_over_the_file(path):
    config = cli.configure([f"--config={path}", "--hostname-override=flag", "-v=5"])
    assert (config.node_name, config.verbosity) == ("flag", 5)


def test_the_file_wins_over_defaults(path):
    config = cli.configure(["--config", path])
    assert (config.node_name, config.verbosity) == ("from-file", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_daemon_is_loaded_ends_it_orderly(monkeypatch, tmp_path, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(
        "pykubeproxy.supply.Supply.start", lambda _self: signal.raise_signal(number)
    )
    with pytest.raises(SystemExit) as ended:
        cli.main([f"--manifests={tmp_path}", "--hostname-override=node"])
    assert 0 == ended.value.code
    assert before == signal.getsignal(number)
