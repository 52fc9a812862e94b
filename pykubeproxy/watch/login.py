"""Chooses where credentials come from, as kube-proxy does, and who reads them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import ModuleType
from urllib.parse import urlsplit

from pykubeproxy.watch import plainconfig
from pykubeproxy.watch.credentials import Credentials

__all__ = ["advice_in_cluster", "loader_for"]

# Where a pod finds its service account: Kubernetes, "Accessing the API from within a Pod".
_TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/token"
_CA_PATH = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"


def loader_for(
    kubeconfig: str | None, master: str | None, context: str | None = None
) -> Callable[[], Credentials]:
    """A kubeconfig, else a bare ``--master``, else the pod's own.

    The result loads afresh at each call: kubeconfig files are replaced and exec plugins answer
    differently after a 401. It raises ConfigError for what is missing or wrong.
    """
    # As client-go reads a bare host:port.
    url = f"http://{master}" if master and "://" not in master else master
    if kubeconfig:
        return lambda: (
            plainconfig.from_kubeconfig(kubeconfig, context, url)
            or _package().from_kubeconfig(kubeconfig, context, url)
        )
    if url:
        return lambda: plainconfig.anonymous(url) or _package().anonymous(url)
    return _in_cluster


def advice_in_cluster(environment: Mapping[str, str]) -> str:
    """What to do if the server of a pod's environment cannot be reached; empty: nothing special.

    The kubelet names the Service ``kubernetes`` in several variables. A manifest that gives the
    server's own address changes the first two of them only.
    """
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_PORT", "")
    try:
        service = urlsplit(port).hostname
    except ValueError:
        service = None
    if service is not None and service != host.strip("[]").lower():
        return ""
    is_one = "may be" if service is None else "is"
    return (
        f"{host} {is_one} the address of a Service, which answers only where a service proxy has "
        "written rules: give the API server's own address as KUBERNETES_SERVICE_HOST and "
        "KUBERNETES_SERVICE_PORT (in deploy/daemonset.yaml: ConfigMap pykubeproxy-api-server with "
        "the keys host and port, then restart the pod), or in a kubeconfig"
    )


def _in_cluster() -> Credentials:
    plain = plainconfig.in_cluster(_TOKEN_PATH, _CA_PATH)
    credentials: Credentials = plain or _package().in_cluster(_TOKEN_PATH, _CA_PATH)
    credentials.if_unreachable = advice_in_cluster(os.environ)
    return credentials


def _package() -> ModuleType:
    # Late: it takes as long to load as all else together, and most nodes do not need it.
    from pykubeproxy.watch import packageconfig

    return packageconfig
