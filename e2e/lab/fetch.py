"""HTTP from any namespace of a lab."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping

from e2e.lab.lab import Lab

__all__ = ["Response", "connect", "fetch"]


class Response:
    """An HTTP response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.raw = response.read()

    @property
    def body(self) -> str:
        return self.raw.decode()


def connect(
    lab: Lab, port: int, host: str = "127.0.0.1", role: str = "node"
) -> http.client.HTTPConnection:
    """A connection made in the namespace of *role*."""
    connection = http.client.HTTPConnection(host, port)
    connection.sock = lab.in_namespace(
        role, lambda: socket.create_connection((host, port), timeout=30)
    )
    return connection


def fetch(
    lab: Lab,
    path: str,
    port: int,
    host: str = "127.0.0.1",
    role: str = "node",
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Response:
    """Ask over a connection made in the namespace of *role*."""
    connection = connect(lab, port, host, role)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return Response(connection.getresponse())
    finally:
        connection.close()
