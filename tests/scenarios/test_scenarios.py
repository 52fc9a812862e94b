"""Readable histories (``*.yaml``) and what the kernel holds after each step (``*.golden``).

A scenario is a list of steps; each puts or deletes API objects, runs one pass, and dumps the rules
that belong to Services, with how many lines the pass sent. Regenerate the dumps with
``make golden`` and review them as a diff.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
import yaml

from pykubeproxy.cli import configure
from pykubeproxy.iptables.compile import IptablesCompiler, XtablesSettings
from pykubeproxy.iptables.kernel import XtablesDataplane
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.objects import EndpointSlice, Kind, Node, ObjectKey, Service
from pykubeproxy.sync.context import describe_node
from pykubeproxy.sync.reconciler import Reconciler
from pykubeproxy.sync.store import Store
from tests.fakes.xtables import Xtables

HERE = Path(__file__).parent
SCENARIOS = sorted(HERE.glob("*.yaml"))
TYPES = {"Service": Service, "EndpointSlice": EndpointSlice, "Node": Node}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_each_step_leaves_what_was_agreed(path: Path, request: pytest.FixtureRequest) -> None:
    dump = "\n".join(play(yaml.safe_load(path.read_text()))) + "\n"
    golden = path.with_suffix(".golden")
    if request.config.getoption("--golden", default=False):
        golden.write_text(dump)
    assert golden.read_text() == dump


def play(scenario: dict[str, Any]) -> Iterator[str]:
    """Run all steps; yield the lines of the dump."""
    family = Family(scenario.get("family", "IPv4"))
    config = configure(scenario.get("flags", []))
    assert config is not None
    kernel = Xtables(4 if family is Family.IPV4 else 6)
    dataplane = XtablesDataplane(
        Tools(family, Variant.NFT), lambda _: None, Event(), runner=kernel.run
    )
    compiler = IptablesCompiler(XtablesSettings(localhost_nodeports=family is Family.IPV4))
    ticks = count()
    reconciler = Reconciler(family, compiler, dataplane, clock=lambda: float(next(ticks)))
    store = Store()
    for step in scenario["steps"]:
        for obj in step.get("put", ()):
            store.put(msgspec.convert(obj, TYPES[obj["kind"]]))
        for text in step.get("delete", ()):
            kind, _, name = text.partition(" ")
            store.drop(Kind(kind), ObjectKey(*name.split("/")))
        context = describe_node(config, "node", store.node, (), family)
        report = reconciler.run(store.take(), store, context)
        assert report.succeeded, report.detail
        yield f"== {step['step']}"
        yield f"   {report.transactions} transactions, {report.lines} lines"
        yield from about_services(kernel)


def about_services(kernel: Xtables) -> Iterator[str]:
    """The rules that Services brought, sorted by chain; the fixed ones are left out."""
    for table in ("filter", "nat"):
        for chain, rules in sorted(kernel.state()[table].items()):
            own = chain.startswith(("KUBE-SVC", "KUBE-SVL", "KUBE-SEP", "KUBE-EXT", "KUBE-FW"))
            for rule in rules:
                if own or "/" in rule.partition("--comment")[2].partition("-m")[0]:
                    yield f"{table:6} -A {chain} {rule}"
