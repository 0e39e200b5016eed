"""Every notebook runs from top to bottom, in the state in which it is committed: without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    measured = names["measured"]
    assert isinstance(measured, dict)
    assert {rule: len(units) for rule, (_, units) in measured.items()} == {"gated": 12, "resnet": 12, "rezero": 12}
    assert all(unit.normalized is not None for _, units in measured.values() for unit in units)
