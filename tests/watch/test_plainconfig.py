"""What is read without the `kubernetes` package is what the package reads."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from pykubeproxy.watch import packageconfig, plainconfig
from pykubeproxy.watch.credentials import Credentials

NO_PROXY: dict[str, str] = {}
BY_CONTENT = ("ca_certs", "cert_file", "key_file")
OWN = ("maxsize",)  # a matter of taste
TOKEN_AND_CA = {"token": "mine"}, {"certificate-authority": "ca.pem"}


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package asks the real environment."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def kubeconfig(directory: Path, user: Any, cluster: Any) -> str:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (directory / name).write_text(f"the content of {name}")
    (directory / "token").write_text("from a file\n")
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "one",
        "clusters": [
            {"name": "c", "cluster": {"server": "https://one.test/", **cluster}},
            {"name": "d", "cluster": {"server": "https://two.test", "extensions": []}},
        ],
        "users": [{"name": "me", "user": user}, {"name": "you", "user": {"exec": {}}}],
        "contexts": [
            {"name": "one", "context": {"cluster": "c", "user": "me", "namespace": "x"}},
            {"name": "nobody", "context": {"cluster": "c"}},
            {"name": "unknown", "context": {"cluster": "c", "user": "stranger"}},
            {"name": "two", "context": {"cluster": "d", "user": "me"}},
        ],
    }
    path = directory / "config"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def settled(credentials: Credentials) -> dict[str, Any]:
    """All that a server could tell one credential from another by."""
    pool = credentials.make_pool(((1, 2, 3),))
    connections = {k: v for k, v in pool.connection_pool_kw.items() if k not in OWN}
    for name in BY_CONTENT:
        path = connections.get(name)
        connections[name] = Path(path).read_bytes() if path else None
    return {
        "pool": type(pool),
        "connections": {k: v for k, v in connections.items() if v is not None},
        "server": credentials.server,
        "description": credentials.description,
        "authorization": credentials.authorization(),
    }


@pytest.mark.parametrize(
    ("user", "cluster", "context", "master"),
    [
        pytest.param(*TOKEN_AND_CA, None, None, id="token and authority"),
        pytest.param(*TOKEN_AND_CA, None, "https://other.test:6443/", id="master"),
        pytest.param(*TOKEN_AND_CA, "nobody", None, id="a context without user"),
        pytest.param({}, {}, None, None, id="nothing"),
        pytest.param({"tokenFile": "token"}, {}, None, None, id="token file"),
        pytest.param({"tokenFile": "token", "token": "x"}, {}, None, None, id="both tokens"),
        pytest.param(
            {"client-certificate": "cert.pem", "client-key": "key.pem"},
            {"certificate-authority": "ca.pem"},
            None,
            None,
            id="certificate files",
        ),
        pytest.param(
            {"client-certificate-data": encoded("cert"), "client-key-data": encoded("key")},
            {"certificate-authority-data": encoded("authority")},
            None,
            None,
            id="certificates as data",
        ),
        pytest.param(
            {"client-certificate-data": encoded("cert"), "client-certificate": "cert.pem"},
            {},
            None,
            None,
            id="data goes before a file",
        ),
        pytest.param(
            {"token": "mine"},
            {"insecure-skip-tls-verify": True, "tls-server-name": "inner.test"},
            None,
            None,
            id="insecure, with a server name",
        ),
    ],
)
def test_a_plain_kubeconfig_comes_to_the_same(
    tmp_path: Path, user: Any, cluster: Any, context: str | None, master: str | None
) -> None:
    path = kubeconfig(tmp_path, user, cluster)
    plain = plainconfig.from_kubeconfig(path, context, master, NO_PROXY)
    assert plain is not None
    assert settled(packageconfig.from_kubeconfig(path, context, master)) == settled(plain)


@pytest.mark.parametrize(
    ("user", "cluster", "context"),
    [
        pytest.param({"exec": {"command": "x"}}, {}, None, id="exec plugin"),
        pytest.param({"auth-provider": {"name": "oidc"}}, {}, None, id="auth provider"),
        pytest.param({"username": "u", "password": "p"}, {}, None, id="password"),
        pytest.param({"token": "t", "as": "somebody"}, {}, None, id="another user's name"),
        pytest.param({"token": 5}, {}, None, id="a number as token"),
        pytest.param({}, {"proxy-url": "http://p.test"}, None, id="proxy"),
        pytest.param({}, {"server": "http://plain.test"}, None, id="no TLS"),
        pytest.param({}, {"certificate-authority": "none.pem"}, None, id="no such authority"),
        pytest.param({}, {"certificate-authority-data": "?a"}, None, id="no base64"),
        pytest.param({"client-key": "none.pem"}, {}, None, id="no such key"),
        pytest.param({}, {}, "two", id="what is not known here"),
        pytest.param({}, {}, "unknown", id="no such user"),
        pytest.param({}, {}, "none", id="no such context"),
        pytest.param([], {}, None, id="user is no mapping"),
    ],
)
def test_anything_else_is_left_to_the_package(
    tmp_path: Path, user: Any, cluster: Any, context: str | None
) -> None:
    path = kubeconfig(tmp_path, user, cluster)
    assert plainconfig.from_kubeconfig(path, context, None, NO_PROXY) is None


@pytest.mark.parametrize("content", [b"", b"a: [", b"text", b"\xff\xfe", b"!!int ''", b"&a [*a]"])
def test_what_is_no_kubeconfig_is_left_to_the_package(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    assert plainconfig.from_kubeconfig(str(path), None, None, NO_PROXY) is None


def test_several_files_and_missing_ones_are_left_to_the_package(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, *TOKEN_AND_CA)
    assert plainconfig.from_kubeconfig(f"{path}:{path}", None, None, NO_PROXY) is None
    assert plainconfig.from_kubeconfig(f"{path}-not", None, None, NO_PROXY) is None


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_in_the_environment_is_left_to_the_package(tmp_path: Path, name: str) -> None:
    proxy = {name: "http://p.test"}
    assert plainconfig.anonymous("https://api.test", proxy) is None
    assert (
        plainconfig.from_kubeconfig(kubeconfig(tmp_path, *TOKEN_AND_CA), None, None, proxy) is None
    )
    assert plainconfig.anonymous("https://api.test", {"NO_PROXY": "*"}) is not None


@pytest.mark.parametrize("master", ["https://api.test:6443/", "http://10.0.0.1:8080"])
def test_a_bare_master_comes_to_the_same(master: str) -> None:
    plain = plainconfig.anonymous(master, NO_PROXY)
    assert plain is not None
    assert settled(packageconfig.anonymous(master)) == settled(plain)


@pytest.mark.parametrize("host", ["10.96.0.1", "fd00::1", "[fd00::1]"])
def test_a_pod_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    paths = tmp_path / "token", tmp_path / "ca.crt"
    for path in paths:
        path.write_text("content\n")
    token, authority = map(str, paths)
    plain = plainconfig.in_cluster(token, authority, os.environ)
    assert plain is not None
    assert settled(packageconfig.in_cluster(token, authority)) == settled(plain)


@pytest.mark.parametrize(
    ("host", "port", "token", "authority"),
    [
        pytest.param("", "443", "t", "a", id="no host"),
        pytest.param("10.96.0.1", "", "t", "a", id="no port"),
        pytest.param("10.96.0.1", "443", "", "a", id="empty token"),
        pytest.param("10.96.0.1", "443", "t", None, id="no authority"),
    ],
)
def test_a_pod_that_lacks_something_is_left_to_the_package(
    tmp_path: Path, host: str, port: str, token: str, authority: str | None
) -> None:
    paths = tmp_path / "token", tmp_path / "ca.crt"
    for path, content in zip(paths, (token, authority), strict=True):
        if content is not None:
            path.write_text(content)
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    assert plainconfig.in_cluster(*map(str, paths), environment) is None


def test_keys_given_as_data_are_on_no_disk(tmp_path: Path) -> None:
    user = {"client-key-data": encoded("secret")}
    plain = plainconfig.from_kubeconfig(kubeconfig(tmp_path, user, {}), None, None, NO_PROXY)
    assert plain is not None
    key = plain.make_pool(()).connection_pool_kw["key_file"]
    assert key.startswith("/proc/self/fd/")
    assert "memfd:" in os.readlink(key)
