"""Every notebook runs from top to bottom, in the state in which it is committed: without outputs."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT
from tests.reports.page_runs import make_sweep

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def one_residual_rule(names: dict[str, Any]) -> None:
    measured = names["measured"]
    assert {rule: len(units) for rule, (_, units) in measured.items()} == {"gated": 12, "resnet": 12, "rezero": 12}
    assert all(unit.normalized is not None for _, units in measured.values() for unit in units)


def sensitivity(names: dict[str, Any]) -> None:
    # depth as time
    assert 0.8 < names["order"] < 1.2
    assert names["errors"] == sorted(names["errors"], reverse=True)
    assert max(names["wrong"]) < 0.1

    # sensitivity: it grows towards the first unit, and Eq. 14 holds
    assert all(len(units) == 12 for _, _, units in names["history"])
    assert names["history"][-1][0] < 0.5 * names["history"][0][0]
    assert names["growth"][1] == pytest.approx(1, abs=0.05)
    assert names["growth"][199] > 1.2
    assert names["unit_error"] < 1e-12
    assert names["stack_error"] < 1e-12

    # supervision
    free, held = names["supervised"][0.0], names["supervised"][0.35]
    assert free[0][:2] == pytest.approx(held[0][:2])  # the same network and batch
    assert 0 < names["last"](0.35, 1) < held[0][1]
    assert names["last"](0.35, 1) < 0.5 * names["last"](0.0, 1)

    # what units do, and depth shown
    assert {(r.unit, r.t_low) for r in names["records"]} == {(i, t) for i in range(12) for t in (0, 250, 500, 750)}
    for values in names["depth_errors"].values():
        assert len(values) == 13
        assert values[-1] < 0.8 * values[0]
    assert len(names["row"]) == 9

    numbers = [number for rows in (names["history"], free, held) for row in rows for number in row[:2]]
    numbers += [number for r in names["records"] for number in (r.rms, r.write_ratio, r.mean_share, r.importance)]
    numbers += [number for values in names["depth_errors"].values() for number in values]
    assert all(math.isfinite(number) for number in numbers)


def variants(names: dict[str, Any]) -> None:
    found, judged = names["found"], names["judged"]
    assert [group.label for group in found.groups] == list(judged.results)
    assert set(found.bases.values()) == {"resnet"}
    assert judged.name == "val/loss"
    for group in found.groups:  # the means are those of the files
        result = judged.results[group.label]
        ends = []
        for seed in result.values:
            with (group.runs[seed] / "metrics.csv").open(newline="") as file:
                ends.append([float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]][-1])
        assert result.interval.mean == pytest.approx(sum(ends) / len(ends))
    compared = [result for result in judged.results.values() if result.less]
    assert len(compared) == len(found.groups) - 1
    assert len(names["differences"].axes[0].lines) == 3 * len(compared) + 1
    assert len(names["curves"].axes[0].lines) == len(names["over_depth"].axes[0].lines) == len(found.groups)
    assert all(math.isfinite(y) for line in names["curves"].axes[0].lines for y in line.get_ydata())


def colab(names: dict[str, Any]) -> None:
    assert names["run"].step == int(names["steps"])
    assert names["final"].is_file()
    assert names["page"].is_file()
    assert names["drawn"].shape == (10, 1, 8, 8)
    assert names["tall"].shape == (13, 3, 1, 8, 8)
    assert [unit.name for unit in names["found"]] == names["names"]


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    f.__name__: f for f in (one_residual_rule, sensitivity, variants, colab)
}


#: minutes long; of `variants` all but the training of its sweep runs always
LONG = ("sensitivity", "variants", "colab")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.full] if p.stem in LONG else []) for p in NOTEBOOKS]
)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURAL_RDM_STEPS", "30")
    CHECKS[path.stem](run(path))


def test_variants_reads_a_sweep_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sweep(tmp_path / "a sweep")
    monkeypatch.setenv("NEURAL_RDM_SWEEP", str(tmp_path / "a sweep"))
    variants(run(ROOT / "notebooks" / "variants.ipynb"))


def run(path: Path) -> dict[str, Any]:
    """The names that a notebook leaves behind."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    return names
