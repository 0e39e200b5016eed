"""The depth-mixing matrix: a file of numbers, and its heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_text
from neural_rdm.reports.figures import MAX_NAMED_UNITS, canvas, number, read_csv, save, short_name
from neural_rdm.reports.tables import csv_text

MOST_PANELS = 3
#: what stands for the first source and the last reader, which are no units
INPUT, OUTPUT = "input", "output"


def write_mixing(path: Path, names: Sequence[str], matrices: Mapping[float, Any]) -> Path:
    """Write a row for each time, reader and source with `weight`, the entry of C; return the path.

    Args:
        names: of the U units, in run order.
        matrices: time -> C [U + 1, U + 1] (`dynamics.mixing.depth_mixing`).
    """
    readers, sources = [*names, OUTPUT], [INPUT, *names]
    rows = [
        {"t": t, "reader": readers[row], "source": sources[column], "weight": matrix[row][column].item()}
        for t, matrix in matrices.items()
        for row in range(len(readers))
        for column in range(row + 1)
    ]
    write_text(path, csv_text(rows))
    return path


def plot_mixing(csv_path: str | Path, png_path: str | Path) -> Path:
    """Draw C as a heat map, white at 0; up to three times side by side where they differ, else one.

    Raises:
        DataError: the file is missing or holds no numbers.
    """
    matrices = _read(csv_path)
    times = sorted(matrices)
    first = matrices[times[0]]
    if all(abs(w - matrices[t].get(place, math.nan)) < 1e-6 for t in times for place, w in first.items()):
        shown, titles = [times[0]], [""]
    else:
        shown = [times[round(i * (len(times) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)]
        shown = sorted(set(shown))
        titles = [f"t {t:g}" for t in shown]
    readers = list(dict.fromkeys(reader for reader, _ in first))
    sources = [INPUT, *readers[:-1]]
    side = min(7.0, 2.6 + 0.12 * len(readers))
    figure = canvas(side * len(shown) + 1.0, side + 0.6)
    most = max(abs(w) for t in shown for w in matrices[t].values()) or 1.0
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, t, title in zip(panels, shown, titles, strict=True):
        grid = [[matrices[t].get((reader, source), math.nan) for source in sources] for reader in readers]
        image = axes.imshow(grid, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.set(title=title, xlabel="written by")
        axes.spines[:].set_visible(False)
        every = math.ceil(len(readers) / MAX_NAMED_UNITS)
        places = range(0, len(readers), every)
        axes.set_xticks(places, [short_name(sources[i]) for i in places], rotation=60, ha="right", fontsize=7)
        axes.set_yticks(places, [short_name(readers[i]) for i in places], fontsize=7)
    panels[0].set_ylabel("read by")
    figure.suptitle("How much of what a unit wrote reaches what a later one reads")
    figure.colorbar(image, ax=list(panels), pad=0.02, shrink=0.8, label="weight")
    return save(figure, png_path)


def _read(path: str | Path) -> dict[float, dict[tuple[str, str], float]]:
    """{time: {(reader, source): weight}}."""
    matrices: dict[float, dict[tuple[str, str], float]] = {}
    for row in read_csv(path):
        weight, t = number(row.get("weight")), number(row.get("t"))
        if math.isfinite(weight) and math.isfinite(t):
            matrices.setdefault(t, {})[row.get("reader", ""), row.get("source", "")] = weight
    if not matrices:
        raise DataError(f"{path} holds no numbers to draw.")
    return matrices
