"""What the lens saw: files of numbers, and the picture of error against depth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_text
from neural_rdm.core.given import read_json
from neural_rdm.reports.figures import (
    MAX_NAMED_UNITS,
    canvas,
    label_ends,
    log_if_wide,
    name_units,
    ramp,
    read_csv,
    save,
    tidy,
    titled,
)
from neural_rdm.reports.tables import csv_text


def write_depth(folder: Path, names: Sequence[str], levels: Sequence[Any], facts: dict[str, Any]) -> list[Path]:
    """Write `depth.csv`, `left_out.csv` and `depth.json` into `folder`; return their paths.

    Args:
        names: of the N units, in run order.
        levels: for each timestep an object with `t`, `errors` and `x0_errors` [N + 1], `left_out` and `importance` [N].
        facts: where the numbers come from; the JSON file adds, for each timestep, how well the first-order importance
            ranks the units (Spearman's correlation with what leaving each out does).
    """
    depth = [
        {"t": level.t, "units": kept, "last_unit": names[kept - 1] if kept else "", "error": error, "x0_error": x0}
        for level in levels
        for kept, (error, x0) in enumerate(zip(level.errors, level.x0_errors, strict=True))
    ]
    alone = [
        {"t": level.t, "unit": i, "name": name, "left_out": level.left_out[i], "first_order": level.importance[i]}
        for level in levels
        for i, name in enumerate(names)
    ]
    ranks = {str(level.t): spearman(level.left_out, level.importance) for level in levels}
    write_text(folder / "depth.csv", csv_text(depth))
    write_text(folder / "left_out.csv", csv_text(alone))
    write_text(folder / "depth.json", json.dumps({**facts, "spearman_first_order": ranks}, indent=2) + "\n")
    return [folder / "depth.csv", folder / "left_out.csv", folder / "depth.json"]


def plot_depth(depth_csv: str | Path, left_out_csv: str | Path, png_path: str | Path) -> Path:
    """Draw the prediction's error against the number of units that ran, and below it what each unit alone is worth, a
    line for each timestep.

    Raises:
        DataError: a file is missing or holds no numbers.
    """
    kept = _lines(depth_csv, "units", "error")
    alone = _lines(left_out_csv, "unit", "left_out")
    names = {int(row["unit"]) + 1: row["name"] for row in read_csv(left_out_csv)}  # as many run when it has run
    figure = canvas(wide=max(6.4, min(12.0, 3.5 + 0.28 * len(names))), tall=7.6)
    above, below = (tidy(axes) for axes in figure.subplots(2, 1, sharex=True))
    for axes, lines, shift in ((above, kept, 0), (below, alone, 1)):
        for colour, t in zip(ramp(len(lines)), sorted(lines), strict=True):
            places, values = zip(*sorted(lines[t].items()), strict=True)
            axes.plot([p + shift for p in places], values, color=colour, marker="o", markersize=3, label=f"t {t:g}")
    log_if_wide(above, [v for line in kept.values() for v in line.values()], decades=1)
    above.set(ylabel="error of the prediction")
    facts = Path(depth_csv).with_name("depth.json")
    run = read_json(facts).get("run", "") if facts.is_file() else ""
    above.set_title(titled("If the network stopped behind a unit", Path(run, "depth.csv")), fontsize=10)
    coloured = zip(sorted(kept.items()), ramp(len(kept)), strict=True)
    label_ends(above, {f"t {t:g}": (line[max(line)], colour) for (t, line), colour in coloured})
    sizes = sorted(abs(v) for line in alone.values() for v in line.values() if v)
    below.axhline(0, color="grey", linewidth=0.8)
    if sizes and sizes[-1] > 100 * sizes[len(sizes) // 2]:
        below.set_yscale("symlog", linthresh=sizes[len(sizes) // 2])
    if all(v >= 0 for line in alone.values() for v in line.values()):
        below.set_ylim(bottom=0)
    below.set(ylabel="error added")
    below.set_title("If one unit alone is left out", fontsize=10)
    name_units(below, {0: "none", **names} if len(names) < MAX_NAMED_UNITS else names)
    below.set_xlim(right=max(names) + 0.1)  # where the names of the lines begin
    return save(figure, png_path)


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than two values, or values that do not differ."""
    if len(a) < 2 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def _lines(path: str | Path, place: str, value: str) -> dict[float, dict[int, float]]:
    """{t: {place: value}} of a file."""
    lines: dict[float, dict[int, float]] = {}
    for row in read_csv(path):
        number = float(row[value]) if row.get(value) else math.nan
        if math.isfinite(number):
            lines.setdefault(float(row["t"]), {})[int(row[place])] = number
    if not lines:
        raise DataError(f"{path} holds no numbers to draw.")
    return lines
