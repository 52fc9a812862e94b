"""Puts iptables mode together."""

from __future__ import annotations

from functools import partial

import structlog
from msgspec.structs import replace

from pykubeproxy.backend import Backend, Surroundings
from pykubeproxy.host import nfacct, sysctls
from pykubeproxy.host.addresses import AddressBook
from pykubeproxy.host.exec import run as run_program
from pykubeproxy.iptables.compile import (
    INVALID_COUNTER,
    LOCALHOST_COUNTER,
    IptablesCompiler,
    XtablesSettings,
)
from pykubeproxy.iptables.custody import Custody
from pykubeproxy.iptables.index import Sizes
from pykubeproxy.iptables.kernel import QUICK_SECONDS, XtablesDataplane
from pykubeproxy.iptables.ledger import Ledger
from pykubeproxy.iptables.node import parameters, random_fully
from pykubeproxy.iptables.objects import Key, Rules, rules_by_table
from pykubeproxy.iptables.tools import LOCK_SECONDS, Tools
from pykubeproxy.iptables.variant import Variant
from pykubeproxy.loop import FamilyProxy
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.sync.context import localhost_serves_nodeports
from pykubeproxy.sync.reconciler import Reconciler

__all__ = ["build", "is_state_file", "rules_dataplane"]

log = structlog.get_logger(__name__)

SIZES = {"auto": Sizes(), "always": Sizes(above=0), "never": Sizes(above=None)}
"""When shared chains are trees, by ``--iptables-service-index``."""
STATE_FILE = "iptables-"
"""How the names of files in the state directory begin."""


def build(around: Surroundings) -> Backend:
    """Raises HostError for a kernel parameter that is needed and refused."""
    book = AddressBook() if around.config.nodeport_addresses else None
    # One for both families: the kernel counts the changes of all together.
    custody = Custody(around.generation)
    families = [_family(around, tools, book, custody) for tools in around.tools.values()]
    _follow_counters(around.metrics)
    return Backend(
        families,
        start=book.start if book else lambda on_change: None,
        close=book.stop if book else lambda: None,
    )


def is_state_file(name: str) -> bool:
    """Tell whether a file in the state directory is one of this mode."""
    return name.lstrip(".").startswith(STATE_FILE)


def rules_dataplane(
    around: Surroundings, tools: Tools, ledger: Ledger | None = None
) -> XtablesDataplane:
    """What writes iptables rules, in whatever mode."""
    return XtablesDataplane(
        tools,
        partial(_waiting, around.metrics, tools.family),
        around.stop,
        partial(run_program, cancel=around.stop),
        sizes=SIZES[around.config.iptables_service_index],
        ledger=ledger,
        clock=around.clock,
    )


def _family(
    around: Surroundings, tools: Tools, book: AddressBook | None, custody: Custody
) -> FamilyProxy[Key, Rules]:
    family = tools.family
    dataplane = rules_dataplane(around, tools, _ledger(around, tools, custody))
    dataplane.read_ahead(around.beside)
    compiler = IptablesCompiler(_settings(around, tools))
    reconciler = Reconciler(family, compiler, dataplane, around.clock, counts_of=rules_by_table)
    addresses = partial(book.addresses, family) if book else None
    return FamilyProxy(family, reconciler, dataplane, addresses)


def _ledger(around: Surroundings, tools: Tools, custody: Custody) -> Ledger:
    """The books of one family, continued where the last run left them."""
    custody = custody if tools.variant is Variant.NFT else Custody()
    if around.state is None:
        return Ledger(custody)
    version = around.ask(replace(tools, family=Family.IPV4).version(), None, QUICK_SECONDS)
    boot, namespace = around.place
    words = (boot, namespace, tools.variant, str(tools.family), str(version))
    name = f"{STATE_FILE}{tools.family}-{tools.variant}-{namespace}"
    return Ledger(custody, around.state.file(name), "\n".join(words).encode())


def _settings(around: Surroundings, tools: Tools) -> XtablesSettings:
    """Settle what the fixed rules depend on, and the one sysctl that they need.

    Raises:
        HostError: route_localnet cannot be set, though node ports are to answer on localhost.
    """
    config = around.config
    localhost = localhost_serves_nodeports(config, tools.family)
    sysctls.ensure(parameters(config, [tools.family]))
    liberal = sysctls.read("net/netfilter/nf_conntrack_tcp_be_liberal")
    return XtablesSettings(
        masquerade_mark=1 << config.masquerade_bit,
        random_fully=random_fully(tools, around.ask),
        localhost_nodeports=localhost,
        drop_invalid=not liberal,
        count_invalid=nfacct.ensure_counter(INVALID_COUNTER),
        count_localhost=localhost and nfacct.ensure_counter(LOCALHOST_COUNTER),
    )


def _follow_counters(metrics: Metrics) -> None:
    """Show what the rules with an nfacct match count; nothing where the kernel has none."""
    for counter, name, text in (
        (
            INVALID_COUNTER,
            "kubeproxy_iptables_ct_state_invalid_dropped_packets",
            "packets dropped by iptables to work around conntrack problems",
        ),
        (
            LOCALHOST_COUNTER,
            "kubeproxy_iptables_localhost_nodeports_accepted_packets",
            "Number of packets accepted on nodeports of loopback interface",
        ),
    ):
        metrics.follow_packets(name, text, partial(nfacct.read_counter, counter))


def _waiting(metrics: Metrics, family: Family, seconds: float) -> None:
    metrics.lock_waited(family, LOCK_SECONDS)
    log.warning(
        "another program holds the xtables lock, waiting",
        family=family.value,
        waited_seconds=seconds,
    )
