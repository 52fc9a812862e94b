"""One cluster: made, tested from pods, deleted. Its steps stand in `serve_and_test` in order."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from msgspec import Struct

from e2e.kind.programs import KindError, Kubectl, run
from e2e.kind.versions import NODE_IMAGE

__all__ = ["FAMILIES", "IMAGE", "MODES", "build_image", "serve_and_test"]

MODES = ("iptables", "ipvs")
FAMILIES = ("ipv4", "dual")
IMAGE = "pykubeproxy:0.1.0"

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[1]
_NAMESPACE = "proxy-test"
_PYTHON = "/opt/pykubeproxy/bin/python"
_NODE_PORT = 30080
_SERVERS = 3
_STOP = "/tmp/stop"

_LOOK_AT = (
    ("get", "pods", "--all-namespaces", "--output=wide"),
    ("get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"),
    ("--namespace=kube-system", "describe", "daemonset", "pykubeproxy"),
    (
        *("--namespace=kube-system", "logs", "--selector=k8s-app=pykubeproxy", "--all-containers"),
        *("--prefix", "--tail=60"),
    ),
)


class Client(Struct, frozen=True):
    """A pod that connects, and its node's addresses."""

    pod: str
    node_addresses: tuple[str, ...]


def build_image() -> None:
    """The image, and that it runs: read-only and without any right."""
    run("docker", "build", f"--tag={IMAGE}", str(_REPOSITORY), seconds=1800, loud=True)
    said = run("docker", "run", "--rm", "--read-only", "--cap-drop=ALL", IMAGE, "--version")
    _expect(said.startswith("pykubeproxy 0.1.0 "), f"--version says {said.strip()!r}")
    size = int(run("docker", "image", "inspect", "--format={{.Size}}", IMAGE))
    print(f"image: {said.strip()}, {size / 1e6:.1f} MB", file=sys.stderr)


def serve_and_test(mode: str, family: str, *, keep: bool = False) -> None:
    """Make a cluster whose proxy is ours in *mode*, test it, delete it (unless *keep*).

    Raises:
        KindError: what failed; the state of the cluster was printed before it was deleted.
    """
    with TemporaryDirectory(prefix="pykubeproxy-kind-") as directory:
        kubeconfig = Path(directory, "kubeconfig")
        if keep:
            kubeconfig = Path.cwd() / f"kubeconfig-{mode}-{family}"
        with _cluster(f"pykubeproxy-{mode}-{family}", family, kubeconfig, keep) as name:
            kubectl = Kubectl(kubeconfig)
            try:
                _deploy(kubectl, name, mode, family)
                _start_workload(kubectl)
                clients = _clients(kubectl)
                _test_services(kubectl, clients, family)
                _test_mode(kubectl, clients, mode)
                _test_roll_over(kubectl, clients)
            except KindError:
                _show_state(kubectl)
                raise


@contextmanager
def _cluster(name: str, family: str, kubeconfig: Path, keep: bool) -> Iterator[str]:
    # One that an earlier run was not allowed to delete would answer for this one.
    run("kind", "delete", "cluster", f"--name={name}")
    try:
        run(
            *("kind", "create", "cluster", f"--name={name}", f"--image={NODE_IMAGE}"),
            *(f"--config={_HERE / family}.yaml", f"--kubeconfig={kubeconfig}", "--wait=180s"),
            seconds=900,
            loud=True,
        )
        run("kind", "load", "docker-image", IMAGE, f"--name={name}")
        yield name
    finally:
        if keep:
            print(f"kept: KUBECONFIG={kubeconfig}; kind delete cluster --name={name}")
        else:
            run("kind", "delete", "cluster", f"--name={name}")


# --- deploying -----------------------------------------------------------------------------------


def _deploy(kubectl: Kubectl, name: str, mode: str, family: str) -> None:
    # Nobody serves the Service "kubernetes" yet; the node's own resolver knows the container.
    kubectl(
        *("--namespace=kube-system", "create", "configmap", "pykubeproxy-api-server"),
        *(f"--from-literal=host={name}-control-plane", "--from-literal=port=6443"),
    )
    overlay = kubectl("kustomize", str(_REPOSITORY / "deploy/overlays" / mode))
    kubectl("apply", "--filename=-", input=for_kind(overlay, family))
    for workload in ("daemonset/pykubeproxy", "deployment/coredns"):
        _rolled_out(kubectl, "kube-system", workload)


def for_kind(manifests: str, family: str) -> str:
    """The manifests with what is true of every kind cluster in the configuration file.

    Its nodes are containers, in which the size of the conntrack table cannot be written (kind's
    own kube-proxy is told the same), and its pod network is known.
    """
    cluster = yaml.safe_load((_HERE / f"{family}.yaml").read_text())
    documents = [found for found in yaml.safe_load_all(manifests) if found]
    changed = 0
    for document in documents:
        if document["kind"] == "ConfigMap" and "config.conf" in document.get("data", {}):
            configuration = yaml.safe_load(document["data"]["config.conf"])
            configuration["clusterCIDR"] = cluster["networking"]["podSubnet"]
            configuration.setdefault("conntrack", {})["maxPerCore"] = 0
            document["data"]["config.conf"] = yaml.safe_dump(configuration)
            changed += 1
    _expect(changed == 1, f"{changed} of {len(documents)} manifests have a config.conf, want 1")
    return yaml.safe_dump_all(documents)


def _start_workload(kubectl: Kubectl) -> None:
    kubectl("create", "namespace", _NAMESPACE)
    scripts = [f"--from-file={path}" for path in sorted((_HERE / "inside").glob("*.py"))]
    kubectl(f"--namespace={_NAMESPACE}", "create", "configmap", "scripts", *scripts)
    kubectl(f"--namespace={_NAMESPACE}", "apply", f"--filename={_HERE / 'workload.yaml'}")
    for workload in ("deployment/web", "daemonset/client"):
        _rolled_out(kubectl, _NAMESPACE, workload)


def _rolled_out(kubectl: Kubectl, namespace: str, workload: str) -> None:
    kubectl(f"--namespace={namespace}", "rollout", "status", workload, "--timeout=240s")


def _clients(kubectl: Kubectl) -> list[Client]:
    nodes: Any = kubectl.json("get", "nodes")
    addresses = {
        node["metadata"]["name"]: tuple(
            found["address"]
            for found in node["status"]["addresses"]
            if found["type"] == "InternalIP"
        )
        for node in nodes["items"]
    }
    pods: Any = kubectl.json(f"--namespace={_NAMESPACE}", "get", "pods", "--selector=app=client")
    clients = [
        Client(pod["metadata"]["name"], addresses[pod["spec"]["nodeName"]]) for pod in pods["items"]
    ]
    _expect(len(clients) == 2, f"{len(clients)} clients, want one on each of two workers")
    return clients


# --- testing -------------------------------------------------------------------------------------


def _test_services(kubectl: Kubectl, clients: list[Client], family: str) -> None:
    service: Any = kubectl.json(f"--namespace={_NAMESPACE}", "get", "service", "web")
    cluster_ips = service["spec"]["clusterIPs"]
    _expect(len(cluster_ips) == (2 if family == "dual" else 1), f"cluster IPs: {cluster_ips}")
    for client in clients:
        suffix = f"{_NAMESPACE}.svc.cluster.local"
        resolved = _script(kubectl, client, "resolve", f"web.{suffix}")
        _expect(sorted(cluster_ips) == resolved, f"DNS says {resolved} for web, not {cluster_ips}")
        pods = _script(kubectl, client, "resolve", f"web-headless.{suffix}")
        _expect(len(pods) == _SERVERS, f"DNS says {pods} for web-headless, want {_SERVERS} pods")
        targets = [("by its name", f"http://web.{suffix}", 20)]
        targets += [("by its cluster IP", f"http://{_host(ip)}", 60) for ip in cluster_ips]
        targets += [
            ("by a node port", f"http://{_host(ip)}:{_NODE_PORT}", 60)
            for other in clients
            for ip in other.node_addresses
        ]
        for how, url, count in targets:
            servers = _answers(_script(kubectl, client, "ask", url, str(count)), f"{how}, {url}")
            # All of three in 20 tries: once in a thousand runs they are not.
            _expect(count < 60 or len(servers) == _SERVERS, f"{how}: only {servers} answered")
        sticky = _script(kubectl, client, "ask", f"http://web-sticky.{suffix}", "20")
        servers = _answers(sticky, "session affinity")
        _expect(len(servers) == 1, f"session affinity: {servers} answered, want one server")


def _test_mode(kubectl: Kubectl, clients: list[Client], mode: str) -> None:
    for client in clients:
        url = f"http://{_host(client.node_addresses[0])}:10249/proxyMode"
        (said,) = _answers(_script(kubectl, client, "ask", url, "1"), url)
        _expect(said == mode, f"{url} says {said}, want {mode}")


def _test_roll_over(kubectl: Kubectl, clients: list[Client]) -> None:
    """Every daemon is replaced, then every server; nobody who connects meanwhile notices."""
    url = f"http://web.{_NAMESPACE}.svc.cluster.local"
    with ExitStack() as stack:
        running = []
        for client in clients:
            process = stack.enter_context(kubectl.start(*_exec(client, "go-on", url, _STOP)))
            stack.callback(process.kill)
            running.append(process)
        for namespace, workload in (
            ("kube-system", "daemonset/pykubeproxy"),
            (_NAMESPACE, "deployment/web"),
        ):
            kubectl(f"--namespace={namespace}", "rollout", "restart", workload)
            _rolled_out(kubectl, namespace, workload)
        touch = f"open({_STOP!r}, 'w').close()"
        for client in clients:
            kubectl(f"--namespace={_NAMESPACE}", "exec", client.pod, "--", _PYTHON, "-c", touch)
        for process in running:
            _answers(json.loads(_end(process)), "while everything was replaced")


def _end(process: subprocess.Popen[str]) -> str:
    try:
        stdout, stderr = process.communicate(timeout=60)
    except subprocess.TimeoutExpired as error:
        raise KindError("a client did not end when it was told to") from error
    if process.returncode:
        raise KindError(f"a client ended with {process.returncode}: {stderr}")
    return stdout


def _exec(client: Client, *arguments: str) -> tuple[str, ...]:
    command = (_PYTHON, "/scripts/client.py", *arguments)
    return (f"--namespace={_NAMESPACE}", "exec", client.pod, "--", *command)


def _script(kubectl: Kubectl, client: Client, *arguments: str) -> Any:
    return json.loads(kubectl(*_exec(client, *arguments)))


def _answers(found: dict[str, Any], what: str) -> list[str]:
    """Who answered; a failure, or nobody, is an error."""
    _expect(not found["failures"], f"{what}: {len(found['failures'])} failed: {found['failures']}")
    _expect(bool(found["answers"]), f"{what}: nobody was asked")
    return sorted(found["answers"])


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise KindError(otherwise)


def _show_state(kubectl: Kubectl) -> None:
    """What somebody would look at first, before the cluster is deleted."""
    for arguments in _LOOK_AT:
        try:
            print(kubectl(*arguments), file=sys.stderr)
        except KindError as error:
            print(error, file=sys.stderr)
