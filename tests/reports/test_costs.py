"""What groups cost, in numbers that can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from neural_rdm.reports.costs import first_below, rows
from neural_rdm.reports.study import study
from tests.reports.made import make_run


def test_a_loss_is_reached_between_two_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", losses={10: 1.0, 20: 0.6, 30: 0.2})
    assert first_below(run, 0.5) == pytest.approx(22.5)
    assert (first_below(run, 2.0), first_below(run, 0.1), first_below(tmp_path, 0.5)) == (10.0, None, None)


def test_steps_images_and_flops_until_the_base_ends(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"r{s}", "resnet", s, {10: 1.0 + s, 20: 0.5 + s}) for s in range(2)]
    runs += [make_run(tmp_path / f"g{s}", "gated", s, {10: 0.9 + s, 20: 0.1 + s}) for s in range(2)]
    runs += [make_run(tmp_path / f"k{s}", "skip", s, {10: 1.9, 20: 0.7}) for s in range(2)]
    (runs[0] / "throughput.csv").write_text(
        "step,samples_per_second,seconds_per_step,peak_memory_gib\n10,1,0.2,3.5\n20,1,0.4,4.5\n30,1,0.3,\n"
    )
    found = study(runs, counted=lambda config: {"parameters": 7, "flops": 3 if config["seed"] == 0 else 9}).costs
    assert found["gated"].reached == pytest.approx({0: 15.0, 1: 15.0})
    assert (found["gated"].steps.mean, found["gated"].images.mean) == (15.0, 120.0)  # type: ignore[union-attr]
    assert found["gated"].train_flops.mean == 360.0  # type: ignore[union-attr]
    assert found["skip"].reached == {0: None, 1: pytest.approx(10 + 10 / 3)}
    assert (found["skip"].told, found["skip"].steps) == ("reached by 1 of 2 seeds", None)
    assert (found["resnet"].seconds.mean, found["resnet"].memory) == (pytest.approx(0.3), 4.5)  # type: ignore[union-attr]
    table = rows(found)
    assert [row["steps"] for row in table] == ["20", "15", "reached by 1 of 2 seeds"]
    assert list(table[0]) == [
        "group", "parameters", "FLOPs a sample", "seconds a step", "peak memory, GiB", "steps", "images", "FLOPs",
    ]  # fmt: skip


def test_a_quality_of_ones_own(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(s), "gated", s, {10: 1.0, 20: 0.5}) for s in range(2)]
    assert study(runs, quality=0.75).costs["gated"].reached == {0: 15.0, 1: 15.0}
    assert study(runs, quality=0.1).costs["gated"].told == "not reached"
    assert study(runs).costs["gated"].reached == {}
