"""One run under several guidance scales and weights, in one table and one plot: most numbers that nobody can repeat
differ here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_rdm.reports.figures import canvas, log_if_wide, look, save, tidy, titled
from neural_rdm.reports.runs import GENERATED
from neural_rdm.reports.tables import Row, write_metrics


def write_guidance(
    folder: str | Path, settings: Sequence[Row], measured: Sequence[tuple[Sequence[Row], str, Mapping[str, Any]]]
) -> tuple[list[Path], Mapping[str, Any]]:
    """Write `metrics.{md,csv,json}` with a row a setting, and `guidance.png`.

    The row `generated` is the setting with the lowest Frechet distance, which is what publications report; the
    protocol line says so.

    Args:
        settings: `cfg_scale` and `weights` of each.
        measured: the rows, the protocol line and the facts of each; the first row is the setting's own number, with a
            `frechet_...`. Further rows that are equal in all settings (real data held out) are written once.

    Returns:
        The paths, and the facts of `generated`.
    """
    rows = [{**setting, **found[0]} for setting, (found, _, _) in zip(settings, measured, strict=True)]
    key = next((name for name in rows[0] if name.startswith("frechet_")), None)
    best = min(range(len(rows)), key=lambda i: float(rows[i][key])) if key else 0
    table: list[dict[str, Any]] = []
    shared = [row for row in measured[best][0][1:] if all(row in found for found, _, _ in measured)]
    for i in (best, *(i for i in range(len(rows)) if i != best)):
        setting = f"cfg_scale {settings[i]['cfg_scale']:g}, {settings[i]['weights']}"
        table.append({"name": GENERATED if i == best else setting, **settings[i], **_unnamed(rows[i])})
        more = [row for row in measured[i][0][1:] if row not in shared]
        table += [{"name": f"{row['name']}, {setting}", **settings[i], **_unnamed(row)} for row in more]
    note = f"The other rows differ in cfg_scale and weights alone; `generated` has the lowest {key} of all {len(rows)}."
    paths = write_metrics(folder, [*table, *shared], f"{measured[best][1]} {note}", measured[best][2])
    return [*paths, plot_guidance(rows, Path(folder) / "guidance.png")], measured[best][2]


def _unnamed(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "name"}


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
        for index, weights in enumerate(dict.fromkeys(str(row["weights"]) for row in rows)):
            line = sorted((float(r["cfg_scale"]), float(r[name])) for r in rows if r["weights"] == weights)
            axes.plot(*zip(*line, strict=True), **look(index), markersize=3.5, linewidth=1.6, label=weights)
        axes.margins(y=0.1)
        log_if_wide(axes, [float(row[name]) for row in rows], decades=2, zero=False)  # settings differ by little
        axes.set_xlabel("cfg_scale")
        axes.set_title(name, fontsize=9)
        if place == 1:
            axes.legend(title="weights", fontsize=8)
    figure.suptitle(titled("Over the guidance scale", path), fontsize=10)
    return save(figure, path)
