"""What iptables-save printed, by chain; rules stay unread text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from pykubeproxy.iptables.fingerprints import chain_mark, mark
from pykubeproxy.iptables.tools import is_needed

__all__ = ["ListedTable", "Listing"]

# A run of lines with the same chain at once: 0.1 s for 250,000 lines in 60,000 chains, where a
# look at each line takes 0.4 s and an object for each line 40 MB.
_TABLE = re.compile(rb"^\*(\S+)\n", re.MULTILINE)
_CHAIN = re.compile(rb"^:(\S++) (-?)", re.MULTILINE)
_RULES = re.compile(rb"^-A (\S++)(?: .*+)?\n(?:-A \1(?: .*+)?\n)*+", re.MULTILINE)
_INCOMPATIBLE = re.compile(rb"^[^-:\n].*is incompatible.*$", re.MULTILINE)


class ListedTable(Struct):
    """The printed rules of each chain, ``None`` where they are the known ones."""

    chains: dict[str, bytes | None]
    builtin: frozenset[str]


class Listing:
    """One print of all tables of a family.

    Of chains whose print is the one in *known* (print by chain mark) only that is kept.
    """

    def __init__(self, tables: Mapping[str, ListedTable]) -> None:
        self._tables = tables

    @classmethod
    def of(cls, output: bytes, known: Callable[[int], int]) -> Listing:
        """Split what iptables-save printed. *known* is the print of a chain mark, 0 if unknown.

        Raises:
            ValueError: the text ends inside a table, or a tool says it cannot read a table.
        """
        refusal = _refusal(output)
        if refusal:
            raise ValueError(refusal)
        tables: dict[str, ListedTable] = {}
        start = 0
        while (begin := _TABLE.search(output, start)) is not None:
            table = begin[1].decode()
            end = output.find(b"\nCOMMIT\n", begin.end() - 1)
            following = _TABLE.search(output, begin.end())
            if end < 0 or (following is not None and following.start() < end):
                raise ValueError(f"the listing breaks off inside table {table}")
            tables[table] = _table(table, output, begin.end(), end + 1, known)
            start = end + len(b"\nCOMMIT\n")
        return cls(tables)

    @property
    def tables(self) -> Mapping[str, ListedTable]:
        return self._tables

    def has(self, table: str, chain: str) -> bool:
        return table in self._tables and chain in self._tables[table].chains

    def is_known(self, table: str, chain: str) -> bool:
        """Tell whether the chain is there and prints as known."""
        return self.has(table, chain) and self._tables[table].chains[chain] is None

    def text(self, table: str, chain: str) -> bytes | None:
        """What is printed of a chain; ``None`` if it is known or not there."""
        return self._tables[table].chains[chain] if self.has(table, chain) else None

    def rules(self, table: str, chain: str) -> list[str] | None:
        """The rules without the chain's name; ``None`` if they are known or it is not there."""
        text = self.text(table, chain)
        if text is None:
            return None
        skipped = len("-A  ") + len(chain)
        return [line[skipped:] for line in text.decode(errors="replace").split("\n")[:-1]]


def _table(
    table: str, output: bytes, start: int, end: int, known: Callable[[int], int]
) -> ListedTable:
    chains: dict[str, bytes | None] = {}
    builtin = set()
    for found in _CHAIN.finditer(output, start, end):
        chain = found[1].decode(errors="replace")
        chains[chain] = b""
        if not found[2]:
            builtin.add(chain)
    for found in _RULES.finditer(output, start, end):
        chain = found[1].decode(errors="replace")
        text = chains.get(chain, b"")
        if text == b"":
            is_known = chain not in builtin and known(chain_mark(table, chain)) == mark(found[0])
            chains[chain] = None if is_known else found[0]
        else:  # a chain comes in one piece; where it does not, nothing is known of it
            chains[chain] = (text or b"?") + found[0]
    return ListedTable(chains, frozenset(builtin))


def _refusal(output: bytes) -> str:
    """What the tool says about a table that it cannot read, if we need that one."""
    if b"is incompatible" in output:
        for found in _INCOMPATIBLE.finditer(output):
            line = found[0].decode(errors="replace")
            if is_needed(line):
                return line.lstrip("# ")
    return ""
