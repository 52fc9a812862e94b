"""What a Service and an endpoint cost in memory, from their objects to the notes on the kernel."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence

from bench.iptables import half
from bench.measure import Row
from bench.wire import watch_line
from bench.worlds import World
from pykubeproxy.host.exec import Finished, Input, Result
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import Kind
from pykubeproxy.sync.store import Store
from pykubeproxy.watch.wire import Changed, decode_line

__all__ = ["measure"]

SERVICES = 1000
FEW, MANY = 1, 11


def measure() -> list[Row]:
    """Bytes that stay allocated once all is written; the tools are not started."""
    with_few, with_many = (_bytes(World(SERVICES, count)) for count in (FEW, MANY))
    endpoint = (with_many - with_few) / (SERVICES * (MANY - FEW))
    service = with_few / SERVICES - FEW * endpoint
    return [Row("a Service", service, unit="bytes"), Row("an endpoint", endpoint, unit="bytes")]


def _bytes(world: World) -> int:
    gc.collect()
    tracemalloc.start()
    store, proxy = Store(), half(Variant.NFT, Family.IPV4, _succeed)
    for index in range(world.services):
        _put(store, Kind.SERVICE, watch_line(world.service(index)))
        for part in world.slices(index):
            _put(store, Kind.ENDPOINT_SLICE, watch_line(part))
    report = proxy.reconciler.run(store.take(), store, proxy.node)
    assert report.succeeded, report.detail
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


def _put(store: Store, kind: Kind, line: bytes) -> None:
    event = decode_line(kind, line)
    assert isinstance(event, Changed), event
    store.put(event.object)


def _succeed(argv: Sequence[str], input: Input | None, timeout_seconds: float) -> Result:
    if input is not None:
        bytes(input)  # as a tool would read it
    return Finished(0, b"", b"")
