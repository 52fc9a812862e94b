"""The two servers of the daemon itself: proxy health for load balancers and probes, and metrics.

They share nothing but the thread that retries an address which cannot be listened on: a scrape
holds up no probe, and either comes up without the other. Answers are made from the `Status`
published last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from threading import Event, Thread

import structlog
from msgspec import Struct

from pykubeproxy.errors import HostError
from pykubeproxy.serve.answers import NOT_FOUND, Answer, health, readiness, redirect
from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.pages import Pages
from pykubeproxy.serve.server import HttpServer, Listening, Responder, everywhere, listen_error
from pykubeproxy.serve.status import Instant, Status

__all__ = ["HEALTH", "METRICS", "HealthServer", "now"]

log = structlog.get_logger(__name__)

RETRY_SECONDS = 5.0

HEALTH, METRICS = "healthz", "metrics"
"""Names of the two servers, as ``on_failure`` gets them."""


def now() -> Instant:
    """Read both clocks."""
    return Instant(time.time_ns(), time.monotonic())


class HealthServer:
    """Serves ``/healthz``, ``/livez`` and ``/readyz`` at one address, *pages* at another.

    ``count`` is told each answer to ``healthz`` or ``livez`` with its status code. ``on_failure``
    hears, before `start` raises, which server (`HEALTH`, `METRICS`) could not listen and why.
    """

    def __init__(
        self,
        status: Status,
        pages: Pages,
        healthz_address: tuple[str, int] | None,
        metrics_address: tuple[str, int] | None,
        hard_fail: bool = False,
        count: Callable[[str, int], None] = lambda _path, _code: None,
        clock: Callable[[], Instant] = now,
        on_failure: Callable[[str, str], None] = lambda _server, _reason: None,
    ) -> None:
        self._status = status
        self._hard_fail = hard_fail
        self._count = count
        self._clock = clock
        self._on_failure = on_failure
        self._has_health = healthz_address is not None
        self._doors: list[_Door] = []
        if healthz_address is not None:
            self._doors.append(_Door(HEALTH, *healthz_address, self.answer_health))
        if metrics_address is not None:
            self._doors.append(_Door(METRICS, *metrics_address, pages.answer))
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports listened on now, health first: tells what port 0 became."""
        return tuple(door.listening_at for door in self._doors if door.listening_at)

    def publish(self, status: Status) -> None:
        """Answer from *status* from now on. Any thread, never waits."""
        self._status = status

    def is_healthy(self) -> bool:
        """Tell whether the proxy is healthy now, for the responders of single services.

        Without a health server nothing is measured, and load balancers keep this node.
        """
        return not self._has_health or self._status.is_healthy(self._clock())

    def start(self) -> None:
        """Listen, and keep trying every 5 s where that fails.

        Raises:
            HostError: with *hard_fail*, an address cannot be listened on.
        """
        if self._try_all():
            return
        if self._hard_fail:
            failures = [door for door in self._doors if door.failure]
            for door in failures:
                self._on_failure(door.name, door.explanation)
            self.stop()
            raise HostError(
                f"{'; '.join(door.explanation for door in failures)}; free the port, choose "
                "another, or drop --bind-address-hard-fail"
            )
        self._thread = Thread(target=self._keep_trying, name="health-listeners", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the listeners and end their threads."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for door in self._doors:
            door.close()

    def answer_health(self, request: Request) -> Answer:
        clean = request.clean_path
        if clean:
            location = f"{clean}?{request.query}" if request.query else clean
            return redirect(location, request.method, HTTPStatus.TEMPORARY_REDIRECT)
        match request.path:
            case "/healthz" | "/livez" as path:
                answer = health(self._status, self._clock(), with_node=path == "/healthz")
                self._count(path[1:], answer.code)
                return answer
            case "/readyz":
                return readiness(self._status)
        return NOT_FOUND

    def _try_all(self) -> bool:
        again = {} if self._hard_fail else {"retry_seconds": RETRY_SECONDS}
        opened = [door.open(again) for door in self._doors]
        return all(opened)

    def _keep_trying(self) -> None:
        while not self._stop.wait(RETRY_SECONDS):
            if self._try_all():
                return


class _Door(Struct, eq=False):
    """One address, and the server behind it once it is open."""

    name: str
    host: str
    port: int
    responder: Responder
    failure: str = ""  # why it is not open; the reason logged last
    listening_at: int = 0
    server: HttpServer | None = None

    @property
    def explanation(self) -> str:
        """The failure in kube-proxy's words, which its Events had."""
        if self.name == HEALTH:
            address = f"[{self.host}]" if ":" in self.host else self.host
            return (
                "healthz server failed: failed to start proxy healthz on "
                f"{address}:{self.port}: {self.failure}"
            )
        return f"starting metrics server failed: {self.failure}"

    def open(self, again: Mapping[str, float]) -> bool:
        """Listen unless done already; ``False`` is a failure, logged when its reason is new.

        *again* are the fields of the log that tell when it is tried once more.
        """
        if self.server is not None:
            return True
        try:
            listener = everywhere(self.host, self.port)
        except OSError as error:
            reason = listen_error("tcp", self.host, self.port, error)
            if reason != self.failure:
                self.failure = reason
                log.error(
                    "cannot listen", server=self.name, address=f"{self.host} port {self.port}",
                    reason=reason, **again,
                )  # fmt: skip
            return False
        if self.failure:
            self.failure = ""
            log.info("listening after all", address=f"{self.host} port {self.port}")
        self.listening_at = listener.getsockname()[1]
        self.server = HttpServer(f"http-{self.name}")
        self.server.add(Listening([listener], self.responder))
        self.server.start()
        return True

    def close(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None
            self.listening_at = 0
