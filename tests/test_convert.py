"""The convert command: a run leaves in the layouts of others and comes back unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neural_rdm import DiT, UNet, UViT, load_official
from neural_rdm.config.compose import compose_config
from neural_rdm.convert import described
from neural_rdm.core.weights import read_weights
from neural_rdm.diffusion.process import DDPM
from neural_rdm.residual import Residual, units
from tests.end_to_end.commands import BARE, run

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(("rule", "to"), [("rezero", "official"), ("gated", "diffusers")])
def test_a_run_is_exported_and_read_again(tmp_path: Path, rule: str, to: str) -> None:
    objective = ["diffusion=v"] if to == "official" else ["diffusion=flow", "sampler=euler"]
    options = {"beta_form": "none"} if rule == "gated" else {}
    own = [f"residual={rule}", *(f"residual.{key}={value}" for key, value in options.items())]
    code, output = run(*BARE, *objective, *own, "trainer.max_steps=2", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("run=run", f"to={to}", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 0, output
    if to == "official":
        arguments = json.loads((tmp_path / "out/config.json").read_text())
        assert arguments.pop("network") == "DiT"
        net = load_official(DiT(**arguments, residual="resnet"), tmp_path / "out/weights.safetensors")
    else:
        net = load_official(DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual="resnet"), tmp_path / "out")
    source = DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual=Residual(rule, **options))
    source.load_state_dict(read_weights(tmp_path / "run"))
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    torch.testing.assert_close(net(x, t, y), source(x, t, y), atol=1e-5, rtol=1e-4)
    facts = json.loads((tmp_path / "out/export.json").read_text())
    assert facts["latents"] is None
    assert facts["sampler"]["steps"] == 2
    diffusers = pytest.importorskip("diffusers", reason="it reads scheduler_config.json")
    if to == "official":
        scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out")
        assert (scheduler.config.prediction_type, facts["prediction"]) == ("v_prediction", "v")
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out")
        assert (scheduler.config.num_train_timesteps, facts["prediction"]) == (1000, "velocity")


def test_the_scale_of_the_latents_goes_with_the_weights() -> None:
    cfg = compose_config("train", ["exp=dit_s_gated", "data=synthetic", "first_stage.shift=0.5"]).cfg
    net = DiT(4, 2, 1, 16, 1, 2)
    run: Any = SimpleNamespace(config=cfg, net=net, process=DDPM(), facts=lambda sampler, **more: more)
    facts = described(run, None, "diffusers")
    assert facts["latents"]["scaling_factor"] == 0.18215
    assert facts["latents"]["shift_factor"] == 0.5
    assert facts["latents"]["first_stage"] == "stabilityai/sd-vae-ft-ema"
    assert any("1000 is no class" in note for note in facts["notes"])


def test_gates_that_do_not_fit_are_named(tmp_path: Path) -> None:
    code, output = run(*BARE, "trainer.max_steps=3", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("run=run", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 2
    assert "cannot fold: its beta" in output
    assert "Traceback" not in output


@pytest.mark.full
def test_a_unet_leaves_for_stock_diffusers(tmp_path: Path) -> None:
    """Gates, trained away from their start, are folded; the class embedder goes beside the network."""
    diffusers = pytest.importorskip("diffusers", reason="U-Nets are diffusers'")
    small = [
        "backbone.model_channels=16", "backbone.num_head_channels=16", "backbone.context_dim=8", "data.batch_size=16",
        "sampler.steps=2", "~metric", "~callbacks.sensitivity", "callbacks.samples.per_class=1", "logger=csv",
        "trainer.max_steps=4", "optimizer.gate_lr_scale=50", "optimizer.warmup_steps=0",
    ]  # fmt: skip
    code, output = run("exp=digits_unet_gated", *small, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("run=run", "to=diffusers", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 0, output
    assert "class_embedder.safetensors" in output
    stock = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out")
    source = UNet(
        8, 1, 1, 16, [2], 1, [1, 2], num_head_channels=16, use_spatial_transformer=True, context_dim=8,
        num_context_classes=10, class_dropout_prob=0.1, norm_num_groups=8,
    )  # fmt: skip
    state = read_weights(tmp_path / "run")
    assert any(k.endswith(".alpha") and (v - 1).abs().max() > 0.01 for k, v in state.items())
    source.load_state_dict(state)
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    table = load_file(tmp_path / "out" / "class_embedder.safetensors")["embedding.weight"]
    out = stock(x, t, encoder_hidden_states=table[y][:, None]).sample
    torch.testing.assert_close(out, source.eval()(x, t, y), atol=1e-5, rtol=1e-4)
    code, output = run("run=run", "hydra.run.dir=other", cwd=tmp_path, module="convert")
    assert code == 2
    assert "export it with to=diffusers" in output


@pytest.mark.full
def test_a_u_vit_leaves_under_official_names(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 11
    }  # fmt: skip
    small = [f"backbone.{key}={value}" for key, value in sizes.items()]
    small += ["data=digits", "first_stage=identity", "data.batch_size=16", "trainer=cpu", "sampler.steps=2"]
    code, output = run(
        "exp=uvit_h_gated", *small, "~data.num_classes", "trainer.max_steps=3", "optimizer.gate_lr_scale=50",
        "optimizer.warmup_steps=0", "logger=csv", "~callbacks.sensitivity", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    code, output = run("run=run", "weights=raw", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 0, output
    arguments = json.loads((tmp_path / "out/config.json").read_text())
    assert arguments.pop("network") == "UViT"
    assert {k: arguments[k] for k in sizes} == sizes
    net = load_official(UViT(**arguments), tmp_path / "out/weights.safetensors")
    source = UViT(**arguments)
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    source.load_state_dict({k.removeprefix("net."): v for k, v in content["state_dict"].items()})
    assert any((u.alpha - 1).abs().max() > 0.01 for _, u in units(source))
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    torch.testing.assert_close(net(x, t, y), source(x, t, y), atol=1e-5, rtol=1e-4)
