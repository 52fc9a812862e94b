"""Whatever a page leads to is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import REPOSITORY, anchors, every_page, fenced, inline, links

PLACES = ("deploy", "docs", "e2e", "examples", "tests")
MADE_BY_THE_READER = {"deploy/overlays/mine"}


@every_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert [] == broken


@every_page
def test_files_that_are_named_are_there(page: Path) -> None:
    """In commands and between backticks, by their paths from the top of the repository."""
    places = "|".join(PLACES)
    text = "\n".join((*fenced(page), *inline(page)))
    named = re.findall(rf"(?<![\w./-])(?:{places})/[\w./*-]*\w", text)
    # Capitals stand for what the reader puts in.
    exact = {name for name in named if "*" not in name and not re.search(r"/[A-Z]+$", name)}
    missing = {name for name in exact if not (REPOSITORY / name).exists()}
    assert MADE_BY_THE_READER >= missing
