"""Credentials that need no plugin, read without the `kubernetes` package.

A token or a client certificate, an authority, a server: what a node proxy is mostly given, in a
kubeconfig or in a pod. Anything else that is said or missing there, be it a key that is not known
here, a proxy or a file that cannot be read, makes a function return ``None``: then the package
reads it (`packageconfig`), and finds the words for what is wrong. Both come to the same, which a
table in the tests shows.
"""

from __future__ import annotations

import base64
import os
import ssl
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import urllib3
import yaml
from msgspec import Struct, field

from pykubeproxy.watch.credentials import Credentials, SocketOptions, TokenFile, unbracketed

__all__ = ["anonymous", "from_kubeconfig", "in_cluster"]

POOL_CONNECTIONS = 8
"""How many connections are kept for another request: one for each resource, and for Events."""

# What a kubeconfig can be wrong in; PyYAML's constructors raise most of them on odd tags.
_NOT_PLAIN = (
    *(OSError, yaml.YAMLError, msgspec.MsgspecError, ValueError, TypeError, LookupError),
    *(AttributeError, RecursionError),
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Cluster(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False
    tls_server_name: str = ""


class _User(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    token: str = ""
    token_file: str = field(name="tokenFile", default="")
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""


class _Context(Struct, frozen=True):
    cluster: str
    user: str = ""


class _Entry(Struct, frozen=True):
    """One of a list of clusters, users or contexts; only the chosen one is looked into."""

    name: str
    cluster: dict[str, Any] | None = None
    user: dict[str, Any] | None = None
    context: dict[str, Any] | None = None


class _Kubeconfig(Struct, frozen=True, rename="kebab"):
    clusters: list[_Entry]
    contexts: list[_Entry]
    users: list[_Entry] | None = None
    current_context: str = ""


class _InMemory:
    """A file that is on no disk, as long as this object lives: OpenSSL wants keys in files."""

    def __init__(self, content: bytes) -> None:
        number = os.memfd_create("kubeconfig")
        weakref.finalize(self, os.close, number)
        with os.fdopen(number, "wb", closefd=False) as file:
            file.write(content)
        self.path = f"/proc/self/fd/{number}"


class _Connections(Struct, frozen=True):
    """How the server is trusted and what certificate is shown to it; files by their paths."""

    verify: bool = True
    server_name: str = ""
    authority: str | None = None
    certificate: str | None = None
    key: str | None = None
    held: tuple[_InMemory, ...] = ()

    def make_pool(self, options: SocketOptions) -> urllib3.PoolManager:
        named: dict[str, Any] = {"server_hostname": self.server_name} if self.server_name else {}
        return urllib3.PoolManager(
            cert_reqs=ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE,
            ca_certs=self.authority,
            cert_file=self.certificate,
            key_file=self.key,
            socket_options=options,
            maxsize=POOL_CONNECTIONS,
            **named,
        )


def anonymous(master: str, environment: Mapping[str, str] = os.environ) -> Credentials | None:
    """No credential at all, to the server at *master* (a URL)."""
    if _has_proxy(environment):
        return None
    description = "no credential (only --master was given)"
    return Credentials(master.rstrip("/"), description, _Connections().make_pool, _no_authorization)


def in_cluster(
    token_path: str, ca_path: str, environment: Mapping[str, str] = os.environ
) -> Credentials | None:
    """The service account of the pod we run in."""
    host = unbracketed(environment.get("KUBERNETES_SERVICE_HOST", ""))
    port = environment.get("KUBERNETES_SERVICE_PORT", "")
    usable = all(os.path.isfile(path) and os.path.getsize(path) for path in (token_path, ca_path))
    if not (host and port and usable) or _has_proxy(environment):
        return None
    return Credentials(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        f"the service account token in {token_path}",
        _Connections(authority=ca_path).make_pool,
        TokenFile(Path(token_path)).authorization,
    )


def from_kubeconfig(
    path: str,
    context: str | None = None,
    master: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Credentials | None:
    """The user and cluster of a kubeconfig's *context* (default: its current one).

    *master*, a URL, replaces that of the server only.
    """
    if os.pathsep in path or _has_proxy(environment):
        return None
    file = Path(path).expanduser()
    try:
        text = file.read_text("utf-8")
        content = msgspec.convert(yaml.load(text, _LOADER), _Kubeconfig)
        entry = _only(content.contexts, context or content.current_context)
        chosen = msgspec.convert(entry.context, _Context)
        cluster = msgspec.convert(_only(content.clusters, chosen.cluster).cluster, _Cluster)
        user = _User()
        if chosen.user:
            user = msgspec.convert(_only(content.users or [], chosen.user).user, _User)
        connections = _connections(cluster, user, Path(os.path.abspath(file)).parent)
    except _NOT_PLAIN:
        return None
    authorization: Callable[[], str | None] = _no_authorization
    what = "the client certificate" if connections.certificate else "no credential"
    if user.token_file:
        # Before `token` where both are there: clientcmd/api/types.go.
        token_file = TokenFile(Path(os.path.abspath(file)).parent / user.token_file)
        what, authorization = f"the token file {token_file.path}", token_file.authorization
    elif user.token:
        what, authorization = "the token", lambda: f"Bearer {user.token}"
    return Credentials(
        (master or cluster.server).rstrip("/"),
        f"{what} of user {chosen.user or '(none)'} in {path}",
        connections.make_pool,
        authorization,
    )


def _only(entries: list[_Entry], name: str) -> _Entry:
    [found] = [entry for entry in entries if entry.name == name]
    return found


def _connections(cluster: _Cluster, user: _User, directory: Path) -> _Connections:
    """Raises OSError or ValueError for what is not plain."""
    if not cluster.server.startswith("https://"):
        raise ValueError("no TLS")
    held: list[_InMemory] = []

    def path_of(data: str, name: str) -> str | None:
        if data:
            held.append(_InMemory(base64.standard_b64decode(data)))
            return held[-1].path
        if not name:
            return None
        path = os.path.normpath(directory / name)
        if not os.path.isfile(path):
            raise FileNotFoundError(path)
        return path

    return _Connections(
        not cluster.insecure_skip_tls_verify,
        cluster.tls_server_name,
        path_of(cluster.certificate_authority_data, cluster.certificate_authority),
        path_of(user.client_certificate_data, user.client_certificate),
        path_of(user.client_key_data, user.client_key),
        tuple(held),
    )


def _has_proxy(environment: Mapping[str, str]) -> bool:
    return any(
        value and name.lower().endswith("_proxy") and name.lower() != "no_proxy"
        for name, value in environment.items()
    )


def _no_authorization() -> str | None:
    return None
