"""`python -m benchmarks.studies.gather SWEEP NAME`: the finished runs of a sweep's folder as lines of
`results/studies/NAME.csv`; those that are there already stay as they are. It is run on the machine of the sweep.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.rows import add, read
from benchmarks.training import Row, machine
from neural_rdm.core.records import read_rows

KEYS = ("residual", "gamma", "control", "optimizer.gate_lr_scale", "backbone.adaln_gate_init", "seed")


def main() -> None:
    """Read the folder and write the lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.gather", description=__doc__)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("name")
    typed = parser.parse_args()
    record = json.loads((typed.sweep / "sweep.json").read_text(encoding="utf-8"))
    there = {case(row) for row in read(typed.name)}
    for number, overrides in record["jobs"].items():
        folder = typed.sweep / number
        if (folder / "finished.json").is_file() and (folder / "report" / "metrics.json").is_file():
            row = gathered(folder, overrides)
            if case(row) not in there:
                add(typed.name, row)


def case(row: Row) -> tuple[object, ...]:
    """What tells a run from the others of its sweep."""
    return row["case"], row["seed"]


def gathered(folder: Path, overrides: list[str]) -> Row:
    """The line of a finished run: loss at the last validation, distance and share recognised at the end and, of fewer
    samples, on the way, `norm_first` and `norm_last`: ||s_i|| of every unit, geometric means over the steps that were
    measured in the first and in the last quarter of training.
    """
    typed = dict(part.split("=", 1) for part in overrides)
    row: Row = {"rule": typed["residual"], "case": name(typed), "seed": int(typed["seed"])}
    losses = [(int(r["step"]), float(r["val/loss"])) for r in read_rows(folder / "metrics.csv") if r.get("val/loss")]
    row |= {"steps": losses[-1][0], "val_loss": losses[-1][1]}
    drawn = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))["rows"][0]
    row |= {key: drawn[key] for key in ("frechet_pixels", "accuracy")}
    for each in read_rows(folder / "evaluations.csv"):
        row[f"frechet_pixels_{each['step']}"] = float(each["frechet_pixels"])
    row |= _sensitivity(folder, row["steps"])
    starts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["starts"]
    return row | {"commit": "+".join(dict.fromkeys(start["commit"][:12] for start in starts)), "machine": machine()}


def name(typed: dict[str, str]) -> str:
    """A case as its settings beside rule and seed: `gated`, `gated gamma=0.35`."""
    further = [f"{key.rpartition('.')[2]}={typed[key]}" for key in KEYS[1:-1] if key in typed]
    return " ".join([typed["residual"], *further])


def _sensitivity(folder: Path, steps: int) -> dict[str, Any]:
    norms: dict[int, list[float]] = {}
    for each in read_rows(folder / "sensitivity" / "sensitivity.csv"):
        norms.setdefault(int(each["step"]), []).append(float(each["norm"]))
    first = np.array([values for step, values in norms.items() if step <= steps / 4])
    last = np.array([values for step, values in norms.items() if step > steps * 3 / 4])
    return {"norm_first": np.exp(np.log(first).mean(0)).tolist(), "norm_last": np.exp(np.log(last).mean(0)).tolist()}


if __name__ == "__main__":
    main()
