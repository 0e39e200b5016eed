"""One run under several settings: which row is the run's own, and a panel for every number."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from neural_rdm.reports.guidance import plot_guidance, write_guidance


def settings(**more: float) -> list[dict[str, object]]:
    return [
        {"cfg_scale": scale, "weights": weights, "frechet_x": (scale - 2) ** 2 + (weights == "raw"), "count": 9, **more}
        for weights in ("ema", "raw")
        for scale in (1.0, 2.0, 4.0)
    ]


def test_the_lowest_distance_is_the_runs_own_number_and_says_so(tmp_path: Path) -> None:
    protocols = [f"protocol {i}." for i in range(6)]
    paths = write_guidance(tmp_path, settings(), [{"name": "real", "frechet_x": 0.0}], protocols)
    assert [p.name for p in paths] == ["metrics.md", "metrics.csv", "metrics.json", "guidance.png"]
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["name"] for r in content["rows"]][:2] == ["generated", "cfg_scale 1, ema"]
    assert content["rows"][0] | {"name": ""} == {
        "name": "", "cfg_scale": 2.0, "weights": "ema", "frechet_x": 0.0, "count": 9
    }  # fmt: skip
    assert content["rows"][-1]["name"] == "real"
    assert content["protocol"].startswith("protocol 1. ")
    assert "lowest frechet_x of all 6" in content["protocol"]


def test_every_number_has_a_panel(tmp_path: Path) -> None:
    one = Image.open(plot_guidance(settings(), tmp_path / "one.png")).size
    four = Image.open(plot_guidance(settings(a=1.0, b=2.0, c=3.0), tmp_path / "four.png")).size
    assert four[0] > 2 * one[0]
    assert four[1] > 1.5 * one[1]
    spread = Image.open(plot_guidance(settings(a_std=1.0), tmp_path / "spread.png")).size
    assert spread == one  # the spread of a number is no panel
