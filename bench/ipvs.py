"""The ipvs mode, stage by stage on the real kernel, and how to see there what the daemon does.

Runs in a network namespace of its own, where the kernel has IPVS.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from functools import partial
from threading import Event

from bench import stages
from bench.iptables import NODES
from bench.measure import Programs, Row, Stopwatch
from bench.stages import CHANGES, Half, Passes
from bench.worlds import SERVICE_PORT, World, cluster_ip
from pykubeproxy.host.netlink import GENERIC, NETFILTER, ROUTE, SMALL_READ, Netlink
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.ipvs.bound import BoundAddresses
from pykubeproxy.ipvs.compile import IpvsCompiler
from pykubeproxy.ipvs.drain import Drain
from pykubeproxy.ipvs.kernel import IpvsDataplane
from pykubeproxy.ipvs.messages import decode_dest, get_dests
from pykubeproxy.ipvs.netfilter import IpvsSettings
from pykubeproxy.ipvs.node import IPVS, ensure_device, find_device
from pykubeproxy.ipvs.objects import Virtual
from pykubeproxy.ipvs.servers import Servers
from pykubeproxy.ipvs.sets import Sets
from pykubeproxy.model.kinds import Family, Protocol
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store

__all__ = ["VirtualServers", "measure"]


def measure(world: World) -> list[Row]:
    """Take passes apart. For root, on a kernel with IPVS, in an empty network namespace."""
    watch, store = Stopwatch(), Store()
    programs = Programs(watch)
    stages.follow_core(watch)
    with ExitStack() as parts:
        kernel = _Kernel(parts, programs, watch)
        dataplane = kernel.dataplane()
        passes = Passes([kernel.half(dataplane)], programs, watch, store)
        found = stages.events(passes, world)
        # What happens between changes, and holds one up that comes meanwhile.
        at = time.monotonic()
        found += [
            ("intact", [passes.look(dataplane.intact)]),
            ("full garbage collection", [passes.look(gc.collect)]),
            ("tend", [passes.look(partial(dataplane.tend, at + 10.0 * n)) for n in range(CHANGES)]),
        ]
        again = Passes([kernel.half(kernel.dataplane())], programs, watch, store)
        found.append(("restart", [again.run()]))
    return stages.rows(found)


class _Kernel:
    """Sockets and programs shared by one dataplane after the other, as by daemons."""

    def __init__(self, parts: ExitStack, programs: Programs, watch: Stopwatch) -> None:
        ensure_device()
        self._programs = programs
        self._watch = watch
        self._generic, self._netfilter, self._route = (
            parts.enter_context(Netlink(kind)) for kind in (GENERIC, NETFILTER, ROUTE)
        )
        for writer in (self._generic, self._netfilter, self._route):
            watch.follow("kernel", writer, "refusals")
        self._reader = parts.enter_context(Netlink(GENERIC, SMALL_READ))
        self._family_id = self._generic.family_id(IPVS)

    def half(self, dataplane: IpvsDataplane) -> Half:
        compiler = IpvsCompiler(IpvsSettings())
        stages.watch_stages(self._watch, compiler, dataplane)
        reconciler = Reconciler(Family.IPV4, compiler, dataplane, time.monotonic)
        return Half(reconciler, NODES[Family.IPV4])

    def dataplane(self) -> IpvsDataplane:
        family, route = Family.IPV4, self._route
        rules = XtablesDataplane(
            Tools(family, Variant.LEGACY), lambda _: None, Event(), self._programs.run
        )
        servers = Servers(
            family,
            self._generic,
            self._reader,
            lambda: self._family_id,
            "rr",
            (),
            Drain(30.0),
            time.monotonic,
        )

        def index() -> int:
            device = find_device(route)
            assert device is not None
            return device.index

        addresses = BoundAddresses(family, route, index)
        return IpvsDataplane(servers, Sets(family, self._netfilter), addresses, rules, lambda: None)


class VirtualServers:
    """The `bench.life.Witness` of ipvs mode: asks one virtual server, whatever their number."""

    def __init__(self, parts: ExitStack) -> None:
        self.lost = 0
        self._channel = parts.enter_context(Netlink(GENERIC, SMALL_READ))
        self._family_id = self._channel.family_id(IPVS)

    def serves(self, index: int) -> bool:
        return bool(self._reals(index))

    def visit(self, index: int) -> str:
        found = self._reals(index)
        self.lost += not found
        return min(found, default="")

    def meets(self, index: int, address: str) -> bool:
        return address in self._reals(index)

    def _reals(self, index: int) -> set[str]:
        """Who gets new connections to Service *index*."""
        virtual = Virtual(Protocol.TCP, cluster_ip(index), SERVICE_PORT)
        found = [decode_dest(*m) for m in self._channel.dump(*get_dests(self._family_id, virtual))]
        return {dest.address for dest in found if dest.weight}
