"""Each rule's best learning rate, found in made-up runs whose numbers are known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from neural_rdm.reports.comparison import write_comparison
from neural_rdm.reports.rates import Case, cases, is_higher, summary
from neural_rdm.reports.results import Result
from neural_rdm.reports.statistics import interval
from neural_rdm.reports.study import study
from neural_rdm.reports.tables import compare_runs

NAN = float("nan")


def make_run(
    folder: Path, rule: str, lr: float, loss: float | None, seed: int = 0, control: str = "null", depth: int = 2
) -> Path:
    """A run whose last validation loss is `loss`, and its accuracy 1 less that; None for one that has not finished."""
    (folder / "report").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"choices: {{exp: digits_gated, residual: {rule}}}\nresidual: {{rule: {rule}, granularity: channel}}\n"
        f"control: {control}\noptimizer: {{lr: {lr}, betas: [0.9, 0.99]}}\nbackbone: {{depth: {depth}}}\n"
        f"trainer: {{max_steps: 4}}\nseed: {seed}\n"
    )
    (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n2,1.0,0.1\n4,0.5,{loss}\n")
    if loss is not None:
        (folder / "finished.json").write_text('{"global_step": 4}')
        row = {"name": "generated", "accuracy": 1 - loss}
        (folder / "report" / "metrics.json").write_text(json.dumps({"protocol": "how", "rows": [row]}))
    return folder


def made(tmp_path: Path, numbers: dict[str, dict[float, list[float | None]]], **more: object) -> list[Path]:
    """Runs of rules at learning rates, a value for each seed."""
    runs = []
    for rule, losses in numbers.items():
        for lr, values in losses.items():
            for seed, loss in enumerate(values):
                runs.append(make_run(tmp_path / str(len(runs)), rule, lr, loss, seed, **more))  # type: ignore[arg-type]
    return runs


def read_cases(runs: list[Path], best_by: str = "val/loss") -> list[Case]:
    found = study(runs, best_by=best_by)
    return cases(found.groups, found.metrics[0])


INSIDE = {1e-4: [0.5, 0.7], 3e-4: [0.2, 0.4], 1e-3: [0.35, 0.45]}
ABOVE = {1e-4: [0.5], 3e-4: [0.3], 1e-3: [0.25]}


def test_each_rule_has_a_best_rate_of_its_own(tmp_path: Path) -> None:
    runs = made(tmp_path, {"gated": INSIDE, "resnet": ABOVE})
    paths = write_comparison(study(runs), tmp_path / "out")
    page = paths[0].read_text()
    section = page.split("## Each rule at its own learning rate")[1]
    assert "| gated | 0.0003 | 0.3 | 2 | 0.0001, 0.001 |  | 0.6 | 0.3 | 0.4 |" in section
    assert (
        "| resnet | 0.001 | 0.25 | 1 | 0.0001, 0.0003 | edge: widen the grid above 0.001 | 0.5 | 0.3 | 0.25 |"
        in section
    )
    assert "By `val/loss`" in section
    assert [p.name for p in paths[-2:]] == ["comparison_rates.csv", "comparison_rates.png"]
    with open(paths[-2], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], float(r["lr"])) for r in rows if r["best"] == "True"] == [("gated", 3e-4), ("resnet", 1e-3)]
    gated = next(r for r in rows if r["best"] == "True")
    assert float(gated["val/loss"]) == pytest.approx(0.3)
    assert float(gated["std"]) == pytest.approx(0.02**0.5)
    with Image.open(paths[-1]) as image:
        assert image.format == "PNG"


def test_a_number_that_is_better_the_higher_it_is(tmp_path: Path) -> None:
    runs = made(tmp_path, {"gated": INSIDE, "resnet": ABOVE})
    assert [case.best() for case in read_cases(runs, "accuracy")] == [3e-4, 1e-3]
    page = write_comparison(study(runs, best_by="accuracy"), tmp_path / "out")[0].read_text()
    assert "| gated | 0.0003 | 0.7 | 2 |" in page


def test_runs_that_failed_do_not_win(tmp_path: Path) -> None:
    runs = made(tmp_path, {"gated": {1e-4: [0.5, 0.5], 3e-4: [0.4, 0.4], 1e-3: [0.1, None], 3e-3: [NAN, 0.1]}})
    page = write_comparison(study(runs), tmp_path / "out")[0].read_text()
    assert "| gated | 0.0003 | 0.4 | 2 | 0.0001 |  | 0.5 | 0.4 | not finished | not finite |" in page
    (case,) = read_cases(runs[-4:])
    assert case.best() is None


def test_settings_of_a_rule_make_cases_of_their_own(tmp_path: Path) -> None:
    rates = {1e-4: [0.5], 1e-3: [0.4]}
    runs = made(tmp_path / "a", {"gated": rates}) + made(tmp_path / "b", {"gated": rates}, depth=4)
    runs += made(tmp_path / "c", {"gated": rates}, control="folded")
    runs += made(tmp_path / "d", {"ihc": rates}, control="mlp_widened")
    names = [case.name for case in read_cases(runs, "val/loss")]
    assert names == ["gated, depth=2", "gated, depth=4", "gated (folded), depth=2", "resnet +MLP as ihc, depth=2"]
    rows = compare_runs(runs)
    assert [row["residual"] for row in rows[::2]] == ["gated", "gated", "gated (folded)", "resnet +MLP as ihc"]
    assert [row["gates"] for row in rows[::2]] == ["channel", "channel", "none", "none"]
    assert "control" not in rows[0]


def test_one_rate_for_all_is_no_sweep(tmp_path: Path) -> None:
    runs = made(tmp_path, {"gated": {1e-3: [0.5, 0.6]}, "resnet": {1e-3: [0.4]}})
    paths = write_comparison(study(runs), tmp_path / "out")
    assert "comparison_rates.csv" not in [p.name for p in paths]
    assert "own learning rate" not in paths[0].read_text()


def test_accuracy_of_an_evaluation_is_better_the_larger_it_is() -> None:
    assert is_higher("accuracy")
    assert is_higher("evaluation/accuracy")
    assert not is_higher("val/loss")


def test_rates_with_fewer_seeds_are_not_compared() -> None:
    values = {1e-3: [0.3, 0.3], 3e-3: [0.1], 1e-2: [0.2, 0.4]}
    case = Case("gated", {lr: Result(dict(enumerate(v)), {}, interval(v)) for lr, v in values.items()}, higher=False)
    assert math.isnan(case.mean(3e-3))
    assert case.best() in (1e-3, 1e-2)
    (row,) = summary([case], "val/loss")
    assert row["at 0.003"] == "1 of 2 seeds"


def test_a_best_rate_is_alone_only_where_a_test_says_so(tmp_path: Path) -> None:
    losses = {1e-3: [0.30, 0.40, 0.50], 3e-3: [0.31, 0.39, 0.51], 1e-2: [0.40, 0.51, 0.60]}
    (case,) = read_cases(made(tmp_path, {"gated": losses}))
    assert (case.best(), case.open()) == (1e-3, [3e-3])


def test_a_seed_that_ran_twice_is_one_seed_and_a_number_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(i), "gated", lr, 0.3, seed=0) for i, lr in enumerate((1e-3, 1e-3, 1e-2))]
    (case,) = read_cases(runs)
    assert {lr: result.values for lr, result in case.results.items()} == {1e-3: {0: 0.3}, 1e-2: {0: 0.3}}
    (row,) = summary(read_cases(runs, "val/los"), "val/los")
    assert (row["note"], row["at 0.001"]) == ("no run has val/los", "not recorded")
