"""The Markdown pages of the repository: their text, headings, links and commands."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

__all__ = ["REPOSITORY", "anchors", "commands", "every_page", "fenced", "inline", "links"]

REPOSITORY = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")


def _pages() -> list[Path]:
    """Those of this repository, and none of what is installed in or beside it."""
    places = ("*.md", "docs/**/*.md", "deploy/**/*.md", "bench/**/*.md", "examples/**/*.md")
    return sorted(path for place in places for path in REPOSITORY.glob(place))


every_page = pytest.mark.parametrize(
    "page", _pages(), ids=lambda page: str(page.relative_to(REPOSITORY))
)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def inline(page: Path) -> list[str]:
    """What stands between backticks in a line."""
    return _INLINE.findall(prose(page))


def fenced(page: Path) -> list[str]:
    return _FENCE.findall(page.read_text())


def commands(page: Path) -> list[str]:
    """What a page has typed into a shell, without comments; continued lines are one."""
    lines = [line for block in fenced(page) for line in re.sub(r"\\\n", " ", block).splitlines()]
    typed = [line[2:] for line in lines if line.startswith(("$ ", "# "))]
    quoted = [text for text in inline(page) if re.match(r"[a-z]+ \S", text)]
    return [re.sub(r"\s+# .*", "", command) for command in (*typed, *quoted)]


def links(page: Path) -> list[str]:
    """Targets in this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _INLINE.sub("", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The names by which a page's headings are reached."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower().strip()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found[name] = found.get(name, 0) + 1
    repeated = (f"{name}-{n}" for name, count in found.items() for n in range(1, count))
    return frozenset((*found, *repeated))
