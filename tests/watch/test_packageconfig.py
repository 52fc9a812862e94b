"""Credentials of every kind, as the `kubernetes` package reads them."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from pykubeproxy.errors import ConfigError, WatchDenied
from pykubeproxy.watch.packageconfig import anonymous, from_kubeconfig, in_cluster


def kubeconfig(directory: Path, user: dict[str, Any], **cluster: Any) -> str:
    content = {
        "current-context": "one",
        "clusters": [
            {"name": "c", "cluster": {"server": "https://one.test", **cluster}},
            {"name": "d", "cluster": {"server": "https://two.test/"}},
        ],
        "users": [{"name": "me", "user": user}, {"name": "you", "user": {"token": "yours"}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "me"}},
            {"name": "two", "context": {"cluster": "d", "user": "you"}},
            {"name": "nobody", "context": {"cluster": "d"}},
        ],
    }
    path = directory / "config"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def plugin(directory: Path, answer: str) -> dict[str, Any]:
    script = directory / "plugin"
    script.write_text(f"#!/bin/sh\n{answer}\n")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(script), "interactiveMode": "Never"}}


def says(token: str, expiry: str = "2099-01-01T00:00:00Z") -> str:
    return (
        'echo \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",'
        f'"status":{{"token":"{token}","expirationTimestamp":"{expiry}"}}}}\''
    )


def test_a_token_is_presented(tmp_path: Path) -> None:
    credentials = from_kubeconfig(kubeconfig(tmp_path, {"token": "mine"}))
    assert credentials.authorization() == "Bearer mine"
    assert credentials.server == "https://one.test"
    assert "user me" in credentials.description


def test_another_context_can_be_chosen(tmp_path: Path) -> None:
    credentials = from_kubeconfig(kubeconfig(tmp_path, {}), context="two")
    assert (
        credentials.server,
        credentials.authorization(),
    ) == ("https://two.test", "Bearer yours")


def test_a_context_without_user_presents_nothing(tmp_path: Path) -> None:
    credentials = from_kubeconfig(kubeconfig(tmp_path, {}), context="nobody")
    assert credentials.authorization() is None


def test_a_token_file_is_read_again_for_every_request(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first\n")
    credentials = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert credentials.authorization() == "Bearer first"
    (tmp_path / "token").write_text("second\n")
    assert credentials.authorization() == "Bearer second"


def test_a_token_file_goes_before_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("file")
    credentials = from_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token", "token": "text"}))
    assert credentials.authorization() == "Bearer file"


def test_an_exec_plugin_is_asked_for_a_token(tmp_path: Path) -> None:
    credentials = from_kubeconfig(kubeconfig(tmp_path, plugin(tmp_path, says("made"))))
    assert credentials.authorization() == "Bearer made"


def test_an_expired_exec_token_is_renewed(tmp_path: Path) -> None:
    user = plugin(tmp_path, says("old", "2001-01-01T00:00:00Z"))
    credentials = from_kubeconfig(kubeconfig(tmp_path, user))
    plugin(tmp_path, says("new"))
    assert credentials.authorization() == "Bearer new"


def test_an_exec_plugin_that_fails_is_named_when_a_request_needs_it(tmp_path: Path) -> None:
    credentials = from_kubeconfig(kubeconfig(tmp_path, plugin(tmp_path, "exit 3")))
    with pytest.raises(WatchDenied, match="plugin"):
        credentials.authorization()


def test_master_replaces_the_server_only(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"token": "mine"})
    credentials = from_kubeconfig(path, master="https://other.test:8443/")
    assert (
        credentials.server,
        credentials.authorization(),
    ) == ("https://other.test:8443", "Bearer mine")
    assert credentials.server == "https://other.test:8443"  # also after a renewal hook ran


def test_a_bare_master_needs_no_credential() -> None:
    credentials = anonymous("https://api.test:6443")
    assert ("https://api.test:6443", None) == (credentials.server, credentials.authorization())


def test_trust_and_proxy_settings_are_taken_over(tmp_path: Path) -> None:
    path = kubeconfig(
        tmp_path,
        {},
        **{
            "insecure-skip-tls-verify": True,
            "tls-server-name": "inner",
            "proxy-url": "http://p.test",
        },
    )
    pool = from_kubeconfig(path).make_pool(())
    assert isinstance(pool, urllib3.ProxyManager)
    assert pool.proxy is not None
    assert pool.proxy.host == "p.test"
    said = pool.connection_pool_kw
    assert (ssl.CERT_NONE, "inner") == (said["cert_reqs"], said["server_hostname"])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("a: [", id="not yaml"),
        pytest.param("just text", id="text"),
        pytest.param("current-context: x\ncontexts: []\nclusters: []\nusers: []", id="no context"),
    ],
)
def test_a_broken_kubeconfig_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(ConfigError, match="--kubeconfig"):
        from_kubeconfig(str(path))


def test_a_kubeconfig_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"--kubeconfig: .*config: .*utf-8"):
        from_kubeconfig(str(path))


def test_a_missing_kubeconfig_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        from_kubeconfig(str(tmp_path / "none"))


@pytest.mark.parametrize("host", ["fd00::1", "[fd00::1]"])
def test_in_cluster_reads_the_rotating_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first\n")
    authority.write_text("certificate")
    credentials = in_cluster(str(token), str(authority))
    assert credentials.server == "https://[fd00::1]:443"
    assert credentials.authorization() == "Bearer first"
    token.write_text("second\n")
    assert credentials.authorization() == "Bearer second"


def test_outside_of_a_pod_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match="--kubeconfig"):
        in_cluster("/nowhere/token", "/nowhere/ca.crt")
