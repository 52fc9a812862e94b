"""An API without sockets: hands out prepared answers and remembers what was asked."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from pykubeproxy.errors import WatchError
from pykubeproxy.watch.resources import Resource


def service(name: str, version: int = 1, port: Any = 80) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "default", "resourceVersion": str(version)},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port, "protocol": "TCP"}]},
    }


def line(kind: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode()


def added(name: str, version: int, port: Any = 80) -> bytes:
    return line("ADDED", service(name, version, port))


def deleted(name: str, version: int) -> bytes:
    return line("DELETED", service(name, version))


def bookmark(version: int, end: bool = False) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if end:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return line("BOOKMARK", {"metadata": metadata})


def failure(code: int, reason: str = "", message: str = "no", **more: Any) -> bytes:
    return line(
        "ERROR", {"kind": "Status", "code": code, "reason": reason, "message": message, **more}
    )


def listing(*items: dict[str, Any], version: int = 10, token: str = "") -> bytes:
    metadata = {"resourceVersion": str(version)} | ({"continue": token} if token else {})
    return json.dumps({"kind": "ServiceList", "metadata": metadata, "items": items}).encode()


class ScriptedStream:
    """Lines, and then an end: a clean one, or *ending* is raised."""

    def __init__(self, *lines: bytes, ending: WatchError | None = None) -> None:
        self.lines = lines
        self.ending = ending
        self.read_seconds: list[float] = []
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield from self.lines
        if self.ending is not None:
            raise self.ending

    def set_read_seconds(self, seconds: float) -> None:
        self.read_seconds.append(seconds)

    def close(self) -> None:
        self.closed = True


class ScriptedApi:
    server = "https://api.test"

    def __init__(self, *answers: bytes | ScriptedStream | WatchError) -> None:
        self.answers = deque(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def list(self, resource: Resource, query: Mapping[str, str]) -> Iterator[bytes]:
        answer = self._next("list", query)
        assert isinstance(answer, bytes), f"a list was asked, {answer} prepared: {self.asked}"
        return iter([answer])

    def watch(
        self, resource: Resource, query: Mapping[str, str], read_seconds: float = 150.0
    ) -> ScriptedStream:
        answer = self._next("watch", query)
        assert isinstance(answer, ScriptedStream), f"a watch was asked: {self.asked}"
        return answer

    def close(self) -> None:
        """Nothing is open."""

    def _next(self, verb: str, query: Mapping[str, str]) -> bytes | ScriptedStream:
        self.asked.append((verb, dict(query)))
        answer = self.answers.popleft()
        if isinstance(answer, WatchError):
            raise answer
        return answer
