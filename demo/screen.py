"""How the story looks: headings, sentences, bars; plain text unless somebody watches."""

from __future__ import annotations

import os
import textwrap
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TextIO

__all__ = ["Screen"]

WIDTH = 84
_BAR_CELLS = 24  # of all answers of one line together
_BAR, _ARROW, _RULE, _TICK = "█→─✓"
# What a stream gets that cannot carry the characters of the story.
_PLAIN = {_BAR: "#", _ARROW: ">", _RULE: "-", _TICK: "*"} | dict.fromkeys("│┌└├┐┘┤┼", "+")
_TO_PLAIN = str.maketrans(_PLAIN)
_COLOURS = {
    "heading": "1;36",
    "good": "32",
    "bad": "33",
    "quiet": "2",
    "number": "1",
    "p1": "34",
    "p2": "35",
    "p3": "33",
    "r1": "32",
    "r2": "36",
    "refused": "31",
    "timeout": "31",
}


class Screen:
    """Writes to *stream*; *fast* leaves out the pauses that give a reader time."""

    def __init__(self, stream: TextIO, *, fast: bool = False) -> None:
        self._stream = stream
        watched = stream.isatty()
        self._colour = watched and not os.environ.get("NO_COLOR") and os.environ.get(
            "TERM"
        ) not in ("dumb", None)  # fmt: skip
        self._pace = 0.0 if fast else 0.75
        self._plain = not _carries(stream.encoding, "".join(_PLAIN))
        self._chapter = 0
        self._clock = threading.Event()  # never set: waiting for it is a pause

    # --- words ---

    def heading(self, text: str) -> None:
        """Begin a numbered chapter, after a moment to finish the last one."""
        if self._chapter:
            self.pause(1.0)
        self._chapter += 1
        title = f"{_RULE * 2} {self._chapter}  {text} "
        self._line()
        self._line(self.paint("heading", title + _RULE * max(0, WIDTH - len(title))))
        self.pause(0.5)

    def say(self, text: str) -> None:
        """A sentence or two of narration, wrapped."""
        for line in textwrap.wrap(" ".join(text.split()), WIDTH - 2, break_on_hyphens=False):
            self._line(f"  {line}")
        self.pause(0.35)

    def picture(self, text: str) -> None:
        """Lines that stay as they are."""
        for line in textwrap.dedent(text).strip("\n").splitlines():
            self._line(self.paint("quiet", f"    {line}"))
        self.pause(0.6)

    def command(self, words: Sequence[str]) -> None:
        """A command to be copied: wrapped between *words* only, as a shell takes it."""
        lines = [f"{self.paint('quiet', '$')} {words[0]}"]
        width = 2 + len(words[0])
        for word in words[1:]:
            if width + len(word) > WIDTH - 4:
                lines[-1] += " \\"
                lines.append(f"    {word}")
                width = 4 + len(word)
            else:
                lines[-1] += f" {word}"
                width += 1 + len(word)
        for line in lines:
            self._line(f"  {line}")
        self.pause(0.35)

    def check(self, text: str) -> None:
        """Something that was claimed and found true."""
        self._line(f"  {self.paint('good', _TICK)} {text}")
        self.pause(0.25)

    # --- figures ---

    def answers(self, sender: str, target: str, counts: Counter[str], note: str = "") -> None:
        """Who answered how often, as one line of bars."""
        total = sum(counts.values())
        parts = []
        for name, count in sorted(counts.items()):
            bar = _BAR * max(1, round(_BAR_CELLS * count / total))
            parts.append(f"{name} {self.paint(name, bar)} {count}")
        line = f"  {sender:<6} {_ARROW} {target:<19} {'  '.join(parts)}"
        self._line(line + (self.paint("quiet", f"   {note}") if note else ""))
        self.pause(0.25)

    def row(self, cells: Iterable[tuple[str, int]], colour: str = "") -> None:
        """One line of a table: texts and the widths to pad them to (negative: to the right)."""
        texts = [f"{text:<{width}}" if width > 0 else f"{text:>{-width}}" for text, width in cells]
        self._line(f"  {self.paint(colour, '  '.join(texts).rstrip())}")
        self.pause(0.3 if colour != "quiet" else 0)

    def rule_line(self, rule: str, explanation: str) -> None:
        """One rule as iptables-save prints it, and what it means."""
        for index, line in enumerate(
            textwrap.wrap(rule, WIDTH - 4, break_long_words=False, break_on_hyphens=False)
        ):
            self._line(self.paint("quiet", f"  {'  ' if index else ''}{line}"))
        self._line(f"      {self.paint('good', _ARROW)} {explanation}")
        self.pause(0.3)

    # --- basics ---

    def paint(self, what: str, text: str) -> str:
        """*text* in the colour of *what*, where colours are wanted."""
        code = _COLOURS.get(what)
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour and code else text

    def pause(self, seconds: float) -> None:
        if self._pace:
            self._clock.wait(seconds * self._pace)

    def _line(self, text: str = "") -> None:
        if self._plain:
            text = text.translate(_TO_PLAIN)
        self._stream.write(text.rstrip() + "\n")
        self._stream.flush()


def _carries(encoding: str | None, text: str) -> bool:
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
