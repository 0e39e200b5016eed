"""What all figures share: canvases outside pyplot, the axis of units, the colours of training stages, CSV cells."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_STAGES = 8
MAX_NAMED_UNITS = 24

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
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            return list(csv.DictReader(file, restval=""))
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


def canvas(wide: float, tall: float) -> Figure:
    """An empty figure outside pyplot: no global state, no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(wide, tall), dpi=144, layout="constrained")


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


def stage_colours(count: int) -> list[Any]:
    """Dark to light over training; the palest end of the map is left out, it would vanish on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.88 * index / max(1, count - 1)) for index in range(count)]


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
    elif zero and finite and min(finite) >= 0:
        axes.set_ylim(bottom=0)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    write_atomically(path, FigureCanvasAgg(figure).print_png)  # `savefig` would draw everything twice
    return Path(path)
