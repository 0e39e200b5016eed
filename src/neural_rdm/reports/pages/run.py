"""The page of one run, while it trains and after: samples, losses, sensitivity, numbers, configuration, provenance."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from PIL import Image

from neural_rdm.config.provenance import CONFIG
from neural_rdm.core.errors import DataError
from neural_rdm.core.extras import typed
from neural_rdm.core.given import read_given
from neural_rdm.core.listing import natural_order
from neural_rdm.reports.pages import render
from neural_rdm.reports.pages.charts import Drawing, draw
from neural_rdm.reports.pages.origins import origin_of
from neural_rdm.reports.pages.render import Picture, picture
from neural_rdm.reports.plots import mean_and_std, read_sensitivity, read_series, stages_of
from neural_rdm.reports.runs import State, node, read_mapping, read_report, rule_of, state

FILE = "index.html"
#: seconds after which an open page of a run that trains is read anew
RELOAD = 30
#: pixels on the longer side of a grid of samples, and bytes of a picture that is shown as it is
LARGEST, HEAVY = 1600, 1_500_000
#: figures of a run that has ended, and what they show
FIGURES = {
    "sensitivity/sensitivity.png": "Sensitivity over depth by stage of training, as the paper's Fig. 5",
    "sensitivity/heatmap.png": "Sensitivity and gain over depth and training",
    "sensitivity/gates.png": "The gates over depth",
    "sensitivity/units.png": "What each unit does to the stream, by noise level",
    "report/evaluations.png": "The metric over training",
}


@dataclass(frozen=True)
class Samples:
    """The newest samples of a run; `moving` are the clips in motion."""

    still: Picture
    moving: Picture | None
    caption: str


def write_page(folder: Path) -> Path:
    """Write the page of the run in `folder` into it, one file that needs nothing else, and return its path.

    What the run has not written yet is left out, and so is what cannot be read.

    Raises:
        WriteError: it cannot be written.
    """
    config, report = read_mapping(folder / CONFIG), read_report(folder)
    has = state(folder)
    planned = node(config, "trainer").get("max_steps")
    losses = losses_of(folder, planned if isinstance(planned, int) else None)
    return render.write(
        "run.html",
        folder / FILE,
        title=title_of(config, folder),
        state=has,
        reload=RELOAD if has.word == "training" else None,
        experiment=node(config, "choices").get("exp", ""),
        tags=[str(tag) for tag in config.get("tags") or []],
        notes=config.get("notes") or "",
        facts=dict(_facts(config)),
        samples=samples_of(folder),
        charts=[chart for chart in (losses, sensitivity_of(folder)) if chart is not None],
        rows=_numbers(report["rows"]),
        protocol=report["protocol"],
        figures=_figures(folder) if has.word != "training" else [],
        choices={k: str(v) for k, v in node(config, "choices").items()},
        config=_text(folder / CONFIG),
        commands=_commands(folder, has),
        origin=origin_of(folder, folder),
        seed=config.get("seed"),
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def title_of(config: Mapping[str, Any], folder: Path) -> str:
    """What a run is called: its name, or else its experiment and rule."""
    if config.get("name"):
        return str(config["name"])
    own = node(config, "choices").get("exp") or folder.resolve().parent.name
    rule = rule_of(config)
    return f"{own}, {rule}" if rule and rule not in str(own) else str(own)


def newest_grid(folder: Path) -> Path | None:
    """The final grid of samples, or else the newest preview."""
    found = [folder / "samples" / "final.png", *reversed(natural_order((folder / "samples").glob("step=*.png")))]
    return next((path for path in found if path.is_file()), None)


def samples_of(folder: Path) -> Samples | None:
    """The newest grid of a run; None where there is none that can be shown."""
    path = newest_grid(folder)
    if path is None:
        return None
    final = path.stem == "final"
    what = "the end of the run" if final else f"step {int(path.stem.partition('=')[2] or 0):,}"
    caption = f"Samples at {what}, a row a class or text where there are any, of the averaged weights if it has some."
    try:
        still = _shown(path, f"Samples of this run at {what}")
    except DataError:
        return None
    moving = path.with_suffix(".gif")
    try:
        playing = picture(moving, f"Clips of this run at {what}, in motion") if moving.is_file() else None
    except DataError:
        playing = None
    return Samples(still, playing, caption)


def losses_of(folder: Path, planned: int | None = None) -> Drawing | None:
    """`train/loss` and `val/loss` against the step."""
    lines = {}
    for column in ("train/loss", "val/loss"):
        try:
            lines[column] = list(zip(*read_series(folder / "metrics.csv", column), strict=True))
        except DataError:
            continue
    return draw("Loss", "optimizer step", lines, planned)


def sensitivity_of(folder: Path) -> Drawing | None:
    """Normalised sensitivity over depth: its mean over the records of the first, the middle and the last stage."""
    try:
        records, names = read_sensitivity(folder / "sensitivity" / "sensitivity.csv")
    except DataError:
        return None
    import numpy as np

    units, groups, lines = sorted(names), stages_of(sorted(records)), {}
    for place in sorted({0, len(groups) // 2, len(groups) - 1}):
        steps = groups[place]
        table = np.array([[records[step].get(unit, math.nan) for unit in units] for step in steps])
        span = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
        lines[span] = list(zip(units, mean_and_std(table)[0].tolist(), strict=True))
    return draw("Sensitivity over depth (largest of the stack = 1)", "residual unit", lines)


def _facts(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a person wants to know first."""
    choices, backbone = node(config, "choices"), node(config, "backbone")
    yield "Network", f"{choices.get('backbone', '?')}" + (f", depth {backbone['depth']}" if "depth" in backbone else "")
    yield "Residual rule", rule_of(config) or "?"
    yield "Data", choices.get("data", "?")
    yield "Global batch", node(config, "data").get("batch_size", "?")
    yield "Learning rate", node(config, "optimizer").get("lr", "?")
    yield "Seed", config.get("seed", "?")


def _numbers(rows: list[Any]) -> list[tuple[str, list[tuple[str, Any]]]]:
    """The rows of a report as (name, numbers); the columns that are no numbers are left out."""
    found = []
    for row in rows:
        if isinstance(row, dict):
            values = [(k, v) for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)]
            found.append((str(row.get("name", "")), values))
    return found


def _figures(folder: Path) -> list[tuple[Picture, str]]:
    """The figures that the run has written, and what they show."""
    found = []
    for name, caption in FIGURES.items():
        if (folder / name).is_file():
            with contextlib.suppress(DataError):
                found.append((_shown(folder / name, caption), caption))
    return found


def _shown(path: Path, alt: str) -> Picture:
    """A PNG for the page; a large one smaller than it is."""
    if path.stat().st_size <= HEAVY:
        return picture(path, alt)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.thumbnail((LARGEST, LARGEST))
            file = io.BytesIO()
            image.convert("RGB").save(file, format="PNG", optimize=True)
    except Exception as error:  # whatever Pillow makes of a damaged file
        raise DataError(f"{path} cannot be shown") from error
    return picture(file.getvalue(), alt)


def _commands(folder: Path, has: State) -> list[str]:
    """What can be done with the run now, to be typed where this command was."""
    place = os.path.relpath(folder)
    if has.word in ("stopped", "failed"):
        return [f"python -m neural_rdm.train {typed('resume', place)}"]
    run = typed("run", place)
    after = [f"python -m neural_rdm.{command} {run}" for command in ("sample", "evaluate", "lens", "demo")]
    return after if has.word == "finished" else []


def _text(path: Path) -> str:
    try:
        return read_given(path)
    except (OSError, ValueError):
        return ""
