"""The iptables programs of one family and variant, and how to read what they say; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from msgspec import Struct

from pykubeproxy.iptables.variant import Variant
from pykubeproxy.model.kinds import Family

__all__ = [
    "LOCK_SECONDS",
    "SavedTable",
    "Tools",
    "is_busy",
    "is_locked",
    "is_needed",
    "jumps_of",
    "parse_saved",
    "refused_line",
    "supports_random_fully",
]

LOCK_SECONDS = 5
"""How long one run waits for the xtables lock before it reports back (``-w``)."""

EXIT_RESOURCE_PROBLEM = 4
"""The lock is taken, or the kernel said no in any of many ways (nf_tables only)."""


class Tools(Struct, frozen=True):
    """Names and fixed arguments of the programs for *family* and *variant*.

    ``suffixed``: programs are called ``iptables-nft-…`` and ``iptables-legacy-…``; where a
    distribution has only one variant they are plain ``iptables-…``.
    """

    family: Family
    variant: Variant
    suffixed: bool = True

    @property
    def program(self) -> str:
        """The name of the rule editor; those of the others begin with it."""
        stem = "iptables" if self.family is Family.IPV4 else "ip6tables"
        return f"{stem}-{self.variant}" if self.suffixed else stem

    def iptables(self, *arguments: str) -> list[str]:
        """One command of the rule editor, waiting for the lock."""
        return [self.program, "-w", str(LOCK_SECONDS), *arguments]

    def version(self) -> list[str]:
        return [self.program, "--version"]

    def restore(self) -> list[str]:
        """Commit a transaction given on standard input, leaving other chains alone."""
        return [f"{self.program}-restore", "--noflush", "-w", str(LOCK_SECONDS)]

    def save(self, table: str = "") -> list[str]:
        """Print one table, or all that exist."""
        return [f"{self.program}-save", *(["-t", table] if table else [])]


class SavedTable(Struct):
    """One table as iptables-save printed it: rule lines by chain, in order."""

    chains: dict[str, list[str]]
    builtin: frozenset[str]


def parse_saved(text: str) -> dict[str, SavedTable]:
    """Split the output of iptables-save into tables and chains; rules stay unread text.

    Raises:
        ValueError: the text ends inside a table, or a tool says it cannot read a table.
    """
    tables: dict[str, SavedTable] = {}
    chains: dict[str, list[str]] | None = None
    builtin: set[str] = set()
    name = ""
    for line in text.splitlines():
        first = line[:1]
        if first == "-" and chains is not None:
            # "-A NAME rest"
            end = line.find(" ", 3)
            chains[line[3:end] if end > 0 else line[3:]].append(line)
        elif first == ":" and chains is not None:
            chain, _, rest = line[1:].partition(" ")
            chains[chain] = []
            if not rest.startswith("-"):
                builtin.add(chain)
        elif first == "*":
            name, chains, builtin = line[1:], {}, set()
        elif line == "COMMIT" and chains is not None:
            tables[name] = SavedTable(chains, frozenset(builtin))
            chains = None
        elif "is incompatible" in line and is_needed(line):
            raise ValueError(line.lstrip("# "))
    if chains is not None:
        raise ValueError(f"the listing breaks off inside table {name}")
    return tables


_NEEDED = ("nat", "filter")
"""Tables that must be readable; in others somebody may have put what only nft understands."""


def is_needed(complaint: str) -> bool:
    """Tell whether *complaint*, about a table that cannot be read, is about one that must be."""
    return any(f"`{needed}'" in complaint for needed in _NEEDED)


_LINE = re.compile(r"\bline:? (\d+)\b")
_VERSION = re.compile(r"v(\d+(?:\.\d+)+)")


def refused_line(stderr: str) -> int | None:
    """Return the number of the input line that iptables-restore refused, if it says so."""
    found = _LINE.search(stderr)
    return int(found.group(1)) if found else None


def is_locked(exit_status: int, stderr: str) -> bool:
    """Tell whether the run ended because another program holds the xtables lock."""
    return exit_status == EXIT_RESOURCE_PROBLEM and "xtables lock" in stderr


def is_busy(exit_status: int, stderr: str) -> bool:
    """Tell whether the kernel was too busy, so that the same input may succeed a moment later.

    The nf_tables tools end with the status of a taken lock for plain refusals too; those name
    the line, as in ``line 5: RULE_APPEND failed (No such file or directory)``.
    """
    if exit_status != EXIT_RESOURCE_PROBLEM:
        return False
    return refused_line(stderr) is None or "temporarily unavailable" in stderr


def _version(text: str) -> tuple[int, ...]:
    found = _VERSION.search(text)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def supports_random_fully(version_text: str) -> bool:
    """MASQUERADE knows ``--random-fully`` since iptables 1.6.2."""
    return _version(version_text) >= (1, 6, 2)


def jumps_of(table: SavedTable, chains: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (built-in chain, rule line) of every rule there that leads to one of *chains*."""
    endings = tuple(f" -j {chain}" for chain in chains)
    for chain in table.builtin:
        for line in table.chains[chain]:
            if line.endswith(endings):
                yield chain, line
