"""The figures of a study: numbers with their intervals, differences to the base, and curves with bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_rdm.reports.curves import Chart, Line
from neural_rdm.reports.figures import INK, PALETTE, canvas, label_ends, log_if_wide, look, name_units, save, tidy
from neural_rdm.reports.mixing import plot_matrices
from neural_rdm.reports.results import Metric, Result
from neural_rdm.reports.study import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LINES = 6  # with bands in one panel; more have a panel each
COLUMNS = 4
Look = Mapping[str, Any]


def draw(study: Study, folder: Path) -> dict[str, Path]:
    """Draw all that there is to draw of a study into `comparison_NAME.png`; return name -> path of each figure.

    Names are those of the metrics and of `Study.charts`, `/` replaced by `_`.
    """
    written, looks = {}, _looks(study)

    def path(name: str) -> Path:
        return folder / f"comparison_{name}.png"

    for metric in study.metrics:
        if sum(bool(result.values) for result in metric.results.values()) > 1:
            name = metric.name.replace("/", "_")
            written[name] = plot_metric(study, metric, path(name))
    for name, chart in study.charts.items():
        written[name] = plot_chart(chart, looks, path(name))
    if study.mixing:
        written["mixing"] = plot_matrices(study.mixing, path("mixing"))
    return written


def _looks(study: Study) -> dict[str, dict[str, Any]]:
    """A look for each group, the same in all figures; bases have the foreground's colour."""
    bases = [group.label for group in study.groups if group.label in study.bases.values()]
    rest = [group.label for group in study.groups if group.label not in bases]
    looks: dict[str, dict[str, Any]] = {label: look(index) for index, label in enumerate(rest)}
    for index, label in enumerate(bases):
        looks[label] = {**look(len(PALETTE) * index), "color": INK}
    return looks


def plot_metric(study: Study, metric: Metric, path: Path) -> Path:
    """A row a group, in the order of the plan: a dot a seed, the mean with its 95 % interval; to the right the paired
    differences to the base, in colour where their sign is settled.
    """
    labels = [group.label for group in study.groups]
    differences = any(result.less for result in metric.results.values())
    figure = canvas(10.0 if differences else 6.4, 1.5 + 0.34 * len(labels))
    panels = figure.subplots(1, 2 if differences else 1, sharey=True, squeeze=False)[0]
    for axes in panels:
        tidy(axes).grid(axis="y", visible=False)
    for row, label in enumerate(labels):
        result = metric.results[label]
        if result.interval is None:
            reason = next(iter(result.missing.values()), "no run")
            panels[0].text(0.01, row, reason[:60], transform=panels[0].get_yaxis_transform(), va="center", fontsize=7)
        else:
            _row(panels[0], row, [*result.values.values()], result, INK, base=False)
        if differences:
            _difference(panels[1], row, result, metric.higher)
    panels[0].set_yticks(range(len(labels)), [_named(study, metric, label) for label in labels])
    panels[0].set_ylim(len(labels) - 0.4, -0.6)
    arrow = "higher is better" if metric.higher else "lower is better"
    panels[0].set_xlabel(f"{metric.name} ({arrow})")
    if differences:
        panels[1].axvline(0, color=INK, linewidth=0.8)
        panels[1].set_xlabel("less the base, paired by seed")
    figure.suptitle(f"{metric.name}: a dot a seed, the mean and its 95 % interval", fontsize=10)
    return save(figure, path)


def _named(study: Study, metric: Metric, label: str) -> str:
    """The label, marked where it is a base, and with the number of its protocol where there are several."""
    result = metric.results[label]
    several = len(metric.protocols) > 1 and result.values
    mark = f" [{metric.protocols.index(result.protocol) + 1}]" if several else ""
    return f"{label} (base){mark}" if label in study.bases.values() else f"{label}{mark}"


def _row(axes: Axes, row: int, values: Sequence[float], result: Result, colour: Any, base: bool) -> None:
    found = result.less if base else result.interval
    assert found is not None
    axes.plot(values, [row + 0.22] * len(values), "o", color=colour, markersize=2.5, alpha=0.55, linestyle="none")
    if math.isfinite(found.low):
        axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
    axes.plot([found.mean], [row], "o", color=colour, markersize=5)


def _difference(axes: Axes, row: int, result: Result, higher: bool) -> None:
    """One row of differences: blue or orange where settled for all together, pale where not."""
    if result.less is None:
        if result.note:
            axes.text(0.01, row, result.note[:60], transform=axes.get_yaxis_transform(), va="center", fontsize=7)
        return
    settled = {"better": look(0)["color"], "worse": look(1)["color"]}
    _row(axes, row, [*result.pairs.values()], result, settled.get(result.sign, "0.55"), base=True)
    axes.text(1.01, row, result.sign, transform=axes.get_yaxis_transform(), va="center", fontsize=8)


def plot_chart(chart: Chart, looks: Mapping[str, Look], path: Path) -> Path:
    """The lines of a chart with their bands and their names at their ends; of more than six each in a panel of its own,
    the others pale behind it.
    """
    looks = {line.label: looks.get(line.label) or look(index) for index, line in enumerate(chart.lines)}
    if len(chart.lines) > MOST_LINES:
        return _panels(chart, looks, path)
    figure = canvas(7.6, 4.4)
    axes = tidy(figure.add_subplot())
    for line in chart.lines:
        _line(axes, line, looks[line.label])
    _scales([axes], chart)
    label_ends(axes, {line.label: (line.mean[-1], looks[line.label]["color"]) for line in chart.lines})
    axes.set(xlabel=chart.xlabel, ylabel=chart.ylabel)
    axes.set_title(chart.title, fontsize=10)
    if chart.names:
        name_units(axes, chart.names)
    return save(figure, path)


def _panels(chart: Chart, looks: Mapping[str, Look], path: Path) -> Path:
    from matplotlib.collections import LineCollection

    rows = -(-len(chart.lines) // COLUMNS)
    wide, tall = 11.0, 1.1 + 2.2 * rows
    figure = canvas(wide, tall, layout=None)  # to measure so many panels would take longer than all the drawing
    figure.subplots_adjust(0.9 / wide, 0.7 / tall, 1 - 0.3 / wide, 1 - 0.7 / tall, wspace=0.08, hspace=0.28)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    others = [[*zip(line.x, line.mean, strict=True)] for line in chart.lines]
    for axes, own in zip(grid, chart.lines, strict=False):
        tidy(axes)
        axes.add_collection(LineCollection(others, colors="0.6", alpha=0.45, linewidths=0.7))
        _line(axes, own, {**looks[own.label], "linestyle": "-"})
        axes.set_title(own.label, fontsize=9, color=looks[own.label]["color"])
    _scales(list(grid[: len(chart.lines)]), chart)
    for axes in grid[len(chart.lines) :]:
        axes.set_axis_off()
    for axes in grid[max(0, len(chart.lines) - COLUMNS) : len(chart.lines)]:
        axes.tick_params(axis="x", labelbottom=True)  # the lowest of its column
    figure.supxlabel(chart.xlabel, y=0.15 / tall, fontsize=10)
    figure.supylabel(chart.ylabel, x=0.12 / wide, fontsize=10)
    figure.suptitle(f"{chart.title} (each group in turn; pale: the others)", y=1 - 0.15 / tall, fontsize=10)
    return save(figure, path)


def _line(axes: Axes, line: Line, of: Look) -> None:
    colour = of["color"]
    marker = of["marker"] if len(line.x) <= 24 else ""
    axes.plot(line.x, line.mean, color=colour, linestyle=of["linestyle"], marker=marker, markersize=3, linewidth=1.6)
    axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.13, linewidth=0)


def _scales(panels: Sequence[Axes], chart: Chart) -> None:
    """Logarithmic where the means span more than a decade; bands are cut off where they would flatten the lines."""
    means = [value for line in chart.lines for value in line.mean] + [0.0] * chart.zero
    axes = panels[0]  # the others share its limits
    if chart.zero:
        for each in panels:
            each.axhline(0, color=INK, linewidth=0.8)
    log_if_wide(axes, means, decades=1, zero=False)
    if axes.get_yscale() == "log":
        axes.set_ylim(min(means) / 1.5, max(means) * 1.5)
        return
    ends = [value for line in chart.lines for value in (*line.low, *line.high) if math.isfinite(value)]
    low, high = min(means), max(means)
    room = (high - low) or abs(high) or 1.0
    axes.set_ylim(max(min([low, *ends]), low - room) - 0.05 * room, min(max([high, *ends]), high + room) + 0.05 * room)
