"""Evaluations while a run trains: what a line of `evaluations.csv` says of how it was made, and what reads it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.evaluation.measuring import Measured, Report, Subject
from neural_rdm.reports.efficiency import Conditions, read_evaluations, spaces
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.recording import COLUMNS, EvaluationLog
from tests.training.trainer import fit, tiny_module


class Told(Report):
    """Numbers that are known, and these facts."""

    def __init__(self, **facts: str) -> None:
        self.facts = facts

    def with_count(self, count: int) -> Told:
        return self

    def rows(self, subject: Subject) -> Measured:
        numbers = {"frechet_x": 2.0, "frechet_y_frames": 3.0, "count": 20, "count_frames": 80}
        return [{"name": "generated", **numbers}], "how", {**subject.facts(), **self.facts}


@pytest.mark.parametrize(
    ("facts", "reference"),
    [
        ({}, ""),
        ({"reference_hash": "12345678" * 8}, "12345678"),
        ({"reference_hash": "12345678" * 8, "reference_hash_frames": "ab" * 32}, "12345678+abababab"),
    ],
)
def test_a_line_says_how_it_was_made(tmp_path: Path, facts: dict[str, Any], reference: str) -> None:
    log = EvaluationLog(every_n_steps=1, count=20)
    log.report, log.sampler = Told(**facts), Sampler("dpm++", steps=3)
    (tmp_path / "evaluations.csv").write_text(
        "step,frechet_x,cfg_scale,weights,count\n1,9,1,ema,20\n"
    )  # an older one's
    fit(tiny_module(), tmp_path, EMA(decay=0.5), log, steps=1)
    with (tmp_path / "evaluations.csv").open(newline="") as file:
        old, new = csv.DictReader(file)
    assert (old["frechet_x"], old["reference"], old["precision"]) == ("9", "", "")
    assert tuple(new)[: len(COLUMNS)] == COLUMNS
    assert (new["reference"], new["precision"], new["sampler"], new["sampler_steps"]) == (
        reference, "32-true", "dpm++", "3"
    )  # fmt: skip
    assert spaces(tmp_path) == ["x", "y_frames"]
    (tmp_path / "config.yaml").write_text("data: {batch_size: 16}\n")
    found = [e.conditions for e in read_evaluations(tmp_path, "x")]
    assert found == [Conditions(20), Conditions(20, "dpm++", "3", reference, "32-true")]
    assert [e.conditions.count for e in read_evaluations(tmp_path, "y_frames")] == [80]
