"""The depth-mixing matrix: a file of numbers, and its heat map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_text
from neural_rdm.reports.figures import MAX_NAMED_UNITS, canvas, number, read_csv, save, short_name, titled
from neural_rdm.reports.tables import csv_text

MOST_PANELS = 3
#: what stands for the first source and the last reader, which are no units
INPUT, OUTPUT = "input", "output"
TITLE = "How much of what a unit wrote\nreaches what a later one reads"


@dataclass(frozen=True)
class Mixing:
    """The depth-mixing matrix of a run: `matrix[reader][source]`, [U + 1][U + 1], and the names of its U units."""

    names: list[str]
    matrix: list[list[float]]


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


def plot_mixing(csv_path: str | Path, png_path: str | Path, run: str | Path | None = None) -> Path:
    """Draw C as a heat map, white at 0; up to three times side by side where they differ, else one.

    Args:
        run: the folder of the run that the title names.

    Raises:
        DataError: the file is missing or holds no numbers.
    """
    matrices = _read(csv_path)
    times = sorted(matrices)
    first = matrices[times[0]]
    if all(abs(w - matrices[t].get(place, math.nan)) < 1e-6 for t in times for place, w in first.items()):
        shown = {"": first}
    else:
        chosen = sorted({times[round(i * (len(times) - 1) / (MOST_PANELS - 1))] for i in range(MOST_PANELS)})
        shown = {f"t {t:g}": matrices[t] for t in chosen}
    readers = list(dict.fromkeys(reader for reader, _ in first))
    sources = [INPUT, *readers[:-1]]
    found = {
        title: Mixing(readers[:-1], [[weights.get((r, s), math.nan) for s in sources] for r in readers])
        for title, weights in shown.items()
    }
    return plot_matrices(found, png_path, title=titled(TITLE, Path(run or Path(csv_path).parent, "mixing.csv")))


def plot_matrices(
    matrices: Mapping[str, Mixing], png_path: str | Path, columns: int = MOST_PANELS, title: str = TITLE
) -> Path:
    """Draw matrices side by side as heat maps with one scale of colours, white at 0.

    Args:
        matrices: title -> matrix; those of networks of unlike depth may stand together.
    """
    wide = min(columns, len(matrices))
    tall = -(-len(matrices) // wide)
    side = min(7.0 if len(matrices) <= MOST_PANELS else 4.5, 2.6 + 0.12 * max(len(m.matrix) for m in matrices.values()))
    figure = canvas(side * wide + 1.0, (side + 0.6) * tall)
    weights = [abs(w) for m in matrices.values() for row in m.matrix for w in row if math.isfinite(w)]
    most = max(weights, default=0.0) or 1.0
    panels = figure.subplots(tall, wide, squeeze=False)
    for axes, (name, mixing) in zip(panels.ravel(), matrices.items(), strict=False):
        readers, sources = [*mixing.names, OUTPUT], [INPUT, *mixing.names]
        image = axes.imshow(mixing.matrix, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        axes.set(xlabel="written by")
        axes.set_title(name, fontsize=9)
        axes.spines[:].set_visible(False)
        every = math.ceil(len(readers) / MAX_NAMED_UNITS)
        places = range(0, len(readers), every)
        axes.set_xticks(places, [short_name(sources[i]) for i in places], rotation=60, ha="right", fontsize=7)
        axes.set_yticks(places, [short_name(readers[i]) for i in places], fontsize=7)
    for axes in panels.ravel()[len(matrices) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel("read by")
    figure.suptitle(title, fontsize=10)
    figure.colorbar(image, ax=panels.ravel().tolist(), pad=0.02, shrink=0.8, label="weight")
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
