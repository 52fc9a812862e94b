"""The daemon as a process on the lab's node, fed by an API server."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from e2e.kernel.running import MACHINES_CONNTRACK, REPOSITORY, RunningDaemon, eventually
from e2e.lab import Answer, Lab
from e2e.lab.addresses import CLUSTER_CIDR
from e2e.lab.fetch import fetch

__all__ = ["ApiDaemon", "eventually"]

HEALTH_PORT = 10256
METRICS_PORT = 10249


class ApiDaemon(RunningDaemon):
    """`RunningDaemon` with ``--kubeconfig`` in place of manifests."""

    def __init__(
        self,
        lab: Lab,
        kubeconfig: Path,
        directory: Path,
        *flags: str,
        variant: str = "nft",
        path: Path | None = None,
    ) -> None:
        if not any(flag.startswith("--cluster-cidr") for flag in flags):  # repeated, they add up
            flags = (*flags, f"--cluster-cidr={','.join(CLUSTER_CIDR.values())}")
        super().__init__(lab, variant, directory, *flags, path=path)
        self._kubeconfig = kubeconfig

    def serving_flags(self) -> tuple[str, ...]:
        return (
            "--proxy-mode=iptables",
            f"--iptables-variant={self.variant}",
            "--hostname-override=node",
            MACHINES_CONNTRACK,
            f"--kubeconfig={self._kubeconfig}",
            f"--state-directory={self.log.parent / 'state'}",
            "-v=2",
            *self._flags,
        )

    def start(self, wait: bool = True) -> None:
        """Start it and, unless told not to *wait*, let both families sync once."""
        before = self._passes()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(*self.serving_flags()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=self._environment,
            )
        if wait:
            eventually(
                lambda: (
                    all(now > then for now, then in zip(self._passes(), before, strict=True))
                    or self._ended()
                ),
                "a first sync",
                60,  # half of it may go by in wait of a Node object
            )
            assert not self._ended(), self.text()

    def _passes(self) -> tuple[int, int]:
        text = self.text()
        return tuple(len(re.findall(f" synced family=IPv{n} ", text)) for n in (4, 6))  # type: ignore[return-value]

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    # --- what it did ---

    def transactions(self) -> int:
        """How many times a restore tool was run for it, told once no change waits any more."""
        eventually(self._settled, "all that was asked for is written")
        return int(sum(value for _, value in self._metric("pykubeproxy_transactions_total")))

    def _settled(self) -> bool:
        stem = "kubeproxy_sync_proxy_rules_last"
        queued = dict(self._metric(f"{stem}_queued_timestamp_seconds"))
        written = dict(self._metric(f"{stem}_timestamp_seconds"))
        return all(written.get(family, 0) >= since for family, since in queued.items())

    def _metric(self, name: str) -> list[tuple[str, float]]:
        page = fetch(self.lab, "/metrics", METRICS_PORT).body
        return [
            (sample.labels.get("ip_family", ""), sample.value)
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == name
        ]

    def rules(self) -> dict[str, list[str]]:
        """Everything in the tables it writes to, in both families."""
        return {
            f"{table} {family}": sorted(self.saved(table, family))
            for table in ("nat", "filter", "mangle")
            for family in (4, 6)
        }

    def answered_by(self, address: str, sender: str = "p3", port: int = 80) -> str:
        """The pod that answers at *address*, or how it failed."""
        reply = self.lab.probe(sender, address, port)
        return reply.server if isinstance(reply, Answer) else reply.value
