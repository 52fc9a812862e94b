"""How log lines look: one line per event on standard error, readable text or JSON."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

__all__ = ["DEBUG_VERBOSITY", "configure", "say_notices"]

DEBUG_VERBOSITY = 4  # klog's convention: -v=4 is debugging output


def configure(log_format: str, verbosity: int, stream: TextIO | None = None) -> None:
    """Set up structlog for the whole process.

    *log_format* is ``text`` (``TIME LEVEL event key=value …``) or ``json``; debug events show
    from *verbosity* 4. *stream* is standard error unless given.
    """
    level = logging.DEBUG if verbosity >= DEBUG_VERBOSITY else logging.INFO
    render = structlog.processors.JSONRenderer() if log_format == "json" else _render_text
    output = cast(TextIO, _Patient(stream or sys.stderr))  # as far as it is asked for
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=output),
        # Not cached: modules make their loggers at import, tests configure several times.
        cache_logger_on_first_use=False,
    )


class _Patient(io.TextIOBase):
    """Writes to *stream*, or to nobody: a full disk or a reader that went away ends no proxy."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None: it was closed when the interpreter began

    def write(self, text: str, /) -> int:
        if self._stream is not None:
            with suppress(OSError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with suppress(OSError, ValueError):  # of a stream that was closed
                self._stream.flush()


def say_notices(notices: Iterable[str]) -> None:
    """Log what is odd about a configuration: each sentence is one event."""
    log = structlog.get_logger(__name__)
    for notice in notices:
        log.warning("notice", text=notice)


def _render_text(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    time, level, what = (str(event.pop(key, "")) for key in ("time", "level", "event"))
    trace = event.pop("exception", None)
    fields = "".join(f" {key}={_quoted(value)}" for key, value in event.items())
    line = f"{time} {level.upper():<7} {_one_line(what)}{fields}"
    return f"{line}\n{trace}" if trace else line


def _quoted(value: object) -> str:
    """Write *value* so that the end of it can be seen and it stays on its line."""
    if not isinstance(value, str):
        value = str(value)
    plain = value and not any(character in ' "=\\' or not character.isprintable()
                              for character in value)  # fmt: skip
    if plain:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_one_line(escaped)}"'


def _one_line(text: str) -> str:
    return text.replace("\r", "\\r").replace("\n", "\\n")
