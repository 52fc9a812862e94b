"""A stand-in kube-apiserver over real HTTPS on the loopback, with misfortunes on request.

Faithful to the recordings of a kube-apiserver 1.36.2 that `test_apiserver` replays against it.
One thread per connection, as a proxy opens few of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import trustme
import yaml

from tests.fakes.apianswers import Answer, Request, status_body
from tests.fakes.apihandler import Handler
from tests.fakes.apirights import Rights
from tests.fakes.apistore import ClusterStore, Object

__all__ = [
    "Answer",
    "FakeApiServer",
    "Request",
    "certificate_authority",
    "listening",
    "status_body",
]

S = TypeVar("S")
BIND_TRIES = 250

_AUTHORITY = trustme.CA()  # made once: keys are slow
_CERTIFICATE = _AUTHORITY.issue_cert("127.0.0.1", "localhost")


def listening(make: Callable[[], S]) -> S:
    """Make a server; a port that another one has just let go of may take a moment."""
    pause = threading.Event()
    for _ in range(BIND_TRIES):
        try:
            return make()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            pause.wait(0.02)
    return make()


def certificate_authority() -> trustme.CA:
    """The authority that every stand-in's certificate is from."""
    return _AUTHORITY


class FakeApiServer:
    """Use as a context manager; `store` is the cluster.

    *second* is how long a second of ``timeoutSeconds`` takes, so that tests need not wait.
    ``streaming_lists`` is ``"on"``, ``"error"`` (an ERROR event), ``"invalid"`` (422) or
    ``"ignored"`` (servers before 1.27).
    """

    def __init__(self, second: float = 1.0) -> None:
        self.store = ClusterStore()
        self.second = second
        self.streaming_lists = "on"
        self.bookmarks = True
        self.tokens = {"admin-token": "admin", "proxy-token": "system:kube-proxy"}
        self.forbidden: set[str] = {"secrets"}  # plurals the proxy's user may not touch
        # What a user may do; those who are not here may do everything that is not forbidden.
        self.rights: dict[str, Rights] = {}
        self.unserved: set[str] = set()  # plurals this server does not know
        self.requests: list[Request] = []
        self.events: list[Object] = []
        self.frozen = threading.Event()  # half-open: nothing is sent, nothing is closed
        self.script: deque[Answer] = deque()
        self.changed = threading.Condition()
        self._watches: set[Handler] = set()
        self._sockets: set[socket.socket] = set()
        self._server: Server | None = None
        self.port = 0

    # --- running --------------------------------------------------------------------------------

    def __enter__(self) -> FakeApiServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Serve; after `stop` on the same port as before."""
        self._server = listening(lambda: Server(("127.0.0.1", self.port), Handler))
        self._server.fake = self
        self.port = self._server.server_address[1]
        args = {"poll_interval": 0.01}
        threading.Thread(target=self._server.serve_forever, kwargs=args, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections and break the open ones."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        self.cut()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def write_kubeconfig(
        self,
        directory: Path,
        user: dict[str, Any] | None = None,
        cluster: dict[str, Any] | None = None,
    ) -> Path:
        """Write a kubeconfig (and the CA) for this server; *user* defaults to the proxy's token."""
        (directory / "ca.pem").write_bytes(_AUTHORITY.cert_pem.bytes())
        trust = {"server": self.url, "certificate-authority": "ca.pem"} | (cluster or {})
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": trust}],
            "users": [{"name": "proxy", "user": user or {"token": "proxy-token"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "proxy"}}],
        }
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    # --- misfortunes ----------------------------------------------------------------------------

    def answer_next(self, *answers: Answer) -> None:
        """Give these replies to the next requests that they match, in order."""
        self.script.extend(answers)

    def fail_next(
        self,
        count: int,
        code: int,
        reason: str = "InternalError",
        message: str = "boom",
        headers: dict[str, str] | None = None,
        matches: Callable[[Request], bool] = lambda _: True,
        **more: Any,
    ) -> None:
        body = json.dumps(status_body(code, reason, message, **more)).encode()
        more_headers = {"Content-Type": "application/json", **(headers or {})}
        self.answer_next(*[Answer(code, body, more_headers, matches=matches)] * count)

    def cut(self, in_mid_line: bool = False) -> None:
        """Break every open connection, the watches after half a line if asked."""
        with self.changed:
            watches, sockets = tuple(self._watches), tuple(self._sockets)
        if in_mid_line:
            for watch in watches:
                watch.send_chunk(b'{"type":"ADDED","object":{"kind":"Serv')
        for sock in sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def end_watches(self) -> None:
        """End every watch as if its time were over."""
        with self.changed:
            for watch in self._watches:
                watch.ended.set()
        with self.store.changed:
            self.store.changed.notify_all()

    def send_line(self, line: bytes) -> None:
        """Say this on every open watch."""
        with self.changed:
            for watch in self._watches:
                watch.send_chunk(line)

    def send_bookmarks(self) -> None:
        with self.changed:
            for watch in self._watches:
                watch.send_bookmark()

    # --- watching the watcher -------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when *condition* holds, which is asked after each request and each change."""
        with self.changed:
            if not self.changed.wait_for(condition, seconds):
                raise AssertionError(f"not within {seconds} s; requests: {self.requests}")

    def wait_for_watches(self, count: int, plural: str = "") -> None:
        """Return when *count* watches (of *plural*) are open and live."""
        self.wait_until(lambda: count <= sum(plural in w.path for w in self._watches))

    def count(self, matches: Callable[[Request], bool]) -> int:
        with self.changed:
            return sum(matches(request) for request in self.requests)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    fake: FakeApiServer

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _CERTIFICATE.configure_cert(context)
        # The handshake is made by the first read, on the connection's own thread.
        wrapped = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self.fake.changed:
            self.fake._sockets.add(wrapped)
        return wrapped, address

    def shutdown_request(self, request: Any) -> None:
        with self.fake.changed:
            self.fake._sockets.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what these tests are about."""
