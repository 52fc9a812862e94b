"""What the HTTP servers say, as values: no socket in here.

Bodies, headers and status codes are kube-proxy's, since load balancers and probes parse them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus

import msgspec
from msgspec import Struct

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.serve.status import Instant, Status

__all__ = ["NOT_FOUND", "Answer", "health", "http_bytes", "plain", "service_health"]

_NOSNIFF = ("X-Content-Type-Options", "nosniff")
_JSON = (("Content-Type", "application/json"), _NOSNIFF)
_TEXT = (("Content-Type", "text/plain; charset=utf-8"), _NOSNIFF)
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


class Answer(Struct, frozen=True):
    """An HTTP response; the server adds Date and Content-Length."""

    code: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def plain(text: str, code: int = HTTPStatus.OK) -> Answer:
    return Answer(code, text.encode(), _TEXT)


NOT_FOUND = plain("404 page not found\n", HTTPStatus.NOT_FOUND)


def health(status: Status, now: Instant, with_node: bool) -> Answer:
    """Answer ``/healthz`` (*with_node*: a node that leaves is not fit) or ``/livez``."""
    healthy = status.is_healthy(now)
    good = healthy and (status.node_eligible or not with_node)
    last = now if good else status.last_updated()
    body: dict[str, object] = {"lastUpdated": _time(last), "currentTime": _time(now)}
    if with_node:
        body["nodeEligible"] = status.node_eligible
    body["healthy"] = healthy
    if status.families:
        body["status"] = {
            family.value: {
                "lastUpdated": _time(known.updated),
                "healthy": status.family_is_healthy(family, now),
            }
            for family, known in sorted(status.families.items())
        }
    return Answer(_code(good), msgspec.json.encode(body), _JSON)


def service_health(key: ServiceKey, local_endpoints: int, proxy_healthy: bool) -> Answer:
    """Answer a load balancer's question at a healthCheckNodePort."""
    body = msgspec.json.encode(
        {
            "service": {"namespace": key.namespace, "name": key.name},
            "localEndpoints": local_endpoints,
            "serviceProxyHealthy": proxy_healthy,
        }
    )
    return Answer(
        _code(local_endpoints != 0 and proxy_healthy),
        _tabbed(body),
        (*_JSON, ("X-Load-Balancing-Endpoint-Weight", str(local_endpoints))),
    )


def http_bytes(answer: Answer, head_only: bool = False) -> bytes:
    """Return *answer* as a complete HTTP/1.1 response that ends its connection."""
    phrase = HTTPStatus(answer.code).phrase
    headers: Mapping[str, str] = {
        **dict(answer.headers),
        "Content-Length": str(len(answer.body)),
        "Connection": "close",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {answer.code} {phrase}\r\n{lines}\r\n".encode()
    return head if head_only else head + answer.body


def _code(good: bool) -> int:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


def _tabbed(body: bytes) -> bytes:
    """Indent with tabs; names cannot hold a line break, so only leading blanks are replaced."""
    lines = msgspec.json.format(body, indent=1).split(b"\n")
    stripped = (line.lstrip(b" ") for line in lines)
    return b"\n".join(
        b"\t" * (len(line) - len(text)) + text for line, text in zip(lines, stripped, strict=True)
    )


def _time(instant: Instant | None) -> str:
    """RFC 3339 in UTC, trailing zeros of the fraction trimmed as Go does."""
    if instant is None:
        return _NEVER
    text = datetime.fromtimestamp(instant.unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
    return text.rstrip("0").rstrip(".") + "Z"
