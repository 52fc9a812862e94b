"""The daemon as the pod of a DaemonSet runs it, without a container engine.

Arguments, configuration files, environment, capabilities and the files of the service account are
those of the manifests, at the paths where a pod has them: in a mount namespace of its own, on top
of /run and /var/lib, so that nothing of this machine is seen or changed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from e2e.cluster.api import StandIn
from e2e.cluster.process import ApiDaemon
from e2e.kernel.running import REPOSITORY
from e2e.lab import Lab
from e2e.lab.addresses import CLUSTER_CIDR, NODE_NAME
from e2e.lab.confinement import confined
from tests import kubeadm
from tests.deploy.manifests import DEPLOY, Object, kustomized, load, the
from tests.fakes.apirights import Rights
from tests.fakes.apiserver import certificate_authority

__all__ = [
    "NODE_PROXIER",
    "ROLE",
    "SERVICE_ADDRESS",
    "USER",
    "DeployedDaemon",
    "KubeadmsDaemon",
    "with_rights",
]

ROLE: Object = the(load(DEPLOY / "daemonset.yaml"), "ClusterRole")
_ACCOUNT = the(load(DEPLOY / "daemonset.yaml"), "ServiceAccount")["metadata"]
USER = f"system:serviceaccount:{_ACCOUNT['namespace']}:{_ACCOUNT['name']}"
TOKEN = "token-of-the-account"
SERVICE_ADDRESS = "10.96.0.1"
"""Of the Service ``kubernetes``, in every pod's environment."""

_ACCOUNT_PATH = Path("/run/secrets/kubernetes.io/serviceaccount")
_ENTER = """
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mkdir -p /run/pykubeproxy "$2"
mount --bind "$1/config" "$2"
mount --bind "$1/state" /run/pykubeproxy
if [ "$3" ]; then mkdir -p "$3"; mount --bind "$1/account" "$3"; fi
touch /run/xtables.lock
shift 3
exec "$@"
"""


def with_rights(api: StandIn, role: Object) -> Rights:
    """Let the service account do at *api* what *role* says, and refuse everything else."""
    rights = Rights(role)
    api.server.tokens = {TOKEN: USER}
    api.server.rights = {USER: rights}
    return rights


class PodDaemon(ApiDaemon):
    """A daemon with a pod's files and environment. *config_path* is where its configuration is."""

    def __init__(self, lab: Lab, api: StandIn, directory: Path, config_path: str) -> None:
        super().__init__(lab, api.kubeconfig, directory)
        self._config_path = config_path
        self._place = directory / "pod"
        for name in ("account", "config", "state"):
            (self._place / name).mkdir(parents=True)
        self.rotate_token(TOKEN)
        self.trust(certificate_authority().cert_pem.bytes())
        self.find_server_at(SERVICE_ADDRESS, 443)

    def find_server_at(self, host: str, port: int) -> None:
        """Where the environment says that the API server is."""
        self._environment |= {
            "NODE_NAME": NODE_NAME,
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": str(port),
            "KUBERNETES_PORT": f"tcp://{SERVICE_ADDRESS}:443",
        }

    def rotate_token(self, token: str) -> None:
        (self._place / "account" / "token").write_text(token)

    def trust(self, authority: bytes) -> None:
        (self._place / "account" / "ca.crt").write_bytes(authority)

    def configure(self, text: str, name: str = "config.conf") -> None:
        (self._place / "config" / name).write_text(text)

    def configuration(self) -> str:
        return (self._place / "config" / "config.conf").read_text()

    def _entered(self, account: Path | None) -> list[str]:
        """Within the pod's files; those of the service account at *account*, or not at all."""
        enter = ["unshare", "--mount", "--propagation=private", "sh", "-ec", _ENTER, "sh"]
        places = [str(self._place), self._config_path, str(account or "")]
        return self.lab.argv("node", [*enter, *places])

    def _program(self, arguments: list[str]) -> list[str]:
        expanded = [
            re.sub(r"\$\((\w+)\)", lambda match: self._environment[match[1]], argument)
            for argument in arguments
        ]
        return [sys.executable, "-m", "pykubeproxy", *expanded]


class DeployedDaemon(PodDaemon):
    """The containers of *overlay*; each start is that of a pod, with its init container first."""

    def __init__(self, lab: Lab, api: StandIn, directory: Path, overlay: str = "iptables") -> None:
        super().__init__(lab, api, directory, "/var/lib/pykubeproxy")
        objects = kustomized(DEPLOY / "overlays" / overlay)
        self._pod = the(objects, "DaemonSet")["spec"]["template"]["spec"]
        [self.init_container] = self._pod["initContainers"]
        [self.container] = self._pod["containers"]
        cidrs = ",".join(CLUSTER_CIDR.values())
        text = the(objects, "ConfigMap")["data"]["config.conf"]
        self.configure(
            text.replace('clusterCIDR: ""', f"clusterCIDR: {cidrs}")
            # The table's size belongs to the machine.
            + "conntrack: {maxPerCore: 0}\n"
        )
        # As the ConfigMap pykubeproxy-api-server says it.
        self.find_server_at("127.0.0.1", api.server.port)

    def start(self, wait: bool = True) -> None:
        done = subprocess.run(
            [
                *self._entered(self._account_of(self.init_container)),
                *self._program(self.init_container["args"]),
            ],
            capture_output=True,
            cwd=REPOSITORY,
            env=self._environment,
            check=False,
            timeout=60,
        )
        assert 0 == done.returncode, done.stderr.decode()
        self.start_container(wait)

    def start_container(self, wait: bool = True) -> None:
        """As the kubelet does when it ended by itself: its init container does not run again."""
        super().start(wait)

    def argv(self, *flags: str) -> list[str]:
        security = self.container["securityContext"]
        assert ["ALL"] == security["capabilities"]["drop"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        mounts = self.container["volumeMounts"]
        writable = [Path(mount["mountPath"]) for mount in mounts if not mount.get("readOnly")]
        program = self._program(self.container["args"])
        added = security["capabilities"]["add"]
        account = self._account_of(self.container)
        readable = [account] if account else []
        return [*self._entered(account), *confined(program, added, writable, readable)]

    def _account_of(self, container: Object) -> Path | None:
        """Where *container* has the files of the service account, if it has them."""
        if self._pod["automountServiceAccountToken"]:
            return _ACCOUNT_PATH
        [volume] = [volume["name"] for volume in self._pod["volumes"] if "projected" in volume]
        for mount in container["volumeMounts"]:
            if mount["name"] == volume:
                # /var/run is a link to /run, here as in the image.
                return Path("/run") / Path(mount["mountPath"]).relative_to("/var/run")
        return None


class KubeadmsDaemon(PodDaemon):
    """The DaemonSet kube-proxy of a cluster that kubeadm made, with the image changed."""

    ARGUMENTS = ("--config=/var/lib/kube-proxy/config.conf", "--hostname-override=$(NODE_NAME)")

    def __init__(self, lab: Lab, api: StandIn, directory: Path) -> None:
        super().__init__(lab, api, directory, "/var/lib/kube-proxy")
        config = (
            kubeadm.CONFIG.replace("10.244.0.0/16", ",".join(CLUSTER_CIDR.values()))
            .replace("maxPerCore: null", "maxPerCore: 0")  # the size belongs to the machine
            .replace("verbosity: 0", "verbosity: 2")  # where a first sync is told
        )
        self.configure(config)
        self.configure(_KUBEADMS_KUBECONFIG.format(server=api.server.url), "kubeconfig.conf")

    def argv(self, *flags: str) -> list[str]:
        return [*self._entered(_ACCOUNT_PATH), *self._program(list(self.ARGUMENTS))]


_KUBEADMS_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: {server}
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
"""

_EVENTS = ("create", "update", "patch")
NODE_PROXIER: Object = {
    "rules": [
        {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
        for group, resource, verbs in (
            ("", "services", ("list", "watch")),
            ("", "endpoints", ("list", "watch")),
            ("", "nodes", ("get", "list", "watch")),
            ("", "events", _EVENTS),
            ("events.k8s.io", "events", _EVENTS),
            ("discovery.k8s.io", "endpointslices", ("list", "watch")),
            ("networking.k8s.io", "servicecidrs", ("list", "watch")),
        )
    ]
}
"""ClusterRole ``system:node-proxier``, which every cluster has for kube-proxy."""
