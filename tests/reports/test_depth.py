"""The lens's files and picture."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.reports.depth import plot_depth, spearman, write_depth


def level(t: int, scale: float = 1.0) -> SimpleNamespace:
    return SimpleNamespace(
        t=t,
        errors=[scale * v for v in (1.0, 0.5, 0.25)],
        x0_errors=[2.0, 1.0, 0.5],
        left_out=[0.3 * scale, -0.1],
        importance=[0.2, 0.1],
    )


def test_files_and_picture(tmp_path: Path) -> None:
    names = ["blocks.0.attn_unit", "blocks.0.mlp_unit"]
    paths = write_depth(tmp_path, names, [level(50), level(900, 0.01)], {"run": "a"})
    assert [p.name for p in paths] == ["depth.csv", "left_out.csv", "depth.json"]
    depth = list(csv.DictReader(paths[0].open()))
    assert len(depth) == 2 * 3
    assert depth[0] == {"t": "50", "units": "0", "last_unit": "", "error": "1.0", "x0_error": "2.0"}
    assert depth[-1]["last_unit"] == "blocks.0.mlp_unit"
    alone = list(csv.DictReader(paths[1].open()))
    assert alone[1] == {"t": "50", "unit": "1", "name": names[1], "left_out": "-0.1", "first_order": "0.1"}
    facts = json.loads(paths[2].read_text())
    assert facts["run"] == "a"
    assert facts["spearman_first_order"] == pytest.approx({"50": 1.0, "900": 1.0})
    assert Image.open(plot_depth(paths[0], paths[1], tmp_path / "depth.png")).height > 600


def test_ranks() -> None:
    assert spearman([1, 2, 3], [10, 20, 500]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 1, 1]) is None
    assert spearman([1], [2]) is None


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"depth\.csv"):
        plot_depth(tmp_path / "depth.csv", tmp_path / "left_out.csv", tmp_path / "depth.png")
    (tmp_path / "depth.csv").write_text("t,units,error\n50,0,nan\n")
    with pytest.raises(DataError, match="no numbers"):
        plot_depth(tmp_path / "depth.csv", tmp_path / "left_out.csv", tmp_path / "depth.png")
