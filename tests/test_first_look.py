"""The study of all rules: which runs it does in which order, and that it goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks import first_look, first_look_page
from benchmarks.first_look import Case, Part

A, B = Case("a", ()), Case("b", ())
#: learning rate -> validation loss: `a` likes what is beyond the grid, `b` breaks there
LOSSES = {"a": {0.01: 0.4, 0.03: 0.3, 0.1: 0.2, 0.3: 0.5}, "b": {0.01: 0.4, 0.03: None}}


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Runs that the study asks for, which are only counted."""
    asked: list[tuple[Any, ...]] = []

    def train(units: int, case: Case, stage: str, lr: float, seed: int) -> dict[str, Any]:
        asked.append((case.name, stage, lr, seed))
        row = {"units": units, "case": case.name, "stage": stage, "lr": lr, "seed": seed, "steps": 1, "parameters": 1}
        numbers = dict.fromkeys(("val_mse", "frechet_pixels", "accuracy", "train_loss", "step_ms"))
        return row | numbers | {"val_loss": LOSSES[case.name][lr], "broken": "", "commit": "c"}

    monkeypatch.setattr(first_look, "RUNS", tmp_path / "runs.csv")
    monkeypatch.setattr(first_look, "train", train)
    monkeypatch.setattr(first_look, "costs", lambda units: [])
    monkeypatch.setattr(first_look, "SEEDS", (0, 1))
    monkeypatch.setattr(first_look, "PARTS", (Part(4, [A, B], (0.01, 0.03), {0.03: 0.1, 0.1: 0.3, 0.01: 0.003}),))
    LOSSES["b"][0.003] = 0.45
    return asked


def test_the_grid_is_widened_where_the_best_is_at_its_edge(done: list[tuple[Any, ...]]) -> None:
    first_look.run()
    sweep = [(name, lr) for name, stage, lr, _ in done if stage == "sweep"]
    assert sweep == [("a", 0.01), ("a", 0.03), ("a", 0.1), ("a", 0.3), ("b", 0.01), ("b", 0.03), ("b", 0.003)]
    assert [d for d in done if d[1] == "run"] == [
        ("a", "run", 0.1, 0), ("b", "run", 0.01, 0), ("a", "run", 0.1, 1), ("b", "run", 0.01, 1),
    ]  # fmt: skip
    rows = first_look.read()
    assert [(r["case"], r["stage"], r["lr"], r["seed"]) for r in rows] == done
    assert [r["val_loss"] for r in rows] == [LOSSES[name][lr] for name, _, lr, _ in done]


def test_it_goes_on_where_it_was_stopped(done: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    first_look.run()
    whole, text = list(done), first_look.RUNS.read_text()
    for kept in (1, 5, 9):
        first_look.RUNS.write_text("".join(text.splitlines(keepends=True)[: kept + 1]))
        done.clear()
        first_look.run()
        assert done == whole[kept:]
        assert first_look.RUNS.read_text() == text
    done.clear()
    first_look.run()
    assert done == []


def test_the_page_is_what_the_runs_make_of_it() -> None:
    path = first_look_page.PAGES / "rules.md"
    assert path.read_text(encoding="utf-8") == first_look_page.rules(), "run python -m benchmarks.first_look_page"


def test_signs_against_a_t_test_by_hand() -> None:
    numbers = {"resnet": (0.2, 0.3, 0.4), "gated": (0.21, 0.31, 0.4101), "rezero": (0.25, 0.2, 0.42)}
    rows = [
        {"units": 12, "case": name, "stage": "run", "seed": seed, "val_loss": value, "lr": 0.01}
        for name, values in numbers.items()
        for seed, value in enumerate(values)
    ]
    study = first_look_page.Study(rows)
    # differences 0.01, 0.01, 0.0101: t = 0.010033 / (0.0000577 / sqrt 3) = 301, far beyond 4.30 even for two cases
    assert study.signs(12) == {"gated": "worse", "rezero": "open"}
    mean, half = first_look_page.interval(study.less(12, "rezero", "resnet"))
    assert mean == pytest.approx((0.05 - 0.1 + 0.02) / 3)
    assert half == pytest.approx(4.302653 * 0.0793725 / 3**0.5, rel=1e-5)
    rows[3]["val_loss"] = None  # a run that broke settles nothing
    assert first_look_page.Study(rows).signs(12)["gated"] == "open"
