"""The run's order and arguments, against stand-ins: no engine is needed, and none is proven."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import yaml

from e2e.kind.__main__ import main
from e2e.kind.cluster import for_kind
from e2e.kind.programs import KindError
from e2e.kind.versions import NODE_IMAGE

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]


class StandIns:
    """The three programs on PATH, and what was asked of them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls = directory / "calls"
        self._monkeypatch = monkeypatch
        for name in ("docker", "kind", "kubectl"):
            program = directory / name
            program.write_text(
                f"#!{sys.executable} -BIS\n"
                f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
                f"from e2e.kind.stand_in import main\nmain({name!r})\n"
            )
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        monkeypatch.setenv("CALLS", str(self._calls))
        self.play("iptables", "dual")

    def play(self, mode: str, family: str, fail_on: str = "") -> None:
        for name, value in {"MODE": mode, "FAMILY": family, "FAIL_ON": fail_on}.items():
            self._monkeypatch.setenv(name, value)

    @property
    def calls(self) -> list[str]:
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [re.sub(r" --kubeconfig=\S+", "", " ".join(json.loads(line))) for line in lines]

    def positions(self, *patterns: str) -> list[int]:
        """Where the first call is that fits each pattern; what does not come is an error."""
        calls = self.calls
        found = []
        for pattern in patterns:
            places = [i for i, call in enumerate(calls) if re.search(pattern, call)]
            assert places, f"no call fits {pattern!r}: {calls}"
            found.append(places[0])
        return found


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return StandIns(tmp_path, monkeypatch)


@pytest.mark.parametrize(("mode", "family"), [("iptables", "dual"), ("ipvs", "ipv4")])
def test_every_step_is_taken_in_its_order(stand_ins: StandIns, mode: str, family: str) -> None:
    stand_ins.play(mode, family)
    assert 0 == main([mode, f"--family={family}"])
    name = f"pykubeproxy-{mode}-{family}"
    positions = stand_ins.positions(
        "^kind version$",
        f"^docker build --tag=pykubeproxy:0.1.0 {REPOSITORY}$",
        "^docker run --rm --read-only --cap-drop=ALL pykubeproxy:0.1.0 --version$",
        rf"^kind create cluster --name={name} --image={NODE_IMAGE} --config={HERE}/{family}\.yaml",
        f"^kind load docker-image pykubeproxy:0.1.0 --name={name}$",
        "^kubectl --namespace=kube-system create configmap pykubeproxy-api-server "
        f"--from-literal=host={name}-control-plane --from-literal=port=6443$",
        f"^kubectl kustomize {REPOSITORY}/deploy/overlays/{mode}$",
        "^kubectl apply --filename=-$",
        "^kubectl --namespace=kube-system rollout status daemonset/pykubeproxy ",
        "^kubectl --namespace=kube-system rollout status deployment/coredns ",
        "^kubectl --namespace=proxy-test create configmap scripts .*client.py .*server.py$",
        "^kubectl --namespace=proxy-test rollout status deployment/web ",
        "client.py resolve web.proxy-test.svc.cluster.local$",
        r"client.py ask http://10\.96\.5\.5 60$",
        r"client.py ask http://172\.18\.0\.3:30080 60$",
        "client.py ask http://web-sticky",
        r"client.py ask http://172\.18\.0\.3:10249/proxyMode 1$",
        "client.py go-on http://web.proxy-test.svc.cluster.local /tmp/stop$",
    )
    assert sorted(positions) == positions
    restarts = stand_ins.positions(
        "rollout restart daemonset/pykubeproxy$", "rollout restart deployment/web$", "/tmp/stop'"
    )
    assert sorted(restarts) == restarts
    assert f"kind delete cluster --name={name}" == stand_ins.calls[-1]
    asked_over_ipv6 = any("ask http://[fd00:10:96::5]" in call for call in stand_ins.calls)
    assert (family == "dual") is asked_over_ipv6


def test_without_a_mode_each_has_its_cluster(
    stand_ins: StandIns, capfd: pytest.CaptureFixture[str]
) -> None:
    # The stand-in says iptables whatever was asked for, so the second one fails.
    stand_ins.play("iptables", "ipv4")
    assert 1 == main(["--family=ipv4"])
    created = [call.split()[3] for call in stand_ins.calls if call.startswith("kind create")]
    assert ["--name=pykubeproxy-iptables-ipv4", "--name=pykubeproxy-ipvs-ipv4"] == created
    said = capfd.readouterr()
    assert "passed: iptables mode, ipv4" in said.out
    assert "says iptables, want ipvs" in said.err


@pytest.mark.parametrize(
    ("fail_on", "shown"),
    [
        pytest.param("rollout status daemonset/pykubeproxy", True, id="rollout"),
        pytest.param("resolve web-headless", True, id="name resolution"),
        pytest.param("go-on", True, id="a client in the background"),
        pytest.param("kind create", False, id="no cluster"),
    ],
)
def test_a_failure_is_named_shown_and_cleaned_up(
    stand_ins: StandIns, capfd: pytest.CaptureFixture[str], fail_on: str, shown: bool
) -> None:
    stand_ins.play("iptables", "dual", fail_on)
    assert 1 == main(["iptables"])
    said = capfd.readouterr().err
    assert "failed: " in said
    assert "the stand-in was told to fail" in said
    assert shown is any("logs --selector=k8s-app=pykubeproxy" in call for call in stand_ins.calls)
    assert "kind delete cluster --name=pykubeproxy-iptables-dual" == stand_ins.calls[-1]


def test_a_wrong_answer_is_a_failure(
    stand_ins: StandIns, capfd: pytest.CaptureFixture[str]
) -> None:
    stand_ins.play("ipvs", "dual")
    assert 1 == main(["iptables"])
    assert "says ipvs, want iptables" in capfd.readouterr().err


def test_programs_that_are_missing_are_named_with_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert 1 == main([])
    said = capsys.readouterr().err
    assert "kind is not installed: go install sigs.k8s.io/kind@v0.32.0" in said
    assert "docker is not installed: https://" in said


def test_an_unknown_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["nftables"])
    assert 2 == end.value.code
    assert "unknown mode nftables: want iptables or ipvs" in capsys.readouterr().err


# --- what is applied -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "pod_network"),
    [("ipv4", "10.244.0.0/16"), ("dual", "10.244.0.0/16,fd00:10:244::/56")],
)
def test_only_the_configuration_is_changed_for_kind(family: str, pod_network: str) -> None:
    text = (REPOSITORY / "deploy/daemonset.yaml").read_text()
    before, after = (list(yaml.safe_load_all(t)) for t in (text, for_kind(text, family)))
    assert [(d["kind"], d["metadata"]["name"]) for d in before] == [
        (d["kind"], d["metadata"]["name"]) for d in after
    ]
    (changed,) = (new for old, new in zip(before, after, strict=True) if old != new)
    configuration = yaml.safe_load(changed["data"]["config.conf"])
    assert pod_network == configuration["clusterCIDR"]
    assert 0 == configuration["conntrack"]["maxPerCore"]


def test_manifests_without_a_configuration_are_refused() -> None:
    with pytest.raises(KindError, match=r"0 of 1 manifests have a config\.conf"):
        for_kind("kind: Service\n", "ipv4")


@pytest.mark.parametrize("family", ["ipv4", "dual"])
def test_the_cluster_has_no_proxy_of_its_own_and_two_workers(family: str) -> None:
    cluster = yaml.safe_load((HERE / f"{family}.yaml").read_text())
    assert "none" == cluster["networking"]["kubeProxyMode"]
    assert ["control-plane", "worker", "worker"] == [node["role"] for node in cluster["nodes"]]


def test_the_workload_runs_the_image_that_is_tested() -> None:
    documents = list(yaml.safe_load_all((HERE / "workload.yaml").read_text()))
    images = {
        (container["image"], container["imagePullPolicy"])
        for document in documents
        if "template" in document["spec"]
        for container in document["spec"]["template"]["spec"]["containers"]
    }
    assert {("pykubeproxy:0.1.0", "Never")} == images
