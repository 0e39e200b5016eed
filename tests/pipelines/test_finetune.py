"""Fine-tuning a pipeline: what the configuration becomes; and the whole way, from a base that knows five digits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neural_rdm import sweep
from neural_rdm.cli.planning import Plan
from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.digits_text import caption
from neural_rdm.pipelines.folder import completed
from neural_rdm.residual import gate_names
from neural_rdm.runs import build
from tests.pipelines.tiny import saved

#: how far gates alone come, of the way from the base's loss on the new digits to that on its own
BOUND = 0.2

diffusers = pytest.importorskip("diffusers", reason="pipelines need diffusers")
pytest.importorskip("transformers", reason="pipelines need transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("sd3", tmp_path_factory.mktemp("finetune") / "sd3")


def test_a_pipeline_becomes_a_run_whose_gates_alone_get_a_gradient(folder: Path, tmp_path: Path) -> None:
    cache = f"condition.cache={tmp_path / 'cache'}"
    typed = ["exp=diffusers_finetune", f"pipeline={folder}", "data=digits_text", "condition.max_length=12", cache]
    composed = compose_config("train", completed(typed), [])
    validate(composed.cfg, "train", composed.sources)
    assert composed.cfg.sampler.name == "euler"
    assert composed.cfg.diffusion.logit_mean == pytest.approx(1.098612)
    module = build.module(composed.cfg, "pixels")
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    batch = {"x": x, "caption": [caption("a handwritten {word}", 7), "the digit 3"], "position": torch.arange(2)}
    module.losses(batch, "train", drop=True)["loss"].mean().backward()
    own = gate_names(module.net)
    assert {n for n, p in module.net.named_parameters() if p.grad is not None and p.grad.any()} == own
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    with pytest.raises(ConfigError, match="needs pipeline=FOLDER"):
        completed(["exp=diffusers_finetune", "data=digits_text"])


def test_the_jobs_of_a_sweep_read_the_pipeline(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    monkeypatch.setattr(sweep, "launch", lambda plan: plans.append(plan) or 0)
    typed = ["exp=diffusers_finetune", "data=digits_text", f"hydra.sweep.dir={tmp_path / 'it'}"]
    assert sweep.sweep([*typed, f"pipeline={folder}", "optimizer.lr=1e-3,1e-2", "condition.max_length=12"]) == 0
    for job, lr in zip(plans[0].record.jobs.values(), ("0.001", "0.01"), strict=True):
        cfg = compose_config("train", [*job, "sweep=null"]).cfg
        assert (cfg.backbone.path, cfg.sampler.name, str(cfg.optimizer.lr)) == (str(folder), "euler", lr)
    with pytest.raises(ConfigError, match="needs pipeline=FOLDER"):
        sweep.sweep([*typed, "optimizer.lr=1e-3,1e-2"])
    with pytest.raises(ConfigError, match="takes one folder"):
        sweep.sweep([*typed, f"pipeline={folder},{tmp_path}"])


@pytest.mark.full
@pytest.mark.end_to_end
@pytest.mark.parametrize("name", ["pixart", "sd3", "flux", "dit"])
def test_gates_alone_teach_a_base_the_digits_that_it_does_not_know(name: str, tmp_path: Path) -> None:
    from tests.pipelines import digits

    pipeline = digits.base(name, tmp_path)
    losses, own = digits.losses(digits.finetuned(name, tmp_path)), digits.losses(tmp_path / "base")[-1]
    untouched = digits.losses_of_base(name, tmp_path)
    assert losses[-1] < untouched - BOUND * (untouched - own)  # see benchmarks/results/finetune.json
    file = tmp_path / "adapter" / "gates.safetensors"
    assert file.stat().st_size < 50_000
    plain, gated = (digits.drawn(name, pipeline, gates, digits.NEW) for gates in (None, file))
    assert torch.equal(digits.drawn(name, pipeline, file, digits.NEW, scale=0.0), plain)
    assert not torch.equal(gated, plain)
