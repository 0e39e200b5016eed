"""The embedded default of Neural-RDM-U: an LDM U-Net on digits, its lists of units, and its export."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.end_to_end.commands import checkpoint, run

pytestmark = pytest.mark.end_to_end
pytest.importorskip("diffusers", reason="the U-Nets are diffusers'")
EXP = "exp=digits_unet_gated"


def generated(folder: Path) -> dict[str, float]:
    rows = json.loads((folder / "report" / "metrics.json").read_text())["rows"]
    return next(row for row in rows if row["name"] == "generated")


def test_the_default_learns_digits_in_twenty_seconds(tmp_path: Path) -> None:
    """An eighth of its steps: above chance (0.1) and above what the mean picture gets (0.1 again)."""
    small = ("trainer.max_steps=100", "metric.per_class=10", "callbacks.sensitivity.every_n_steps=50")
    code, output = run(EXP, *small, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    folder = tmp_path / "run"
    assert generated(folder)["accuracy"] >= 0.2
    with (folder / "sensitivity" / "sensitivity.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["step"] == "100"]
    names = [row["name"] for row in rows]
    assert [row["unit"] for row in rows] == [str(i) for i in range(len(rows))]
    assert names[0] == "net.down_blocks.0.resnets.0.unit"
    assert "net.mid_block.attentions.0.unit/transformer_blocks.0.attn2_unit" in names
    assert all(float(row["norm"]) > 0 for row in rows)
    assert "net.class_embedder.embedding.weight" in checkpoint(folder)["state_dict"]


@pytest.mark.full
def test_the_default_reaches_95_percent(tmp_path: Path) -> None:
    code, output = run(EXP, "hydra.run.dir=run", cwd=tmp_path, timeout=580)
    assert code == 0, output
    assert generated(tmp_path / "run")["accuracy"] >= 0.95
    assert generated(tmp_path / "run")["frechet_pixels"] < 1.5
