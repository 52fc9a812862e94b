"""Credentials as the `kubernetes` package reads them: every kind there is.

It knows contexts, exec and auth-provider plugins, client certificates, TLS verification, proxies.
Two things it does not do are done here, because a node proxy runs for months: a kubeconfig
``tokenFile`` is read once and never again (KubeConfigLoader, kubernetes 37), and the in-cluster
loader re-reads its file but neither strips a trailing newline nor survives the moment the file is
empty.

Loading the package takes 0.3 s of CPU and 20 MB, so `login` asks `plainconfig` first.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import structlog
import urllib3
import yaml
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import InClusterConfigLoader
from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from pykubeproxy.errors import ConfigError, WatchDenied
from pykubeproxy.watch.credentials import Credentials, SocketOptions, TokenFile, unbracketed

__all__ = ["anonymous", "from_kubeconfig", "in_cluster"]

log = structlog.get_logger(__name__)

# The package's accessors fail in their own ways on odd documents; a UnicodeDecodeError and bad
# base64 are ValueErrors.
_UNUSABLE = (
    *(ConfigException, OSError, yaml.YAMLError),
    *(TypeError, KeyError, AttributeError, IndexError, ValueError),
)


class _Configured:
    """A configuration of the package; safe to use from several threads."""

    def __init__(
        self, configuration: Configuration, description: str, missing: str | None = None
    ) -> None:
        self._configuration = configuration
        self._description = description
        self._missing = missing
        self._lock = threading.Lock()

    def make_pool(self, options: SocketOptions) -> urllib3.PoolManager:
        self._configuration.socket_options = options
        client = RESTClientObject(self._configuration)
        pool: urllib3.PoolManager = client.pool_manager
        return pool

    def authorization(self) -> str | None:
        if self._missing is not None:
            raise WatchDenied(self._missing)
        # The hook behind this call rewrites the configuration it is given; one thread at a time.
        with self._lock:
            try:
                return self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
            except (ConfigException, OSError) as error:
                raise WatchDenied(f"{self._description} cannot be renewed: {error}") from error


def anonymous(master: str) -> Credentials:
    """No credential at all, to the server at *master* (a URL)."""
    configuration = Configuration()
    configuration.host = master
    return _credentials(configuration, "no credential (only --master was given)")


def in_cluster(token_path: str, ca_path: str) -> Credentials:
    """The service account of the pod we run in.

    Raises:
        ConfigError: we do not run in a pod, or no token is mounted.
    """
    configuration = Configuration()
    environment = dict(os.environ)
    if "KUBERNETES_SERVICE_HOST" in environment:
        # The package puts brackets around whatever has a colon.
        environment["KUBERNETES_SERVICE_HOST"] = unbracketed(environment["KUBERNETES_SERVICE_HOST"])
    loader = InClusterConfigLoader(token_path, ca_path, False, environment)  # type: ignore[no-untyped-call]  # the package's loaders are not annotated
    try:
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]  # as above
    except (ConfigException, OSError) as error:
        problem = f"not given, and no service account is usable: {error}"
        raise ConfigError("--kubeconfig", problem) from error
    description = f"the service account token in {token_path}"
    return _credentials(configuration, description, TokenFile(Path(token_path)))


def from_kubeconfig(
    path: str, context: str | None = None, master: str | None = None
) -> Credentials:
    """The user and cluster of a kubeconfig's *context* (default: its current one).

    *path* may be several files joined by ``:``. *master*, a URL, replaces that of the server only:
    trust settings and user stay those of the context.

    Raises:
        ConfigError: a file is missing or wrong.
    """
    for part in filter(None, path.split(os.pathsep)):
        if not os.path.exists(os.path.expanduser(part)):
            raise ConfigError("--kubeconfig", f"{part} does not exist")
    configuration = Configuration()
    try:
        merger = KubeConfigMerger(path)  # type: ignore[no-untyped-call]  # as above
        loader = KubeConfigLoader(  # type: ignore[no-untyped-call]  # as above
            config_dict=merger.config,
            active_context=context,
            config_base_path=None,
            config_persister=lambda: _persist(merger),
        )
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]  # as above
        context_name, user_name, user = _user(merger.config, context)
    except _UNUSABLE as error:
        raise ConfigError("--kubeconfig", f"{path}: {error}") from error
    if master:
        configuration.host = master
    if not configuration.host:
        raise ConfigError("--kubeconfig", f"{path}: the cluster of {context_name} has no server")
    token_file = _token_file(user)
    missing = None
    plugin_worked = None
    if token_file is not None:
        what = f"the token file {token_file.path}"
    elif user is not None and "exec" in user.value:
        command = user.value["exec"].get("command", "?")
        what = f"the exec plugin {command}"
        plugin_worked = True
        if not configuration.api_key and not configuration.cert_file:
            plugin_worked = False
            # The loader logs a plugin's failure and goes on without a credential.
            missing = f"{what} of user {user_name} in {path} gave no credential; run it by hand"
    elif configuration.api_key:
        what = "the token"
    elif configuration.cert_file:
        what = "the client certificate"
    else:
        what = "no credential"
    description = f"{what} of user {user_name} in {path}"
    credentials = _credentials(configuration, description, token_file, missing)
    credentials.plugin_worked = plugin_worked
    return credentials


def _credentials(
    configuration: Configuration,
    description: str,
    token_file: TokenFile | None = None,
    missing: str | None = None,
) -> Credentials:
    configured = _Configured(configuration, description, missing)
    return Credentials(
        str(configuration.host).rstrip("/"),
        description,
        configured.make_pool,
        configured.authorization if token_file is None else token_file.authorization,
    )


def _user(config: ConfigNode, context: str | None) -> tuple[str, str, ConfigNode | None]:
    """Names of the context and user, and the user's own mapping with the file it stands in."""
    name = context or config["current-context"]
    chosen = config["contexts"].get_with_name(name)["context"]
    user_name = chosen.safe_get("user")
    if not user_name:
        return name, "(none)", None
    entry = config["users"].get_with_name(user_name, safe=True)
    return name, user_name, entry["user"] if entry else None


def _token_file(user: ConfigNode | None) -> TokenFile | None:
    if user is None or not user.value.get("tokenFile"):
        return None
    # Relative to the kubeconfig, and before `token` where both are there: clientcmd/api/types.go.
    return TokenFile(Path(os.path.abspath(user.path)).parent / str(user.value["tokenFile"]))


def _persist(merger: KubeConfigMerger) -> None:
    """Keep a refreshed OIDC token where the next start finds it, if the file may be written."""
    try:
        merger.save_changes()  # type: ignore[no-untyped-call]  # as above
    except OSError as error:
        log.info("kubeconfig not updated with the refreshed token", reason=str(error))
