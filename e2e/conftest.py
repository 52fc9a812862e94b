"""What both suites on a real kernel say about the machine they ran on."""

from __future__ import annotations

import pytest

from e2e.guest import in_guest
from e2e.lab import has_sctp


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """At the end, since a header is not shown by ``-q`` nor where this file is found late."""
    if not has_sctp() and not in_guest():
        terminalreporter.write_line(
            "e2e: this kernel has no SCTP sockets: outside of the guest SCTP rules were loaded, "
            "and no SCTP packet was sent"
        )
