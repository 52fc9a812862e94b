"""HTTP from any namespace of a lab."""

from __future__ import annotations

import http.client
import socket

from e2e.lab.lab import Lab

__all__ = ["Response", "fetch"]


class Response:
    """An HTTP response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read().decode()


def fetch(lab: Lab, path: str, port: int, host: str = "127.0.0.1", role: str = "node") -> Response:
    """GET over a connection made in the namespace of *role*."""
    connection = http.client.HTTPConnection(host, port)
    connection.sock = lab.in_namespace(
        role, lambda: socket.create_connection((host, port), timeout=5)
    )
    try:
        connection.request("GET", path)
        return Response(connection.getresponse())
    finally:
        connection.close()
