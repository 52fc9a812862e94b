"""Entry point: arguments to configuration, configuration to a running daemon, errors to exit codes.

Exit status 0: version, help, a written configuration, successful initialisation or cleanup, orderly
stop. Everything else 1.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from msgspec import Struct, structs

from pykubeproxy import KUBERNETES_VERSION, __version__
from pykubeproxy.config import Command, Config
from pykubeproxy.configbuild import build
from pykubeproxy.configfile import Document, parse_document, read_file
from pykubeproxy.errors import ConfigError, HostError
from pykubeproxy.flags import ACTIONS, FLAGS, Parsed, full_usage, parse, usage
from pykubeproxy.settings import Given, Type, from_text, shown

__all__ = ["configure", "main"]


class Source(Struct, frozen=True):
    """The file that a configuration was read from."""

    path: Path
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with *argv* (default: the process's arguments); return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    sources: list[Source] = []

    judged = _handed_over()

    def read(path: Path) -> str:
        sources.append(Source(path, read_file(path) if judged is None else judged))
        return sources[-1].text

    try:
        config = configure(arguments, read)
        if config is None:
            asked = parse(arguments).always["--help"].value
            return _print(full_usage() if asked == "all" else usage())
        match config.command:
            case Command.VERSION:
                return _print(_version(config))
            case Command.WRITE_CONFIG:
                return _write_config(config)
        # Late, so that all of the above and wrong flags answer without loading the daemon.
        from pykubeproxy import logs

        logs.configure(config.log_format, config.verbosity)
        if config.command is Command.RUN:
            return 0 if _serve(config, arguments, sources) else 1
        from pykubeproxy import daemon

        logs.say_notices(config.notices)
        clean_up = config.command is Command.CLEANUP
        return daemon.cleanup(config, _print) if clean_up else daemon.initialise(config)
    except (ConfigError, HostError) as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        # Serving has its own way to end; the rest may be cut off anywhere and begun again.
        _complain("interrupted; what was not done yet is done when it is run again")
        return 128 + signal.SIGINT


def _print(text: str) -> int:
    """Write *text* to standard output.

    Raises:
        HostError: it is full, closed, or nobody reads it any more.
    """
    try:
        if sys.stdout is None:  # it was closed when the interpreter began
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is left in its buffer would be complained about once more at the exit.
        sys.stdout = None  # what Python itself has for a closed one
        raise HostError(f"cannot write to standard output: {error.strerror}") from error
    return 0


def _complain(text: str) -> None:
    with suppress(OSError, AttributeError):  # there may be nobody to tell
        sys.stderr.write(f"pykubeproxy: {text}\n")


def configure(argv: Sequence[str], read: Callable[[Path], str] = read_file) -> Config | None:
    """Return what *argv* (and the file it names) ask for; ``None`` asks for the help text.

    With ``--config`` the file is the whole configuration, except for the flags that always count;
    other flags given along with it are named in a notice. Nothing is read for --version. *read*
    returns the text of a file, or raises ConfigError.

    Raises:
        ConfigError: something cannot be used; it lists all that was found, of flags and file.
    """
    parsed = parse(argv)
    problems = list(parsed.problems)
    wants_help = _is_asked(parsed, "--help", problems)
    wants_version = _is_asked(parsed, "--version", problems)
    if (wants_help or wants_version) and problems:
        raise ConfigError.of(problems)
    if wants_help:
        return None
    flags = {name: one.value for name, one in {**parsed.always, **parsed.without_file}.items()}
    if wants_version:
        return Config(command=Command.VERSION, flags=flags)

    path = str(parsed.always["--config"].value) if "--config" in parsed.always else ""
    if not path:
        config = build({**parsed.without_file, **parsed.always}, problems=problems)
        return structs.replace(config, flags=flags)
    document = _load(Path(path), read)
    problems += document.problems
    config = build(_merged(document, parsed), document.notices, problems)
    notices = config.notices
    ignored = [flag.name for flag in FLAGS if flag.setting in parsed.without_file]
    if ignored:
        notice = f"ignored because --config is given: {', '.join(ignored)}; set them in {path}"
        notices = (notice, *notices)
    return structs.replace(config, flags=flags, notices=notices)


def _load(path: Path, read: Callable[[Path], str]) -> Document:
    try:
        return parse_document(read(path), str(path))
    except ConfigError as error:
        return Document(problems=error.problems)


def _merged(document: Document, parsed: Parsed) -> dict[str, Given]:
    """The file's settings, but those of the flags that always count; vmodule is of both."""
    merged = {**document.given, **parsed.always}
    vmodule = [
        given["logging.vmodule"].value
        for given in (parsed.always, document.given)
        if "logging.vmodule" in given
    ]
    if len(vmodule) == 2:
        first, then = vmodule
        assert isinstance(first, tuple)
        assert isinstance(then, tuple)
        merged["logging.vmodule"] = Given(first + then, merged["logging.vmodule"].where)
    return merged


_WORDS = {"--help": "all", "--version": "raw"}
"""What the flag may say instead of true or false."""


def _is_asked(parsed: Parsed, name: str, problems: list[tuple[str, str]]) -> bool:
    text = str(parsed.always[name].value) if name in parsed.always else "false"
    # kube-proxy's --version=v1.2.3 changes what version it says; here it is just said.
    if text == _WORDS[name] or (name == "--version" and text.startswith("v")):
        return True
    try:
        return bool(from_text(Type.BOOL, text, name))
    except ConfigError:
        reason = f"must be true, false or {_WORDS[name]}"
        problems.append((name, f"invalid value {shown(text)}: {reason}"))
        return False


def _version(config: Config) -> str:
    if config.flags["--version"] != "raw":
        return f"pykubeproxy {__version__} (Kubernetes v{KUBERNETES_VERSION})\n"
    import platform

    major, minor, _ = KUBERNETES_VERSION.split(".")
    parts = {
        "Version": __version__,
        "Major": major,
        "Minor": minor,
        "GitVersion": f"v{KUBERNETES_VERSION}",
        "PythonVersion": platform.python_version(),
        "Compiler": platform.python_implementation(),
        "Platform": f"{platform.system().lower()}/{platform.machine()}",
    }
    return f"version.Info{{{', '.join(f'{name}:{text!r}' for name, text in parts.items())}}}\n"


def _write_config(config: Config) -> int:
    from pykubeproxy.configwrite import to_yaml

    left = [
        flag.name
        for flag in FLAGS
        if flag.setting in config.flags and flag.setting.startswith("--")
        if flag.with_file and flag.group != ACTIONS
    ]
    notices = list(config.notices)
    if left:
        notices.append(f"a file cannot say this, give the flags along: {', '.join(left)}")
    if config.healthz_address is None:
        notices.append("with a file there is always a health server: --healthz-port=0 is not in it")
    for notice in notices:
        _complain(f"notice: {notice}")
    try:
        Path(config.write_config_to).write_text(to_yaml(config), encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        where = f"cannot write {config.write_config_to}"
        raise ConfigError("--write-config-to", f"{where}: {reason}") from error
    return 0


# --- serving ---

_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def _serve(config: Config, arguments: Sequence[str], sources: Sequence[Source]) -> bool:
    """Serve until the end; returns whether that was orderly.

    Does not return where the configuration file asks for a start anew.
    """
    from pykubeproxy.supply import Supply

    with _ended_by_signals():
        supply = Supply(config)
        supply.start()
        # After it: the lists are under way while this is loaded.
        from pykubeproxy import daemon
        from pykubeproxy.reload import Reload

        def judge(text: str) -> Config:
            changed = configure(arguments, lambda _: text)
            assert changed is not None
            return changed

        reload = None
        if sources:
            path, text = sources[-1].path, sources[-1].text
            reload = Reload(config, path, text, judge, daemon.rehearse)
        status = daemon.run(config, supply, reload)
        if status == daemon.RESTART:
            assert reload is not None
            _start_anew(arguments, reload.text)
    return status == 0


_JUDGED = "PYKUBEPROXY_JUDGED_CONFIGURATION"
"""Environment variable: the descriptor of what the program before in this process handed over."""


def _left_behind(text: str) -> dict[str, str]:
    """Leave *text* to the program that this process becomes; returns what its environment says.

    What the file holds by then may be unusable, which is to be told and not to end everything.
    """
    try:
        fd = os.memfd_create("configuration")
        with open(fd, "wb", closefd=False) as file:
            file.write(text.encode())
        os.lseek(fd, 0, os.SEEK_SET)
        os.set_inheritable(fd, True)
    except OSError:
        return {}  # no memory or descriptor left: then the file is read
    return {_JUDGED: str(fd)}


def _handed_over() -> str | None:
    """The text of the configuration file that this start was judged by, if it is not the first.

    Should the file have changed meanwhile, whoever follows it finds that and judges again.
    """
    given = os.environ.pop(_JUDGED, None)
    if given is None:
        return None
    try:
        with open(int(given), "rb") as file:
            return file.read().decode()
    except (OSError, ValueError):
        return None


def _start_anew(arguments: Sequence[str], text: str) -> None:
    """Become the program again, in this process, with *text* for the configuration file.

    Raises:
        HostError: the interpreter cannot be run any more.
    """
    command = sys.orig_argv[1:]
    if arguments != sys.argv[1:]:
        command = ["-m", "pykubeproxy", *arguments]
    # A signal between here and the new program's handlers would kill it, or, as process 1 of a
    # container, be lost. So it waits; `_ended_by_signals` lets it come.
    signal.pthread_sigmask(signal.SIG_BLOCK, _END_SIGNALS)
    environment = {**os.environ, **_left_behind(text)}
    with suppress(OSError, AttributeError):  # nobody may be reading
        sys.stdout.flush()
        sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *command], environment)
    except OSError as error:
        reason = f"cannot run {sys.executable or 'the interpreter'} again: {error.strerror}"
        raise HostError(f"{reason}; start pykubeproxy anew, rules stay meanwhile") from error


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until the daemon hears them itself: nothing is written so far, so the end is orderly.

    Not by an exception: a handler may be called within a callback of the import system, which
    prints and ignores what is raised in it (one end in some hundred, while modules load).
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(0)

    before = {number: signal.signal(number, end) for number in _END_SIGNALS}
    try:
        # Blocked where this process began anew.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _END_SIGNALS)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
