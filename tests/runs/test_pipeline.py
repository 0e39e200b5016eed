"""A run as diffusers' own pipeline: the same pictures, with a null class that is not number 1000."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from neural_rdm import DiT
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.seeding import normal
from neural_rdm.diffusion.samplers import sample
from neural_rdm.residual import Residual
from neural_rdm.runs import build
from neural_rdm.runs.pipeline import pipeline

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """What a loaded run has, with random weights: 3 classes, latents of a small autoencoder."""
    vae: Any = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    torch.manual_seed(0)
    diffusers.AutoencoderKL(**vae, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4).save_pretrained(
        tmp_path
    )
    small = ["exp=dit_s_gated", "data=synthetic", f"first_stage.path={tmp_path}", "first_stage.downsample=2"]
    small += ["first_stage.subfolder=null", "sampler=ddim", "sampler.steps=5"]
    cfg = compose_config("train", small).cfg
    net = DiT(4, 2, 4, 16, 2, 2, num_classes=3, residual=Residual(beta_form="none")).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:  # the table of positions is computed anew over there
                parameter.add_(0.1 * torch.randn(parameter.shape))
    process = build.build(cfg.diffusion, "diffusion").process
    return SimpleNamespace(folder=tmp_path, config=cfg, net=net, process=process, device=torch.device("cpu"))


def drawn(
    pipe: Any, classes: list[int], scale: float, noise: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    from diffusers.pipelines.dit import pipeline_dit

    monkeypatch.setattr(pipeline_dit, "randn_tensor", lambda **_: noise.clone())
    pipe.set_progress_bar_config(disable=True)
    return pipe(classes, guidance_scale=scale, num_inference_steps=5, output_type="np").images


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_pipeline_draws_what_the_run_draws(
    run: Any, scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline(run)
    noise = normal(0, "sample", [0, 1], (4, 4, 4))
    found = drawn(pipe, [2, 0], scale, noise, monkeypatch)
    sampler = build.build({**run.config.sampler, "cfg_scale": scale}, "sampler")
    stage = build.build(run.config.first_stage, "first_stage")
    latents = sample(
        run.net, run.process, sampler, (4, 4, 4), 2, 0, {"y": torch.tensor([2, 0])}, {"y": torch.tensor([3])}
    )
    wanted = (stage.decode(latents) / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
    assert wanted.std() > 0.05
    np.testing.assert_allclose(found, wanted, atol=1e-2)  # a scheduler's own table is of float32
    exact = pipeline(run)
    exact.scheduler.alphas_cumprod = sampler.scheduler(run.process).alphas_cumprod
    np.testing.assert_allclose(drawn(exact, [2, 0], scale, noise, monkeypatch), wanted, atol=1e-4)
    pipe.save_pretrained(tmp_path / "saved")
    again = diffusers.DiTPipeline.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(drawn(again, [2, 0], scale, noise, monkeypatch), found, atol=1e-6)


def test_what_the_pipeline_cannot_run_is_said(run: Any) -> None:
    for overrides, said in (
        (["first_stage=identity"], "decodes with an AutoencoderKL"),
        (["first_stage.shift=0.1"], "knows no shift"),
    ):
        run.config = compose_config("train", ["exp=dit_s_gated", "data=synthetic", *overrides]).cfg
        with pytest.raises(ConfigError, match=said):
            pipeline(run)
    run.process = build.build(
        compose_config("train", ["exp=dit_s_gated", "data=synthetic", "diffusion=flow", "sampler=euler"]).cfg.diffusion,
        "diffusion",
    ).process
    run.config = compose_config("train", ["exp=dit_s_gated", "data=synthetic"]).cfg
    with pytest.raises(ConfigError, match="a flow"):
        pipeline(run)
