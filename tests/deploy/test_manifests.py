"""Every manifest is what a kube-apiserver takes, and its parts fit each other and the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pykubeproxy import __version__
from pykubeproxy.cli import configure
from pykubeproxy.config import Command, Config
from pykubeproxy.model.objects import Kind
from pykubeproxy.supply import WATCHED
from pykubeproxy.watch.resources import EVENTS, RESOURCES, Resource
from tests.deploy.manifests import DEPLOY, OVERLAYS, Object, kustomized, load, the

KUBERNETES = "1.36"
PLAIN = DEPLOY / "daemonset.yaml"
SETS = {
    "daemonset.yaml": load(PLAIN),
    **{f"overlays/{name}": kustomized(DEPLOY / "overlays" / name) for name in OVERLAYS},
}
every_set = pytest.mark.parametrize("objects", SETS.values(), ids=SETS)

# Of Kubernetes itself. Others come with whoever serves them, and are checked by their own tests.
CORE = [
    pytest.param(manifest, id=f"{name} {manifest['kind']}")
    for name, objects in (
        *SETS.items(),
        *((f"monitoring/{path.name}", load(path)) for path in DEPLOY.glob("monitoring/*.yaml")),
    )
    for manifest in objects
    if "kind" in manifest
    and not manifest["apiVersion"].startswith(("monitoring.coreos.com", "kustomize"))
]

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")


def pod(objects: list[Object]) -> Object:
    spec: Object = the(objects, "DaemonSet")["spec"]["template"]["spec"]
    return spec


def containers(objects: list[Object]) -> list[Object]:
    return [*pod(objects)["initContainers"], *pod(objects)["containers"]]


def main_container(objects: list[Object]) -> Object:
    [container] = pod(objects)["containers"]
    assert isinstance(container, dict)
    return container


def config_text(objects: list[Object]) -> str:
    return str(the(objects, "ConfigMap")["data"]["config.conf"])


def configured(objects: list[Object], directory: Path, container: Object) -> Config:
    """What the program makes of a container's arguments and its configuration file."""
    [mount] = [m for m in container["volumeMounts"] if m["name"] == "config"]
    [item] = the_volume(objects, "config")["configMap"]["items"]
    file = directory / item["path"]
    file.write_text(config_text(objects))
    arguments = [
        argument.replace(f"{mount['mountPath']}/{item['path']}", str(file)).replace(
            "$(NODE_NAME)", "node-1"
        )
        for argument in container["args"]
    ]
    assert f"--config={file}" in arguments
    config = configure(arguments)
    assert config is not None
    return config


def the_volume(objects: list[Object], name: str) -> Object:
    [found] = [volume for volume in pod(objects)["volumes"] if volume["name"] == name]
    assert isinstance(found, dict)
    return found


# --- what the API server looks at --------------------------------------------------------------


@pytest.mark.parametrize("manifest", CORE)
def test_a_manifest_has_the_schema_of_its_kind(manifest: Object) -> None:
    assert KUBERNETES == kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_misspelled_field_would_be_found() -> None:
    [daemon_set] = [o for o in load(PLAIN) if o["kind"] == "DaemonSet"]
    daemon_set["spec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(daemon_set, KUBERNETES, strict=True)


@every_set
def test_no_two_objects_are_one(objects: list[Object]) -> None:
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert sorted(set(names), key=str) == sorted(names, key=str)


@every_set
def test_names_are_valid(objects: list[Object]) -> None:
    names = [o["metadata"]["name"] for o in objects]
    names += [part["name"] for part in (*containers(objects), *pod(objects)["volumes"])]
    assert [] == [name for name in names if not DNS_LABEL.fullmatch(name)]
    assert [] == [
        port["name"]
        for port in main_container(objects)["ports"]
        if not PORT_NAME.fullmatch(port["name"])
    ]


@every_set
@pytest.mark.parametrize("list_of", ["ports", "env", "volumeMounts"])
def test_nothing_is_named_twice_in_a_container(objects: list[Object], list_of: str) -> None:
    for container in containers(objects):
        for key in ("name", "containerPort", "mountPath"):
            values = [entry[key] for entry in container.get(list_of, ()) if key in entry]
            assert sorted(set(values)) == sorted(values), container["name"]


@every_set
def test_ports_of_a_pod_on_the_host_network_are_the_hosts(objects: list[Object]) -> None:
    assert pod(objects)["hostNetwork"] is True
    for port in main_container(objects)["ports"]:
        assert port["containerPort"] == port["hostPort"], port["name"]


@every_set
def test_the_selector_matches_the_pods(objects: list[Object]) -> None:
    spec = the(objects, "DaemonSet")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()


@every_set
def test_an_argument_uses_variables_of_its_container_only(objects: list[Object]) -> None:
    for container in containers(objects):
        used = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
        assert used <= {variable["name"] for variable in container["env"]}, container["name"]


@every_set
def test_a_privileged_container_claims_nothing_that_contradicts_it(objects: list[Object]) -> None:
    for container in containers(objects):
        security = container["securityContext"]
        if security["privileged"]:
            assert "capabilities" not in security
            assert security.get("allowPrivilegeEscalation", True)


# --- what refers to what -----------------------------------------------------------------------


@every_set
def test_the_role_is_bound_to_the_account_of_the_pods(objects: list[Object]) -> None:
    account = the(objects, "ServiceAccount")["metadata"]
    binding = the(objects, "ClusterRoleBinding")
    subject = {"kind": "ServiceAccount", **{k: account[k] for k in ("name", "namespace")}}
    assert [subject] == binding["subjects"]
    assert the(objects, "ClusterRole")["metadata"]["name"] == binding["roleRef"]["name"]
    daemon_set = the(objects, "DaemonSet")
    assert account["namespace"] == daemon_set["metadata"]["namespace"]
    assert account["name"] == pod(objects)["serviceAccountName"]


@every_set
def test_volumes_are_mounted_and_mounts_are_volumes(objects: list[Object]) -> None:
    volumes = {volume["name"] for volume in pod(objects)["volumes"]}
    mounted = {m["name"] for c in containers(objects) for m in c["volumeMounts"]}
    assert volumes == mounted


@every_set
def test_the_configuration_that_is_mounted_is_the_one_that_is_there(objects: list[Object]) -> None:
    config_map = the(objects, "ConfigMap")
    source = the_volume(objects, "config")["configMap"]
    assert config_map["metadata"]["name"] == source["name"]
    assert {item["key"] for item in source["items"]} == set(config_map["data"])
    assert pod_namespace(objects) == config_map["metadata"]["namespace"]


def pod_namespace(objects: list[Object]) -> str:
    return str(the(objects, "DaemonSet")["metadata"]["namespace"])


@every_set
def test_the_address_of_the_api_server_may_be_given_and_need_not(objects: list[Object]) -> None:
    sources = {
        variable["name"]: variable["valueFrom"]["configMapKeyRef"]
        for variable in main_container(objects)["env"]
        if "configMapKeyRef" in variable["valueFrom"]
    }
    name = "pykubeproxy-api-server"
    assert {
        "KUBERNETES_SERVICE_HOST": {"name": name, "key": "host", "optional": True},
        "KUBERNETES_SERVICE_PORT": {"name": name, "key": "port", "optional": True},
    } == sources


# --- what the program makes of it --------------------------------------------------------------


@every_set
@pytest.mark.parametrize(
    ("number", "command"), [(0, Command.INIT), (1, Command.RUN)], ids=["init", "main"]
)
def test_arguments_and_configuration_load_without_a_word(
    objects: list[Object], number: int, command: Command, tmp_path: Path
) -> None:
    container = containers(objects)[number]
    assert ["pykubeproxy"] == container["command"]
    config = configured(objects, tmp_path, container)
    assert (command, "node-1", ()) == (config.command, config.node_name, config.notices)


@every_set
def test_ports_and_probes_meet_the_servers(objects: list[Object], tmp_path: Path) -> None:
    config = configured(objects, tmp_path, main_container(objects))
    ports = {port["name"]: port["containerPort"] for port in main_container(objects)["ports"]}
    assert config.healthz_address is not None
    assert {
        "healthz": config.healthz_address[1],
        "metrics": config.metrics_address[1],
    } == ports
    # The kubelet's probes and Prometheus come to the node's address.
    assert {"0.0.0.0"} == {config.healthz_address[0], config.metrics_address[0]}


@every_set
def test_probes_ask_for_this_process_and_never_for_the_node(objects: list[Object]) -> None:
    container = main_container(objects)
    paths = {
        probe: (container[probe]["httpGet"]["path"], container[probe]["httpGet"]["port"])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert {
        "startupProbe": ("/livez", "healthz"),
        "livenessProbe": ("/livez", "healthz"),
        "readinessProbe": ("/readyz", "healthz"),
    } == paths
    assert "/healthz" not in {path for path, _ in paths.values()}
    # A wait for the node's pod CIDRs ends by itself, with its reason, and before the kubelet does.
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 330


@every_set
def test_images_are_of_this_version(objects: list[Object]) -> None:
    assert {f"pykubeproxy:{__version__}"} == {c["image"] for c in containers(objects)}


def test_the_role_has_what_is_requested_and_no_more() -> None:
    """What is really requested, with the server refusing all else: e2e/cluster/test_rights.py."""

    def rights(resource: Resource, *verbs: str) -> set[tuple[str, str, str]]:
        return {(resource.group, resource.plural, verb) for verb in verbs}

    expected = rights(EVENTS, "create", "patch")
    for kind in WATCHED:
        expected |= rights(RESOURCES[kind], "list", "watch")
    rules = the(load(PLAIN), "ClusterRole")["rules"]
    assert {frozenset(("apiGroups", "resources", "verbs"))} == {frozenset(r) for r in rules}
    granted = [
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]
    assert sorted(expected) == sorted(granted)
    assert Kind.SERVICE_CIDR not in WATCHED


# --- privileges --------------------------------------------------------------------------------


@every_set
def test_only_the_init_container_is_privileged(objects: list[Object]) -> None:
    privileged = {c["name"]: c["securityContext"]["privileged"] for c in containers(objects)}
    assert {"init": True, "pykubeproxy": False} == privileged


@every_set
def test_the_main_container_has_the_networks_rights_and_no_others(objects: list[Object]) -> None:
    security = main_container(objects)["securityContext"]
    assert {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]} == security["capabilities"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert "RuntimeDefault" == pod(objects)["securityContext"]["seccompProfile"]["type"]


def test_every_capability_has_its_reason_beside_it() -> None:
    lines = PLAIN.read_text().splitlines()
    start = next(n for n, line in enumerate(lines) if line.strip() == "add:")
    added = [n for n in range(start, start + 12) if re.match(r"\s+- [A-Z_]+$", lines[n])]
    assert 2 == len(added)
    assert [] == [lines[n] for n in added if not lines[n - 1].strip().startswith("#")]


# plugin/pkg/admission/serviceaccount of Kubernetes: what it adds to a pod, but for the name.
TOKEN_VOLUME = {
    "defaultMode": 0o644,
    "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {
            "configMap": {
                "name": "kube-root-ca.crt",
                "items": [{"key": "ca.crt", "path": "ca.crt"}],
            }
        },
        {
            "downwardAPI": {
                "items": [
                    {
                        "path": "namespace",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                    }
                ]
            }
        },
    ],
}


@every_set
def test_the_token_is_mounted_as_everywhere_and_by_the_main_container_alone(
    objects: list[Object],
) -> None:
    assert pod(objects)["automountServiceAccountToken"] is False
    assert the(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    [volume] = [volume for volume in pod(objects)["volumes"] if "projected" in volume]
    assert TOKEN_VOLUME == volume["projected"]
    mounts = {
        container["name"]: mount
        for container in containers(objects)
        for mount in container["volumeMounts"]
        if mount["name"] == volume["name"]
    }
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    mount = {"name": volume["name"], "mountPath": path, "readOnly": True}
    assert {"pykubeproxy": mount} == mounts


@every_set
def test_nothing_of_the_node_is_writable_but_state_and_lock(objects: list[Object]) -> None:
    paths = {
        volume["name"]: volume["hostPath"]["path"]
        for volume in pod(objects)["volumes"]
        if "hostPath" in volume
    }
    writable = {
        mount["mountPath"]: paths[mount["name"]]
        for container in containers(objects)
        for mount in container["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert {path: path for path in ("/run/pykubeproxy", "/run/xtables.lock")} == writable


# --- life --------------------------------------------------------------------------------------


@every_set
def test_it_runs_on_every_linux_node_before_the_pods_that_need_it(objects: list[Object]) -> None:
    spec = pod(objects)
    assert [{"operator": "Exists"}] == spec["tolerations"]
    assert "linux" == spec["nodeSelector"]["kubernetes.io/os"]
    assert "system-node-critical" == spec["priorityClassName"]
    assert ("kube-system", "kube-system") == (
        pod_namespace(objects),
        the(objects, "ServiceAccount")["metadata"]["namespace"],
    )


@every_set
def test_an_update_takes_the_old_pod_away_first(objects: list[Object]) -> None:
    strategy = the(objects, "DaemonSet")["spec"]["updateStrategy"]
    assert "RollingUpdate" == strategy["type"]
    # Two cannot have the node's ports, and no nodes at a time would be refused.
    assert 0 == strategy["rollingUpdate"]["maxSurge"]
    assert strategy["rollingUpdate"]["maxUnavailable"] not in (0, "0%")


@every_set
def test_memory_and_cpu_are_asked_for_and_not_limited(objects: list[Object]) -> None:
    for container in containers(objects):
        assert {"requests"} == set(container["resources"]), container["name"]
        assert {"cpu", "memory"} == set(container["resources"]["requests"])


# --- overlays ----------------------------------------------------------------------------------


def test_kustomize_has_the_same_manifests() -> None:
    copy = DEPLOY / "base" / "daemonset.yaml"
    assert PLAIN.read_bytes() == copy.read_bytes(), f"cp {PLAIN} {copy}"
    assert load(PLAIN) == SETS["overlays/iptables"]


def test_the_overlay_for_ipvs_changes_the_mode_alone(tmp_path: Path) -> None:
    plain, ipvs = SETS["daemonset.yaml"], SETS["overlays/ipvs"]
    assert "ipvs" == configured(ipvs, tmp_path, main_container(ipvs)).mode
    assert "iptables" == configured(plain, tmp_path, main_container(plain)).mode
    ours, theirs = (dict(yaml.safe_load(config_text(objects))) for objects in (plain, ipvs))
    assert {"mode", "ipvs"} == {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    assert without_config(plain) == without_config(ipvs)


def without_config(objects: list[Object]) -> list[Object]:
    return [o for o in objects if o["kind"] != "ConfigMap"]


def test_the_overlay_for_a_migration_chooses_nodes_that_kube_proxy_leaves() -> None:
    plain, migrate = SETS["daemonset.yaml"], SETS["overlays/migrate"]
    assert [] == list(differences(plain, migrate, ("nodeSelector",)))
    chosen = pod(migrate)["nodeSelector"].items() - pod(plain)["nodeSelector"].items()
    [patch] = load(DEPLOY / "overlays" / "migrate" / "keep-kube-proxy-away.yaml")
    affinity = patch["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    [term] = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    [left] = term["matchExpressions"]
    assert "NotIn" == left["operator"]
    assert chosen == {(left["key"], value) for value in left["values"]}


def differences(one: Any, other: Any, but: tuple[str, ...], path: str = "") -> Iterator[str]:
    """Paths at which two documents differ, except below keys of these names."""
    if path.rpartition(".")[2] in but:
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from differences(one.get(key), other.get(key), but, f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, but, f"{path}[{number}]")
    elif one != other:
        yield path


def test_the_patch_for_kube_proxy_fits_a_daemon_set() -> None:
    [patch] = load(DEPLOY / "overlays" / "migrate" / "keep-kube-proxy-away.yaml")
    container = {"name": "kube-proxy", "image": "registry.k8s.io/kube-proxy:v1.36.2"}
    template = patch["spec"]["template"]
    template["metadata"] = {"labels": {"k8s-app": "kube-proxy"}}
    template["spec"]["containers"] = [container]
    daemon_set = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy"},
        "spec": {"selector": {"matchLabels": {"k8s-app": "kube-proxy"}}, "template": template},
    }
    assert KUBERNETES == kubernetes_validate.validate(daemon_set, KUBERNETES, strict=True)
