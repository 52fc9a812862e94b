"""The recorded exchanges with a real kube-apiserver 1.36.2, as raw bytes to serve again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_DIRECTORY = Path(__file__).parent / "recordings"
NAMES = tuple(sorted(path.stem for path in _DIRECTORY.glob("*.json")))


@dataclass(frozen=True)
class Recording:
    name: str
    method: str
    target: str
    status: int
    headers: dict[str, str]
    body: Any  # parsed JSON, or text, or None for a stream
    lines: tuple[Any, ...]  # the events of a stream, without its end

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query

    def raw(self) -> bytes:
        """The response's body as it was on the wire."""
        if self.is_watch:
            return b"".join(_dump(line) + b"\n" for line in self.lines)
        return self.body.encode() if isinstance(self.body, str) else _dump(self.body)


def load(name: str) -> Recording:
    content = json.loads((_DIRECTORY / f"{name}.json").read_text())
    request, response = content["request"], content["response"]
    lines = tuple(
        step["line"] for step in response.get("stream", ()) if isinstance(step["line"], dict)
    )
    return Recording(
        name,
        request["method"],
        request["path"],
        response["status"],
        response["headers"],
        response.get("body"),
        lines,
    )


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
