"""Credentials come from where kube-proxy takes them, and are read again when they rotate."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pykubeproxy.errors import ConfigError, WatchDenied
from pykubeproxy.settings import shown
from pykubeproxy.watch import login
from pykubeproxy.watch.client import ApiServer
from pykubeproxy.watch.login import advice_in_cluster, loader_for

SERVICE = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
EXEC = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "false"}}


def kubeconfig(directory: Path, user: object) -> Path:
    content = {
        "current-context": "one",
        "clusters": [{"name": "c", "cluster": {"server": "https://one.test"}}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "one", "context": {"cluster": "c", "user": "me"}}],
    }
    path = directory / "config"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("master", "server"),
    [
        pytest.param(None, "https://one.test", id="the kubeconfig's own"),
        pytest.param("https://api.test:6443", "https://api.test:6443", id="master"),
        pytest.param("10.0.0.1:8080", "http://10.0.0.1:8080", id="a bare address"),
    ],
)
def test_a_kubeconfig_is_taken_and_master_replaces_its_server(
    tmp_path: Path, master: str | None, server: str
) -> None:
    credentials = loader_for(str(kubeconfig(tmp_path, {"token": "mine"})), master)()
    assert (server, "Bearer mine") == (credentials.server, credentials.authorization())


def test_a_bare_master_needs_no_credential() -> None:
    credentials = loader_for(None, "10.0.0.1:8080")()
    assert ("http://10.0.0.1:8080", None) == (credentials.server, credentials.authorization())


@pytest.mark.parametrize("url", ["http://[::", "foo:99999", "https://", "http://a b"])
def test_a_server_that_no_request_could_be_made_to_is_refused(tmp_path: Path, url: str) -> None:
    config = str(kubeconfig(tmp_path, {"token": "mine"}))
    for load in (loader_for(None, url), loader_for(config, url)):
        with pytest.raises(ConfigError, match=r"--master: .* is not the URL of an API server"):
            load()
    Path(config).write_text(Path(config).read_text().replace("https://one.test", url))
    with pytest.raises(ConfigError, match="--kubeconfig"):
        loader_for(config, None)()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("HOST", "192.0.2.10:6443", id="with a port"),
        pytest.param("HOST", "https://192.0.2.10", id="with a scheme"),
        pytest.param("HOST", "api.test/path", id="with a path"),
        pytest.param("HOST", "me@api.test", id="with a user"),
        pytest.param("HOST", "192.0.2.10\n", id="with the end of a line"),
        pytest.param("HOST", "[fd00::1]:6443", id="in brackets, with a port"),
        pytest.param("HOST", "[fd00::1", id="half in brackets"),
        pytest.param("HOST", "fd00::x", id="no address"),
        pytest.param("HOST", "[]", id="nothing in brackets"),
        pytest.param("PORT", "https", id="a port's name"),
        pytest.param("PORT", "0", id="port 0"),
        pytest.param("PORT", "65536", id="a port that is too large"),
        pytest.param("PORT", "1" * 5000, id="a port of many digits"),
        pytest.param("PORT", "tcp://10.96.0.1:443", id="the kubelet's of another Service"),
    ],
)
def test_a_pods_server_that_is_none_is_named_with_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    for name, usual in SERVICE.items():
        monkeypatch.setenv(name, usual)
    monkeypatch.setenv(f"KUBERNETES_SERVICE_{variable}", value)
    with pytest.raises(ConfigError) as refused:
        loader_for(None, None)()
    assert f"KUBERNETES_SERVICE_{variable}" == refused.value.where
    for words in (
        shown(value),
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT",
        "ConfigMap pykubeproxy-api-server",
    ):
        assert words in str(refused.value)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        pytest.param("192.0.2.10", "https://192.0.2.10:443", id="IPv4"),
        pytest.param("fd00::1", "https://[fd00::1]:443", id="IPv6"),
        pytest.param("[fd00::1]", "https://[fd00::1]:443", id="IPv6 in brackets"),
        pytest.param("api.test", "https://api.test:443", id="a name"),
        pytest.param("api.test.", "https://api.test.:443", id="a name to its root"),
    ],
)
def test_a_pods_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, expected: str
) -> None:
    for name, value in (SERVICE | {"KUBERNETES_SERVICE_HOST": host}).items():
        monkeypatch.setenv(name, value)
    for name in ("_TOKEN_PATH", "_CA_PATH"):
        (tmp_path / name).write_text("content")
        monkeypatch.setattr(login, name, str(tmp_path / name))
    assert expected == loader_for(None, None)().server


def test_without_both_a_pod_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="--kubeconfig"):
        loader_for(None, None)()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        pytest.param(
            SERVICE | {"KUBERNETES_PORT": "tcp://10.96.0.1:443"},
            "10.96.0.1 is the address of a Service",
            id="the kubelet's",
        ),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_PORT": "tcp://[fd00::1]:443"},
            "fd00::1 is the address of a Service",
            id="the kubelet's, IPv6",
        ),
        pytest.param(
            {"KUBERNETES_SERVICE_HOST": "[fd00::1]", "KUBERNETES_PORT": "tcp://[fd00::1]:443"},
            "[fd00::1] is the address of a Service",
            id="IPv6 in brackets",
        ),
        pytest.param(SERVICE, "10.96.0.1 may be the address of a Service", id="half of it"),
        pytest.param(
            SERVICE | {"KUBERNETES_PORT": "tcp://[10.96:443"}, "10.96.0.1 may be", id="nonsense"
        ),
    ],
)
def test_an_unreachable_service_address_has_its_remedy(
    environment: dict[str, str], words: str
) -> None:
    advice = advice_in_cluster(environment)
    assert words in advice
    assert "ConfigMap pykubeproxy-api-server" in advice


def test_an_address_that_a_manifest_gave_has_none() -> None:
    given = {"KUBERNETES_SERVICE_HOST": "192.0.2.7", "KUBERNETES_PORT": "tcp://10.96.0.1:443"}
    assert "" == advice_in_cluster(given)


def test_what_is_not_plain_is_read_by_the_package(tmp_path: Path) -> None:
    credentials = loader_for(str(kubeconfig(tmp_path, EXEC)), None)()
    with pytest.raises(WatchDenied, match="the exec plugin false"):
        credentials.authorization()


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        loader_for(str(tmp_path / "none"), None)()


def test_a_kubeconfig_that_broke_since_denies_on_reload(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"token": "mine"})
    server = ApiServer(loader_for(str(path), None))
    path.write_bytes(b"\xff\xfe\x00")
    server._suspect(server._credentials)  # as after a 401
    with pytest.raises(WatchDenied, match="cannot be loaded again"):
        server._current()


@pytest.mark.parametrize(
    ("user", "loaded"),
    [pytest.param({"token": "t"}, False, id="plain"), pytest.param(EXEC, True, id="plugin")],
)
def test_the_package_is_loaded_only_where_it_is_needed(
    tmp_path: Path, user: object, loaded: bool
) -> None:
    code = (
        "import sys; from pykubeproxy.watch.client import ApiServer;"
        f"ApiServer.from_flags({str(kubeconfig(tmp_path, user))!r}, None);"
        "print('kubernetes' in sys.modules)"
    )
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert str(loaded) == said.stdout.strip()
