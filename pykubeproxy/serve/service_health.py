"""Answers load balancers at every Service's healthCheckNodePort: has this node endpoints for it.

One thread serves all ports of a family, however many Services have one. Every path and method
gets the same answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial

from msgspec import Struct

from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.serve.answers import Answer, service_health
from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.server import HttpServer, Listening, listen, listen_error

__all__ = ["ServiceHealth"]


class _Check(Struct, eq=False):
    """The port of one Service and what is told there."""

    key: ServiceKey
    port: int
    local_endpoints: int


class ServiceHealth:
    """The responders of one family.

    *addresses* are the node addresses to listen on; ``None`` means all of the family, an empty
    tuple none. *proxy_healthy* is asked at every request. *on_failure* gets the Service, its
    port and the reason when a port cannot be opened; the next `sync` or `update` tries again.
    """

    def __init__(
        self,
        family: Family,
        addresses: tuple[str, ...] | None,
        proxy_healthy: Callable[[], bool],
        on_failure: Callable[[ServiceKey, int, str], None],
    ) -> None:
        is_v4 = family is Family.IPV4
        self._af = socket.AF_INET if is_v4 else socket.AF_INET6
        self._network = "tcp4" if is_v4 else "tcp6"
        everything = "0.0.0.0" if is_v4 else "::"
        self._addresses = (everything,) if addresses is None else addresses
        self._proxy_healthy = proxy_healthy
        self._on_failure = on_failure
        self._open: dict[ServiceKey, tuple[_Check, Listening]] = {}
        self._refused: dict[ServiceKey, tuple[int, int]] = {}
        self._server = HttpServer(f"service-health-{family.value}")

    @property
    def count(self) -> int:
        """How many Services have their port open."""
        return len(self._open)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Close every port and end the thread. Not to be started again."""
        self.sync({})
        self._server.stop()

    def sync(self, wanted: Mapping[ServiceKey, tuple[int, int]]) -> None:
        """Serve exactly *wanted*: each Service's port and number of local ready endpoints."""
        others = (self._open.keys() | self._refused.keys()) - wanted.keys()
        self.update({**dict.fromkeys(others), **wanted})

    def update(self, changes: Mapping[ServiceKey, tuple[int, int] | None]) -> None:
        """Serve what *changes* says, ``None``: no more; all other Services stay as they are.

        When it returns, ports to be closed are closed and new ones listen. Costs as much as
        changes, and what was refused before. One calling thread.
        """
        wanted = {**self._refused, **changes}
        self._refused.clear()
        # Closing comes first: a port may change hands.
        for key, check in wanted.items():
            known = self._open.get(key)
            if known is not None and (check is None or check[0] != known[0].port):
                self._server.remove(known[1])
                del self._open[key]
        for key, check in wanted.items():
            if check is None:
                continue
            port, count = check
            if key in self._open:
                self._open[key][0].local_endpoints = count
            elif not self._serve(_Check(key, port, count)):
                self._refused[key] = check

    def _serve(self, check: _Check) -> bool:
        """Listen at all addresses or none; false is a failure, which was reported."""
        port = check.port
        listeners: list[socket.socket] = []
        for address in self._addresses:
            try:
                listeners.append(listen(self._af, address, port, only_v6=True))
            except OSError as error:
                for opened in listeners:
                    opened.close()
                reason = listen_error(self._network, address, port, error)
                self._on_failure(check.key, port, reason)
                return False
        listening = Listening(listeners, partial(self._answer, check))
        self._open[check.key] = check, listening
        self._server.add(listening)
        return True

    def _answer(self, check: _Check, _request: Request) -> Answer:
        return service_health(check.key, check.local_endpoints, self._proxy_healthy())
