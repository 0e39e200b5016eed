"""The files of a comparison: numbers worked out again by hand, what is missing is said, figures are there."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_rdm.reports import drawing
from neural_rdm.reports.comparison import write_comparison
from neural_rdm.reports.figures import look
from neural_rdm.reports.study import study
from neural_rdm.runs.load import find_runs
from tests.reports.figures import keep_figures
from tests.reports.made import make_run, write_sweep
from tests.reports.recompute import bootstrap_half, read, recompute


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three rules at four seeds; of `skip` seed 3 failed before it began, of `gated` seed 1 is not finished."""
    generator = np.random.default_rng(7)
    of_seed = generator.normal(0.0, 0.1, size=4)
    jobs = {}
    for place, (rule, shift) in enumerate({"resnet": 0.0, "gated": 0.002, "skip": -0.08}.items()):
        for seed in range(4):
            number = str(4 * place + seed)
            jobs[number] = ["exp=made", f"residual={rule}", f"seed={seed}"]
            if (rule, seed) == ("skip", 3):
                continue
            loss = 0.5 + of_seed[seed] + shift + 0.01 * float(generator.normal())
            row = {"accuracy": 0.5 + float(generator.normal()) / 10, "frechet_pixels": 9 * float(loss), "count": 500.0}
            make_run(
                tmp_path / number,
                rule,
                seed,
                {20: loss + 0.3, 40: loss + 0.1, 60: loss},
                row,
                (rule, seed) != ("gated", 1),
            )
    write_sweep(tmp_path, jobs, base="residual=resnet", job_11={"state": "failed", "error": "CUDA out of memory"})
    return tmp_path


def numbers(row: dict[str, str], prefix: str) -> dict[str, float]:
    parts = ("n", "mean", "low", "high", "sd", "p")
    found = {part: row.get(f"{prefix}_{part}", "") for part in parts}
    return {part: float(text) for part, text in found.items() if text}


@pytest.mark.parametrize(("metric", "higher"), [("val/loss", False), ("accuracy", True), ("frechet_pixels", False)])
def test_an_independent_script_finds_the_same_numbers(sweep: Path, metric: str, higher: bool) -> None:
    found = {row["group"]: row for row in map(_as_text, study(find_runs(sweep)).rows())}
    expected = recompute(sweep, metric, higher)
    assert list(found) == list(expected) == ["resnet", "gated", "skip"]
    for rule, own in expected.items():
        less, sign = own.pop("less", {}), None
        assert numbers(found[rule], metric) == pytest.approx(own, rel=1e-6)
        if less:
            sign = less.pop("sign")
            assert numbers(found[rule], f"{metric}_less_base") == pytest.approx(less, rel=1e-6)
        assert (found[rule][f"{metric}_less_base_sign"] or None) == sign
    assert [expected[rule]["n"] for rule in expected] == [4, 3, 3]
    assert found["skip"]["val/loss_less_base_sign"] == "better"


def test_a_bootstrap_over_seeds_gives_the_same_interval(sweep: Path) -> None:
    row = study(find_runs(sweep)).rows()[0]
    half = (row["val/loss_high"] - row["val/loss_low"]) / 2
    assert bootstrap_half([*read(sweep, "val/loss")[0]["resnet"].values()]) == pytest.approx(half, rel=0.01)


def _as_text(row: dict[str, Any]) -> dict[str, str]:
    return {key: "" if value is None else str(value) for key, value in row.items()}


def test_files_of_a_sweep(sweep: Path) -> None:
    paths = write_comparison(study(find_runs(sweep)), sweep)
    assert [path.name for path in paths[:3]] == ["comparison.md", "comparison.csv", "summary.csv"]
    assert {"comparison_val_loss.png", "comparison_val_loss_less_base_steps.png"} <= {p.name for p in paths[3:]}
    page = paths[0].read_text()
    assert "- Not finished, and in no mean: gated, seed 1 (unfinished: step 40 of 60).\n" in page
    assert "- Without a run to its end, and in no mean: skip, seed 3 (failed: CUDA out of memory).\n" in page
    assert "Compared with `resnet`." in page
    assert "| skip | 3 of 4 |" in page
    assert "seed 3: failed: CUDA out of memory |" in page
    assert len(read_csv(paths[1])) == 11
    assert read_csv(paths[2]) == list(map(_as_text, study(find_runs(sweep)).rows()))
    for path in paths[3:]:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width > 600


def test_a_single_run_is_no_group_of_seeds(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", row={"accuracy": 0.5, "count": 200})
    paths = write_comparison(study([run]), tmp_path / "out")
    page = paths[0].read_text()
    assert page.startswith("# Comparison of 1 runs\n\n- One seed has neither an interval nor a sign: gated.\n")
    assert "±" not in page
    assert "| one | made | gated |" in page


def test_runs_of_unlike_protocols_are_marked_and_not_compared(tmp_path: Path) -> None:
    row = {"accuracy": 0.5}
    runs = [make_run(tmp_path / str(i), rule, i % 2, row=row) for i, rule in enumerate(["resnet", "resnet", "gated"])]
    runs.append(make_run(tmp_path / "3", "gated", 1, row=row, protocol="otherwise"))
    for run in runs:
        (run / "metrics.csv").unlink()
    paths = write_comparison(study(runs), tmp_path / "out")
    page = paths[0].read_text()
    assert "only numbers of one letter can be compared" in page
    assert "- [b] otherwise\n" in page
    assert [row["protocol"] for row in read_csv(paths[1])] == ["[a]", "[a]", "[a]", "[b]"]
    assert "| gated | 1 of 2 | 0.5 | +0 |" in page
    assert "seed 1: measured otherwise |" in page


def test_protocols_differ_in_more_than_step_and_seed(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), seed=i, losses={i + 2: 0.5}, row={"accuracy": 0.5}) for i in range(2)]
    page = write_comparison(study(runs), tmp_path / "out")[0].read_text()
    assert "protocol |" not in page
    assert page.count("50 samples a class") == 1


def test_fourteen_groups_have_a_panel_each(tmp_path: Path, monkeypatch: Any) -> None:
    rules = ["resnet", *(f"rule{i}" for i in range(13))]
    losses = {rule: {20: 1.0, 40: 0.5 + len(rule) / 50} for rule in rules}
    chart = study([make_run(tmp_path / rule, rule, losses=losses[rule]) for rule in rules]).charts["val_loss_steps"]
    drawn = keep_figures(monkeypatch, drawing)
    drawing.plot_chart(chart, {rule: look(place) for place, rule in enumerate(rules)}, tmp_path / "chart.png")
    assert [axes.get_title() for axes in drawn[-1].axes[:14]] == rules
