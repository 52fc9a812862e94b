"""Every exception this program raises on purpose.

::

    PykubeproxyError
    ├── ConfigError            a flag or configuration field is wrong; names it
    ├── WatchError             an object source cannot deliver now
    │   ├── WatchDenied        401 or 403: a credential or a right is missing
    │   ├── WatchExpired       410: the remembered resourceVersion is gone, list again
    │   ├── WatchThrottled     429 or a Retry-After: wait before asking again
    │   │   └── VersionAhead   the server has not come as far as our resourceVersion
    │   ├── RequestRefused     any other answer that is an error
    │   │   └── NamespaceGone  what was to be written has no namespace, or one that is being deleted
    │   └── StreamCut          a stream that had begun was broken off
    │       └── StreamSilent   it said nothing for too long
    └── HostError              this node lacks something the chosen mode needs
        ├── NodeTimeout        the Node object did not come to tell what is needed, in time
        └── Unsupported        a feature probe failed; names the feature and a way round

Refusals that the sync loop expects are values (`pykubeproxy.sync.outcome`), not exceptions.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ConfigError",
    "HostError",
    "NamespaceGone",
    "NodeTimeout",
    "PykubeproxyError",
    "RequestRefused",
    "StreamCut",
    "StreamSilent",
    "Unsupported",
    "VersionAhead",
    "WatchDenied",
    "WatchError",
    "WatchExpired",
    "WatchThrottled",
]


class PykubeproxyError(Exception):
    """Base of all errors below; its text is fit to be shown to an operator."""


class ConfigError(PykubeproxyError):
    """A flag or field has a value that cannot be used.

    *where* is the flag (``--cluster-cidr``) or the path in the file (``iptables.masqueradeBit``).
    ``problems`` are such pairs: one, or as many as were found at once (`ConfigError.of`).
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem
        self.problems: tuple[tuple[str, str], ...] = ((where, problem),)

    @classmethod
    def of(cls, problems: Sequence[tuple[str, str]]) -> ConfigError:
        """Return one error that lists all *problems*, of which there is at least one."""
        if len(problems) == 1:
            return cls(*problems[0])
        lines = "".join(f"\n  {where}: {problem}" for where, problem in problems)
        error = cls("configuration", f"{len(problems)} problems:{lines}")
        error.problems = tuple(problems)
        return error


class WatchError(PykubeproxyError):
    """A list or watch failed and may succeed later."""


class WatchDenied(WatchError):
    """The API server refused the credential (401) or the right is missing (403)."""


class WatchExpired(WatchError):
    """The server no longer knows the resourceVersion or continue token (410)."""


class WatchThrottled(WatchError):
    """The server asked for a pause."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class VersionAhead(WatchThrottled):
    """The server has not reached our resourceVersion: it lags, or was restored from a backup."""


class RequestRefused(WatchError):
    """The server answered this request with an error that no other class describes.

    *code* is the HTTP status, or the code of an ERROR event (0 where it had none).
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class NamespaceGone(RequestRefused):
    """What was to be written is in a namespace that is not there, or is being deleted."""


class StreamCut(WatchError):
    """A stream that had begun was broken off; what came before it is good."""


class StreamSilent(StreamCut):
    """A stream said nothing for so long that the connection must be dead."""


class HostError(PykubeproxyError):
    """Something on this node (a tool, a file, a kernel interface) does not work."""


class NodeTimeout(HostError):
    """What only the Node object tells did not come in time, and nothing can be done without."""


class Unsupported(HostError):
    """The kernel or a tool lacks a feature that the configuration needs."""
