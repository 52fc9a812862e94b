"""What connections see: who answers them, and how long a local one takes to be made."""

from __future__ import annotations

import multiprocessing
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Self

from bench import netns
from bench.measure import Row, percentile
from bench.worlds import POD_PORT, SERVICE_PORT, World, cluster_ip

__all__ = ["Connections", "connect_rows"]

CONNECT_SECONDS = 2.0
PLAIN_PORT = 9000
"""Of a listener that no Service stands before."""
CONNECTS, BATCH = 4000, 50
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: leave no TIME_WAIT behind, whatever the number


class Connections:
    """All pods of a namespace, and a client: the `bench.life.Witness` of iptables mode.

    Context manager; enter it before starting threads.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.lost = 0

    def __enter__(self) -> Self:
        listener = socket.create_server(("0.0.0.0", POD_PORT), backlog=4096)
        fork = multiprocessing.get_context("fork")
        self._pods = fork.Process(target=_answer, args=(listener,), daemon=True)
        self._pods.start()
        listener.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pods.kill()
        self._pods.join()

    def serves(self, index: int) -> bool:
        return bool(self._ask(index))

    def visit(self, index: int) -> str:
        address = self._ask(index)
        self.lost += not address
        return address

    def meets(self, index: int, address: str) -> bool:
        """One that serves is missed in one case of fifty."""
        return any(self.visit(index) == address for _ in range(4 * self._world.endpoints))

    def _ask(self, index: int) -> str:
        """The address of the pod that answers; empty if none does."""
        with socket.socket() as client:
            client.settimeout(CONNECT_SECONDS)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with suppress(OSError):
                client.connect((cluster_ip(index), SERVICE_PORT))
                return client.recv(64).decode()
        return ""


def _answer(listener: socket.socket) -> None:
    """Tell every client which address it was sent to."""
    while True:
        client, _ = listener.accept()
        with suppress(OSError), client:
            client.send(client.getsockname()[0].encode())


def connect_rows(serve_nothing: Callable[[], object]) -> list[Row]:
    """How long connect() to a listener on the node takes here, against nodes without Services.

    *serve_nothing* makes the namespace that it is called in such a node. In turns, so that
    whatever else the machine does meets all of them.
    """
    here = netns.current()
    bare = netns.enter_new()
    empty = netns.enter_new()
    serve_nothing()
    netns.enter(here)
    places = {
        "connect() to no Service": here,
        "the same, no Services": empty,
        "the same, no rules at all": bare,
    }
    listeners = {what: netns.call_in(place, _listen) for what, place in places.items()}
    seconds: dict[str, list[float]] = {what: [] for what in places}
    for _ in range(CONNECTS // BATCH):
        for what, place in places.items():
            seconds[what] += netns.call_in(place, partial(_connects, listeners[what]))
    for listener in listeners.values():
        listener.close()
    return [
        Row(what, percentile(found, 0.5), percentile(found, 0.99))
        for what, found in seconds.items()
    ]


def _listen() -> socket.socket:
    return socket.create_server((netns.NODE_ADDRESS, PLAIN_PORT), backlog=4096)


def _connects(listener: socket.socket) -> list[float]:
    seconds = []
    for _ in range(BATCH):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            started = time.perf_counter()
            client.connect((netns.NODE_ADDRESS, PLAIN_PORT))
            seconds.append(time.perf_counter() - started)
            listener.accept()[0].close()
    return seconds
