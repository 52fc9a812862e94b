"""A node in the lab as an operator watches it: API, daemon and Prometheus, and what may happen."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from e2e.cluster.api import StandIn
from e2e.cluster.objects import pod, put_web, web, web_slice
from e2e.cluster.process import HEALTH_PORT, ApiDaemon
from e2e.kernel.running import eventually
from e2e.lab import Lab
from e2e.lab.fetch import fetch
from e2e.monitoring.prometheus import Prometheus
from tests.build import manifest, node, port, service, slice_, slice_port

__all__ = ["Scene"]

TOOL = "iptables-nft-restore"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
DNS = "10.96.0.53"
WATCHED = ("services", "endpointslices", "nodes")
FLAGS = ("--iptables-sync-period=1s", "--iptables-min-sync-period=20ms")


class Scene:
    """A daemon with some Services, scraped all the time.

    Its iptables-restore refuses all that is about the Service ``default/bad``, and is killed at
    work while `armed` exists.
    """

    def __init__(self, directory: Path, rules: Sequence[Path] = (), *flags: str) -> None:
        """*rules* are rule files besides ours, *flags* go to the daemon."""
        self._parts = contextlib.ExitStack()
        self._directory = directory
        self._rules = rules
        self._flags = (*FLAGS, *flags)
        self.armed = directory / "armed"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as parts:
            self.lab = parts.enter_context(Lab())
            self.api = StandIn(self.lab, self._directory)
            parts.callback(self.api.close)
            self.daemon = ApiDaemon(
                self.lab, self.api.kubeconfig, self._directory, *self._flags, path=self._tools()
            )
            self.bad = web(self.api, "bad")
            self.web = put_web(self.api, "p1")
            self._put_dns("p1")
            self._put_load_balancer()
            self.prometheus = parts.enter_context(
                Prometheus(self.lab, self._directory, self._rules)
            )
            parts.callback(self.daemon.stop)
            self.daemon.start()
            eventually(self.is_watched, "watches")
            self._parts = parts.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._parts.close()

    def _tools(self) -> Path:
        tools = self._directory / "bin"
        tools.mkdir()
        tool = tools / TOOL
        tool.write_text(
            f"""#!/bin/sh
            input=$(mktemp {self._directory}/input.XXXXXX)
            trap 'rm -f $input' EXIT
            cat >$input
            if [ -e {self.armed} ]; then kill -9 $$; fi
            if grep -q default/bad $input; then echo "{TOOL}: line 1 failed" >&2; exit 1; fi
            /usr/sbin/{TOOL} "$@" <$input
            """
        )
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
        return tools

    # --- what happens on a node ---

    def everyday_life(self) -> None:
        """Probes come, endpoints of TCP and UDP move and move back."""
        for path in ("/healthz", "/livez"):
            fetch(self.lab, path, HEALTH_PORT)
        for name in ("p2", "p1"):
            self.move_web(name)
            self.lab.probe("client", DNS, 53, "UDP")  # a flow to the endpoint that leaves
            self._put_dns(name)
            self.prometheus.scrape_again()

    def move_web(self, name: str) -> None:
        """Change the endpoint of the Service, with the time as the control plane stamps it."""
        body = manifest(web_slice(self.api, name))
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        body["metadata"]["annotations"] = {TRIGGER_TIME: now}
        self.api.put(body)
        eventually(lambda: self.daemon.answered_by(self.web) == name, f"{name} answers")

    def move_web_somewhere(self) -> None:
        """Change its endpoint; nobody says that the kernel takes it."""
        self.api.put(web_slice(self.api, "p3"))

    def change_everything(self) -> None:
        """Something of each kind, so that every watch has something to say."""
        self.api.put(node(zone="zone-b"))
        put_web(self.api, "p1", name="newest")

    def refuse_a_service(self, name: str = "bad") -> None:
        """*name* begins with "bad"."""
        put_web(self.api, "p1", name=name)
        says = ("service quarantined", f"service=default/{name} ")
        eventually(lambda: self.daemon.says(*says), "a refusal")

    def flush(self) -> None:
        """Remove all rules, as another program would, and let them be written again."""
        seen = self.prometheus.value("sum(pykubeproxy_repairs_total) or vector(0)")
        for table in ("mangle", "nat", "filter"):
            for what in ("-F", "-X"):
                self.lab.run("node", "iptables-nft", "-t", table, what)
        eventually(
            lambda: self.prometheus.value("sum(pykubeproxy_repairs_total)") > seen, "a repair"
        )
        eventually(lambda: self.daemon.answered_by(self.web) != "timeout", "served again")

    def expire_history(self) -> None:
        """Have every watch end, and what came since be forgotten: all is listed anew."""
        listed = self._lists()
        self.move_web("p2")
        self.move_web("p1")
        self.api.store.compact()
        self.api.server.end_watches()
        eventually(lambda: self._lists() > listed, "a list")
        eventually(self.is_watched, "watches")

    def is_watched(self) -> bool:
        """Whether the daemon follows everything."""
        server = self.api.server
        with server.changed:
            paths = [watch.path for watch in server._watches]
        return all(any(f"/{kind}?" in path for path in paths) for kind in WATCHED)

    def _lists(self) -> int:
        return self.api.server.count(
            lambda r: (
                "endpointslices" in r.path and ("sendInitialEvents" in r.query or not r.is_watch)
            )
        )

    def _put_dns(self, name: str) -> None:
        self.api.put(service("dns", cluster_ip=DNS, ports=[port(53, "dns", "UDP")]))
        self.api.put(slice_("dns", pod(name), ports=[slice_port(8080, "dns", "UDP")]))

    def _put_load_balancer(self) -> None:
        put_web(
            self.api,
            "r1",
            name="balanced",
            type="LoadBalancer",
            ports=[port(80, "http", node_port=30080)],
            external_policy="Local",
            health_check_node_port=30500,
        )
