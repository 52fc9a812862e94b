"""Chooses where credentials come from, as kube-proxy does, and who reads them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import AddressValueError, IPv6Address
from types import ModuleType
from urllib.parse import urlsplit

import urllib3

from pykubeproxy.errors import ConfigError
from pykubeproxy.settings import shown
from pykubeproxy.watch import plainconfig
from pykubeproxy.watch.credentials import Credentials, unbracketed

__all__ = ["advice_in_cluster", "loader_for"]

# Where a pod finds its service account: Kubernetes, "Accessing the API from within a Pod".
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_CA_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"

_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"
_CONFIG_MAP = "pykubeproxy-api-server"
"""What these variables come from in our manifests, if it is there."""
_NAME = re.compile(r"[A-Za-z0-9_]([-\w.]*[A-Za-z0-9_.])?", re.ASCII)  # or an IPv4 address
_LARGEST_PORT = 65535


def loader_for(
    kubeconfig: str | None, master: str | None, context: str | None = None
) -> Callable[[], Credentials]:
    """A kubeconfig, else a bare ``--master``, else the pod's own.

    The result loads afresh at each call: kubeconfig files are replaced and exec plugins answer
    differently after a 401. It raises ConfigError for what is missing or wrong.
    """
    # As client-go reads a bare host:port.
    url = f"http://{master}" if master and "://" not in master else master
    where = "--master" if url else "--kubeconfig"
    if kubeconfig:
        return lambda: _checked(
            plainconfig.from_kubeconfig(kubeconfig, context, url)
            or _package().from_kubeconfig(kubeconfig, context, url),
            where,
        )
    if url:
        return lambda: _checked(plainconfig.anonymous(url) or _package().anonymous(url), where)
    return _in_cluster


def _checked(credentials: Credentials, where: str) -> Credentials:
    """Raises ConfigError for a server that no request could be made to."""
    try:
        host = urllib3.util.parse_url(credentials.server).host
    except (urllib3.exceptions.LocationParseError, ValueError):
        host = None
    if not host:
        problem = "is not the URL of an API server, such as https://10.0.0.1:6443"
        raise ConfigError(where, f"{shown(credentials.server)} {problem}")
    return credentials


def advice_in_cluster(environment: Mapping[str, str]) -> str:
    """What to do if the server of a pod's environment cannot be reached; empty: nothing special.

    The kubelet names the Service ``kubernetes`` in several variables. A manifest that gives the
    server's own address changes the first two of them only.
    """
    host = environment.get(_HOST, "")
    port = environment.get("KUBERNETES_PORT", "")
    try:
        service = urlsplit(port).hostname
    except ValueError:
        service = None
    if service is not None and service != unbracketed(host).lower():
        return ""
    is_one = "may be" if service is None else "is"
    return (
        f"{host} {is_one} the address of a Service, which answers only where a service proxy has "
        f"written rules: give the API server's own address as {_HOST} and {_PORT} (in "
        f"deploy/daemonset.yaml: ConfigMap {_CONFIG_MAP} with the keys host and port, then "
        "restart the pod), or in a kubeconfig"
    )


def _in_cluster() -> Credentials:
    _check_server(os.environ)
    plain = plainconfig.in_cluster(_TOKEN_PATH, _CA_PATH)
    credentials: Credentials = plain or _package().in_cluster(_TOKEN_PATH, _CA_PATH)
    credentials.if_unreachable = advice_in_cluster(os.environ)
    return credentials


def _check_server(environment: Mapping[str, str]) -> None:
    """Raises ConfigError for a host or port that is given, but is none."""
    host, port = environment.get(_HOST, ""), environment.get(_PORT, "")
    problem = ""
    if host and not _is_host(unbracketed(host)):
        where, problem = (
            _HOST,
            f"{shown(host)} is not an address or a name alone, without scheme and port",
        )
    elif port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= _LARGEST_PORT):
        where, problem = _PORT, f"{shown(port)} is not a number in 1-{_LARGEST_PORT}"
    if problem:
        raise ConfigError(
            where,
            f"{problem}. {_HOST} and {_PORT} name the API server; our manifests fill them from "
            f"host and port of the ConfigMap {_CONFIG_MAP}: correct it, then restart the pods",
        )


def _is_host(text: str) -> bool:
    if ":" not in text:
        return _NAME.fullmatch(text) is not None
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return True


def _package() -> ModuleType:
    # Late: it takes as long to load as all else together, and most nodes do not need it.
    from pykubeproxy.watch import packageconfig

    return packageconfig
