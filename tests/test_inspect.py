"""`python -m neural_rdm.inspect`: a pipeline with pictures, a network alone with latents."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file

from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.evaluation import thermometer
from neural_rdm.inspect import complete, inspect
from tests.pipelines.tiny import saved

diffusers = pytest.importorskip("diffusers", reason="pipelines need diffusers")

FILES = ["sensitivity", "units", "depth", "left_out", "importance"]


def look(folder: Path, model: Path, *overrides: str) -> list[dict[str, str]]:
    """Run the command's own function; returns the rows of importance.csv."""
    cfg = compose_config("inspect", complete([f"model={model}", "accelerator=cpu", *overrides]), []).cfg
    OmegaConf.set_struct(cfg, False)
    assert inspect(cfg, folder) == 0
    with (folder / "importance.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_pipeline_is_looked_into_with_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = saved("flux", tmp_path / "flux")
    np.savez(tmp_path / "images.npz", arr_0=np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))
    options = [f"images={tmp_path / 'images.npz'}", "prompts=['a seven','']", "batch_size=2", "times=[0.5]"]
    ranked = look(tmp_path / "out", model, *options)
    assert sorted(int(row["unit"]) for row in ranked) == list(range(9))
    assert ranked[0]["name"].startswith(("transformer_blocks", "single_transformer_blocks"))
    assert all((tmp_path / "out" / f"{name}.csv").is_file() for name in FILES)
    assert all(Image.open(tmp_path / "out" / f"{n}.png").width > 100 for n in ("sensitivity", "units", "depth"))
    assert "The least important of 9 units" in capsys.readouterr().out


def unet(folder: Path) -> Path:
    torch.manual_seed(0)
    diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1, attention_head_dim=8,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def latents(folder: Path, **more: torch.Tensor) -> Path:
    save_file({"latents": torch.randn(2, 4, 8, 8), **more}, folder / "latents.safetensors")
    return folder / "latents.safetensors"


def test_a_network_alone_is_looked_into_with_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(thermometer, "attempt", lambda draw: drawn.append(draw.args[1].name) or [])
    model = unet(tmp_path / "unet")
    ranked = look(tmp_path / "out", model, f"latents={latents(tmp_path)}", "times=[]")
    assert len(ranked) == 12
    sizes = [abs(float(row["first_order"])) for row in ranked]
    assert sizes == sorted(sizes)
    assert drawn == ["sensitivity.png", "units.png"]  # nothing was looked at
    np.savez(tmp_path / "wrong.npz", images=np.zeros(3))
    with pytest.raises(DataError, match=r"has no latents \[N, 4, h, w\], but \{'images': \[3\]\}"):
        look(tmp_path / "no", model, f"latents={tmp_path / 'wrong.npz'}")
    with pytest.raises(ConfigError, match=r"prompts=.*a UNet2DModel reads no text"):
        look(tmp_path / "no", model, f"latents={latents(tmp_path)}", "prompts=['a']")
    with pytest.raises(ConfigError, match=r"classes=\[1\]: this UNet2DModel has none"):
        look(tmp_path / "no", model, f"latents={latents(tmp_path)}", "classes=[1]")
    with pytest.raises(ConfigError, match=r"classes=\[-1\]: this network has 10 classes"):
        look(tmp_path / "no", saved("dit", tmp_path / "dit"), f"latents={latents(tmp_path)}", "classes=[-1]")
    with pytest.raises(ConfigError, match="which model"):
        complete(["images=x"])
