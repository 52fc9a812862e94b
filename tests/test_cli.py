from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import structs

from pykubeproxy import KUBERNETES_VERSION, __version__, cli
from pykubeproxy.config import Command, is_same
from pykubeproxy.configbuild import build
from pykubeproxy.configfile import parse_document
from pykubeproxy.configwrite import flagz
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
        RESTART=-1,
        rehearse=lambda config: called.append(("rehearse", config)),
        run=lambda config, supply, reload: called.append(("run", config, supply, reload)) or 0,
        cleanup=lambda config, _show: called.append(("cleanup", config)) or 0,
        initialise=lambda config: called.append(("initialise", config)) or 0,
    )
    monkeypatch.setitem(sys.modules, "pykubeproxy.daemon", fake)
    monkeypatch.setattr("pykubeproxy.daemon", fake, raising=False)
    monkeypatch.setattr("pykubeproxy.supply.Supply", Supply)
    return fake


@pytest.mark.parametrize("flag", ["--version", "--version=true", "--version=v1.2.3"])
def test_the_version_is_printed(capsys, flag):
    assert cli.main([flag, "--proxy-mode=nonsense", "--config=/absent"]) == 0
    expected = f"pykubeproxy {__version__} (Kubernetes v{KUBERNETES_VERSION})\n"
    assert expected == capsys.readouterr().out


def test_the_version_in_its_parts(capsys):
    assert cli.main(["--version=raw"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"version.Info{{Version:'{__version__}', Major:'1', Minor:'36'")


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--version=x"], "--version: invalid value 'x': must be true, false or raw"),
        (["--help=x"], "--help: invalid value 'x': must be true, false or all"),
        (["--help", "--xyzzy"], "--xyzzy: unknown flag"),
        (["--version", "--v=x"], "--v: invalid value 'x'"),
    ],
)
def test_what_is_asked_for_must_be_right(capsys, argv, problem):
    assert 1 == cli.main(argv)
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--version=false", "--help=false"])
def test_what_is_not_asked_for_is_not_done(daemon, flag):
    assert 0 == cli.main([flag])
    assert ["run"] == [what for what, *_ in daemon.called]


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


def test_there_is_a_longer_help(capsys):
    assert cli.main(["--help=all"]) == 0
    longer = capsys.readouterr().out
    cli.main(["--help"])
    assert len(longer) > len(capsys.readouterr().out)


def test_a_wrong_flag_ends_with_status_1_and_one_sentence(capsys):
    assert cli.main(["--proxy-mod=x"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "pykubeproxy: --proxy-mod: unknown flag; did you mean --proxy-mode?\n"
    assert captured.out == ""


def test_the_daemon_gets_the_configuration_and_a_source_that_is_being_opened(daemon):
    assert cli.main(["--hostname-override=Me"]) == 0
    [(what, config, supply, reload)] = daemon.called
    assert reload is None
    assert (what, config.node_name) == ("run", "me")
    assert (config, True) == (supply.config, supply.started)


def test_cleanup_calls_cleanup(daemon):
    assert cli.main(["--cleanup"]) == 0
    [(what, config)] = daemon.called
    assert (what, config.command) == ("cleanup", Command.CLEANUP)


def test_cleanup_is_refused_where_it_would_not_know_what_to_leave(daemon, capsys):
    argv = ["--cleanup", "--dry-run", "--ipvs-exclude-cidrs=10.0.0.0/8x"]
    assert 1 == cli.main(argv)
    assert "--ipvs-exclude-cidrs: invalid value '10.0.0.0/8x'" in capsys.readouterr().err
    assert [] == daemon.called


def test_initialising_calls_initialise(daemon):
    assert cli.main(["--init-only"]) == 0
    [(what, config)] = daemon.called
    assert ("initialise", Command.INIT) == (what, config.command)


def test_a_dry_run_is_a_cleanup(daemon):
    assert cli.main(["--cleanup", "--dry-run"]) == 0
    [(what, config)] = daemon.called
    assert ("cleanup", True) == (what, config.dry_run)


@pytest.mark.parametrize("error", [HostError, Unsupported])
def test_what_the_node_lacks_is_told(daemon, capsys, error):
    def run(_config, _supply, _reload):
        raise error("no iptables; install it")

    daemon.run = run
    assert cli.main([]) == 1
    assert capsys.readouterr().err == "pykubeproxy: no iptables; install it\n"


def test_a_bug_is_not_dressed_up(daemon):
    daemon.run = lambda _config, _supply, _reload: 1 // 0
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
    assert "3" == flagz(config)["iptables-masquerade-bit"]


def test_some_flags_win_over_the_file(path):
    config = cli.configure([f"--config={path}", "--hostname-override=flag", "-v=5"])
    assert (config.node_name, config.verbosity) == ("flag", 5)


def test_the_file_wins_over_defaults(path):
    config = cli.configure(["--config", path])
    assert (config.node_name, config.verbosity) == ("from-file", 1)


HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


@pytest.mark.parametrize(
    ("flags", "text", "field", "expected"),
    [
        pytest.param(["--proxy-mode=ipvs"], "", "mode", "iptables", id="mode: the file's default"),
        pytest.param(["--proxy-mode=iptables"], "mode: ipvs", "mode", "ipvs", id="mode: the file"),
        pytest.param(["--kubeconfig=f"], "clientConnection: {kubeconfig: k}", "kubeconfig", "k",
                     id="kubeconfig: the file"),
        pytest.param(["--healthz-port=0"], "", "healthz_address", ("0.0.0.0", 10256),
                     id="healthz-port: the file, which cannot switch it off"),
        pytest.param(["--metrics-port=0"], "", "metrics_address", ("127.0.0.1", 10249),
                     id="metrics-port: the file"),
        pytest.param(["--oom-score-adj=5"], "oomScoreAdj: 6", "oom_score_adj", 6,
                     id="oom-score-adj: the file"),
        pytest.param(["--feature-gates=AllowServiceExternalIPs=false"], "", "allow_external_ips",
                     True, id="feature-gates: the file"),
        pytest.param(["--profiling"], "", "profiling", False, id="profiling: the file"),
        pytest.param(["--cluster-cidr=10.0.0.0/8"], "clusterCIDR: 11.0.0.0/8", "cluster_cidrs",
                     ("11.0.0.0/8",), id="cluster-cidr: the file"),
        pytest.param(["--hostname-override=F"], "hostnameOverride: k", "node_name", "f",
                     id="hostname-override: the flag"),
        pytest.param(["--hostname-override="], "hostnameOverride: k", "node_name", "k",
                     id="an empty hostname-override: the file"),
        pytest.param(["--hostname-override=f", "--hostname-override="], "hostnameOverride: k",
                     "node_name", "k", id="hostname-override empty at last: the file"),
        pytest.param(["--master=http://f"], "", "master", "http://f", id="master: the flag"),
        pytest.param(["-v=5"], "logging: {verbosity: 1}", "verbosity", 5, id="v: the flag"),
        pytest.param(["--logging-format=json"], "logging: {format: text}", "log_format", "json",
                     id="logging-format: the flag"),
        pytest.param(["--cleanup"], "", "command", Command.CLEANUP, id="cleanup: the flag"),
        pytest.param(["--init-only"], "", "command", Command.INIT, id="init-only: the flag"),
        pytest.param(["--state-directory=/s"], "", "state_directory", "/s", id="ours: the flag"),
    ],
)  # fmt: skip
def test_flags_against_file(tmp_path, flags, text, field, expected):
    path = tmp_path / "config"
    path.write_text(HEAD + text)
    assert expected == getattr(cli.configure([f"--config={path}", *flags]), field)


def test_verbosity_by_file_is_of_both(tmp_path):
    path = tmp_path / "config"
    path.write_text(HEAD + "logging: {vmodule: [{filePattern: k, verbosity: 2}]}")
    config = cli.configure([f"--config={path}", "--vmodule=f=1"])
    assert ("f=1", "k=2") == config.settings["logging.vmodule"]


def test_problems_of_flags_and_file_and_values_are_told_at_once(tmp_path, capsys):
    path = tmp_path / "config"
    path.write_text(HEAD + "mode: 3\noomScoreAdj: 2000\nconntrack: {min: -1}\n")
    assert 1 == cli.main([f"--config={path}", "--xyzzy", "--v=x", "--ipvs-fallback=no"])
    lines = capsys.readouterr().err.splitlines()
    assert "pykubeproxy: configuration: 5 problems:" == lines[0]
    assert ["--xyzzy", "--v", "mode", "conntrack.min", "oomScoreAdj"] == [
        line.split(":")[0].strip() for line in lines[1:]
    ]


def test_a_file_that_is_not_there_hides_no_wrong_flag(tmp_path, capsys):
    assert 1 == cli.main([f"--config={tmp_path}/absent", "--iptables-variant=x"])
    error = capsys.readouterr().err
    assert f"--config: cannot read {tmp_path}/absent" in error
    assert "--iptables-variant: invalid value 'x'" in error


# --- output that cannot be written ---


@pytest.mark.parametrize("flag", ["--version", "--help", "--help=all"])
@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        pytest.param(">/dev/full", "No space left on device", id="full"),
        pytest.param(">&-", "it is closed", id="closed"),
    ],
)
def test_output_that_cannot_be_written_is_told_in_a_line(flag, redirection, words):
    command = [sys.executable, "-m", "pykubeproxy", flag]
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    expected = f"pykubeproxy: cannot write to standard output: {words}\n"
    assert (1, expected) == (done.returncode, done.stderr)


@pytest.mark.parametrize("action", ["cleanup", "initialise"])
def test_an_interruption_is_told_in_a_line(daemon, monkeypatch, capsys, action):
    flag = {"cleanup": "--cleanup", "initialise": "--init-only"}[action]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(daemon, action, interrupted)
    assert 130 == cli.main([flag])
    assert capsys.readouterr().err.startswith("pykubeproxy: interrupted; ")


# --- writing ---


def test_the_effective_configuration_is_written(tmp_path, capsys):
    path = tmp_path / "written"
    flags = ["--proxy-mode=ipvs", "--cluster-cidr=10.0.0.0/8", "--hostname-override=Node"]
    assert 0 == cli.main([*flags, f"--write-config-to={path}"])
    assert ("", "") == capsys.readouterr()
    expected = structs.replace(cli.configure(flags), flags={})
    assert is_same(build(parse_document(path.read_text(), "f").given), expected)


def test_lists_are_written_as_they_were_given(tmp_path, capsys):
    path = tmp_path / "written"
    lists = ["--ipvs-exclude-cidrs=10.1.2.3/8,10.0.0.0/8x", "--nodeport-addresses=010.1.2.3/8"]
    assert 0 == cli.main([*lists, f"--write-config-to={path}"])
    text = path.read_text()
    assert "  - 10.1.2.3/8\n  - 10.0.0.0/8x\n" in text
    assert "nodePortAddresses:\n- 010.1.2.3/8\n" in text
    assert "notice: --ipvs-exclude-cidrs: '10.0.0.0/8x' is no valid" in capsys.readouterr().err


def test_of_a_file_its_own_content_is_written(path, tmp_path, capsys):
    written = tmp_path / "written"
    argv = [f"--config={path}", "--cluster-cidr=10.0.0.0/8", f"--write-config-to={written}"]
    assert 0 == cli.main(argv)
    config = build(parse_document(written.read_text(), "f").given)
    assert ("from-file", ()) == (config.node_name, config.cluster_cidrs)
    assert "notice: ignored because --config is given: --cluster-cidr" in capsys.readouterr().err


def test_a_file_called_dash_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 0 == cli.main(["--write-config-to=-"])
    assert (tmp_path / "-").read_text().startswith("apiVersion: ")


def test_what_a_file_cannot_say_is_said(tmp_path, capsys):
    flags = ["--manifests=/m", "--ipvs-fallback=fail", "--healthz-port=0"]
    assert 0 == cli.main([*flags, f"--write-config-to={tmp_path}/written"])
    error = capsys.readouterr().err
    assert "give the flags along: --manifests, --ipvs-fallback\n" in error
    assert "--healthz-port=0 is not in it" in error


def test_nothing_is_written_of_a_wrong_configuration(tmp_path):
    assert 1 == cli.main(["--oom-score-adj=5000", f"--write-config-to={tmp_path}/written"])
    assert [] == list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_told(tmp_path, capsys):
    assert 1 == cli.main([f"--write-config-to={tmp_path}/absent/written"])
    expected = f"--write-config-to: cannot write {tmp_path}/absent/written: No such file"
    assert expected in capsys.readouterr().err


# --- beginning anew ---


def test_the_process_begins_anew_as_it_was_started(daemon, path, monkeypatch):
    began = []
    monkeypatch.setattr("os.execve", lambda *command: began.append(command))
    monkeypatch.setattr(sys, "argv", ["pykubeproxy", f"--config={path}"])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "x", "script", f"--config={path}"])
    monkeypatch.setattr(daemon, "run", lambda _config, _supply, _reload: daemon.RESTART)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        cli.main()
        assert {signal.SIGTERM, signal.SIGINT} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    command = [sys.executable, "-X", "x", "script", f"--config={path}"]
    (program, arguments, environment) = began.pop()
    assert (sys.executable, command) == (program, arguments)

    # The new program begins with what was judged, and judges by itself what is there now.
    Path(path).write_text("no configuration")
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(daemon, "run", lambda *given: daemon.called.append(("run", *given)) or 0)
    assert 0 == cli.main([f"--config={path}"])
    (_, config, _, reload) = daemon.called.pop()
    assert ("from-file", FILE) == (config.node_name, reload.text)
    assert 1 == cli.main([f"--config={path}"])  # once


def test_an_interpreter_that_is_gone_is_told(daemon, path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", "/absent/python")
    monkeypatch.setattr(daemon, "run", lambda _config, _supply, _reload: daemon.RESTART)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        assert 1 == cli.main([f"--config={path}"])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert "cannot run /absent/python again: No such file" in capsys.readouterr().err


def test_a_changed_file_is_judged_as_at_the_start(daemon, path):
    assert 0 == cli.main([f"--config={path}", "--hostname-override=flag"])
    reload = daemon.called.pop()[-1]
    asked = []
    reload.start(lambda: asked.append(1))
    try:
        reload.consider("kind: x")
        assert not reload.wanted
        reload.consider(FILE.replace("from-file", "another"))  # the flag says otherwise
        assert not reload.wanted
        reload.consider(FILE + "mode: ipvs\n")
    finally:
        reload.stop()
    assert (True, [1]) == (reload.wanted, asked)
    assert [("rehearse", "ipvs")] == [(what, config.mode) for what, config in daemon.called]


def test_signals_are_heard_again_after_a_beginning_anew(daemon):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    try:
        cli.main([])
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not {signal.SIGTERM, signal.SIGINT} & blocked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_daemon_is_loaded_ends_it_at_once(monkeypatch, tmp_path, number):
    """Nothing is raised for it: in a callback of the import system that would be ignored."""
    before, ended = signal.getsignal(number), []
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(
        "pykubeproxy.supply.Supply.start", lambda _self: signal.raise_signal(number)
    )
    monkeypatch.setattr("pykubeproxy.daemon.run", lambda *_: 0)
    cli.main([f"--manifests={tmp_path}", "--hostname-override=node"])
    assert [0] == ended
    assert before == signal.getsignal(number)


@pytest.mark.parametrize("flag", ["--cleanup", "--init-only"])
def test_what_is_odd_is_said_whatever_is_to_be_done(daemon, path, capsys, flag):
    assert 0 == cli.main([f"--config={path}", flag])
    assert 'WARNING notice text="' in capsys.readouterr().err
