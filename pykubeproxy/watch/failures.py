"""What the API server's refusals and broken connections mean, in words an operator can act on."""

from __future__ import annotations

import email.utils
import time

from urllib3.exceptions import (
    ConnectTimeoutError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

from pykubeproxy.errors import (
    NamespaceGone,
    RequestRefused,
    VersionAhead,
    WatchDenied,
    WatchError,
    WatchExpired,
    WatchThrottled,
)
from pykubeproxy.watch.resources import Resource
from pykubeproxy.watch.wire import Status

__all__ = ["error_for", "explain"]

MAX_RETRY_AFTER_SECONDS = 300.0  # a proxy in between must not silence us for a day


def error_for(
    status: Status,
    verb: str,
    resource: Resource,
    server: str,
    *,
    credential: str = "the credential",
    code: int | None = None,
    retry_after: str | None = None,
) -> WatchError:
    """Turn a refusal (an error body or an ERROR event) into the exception that says what to do."""
    code = code or status.code or 0
    doing = f"{verb} {resource.plural} on {server}"
    message = (status.message or status.reason or "no reason given").rstrip(".")
    said = f"{doing}: {message} ({code})"
    pause = _pause(retry_after, status)
    if code == 401:
        return WatchDenied(f"{said}; {credential} was not accepted: renew it")
    if _names_namespace(status, code):
        return NamespaceGone(f"{said}; nothing is written where nothing stays", code)
    if code == 403:
        return WatchDenied(
            f'{said}; grant verb "{verb}" on resource "{resource.plural}" in API group '
            f'"{resource.group}" to the user of {credential} '
            "(ClusterRole system:node-proxier has what a proxy needs)"
        )
    if code == 410:
        return WatchExpired(f"{said}; a fresh list follows")
    if code == 429 or pause is not None:
        seconds = 1.0 if pause is None else pause
        ahead = _has_cause(status, "ResourceVersionTooLarge")
        return (VersionAhead if ahead else WatchThrottled)(
            f"{said}; asked to wait {seconds:g} s", seconds
        )
    if code == 404:
        return RequestRefused(
            f"{said}; the server does not serve {resource.path}: is its URL right, and is it "
            "recent enough?",
            code,
        )
    hint = "see the API server's log" if code >= 500 else "check the server's URL and version"
    return RequestRefused(f"{said}; {hint}", code)


def _names_namespace(status: Status, code: int) -> bool:
    """Whether the trouble is that the namespace goes (admission says so by 403), or has gone."""
    if code == 403:
        return _has_cause(status, "NamespaceTerminating")
    return code == 404 and status.details is not None and status.details.kind == "namespaces"


def _has_cause(status: Status, reason: str) -> bool:
    causes = (status.details.causes if status.details else None) or ()
    return any(cause.reason == reason for cause in causes)


def _pause(header: str | None, status: Status) -> float | None:
    """Seconds to wait: RFC 9110 §10.2.3 allows a number or a date; the Status has a number."""
    seconds: float | None = None
    if header is not None:
        text = header.strip()
        if text.isascii() and text.isdigit():
            seconds = float(text)
        else:
            try:
                then = email.utils.parsedate_to_datetime(text)
            except ValueError:
                then = None
            if then is not None:
                seconds = then.timestamp() - time.time()
    if seconds is None and status.retry_after_seconds is not None:
        seconds = float(status.retry_after_seconds)
    return None if seconds is None else min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)


def explain(doing: str, server: str, error: Exception, if_unreachable: str = "") -> str:
    """Say of a connection error what failed, on what, and what to do.

    *if_unreachable* takes the place of the usual advice where no connection came about.
    """
    match error:
        case SSLError():
            advice = "check certificate-authority and tls-server-name, and this node's clock"
        case NameResolutionError():
            advice = "check the server's name and this node's resolver"
        case ProxyError():
            advice = "check proxy-url, or HTTPS_PROXY and NO_PROXY"
        case ReadTimeoutError():
            advice = "the server or a load balancer before it hangs"
        case ConnectTimeoutError() | NewConnectionError():
            usual = "check that the API server runs there and is reachable from this node"
            advice = if_unreachable or usual
        case _:
            advice = "the connection was lost; it is tried again"
    return f"{doing} on {server}: {error}; {advice}"
