"""Numbers of groups: what counts, what does not and why, and which are compared with which."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from neural_rdm.reports.results import Result
from neural_rdm.reports.study import Study, study
from tests.reports.made import PROTOCOL, make_run


def result(found: Study, metric: str, label: str) -> Result:
    return found.metric(metric).results[label]


def test_what_is_not_there_is_said_and_not_averaged(tmp_path: Path) -> None:
    rows: list[dict[str, Any] | None] = [{"accuracy": 0.5}, {"accuracy": 0.7}, {"accuracy": "nan"}, {}, None]
    runs = [make_run(tmp_path / str(s), seed=s, row=row, finished=s != 1) for s, row in enumerate(rows)]
    found = result(study(runs), "accuracy", "gated")
    assert found.values == {0: 0.5}
    assert found.missing == {
        1: "unfinished: step 2 of 4",
        2: "not finite",
        3: "not recorded",
        4: "not recorded",
    }
    assert found.interval is not None
    assert (found.interval.n, math.isnan(found.interval.low)) == (1, True)


def test_unequal_numbers_of_samples_are_not_compared_but_where_the_bias_is_off(tmp_path: Path) -> None:
    def row(count: int, distance: float) -> dict[str, float]:
        """A distance that is too large by 30 / n, at `count` samples and at 100."""
        return {"frechet_pixels": distance + 30 / count, "at_100_frechet_pixels": distance + 0.3, "count": count}

    runs = [make_run(tmp_path / f"r{s}", "resnet", s, row=row(500, 1.0 + s / 10)) for s in range(3)]
    how = PROTOCOL.replace("50", "20")
    runs += [
        make_run(tmp_path / f"g{s}", "gated", s, row=row(200, 0.8 + s / 10 + s / 99), protocol=how) for s in range(3)
    ]
    found = study(runs)
    assert result(found, "frechet_pixels", "gated").note == "200 samples against 500 samples"
    assert result(found, "frechet_pixels", "gated").less is None
    assert result(found, "frechet_pixels", "gated").sign == ""
    for name in ("at_100_frechet_pixels", "frechet_pixels_unbiased"):
        less = result(found, name, "gated").less
        assert less is not None
        assert less.mean == pytest.approx(-0.2 + 1 / 99)
        assert result(found, name, "gated").sign == "better"
    assert result(found, "frechet_pixels_unbiased", "resnet").values == pytest.approx({0: 1.0, 1: 1.1, 2: 1.2})
    assert any("frechet_pixels is of 500 and 200 samples" in note for note in found.notes)


def test_equal_numbers_need_no_correction(tmp_path: Path) -> None:
    row = {"frechet_pixels": 1.0, "at_100_frechet_pixels": 2.0, "count": 500}
    found = study([make_run(tmp_path / rule, rule, row=row) for rule in ("resnet", "gated")])
    assert [m.name for m in found.metrics] == ["val/loss", "frechet_pixels", "at_100_frechet_pixels"]


def test_within_a_group_the_usual_way_of_measuring_counts(tmp_path: Path) -> None:
    counts = [500, 500, 100]
    runs = [make_run(tmp_path / str(s), seed=s, row={"accuracy": 0.5, "count": n}) for s, n in enumerate(counts)]
    found = result(study(runs), "accuracy", "gated")
    assert (found.values, found.missing) == ({0: 0.5, 1: 0.5}, {2: "of 100 samples"})


def test_losses_of_unlike_objectives_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", "resnet", s) for s in range(2)]
    runs += [make_run(tmp_path / f"g{s}", "gated", s, diffusion={"loss": "mse"}) for s in range(2)]
    runs += [make_run(tmp_path / f"k{s}", "skip", s, {2: 0.9, 4: 0.4 + s / 9}) for s in range(2)]
    found = study(runs)
    gated, skip = (label for label in found.metric("val/loss").results if not label.startswith("resnet"))
    assert result(found, "val/loss", gated).note == "measured by another protocol"
    assert result(found, "val/loss", skip).pairs == pytest.approx({0: -0.1, 1: -0.1 + 1 / 9})
    assert [line.label for line in found.charts["val_loss_less_base_steps"].lines] == [skip]
    assert found.costs[gated].reached == {}
    assert any("val/loss was made in 2 ways" in note for note in found.notes)


def test_only_seeds_of_both_are_paired_and_one_has_no_sign(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", "resnet", s, {2: 1.0, 4: 0.5 + s}) for s in (0, 1)]
    runs += [make_run(tmp_path / f"g{s}", "gated", s, {2: 1.0, 4: 0.4 + s}) for s in (1, 2)]
    runs += [make_run(tmp_path / "k5", "skip", 5)]
    found = study(runs)
    gated = result(found, "val/loss", "gated")
    assert gated.pairs == pytest.approx({1: -0.1})
    assert (gated.sign, gated.p, gated.note) == ("", None, "one seed in common: no interval, no sign")
    assert result(found, "val/loss", "skip").note == "no seed in common"
    assert "One seed has neither an interval nor a sign: skip." in found.notes


def test_the_metric_that_runs_were_optimised_for_comes_first(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / r, r, row={"accuracy": 0.5}, optimized_metric="accuracy") for r in ("gated", "skip")]
    assert [m.name for m in study(runs).metrics] == ["accuracy", "val/loss"]
    assert study(runs, best_by="val/loss").metrics[0].name == "val/loss"
    assert study(runs).metrics[0].higher


def test_a_group_of_which_a_run_broke_has_no_sign(tmp_path: Path) -> None:
    """The runs that are left would make a rule that breaks look better than one that does not."""
    shifts = (0.0, 0.01, -0.01, 0.02)
    runs = [make_run(tmp_path / f"r{s}", "resnet", s, {2: 1.0, 4: 0.5}) for s in range(4)]
    for rule, broken in (("gated", 3), ("skip", None)):
        losses = [math.nan if seed == broken else 0.3 + shift for seed, shift in enumerate(shifts)]
        runs += [make_run(tmp_path / f"{rule}{s}", rule, s, {2: 1.0, 4: loss}) for s, loss in enumerate(losses)]
    found = study(runs)
    gated = result(found, "val/loss", "gated")
    assert (len(gated.values), gated.sign, gated.note) == (3, "open", "a run broke: no sign")
    assert result(found, "val/loss", "skip").sign == "better"


def test_evaluations_during_training_are_compared_where_sampler_and_count_are_equal(tmp_path: Path) -> None:
    counts = {"resnet": 100, "gated": 100, "skip": 50}
    runs = []
    for rule, count in counts.items():
        own = {"callbacks": {"evaluation": {"count": count}}, "diffusion": {"loss": rule}}
        for seed in range(2):
            runs.append(make_run(tmp_path / f"{rule}{seed}", rule, seed, **own))
            text = "".join(f"{step},{1 / step + seed},{3 - seed}\n" for step in (2, 4))
            (runs[-1] / "metrics.csv").write_text(f"step,val/loss,evaluation/frechet_pixels\n{text}")
    found = study(runs, best_by="evaluation/frechet_pixels")
    gated, skip = (label for label in found.bases)
    assert result(found, "evaluation/frechet_pixels", gated).note == ""
    assert result(found, "evaluation/frechet_pixels", skip).note == "measured by another protocol"
    lines = found.charts["evaluation_frechet_pixels_less_base_steps"].lines
    assert [line.label for line in lines] == [gated]
    assert "val_loss_less_base_steps" not in found.charts
