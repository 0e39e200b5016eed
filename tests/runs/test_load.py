"""Where runs lie: an experiment's folder may itself lie in one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neural_rdm.config.compose import compose_config
from neural_rdm.config.provenance import write_config
from neural_rdm.config.resume import lasting
from neural_rdm.core.errors import ConfigError
from neural_rdm.runs.load import find_runs, newest, read_config


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


def test_a_run_is_read_where_the_service_that_it_logged_to_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = compose_config("train", ["exp=digits_gated", "logger=wandb"]).cfg
    OmegaConf.resolve(cfg)
    write_config(tmp_path, lasting(cfg))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else find(name, *more))
    assert read_config(tmp_path).logger.wandb._target_.endswith("WandbLogger")
    cfg.logger.wandb = {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dirs": "x"}
    write_config(tmp_path, lasting(cfg))
    with pytest.raises(ConfigError, match=r"unknown configuration key logger\.wandb\.save_dirs"):
        read_config(tmp_path)
