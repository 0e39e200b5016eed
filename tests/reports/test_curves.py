"""Curves over steps and depth: means and bands over seeds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from neural_rdm.reports.statistics import interval
from neural_rdm.reports.study import study
from tests.reports.made import make_run


def test_a_curve_is_the_mean_of_the_seeds_that_came_so_far(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "0", seed=0, losses={10: 1.0, 20: 0.5})]
    runs += [make_run(tmp_path / "1", seed=1, losses={10: 3.0, 20: 0.7}, finished=False)]
    (line,) = study(runs).charts["val_loss_steps"].lines
    expected = interval([1.0, 3.0])
    assert expected is not None
    assert (line.x, line.mean, line.n) == ([10, 20], [2.0, 0.5], [2, 1])
    assert (line.low[0], line.high[0]) == (expected.low, expected.high)
    assert math.isnan(line.low[1])


def test_differences_are_of_equal_seeds_and_steps(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", "resnet", s, {10: 1.0 + s, 20: 0.5 + s}) for s in range(3)]
    runs += [make_run(tmp_path / f"g{s}", "gated", s, {5: 9.0, 10: 1.25 + s, 20: 0.75 + s}) for s in (1, 2, 4)]
    chart = study(runs).charts["val_loss_less_base_steps"]
    (line,) = chart.lines
    assert (line.label, line.x, line.mean, line.n) == ("gated", [10, 20], [0.25, 0.25], [2, 2])
    assert chart.zero


def test_depth_is_told_at_the_end_of_training(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(s), seed=s) for s in range(2)]
    for seed, run in enumerate(runs):
        (run / "sensitivity").mkdir()
        late = {step: step > 40 for step in range(10, 90, 10)}
        cells = [
            f"{step},{unit},u{unit},1,{(unit + 1) / 4 + seed / 4 if end else 9},,{2 + seed if end else 9},0,"
            for step, end in late.items()
            for unit in range(2)
        ]
        header = "step,unit,name,norm,normalized,gain,alpha_mean,alpha_std,beta_norm"
        (run / "sensitivity" / "sensitivity.csv").write_text("\n".join([header, *cells, ""]))
    found = study(runs).charts
    (line,) = found["sensitivity_depth"].lines
    assert (line.x, line.mean, line.n) == ([0, 1], pytest.approx([0.375, 0.625]), [2, 2])
    assert found["alpha_mean_depth"].lines[0].mean == [2.5, 2.5]
    assert found["sensitivity_depth"].names == {0: "u0", 1: "u1"}
    assert "beta_norm_depth" not in found


def test_a_metric_by_depth_has_a_line_for_each_rule(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{rule}{depth}{seed}", rule, seed, {2: 1.0, 4: depth + seed}, backbone={"depth": depth})
        for rule in ("resnet", "gated")
        for depth in (2, 4, 8)[: 3 if rule == "gated" else 1]
        for seed in range(2)
    ]
    (line,) = study(runs).charts["val_loss_by_depth"].lines
    assert (line.label, line.x, line.mean) == ("gated", [2, 4, 8], [2.5, 4.5, 8.5])
