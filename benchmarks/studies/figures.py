"""The figures of `docs/results/README.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.compare import Line
from neural_rdm.reports.figures import INK, canvas, label_ends, look, save, tidy
from neural_rdm.reports.statistics import interval

Curves = Mapping[str, Sequence[Sequence[float]]]  # name -> a curve a seed


def differences(panels: Mapping[str, list[Line]], path: Path) -> Path:
    """A panel a number: each group's paired difference to the base with its 95 % interval, in colour where settled."""
    names = list(dict.fromkeys(line.name for lines in panels.values() for line in lines[1:]))
    columns = len(panels) if len(panels) < 4 else 2
    rows = math.ceil(len(panels) / columns)
    figure = canvas(1.8 + 3.4 * columns, (1.3 + 0.3 * len(names)) * rows)
    settled = {"better": look(0)["color"], "worse": look(1)["color"]}
    every = figure.subplots(rows, columns, squeeze=False).flat
    for place, (axes, (title, lines)) in enumerate(zip(every, panels.items(), strict=True)):
        tidy(axes).grid(axis="y", visible=False)
        axes.axvline(0, color=INK, linewidth=0.8)
        for line in lines[1:]:
            if line.less is None:
                continue
            row, colour = names.index(line.name), settled.get(line.sign, "0.55")
            axes.plot([line.less.low, line.less.high], [row, row], color=colour, linewidth=2)
            axes.plot([line.less.mean], [row], "o", color=colour, markersize=5)
            axes.text(1.01, row, line.sign, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
        axes.set_yticks(range(len(names)), names if place % columns == 0 else [""] * len(names))
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(f"{title}, less {lines[0].name}")
    return save(figure, path)


def curves(
    panels: Mapping[str, tuple[Sequence[float], Curves]], path: Path, x_label: str, y_label: str, log: str = ""
) -> Path:
    """A panel a name: the mean over seeds of each curve (on a logarithmic axis of its logarithms), with its 95 %
    interval as a band, names at their ends.

    Args:
        log: which axes are logarithmic: any of `x`, `y`.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = canvas(5.2 * columns, 3.3 * rows)
    every = figure.subplots(rows, columns, squeeze=False, sharey=True)
    scale, back = (math.log10, lambda value: 10**value) if "y" in log else (float, float)
    named: list[tuple[Any, dict[str, tuple[float, Any]]]] = []
    means: list[float] = []
    for axes, (title, (x, found)) in zip(every.flat, panels.items(), strict=False):
        tidy(axes).set_title(title, fontsize=10)
        ends: dict[str, tuple[float, Any]] = {}
        for index, (name, seeds) in enumerate(found.items()):
            each = [interval([scale(value) for value in values]) for values in zip(*seeds, strict=True)]
            low, mean, high = (
                [back(getattr(one, side)) if one else math.nan for one in each] for side in ("low", "mean", "high")
            )
            colour = look(index)["color"]
            axes.plot(x, mean, **{**look(index), "markersize": 3})
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
            ends[name] = mean[-1], colour
            means += [scale(value) for value in mean if math.isfinite(value)]
        if "x" in log:
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{value:g}" for value in x])
            axes.minorticks_off()
        if "y" in log:
            axes.set_yscale("log")
        named.append((axes, ends))
    # bands of two or three seeds are wide, and what is compared are the lines
    room = 0.3 * (max(means) - min(means)) or 1.0
    every.flat[0].set_ylim(back(min(means) - room), back(max(means) + room))
    for axes, ends in named:
        label_ends(axes, ends)
    for axes in every.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in every[-1]:
        axes.set_xlabel(x_label)
    for axes in every[:, 0]:
        axes.set_ylabel(y_label)
    return save(figure, path)


def gates(profiles: Curves, schedule: Sequence[float], path: Path) -> Path:
    """Gates over depth, a panel a kind, attentions and MLPs apart, beside what a schedule would have there; each scaled
    to a standard deviation of 1 around its mean, since only the shape can be compared.
    """
    columns = min(4, len(profiles))
    rows = math.ceil(len(profiles) / columns)
    figure = canvas(3.2 * columns, 2.9 * rows)
    every = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, (name, seeds) in zip(every.flat, profiles.items(), strict=False):
        tidy(axes).set_title(name, fontsize=8)
        for place, values in enumerate(seeds):
            for kind, label in enumerate(("attentions", "MLPs")):
                axes.plot(
                    range(kind, len(values), 2), _standard(values[kind::2]), color=look(kind)["color"], alpha=0.6,
                    linewidth=1, label=None if place else label,
                )  # fmt: skip
        axes.plot(_standard(schedule), color=INK, linestyle="--", label="the schedule")
        axes.set_xlabel("unit", fontsize=8)
    for axes in every.flat[len(profiles) :]:
        axes.set_visible(False)
    for axes in every[:, 0]:
        axes.set_ylabel("standardised")
    every.flat[0].legend(frameon=False, fontsize=7)
    return save(figure, path)


def _standard(values: Sequence[float]) -> Any:
    array = np.asarray(values, dtype=float)
    spread = array.std()
    return (array - array.mean()) / (spread if spread > 0 else 1.0)
