"""Figures from a run's CSV files: sensitivity over depth (as the paper's Fig. 5) and curves over steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import (
    MAX_STAGES,
    canvas,
    csv_rows,
    log_if_wide,
    look,
    name_units,
    new_figure,
    number,
    ramp,
    save,
    stage_colourbar,
    tidy,
    titled,
)

#: a line of one record is noise: at fixed weights the last unit's share of the largest was 0.43 +- 0.11 over batches
RECORDS_A_LINE = 4

Series = tuple[list[int], list[float]]  # steps, ascending, and one value each


def plot_sensitivity(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw normalised sensitivity against depth, a line for each stage of training (Fig. 5).

    Above, `||s_i||` over the largest of the stack, as in Fig. 5; below, over that of the last unit. A record is one
    batch, and batches differ: a line is the mean over all records of its stage, the band one standard deviation over
    them. Stages are equally many consecutive records, at least `RECORDS_A_LINE` where there are twice as many, and at
    most eight stages. A vertical axis is logarithmic where the values span more than two decades. A line breaks where
    no record has a finite value.

    Args:
        csv_path: columns `step, unit, name, norm, normalized, gain`, a line for each step and unit. `normalized` and
            `gain` may be empty: an empty `normalized` is made from `norm`. Of repeated lines (a resumed run) the last
            counts.

    Raises:
        DataError: the file is missing, lacks a column, or holds no numbers.
    """
    records, names = read_sensitivity(csv_path)
    units = sorted(names)
    groups = stages_of(sorted(records))
    table = np.array([[records[step].get(unit, math.nan) for unit in units] for step in sorted(records)])
    figure = canvas(max(6.4, min(11.0, 3.5 + 0.32 * len(names))), 7.6)
    above, below = (tidy(axes) for axes in figure.subplots(2, 1, sharex=True))
    colours = ramp(len(groups))
    with np.errstate(divide="ignore", invalid="ignore"):
        by_last = np.where(table[:, -1:] > 0, table / table[:, -1:], math.nan)
    for axes, values in ((above, table), (below, by_last)):
        drawn: list[float] = []
        first = 0
        for colour, group in zip(colours, groups, strict=True):
            mean, std = mean_and_std(values[first : first + len(group)])
            first += len(group)
            drawn += mean.tolist()
            if len(group) > 1:
                floor = np.where(mean - std > 0, mean - std, mean / 10)  # what a logarithmic axis can still show
                axes.fill_between(units, floor, mean + std, color=colour, alpha=0.13, linewidth=0)
            axes.plot(units, mean, color=colour, marker="o" if len(units) <= 48 else "", markersize=3.5, linewidth=1.6)
        log_if_wide(axes, drawn, decades=2)
    stage_colourbar(figure, (above, below), [_span(group) for group in groups], colours)
    name_units(below, names)
    above.set_ylabel(r"$\|s_i\| \,/\, \max_j \|s_j\|$")
    below.set_ylabel(r"$\|s_i\| \,/\, \|s_{last}\|$")
    count = max(map(len, groups))
    said = f"mean of up to {count} batches, band: one standard deviation over them" if count > 1 else "one batch a line"
    figure.suptitle(titled(f"Sensitivity over depth ({said})", csv_path), fontsize=10)
    return save(figure, png_path)


def stages_of(steps: Sequence[int]) -> list[list[int]]:
    """Ascending steps cut into consecutive stages of nearly equal numbers: as many stages, up to eight, as leave
    `RECORDS_A_LINE` steps in each, and two at least where there are two steps.
    """
    count = min(len(steps), MAX_STAGES, max(2, len(steps) // RECORDS_A_LINE))
    cuts = [round(index * len(steps) / count) for index in range(count + 1)]
    return [list(steps[first:end]) for first, end in itertools.pairwise(cuts)]


def mean_and_std(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [units] over records [records, units], of what is finite; NaN where nothing is, and a
    standard deviation of 0 of a single value.
    """
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(finite, values, 0.0).sum(axis=0) / count
        squares = np.where(finite, (values - mean) ** 2, 0.0).sum(axis=0)
    return mean, np.sqrt(squares / np.maximum(count - 1, 1))


def _span(steps: Sequence[int]) -> str:
    """The first and last step of a stage."""
    return f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"


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
    return plot_curves(curves, png_path, ylabel="loss", title=titled("Loss", metrics_csv))


def plot_curves(curves: Mapping[str, Series], png_path: str | Path, ylabel: str, title: str) -> Path:
    """Draw named curves (steps, values) on one pair of axes; empty ones are left out.

    A curve of more than 60 points is drawn pale, with its running mean (over a thirtieth of it, centred) on top, and
    the legend says so. The vertical axis is logarithmic where what is drawn spans more than one decade.
    """
    figure, axes = new_figure(wide=7.2)
    shown: list[float] = []
    for index, (name, (steps, values)) in enumerate((name, series) for name, series in curves.items() if series[0]):
        colour, dashes = look(index)["color"], look(index)["linestyle"]
        if len(values) > 60:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = running_mean(values, max(2, len(values) // 30))
            label, marker = f"{name}, running mean", ""
        else:
            label, marker = name, "o"
        axes.plot(
            steps, values, color=colour, linestyle=dashes, linewidth=1.8, marker=marker, markersize=3.5, label=label
        )
        shown += values
    log_if_wide(axes, shown, decades=1)
    axes.set(xlabel="optimizer step", ylabel=ylabel)
    axes.set_title(title, fontsize=10)
    if shown:
        axes.legend(frameon=False, loc="upper right")
    return save(figure, png_path)


def read_series(path: str | Path, column: str) -> Series:
    """The values of one column of a metrics CSV by ascending step; empty where the column is missing.

    Empty cells are skipped, a cell that is no number is NaN; of repeated steps (a resumed run) the last counts.

    Raises:
        DataError: the file is missing.
    """
    values: dict[int, float] = {}
    for row in csv_rows(path):
        step, cell = number(row.get("step")), row.get(column)
        if cell and math.isfinite(step):
            values[int(step)] = number(cell)
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
    for row in csv_rows(path):
        missing = [column for column in ("step", "unit", "name", "norm") if row.get(column) is None]
        if missing:
            raise DataError(f"{path} lacks the column {missing[0]!r} of a sensitivity record.")
        step, unit = number(row["step"]), number(row["unit"])
        if not (math.isfinite(step) and math.isfinite(unit)):
            continue
        names[int(unit)] = row["name"]
        norms.setdefault(int(step), {})[int(unit)] = number(row["norm"])
        given.setdefault(int(step), {})[int(unit)] = number(row.get("normalized"))
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


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the finite values at most `width // 2` places away; NaN where there is none."""
    finite = np.isfinite(values)
    counts = np.concatenate([[0], np.cumsum(finite)])
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    places = np.arange(len(values))
    first, end = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return ((sums[end] - sums[first]) / (counts[end] - counts[first])).tolist()
