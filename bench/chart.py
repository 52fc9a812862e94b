"""Line charts as SVG: panels side by side, both axes logarithmic, one legend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import ceil, floor, log10

from msgspec import Struct

__all__ = ["Panel", "Series", "chart"]

WIDTH, HEIGHT = 440, 300  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 80, 50  # around it
TITLE_Y, LEGEND_Y = 30, 52
INK, GRID, PAPER = "#24292f", "#d8dee4", "#ffffff"


class Series(Struct, frozen=True):
    """Points with a name and a colour; series of one name share an entry in the legend."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashed: bool = False


class Panel(Struct, frozen=True):
    """One chart. *x_label* and *y_label* write a value as it stands at a tick."""

    title: str
    series: tuple[Series, ...]
    x_title: str
    x_label: Callable[[float], str]
    y_label: Callable[[float], str]


def chart(panels: Sequence[Panel]) -> str:
    """Return a complete SVG document.

    Raises:
        ValueError: a value is not positive, so it has no place on a logarithmic axis.
    """
    width = len(panels) * (LEFT + WIDTH + RIGHT)
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *_legend(dict.fromkeys(_look(s) for panel in panels for s in panel.series)),
    ]
    for number, panel in enumerate(panels):
        parts += _panel(panel, number * (LEFT + WIDTH + RIGHT) + LEFT)
    return "\n".join([*parts, "</svg>", ""])


class _Axis:
    """A stretch of pixels for the values between two ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.ticks = _ticks(min(values), max(values))
        self._low, self._high = log10(self.ticks[0]), log10(self.ticks[-1])
        self._start, self._end = start, end

    def at(self, value: float) -> float:
        share = (log10(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 1)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, from below *low* to above *high*, two at least."""
    if low <= 0:
        raise ValueError(f"{low} has no place on a logarithmic axis")
    tens = range(floor(log10(low)), ceil(log10(high)) + 2)
    marks = [step * 10.0**ten for ten in tens for step in (1, 2, 5)]
    first = max(n for n, mark in enumerate(marks) if mark <= low * 1.0001)
    last = min(n for n, mark in enumerate(marks) if mark >= high * 0.9999 and n > first)
    return marks[first : last + 1]


def _panel(panel: Panel, left: float) -> Iterator[str]:
    points = [point for series in panel.series for point in series.points]
    across = _Axis([x for x, _ in points], left, left + WIDTH)
    up = _Axis([y for _, y in points], TOP + HEIGHT, TOP)
    yield _text(left + WIDTH / 2, TITLE_Y, panel.title, 'text-anchor="middle" font-size="15"')
    for x in across.ticks:
        yield _line([(across.at(x), TOP), (across.at(x), TOP + HEIGHT)], GRID)
        yield _text(across.at(x), TOP + HEIGHT + 18, panel.x_label(x), 'text-anchor="middle"')
    for y in up.ticks:
        yield _line([(left, up.at(y)), (left + WIDTH, up.at(y))], GRID)
        yield _text(left - 8, up.at(y) + 4, panel.y_label(y), 'text-anchor="end"')
    yield _text(left + WIDTH / 2, TOP + HEIGHT + 40, panel.x_title, 'text-anchor="middle"')
    for series in panel.series:
        places = [(across.at(x), up.at(y)) for x, y in sorted(series.points)]
        yield _line(places, series.colour, series.dashed, width=2)
        for x, y in places:
            yield f'<circle cx="{x}" cy="{y}" r="3" fill="{series.colour}"/>'


def _legend(looks: dict[tuple[str, str, bool], None]) -> Iterator[str]:
    left = float(LEFT)
    for name, colour, dashed in looks:
        yield _line([(left, LEGEND_Y), (left + 28, LEGEND_Y)], colour, dashed, width=2)
        yield _text(left + 34, LEGEND_Y + 4, name)
        left += 58 + 6.5 * len(name)


def _look(series: Series) -> tuple[str, str, bool]:
    return series.name, series.colour, series.dashed


def _line(
    points: Sequence[tuple[float, float]], colour: str, dashed: bool = False, width: int = 1
) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>'
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" {more}>{escape(text)}</text>'
