"""Chooses where credentials come from, as kube-proxy does, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from pykubeproxy.watch import plainconfig
from pykubeproxy.watch.credentials import Credentials

__all__ = ["loader_for"]

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
    return lambda: (
        plainconfig.in_cluster(_TOKEN_PATH, _CA_PATH)
        or _package().in_cluster(_TOKEN_PATH, _CA_PATH)
    )


def _package() -> ModuleType:
    # Late: it takes as long to load as all else together, and most nodes do not need it.
    from pykubeproxy.watch import packageconfig

    return packageconfig
