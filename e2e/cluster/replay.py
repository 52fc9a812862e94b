"""A server that says what a kube-apiserver 1.36.2 once said, byte for byte.

It has no state: a request gets the recording that its scene has for this kind of request. Streams
keep their recorded rhythm, quickened by `PACE`.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trustme

from tests.fakes import recordings
from tests.fakes.apiserver import listening

__all__ = ["Replay", "Scene"]

PACE = 0.15
_RECORDINGS = Path(recordings.__file__).parent / "recordings"

Scene = dict[str, str]
"""Which recording answers a streaming list (``stream``), the first page of a list (``list``),
later pages (``page``, ``page-2``), a list without a limit (``whole``), and a watch (``watch``) of
Services; ``slices-watch`` a watch of slices."""

DEFAULT: Scene = {
    "stream": "services-watchlist-unsupported",
    "list": "services-list",
    "page": "services-page-2",
    "page-2": "services-continue-expired",
    "whole": "services-list",
    "watch": "services-watch-future",
    "slices-watch": "services-watch-future",
}
_OTHERS = {"nodes": "nodes-list-one", "endpointslices": "endpointslices-list"}


class Replay:
    """Made inside the namespace it is to be reached in; *authority* signs its certificate."""

    def __init__(self, scene: Scene, authority: trustme.CA, port: int) -> None:
        self._scene = {**DEFAULT, **scene}
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._changed = threading.Condition()
        self._told: Counter[str] = Counter()
        self._asked_after: Counter[str] = Counter()
        self._sockets: list[socket.socket] = []
        self.ending = threading.Event()
        self._server = listening(lambda: _Server(("127.0.0.1", port), _Handler))
        self._server.replay = self
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def close(self) -> None:
        self.ending.set()
        self._server.shutdown()
        self._server.server_close()
        # A kept connection would go on being answered from here.
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def wait_for_reaction(self, name: str, seconds: float = 30.0) -> None:
        """Return when *name* was told to the end and something was asked after that."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._asked_after[name], seconds):
                raise AssertionError(f"no reaction to {name}; told: {self._told}")

    def tls(self, sock: socket.socket) -> ssl.SSLSocket:
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._sockets.append(wrapped)
        return wrapped

    def answer_to(self, method: str, target: str) -> str:
        """The name of the recording that answers this request."""
        split = urlsplit(target)
        query, plural = dict(parse_qsl(split.query)), split.path.rpartition("/")[2]
        with self._changed:
            for name in self._told:
                self._asked_after[name] += plural != "events"
            self._changed.notify_all()
        if method == "POST":
            return "event-create"
        if "sendInitialEvents" in query:
            return self._scene["stream"] if plural == "services" else DEFAULT["stream"]
        if "watch" in query:
            return self._scene["slices-watch" if plural == "endpointslices" else "watch"]
        if plural in _OTHERS:
            return _OTHERS[plural]
        if "continue" in query:
            return self._scene["page-2" if self._told["services-page-2"] else "page"]
        return self._scene["list" if "limit" in query else "whole"]

    def told(self, name: str) -> None:
        with self._changed:
            self._told[name] += 1
            self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    replay: Replay

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        return self.replay.tls(sock), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The daemon may hang up whenever it likes."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        name = self.server.replay.answer_to(self.command, self.path)
        recording = recordings.load(name)
        self.send_response_only(recording.status)
        for header, value in recording.headers.items():
            # Recorded bodies were parsed and may be a byte shorter now.
            self.send_header(header, str(len(recording.raw())) if _is_length(header) else value)
        self.end_headers()
        if "Transfer-Encoding" not in recording.headers:
            self.wfile.write(recording.raw())
        elif recording.is_watch:
            self._stream(name)
        else:
            self._chunk(recording.raw())
            self._chunk(b"")
        self.wfile.flush()
        self.server.replay.told(name)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def _stream(self, name: str) -> None:
        steps = json.loads((_RECORDINGS / f"{name}.json").read_text())["response"]["stream"]
        passed = 0.0
        for step in steps:
            if self.server.replay.ending.wait((step["after_s"] - passed) * PACE):
                return
            passed = step["after_s"]
            line = step["line"]
            # What is no event is the recorder's word for the end.
            self._chunk(
                json.dumps(line, separators=(",", ":")).encode() + b"\n"
                if isinstance(line, dict)
                else b""
            )

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()


def _is_length(header: str) -> bool:
    return header.lower() == "content-length"
