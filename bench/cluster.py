"""The stand-in API server with a world in it, prepared so that it costs little while measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.wire import as_sent, end_of_list, watch_lines
from bench.worlds import World
from pykubeproxy.model.objects import EndpointSlice, Service
from tests.build import manifest, node
from tests.fakes.apiserver import Answer, FakeApiServer, Request

__all__ = ["Cluster"]


class Cluster:
    """The objects of a world, as the lists that the server will answer with and as changes.

    The server itself holds only what was changed or added.
    """

    def __init__(self, server: FakeApiServer, world: World) -> None:
        self.world = world
        self._server = server
        numbers = range(world.services)
        self._bodies = {
            "services": b"".join(watch_lines(map(world.service, numbers))),
            "endpointslices": b"".join(watch_lines(s for n in numbers for s in world.slices(n))),
        }
        self._put: dict[tuple[str, str], Service | EndpointSlice] = {}
        server.store.put(manifest(node()))

    def prepare(self) -> None:
        """Have the next streaming lists answered with all objects, and then end."""
        for plural, body in self._bodies.items():
            newer = [o for (where, _), o in self._put.items() if where == plural]
            whole = body + b"".join(watch_lines(newer)) + end_of_list(self._server.store.version)
            answer = Answer(200, whole, cut=len(whole), matches=_asks_for(plural))
            self._server.answer_next(answer)

    def wait_until_watched(self) -> None:
        """The watches are opened anew after the prepared lists."""
        self._server.wait_for_watches(3)

    def change(self, index: int, generation: int) -> None:
        """Replace one endpoint of Service *index*, which the world knows as *generation*."""
        self._write([self.world.changed_slice(index, generation)])

    def add(self, index: int) -> None:
        """Create one more Service with its endpoints."""
        self._write([self.world.service(index), *self.world.slices(index)])

    def _write(self, objects: Iterable[Service | EndpointSlice]) -> None:
        for obj in objects:
            self._server.store.put(as_sent(obj))
            plural = "services" if isinstance(obj, Service) else "endpointslices"
            self._put[plural, str(obj.key)] = obj


def _asks_for(plural: str) -> Callable[[Request], bool]:
    return lambda r: r.path.endswith(f"/{plural}") and r.query.get("sendInitialEvents") == "true"
