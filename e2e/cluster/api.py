"""The API servers that the daemon is tested against, behind one interface.

`StandIn` runs inside the lab's node namespace, on its loopback, and can be made to misbehave.
`RealCluster` is whatever a kubeconfig names, used as it is.

What could not be verified here, for lack of a cluster: every request that `RealCluster` makes
(namespaces, Services, EndpointSlices), and that a real server allows the endpoints' addresses.
`Relay`, which carries the daemon's connections out of the lab, is tested against the stand-in.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import yaml
from kubernetes import client, config

from e2e.lab import Lab
from pykubeproxy.model.objects import EndpointSlice, Service, WireObject
from tests.build import manifest, node
from tests.fakes.apiserver import FakeApiServer
from tests.fakes.apistore import BY_KIND, Object

__all__ = ["ApiUnderTest", "RealCluster", "Relay", "StandIn"]


class ApiUnderTest(Protocol):
    """All that a test may do with an API server which need not be a stand-in."""

    namespace: str
    """Where tests put their objects."""

    @property
    def kubeconfig(self) -> Path:
        """Good inside the node namespace."""

    def put(self, obj: WireObject) -> None:
        """Create or change an object; a Service without a cluster IP gets or keeps one."""

    def delete(self, obj: WireObject) -> None: ...

    def cluster_ip(self, name: str) -> str:
        """The address of a Service."""

    def close(self) -> None: ...


class StandIn:
    """`FakeApiServer` on 127.0.0.1 of the lab's node, with the Node object ``node``."""

    namespace = "default"

    def __init__(self, lab: Lab, directory: Path, user: dict[str, Any] | None = None) -> None:
        self.server = FakeApiServer()
        self.store = self.server.store
        self._lab = lab
        self._allocated = 9
        self.start()
        self.kubeconfig = self.server.write_kubeconfig(directory, user)
        self.put(node(zone="zone-a"))

    def start(self) -> None:
        """Serve; after `stop` on the same port as before."""
        self._lab.in_namespace("node", self.server.start)

    def stop(self) -> None:
        self.server.stop()

    def close(self) -> None:
        self.server.frozen.clear()
        self.server.stop()

    def put(self, obj: WireObject | Object) -> None:
        body = obj if isinstance(obj, dict) else manifest(obj)
        if isinstance(obj, Service) and not obj.spec.cluster_ip:
            body["spec"]["clusterIP"] = self._address_for(obj.metadata.name)
        self.store.put(body)

    def delete(self, obj: WireObject) -> None:
        self.store.delete(type(obj).__name__, obj.key.namespace, obj.key.name)  # type: ignore[union-attr]

    def cluster_ip(self, name: str) -> str:
        return str(self._known(name)["spec"]["clusterIP"])

    def _known(self, name: str) -> Object:
        return self.store.state(BY_KIND["Service"])[self.namespace, name]

    def _address_for(self, name: str) -> str:
        with contextlib.suppress(KeyError):
            return self.cluster_ip(name)
        self._allocated += 1
        return f"10.96.0.{self._allocated}"


class RealCluster:
    """A cluster named by a kubeconfig, in a namespace of its own that `close` removes.

    The lab's node is no node of it: the daemon runs without a Node object, beside whatever serves
    the cluster's nodes, and writes rules in the lab only.
    """

    def __init__(self, lab: Lab, directory: Path, kubeconfig: str) -> None:
        self._api = config.new_client_from_config(kubeconfig)
        self._core = client.CoreV1Api(self._api)
        self._slices = client.DiscoveryV1Api(self._api)
        self._relay = Relay(lab, directory, kubeconfig)
        self.kubeconfig = self._relay.kubeconfig
        body = {"metadata": {"generateName": "pykubeproxy-e2e-"}}
        self.namespace = str(self._core.create_namespace(body).metadata.name)

    def close(self) -> None:
        self._core.delete_namespace(self.namespace)
        self._relay.close()
        self._api.close()

    def put(self, obj: WireObject) -> None:
        name, body = obj.metadata.name, manifest(obj)
        body["metadata"].pop("creationTimestamp", None)
        match obj:
            case Service():
                create = self._core.create_namespaced_service
                change = self._core.patch_namespaced_service
            case EndpointSlice():
                create = self._slices.create_namespaced_endpoint_slice
                change = self._slices.patch_namespaced_endpoint_slice
            case _:
                raise TypeError(f"not an object to put into a real cluster: {obj}")
        try:
            create(self.namespace, body)
        except client.ApiException as error:
            if error.status != 409:
                raise
            change(name, self.namespace, body, _content_type="application/merge-patch+json")

    def delete(self, obj: WireObject) -> None:
        match obj:
            case Service():
                self._core.delete_namespaced_service(obj.metadata.name, self.namespace)
            case EndpointSlice():
                self._slices.delete_namespaced_endpoint_slice(obj.metadata.name, self.namespace)

    def cluster_ip(self, name: str) -> str:
        return str(self._core.read_namespaced_service(name, self.namespace).spec.cluster_ip)


class Relay:
    """Carries connections from 127.0.0.1 of the lab's node to a server that only we can reach.

    TLS passes through untouched: `kubeconfig` is a copy that names the relay as the server and the
    real one as ``tls-server-name``. Credential plugins run inside the lab, so those that need a
    network of their own do not work.
    """

    def __init__(self, lab: Lab, directory: Path, kubeconfig: str) -> None:
        self._listener: socket.socket = lab.in_namespace(
            "node", lambda: socket.create_server(("127.0.0.1", 0))
        )
        self._port = self._listener.getsockname()[1]
        self.kubeconfig = directory / "kubeconfig-relayed"
        self._target = self._write_kubeconfig(Path(kubeconfig))
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            _shut(sock)
        self._listener.close()

    def _write_kubeconfig(self, original: Path) -> tuple[str, int]:
        content = yaml.safe_load(original.read_text())
        for entry in (*content["clusters"], *content["users"]):
            part = entry.get("cluster") or entry.get("user") or {}
            for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile"):
                if key in part:
                    part[key] = os.path.join(original.resolve().parent, part[key])
        name = content["current-context"]
        context = next(c["context"] for c in content["contexts"] if c["name"] == name)
        cluster = next(c["cluster"] for c in content["clusters"] if c["name"] == context["cluster"])
        url = urlsplit(cluster["server"])
        assert url.hostname, cluster
        cluster.setdefault("tls-server-name", url.hostname)
        port = url.port or (443 if url.scheme == "https" else 80)
        cluster["server"] = f"{url.scheme}://127.0.0.1:{self._port}{url.path}"
        self.kubeconfig.touch(0o600)
        self.kubeconfig.write_text(yaml.safe_dump(content))
        return url.hostname, port

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            try:
                outer = socket.create_connection(self._target, timeout=60)
            except OSError:
                inner.close()
                continue
            outer.settimeout(None)
            self._open |= {inner, outer}
            for pair in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._carry, args=pair, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for sock in (source, sink):
            _shut(sock)
        # The other direction may still be in recv; it ends by the shutdown, and closes as well.
        self._open.discard(source)
        source.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
