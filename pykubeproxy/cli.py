"""Entry point: arguments to configuration, configuration to a running daemon, errors to exit codes.

Exit status 0: version, help, successful cleanup, orderly stop. Everything else 1.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from msgspec import structs

from pykubeproxy import __version__
from pykubeproxy.config import Command, Config, build, load_file
from pykubeproxy.errors import ConfigError, HostError
from pykubeproxy.flags import FLAGS, parse, usage
from pykubeproxy.settings import Given

__all__ = ["configure", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with *argv* (default: the process's arguments); return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        config = configure(arguments)
        if config is None:
            sys.stdout.write(usage())
            return 0
        if config.command is Command.VERSION:
            sys.stdout.write(f"pykubeproxy {__version__}\n")
            return 0
        # Late, so that --version, --help and wrong flags answer without loading the daemon.
        from pykubeproxy import logs

        logs.configure(config.log_format, config.verbosity)
        return _clean_up(config) if config.command is Command.CLEANUP else _serve(config)
    except (ConfigError, HostError) as error:
        sys.stderr.write(f"pykubeproxy: {error}\n")
        return 1


def configure(argv: Sequence[str]) -> Config | None:
    """Return what *argv* (and the file it names) ask for; ``None`` asks for the help text.

    With ``--config`` the file is the whole configuration, except for the flags that always count;
    other flags given along with it are named in a notice. Nothing is read for --version.

    Raises:
        ConfigError: see `parse`, `load_file` and `build`.
    """
    parsed = parse(argv)
    if _is_set(parsed.always, "--help"):
        return None
    if _is_set(parsed.always, "--version"):
        return Config(command=Command.VERSION)
    path = str(parsed.always["--config"].value) if "--config" in parsed.always else ""
    if not path:
        return build({**parsed.without_file, **parsed.always})
    document = load_file(Path(path))
    config = build({**document.given, **parsed.always}, document.notices)
    ignored = [flag.name for flag in FLAGS if flag.setting in parsed.without_file]
    if not ignored:
        return config
    notice = f"ignored because --config is given: {', '.join(ignored)}; set them in {path}"
    return structs.replace(config, notices=(notice, *config.notices))


def _clean_up(config: Config) -> int:
    from pykubeproxy import daemon

    return daemon.cleanup(config)


def _serve(config: Config) -> int:
    from pykubeproxy.supply import Supply

    with _ended_by_signals():
        supply = Supply(config)
        supply.start()
        # After it: the lists are under way while this is loaded.
        from pykubeproxy import daemon

        return daemon.run(config, supply)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until the daemon hears them itself: nothing is written so far, so the end is orderly."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_set(given: dict[str, Given], name: str) -> bool:
    return name in given and given[name].value not in (False, "false")
