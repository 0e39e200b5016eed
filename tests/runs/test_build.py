"""What is built of a configuration has to keep its contract."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.runs import build
from neural_rdm.training.callbacks.progress import StepBar


def test_a_network_that_is_no_backbone_is_refused_in_one_sentence() -> None:
    residual = {"_target_": "neural_rdm.residual.Residual", "rule": "gated"}
    cfg = OmegaConf.create({"seed": 0, "backbone": {"_target_": "torch.nn.Identity"}, "residual": residual})
    with pytest.raises(ConfigError, match=r"^backbone\._target_=torch\.nn\.Identity is no backbone: "):
        build.network(cfg)


@pytest.mark.parametrize(
    ("name", "more"), [("logging.CSVLogger", {}), ("checkpoints.Checkpoints", {"every_n_steps": 1, "keep": 1})]
)
def test_what_is_no_callback_to_choose_touches_no_file(tmp_path: Path, name: str, more: dict[str, int]) -> None:
    """One would repair a table in a folder that a configuration names, the other delete all checkpoints but some."""
    (tmp_path / "metrics.csv").write_text("step,loss\nhello,world\n")
    place = "folder" if more else "save_dir"
    node = OmegaConf.create({"_target_": f"neural_rdm.training.callbacks.{name}", place: str(tmp_path), **more})
    with pytest.raises(ConfigError, match=f"{name} is no callback that is chosen"):
        build.build(node, "callbacks.mine")
    if not more:
        build.build(node, "sampler")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"metrics.csv": "step,loss\nhello,world\n"}


@pytest.mark.parametrize(("more", "steps"), [([], 500 * 40 / 288), (["debug=fast"], 10 * 40 / 288), (["~metric"], 0)])
def test_the_bar_knows_what_the_report_takes(more: list[str], steps: float, tmp_path: Path) -> None:
    """500 samples in 20 guided steps, beside steps that are three passes of 96."""
    cfg = compose_config("train", ["exp=digits_gated", "~logger", *more]).cfg
    OmegaConf.resolve(cfg)
    report = None if cfg.metric is None else build.build(cfg.metric, "metric")
    trainer = build.trainer(cfg, tmp_path, report)
    (bar,) = (callback for callback in trainer.callbacks if isinstance(callback, StepBar))
    assert bar.after == pytest.approx(steps)
