"""What iptables-save printed, by chain; rules stay unread text."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from msgspec import Struct

from pykubeproxy.iptables.fingerprints import chain_mark, mark
from pykubeproxy.iptables.tools import is_needed

__all__ = ["ListedTable", "Listing"]

# A run of lines with the same chain at once: 0.1 s for 250,000 lines in 60,000 chains, where a
# look at each line takes 0.4 s and an object for each line 40 MB. No possessive quantifiers: up to
# CPython 3.11.4 (Debian 12 has 3.11.2) they miss repetitions of a group.
_TABLE = re.compile(rb"^\*(\S+)\n", re.MULTILINE)
_CHAIN = re.compile(rb"^:(\S+) (-?)", re.MULTILINE)
_RULES = re.compile(rb"^-A (\S+)(?: .*)?\n(?:-A \1(?: .*)?\n)*", re.MULTILINE)
_INCOMPATIBLE = re.compile(rb"^[^-:\n].*is incompatible.*$", re.MULTILINE)


_LENGTH = (1 << 32) - 1
_COMPACT_BELOW = 4
"""If less than one byte in so many is of use, the rest is let go."""


class ListedTable(Struct):
    """Where the printed rules of each chain are, ``None`` where they are the known ones.

    A place is one number, the length in its lower 32 bits: 36 bytes for a chain, and no copy.
    """

    chains: dict[str, int | None]
    builtin: frozenset[str]


class Listing:
    """One print of all tables of a family."""

    def __init__(self, output: bytes, tables: Mapping[str, ListedTable]) -> None:
        self._output = output
        self._tables = tables

    @classmethod
    def of(cls, output: bytes, known: Callable[[int], int]) -> Listing:
        """Split what iptables-save printed.

        *known* is the print of a chain mark, 0 if unknown; what prints so is not kept.

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
        return cls(_compacted(output, tables), tables)

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
        place = self._tables[table].chains[chain] if self.has(table, chain) else None
        return None if place is None else _text(self._output, place)

    def rules(self, table: str, chain: str) -> list[str] | None:
        """The rules without the chain's name; ``None`` if they are known or it is not there."""
        text = self.text(table, chain)
        if text is None:
            return None
        start = f"-A {chain} "
        lines = text.decode(errors="replace").split("\n")[:-1]
        return [line[len(start) :] for line in lines if f"{line} ".startswith(start)]


def _table(
    table: str, output: bytes, start: int, end: int, known: Callable[[int], int]
) -> ListedTable:
    chains: dict[str, int | None] = {}
    builtin = set()
    for found in _CHAIN.finditer(output, start, end):
        chain = found[1].decode(errors="replace")
        chains[chain] = 0
        if not found[2]:
            builtin.add(chain)
    firsts: dict[str, int] = {}
    for found in _RULES.finditer(output, start, end):
        chain = found[1].decode(errors="replace")
        begin = firsts.setdefault(chain, found.start())
        if begin == found.start():
            is_known = chain not in builtin and known(chain_mark(table, chain)) == mark(found[0])
            chains[chain] = None if is_known else _place(begin, found.end())
        else:
            # A chain comes in one piece. Where it does not, its text has rules of others within,
            # so that it is never a known one.
            chains[chain] = _place(begin, found.end())
    return ListedTable(chains, frozenset(builtin))


def _place(start: int, end: int) -> int:
    return start << 32 | end - start


def _text(output: bytes, place: int) -> bytes:
    start = place >> 32
    return output[start : start + (place & _LENGTH)]


def _compacted(output: bytes, tables: Mapping[str, ListedTable]) -> bytes:
    """What of *output* is of use, with the places moved accordingly; all of it if that is much."""
    places = [p for table in tables.values() for p in table.chains.values() if p is not None]
    if sum(place & _LENGTH for place in places) * _COMPACT_BELOW > len(output):
        return output
    pieces: list[bytes] = []
    size = 0
    for table in tables.values():
        for chain, place in table.chains.items():
            if place is not None:
                pieces.append(_text(output, place))
                table.chains[chain] = _place(size, size + len(pieces[-1]))
                size += len(pieces[-1])
    return b"".join(pieces)


def _refusal(output: bytes) -> str:
    """What the tool says about a table that it cannot read, if we need that one."""
    if b"is incompatible" in output:
        for found in _INCOMPATIBLE.finditer(output):
            line = found[0].decode(errors="replace")
            if is_needed(line):
                return line.lstrip("# ")
    return ""
