"""What the HTTP servers say, as values: no socket in here.

Bodies, headers and status codes are kube-proxy's, since load balancers and probes parse them.
"""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus

import msgspec
from msgspec import Struct

from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.serve.status import Instant, Status

__all__ = [
    "JSON",
    "NOT_FOUND",
    "TEXT",
    "Answer",
    "health",
    "plain",
    "readiness",
    "redirect",
    "rfc3339",
    "service_health",
]

_NOSNIFF = ("X-Content-Type-Options", "nosniff")
JSON = (("Content-Type", "application/json"), _NOSNIFF)
TEXT = (("Content-Type", "text/plain; charset=utf-8"), _NOSNIFF)
_HTML = ("Content-Type", "text/html; charset=utf-8")
_HTML_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}  # as Go writes them
)
_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


class Answer(Struct, frozen=True):
    """An HTTP response; the server adds Date and Content-Length."""

    code: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def plain(text: str, code: int = HTTPStatus.OK) -> Answer:
    return Answer(code, text.encode(), TEXT)


NOT_FOUND = plain("404 page not found\n", HTTPStatus.NOT_FOUND)


def redirect(location: str, method: str, code: HTTPStatus) -> Answer:
    """Send the client to *location*; as in Go, a link for people is in the answer to GET only."""
    headers = (("Location", location),)
    if method not in ("GET", "HEAD"):
        return Answer(code, b"", headers)
    link = f'<a href="{location.translate(_HTML_ESCAPES)}">{code.phrase}</a>.\n\n'
    return Answer(code, link.encode("latin-1") if method == "GET" else b"", (_HTML, *headers))


def health(status: Status, now: Instant, with_node: bool) -> Answer:
    """Answer ``/healthz`` (*with_node*: a node that leaves is not fit) or ``/livez``."""
    healthy = status.is_healthy(now)
    good = healthy and (status.node_eligible or not with_node)
    last = now if good else status.last_updated()
    body: dict[str, object] = {"lastUpdated": rfc3339(last), "currentTime": rfc3339(now)}
    if with_node:
        body["nodeEligible"] = status.node_eligible
    body["healthy"] = healthy
    reported = status.reported
    if reported:
        body["status"] = {
            family.value: {
                "lastUpdated": rfc3339(updated),
                "healthy": status.family_is_healthy(family, now),
            }
            for family, updated in reported.items()
        }
    return Answer(_code(good), msgspec.json.encode(body), JSON)


def readiness(status: Status) -> Answer:
    """Answer ``/readyz``, which kube-proxy has not: has this node been served once."""
    body = {"ready": status.is_ready, "waitingFor": status.waiting_for}
    return Answer(_code(status.is_ready), msgspec.json.encode(body), JSON)


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
        (*JSON, ("X-Load-Balancing-Endpoint-Weight", str(local_endpoints))),
    )


def rfc3339(instant: Instant | None) -> str:
    """Format as Go does in JSON: local time, trailing zeros of the fraction trimmed.

    ``2026-01-02T03:04:05.123456789+01:00``, with ``Z`` where local time is UTC.
    """
    if instant is None:
        return _NEVER
    seconds, nanoseconds = divmod(instant.unix_nanoseconds, 1_000_000_000)
    local = datetime.fromtimestamp(seconds).astimezone()
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    zone = local.strftime("%z")
    offset = "Z" if zone[:5] in ("+0000", "-0000") else f"{zone[:3]}:{zone[3:5]}"
    return f"{local:%Y-%m-%dT%H:%M:%S}{fraction}{offset}"


def _code(good: bool) -> int:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


def _tabbed(body: bytes) -> bytes:
    """Indent with tabs; names cannot hold a line break, so only leading blanks are replaced."""
    lines = msgspec.json.format(body, indent=1).split(b"\n")
    stripped = (line.lstrip(b" ") for line in lines)
    return b"\n".join(
        b"\t" * (len(line) - len(text)) + text for line, text in zip(lines, stripped, strict=True)
    )
