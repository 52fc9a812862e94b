"""What chains were given and how that prints, 24 bytes for each; in memory and in a file.

A fingerprint is a fact that stays true: *this print of this chain means that content*. Whether
the chain still prints so is for a read-back to tell.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

from pykubeproxy.iptables.objects import (
    Chain,
    DispatchRule,
    Jump,
    Key,
    Presence,
    Rules,
    SharedChain,
    TailRule,
)

__all__ = [
    "PRINTLESS",
    "Fingerprint",
    "Fingerprints",
    "chain_mark",
    "decode",
    "encode",
    "jump_mark",
    "mark",
    "members_mark",
    "rules_mark",
]

PRINTLESS = 1
"""Stands for the print of what has none of its own: a jump, or a chain that must just exist."""

_MASK = (1 << 64) - 1


class Fingerprint(NamedTuple):
    """Marks of what was given to the kernel, and of how it prints that (0: not known)."""

    content: int
    printed: int


def mark(text: bytes) -> int:
    """A number for *text*, the same in every process and never 0."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little") or 1


def chain_mark(table: str, chain: str) -> int:
    """Which chain."""
    return mark(f"{table} {chain}".encode())


def jump_mark(jump: Jump) -> int:
    """Which jump."""
    return mark(f"{jump.table} {jump.chain} -j {jump.target}".encode())


def rules_mark(rules: Rules) -> int:
    """Which rules in this order."""
    return mark("\n".join(rules).encode())


def members_mark(members: Mapping[Key, Rules]) -> int:
    """Which members of a shared chain with which rules, in whatever order.

    The order in which they came to be differs between a chain that was changed and one that was
    written as a whole.
    """
    total = 1
    for key, rules in members.items():
        total += mark("\n".join((_member(key), *rules)).encode())
    return total & _MASK


def _member(key: Key) -> str:
    match key:
        case DispatchRule(_, _, match):
            return f"rule {match}"
        case TailRule(_, _, rule):
            return f"tail {rule}"
        case Chain(_, name) | SharedChain(_, name) | Presence(_, name):
            return f"chain {name}"
        case Jump(_, chain, target):
            return f"jump {chain} {target}"


class Fingerprints:
    """An unchanging table of fingerprints by the mark of what they are of."""

    def __init__(self, rows: Iterable[tuple[int, int, int]] = ()) -> None:
        """*rows*: mark, content, print; of several with one mark the last counts."""
        # Rows as tuples would take ten times the room.
        unsorted = array("Q")
        for row in rows:
            unsorted.extend(row)
        places = {of: place for place, of in enumerate(unsorted[::3])}
        order = sorted(places)
        self._marks = array("Q", order)
        self._contents = array("Q", [unsorted[3 * places[of] + 1] for of in order])
        self._prints = array("Q", [unsorted[3 * places[of] + 2] for of in order])

    def __len__(self) -> int:
        return len(self._marks)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self._marks, self._contents, self._prints, strict=True)

    def get(self, of: int) -> Fingerprint | None:
        at = bisect_left(self._marks, of)
        if at == len(self._marks) or self._marks[at] != of:
            return None
        return Fingerprint(self._contents[at], self._prints[at])

    def printed(self, of: int) -> int:
        """How it prints, 0 if that is not known."""
        at = bisect_left(self._marks, of)
        known = at < len(self._marks) and self._marks[at] == of
        return self._prints[at] if known else 0

    def print_of(self, of: int, content: int) -> int:
        """How that *content* prints, 0 if that is not known."""
        found = self.get(of)
        return found.printed if found is not None and found.content == content else 0

    @property
    def without_print(self) -> int:
        """Of how many the print is not known."""
        return self._prints.count(0)

    def changed(self, changes: Mapping[int, Fingerprint | None]) -> Fingerprints:
        """The same table but for *changes*; ``None`` takes one out. Half a microsecond a row.

        A change without a print has the known one of that content.
        """
        rows = [row for row in self if row[0] not in changes]
        for of, new in changes.items():
            if new is not None:
                rows.append((of, new.content, new.printed or self.print_of(of, new.content)))
        return Fingerprints(rows)

    def _arrays(self) -> tuple[array[int], array[int], array[int]]:
        return self._marks, self._contents, self._prints

    def to_bytes(self) -> bytes:
        return b"".join(part.tobytes() for part in self._arrays())

    @classmethod
    def from_bytes(cls, data: bytes) -> Fingerprints:
        """Raises ValueError where that is no table."""
        length, rest = divmod(len(data), 3)
        if rest or length % 8:
            raise ValueError("not a whole number of rows")
        found = cls()
        for number, part in enumerate(found._arrays()):
            part.frombytes(data[number * length : (number + 1) * length])
        return found


# --- the file ---

_MAGIC = b"pykubeproxy fingerprints 1 " + sys.byteorder.encode() + b"\n"
"""Another number for another form, or another way to make marks."""
_HEAD = struct.Struct("<QQ")  # length of the identity, generation + 1 or 0
_CHECKSUM_BYTES = 16


def encode(identity: bytes, generation: int | None, table: Fingerprints) -> bytes:
    """Return the content of a file.

    *identity* is all that must be the same for it to be read. *generation* is the kernel's at
    which *table* was all that is ours, as a whole and with nothing besides; ``None`` if never.
    """
    head = _HEAD.pack(len(identity), 0 if generation is None else generation + 1)
    body = b"".join((_MAGIC, head, identity, table.to_bytes()))
    return body + blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def decode(identity: bytes, content: bytes) -> tuple[int | None, Fingerprints]:
    """Return generation and table of what `encode` made.

    Raises:
        ValueError: it is damaged, of another form, or of another *identity*.
    """
    start = len(_MAGIC) + _HEAD.size
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if not content.startswith(_MAGIC):
        raise ValueError("another form")
    if len(body) < start or blake2b(body, digest_size=_CHECKSUM_BYTES).digest() != checksum:
        raise ValueError("damaged")
    length, generation = _HEAD.unpack_from(body, len(_MAGIC))
    if body[start : start + length] != identity:
        raise ValueError("of another boot, network namespace or tool")
    return generation - 1 if generation else None, Fingerprints.from_bytes(body[start + length :])
