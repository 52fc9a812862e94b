"""What is published of the results: a picture, and tables inside a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.chart import Panel, Series, chart
from bench.results import BACKENDS, Results, Run, load, markdown

__all__ = ["picture", "publish", "with_tables"]

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
COLOURS = {"nft": "#0969da", "legacy": "#bc4c00", "ipvs": "#1a7f37"}
PANELS = {
    "Start to first connection": ("start to first connection", "first write"),
    "One endpoint changed": ("one endpoint changed", "one endpoint changed"),
}
"""Of each panel: the row measured from outside, and the row whose floor goes with it."""


def publish(path: Path) -> None:
    """Draw the picture of the results in *path* beside them, and put their tables into the page.

    ``x.json`` is the data of ``x.svg`` and ``x.md``.
    """
    results = load(path)
    path.with_suffix(".svg").write_text(picture(results))
    page = path.with_suffix(".md")
    page.write_text(with_tables(page.read_text(), markdown(results)))


def with_tables(page: str, tables: str) -> str:
    """*page* with *tables* between its two marks.

    Raises:
        ValueError: it does not have both marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def picture(results: Results) -> str:
    """Latency against number of Services, for the number of endpoints most often measured.

    Raises:
        ValueError: nothing was measured from outside.
    """
    counts = Counter(run.job.world.endpoints for run in results.runs if run.job.part == "daemon")
    if not counts:
        raise ValueError("there is nothing to draw: no run of the daemon")
    endpoints = counts.most_common(1)[0][0]
    panels = [
        Panel(
            title,
            tuple(_series(results, endpoints, outside, inside)),
            f"Services, {endpoints} endpoints each",
            lambda x: f"{x:,.0f}",
            lambda y: f"{y:g} s" if y >= 1 else f"{1000 * y:g} ms",
        )
        for title, (outside, inside) in PANELS.items()
    ]
    return chart(panels)


def _series(results: Results, endpoints: int, outside: str, inside: str) -> Iterator[Series]:
    for backend, name in BACKENDS.items():
        ours, floors = [], []
        for x, run in _by_size(results, "daemon", backend, endpoints):
            row = run.row(outside)
            ours += [(x, row.value)] if row else []
        for x, run in _by_size(results, "stages", backend, endpoints):
            row = run.row(inside)
            floors += [(x, row.floor.wall)] if row and row.floor else []
        if ours:
            yield Series(name, tuple(ours), COLOURS[backend])
        if floors:
            yield Series(f"{name}, kernel and tool alone", tuple(floors), COLOURS[backend], True)


def _by_size(
    results: Results, part: str, backend: str, endpoints: int
) -> Iterator[tuple[float, Run]]:
    for run in results.of(part, backend):
        if run.job.world.endpoints == endpoints:
            yield float(run.job.world.services), run
