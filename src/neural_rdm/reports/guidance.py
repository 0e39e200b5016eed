"""One run under several guidance scales and weights, in one table and one plot: most numbers that nobody can repeat
differ here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from neural_rdm.reports.figures import canvas, log_if_wide, save, tidy
from neural_rdm.reports.tables import GENERATED, Row, write_metrics


def write_guidance(
    folder: str | Path, rows: Sequence[Row], beside: Sequence[Row], protocols: Sequence[str]
) -> list[Path]:
    """Write `metrics.{md,csv,json}` with a row a setting, and `guidance.png`.

    The row `generated` is the setting with the lowest Frechet distance, which is what publications report; the
    protocol line says so.

    Args:
        rows: each holds `cfg_scale`, `weights` and numbers, among them one `frechet_...`.
        beside: rows to compare with (real data held out).
        protocols: one line for each of `rows`.
    """
    key = next((name for name in rows[0] if name.startswith("frechet_")), None)
    best = min(range(len(rows)), key=lambda i: float(rows[i][key])) if key else 0
    chosen = [best, *(i for i in range(len(rows)) if i != best)]
    named = [
        {**rows[i], "name": GENERATED if i == best else f"cfg_scale {rows[i]['cfg_scale']:g}, {rows[i]['weights']}"}
        for i in chosen
    ]
    ordered = [{"name": row["name"], **row} for row in named]
    note = f"The other rows differ in cfg_scale and weights alone; `generated` has the lowest {key} of all {len(rows)}."
    paths = write_metrics(folder, [*ordered, *beside], f"{protocols[best]} {note}")
    return [*paths, plot_guidance(rows, Path(folder) / "guidance.png")]


def plot_guidance(rows: Sequence[Row], path: str | Path) -> Path:
    """Every number over the guidance scale, one panel a number, one line for each of the weights.

    Args:
        rows: see `write_guidance`.
    """
    shown = {name: value for name, value in rows[0].items() if name not in ("cfg_scale", "count")}
    names = [name for name, value in shown.items() if isinstance(value, float) and not name.endswith("_std")]
    columns = min(3, max(1, len(names)))
    figure = canvas(4.2 * columns, 3.4 * max(1, -(-len(names) // columns)))
    for place, name in enumerate(names, start=1):
        axes = tidy(figure.add_subplot(-(-len(names) // columns), columns, place))
        for weights in dict.fromkeys(str(row["weights"]) for row in rows):
            line = sorted((float(r["cfg_scale"]), float(r[name])) for r in rows if r["weights"] == weights)
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3.5, linewidth=1.6, label=weights)
        log_if_wide(axes, [float(row[name]) for row in rows], decades=2)
        axes.set_xlabel("cfg_scale")
        axes.set_title(name, fontsize=9)
        if place == 1:
            axes.legend(title="weights", fontsize=8)
    return save(figure, path)
