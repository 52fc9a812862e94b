"""What the metrics port answers, path by path; the paths and forms are kube-proxy's.

Everything is made from memory when asked for. An answer never waits for a sync, and a sync never
for an answer.
"""

from __future__ import annotations

import gzip
import os
import platform
import random
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pykubeproxy.serve import exposition, negotiation, protobuf
from pykubeproxy.serve.answers import JSON, NOT_FOUND, Answer, plain, redirect
from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.zpages import Flagz, Lot, Statusz

__all__ = ["Pages"]

_LISTED = ("/configz", "/healthz", "/metrics", "/proxyMode")
_GZIP_LEVEL = 1  # a tenth of the size for a millisecond; the next levels are slower, hardly better
_VERBOSITIES = range(-(2**31), 2**31)
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_GO_ESCAPES = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
    '"': '\\"', "\\": "\\\\",
}  # fmt: skip

_PROFILES = """\
This is no Go program; of /debug/pprof it has what has a meaning here:

/debug/pprof/goroutine  the stack of every thread, as text
/debug/pprof/cmdline    the command line

For more, run py-spy on the node: py-spy dump --pid {pid}, py-spy record --pid {pid}
"""


class Pages:
    """Answers everything that is asked at the metrics address.

    *configz* is the whole JSON document, *flags* name and effective value of each flag;
    *started_unix_seconds* is the start of the process. With *profiling* there are threads to look
    at, and *set_verbosity* is called with what is PUT to ``/debug/flags/v``. One calling thread.
    """

    set_verbosity: Callable[[int], None]
    """May be set later than the rest: what it sets is made later."""

    def __init__(
        self,
        registry: Collector,
        mode: str,
        *,
        version: str,
        emulated_version: str = "",
        started_unix_seconds: float | None = None,
        configz: bytes = b"{}",
        flags: Mapping[str, str] | None = None,
        has_flagz: bool = True,
        has_statusz: bool = True,
        profiling: bool = False,
        set_verbosity: Callable[[int], None] = lambda _verbosity: None,
        clock: Callable[[], float] = time.time,
        draw: Lot = random.choice,
    ) -> None:
        self._registry = registry
        self._mode = mode
        self._configz = configz
        self.set_verbosity = set_verbosity
        self._clock = clock
        self._draw = draw
        self._started = clock() if started_unix_seconds is None else started_unix_seconds
        self._checks = _Checks()
        self._slis_were_reset = False
        self._paths: dict[str, Callable[[Request], Answer]] = {
            "/configz": self._answer_configz,
            "/healthz": self._answer_health,
            "/healthz/ping": lambda _: plain_text("ok"),
            "/metrics": lambda request: self._scrape(request, self._registry.collect()),
            "/metrics/slis": self._answer_slis,
            "/proxyMode": lambda _: plain(self._mode),
        }
        listed = list(_LISTED)
        if has_flagz:
            self._paths["/flagz"] = Flagz(flags or {}, draw).answer
            listed.append("/flagz")
        if has_statusz:
            self._statusz = Statusz(
                self._started,
                f"Python {platform.python_version()}",
                version,
                emulated_version,
                tuple(listed),  # made before itself was known, as in kube-proxy
            )
            self._paths["/statusz"] = self._answer_statusz
        if profiling:
            self._paths |= {
                "/debug/flags": _flags_index,
                "/debug/flags/v": self._answer_verbosity,
                "/debug/pprof": _to_profiles,
                "/debug/pprof/": _profiles_index,
                "/debug/pprof/goroutine": lambda _: plain_text(_stacks()),
                "/debug/pprof/cmdline": lambda _: plain_text("\0".join(sys.orig_argv)),
            }
        self._profiling = profiling

    def answer(self, request: Request) -> Answer:
        page = self._paths.get(request.path)
        if page is not None:
            return page(request)
        if self._profiling and request.path.startswith("/debug/pprof/"):
            return plain_text(_PROFILES.format(pid=os.getpid()), HTTPStatus.NOT_FOUND)
        if self._profiling and request.path.startswith("/debug/flags/"):
            return _flags_index(request)
        return NOT_FOUND

    # --- metrics ---

    def _scrape(self, request: Request, metrics: Iterable[Metric]) -> Answer:
        form = negotiation.exposition(request.headers.get("accept", ""))
        body = protobuf.delimited(metrics) if form.is_protobuf else exposition.text(metrics)
        headers = [
            ("Content-Type", form.content_type),
            ("Process-Start-Time-Unix", str(int(self._started))),
        ]
        if negotiation.takes_gzip(request.headers.get("accept-encoding", "")):
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
            headers.append(("Content-Encoding", "gzip"))
        return Answer(HTTPStatus.OK, body, tuple(headers))

    def _answer_slis(self, request: Request) -> Answer:
        if request.method == "DELETE":
            self._checks = _Checks()
            self._slis_were_reset = True
            return plain_text("metrics reset\n")
        # kube-proxy sets the start time once, and a reset takes it away with the others.
        start = () if self._slis_were_reset else (_start_time(self._started),)
        return self._scrape(request, (*self._checks.collect(), *start))

    # --- health of this server; the proxy's is told at the other port ---

    def _answer_health(self, request: Request) -> Answer:
        parameters = request.parameters
        unknown = set(parameters.get("exclude", ()))
        lines = []
        if "ping" in unknown:
            unknown.remove("ping")
            lines.append("[+]ping excluded: ok\n")
        else:
            self._checks.count("ping")
            lines.append("[+]ping ok\n")
        if unknown:
            names = ",".join(f'"{name}"' for name in sorted(unknown))
            lines.append(f"warn: some health checks cannot be excluded: no matches for {names}\n")
        if "verbose" not in parameters:
            return plain("ok")
        return plain("".join([*lines, "healthz check passed\n"]))

    # --- what runs here ---

    def _answer_configz(self, _request: Request) -> Answer:
        return Answer(HTTPStatus.OK, self._configz, JSON)

    def _answer_statusz(self, request: Request) -> Answer:
        return self._statusz.answer(request, self._clock(), self._draw)

    def _answer_verbosity(self, request: Request) -> Answer:
        if request.method != "PUT":
            return _line("unsupported http method", HTTPStatus.NOT_ACCEPTABLE)
        text = request.body.decode("utf-8", "replace")
        problem = _problem_with_verbosity(text)
        if problem:
            return _line(
                f"failed set klog.logging.verbosity {text}: strconv.ParseInt: parsing "
                f"{_go_quoted(text)}: {problem}",
                HTTPStatus.BAD_REQUEST,
            )
        self.set_verbosity(int(text))
        return _line(f"successfully set klog.logging.verbosity to {text}")


class _Checks:
    """Counts health checks of this server, as component SLIs (KEP-3466)."""

    def __init__(self) -> None:
        self._done: Counter[str] = Counter()

    def count(self, name: str) -> None:
        self._done[name] += 1

    def collect(self) -> Iterable[Metric]:
        last = GaugeMetricFamily(
            "kubernetes_healthcheck",
            "[STABLE] This metric records the result of a single healthcheck.",
            labels=["name", "type"],
        )
        total = CounterMetricFamily(
            "kubernetes_healthchecks",
            "[STABLE] This metric records the results of all healthcheck.",
            labels=["name", "type", "status"],
        )
        for name, count in self._done.items():
            last.add_metric([name, "healthz"], 1)
            total.add_metric([name, "healthz", "success"], count)
        return last, total


def _start_time(started_unix_seconds: float) -> Metric:
    return GaugeMetricFamily(
        "process_start_time_seconds",
        "[ALPHA] Start time of the process since unix epoch in seconds.",
        value=started_unix_seconds,
    )


def plain_text(text: str, code: int = HTTPStatus.OK) -> Answer:
    """Text whose type Go finds out by itself."""
    return Answer(code, text.encode(), (("Content-Type", "text/plain; charset=utf-8"),))


def _line(text: str, code: int = HTTPStatus.OK) -> Answer:
    return Answer(code, f"{text}\n".encode(), (("Content-Type", "text/plain"),))


def _problem_with_verbosity(text: str) -> str:
    """Say in Go's words why *text* is no 32-bit number; empty: it is one."""
    if not _WHOLE_NUMBER.fullmatch(text):
        return "invalid syntax"
    digits = text.lstrip("+-").lstrip("0")
    if len(digits) > 10 or int(text) not in _VERBOSITIES:
        return "value out of range"
    return ""


def _go_quoted(text: str) -> str:
    """Quote as Go's ``strconv.Quote``."""
    return f'"{"".join(map(_go_escaped, text))}"'


def _go_escaped(character: str) -> str:
    known = _GO_ESCAPES.get(character)
    if known is not None:
        return known
    if character.isprintable():
        return character
    code = ord(character)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _flags_index(_request: Request) -> Answer:
    return plain_text("/debug/flags/v: PUT a number, which becomes the verbosity (-v)\n")


def _to_profiles(request: Request) -> Answer:
    return redirect("/debug/pprof/", request.method, HTTPStatus.FOUND)


def _profiles_index(_request: Request) -> Answer:
    return plain_text(_PROFILES.format(pid=os.getpid()))


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, 'unknown')} ({ident}):\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
