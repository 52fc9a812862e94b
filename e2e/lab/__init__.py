"""A network laboratory in plain Python: namespaces, servers, probes.

::

    with Lab() as lab:
        lab.run("node", "iptables-restore", "--noflush", input=rules)
        assert lab.probe("client", "10.96.0.20", 80) == Answer("p1", 8080, "192.0.2.10")
"""

from e2e.lab.lab import SERVED_PORTS, Lab, LabError, stop
from e2e.lab.traffic import (
    REFUSED,
    TIMEOUT,
    Answer,
    AttendedTime,
    Burst,
    Connection,
    Reply,
    Silence,
    has_sctp,
)

__all__ = [
    "REFUSED",
    "SERVED_PORTS",
    "TIMEOUT",
    "Answer",
    "AttendedTime",
    "Burst",
    "Connection",
    "Lab",
    "LabError",
    "Reply",
    "Silence",
    "has_sctp",
    "stop",
]
