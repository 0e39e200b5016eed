"""One run under several settings: which row is the run's own, and a panel for every number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from neural_rdm.reports import guidance
from neural_rdm.reports.guidance import plot_guidance, write_guidance


def settings(**more: float) -> list[dict[str, object]]:
    return [
        {"cfg_scale": scale, "weights": weights, "frechet_x": (scale - 2) ** 2 + (weights == "raw"), "count": 9, **more}
        for weights in ("ema", "raw")
        for scale in (1.0, 2.0, 4.0)
    ]


def test_the_lowest_distance_is_the_runs_own_number_and_says_so(tmp_path: Path) -> None:
    measured = [
        ([{"name": "generated", "frechet_x": row["frechet_x"], "count": 9}, {"name": "real", "frechet_x": 0.5}],
         f"protocol {i}.", {"place": i})
        for i, row in enumerate(settings())
    ]  # fmt: skip
    given = [{"cfg_scale": row["cfg_scale"], "weights": row["weights"]} for row in settings()]
    paths, facts = write_guidance(tmp_path, given, measured)
    assert [p.name for p in paths] == ["metrics.md", "metrics.csv", "metrics.json", "guidance.png"]
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert [r["name"] for r in content["rows"]][:2] == ["generated", "cfg_scale 1, ema"]
    assert content["rows"][0] | {"name": ""} == {
        "name": "", "cfg_scale": 2.0, "weights": "ema", "frechet_x": 0.0, "count": 9
    }  # fmt: skip
    assert [r["name"] for r in content["rows"]].count("real") == 1
    assert content["rows"][-1]["name"] == "real"
    assert content["protocol"].startswith("protocol 1. ")
    assert "lowest frechet_x of all 6" in content["protocol"]
    assert facts == content["facts"] == {"place": 1}


def test_a_second_row_that_a_setting_changes_says_which_setting(tmp_path: Path) -> None:
    measured = [
        ([{"name": "generated", "frechet_x": float(scale)}, {"name": "held out", "frechet_x": scale + 1.0}], "p.", {})
        for scale in (1, 3)
    ]
    write_guidance(tmp_path, [{"cfg_scale": s, "weights": "ema"} for s in (1.0, 3.0)], measured)
    names = [r["name"] for r in json.loads((tmp_path / "metrics.json").read_text())["rows"]]
    assert names == ["generated", "held out, cfg_scale 1, ema", "cfg_scale 3, ema", "held out, cfg_scale 3, ema"]


def test_every_number_has_a_panel(tmp_path: Path) -> None:
    one = Image.open(plot_guidance(settings(), tmp_path / "one.png")).size
    four = Image.open(plot_guidance(settings(a=1.0, b=2.0, c=3.0), tmp_path / "four.png")).size
    assert four[0] > 2 * one[0]
    assert four[1] > 1.5 * one[1]
    deviations = {"a_std": 1.0, "inception_score_inception_frames_std": 1.0}
    spread = Image.open(plot_guidance(settings(**deviations), tmp_path / "spread.png")).size
    assert spread == one  # the spread of a number is no panel


@pytest.mark.parametrize(("values", "scale"), [((19.0, 18.5, 20.0), "linear"), ((1.0, 500.0, 3.0), "log")])
def test_small_differences_fill_a_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: tuple[float, ...], scale: str
) -> None:
    drawn = []
    monkeypatch.setattr(guidance, "save", lambda figure, path: drawn.append(figure) or path)
    rows = [{"cfg_scale": float(i), "weights": "ema", "frechet_x": value} for i, value in enumerate(values)]
    plot_guidance(rows, tmp_path / "x.png")
    (axes,) = drawn[0].axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert low < min(values)
    assert max(values) < high
    if scale == "linear":
        assert high - low < 2 * (max(values) - min(values))  # and not down to 0
