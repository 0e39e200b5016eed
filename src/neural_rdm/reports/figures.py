"""What all figures share: canvases outside pyplot, colours, the axis of units, labels, CSV cells."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_atomically
from neural_rdm.core.given import regular
from neural_rdm.reports.runs import node, read_mapping

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_STAGES = 8
MAX_NAMED_UNITS = 24
#: told apart by every kind of eye (Okabe and Ito, without yellow and black)
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = "osD^vP"
#: of what the others are compared with
INK = "#1b1b1b"

#: a U-Net's names are as long as its structure is deep
_SHORTER = (
    (r"[._]unit$", ""), (r"^net\.", ""), (r"^.*\.unit/transformer_blocks\.0\.", "· "), (r"^.*\.unit/", "· "),
    (r"_blocks?\b", ""), (r"resnets", "res"), (r"attentions", "attn"),
)  # fmt: skip


def short_name(name: str) -> str:
    """A unit's name for an axis; one inside another stands behind it, marked by a dot."""
    for pattern, short in _SHORTER:
        name = re.sub(pattern, short, name)
    return name


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file; missing cells are empty.

    Raises:
        DataError: the file cannot be read.
    """
    return list(csv_rows(path))


def csv_rows(path: str | Path) -> Iterator[dict[str, str]]:
    """The same one by one: a file that grows with a run is read while it trains, and must not lie in memory whole.

    Raises:
        DataError: once it is asked for a row: the file cannot be read.
    """
    try:
        with open(regular(path), newline="", encoding="utf-8-sig", errors="replace") as file:
            yield from csv.DictReader(file, restval="")
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}. Give the folder of a run that has recorded it.") from error


def number(text: str | None) -> float:
    """The number in a cell; NaN for an empty cell or any other text."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def attempt(plot: Callable[[], Path | None]) -> list[Path]:
    """The path of a picture; nothing where a run was too short to have anything to draw (adaLN-Zero's first step has no
    gradient), saying so.
    """
    try:
        path = plot()
    except DataError as error:
        print(f"no plot: {error}")
        return []
    return [path] if path is not None else []


def titled(title: str, file: str | Path) -> str:
    """A title, and below it whose numbers it shows: the experiment and residual rule of the run that a file lies in."""
    for folder in Path(file).absolute().parents[:3]:
        if (folder / "config.yaml").is_file():
            config = read_mapping(folder / "config.yaml")
            experiment, rule = node(config, "choices").get("exp"), node(config, "residual").get("rule")
            said = [str(experiment)] * bool(experiment) + [f"residual={rule}"] * bool(rule)
            return f"{title}\n{', '.join(said)}" if said else title
    return title


def titled_samples(step: int, sampler: str, file: str | Path) -> str:
    """A title of drawn samples: the experiment and rule of the run that a file lies in, the step, and the sampler."""
    of_run = titled("", file).strip()
    return ", ".join([of_run] * bool(of_run) + [f"step {step:,}", sampler])


def look(index: int) -> dict[str, Any]:
    """Colour, dashes and marker of line number `index`; 24 differ in colour or dashes."""
    place, turn = index % len(PALETTE), index // len(PALETTE)
    return {"color": PALETTE[place], "linestyle": DASHES[turn % len(DASHES)], "marker": MARKERS[turn % len(MARKERS)]}


def canvas(wide: float, tall: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure outside pyplot: no global state, no display. Without a layout its panels stand where they are
    put.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, tall), dpi=144, layout=layout)


def tidy(axes: Axes) -> Axes:
    """Axes for lines: no box around them, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return axes


def new_figure(wide: float) -> tuple[Figure, Axes]:
    """A figure `wide` inches wide with one pair of axes for lines."""
    figure = canvas(wide, 4.4)
    return figure, tidy(figure.add_subplot())


def name_units(axes: Axes, names: Mapping[int, str]) -> None:
    """Depth as the horizontal axis: the units' names where they are few enough to be read, else their indices."""
    if len(names) <= MAX_NAMED_UNITS:
        units = sorted(names)
        labels = [short_name(names[unit]) for unit in units]
        axes.set_xticks(units, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_xlabel("unit, in the order in which they run")
    else:
        axes.set_xlabel("unit index, in the order in which they run")


def ramp(count: int, name: str = "viridis") -> list[Any]:
    """Dark to light in so many steps; the palest end of the map is left out, it would vanish on white."""
    from matplotlib import colormaps

    return [colormaps[name](0.88 * index / max(1, count - 1)) for index in range(count)]


def stage_colourbar(
    figure: Figure, axes: Axes | Sequence[Axes], steps: Sequence[int | str], colours: list[Any]
) -> None:
    """A bar of equal bands, one a stage (a step, or words for several): the stages need not be evenly spaced to stay
    readable.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = [index - 0.5 for index in range(len(steps) + 1)]
    scale = ScalarMappable(BoundaryNorm(edges, len(steps)), ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, ticks=range(len(steps)), pad=0.02)
    bar.ax.set_yticklabels([step if isinstance(step, str) else f"{step:,}" for step in steps])
    bar.ax.tick_params(length=0)
    bar.set_label("training step")


def log_if_wide(axes: Axes, values: Sequence[float], decades: float, zero: bool = True) -> None:
    """A logarithmic vertical axis where positive values span more than so many decades, else one from 0 (`zero`)."""
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > 10**decades:
        axes.set_yscale("log")
        plain_decimals(axes, min(finite), max(finite))
    elif zero and finite and min(finite) >= 0:
        axes.set_ylim(bottom=0)


def plain_decimals(axes: Axes, low: float, high: float) -> None:
    """0.02 in place of 2 x 10^-2 on a logarithmic vertical axis, where its numbers are short that way; of less than two
    decades also 0.02 and 0.05 between the powers of ten.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if low < 1e-4 or high >= 1e5:
        return
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, Any]], size: float = 8) -> None:
    """Write each line's name to the right of the axes at the height of its end, in its colour, none over another.

    Args:
        ends: name -> value at the line's end, and colour. Limits and scale of the axes must be final.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    subplot = axes.get_subplotspec()
    rows = subplot.get_gridspec().nrows if subplot is not None else 1
    gap = 1.3 * size / (0.75 * 72 * figure.get_size_inches()[1] / rows)  # in heights of the axes
    whole = axes.transData + axes.transAxes.inverted()
    left = axes.get_xlim()[0]
    wanted = {name: float(whole.transform((left, value))[1]) for name, (value, _) in ends.items()}
    for (name, place), (_, height) in zip(wanted.items(), _apart(list(wanted.items()), gap).items(), strict=True):
        colour = ends[name][1]
        axes.plot([1.0, 1.03], [place, height], color=colour, linewidth=0.7, transform=axes.transAxes, clip_on=False)
        axes.text(1.04, height, name, color=colour, fontsize=size, va="center", transform=axes.transAxes)


def _apart(places: Sequence[tuple[str, float]], gap: float) -> dict[str, float]:
    """name -> a height at least `gap` from the others, in their order and as near as can be to the one wanted."""
    blocks: list[tuple[list[str], float]] = []  # names, and the middle that they would like
    for name, place in sorted(places, key=lambda each: each[1]):
        blocks.append(([name], min(max(place, 0.0), 1.0)))
        while len(blocks) > 1 and blocks[-1][1] - blocks[-2][1] < gap * (len(blocks[-1][0]) + len(blocks[-2][0])) / 2:
            (names, middle), (lower, other) = blocks.pop(), blocks.pop()
            count = len(names) + len(lower)
            # what the members of both would like on average, their own offsets in the block taken off
            centre = (middle * len(names) + other * len(lower)) / count
            blocks.append((lower + names, centre))
    found = {
        name: middle + gap * (place - (len(names) - 1) / 2)
        for names, middle in blocks
        for place, name in enumerate(names)
    }
    return {name: found[name] for name, _ in places}


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    write_atomically(path, FigureCanvasAgg(figure).print_png)  # `savefig` would draw everything twice
    return Path(path)
