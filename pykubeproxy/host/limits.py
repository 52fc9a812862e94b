"""How much this process may have of what the kernel limits."""

from __future__ import annotations

import resource

import structlog

__all__ = ["raise_open_files"]

log = structlog.get_logger(__name__)


def raise_open_files() -> int:
    """Allow as many open files as may be had without privileges; return that number.

    Each health check node port is a socket per family and node address, and each client another:
    the usual soft limit of 1024 would end before the Services do. Go does it for kube-proxy.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.warning("limit of open files not raised", limit=soft, wanted=hard, reason=str(error))
        return soft
    return hard
