"""Who we are to the API server, and how it is reached: what a request needs to know of it.

Where it comes from is for others to say: `login` chooses, `plainconfig` reads the plain cases, and
`packageconfig` all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import urllib3

from pykubeproxy.errors import WatchDenied

__all__ = ["Credentials", "MakePool", "SocketOptions", "TokenFile", "unbracketed"]

SocketOptions = Sequence[tuple[int, int, int]]
MakePool = Callable[[SocketOptions], urllib3.PoolManager]
"""Makes the connections: trust, client certificate and proxy are settled in it."""


def unbracketed(host: str) -> str:
    """Return *host* without the brackets that an IPv6 address has in a URL, if it has them."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


class TokenFile:
    """A bearer token in a file that somebody else rotates.

    Read for every request, which is a few times a minute. While the file is missing or empty (a
    rotation in progress) the last good token serves, as in client-go.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last = ""

    def authorization(self) -> str:
        """The header that presents the token.

        Raises:
            WatchDenied: as `read`.
        """
        return f"Bearer {self.read()}"

    def read(self) -> str:
        """Return the token.

        Raises:
            WatchDenied: no token could be read so far.
        """
        try:
            token = self.path.read_text("utf-8").strip()
            reason = "is empty"
        except (OSError, UnicodeDecodeError) as error:
            token, reason = "", f"cannot be read: {error}"
        if token:
            self._last = token
        elif not self._last:
            raise WatchDenied(f"token file {self.path} {reason}; mount or write it, then wait")
        return self._last


class Credentials:
    """Where the server is, how to trust it, and what to present to it.

    *description* names the credential in error messages. `if_unreachable` is what to do about a
    server that no connection comes about with, where more is known of its address.
    """

    if_unreachable = ""
    plugin_worked: bool | None = None
    """Whether the exec plugin that was asked for this gave anything; ``None``: there is none."""

    def __init__(
        self,
        server: str,
        description: str,
        make_pool: MakePool,
        authorization: Callable[[], str | None],
    ) -> None:
        self.server = server
        self.description = description
        self.make_pool = make_pool
        self._authorization = authorization

    def authorization(self) -> str | None:
        """The Authorization header for a request made now; ``None`` where none is needed.

        Renews an exec or OIDC token that is about to expire, so this may run a program.

        Raises:
            WatchDenied: a token file or plugin that should give a credential gave none.
        """
        return self._authorization()
