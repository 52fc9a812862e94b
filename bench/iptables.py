"""The iptables mode, stage by stage: the sync core and the real tools of one variant."""

from __future__ import annotations

import time
from threading import Event

from bench import stages
from bench.measure import Programs, Row, Stopwatch
from bench.netns import NODE_ADDRESS
from bench.stages import Half, Passes
from bench.worlds import World
from pykubeproxy.host.exec import run
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import Runner, XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext, PodCIDR
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store

__all__ = ["measure", "serve_nothing"]

NODES = {
    Family.IPV4: NodeContext(
        "node", Family.IPV4, address=NODE_ADDRESS, pod_traffic=PodCIDR("10.128.0.0/9")
    ),
    Family.IPV6: NodeContext(
        "node", Family.IPV6, address="2001:db8:2::10", pod_traffic=PodCIDR("fd00:128::/32")
    ),
}


def measure(variant: Variant, world: World) -> list[Row]:
    """Take passes apart. For root, in an empty network namespace."""
    watch, store = Stopwatch(), Store()
    programs = Programs(watch)
    stages.follow_core(watch)
    families = list(Family) if world.dual_stack else [Family.IPV4]
    passes = Passes(
        [half(variant, family, programs.run, watch) for family in families], programs, watch, store
    )
    found = stages.events(passes, world)
    passes.replay()
    return stages.rows(found)


def half(variant: Variant, family: Family, runner: Runner, watch: Stopwatch | None = None) -> Half:
    """One family as the daemon has it."""
    dataplane = XtablesDataplane(Tools(family, variant), lambda _: None, Event(), runner)
    settings = XtablesSettings(localhost_nodeports=family is Family.IPV4)
    compiler = IptablesCompiler(settings)
    if watch is not None:
        stages.watch_stages(watch, compiler, dataplane)
    return Half(Reconciler(family, compiler, dataplane, time.monotonic), NODES[family])


def serve_nothing(variant: Variant) -> None:
    """Write the rules of a cluster without Services where this thread is."""
    empty, store = half(variant, Family.IPV4, run), Store()
    assert empty.reconciler.run(store.take(), store, empty.node).succeeded
