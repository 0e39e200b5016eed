"""Figures from a run's CSV files: sensitivity over depth (as the paper's Fig. 5) and curves over steps."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_STAGES = 8
MAX_NAMED_UNITS = 24
Series = tuple[list[int], list[float]]  # steps, ascending, and one value each


def plot_sensitivity(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw normalised sensitivity ||s_i|| / max_j ||s_j|| against depth, a line for each recorded stage (Fig. 5).

    At most eight stages are drawn, spread evenly over those recorded, the first and the last among them. The vertical
    axis is logarithmic where the values span more than two decades. A line breaks where a value is not finite.

    Args:
        csv_path: columns `step, unit, name, norm, normalized, gain`, a line for each step and unit. `normalized` and
            `gain` may be empty: an empty `normalized` is made from `norm`. Of repeated lines (a resumed run) the last
            counts.

    Raises:
        DataError: the file is missing, lacks a column, or holds no numbers.
    """
    stages, names = read_sensitivity(csv_path)
    steps = _spread(sorted(stages), MAX_STAGES)
    figure, axes = _figure(wide=max(6.4, min(11.0, 3.5 + 0.32 * len(names))))
    colours = _colours(len(steps))
    units = sorted(names)
    for colour, step in zip(colours, steps, strict=True):
        values = [stages[step].get(unit, math.nan) for unit in units]
        axes.plot(units, values, color=colour, marker="o" if len(units) <= 48 else "", markersize=3.5, linewidth=1.6)
    _log_if_wide(axes, [value for step in steps for value in stages[step].values()], decades=2)
    _colourbar(figure, axes, steps, colours)
    _name_units(axes, names)
    axes.set_ylabel(r"normalised sensitivity  $\|s_i\| \,/\, \max_j \|s_j\|$")
    axes.set_title("Sensitivity over depth")
    return _save(figure, png_path)


def plot_losses(metrics_csv: str | Path, png_path: str | Path) -> Path:
    """Draw `train/loss`, and `val/loss` where it is recorded, against the step.

    Args:
        metrics_csv: a `step` column and one for each metric, with empty cells where a step has no value.

    Raises:
        DataError: the file is missing, or holds no value of `train/loss`.
    """
    curves = {name: read_series(metrics_csv, name) for name in ("train/loss", "val/loss")}
    if not curves["train/loss"][0]:
        raise DataError(f"{metrics_csv} holds no value in a column train/loss; nothing to plot.")
    return plot_curves(curves, png_path, ylabel="loss", title="Loss")


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


def plot_curves(curves: Mapping[str, Series], png_path: str | Path, ylabel: str, title: str) -> Path:
    """Draw named curves (steps, values) on one pair of axes; empty ones are left out.

    A curve of more than 60 points is drawn pale, with its running mean (over a thirtieth of it, centred) on top, and
    the legend says so. The vertical axis is logarithmic where what is drawn spans more than one decade.
    """
    figure, axes = _figure(wide=7.2)
    shown: list[float] = []
    for index, (name, (steps, values)) in enumerate((name, series) for name, series in curves.items() if series[0]):
        colour, dashes = f"C{index % 10}", ("-", "--", ":", "-.")[index // 10 % 4]
        if len(values) > 60:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = _running_mean(values, max(2, len(values) // 30))
            label, marker = f"{name}, running mean", ""
        else:
            label, marker = name, "o"
        axes.plot(
            steps, values, color=colour, linestyle=dashes, linewidth=1.8, marker=marker, markersize=3.5, label=label
        )
        shown += values
    _log_if_wide(axes, shown, decades=1)
    axes.set(xlabel="optimizer step", ylabel=ylabel, title=title)
    if shown:
        axes.legend(frameon=False, loc="upper right")
    return _save(figure, png_path)


def read_series(path: str | Path, column: str) -> Series:
    """The values of one column of a metrics CSV by ascending step; empty where the column is missing.

    Empty cells are skipped, a cell that is no number is NaN; of repeated steps (a resumed run) the last counts.

    Raises:
        DataError: the file is missing.
    """
    values: dict[int, float] = {}
    for row in _rows(path):
        step, cell = _number(row.get("step")), row.get(column)
        if cell and math.isfinite(step):
            values[int(step)] = _number(cell)
    steps = sorted(values)
    return steps, [values[step] for step in steps]


def read_sensitivity(path: str | Path) -> tuple[dict[int, dict[int, float]], dict[int, str]]:
    """Normalised sensitivity as {step: {unit: value}}, and the units' names as {unit: name}.

    Raises:
        DataError: the file is missing, lacks a column, or holds no numbers.
    """
    norms: dict[int, dict[int, float]] = {}
    given: dict[int, dict[int, float]] = {}
    names: dict[int, str] = {}
    for row in _rows(path):
        missing = [column for column in ("step", "unit", "name", "norm") if row.get(column) is None]
        if missing:
            raise DataError(f"{path} lacks the column {missing[0]!r} of a sensitivity record.")
        step, unit = _number(row["step"]), _number(row["unit"])
        if not (math.isfinite(step) and math.isfinite(unit)):
            continue
        names[int(unit)] = row["name"]
        norms.setdefault(int(step), {})[int(unit)] = _number(row["norm"])
        given.setdefault(int(step), {})[int(unit)] = _number(row.get("normalized"))
    stages = {}
    for step, values in norms.items():
        largest = max((value for value in values.values() if math.isfinite(value)), default=math.nan)
        for unit, value in values.items():
            if math.isnan(given[step][unit]) and largest > 0:
                given[step][unit] = value / largest
        if any(map(math.isfinite, given[step].values())):
            stages[step] = given[step]
    if not stages:
        raise DataError(f"{path} holds no sensitivity; was the run cut before its first record?")
    return stages, names


def _rows(path: str | Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8", errors="replace") as file:
            return list(csv.DictReader(file, restval=""))
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}. Give the folder of a run that has recorded it.") from error


def _number(text: str | None) -> float:
    """The number in a cell; NaN for an empty cell or any other text."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the finite values at most `width // 2` places away; NaN where there is none."""
    finite = np.isfinite(values)
    counts = np.concatenate([[0], np.cumsum(finite)])
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    places = np.arange(len(values))
    first, end = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return ((sums[end] - sums[first]) / (counts[end] - counts[first])).tolist()


def _canvas(wide: float, tall: float) -> Figure:
    """An empty figure outside pyplot: no global state, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, tall), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _tidy(axes: Axes) -> Axes:
    """Axes for lines: no box around them, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return axes


def _figure(wide: float) -> tuple[Figure, Axes]:
    figure = _canvas(wide, 4.4)
    return figure, _tidy(figure.add_subplot())


def _name_units(axes: Axes, names: Mapping[int, str]) -> None:
    """Depth as the horizontal axis: the units' names where they are few enough to be read, else their indices."""
    if len(names) <= MAX_NAMED_UNITS:
        units = sorted(names)
        labels = [short_name(names[unit]) for unit in units]
        axes.set_xticks(units, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_xlabel("unit, in the order in which they run")
    else:
        axes.set_xlabel("unit index, in the order in which they run")


def _colours(count: int) -> list[Any]:
    """Dark to light over training; the palest end of the map is left out, it would vanish on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.88 * index / max(1, count - 1)) for index in range(count)]


def _colourbar(figure: Figure, axes: Axes | Sequence[Axes], steps: list[int], colours: list[Any]) -> None:
    """A bar of equal bands, one a stage: the stages need not be evenly spaced to stay readable."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap

    edges = [index - 0.5 for index in range(len(steps) + 1)]
    scale = ScalarMappable(BoundaryNorm(edges, len(steps)), ListedColormap(colours))
    bar = figure.colorbar(scale, ax=axes, ticks=range(len(steps)), pad=0.02)
    bar.ax.set_yticklabels([f"{step:,}" for step in steps])
    bar.ax.tick_params(length=0)
    bar.set_label("training step")


def _log_if_wide(axes: Axes, values: Sequence[float], decades: float) -> None:
    finite = [value for value in values if math.isfinite(value)]
    if finite and min(finite) > 0 and max(finite) / min(finite) > 10**decades:
        axes.set_yscale("log")
    elif finite and min(finite) >= 0:
        axes.set_ylim(bottom=0)


def _save(figure: Figure, path: str | Path) -> Path:
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
    return Path(path)
