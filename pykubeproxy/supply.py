"""Opens the source of objects while the rest of the program is loaded and the node is looked at.

Credentials, connections and first lists need nothing else of this program, and they take longest.
So they begin first, on threads of their own, and what they deliver waits in the mailbox
(docs/decisions/0006-start-up.md).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Lock, Thread

import structlog
from msgspec import Struct

from pykubeproxy.config import Config
from pykubeproxy.errors import ConfigError
from pykubeproxy.measures import Measure
from pykubeproxy.model.objects import Kind
from pykubeproxy.watch.events import EventRecorder, Happening
from pykubeproxy.watch.mailbox import Mailbox
from pykubeproxy.watch.source import Source

__all__ = ["WATCHED", "Opened", "Supply", "node_name"]

log = structlog.get_logger(__name__)

WATCHED = frozenset({Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE})
"""ServiceCIDRs matter to neither mode."""

TURN_SECONDS = 0.2
"""How late a signal may be heard while the source is being opened."""


class Opened(Struct, frozen=True):
    """A source, and who posts Events about its objects (nobody without an API server).

    ``measures`` tell how the conversation with the API server goes.
    """

    source: Source
    recorder: EventRecorder | None = None
    measures: tuple[Measure, ...] = ()

    def record(self, happening: Happening) -> None:
        """Post an Event where there is an API, else log it; never waits, any thread."""
        if self.recorder is not None:
            self.recorder.record(happening)
        else:
            log.debug("event", reason=happening.reason, note=happening.note)

    def flush(self, seconds: float) -> None:
        """Wait until what was recorded is posted, but not longer: an end is under way."""
        if self.recorder is not None:
            self.recorder.flush(seconds)


class Supply:
    """A source that fills *mailbox* as soon as it is open."""

    def __init__(
        self, config: Config, open_source: Callable[[Config, str], Opened] | None = None
    ) -> None:
        """*open_source* makes the source for a node's name, without starting it.

        Raises:
            ConfigError: this node has no name.
        """
        self.mailbox = Mailbox()
        self.node_name = node_name(config)
        self._config = config
        self._open_source = open_source or _open_source
        self._lock = Lock()
        self._running = ExitStack()
        self._ended = False
        self._opened: Future[Opened] = Future()

    def start(self) -> None:
        """Begin to open the source; returns at once."""
        Thread(target=self._open, name="open-source", daemon=True).start()

    def wait(self, check: Callable[[], None] = lambda: None) -> Opened:
        """Return the source, which has been started, or raise what became of it.

        *check* is called now and then, and may raise to give up.

        Raises:
            ConfigError: the API server or this program's credential is not known.
        """
        # In turns: a signal that another thread takes wakes nobody who waits for a lock.
        while not wait([self._opened], TURN_SECONDS).done:
            check()
        return self._opened.result()

    def stop(self) -> None:
        """End the source; returns when its threads are gone.

        One that is still being opened, which may run a program that asks for a password, is left
        to the end of the process, and not started any more.
        """
        with self._lock:
            self._ended = True
            self._running.close()

    def _open(self) -> None:
        try:
            opened = self._open_source(self._config, self.node_name)
            with self._lock:
                if not self._ended:
                    self._start(opened)
        except BaseException as error:
            self._opened.set_exception(error)  # for whoever waits
        else:
            self._opened.set_result(opened)

    def _start(self, opened: Opened) -> None:
        if opened.recorder is not None:
            opened.recorder.start()
            # After the source, whose end breaks off a request that is under way.
            self._running.callback(opened.recorder.stop)
        opened.source.start(self.mailbox)
        self._running.callback(opened.source.stop)


def node_name(config: Config) -> str:
    """The name of this node: as given, else the host's; lower case.

    Raises:
        ConfigError: there is none.
    """
    name = (config.node_name or platform.node()).strip().lower()
    if not name:
        raise ConfigError("--hostname-override", "this host has no name; give the node's name")
    return name


def _open_source(config: Config, name: str) -> Opened:
    # Late imports: each source loads much that the other does not need.
    if config.manifests:
        from pykubeproxy.watch.manifests import ManifestSource

        return Opened(ManifestSource(Path(config.manifests), name))
    from pykubeproxy.watch.client import ApiServer
    from pykubeproxy.watch.reflector import KubernetesSource

    client = ApiServer.from_flags(config.kubeconfig or None, config.master or None)
    log.info("API server", url=client.server)
    recorder = EventRecorder(client, name, platform.node())
    source = KubernetesSource(client, name, WATCHED)
    measures = (*client.requests.measures(), *source.measures(), *recorder.measures())
    return Opened(source, recorder, measures)
