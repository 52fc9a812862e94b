"""HTTP/1 as Go's server speaks it: requests from bytes, answers to bytes; no socket in here.

Load balancers, kubelets and scrapers know kube-proxy's answers, so statuses, the order and the
capitalisation of headers, and what ends a connection are those of net/http.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import parse_qs, quote, unquote

from msgspec import Struct, structs

from pykubeproxy.serve.answers import Answer

__all__ = [
    "BAD_REQUEST",
    "CLOSES",
    "MAX_HEAD_BYTES",
    "TOO_LARGE",
    "Body",
    "Refusal",
    "Request",
    "head_end",
    "http_date",
    "read_head",
    "response",
]

CLOSES = ("Connection", "close")

MAX_HEAD_BYTES = 65536
"""Of a request line and its headers together. Go's limit is 1 MiB; nobody here needs that."""
_MAX_BODY_BYTES = 256 << 10
"""A longer body is not waited for: it is answered at once and the connection closed, as in Go."""
_KEPT_BODY_BYTES = 4096
_MAX_CHUNK_LINE = 4096

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(r"HTTP/([0-9])\.([0-9])")
_HOST = re.compile(r"[!$%&()*+,\-.:;=@\[\]'_~0-9A-Za-z]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BLANK_LINE = re.compile(rb"\n\r?\n")
_ESCAPED_PATH = re.compile(r"[!$%&'()*+,\-./:;=@\[\]_~0-9A-Za-z]+")
_PLAIN_IN_PATHS = "$&+,/:;=@"  # besides letters, digits and "-._~"
_CONTINUE = re.compile(r"(^|[ ,\t])100-continue($|[ ,\t])", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,8}")


class Request(Struct, frozen=True):
    """A request whose head is complete.

    ``path`` is percent-decoded and without query, ``sent_path`` as the client wrote it; names in
    ``headers`` are lower case, of repeated ones the first value counts. ``body`` holds its first
    4 KiB at most.
    """

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = {}
    http_1_0: bool = False
    keeps_alive: bool = True
    body_bytes: int | None = 0  # None: chunked
    body: bytes = b""
    sent_path: str = ""

    @property
    def parameters(self) -> dict[str, list[str]]:
        return parse_qs(self.query, keep_blank_values=True)

    @property
    def is_of_the_server(self) -> bool:
        """``OPTIONS *`` asks about the server and no resource; Go answers it by itself."""
        return self.method == "OPTIONS" and self.path == "*"

    @property
    def expects_too_much(self) -> bool:
        """``Expect`` asks for something that nobody knows; Go's server refuses by itself."""
        expected = self.headers.get("expect", "")
        return expected != "" and not _CONTINUE.search(expected)

    @property
    def clean_path(self) -> str:
        """Where Go's ServeMux sends the client first, escaped; empty: the path is clean.

        It cleans the path as it was sent, so ``%2e`` is no dot, and escapes the result again, the
        escapes in it too. CONNECT is left alone.
        """
        if self.method == "CONNECT" or not self.path.startswith("/"):
            return ""
        escaped = self.sent_path
        if not _ESCAPED_PATH.fullmatch(escaped):
            escaped = _escape(self.path)
        clean = _cleaned(escaped)
        return _escape(clean) if clean != escaped else ""


class Refusal(Struct, frozen=True):
    """An answer to what is no request; the connection ends with it."""

    response: bytes


def head_end(received: bytes | bytearray, start: int = 0) -> int:
    """Return where the first request's head ends in *received*; 0 while it is incomplete.

    Before *start* there is no end of it. The blank line is three bytes long at most.
    """
    found = _BLANK_LINE.search(received, start)
    return found.end() if found else 0


def read_head(head: bytes) -> Request | Refusal:
    """Read a complete head, with its blank line. Line ends may lack the carriage return."""
    lines = [line.removesuffix("\r") for line in head.decode("latin-1").split("\n")]
    method, _, rest = lines[0].partition(" ")
    target, blank, version_text = rest.partition(" ")
    version = _VERSION.fullmatch(version_text)
    if not blank or not _TOKEN.fullmatch(method) or version is None:
        return _refused()
    read = _read_target(method, target)
    fields = _read_fields(lines[1:])
    if read is None or isinstance(fields, Refusal):
        return fields if isinstance(fields, Refusal) else _refused()
    if version[1] != "1":
        return _refused("unsupported protocol version", HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    http_1_0 = version[2] == "0"
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) > 1:
        return _refused("too many Host headers")
    if not hosts and not http_1_0 and method != "CONNECT":
        return _refused("missing required Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        return _refused("malformed Host header")
    headers = dict(reversed(fields))
    body_bytes = _body_bytes(fields, http_1_0)
    if isinstance(body_bytes, Refusal):
        return body_bytes
    wishes = {
        token.strip().lower()
        for name, value in fields
        if name == "connection"
        for token in value.split(",")
    }
    keeps = "close" not in wishes and (not http_1_0 or "keep-alive" in wishes)
    if body_bytes is not None and body_bytes > _MAX_BODY_BYTES:
        keeps = False
    if headers.get("expect", "").lower() == "100-continue" and body_bytes != 0:
        # Nobody here needs the body so much as to ask for it.
        keeps, body_bytes = False, 0
    path, query = read
    request = Request(
        method, unquote(path, "latin-1"), query, headers, http_1_0, keeps, body_bytes,
        sent_path=path,
    )  # fmt: skip
    if request.expects_too_much:
        return structs.replace(request, keeps_alive=False, body_bytes=0)
    return request


class Body:
    """Takes a request's body out of what is received, and keeps its beginning.

    Raises:
        ValueError: by `take`: what should be a chunk is none.
    """

    def __init__(self, request: Request) -> None:
        self._left = request.body_bytes or 0
        self._chunked = request.body_bytes is None
        self._seen = 0
        self._in_trailer = False
        self.kept = b""
        self.is_too_long = self._left > _MAX_BODY_BYTES

    def take(self, received: bytearray) -> bool:
        """Remove what belongs to the body from *received*; true when it is complete.

        Also true when it is longer than anybody waits for (`is_too_long`).
        """
        while not self.is_too_long:
            if self._left:
                part = bytes(received[: self._left])
                del received[: self._left]
                self._left -= len(part)
                self._seen += len(part)
                self.kept += part[: _KEPT_BODY_BYTES - len(self.kept)]
                self.is_too_long = self._seen > _MAX_BODY_BYTES
                if self._left:
                    return self.is_too_long
            if not self._chunked:
                return True
            line = self._line(received)
            if line is None:
                return False
            if self._in_trailer:
                if not line:
                    return True
            elif line:  # the empty one ends the chunk before
                size = line.partition(b";")[0].strip()
                if not _HEXADECIMAL.fullmatch(size):
                    raise ValueError("malformed chunked encoding")
                self._left = int(size, 16)
                self._in_trailer = self._left == 0
        return True

    @staticmethod
    def _line(received: bytearray) -> bytes | None:
        end = received.find(b"\n", 0, _MAX_CHUNK_LINE)
        if end < 0:
            if len(received) >= _MAX_CHUNK_LINE:
                raise ValueError("chunk line too long")
            return None
        line = bytes(received[:end]).removesuffix(b"\r")
        del received[: end + 1]
        return line


def response(answer: Answer, request: Request, date: str, closes: bool = False) -> bytes:
    """Write *answer* to *request*; it says that the connection ends if that or *closes* says so."""
    keeps_alive = request.keeps_alive and not closes
    version = "1.0" if request.http_1_0 else "1.1"
    code = HTTPStatus(answer.code)
    lines = [f"HTTP/{version} {code.value} {code.phrase}"]
    # Go sorts what a handler sets and adds its own behind.
    lines += [f"{name}: {value}" for name, value in sorted(answer.headers)]
    lines.append(f"Date: {date}")
    if answer.body or request.method != "HEAD":
        lines.append(f"Content-Length: {len(answer.body)}")
    if keeps_alive and request.http_1_0:
        lines.append("Connection: keep-alive")
    elif not keeps_alive and not request.http_1_0 and CLOSES not in answer.headers:
        lines.append("Connection: close")
    head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    return head if request.method == "HEAD" else head + answer.body


@lru_cache(maxsize=4)
def http_date(unix_seconds: int) -> str:
    """Format for ``Date``: ``Fri, 02 Jan 2026 03:04:05 GMT``."""
    return formatdate(unix_seconds, usegmt=True)


def _refused(why: str = "", code: HTTPStatus = HTTPStatus.BAD_REQUEST) -> Refusal:
    text = f"{code.value} {code.phrase}{': ' if why else ''}{why}"
    return Refusal(
        f"HTTP/1.1 {text}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
        f"{text}".encode()
    )


def _read_target(method: str, target: str) -> tuple[str, str] | None:
    """Return path and query of ``/path?query``, ``http://host/path?query`` or ``*``, as sent."""
    if not target or _CONTROL.search(target):
        return None
    if method == "CONNECT" and not target.startswith("/"):
        return "", ""
    scheme, separator, rest = target.partition("://")
    if separator and scheme.isalpha():
        target = rest[rest.find("/") :] if "/" in rest else "/"
    if target != "*" and not target.startswith("/"):
        return None
    path, _, query = target.partition("?")
    if _PERCENT.search(path):
        return None
    return path, query


def _escape(path: str) -> str:
    """Escape *path*, whose characters are bytes, as Go's ``URL.String`` does."""
    return quote(path.encode("latin-1"), _PLAIN_IN_PATHS)


def _cleaned(path: str) -> str:
    """Resolve ``.``, ``..`` and repeated slashes; the one at the end stays."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return f"/{'/'.join(kept)}{'/' if kept and path.endswith('/') else ''}"


def _read_fields(lines: list[str]) -> list[tuple[str, str]] | Refusal:
    """Read header lines up to the blank one; names in lower case."""
    fields: list[tuple[str, str]] = []
    for line in lines:
        if not line:
            break
        if line[0] in " \t":  # goes on from the line before
            if not fields:
                return _refused()
            name, value = fields[-1]
            fields[-1] = name, f"{value} {line.strip()}"
            continue
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            return _refused()
        if _CONTROL.search(value):
            return _refused("invalid header value")
        fields.append((name.lower(), value.strip(" \t")))
    return fields


def _body_bytes(fields: list[tuple[str, str]], http_1_0: bool) -> int | Refusal | None:
    codings = [value.strip().lower() for name, value in fields if name == "transfer-encoding"]
    lengths = {value for name, value in fields if name == "content-length"}
    if codings and not http_1_0:
        if codings != ["chunked"]:
            return Refusal(
                b"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\n"
                b"Connection: close\r\n\r\nUnsupported transfer encoding"
            )
        return None
    if not lengths:
        return 0
    (length, *more) = lengths
    if more or not (length.isascii() and length.isdigit() and len(length) < 19):
        return _refused()
    return int(length)


BAD_REQUEST = _refused()
TOO_LARGE = _refused(code=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
