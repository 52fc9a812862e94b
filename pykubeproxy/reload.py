"""Decides what a changed configuration file means for the running process.

A file that cannot be used is reported and the old configuration stays; one that asks for what is
in force already is only noted; anything else asks for an orderly restart of the process, which
`pykubeproxy.cli` makes (docs/decisions/0009-config-reload.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from pykubeproxy.config import Config, is_same
from pykubeproxy.configwrite import changed_paths
from pykubeproxy.errors import ConfigError, HostError

__all__ = ["Reload"]

log = structlog.get_logger(__name__)


class Reload:
    """Follows the file at *path*, which held *text* when *running* was made of it.

    *judge* makes a configuration of a text as at the start of the process, and *rehearse* raises
    what a start with it would end at on this node, as ``check_node`` does for what the Node
    object tells. ``wanted`` turns true when the process is to end so that it can begin anew, with
    ``text``, the last one that can be used. ``tell_valid`` is called after each change, with
    whether the file can be used.
    """

    def __init__(
        self,
        running: Config,
        path: Path,
        text: str,
        judge: Callable[[str], Config],
        rehearse: Callable[[Config], None],
    ) -> None:
        self.wanted = False
        self._running = running
        self._path = path
        self._judge = judge
        self._rehearse = rehearse
        self.text = text
        self._stop: Callable[[], None] = _do_nothing
        self._ask_to_end: Callable[[], None] = _do_nothing
        self.tell_valid: Callable[[bool], None] = _ignore
        self.check_node: Callable[[Config], None] = _ignore

    def start(self, ask_to_end: Callable[[], None]) -> None:
        """Begin to follow; *ask_to_end* is called, from another thread, once ``wanted`` is true."""
        from pykubeproxy.watch.config_file import ConfigFile  # late: most of a start needs none

        if self._path.exists() and not self._path.is_file():
            log.warning("configuration not followed, it came from no file", path=str(self._path))
            return  # of a pipe nothing is left to be read
        self._ask_to_end = ask_to_end
        file = ConfigFile(self._path, self.text, self.consider)
        file.start()
        self._stop = file.stop

    def stop(self) -> None:
        """Follow no longer; returns when the thread is gone."""
        self._stop()

    def consider(self, text: str) -> None:
        """Judge the new *text* of the file."""
        path = str(self._path)
        try:
            config = self._judge(text)
            same = is_same(self._running, config)
            if not same:
                self.check_node(config)
                self._rehearse(config)
        except (ConfigError, HostError) as error:
            problems = error.problems if isinstance(error, ConfigError) else [("", str(error))]
            for where, problem in problems:
                about = {"field": where} if where else {}
                log.error("configuration refused", **about, reason=problem, path=path)
            log.error(
                "the old configuration stays; correct the file", path=path, problems=len(problems)
            )
            self.tell_valid(False)
            return
        self.text = text
        self.tell_valid(True)
        if same:
            # What is odd about the new text is told nowhere else.
            for notice in config.notices:
                if notice not in self._running.notices:
                    log.warning("notice", text=notice)
            log.info("configuration file changed, but nothing that it asks for", path=path)
            return
        changed = ", ".join(changed_paths(self._running, config))
        log.info("configuration file changed, restarting", path=path, changed=changed)
        self.wanted = True
        self._ask_to_end()


def _do_nothing() -> None:
    pass


def _ignore(_: object) -> None:
    pass
