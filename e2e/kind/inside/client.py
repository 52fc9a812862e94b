"""What a pod sees of Services; every answer is one line of JSON.

::

    client.py resolve NAME          the addresses that DNS gives, sorted
    client.py ask URL COUNT         COUNT new connections: {"answers": {TEXT: n}, "failures": [...]}
    client.py go-on URL STOP        the same until the file STOP exists
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import repeat

_SECONDS = 2.9  # a lost SYN comes again after 1 s
_PAUSE = 0.01


def resolve(name: str) -> list[str]:
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


def ask(url: str, times: Iterator[None]) -> dict[str, object]:
    """One new connection for each of *times*, and what came of them."""
    # Straight there: a proxy of the environment would answer for the Service.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    answers: Counter[str] = Counter()
    failures = []
    for _ in times:
        try:
            with opener.open(url, timeout=_SECONDS) as reply:
                answers[reply.read().decode().strip()] += 1
        except OSError as error:
            failures.append(f"{time.strftime('%H:%M:%S')} {error}")
    return {"answers": answers, "failures": failures}


def until(stop: str) -> Iterator[None]:
    while not os.path.exists(stop):
        yield
        time.sleep(_PAUSE)


def main() -> None:
    match sys.argv[1:]:
        case ["resolve", name]:
            print(json.dumps(resolve(name)))
        case ["ask", url, count]:
            print(json.dumps(ask(url, repeat(None, int(count)))))
        case ["go-on", url, stop]:
            print(json.dumps(ask(url, until(stop))))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
