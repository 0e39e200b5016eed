"""Figures of single units over depth: their gates, sensitivity over depth and training, and what each does by time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import (
    MAX_NAMED_UNITS,
    MAX_STAGES,
    canvas,
    log_if_wide,
    name_units,
    number,
    ramp,
    read_csv,
    save,
    short_name,
    spread,
    stage_colourbar,
    tidy,
    titled,
)
from neural_rdm.reports.plots import read_sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Stages = dict[int, dict[int, float]]  # {step: {unit: value}}
Bin = tuple[float, float]  # diffusion timesteps [t_low, t_high)

#: quantity of `units.csv`: (what its panel is called, the value at which a unit changes nothing)
QUANTITIES: dict[str, tuple[str, float | None]] = {
    "rms": (r"How large the stream is that enters the unit: RMS of $z_i$", None),
    "growth": (r"How much longer the unit makes it: $\|z_{i+1}\| \,/\, \|z_i\|$", 1.0),
    "write_ratio": (r"How much the unit adds: $\|w_i\| \,/\, \|z_i\|$ with $w_i = z_{i+1} - z_i$", None),
    "write_cos": (r"Whether it adds along the stream (above 0) or takes away: $\cos(w_i, z_i)$", 0.0),
    "importance": (
        r"What it does to the loss, to first order (below 0: it helps): $\langle s_{i+1}, w_i \rangle$",
        0.0,
    ),
    "redundancy": (r"How far it turns the stream: $1 - \cos(z_i, z_{i+1})$", None),
    "mean_share": (r"How alike all tokens are behind it: token mean over the rest, $\|Jz\| \,/\, \|Pz\|$", None),
}
_MISSING = "0.72"  # a grey that neither colour map of the heat maps holds


def plot_gates(sensitivity_csv: str | Path, png: str | Path) -> Path:
    """Draw the gates against depth: alpha's mean over the channels, and below it the norm of beta.

    A line for each of at most eight stages of training, coloured as in the sensitivity plot; the band about the last
    line of alpha is its standard deviation over the channels on either side. A panel whose gate the rule does not have
    is left out. Of time-conditioned gates it is the static part. A line breaks where a unit has no gate.

    Args:
        sensitivity_csv: columns `step, unit, name, alpha_mean, alpha_std, beta_norm`, a line for each step and unit;
            a gate's cells are empty, or its columns missing, where the rule lacks it. Of repeated lines (a resumed run)
            the last counts.

    Raises:
        DataError: the file is missing, lacks the column `step`, `unit` or `name`, holds no record, or no gates.
    """
    found, names = read_quantities(sensitivity_csv, ("alpha_mean", "alpha_std", "beta_norm"))
    means, deviations, norms = found["alpha_mean"], found["alpha_std"], found["beta_norm"]
    steps = spread(sorted(means.keys() | norms.keys()), MAX_STAGES)
    if not steps:
        raise DataError(f"{sensitivity_csv} records no gates; a rule without alpha and beta (resnet) has none to plot.")
    colours, units = ramp(len(steps)), sorted(names)
    shown = [gate for gate in (means, norms) if gate]
    figure = canvas(max(6.4, min(11.0, 3.5 + 0.32 * len(units))), 2.0 + 2.8 * len(shown))
    panels = [tidy(axes) for axes in figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]]
    for axes, gate in zip(panels, shown, strict=True):
        marker = "o" if len(units) <= 48 else ""
        for colour, step in zip(colours, steps, strict=True):
            values = _over(gate.get(step, {}), units)
            axes.plot(units, values, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
            if gate is means and step == steps[-1]:
                width = _over(deviations.get(step, {}), units)
                axes.fill_between(units, values - width, values + width, color=colour, alpha=0.13, linewidth=0)
        if gate is means:
            axes.set_ylabel(r"$\alpha$, mean over channels")
            axes.ticklabel_format(axis="y", useOffset=False)  # "+1" in a corner hides that alpha stays close to 1
        else:
            axes.set_ylabel(r"norm of beta  $\|\beta_i\|$")
            log_if_wide(axes, [value for step in steps for value in gate.get(step, {}).values()], decades=2)
    name_units(panels[-1], names)
    stage_colourbar(figure, panels, steps, colours)
    band = " (band: standard deviation over the channels at the last step)" if means else ""
    figure.suptitle(titled(f"Gates over depth{band}", sensitivity_csv), fontsize=10)
    return save(figure, png)


def plot_heatmap(sensitivity_csv: str | Path, png: str | Path) -> Path:
    """Draw depth against training as heat maps: normalised sensitivity, and beside it the gain ||s_i|| / ||s_{i+1}||.

    A row for each unit, the first one on top; a column of equal width for each recorded step, all of them, however
    uneven their distances. The colours of the sensitivity are logarithmic where it spans more than two decades, those
    of the gain always, with white at 1 (a unit that leaves the gradient's norm as it is). Grey: nothing was recorded.
    The gain's map is left out where no step has one.

    Args:
        sensitivity_csv: as `plots.plot_sensitivity` reads it.

    Raises:
        DataError: the file is missing, lacks a column, or holds no numbers.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    stages, names = read_sensitivity(sensitivity_csv)
    gains = read_quantities(sensitivity_csv, ("gain",))[0]["gain"]
    steps, units = sorted(stages), sorted(names)
    values = grid(stages, steps, units)
    positive = values[values > 0]
    if len(positive) and positive.max() > 100 * positive.min():
        values = np.where(values == 0, positive.min(), values)  # no logarithm, but recorded: the darkest colour
        norm: Normalize = LogNorm(positive.min(), positive.max())
    else:
        norm = Normalize(0, max(1.0, float(np.nanmax(values))))
    maps: list[tuple[NDArray[np.float64], Normalize, Any, str]] = [
        (values, norm, colormaps["viridis"], r"normalised sensitivity  $\|s_i\| \,/\, \max_j \|s_j\|$")
    ]
    if gains:
        factor = largest_factor(value for step in steps for value in gains.get(step, {}).values())
        label = r"gain  $\|s_i\| \,/\, \|s_{i+1}\|$"
        maps.append((grid(gains, steps, units), LogNorm(1 / factor, factor), colormaps["RdBu_r"], label))
    figure = canvas(2.0 + 4.8 * len(maps), max(4.0, min(8.4, 2.0 + 0.16 * len(units))))
    figure.suptitle(titled("Sensitivity over depth and training", sensitivity_csv), fontsize=10)
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for axes, (cells, norm, colours, label) in zip(panels, maps, strict=True):
        picture = axes.imshow(
            np.ma.masked_invalid(cells),
            norm=norm,
            cmap=colours.with_extremes(bad=_MISSING),
            aspect="auto",
            interpolation="nearest",
        )
        bar = figure.colorbar(picture, ax=axes, pad=0.02)
        if colours.name == "RdBu_r":  # a logarithmic axis of less than a decade would bear no number at all
            ticks = [float(norm.vmax or 1.0) ** power for power in (-1.0, -0.5, 0.0, 0.5, 1.0)]
            bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
            bar.minorticks_off()
        axes.set_title(label, fontsize=10, pad=10)  # the j below "max" hangs low
        marked = spread(range(len(steps)), 6)
        axes.set_xticks(marked, [f"{steps[column]:,}" for column in marked], fontsize=8)
        axes.set_xlabel("training step, a column for each record")
    if len(units) <= MAX_NAMED_UNITS:
        panels[0].set_yticks(range(len(units)), [short_name(names[unit]) for unit in units], fontsize=8)
        panels[0].set_ylabel("unit, in the order in which they run")
    else:
        marked = spread(range(len(units)), 12)
        panels[0].set_yticks(marked, [str(units[row]) for row in marked], fontsize=8)
        panels[0].set_ylabel("unit index, in the order in which they run")
    return save(figure, png)


def plot_units(units_csv: str | Path, png: str | Path, step: int | None = None) -> Path:
    """Draw what each unit does to the stream, over depth and by diffusion timestep: one panel for each quantity.

    Panels, a line for each bin of timesteps, dark for low t (little noise) to light for high t: the RMS of the stream
    z_i that enters unit i; its growth ||z_{i+1}|| / ||z_i||; the write w_i = z_{i+1} - z_i relative to it, and its
    cosine with it; the first-order change <s_{i+1}, w_i> of a sample's loss that the unit makes (below 0: it lowers the
    loss); the redundancy 1 - cos(z_i, z_{i+1}); the token mean over the rest, ||Jz|| / ||Pz||, of the stream that
    leaves the unit. A dotted line stands where a unit changes nothing. Axes are logarithmic where positive values span
    more than a decade, and symmetrically so where most values of either sign are small beside the largest.

    Args:
        units_csv: as `read_units` takes it. A quantity without any number at this step is a panel that says so.
        step: the recorded optimizer step to draw; default the newest.

    Raises:
        DataError: the file is missing, lacks a column of the key, holds no numbers, or does not hold `step`.
    """
    records, names = read_units(units_csv)
    step = max(records) if step is None else step
    if step not in records:
        recorded = ", ".join(map(str, spread(sorted(records), MAX_STAGES)))
        raise DataError(f"{units_csv} holds no step {step}; among the recorded ones are {recorded}.")
    record, units = records[step], sorted(names)
    bins = sorted({bin for of_unit in record.values() for bin in of_unit})
    colours = ramp(len(bins), "plasma")  # another map than that of the steps: timesteps are no stages
    figure = canvas(max(7.2, min(12.0, 4.0 + 0.2 * len(units))), 1.6 + 1.9 * len(QUANTITIES))
    panels = figure.subplots(len(QUANTITIES), 1, sharex=True)
    for axes, (quantity, (label, neutral)) in zip(panels, QUANTITIES.items(), strict=True):
        tidy(axes)
        axes.set_title(label, fontsize=9, loc="left")
        lines = [_over({u: record[u].get(bin, {}).get(quantity, math.nan) for u in record}, units) for bin in bins]
        shown = [float(value) for line in lines for value in line if math.isfinite(value)]
        for colour, line, bin in zip(colours, lines, bins, strict=True):
            marker = "o" if len(units) <= 48 else ""
            axes.plot(units, line, color=colour, marker=marker, markersize=3, linewidth=1.4, label=bin_label(bin))
        if not shown:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color="0.5")
            axes.set_yticks([])
            continue
        if neutral is not None:
            axes.axhline(neutral, color="0.5", linestyle=":", linewidth=1.0, zorder=1)
        _scale(axes, shown, neutral)
    name_units(panels[-1], names)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, title="timesteps")
    figure.suptitle(titled(f"What each unit does to the stream, step {step:,}", units_csv), fontsize=10)
    return save(figure, png)


def read_quantities(path: str | Path, columns: Sequence[str]) -> tuple[dict[str, Stages], dict[int, str]]:
    """Columns of `sensitivity.csv` as {column: {step: {unit: value}}}, finite values only, and {unit: name}.

    A column that is missing or holds no number gives an empty dict: a run cut back by a resume drops empty columns.

    Raises:
        DataError: the file is missing, lacks the column `step`, `unit` or `name`, or holds no record.
    """
    cells: dict[tuple[int, int], dict[str, str]] = {}
    for row in read_csv(path):
        place = _place(path, row)
        if place is not None:
            cells[place] = row
    if not cells:
        raise DataError(f"{path} holds no record of a unit; was the run cut before its first one?")
    found: dict[str, Stages] = {column: {} for column in columns}
    for (step, unit), row in cells.items():
        for column in columns:
            if math.isfinite(value := number(row.get(column))):
                found[column].setdefault(step, {})[unit] = value
    return found, {unit: row["name"] for (_, unit), row in cells.items()}


def read_units(path: str | Path) -> tuple[dict[int, dict[int, dict[Bin, dict[str, float]]]], dict[int, str]]:
    """`units.csv` as {step: {unit: {(t_low, t_high): {quantity: value}}}}, finite values only, and {unit: name}.

    Of repeated lines (a resumed run) the last counts, as a whole; a bin without any number is left out.

    Args:
        path: columns `step, unit, name, t_low, t_high` and those of `QUANTITIES`, of which any may be missing or empty.

    Raises:
        DataError: the file is missing, lacks a column of the key, or holds no numbers.
    """
    cells: dict[tuple[int, int, Bin], dict[str, float]] = {}
    names: dict[int, str] = {}
    for row in read_csv(path):
        place = _place(path, row, "t_low", "t_high")
        bin = number(row["t_low"]), number(row["t_high"])
        if place is None or not all(map(math.isfinite, bin)):
            continue
        names[place[1]] = row["name"]
        values = {quantity: number(row.get(quantity)) for quantity in QUANTITIES}
        cells[(*place, bin)] = {quantity: value for quantity, value in values.items() if math.isfinite(value)}
    records: dict[int, dict[int, dict[Bin, dict[str, float]]]] = {}
    for (step, unit, bin), quantities in cells.items():
        if quantities:
            records.setdefault(step, {}).setdefault(unit, {})[bin] = quantities
    if not records:
        raise DataError(f"{path} holds no numbers of any unit; was the run cut before its first record?")
    return records, names


def grid(stages: Stages, steps: Sequence[int], units: Sequence[int]) -> NDArray[np.float64]:
    """{step: {unit: value}} as an array [units, steps], NaN where nothing finite was recorded."""
    columns = [_over(stages.get(step, {}), units) for step in steps]
    return np.stack(columns, axis=1)


def largest_factor(values: Iterable[float]) -> float:
    """The largest factor, at least 1.05, by which a positive value lies above or below 1: limits even about 1."""
    away = [abs(math.log(value)) for value in values if value > 0 and math.isfinite(value)]
    return max(1.05, math.exp(min(max(away, default=0.0), 600.0)))


def linear_threshold(values: Iterable[float]) -> float | None:
    """The power of ten up to which an axis for values of either sign stays linear; None where it need not bend at all.

    It bends where the largest value is more than 30 times the median size: most values would lie on the axis' zero.
    The median itself stays in the linear part, else noise about 0 would fill the panel.
    """
    sizes = sorted(abs(value) for value in values if value != 0)
    if not sizes or sizes[-1] <= 30 * sizes[len(sizes) // 2]:
        return None
    return 10.0 ** math.ceil(math.log10(sizes[len(sizes) // 2]))


def bin_label(bin: Bin) -> str:
    """`t 0-125` for the timesteps [0, 125)."""
    return f"t {bin[0]:.5g}-{bin[1]:.5g}"


def _place(path: str | Path, row: Mapping[str, str], *also: str) -> tuple[int, int] | None:
    """The step and unit of a line, None for one that was cut before them."""
    for column in ("step", "unit", "name", *also):
        if row.get(column) is None:
            raise DataError(f"{path} lacks the column {column!r} of a record of units.")
    step, unit = number(row["step"]), number(row["unit"])
    return (int(step), int(unit)) if math.isfinite(step) and math.isfinite(unit) else None


def _over(values: Mapping[int, float], units: Sequence[int]) -> NDArray[np.float64]:
    """The values in the order of the units; NaN, where a line breaks, for one that is missing or not finite."""
    found = np.array([values.get(unit, math.nan) for unit in units], dtype=np.float64)
    return np.where(np.isfinite(found), found, math.nan)


def _scale(axes: Axes, values: Sequence[float], neutral: float | None) -> None:
    if min(values) >= 0 and neutral != 0:
        log_if_wide(axes, values, decades=1)
        if neutral is not None and axes.get_yscale() == "linear":
            axes.autoscale(axis="y")  # about the neutral value, not from 0
    elif threshold := linear_threshold(values):
        axes.set_yscale("symlog", linthresh=threshold)
