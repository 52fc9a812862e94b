"""``/flagz`` and ``/statusz``: text for people, and a versioned form for programs that ask for it.

The text's separator is drawn by lot, so that nobody parses it; who wants to parse names the whole
type in Accept: ``application/json;v=v1beta1;g=config.k8s.io;as=Statusz`` (KEP-4827, KEP-4828).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from typing import NamedTuple

import msgspec
from msgspec import Struct

from pykubeproxy.serve.answers import Answer
from pykubeproxy.serve.messages import Request
from pykubeproxy.serve.negotiation import clauses

__all__ = ["Flagz", "Statusz"]

COMPONENT = "kube-proxy"
"""What kube-proxy calls itself there; who collects these pages looks for the name."""
SEPARATORS = (":", ": ", "=", " ")

_GROUP = "config.k8s.io"
_VERSIONS = ("v1beta1", "v1alpha1")
_DEPRECATED = "v1alpha1"
_PLAIN = "text/plain"
_STRUCTURED = ("application/json", "application/yaml")
_PRETTY_AGENTS = ("curl", "Wget", "Mozilla/5.0")
_HEADER = (
    "\n{component} {page}\nWarning: This endpoint is not meant to be machine parseable, has no "
    "formatting compatibility guarantees and is for debugging purposes only.\n"
)

Lot = Callable[[Sequence[str]], str]
"""Draws one, as `random.choice` does."""


class Flagz:
    """The flags and their effective values. The text is made once, lot included."""

    def __init__(self, flags: Mapping[str, str], draw: Lot) -> None:
        self._flags = dict(sorted(flags.items()))
        separator = draw(SEPARATORS)
        lines = (f"{name}{separator}{value}\n" for name, value in self._flags.items())
        self._text = _HEADER.format(component=COMPONENT, page="flagz") + "".join(lines)

    def answer(self, request: Request) -> Answer:
        wish = _negotiate(request, "Flagz")
        if wish is None:
            return _not_acceptable()
        if wish.media_type == _PLAIN:
            return _text(self._text)
        return _structured(request, wish, "Flagz", {"flags": self._flags})


class Statusz(Struct, frozen=True):
    """What runs here, since when."""

    started_unix_seconds: float
    runtime: str  # instead of the Go version
    version: str
    emulated: str  # the Kubernetes minor version that this behaves as
    paths: tuple[str, ...]

    def answer(self, request: Request, now_unix_seconds: float, draw: Lot) -> Answer:
        wish = _negotiate(request, "Statusz")
        if wish is None:
            return _not_acceptable()
        up = max(0, int(now_unix_seconds - self.started_unix_seconds))
        folders = sorted({f"/{path.split('/')[1]}" for path in self.paths})
        if wish.media_type == _PLAIN:
            return _text(self._text(up, folders, draw(SEPARATORS)))
        started = datetime.fromtimestamp(int(self.started_unix_seconds), UTC)
        fields = {
            "startTime": f"{started:%Y-%m-%dT%H:%M:%SZ}",
            "uptimeSeconds": up,
            "goVersion": self.runtime,
            "binaryVersion": self.version,
            "emulationVersion": self.emulated,
            "paths": folders,
        }
        return _structured(request, wish, "Statusz", fields)

    def _text(self, up: int, folders: Sequence[str], separator: str) -> str:
        started = datetime.fromtimestamp(int(self.started_unix_seconds)).astimezone()
        lines = {
            "Started": f"{started:%a %b} {started.day:2d} {started:%H:%M:%S %Z %Y}",
            "Up": f"{up // 3600} hr {up // 60 % 60:02d} min {up % 60:02d} sec",
            # kube-proxy's words; the value says what it is here.
            "Go version": self.runtime,
            "Binary version": self.version,
            "Emulation version": self.emulated,
            "Paths": " ".join(folders),
        }
        body = "".join(f"{name}{separator} {value}\n" for name, value in lines.items())
        return _HEADER.format(component=COMPONENT, page="statusz") + "\n" + body


# --- what the client wants ---


class _Wish(NamedTuple):
    media_type: str
    version: str = ""


def _negotiate(request: Request, kind: str) -> _Wish | None:
    """Choose a form; ``None``: the client accepts none that there is."""
    accept = request.headers.get("accept", "")
    if not accept.strip():
        return _Wish(_PLAIN)
    for clause in clauses(accept):
        target = [clause.parameters.get(name) for name in ("g", "v", "as")]
        if clause.parameters.get("sv") or clause.parameters.get("stream"):
            continue
        for media_type in (*_STRUCTURED, _PLAIN):
            if not clause.admits(media_type):
                continue
            if media_type == _PLAIN:
                if target == [None, None, None]:
                    return _Wish(_PLAIN)
                continue
            group, version, as_kind = target
            if (group, as_kind) == (_GROUP, kind) and version in _VERSIONS:
                return _Wish(media_type, version)
    return None


# --- answers ---


def _text(text: str) -> Answer:
    return Answer(HTTPStatus.OK, text.encode(), (("Content-Type", "text/plain; charset=utf-8"),))


def _structured(request: Request, wish: _Wish, kind: str, fields: Mapping[str, object]) -> Answer:
    document = {
        "kind": kind,
        "apiVersion": f"{_GROUP}/{wish.version}",
        "metadata": {"name": COMPONENT},
        **fields,
    }
    headers = [("Content-Type", wish.media_type)]
    if wish.version == _DEPRECATED:
        page = kind.lower()
        warning = f"This version of the {page} endpoint is deprecated. Please use a newer version."
        headers.append(("Warning", f'299 - "{warning}"'))
    if wish.media_type == "application/yaml":
        import yaml  # late: hardly anybody asks for it

        body = yaml.safe_dump(document, default_flow_style=False, allow_unicode=True).encode()
    else:
        body = msgspec.json.encode(document)
        if _is_for_people(request):
            body = msgspec.json.format(body, indent=2)
        body += b"\n"
    return Answer(HTTPStatus.OK, body, tuple(headers))


def _is_for_people(request: Request) -> bool:
    wishes = request.parameters.get("pretty")
    if wishes:
        return wishes[0] in ("1", "t", "T", "true", "True", "TRUE")
    return request.headers.get("user-agent", "").startswith(_PRETTY_AGENTS)


def _not_acceptable() -> Answer:
    accepted = ", ".join((*_STRUCTURED, _PLAIN))
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"only the following media types are accepted: {accepted}",
        "reason": "NotAcceptable",
        "code": 406,
    }
    body = msgspec.json.format(msgspec.json.encode(status), indent=2)
    headers = (("Content-Type", "application/json"),)
    return Answer(HTTPStatus.NOT_ACCEPTABLE, body, headers)
