"""What the stand-in API server is asked, what it can be told to answer, and how it says no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fakes.apistore import Object


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query


@dataclass
class Answer:
    """A scripted reply; *cut* ends the connection after that many bytes of the body."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    hang: bool = False  # send the body's bytes as a stream, then nothing, and stay open
    matches: Callable[[Request], bool] = lambda _: True


def status_body(code: int, reason: str, message: str, **more: Any) -> Object:
    metadata = more.pop("metadata", {})
    body = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure"}
    body |= {"message": message, "reason": reason, **more, "code": code}
    return body
