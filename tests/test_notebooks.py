"""Every notebook runs from top to bottom, in the state in which it is committed: without outputs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import ROOT

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


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {f.__name__: f for f in (one_residual_rule, sensitivity)}


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.full] if p.stem == "sensitivity" else []) for p in NOTEBOOKS]
)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    CHECKS[path.stem](names)
