"""Who we are to the API server, and how it is reached.

The `kubernetes` package reads kubeconfig files and the in-cluster environment: contexts, exec and
auth-provider plugins, client certificates, TLS verification, proxies. Two things it does not do
are done here, because a node proxy runs for months: a kubeconfig ``tokenFile`` is read once and
never again (KubeConfigLoader, kubernetes 37), and the in-cluster loader re-reads its file but
neither strips a trailing newline nor survives the moment the file is empty.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
import yaml
from kubernetes.client import Configuration
from kubernetes.config import ConfigException
from kubernetes.config.incluster_config import (
    SERVICE_CERT_FILENAME,
    SERVICE_TOKEN_FILENAME,
    InClusterConfigLoader,
)
from kubernetes.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from pykubeproxy.errors import ConfigError, WatchDenied

__all__ = ["Credentials", "TokenFile", "anonymous", "from_kubeconfig", "in_cluster", "loader_for"]

log = structlog.get_logger(__name__)

# The package's accessors fail in their own ways on odd documents; a UnicodeDecodeError and bad
# base64 are ValueErrors.
_UNUSABLE = (
    *(ConfigException, OSError, yaml.YAMLError),
    *(TypeError, KeyError, AttributeError, IndexError, ValueError),
)


class TokenFile:
    """A bearer token in a file that somebody else rotates.

    Read for every request, which is a few times a minute. While the file is missing or empty (a
    rotation in progress) the last good token serves, as in client-go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = ""

    def read(self) -> str:
        """Return the token.

        Raises:
            WatchDenied: no token could be read so far.
        """
        try:
            token = self.path.read_text("utf-8").strip()
            reason = "is empty"
        except (OSError, UnicodeDecodeError) as error:
            token, reason = "", f"cannot be read: {error}"
        if token:
            self._last = token
        elif not self._last:
            raise WatchDenied(f"token file {self.path} {reason}; mount or write it, then wait")
        return self._last


class Credentials:
    """A loaded configuration: where the server is, how to trust it, and what to present to it."""

    def __init__(
        self,
        configuration: Configuration,
        description: str,
        token_file: TokenFile | None = None,
        missing: str | None = None,
    ) -> None:
        self.configuration = configuration
        self.server = str(configuration.host).rstrip("/")
        self.description = description
        self._token_file = token_file
        self._missing = missing
        self._lock = threading.Lock()

    def authorization(self) -> str | None:
        """The Authorization header for a request made now; ``None`` where none is needed.

        Renews an exec or OIDC token that is about to expire, so this may run a program.

        Raises:
            WatchDenied: a token file or plugin that should give a credential gave none.
        """
        if self._token_file is not None:
            return f"Bearer {self._token_file.read()}"
        if self._missing is not None:
            raise WatchDenied(self._missing)
        # The hook behind this call rewrites the configuration it is given; one thread at a time.
        with self._lock:
            try:
                return self.configuration.get_api_key_with_prefix("BearerToken", "authorization")
            except (ConfigException, OSError) as error:
                raise WatchDenied(f"{self.description} cannot be renewed: {error}") from error


def loader_for(
    kubeconfig: str | None, master: str | None, context: str | None = None
) -> Callable[[], Credentials]:
    """Choose as kube-proxy does: a kubeconfig, else a bare ``--master``, else the pod's own.

    The result loads afresh at each call: kubeconfig files are replaced and exec plugins answer
    differently after a 401.
    """
    if kubeconfig:
        return lambda: from_kubeconfig(kubeconfig, context, master)
    if master:
        return lambda: anonymous(master)
    return lambda: in_cluster()


def anonymous(master: str) -> Credentials:
    """No credential at all, to the server at *master* (a URL)."""
    configuration = Configuration()
    _set_server(configuration, master)
    return Credentials(configuration, "no credential (only --master was given)")


def in_cluster(
    token_path: str = SERVICE_TOKEN_FILENAME, ca_path: str = SERVICE_CERT_FILENAME
) -> Credentials:
    """The service account of the pod we run in.

    Raises:
        ConfigError: we do not run in a pod, or no token is mounted.
    """
    configuration = Configuration()
    loader = InClusterConfigLoader(token_path, ca_path, try_refresh_token=False)  # type: ignore[no-untyped-call]  # the package's loaders are not annotated
    try:
        loader.load_and_set(configuration)  # type: ignore[no-untyped-call]  # as above
    except (ConfigException, OSError) as error:
        problem = f"not given, and no service account is usable: {error}"
        raise ConfigError("--kubeconfig", problem) from error
    description = f"the service account token in {token_path}"
    return Credentials(configuration, description, TokenFile(Path(token_path)))


def from_kubeconfig(
    path: str, context: str | None = None, master: str | None = None
) -> Credentials:
    """The user and cluster of a kubeconfig's *context* (default: its current one).

    *path* may be several files joined by ``:``. *master* replaces the server URL only: trust
    settings and user stay those of the context.

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
        _set_server(configuration, master)
    if not configuration.host:
        raise ConfigError("--kubeconfig", f"{path}: the cluster of {context_name} has no server")
    token_file = _token_file(user)
    missing = None
    if token_file is not None:
        what = f"the token file {token_file.path}"
    elif user is not None and "exec" in user.value:
        command = user.value["exec"].get("command", "?")
        what = f"the exec plugin {command}"
        if not configuration.api_key and not configuration.cert_file:
            # The loader logs a plugin's failure and goes on without a credential.
            missing = f"{what} of user {user_name} in {path} gave no credential; run it by hand"
    elif configuration.api_key:
        what = "the token"
    elif configuration.cert_file:
        what = "the client certificate"
    else:
        what = "no credential"
    return Credentials(configuration, f"{what} of user {user_name} in {path}", token_file, missing)


def _set_server(configuration: Configuration, master: str) -> None:
    url = master if "://" in master else f"http://{master}"  # as client-go reads a bare host:port
    configuration.host = url.rstrip("/")


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
