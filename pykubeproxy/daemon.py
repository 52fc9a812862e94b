"""Builds every part, owns the threads, and stops them in order.

Threads: one per watched resource, one sync thread, the servers, and helpers that may be slow
(conntrack, Events). The main thread waits for signals.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import structlog

from pykubeproxy import KUBERNETES_VERSION, __version__, logs
from pykubeproxy.backend import Backend, Surroundings
from pykubeproxy.config import Config
from pykubeproxy.configwrite import configz_json, flagz
from pykubeproxy.errors import ConfigError, HostError, PykubeproxyError, Unsupported
from pykubeproxy.host import sysctls
from pykubeproxy.host.beside import Beside
from pykubeproxy.host.identity import namespace_identity
from pykubeproxy.host.limits import raise_open_files
from pykubeproxy.host.nftables import Generations
from pykubeproxy.host.nodelock import NodeLock, is_free, is_lock_file
from pykubeproxy.host.process import process_start
from pykubeproxy.host.state import StateDirectory
from pykubeproxy.host.sysctls import Parameter, Refusal
from pykubeproxy.host.tuning import (
    UNTUNED,
    adjust_oom_score,
    conntrack_parameters,
    count_cpus,
    untuned_note,
)
from pykubeproxy.iptables import backend as iptables
from pykubeproxy.iptables.kernel import Runner
from pykubeproxy.iptables.node import (
    available_tools,
    clean_up,
    detect_variant,
    find_nftables_leftovers,
    parameters,
    plan_removal,
    remembering,
    remove_nftables_leftovers,
)
from pykubeproxy.iptables.tools import Tools
from pykubeproxy.loop import Suspicions, SyncLoop
from pykubeproxy.metrics import Metrics
from pykubeproxy.model.kinds import Family
from pykubeproxy.model.node import NodeContext
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.reactions import FlowCleaner, Reactions
from pykubeproxy.reload import Reload
from pykubeproxy.serve.health import HEALTH, HealthServer
from pykubeproxy.serve.pages import Pages
from pykubeproxy.serve.service_health import ServiceHealth
from pykubeproxy.serve.status import Status
from pykubeproxy.supply import Opened, Supply
from pykubeproxy.watch.events import Happening
from pykubeproxy.watch.mailbox import Mailbox

__all__ = ["RESTART", "cleanup", "initialise", "rehearse", "run"]

log = structlog.get_logger(__name__)

RESTART = -1
"""No exit status: this process is to begin anew, with what the configuration file says now."""

GARBAGE_THRESHOLD = 50_000
"""Of new objects, between two looks for garbage in cycles."""

LAST_WORDS_SECONDS = 2.0
"""How long an Event that tells why the process ends may take to be posted."""

RECHECK_SECONDS = 1.0
"""How long after ipvs mode was found impossible it is looked at again."""


def _build_ipvs(around: Surroundings) -> Backend:
    # Late, as all of ipvs here: a fifth of our own code, which iptables mode needs only to clean
    # up, after the first sync.
    from pykubeproxy.ipvs import backend

    return backend.build(around)


BACKENDS: Mapping[str, Callable[[Surroundings], Backend]] = {
    "iptables": iptables.build,
    "ipvs": _build_ipvs,
}


def run(config: Config, supply: Supply, reload: Reload | None = None) -> int:
    """Serve until SIGTERM or SIGINT; rules stay in place. Returns the exit status or `RESTART`.

    *supply* has been started, and is stopped here. *reload* follows the configuration file, if
    there is one.

    Raises:
        ConfigError, HostError: what is missing to start; no rule was written then. If it is the
            source, a tool or the mode, no kernel parameter was, either.
    """
    failures: list[PykubeproxyError] = []
    # A start makes a million objects that stay, and no cycles to speak of: looking for some at
    # the usual pace takes 8 % of it.
    gc.set_threshold(GARBAGE_THRESHOLD)
    stop = Event()
    with _EndRequests() as end, _watched_threads(end.ask) as deaths, ExitStack() as parts:
        parts.callback(supply.stop)
        try:
            loop = _build(config, supply, stop, parts, reload, end.check)
        except _EndedEarly:
            log.info("stopped while starting; nothing was written")
            return 0
        sync = Thread(target=_sync, args=(loop, failures, end.ask), name="sync", daemon=True)
        sync.start()
        parts.callback(_end_sync, sync, stop, supply.mailbox)
        if reload is not None:
            reload.check_node = loop.check
            reload.start(end.ask)
            parts.callback(reload.stop)
        end.wait()
    if failures:
        raise failures[0]
    log.info("stopped; rules stay in place")
    if deaths:
        return 1
    # A signal that came meanwhile is heard: it asked for the end and not for another beginning.
    return RESTART if reload is not None and reload.wanted and not end.signalled else 0


def initialise(config: Config) -> int:
    """Do all that takes more than the right to change rules, and no more; returns the exit status.

    After that, a process that has only NET_ADMIN (and NET_RAW, for iptables-legacy), without a
    writable /proc/sys, can do the rest. No API is asked: nothing in here depends on an object.

    Raises:
        HostError: a kernel parameter is refused, or the mode cannot run on this node.
    """
    log.info("initialising", version=__version__, mode=config.mode)
    ask = remembering()
    # What is asked here loads the kernel modules that it needs.
    tools = _find_tools(config, ask)
    mode, _ = _choose_mode(config, tools)
    sysctls.ensure(_parameters(mode, config, tools), sysctls.load_module)
    log.info("initialised", mode=mode)
    return 0


def rehearse(config: Config) -> None:
    """Look at what a start with *config* would end at on this node, and change nothing.

    What a start would only complain about is left to it.

    Raises:
        ConfigError, HostError: what is missing.
    """
    if not config.manifests:
        from pykubeproxy.watch.login import loader_for

        loader_for(config.kubeconfig or None, config.master or None)()
    tools = _find_tools(config, remembering())
    mode, _ = _choose_mode(config, tools)
    _bear(sysctls.foresee(_parameters(mode, config, tools)))


def cleanup(config: Config, show: Callable[[str], object]) -> int:
    """Remove all that any mode made, in both iptables variants and families.

    With ``config.dry_run`` only *show* what that would be, a thing per line.
    Returns the exit status.
    """
    from pykubeproxy.ipvs import leftovers

    if config.dry_run:
        return _show_cleanup(config, show)
    lock = _node_lock(config, namespace_identity())
    if lock is not None and not lock.is_free:
        log.warning(
            "a pykubeproxy runs on this node and will write its rules again; end it first",
            holder=lock.holder(),
        )
    removed, problems = clean_up()
    tables, more_problems = remove_nftables_leftovers()
    removed.update(dict.fromkeys(tables, 1))
    problems += more_problems
    # After the rules: the kernel keeps a set as long as a rule asks it.
    servers = leftovers.clean_up(config.ipvs.exclude_cidrs)
    removed.update(servers.removed)
    problems += servers.problems
    state = _state(config)
    if state is not None:
        count = state.clear(partial(_is_removable, state))
        if count:
            removed["files in the state directory"] = count
        left = state.files(partial(_is_removable, state))
        problems += [f"file {path}: the directory cannot be written" for path in left]
    for program, count in removed.items():
        log.info("removed", what=program, count=count)
    if not removed and not problems:
        log.info("nothing of ours was found")
    for problem in problems:
        log.error("not removed", reason=problem)
    return 1 if problems else 0


def _show_cleanup(config: Config, show: Callable[[str], object]) -> int:
    from pykubeproxy.ipvs import leftovers

    removals, problems = plan_removal()
    lines = [line for removal in removals for line in removal.described]
    lines += [f"nftables: table {family} {name}" for family, name in find_nftables_leftovers()]
    servers, more_problems = leftovers.plan_removal(config.ipvs.exclude_cidrs)
    lines += servers
    state = _state(config)
    if state is not None:
        lines += [f"file {path}" for path in state.files(partial(_is_removable, state))]
    problems += more_problems
    if not lines and not problems:
        lines = ["nothing of ours was found"]
    show("".join(f"{line}\n" for line in lines))
    for problem in problems:
        log.error("not looked at", reason=problem)
    return 1 if problems else 0


def _is_removable(state: StateDirectory, name: str) -> bool:
    """A lock that a daemon has is its own, also while what it made is removed."""
    return iptables.is_state_file(name) or (is_lock_file(name) and is_free(state.path / name))


# --- building ---


def _build(
    config: Config,
    supply: Supply,
    stop: Event,
    parts: ExitStack,
    reload: Reload | None,
    check: Callable[[], None] = lambda: None,
) -> SyncLoop:
    """Make and start everything but the sync thread; *parts* ends it in reverse order.

    The programs that are asked here run while *supply* is still being opened. *check* raises once
    it is to end; it is called wherever there is something to wait for.
    """
    log.info("starting", version=__version__, mode=config.mode, node=supply.node_name)
    for notice in config.notices:
        log.warning("notice", text=notice)
    place = namespace_identity()
    _wait_for_predecessor(config, place, parts, check)
    adjust_oom_score(config.oom_score_adj)
    ask = remembering()
    tools = _find_tools(config, ask)
    mode, why_not = _choose_mode(config, tools)
    metrics = Metrics(mode)
    metrics.runs_in_mode(mode, config.mode)
    metrics.features(config.feature_gates)
    if reload is not None:
        reload.tell_valid = metrics.config_file_valid
    opened = supply.wait(check)
    check()
    # The first change of the node that stays, so after all that may turn out to be missing.
    untuned = _set_parameters(_parameters(mode, config, tools))
    metrics.follow(*opened.measures)
    suspicions = Suspicions(supply.mailbox)
    beside = Beside()
    around = Surroundings(
        *(config, tools, ask, metrics, suspicions, time.monotonic, stop),
        beside=beside.run,
        generation=Generations().read,
        state=_state(config) if place else None,
        place=place or ("", ""),
    )
    backend = BACKENDS[mode](around)

    status = Status(stale_after_seconds=2 * config.sync_period_seconds)
    if config.manifests:
        # Without an API there need be no Node object that could make this node ineligible.
        status = Status(status.stale_after_seconds, node_eligible=True)
    pages = _pages(mode, config, metrics)
    health = HealthServer(
        status,
        pages,
        config.healthz_address,
        config.metrics_address,
        config.bind_address_hard_fail,
        metrics.health_answered,
        on_failure=partial(_cannot_listen, opened),
    )
    raise_open_files()
    health.start()
    parts.callback(health.stop)
    cleaner = FlowCleaner(metrics, time.monotonic)
    cleaner.start()
    parts.callback(cleaner.stop)
    leftovers = Thread(
        target=partial(_remove_other_modes, mode, config, stop), name="leftovers", daemon=True
    )
    reactions = Reactions(
        metrics,
        health,
        status,
        partial(_open_ports, health),
        cleaner,
        opened.record,
        partial(_settle_down, leftovers),
    )
    parts.callback(reactions.close)
    loop = SyncLoop(
        config,
        supply.node_name,
        opened.source.kinds,
        supply.mailbox,
        backend.families,
        reactions,
        time.monotonic,
        stop,
        suspicions,
        beside.run,
        began=time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
    )
    reactions.uid_of = loop.uid_of
    metrics.follow_changes(loop.oldest_changes, time.monotonic)
    pages.set_verbosity = partial(_set_verbosity, config, loop)
    parts.callback(backend.close)
    backend.start(loop.addresses_changed)
    opened.record(Happening("Starting", "StartKubeProxy", warning=False))
    if why_not:
        opened.record(Happening("IPVSUnavailable", "StartKubeProxy", why_not))
    if untuned:
        opened.record(Happening("KernelParameterNotSet", "StartKubeProxy", untuned))
    return loop


def _state(config: Config) -> StateDirectory | None:
    return StateDirectory(Path(config.state_directory)) if config.state_directory else None


def _wait_for_predecessor(
    config: Config, place: tuple[str, str] | None, parts: ExitStack, check: Callable[[], None]
) -> None:
    """Wait until no other daemon of ours serves this network namespace."""

    def pause(seconds: float) -> None:
        time.sleep(seconds)
        check()

    lock = _node_lock(config, place)
    if lock is not None:
        lock.wait(pause, time.monotonic)
        parts.callback(lock.release)


def _node_lock(config: Config, place: tuple[str, str] | None) -> NodeLock | None:
    if not config.state_directory or place is None:
        return None
    return NodeLock(Path(config.state_directory), place[1])


def _find_tools(config: Config, ask: Runner) -> Mapping[Family, Tools]:
    """Raises Unsupported where there is no iptables that works."""
    verdict = detect_variant(config.iptables_variant, ask)
    log.info("iptables variant", variant=verdict.variant.value, reason=verdict.reason)
    return available_tools(verdict.variant, ask)


def _parameters(mode: str, config: Config, families: Iterable[Family]) -> list[Parameter]:
    """All kernel parameters that *mode* needs, in the order in which they are to be set."""
    wanted = conntrack_parameters(config.conntrack, count_cpus())
    if mode != "ipvs":
        return [*wanted, *parameters(config, families)]
    from pykubeproxy.ipvs import node

    return [*wanted, *node.parameters(config.ipvs.strict_arp)]


def _set_parameters(wanted: Iterable[Parameter]) -> str:
    """Set what this process may set; if tuning is left as it was, what an Event is to tell of it.

    An init container does not run again when its main container is started anew: a timeout that
    somebody changed meanwhile must not keep the node without a proxy.

    Raises:
        HostError: a parameter that is needed is refused, or one is not there, or has no such value.
    """
    refusals = sysctls.apply(wanted, sysctls.load_module)
    _bear(refusals)
    if not refusals:
        return ""
    log.error(f"kernel parameters not set, {UNTUNED}", reason=str(sysctls.complain(refusals)))
    return untuned_note(refusals)


def _bear(refusals: Sequence[Refusal]) -> None:
    """Raises HostError, which names them all, unless the node can be served with all of them."""
    if not all(refusal.is_bearable for refusal in refusals):
        raise sysctls.complain(refusals)


def _choose_mode(config: Config, tools: Mapping[Family, Tools]) -> tuple[str, str]:
    """The mode to run in; if it is not the configured one, also why.

    Raises:
        Unsupported: this node cannot run the configured mode, and falling back is not wanted.
    """
    if config.mode != "ipvs":
        return config.mode, ""
    from pykubeproxy.ipvs.node import explain, find_problems

    problems = find_problems(config.ipvs.scheduler, tools)
    if problems:
        # It may have been chance, and a fallback takes down what served here until now.
        found = "; ".join(problem.what for problem in problems)
        log.warning("ipvs mode seems impossible, looking again", found=found)
        time.sleep(RECHECK_SECONDS)
        problems = find_problems(config.ipvs.scheduler, tools)
    if not problems:
        return "ipvs", ""
    why_not = explain(problems, fallback=config.ipvs.falls_back)
    if not config.ipvs.falls_back:
        raise Unsupported(why_not)
    log.error(why_not)
    return "iptables", why_not


def _settle_down(leftovers: Thread) -> None:
    """All that is known by now will mostly stay: no garbage collection need look at it again.

    Over a million objects that takes 0.1 s and more, during which a change would wait.
    """
    gc.freeze()
    leftovers.start()


def _remove_other_modes(mode: str, config: Config, stop: Event) -> None:
    """Take out what other modes left, now that this one serves; iptables rules are gone already."""
    tables, problems = remove_nftables_leftovers()
    for table in tables:
        log.info("rules of kube-proxy's nftables mode removed", what=table)
    for problem in problems:
        log.warning("rules of kube-proxy's nftables mode not removed", reason=problem)
    if mode == "ipvs":
        return
    from pykubeproxy.ipvs import leftovers

    removal = leftovers.remove_leftovers(
        config.ipvs.exclude_cidrs, wait=stop.wait, clock=time.monotonic
    )
    for what, count in removal.removed.items():
        log.info("left by ipvs mode, removed", what=what, count=count)
    for problem in removal.problems:
        log.warning("left by ipvs mode, not removed", reason=problem)


def _pages(mode: str, config: Config, metrics: Metrics) -> Pages:
    return Pages(
        metrics.registry,
        mode,
        version=__version__,
        emulated_version=KUBERNETES_VERSION.rpartition(".")[0],
        started_unix_seconds=process_start(),
        configz=configz_json(config),
        flags=flagz(config),
        has_flagz=config.feature_gates["ComponentFlagz"],
        has_statusz=config.feature_gates["ComponentStatusz"],
        profiling=config.profiling,
    )


def _set_verbosity(config: Config, loop: SyncLoop, verbosity: int) -> None:
    log.info("verbosity set", verbosity=verbosity)
    logs.configure(config.log_format, verbosity)
    loop.verbosity = verbosity


def _cannot_listen(opened: Opened, server: str, reason: str) -> None:
    """The process ends now, so the Event has to be posted before."""
    what = "ProxierHealthcheck" if server == HEALTH else "MetricServer"
    opened.record(Happening(f"FailedToStart{what}", "StartKubeProxy", reason))
    opened.flush(LAST_WORDS_SECONDS)


def _open_ports(
    health: HealthServer, context: NodeContext, refused: Callable[[ServiceKey, int, str], None]
) -> ServiceHealth:
    """Start the responders for health check node ports of one family."""
    responders = ServiceHealth(
        context.family, context.nodeport_addresses, health.is_healthy, refused
    )
    responders.start()
    return responders


# --- ending ---


@contextmanager
def _watched_threads(ask_to_end: Callable[[], None]) -> Iterator[list[str]]:
    """End the process when one of its threads dies; yields the names of those that did.

    A proxy without one of its parts would look alive and do half its work. Whoever runs it
    starts it again, and the rules stay meanwhile.
    """
    deaths: list[str] = []

    def died(death: threading.ExceptHookArgs) -> None:
        name = death.thread.name if death.thread else "unknown"
        deaths.append(name)
        log.critical(
            "a thread died, ending; this is a bug",
            thread=name,
            exc_info=(death.exc_type, death.exc_value, death.exc_traceback),
        )
        ask_to_end()

    before, threading.excepthook = threading.excepthook, died
    try:
        yield deaths
    finally:
        threading.excepthook = before


def _sync(loop: SyncLoop, failures: list[PykubeproxyError], ask_to_end: Callable[[], None]) -> None:
    """The sync thread. What it cannot serve is no bug: the main thread says so and ends."""
    try:
        loop.run()
    except (ConfigError, HostError) as error:
        failures.append(error)
        ask_to_end()


def _end_sync(thread: Thread, stop: Event, mailbox: Mailbox) -> None:
    stop.set()
    mailbox.wake()
    thread.join()


class _EndedEarly(BaseException):
    """A signal came while the parts were being built."""


class _EndRequests:
    """What the main thread waits for: SIGTERM, SIGINT, or the death of a thread.

    They arrive as bytes in a socket. An Event that a handler sets is not enough: Python runs
    handlers on the main thread between two instructions, so a signal that another thread takes,
    or that comes just before the wait, left it waiting for good (3 % of ends on a busy machine).
    """

    def __enter__(self) -> _EndRequests:
        self._asked = 0
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._hear) for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        """The byte that was written before this call is what `wait` reads.

        Whoever asks a second time does not want to wait for a tool or a thread any longer. Nothing
        is raised: that would be in the midst of anything, and lost in some places.
        """
        self._asked += 1
        if self._asked > 1:
            os._exit(128 + number)

    def check(self) -> None:
        """Raise _EndedEarly if a signal came; for the main thread while it builds."""
        if self.signalled:
            raise _EndedEarly

    @property
    def signalled(self) -> bool:
        """Whether a signal came."""
        return self._asked > 0

    def ask(self) -> None:
        """End the wait; from any thread."""
        with suppress(OSError):  # full, or closed: the end is under way
            self._writer.send(b"\0")

    def wait(self) -> None:
        number = self._reader.recv(1)[0]
        if number:
            log.info("stopping", signal=signal.Signals(number).name)
