"""Debian's Prometheus on the node of a lab, set up by our example and asked through its API."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

import yaml

from e2e.kernel.running import eventually
from e2e.lab import Lab, stop
from e2e.lab.fetch import fetch
from e2e.monitoring.files import MONITORING, RULES

__all__ = ["Prometheus", "QueryFailed", "Sample", "configuration"]

PORT = 9095
INTERVAL = "200ms"
POD = {
    "__meta_kubernetes_pod_label_k8s_app": "pykubeproxy",
    "__meta_kubernetes_pod_container_init": "false",
    "__meta_kubernetes_pod_ip": "127.0.0.1",
    "__meta_kubernetes_pod_node_name": "node",
    "__meta_kubernetes_pod_name": "pykubeproxy-x2x4x",
}
"""What its discovery would tell about the daemon on the lab's node."""


class QueryFailed(Exception):
    """Prometheus does not understand a query."""


class Sample(NamedTuple):
    """One element of an instant vector."""

    labels: dict[str, str]
    value: float


def configuration(rules: Sequence[Path] = ()) -> str:
    """Our example, with shorter intervals, and with *rules* besides ours.

    Debian builds Prometheus without the discovery of Kubernetes: its place is taken by what it
    would have found.
    """
    content = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    content["global"] = {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL}
    content["rule_files"] = [str(RULES), *map(str, rules)]
    (job,) = content["scrape_configs"]
    del job["kubernetes_sd_configs"]
    job["static_configs"] = [{"targets": ["unknown"], "labels": POD}]
    return str(yaml.safe_dump(content))


class Prometheus:
    """Scrapes the daemon on the node of *lab* five times a second, and judges by our rules."""

    def __init__(
        self,
        lab: Lab,
        directory: Path,
        rules: Sequence[Path] = (),
        *flags: str,
        port: int = PORT,
    ) -> None:
        """*rules* are rule files besides ours; another one in the same lab has another *port*."""
        self._lab = lab
        self._flags = flags
        self._port = port
        self._directory = directory
        self._log = directory / "prometheus.log"
        self._config = directory / "prometheus.yml"
        self._config.write_text(configuration(rules))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = self._lab.start(
                "node",
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._directory / 'tsdb'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                    *self._flags,
                ],
                output=log,
                cwd=self._directory,
            )
        try:
            eventually(self._is_ready, "Prometheus is ready", 30)
        except AssertionError as error:
            error.add_note(self._log.read_text())
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            stop(self._process)

    def _is_ready(self) -> bool:
        try:
            return fetch(self._lab, "/-/ready", self._port).status == 200
        except OSError:
            return False

    def query(self, text: str) -> list[Sample]:
        """Evaluate *text* now.

        Raises:
            QueryFailed: it cannot be; with what Prometheus says about it.
        """
        result = self._ask(f"/api/v1/query?{urlencode({'query': text})}")
        if result["resultType"] == "scalar":
            return [Sample({}, float(result["result"][1]))]
        return [Sample(one["metric"], float(one["value"][1])) for one in result["result"]]

    def value(self, text: str) -> float:
        """The sum of all that *text* gives; not a number where it gives nothing."""
        samples = self.query(text)
        return sum(sample.value for sample in samples) if samples else math.nan

    def names(self) -> set[str]:
        """All metrics that were ever seen."""
        names: list[str] = self._ask("/api/v1/label/__name__/values")
        return set(names)

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with ``health`` and ``lastError`` of their evaluation."""
        groups = self._ask("/api/v1/rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self, name: str) -> list[dict[str, Any]]:
        """The alerts of the rule *name* that are pending or firing."""
        found: list[dict[str, Any]] = self._ask("/api/v1/alerts")["alerts"]
        return [alert for alert in found if alert["labels"]["alertname"] == name]

    def scrapes(self) -> int:
        """How often the daemon was scraped, well or not."""
        return int(self.value('sum(count_over_time(up{job="kube-proxy"}[1h])) or vector(0)'))

    def scrape_again(self) -> None:
        """Return once all that is true now has been seen."""
        before = self.scrapes()
        eventually(lambda: self.scrapes() >= before + 2, "two more scrapes")

    def _ask(self, path: str) -> Any:
        response = fetch(self._lab, path, self._port)
        answer = json.loads(response.body)
        if answer["status"] != "success":
            raise QueryFailed(answer["error"])
        return answer["data"]
