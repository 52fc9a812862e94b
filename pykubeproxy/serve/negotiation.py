"""What a client says it takes, in Accept and Accept-Encoding, and what it gets of the metrics.

Both are read as kube-proxy's libraries do, so that a scraper gets the same from either: Accept as
github.com/munnerz/goautoneg and prometheus/common/expfmt, Accept-Encoding as promhttp.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Clause", "Exposition", "clauses", "exposition", "takes_gzip"]

_ESCAPINGS = frozenset({"allow-utf-8", "underscores", "dots", "values"})
_PROTOBUF = "application/vnd.google.protobuf"
_MESSAGE = "io.prometheus.client.MetricFamily"

_OFFERED_CODINGS = ("identity", "gzip")
"""The first one wins where the client likes both as much."""
_CODING = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z/]+)[ \t]*"
    r"(?:;[ \t]*q=([01](?:\.[0-9]*)?)[ \t]*)?"
    r"(,[ \t]*)?"
)


class Clause(NamedTuple):
    """One of the media types in Accept."""

    main: str
    sub: str
    parameters: dict[str, str]
    quality: float

    def admits(self, media_type: str) -> bool:
        main, _, sub = media_type.partition("/")
        return self.main in (main, "*") and self.sub in (sub, "*")


class Exposition(NamedTuple):
    """The form of metrics to answer with."""

    is_protobuf: bool  # else text
    content_type: str


def clauses(accept: str) -> list[Clause]:
    """Read Accept, what is preferred first."""
    return sorted(
        filter(None, map(_clause, accept.split(","))),
        key=lambda clause: (-clause.quality, clause.main == "*", clause.sub == "*"),
    )


def exposition(accept: str) -> Exposition:
    """Choose the form of metrics; text is for everybody who wants nothing that there is.

    The escaping told is the last that is named up to the clause chosen, which need not be there.
    No name here needs any.
    """
    is_protobuf = False
    escaping = "underscores"
    for clause in clauses(accept):
        named = clause.parameters.get("escaping")
        if named in _ESCAPINGS:
            escaping = named
        wanted = [clause.parameters.get(name) for name in ("proto", "encoding")]
        media_type = f"{clause.main}/{clause.sub}"
        if media_type == _PROTOBUF and wanted == [_MESSAGE, "delimited"]:
            is_protobuf = True
            break
        if media_type == "text/plain" and clause.parameters.get("version", "") in ("", "0.0.4"):
            break
    described = (
        f"{_PROTOBUF}; proto={_MESSAGE}; encoding=delimited"
        if is_protobuf
        else "text/plain; version=0.0.4; charset=utf-8"
    )
    return Exposition(is_protobuf, f"{described}; escaping={escaping}")


def takes_gzip(accept_encoding: str) -> bool:
    """Tell whether gzip is liked better than plain; in small letters only, and ``*`` is both."""
    wishes = _codings(accept_encoding)
    best, best_quality = "", 0.0
    for offered in _OFFERED_CODINGS:
        for coding, quality in wishes:
            if coding in (offered, "*") and quality > best_quality:
                best, best_quality = offered, quality
    return best == "gzip"


def _clause(text: str) -> Clause | None:
    media_type, *parts = (part.strip() for part in text.split(";"))
    main, slash, sub = media_type.partition("/")
    if media_type == "*":
        main, slash, sub = "*", "/", "*"
    if not slash:
        return None
    parameters = {}
    for part in parts:
        name, _, value = part.partition("=")
        parameters[name.strip()] = value.strip().strip('"')
    try:
        quality = float(parameters.pop("q", "1"))
    except ValueError:
        quality = 1.0
    return Clause(main.strip(), sub.strip(), parameters, quality)


def _codings(accept_encoding: str) -> list[tuple[str, float]]:
    """Read up to what cannot be understood: a parameter other than q ends it, for one."""
    found: list[tuple[str, float]] = []
    position = 0
    while match := _CODING.match(accept_encoding, position):
        coding, quality, goes_on = match.groups()
        position = match.end()
        if quality is None and accept_encoding.startswith(";", position):
            break
        found.append((coding, float(quality or 1)))
        if goes_on is None:
            break
    return found
