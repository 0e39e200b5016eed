"""Lines on one pair of axes as numbers of a drawing: what `macros.html` makes a small picture of, in any colours.

They are drawn while a network trains, so nothing here needs matplotlib, which takes a hundred times as long. Places are
percents of the drawing's width and height; its words stand beside it, as text of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neural_rdm.reports.pages.render import number
from neural_rdm.reports.plots import running_mean

#: points of one line; more cannot be told apart on a screen
MOST_POINTS = 300
#: points above which a line is drawn pale, with its running mean on top
NOISY = 60
_TICKS = 5

Points = Sequence[tuple[float, float]]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Stroke:
    """A line: the points of an SVG polyline for each unbroken piece, its look (0, 1, ...), and whether it is pale."""

    pieces: list[str]
    look: int
    pale: bool


@dataclass(frozen=True)
class Drawing:
    """A chart, ready to be shown.

    Attributes:
        title: what it shows.
        strokes: its lines, in the order in which they are drawn.
        legend: look and words of each line.
        x, y: place and words of the marks of both axes.
        xlabel: what the horizontal axis is.
        alt: the same in words.
    """

    title: str
    strokes: list[Stroke]
    legend: list[tuple[int, str]]
    x: list[tuple[str, str]]
    y: list[tuple[str, str]]
    xlabel: str
    alt: str


def draw(title: str, xlabel: str, lines: Mapping[str, Points], most: int | None = None) -> Drawing | None:
    """A chart of named lines [(x, y), ...], x ascending; None where no line has a finite value.

    The vertical axis is logarithmic where all is above 0 and spans more than a decade. A line of more than `NOISY`
    points is pale under its running mean.

    Args:
        most: the end of the horizontal axis, where it is known to go on.
    """
    shown = {name: points for name, points in lines.items() if any(math.isfinite(y) for _, y in points)}
    values = [y for points in shown.values() for _, y in points if math.isfinite(y)]
    if not values:
        return None
    low, high = min(values), max(values)
    places = [x for points in shown.values() for x, _ in points]
    left, right = min(places), max([*places, *([] if most is None else [most])])
    right = right if right > left else left + 1
    log = low > 0 and high > 10 * low
    bottom, top = (math.log10(low), math.log10(high)) if log else (low, high)
    room = 0.05 * (top - bottom) or 0.5 * abs(top) or 1.0
    bottom, top = bottom - room, top + room

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def up(y: float) -> float:
        y = min(max(y, low), high)  # a running mean is rounded, at worst to 0
        return 100 * ((math.log10(y) if log else y) - bottom) / (top - bottom)

    strokes = []
    for look, points in enumerate(shown.values()):
        noisy = len(points) > NOISY
        strokes.append(Stroke(_pieces(points, across, up), look, noisy))
        if noisy:
            mean = running_mean([y for _, y in points], max(2, len(points) // 30))
            smooth = [(x, y) for (x, _), y in zip(points, mean, strict=True)]
            strokes.append(Stroke(_pieces(smooth, across, up), look, False))
    marks = _decades(10**bottom, 10**top) if log else _marks(bottom, top)
    return Drawing(
        title,
        sorted(strokes, key=lambda stroke: not stroke.pale),
        list(enumerate(shown)),
        [(f"{across(x):.2f}", number(x)) for x in _marks(left, right, whole=True)],
        [(f"{up(y):.2f}", number(y)) for y in marks],
        xlabel,
        f"{title} against {xlabel}, up to {number(max(places))}. Last values: "
        + "; ".join(f"{name} {number(_last(points))}" for name, points in shown.items()),
    )


def _last(points: Points) -> float:
    return next(y for _, y in reversed(points) if math.isfinite(y))


def _pieces(points: Points, across: Scale, up: Scale) -> list[str]:
    """The unbroken pieces of a line, thinned evenly; its last point stays."""
    step = max(1, math.ceil(len(points) / MOST_POINTS))
    thinned = [point for i, point in enumerate(points) if (len(points) - 1 - i) % step == 0]
    pieces: list[list[str]] = [[]]
    for x, y in thinned:
        if math.isfinite(y):
            pieces[-1].append(f"{across(x):.2f},{100 - up(y):.2f}")
        elif pieces[-1]:
            pieces.append([])
    return [" ".join(piece) for piece in pieces if piece]


def _marks(low: float, high: float, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, about `_TICKS` of them."""
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [step * k for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`, or the powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 3 else (1,)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
