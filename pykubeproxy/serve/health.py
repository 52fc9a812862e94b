"""The two servers of the daemon itself: proxy health for load balancers and probes, and metrics.

One thread owns the listeners and retries those that cannot listen; each request is answered on a
thread of its own from the `Status` published last, so a slow client holds up nobody.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import urlsplit

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pykubeproxy.errors import HostError
from pykubeproxy.serve.answers import NOT_FOUND, Answer, health, plain
from pykubeproxy.serve.status import Instant, Status

__all__ = ["HealthServer", "HttpListener", "now"]

log = structlog.get_logger()

RETRY_SECONDS = 5.0
_CLIENT_TIMEOUT_SECONDS = 10.0

Responder = Callable[[str], Answer]


def now() -> Instant:
    """Read both clocks."""
    return Instant(time.time(), time.monotonic())


class HealthServer:
    """Serves ``/healthz`` and ``/livez`` at one address, ``/metrics`` and more at another.

    ``count`` is told each answer of the health paths (``healthz`` or ``livez``, status code).
    """

    def __init__(
        self,
        status: Status,
        registry: CollectorRegistry,
        mode: str,
        healthz_address: tuple[str, int] | None,
        metrics_address: tuple[str, int] | None,
        hard_fail: bool = False,
        count: Callable[[str, int], None] = lambda _path, _code: None,
        clock: Callable[[], Instant] = now,
    ) -> None:
        self._status = status
        self._registry = registry
        self._mode = mode
        self._hard_fail = hard_fail
        self._count = count
        self._clock = clock
        self._listeners: list[HttpListener] = []
        if healthz_address is not None:
            self._listeners.append(HttpListener(healthz_address, self.answer_health))
        if metrics_address is not None:
            self._listeners.append(HttpListener(metrics_address, self.answer_metrics))
        self._stop = Event()
        self._thread: Thread | None = None

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports listened on now, health first: tells what port 0 became."""
        return tuple(listener.port for listener in self._listeners if listener.port)

    def publish(self, status: Status) -> None:
        """Answer from *status* from now on. Any thread, never waits."""
        self._status = status

    def is_healthy(self) -> bool:
        """Tell whether the proxy is healthy now, for the responders of single services."""
        return self._status.is_healthy(self._clock())

    def start(self) -> None:
        """Listen, and keep trying every 5 s where that fails.

        Raises:
            HostError: with *hard_fail*, an address cannot be listened on.
        """
        if self._try_all():
            return
        if self._hard_fail:
            self.stop()
            raise HostError(
                "cannot listen on the health or metrics address (see the log); free the port, "
                "choose another, or drop --bind-address-hard-fail"
            )
        self._thread = Thread(target=self._keep_trying, name="health-listeners", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the listeners and end their threads."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for listener in self._listeners:
            listener.close()

    def answer_health(self, path: str) -> Answer:
        if path not in ("/healthz", "/livez"):
            return NOT_FOUND
        answer = health(self._status, self._clock(), with_node=path == "/healthz")
        self._count(path[1:], answer.code)
        return answer

    def answer_metrics(self, path: str) -> Answer:
        match path:
            case "/metrics":
                body = generate_latest(self._registry)
                return Answer(200, body, (("Content-Type", CONTENT_TYPE_LATEST),))
            case "/healthz" | "/healthz/ping":
                return plain("ok")  # this server answers; proxy health is the other address's
            case "/proxyMode":
                return plain(self._mode)
        return NOT_FOUND

    def _try_all(self) -> bool:
        opened = [listener.open() for listener in self._listeners]
        return all(opened)

    def _keep_trying(self) -> None:
        while not self._stop.wait(RETRY_SECONDS):
            if self._try_all():
                return


class HttpListener:
    """One address that answers every method through a *responder* (path without query -> answer).

    ``0.0.0.0`` and ``::`` both mean all addresses of both families, as in Go.
    """

    def __init__(self, address: tuple[str, int], responder: Responder) -> None:
        self._address = address
        self._responder = responder
        self._server: ThreadingHTTPServer | None = None
        self._failure = ""  # the reason logged last
        self._thread: Thread | None = None

    @property
    def port(self) -> int:
        return self._server.server_address[1] if self._server else 0

    def open(self) -> bool:
        """Listen unless done already; ``False`` is a failure, logged when its reason is new."""
        if self._server is not None:
            return True
        host, port = self._address
        try:
            self._server = _listen(host, port, self._responder)
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.error(
                    "cannot listen", address=f"{host} port {port}", reason=self._failure,
                    retry_seconds=RETRY_SECONDS,
                )  # fmt: skip
            return False
        if self._failure:
            self._failure = ""
            log.info("listening after all", address=f"{host} port {port}")
        self._thread = Thread(
            target=self._server.serve_forever, name=f"http-{self.port}", daemon=True,
            kwargs={"poll_interval": 0.1},
        )  # fmt: skip
        self._thread.start()
        return True

    def close(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None


def _listen(host: str, port: int, responder: Responder) -> ThreadingHTTPServer:
    unspecified = host in ("0.0.0.0", "::")

    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_SECONDS

        def _answer(self) -> None:
            answer = responder(urlsplit(self.path).path)
            self.send_response(answer.code)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _answer

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds; they are counted, not logged."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True
        block_on_close = False

        def server_bind(self) -> None:
            # HTTPServer would look up the host's name here, which can take seconds.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()

        def handle_error(self, request: object, client_address: object) -> None:
            log.debug("request broken off", client=str(client_address), exc_info=True)

    class DualStackServer(Server):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    if not unspecified:
        return Server((host, port), Handler)
    try:
        return DualStackServer(("::", port), Handler)
    except OSError:
        if host == "::":
            raise
        return Server((host, port), Handler)  # a kernel without IPv6
