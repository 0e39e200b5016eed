"""Where runs lie: an experiment's folder may itself lie in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from neural_rdm.runs.load import find_runs, newest


def test_runs_of_experiments_in_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train = Path("outputs/train")
    runs = [train / "digits_gated" / "2026-01-01", train / "paper" / "table2_sky" / "2026-01-02"]
    for run in runs:
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").touch()
        (run / "checkpoints" / "last.ckpt").touch()
    assert newest("run") == runs[1]
    assert find_runs(train) == runs
    assert find_runs(train / "paper") == find_runs(train / "paper" / "table2_sky") == find_runs(runs[1]) == runs[1:]
