"""Latent diffusion's own autoencoder files: names, architecture and wrapping, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError
from neural_rdm.latents.first_stage import KL, VQ, Tiny
from neural_rdm.latents.official import autoencoder

diffusers = pytest.importorskip("diffusers", reason="first stages are diffusers'")


class OfficialResnet(nn.Module):
    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inner), nn.Conv2d(inner, out, 3)
        self.norm2, self.conv2 = nn.GroupNorm(32, out), nn.Conv2d(out, out, 3)
        if inner != out:
            self.nin_shortcut = nn.Conv2d(inner, out, 1)


class OfficialAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))


def official(widths: list[int], attends: list[bool], latent: int, vq: bool = False) -> dict[str, Tensor]:
    """The state dict of latent diffusion's autoencoder, built in its own order, with random values."""
    torch.manual_seed(0)

    def half(encoder: bool) -> nn.Module:
        root, top = nn.Module(), widths[-1]
        levels = nn.ModuleList()
        for i, width in enumerate(widths):
            level = nn.Module()
            before = widths[max(i - 1, 0)] if encoder else widths[min(i + 1, len(widths) - 1)]
            count = 2 if encoder else 3
            level.block = nn.ModuleList(OfficialResnet(before if j == 0 else width, width) for j in range(count))
            level.attn = nn.ModuleList(OfficialAttention(width) for _ in range(count * attends[i]))
            sampled = i < len(widths) - 1 if encoder else i > 0
            if sampled:
                sampler = nn.Module()
                sampler.conv = nn.Conv2d(width, width, 3)
                setattr(level, "downsample" if encoder else "upsample", sampler)
            levels.append(level)
        setattr(root, "down" if encoder else "up", levels)
        root.mid = nn.Module()
        root.mid.block_1, root.mid.attn_1 = OfficialResnet(top, top), OfficialAttention(top)
        root.mid.block_2 = OfficialResnet(top, top)
        root.norm_out = nn.GroupNorm(32, widths[0] if not encoder else top)
        out = latent * (1 if vq else 2) if encoder else 3
        root.conv_in = nn.Conv2d(3 if encoder else latent, widths[0] if encoder else top, 3)
        root.conv_out = nn.Conv2d(top if encoder else widths[0], out, 3)
        return root

    model = nn.Module()
    model.encoder, model.decoder = half(True), half(False)
    model.quant_conv = nn.Conv2d(latent * (1 if vq else 2), latent * (1 if vq else 2), 1)
    model.post_quant_conv = nn.Conv2d(latent, latent, 1)
    if vq:
        model.quantize = nn.Module()
        model.quantize.embedding = nn.Embedding(7, latent)
    return {k: torch.randn(v.shape) for k, v in model.state_dict().items()}


def test_the_names_are_those_of_diffusers_own_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    from neural_rdm.latents.official import _renamed

    state = official([32, 64, 64], [False] * 3, 4)
    config = {"down_block_types": [0] * 3, "up_block_types": [0] * 3, "layers_per_block": 2}
    theirs = convert_ldm_vae_checkpoint({f"first_stage_model.{k}": v for k, v in state.items()}, config)
    ours = dict(_renamed(state, 3))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k].reshape(ours[k].shape)) for k in ours)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_becomes_a_first_stage(suffix: str, wrapped: bool, tmp_path: Path) -> None:
    state = official([32, 64], [False, False], 4)
    prefix = "first_stage_model." if wrapped else ""
    content: dict[str, Any] = {f"{prefix}{k}": 0.02 * v for k, v in state.items()}
    if wrapped:
        content["model.diffusion_model.out.0.weight"] = torch.zeros(1)
    path = tmp_path / f"model{suffix}"
    if suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save({"state_dict": content, "global_step": 3}, path)
    stage = KL(str(path), downsample=2)
    x = torch.rand(1, 3, 8, 8) * 2 - 1
    z = stage.encode(x, 0, torch.arange(1))
    assert z.shape == (1, 4, 4, 4)
    assert stage.decode(z).shape == x.shape
    assert torch.equal(stage._vae.encoder.conv_in.weight, 0.02 * state["encoder.conv_in.weight"])


def test_a_vq_file_with_attention_on_a_level(tmp_path: Path) -> None:
    """As VQ-f8 has it at 32 x 32."""
    state = official([32, 32, 64], [False, False, True], 4, vq=True)
    torch.save({"state_dict": state | {"loss.discriminator.weight": torch.zeros(1)}}, tmp_path / "vq.ckpt")
    network = autoencoder(tmp_path / "vq.ckpt", "VQModel")
    assert network.config.down_block_types == ("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",)
    assert network.config.up_block_types == ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 2
    assert (network.config.num_vq_embeddings, network.config.vq_embed_dim) == (7, 4)
    assert torch.equal(network.decoder.up_blocks[0].resnets[0].conv1.weight, state["decoder.up.2.block.0.conv1.weight"])
    assert torch.equal(
        network.encoder.down_blocks[2].attentions[1].to_q.weight, state["encoder.down.2.attn.1.q.weight"][..., 0, 0]
    )
    z = VQ(str(tmp_path / "vq.ckpt"), downsample=4).encode(torch.zeros(1, 3, 16, 16), 0, torch.arange(1))
    assert z.shape == (1, 4, 4, 4)


def test_the_published_kl_f8_has_its_exact_size() -> None:
    with torch.device("meta"):
        network = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        )  # fmt: skip
        state = official([128, 256, 512, 512], [False] * 4, 4)
    assert sum(p.numel() for p in network.parameters()) == 83_653_863 == sum(v.numel() for v in state.values())
    assert len(state) == 248


def test_what_is_no_autoencoder_or_another_kind_is_refused(tmp_path: Path) -> None:
    x, position = torch.zeros(1, 3, 8, 8), torch.arange(1)
    torch.save({"blocks.0.weight": torch.zeros(1)}, tmp_path / "dit.pt")
    torch.save(official([32, 32], [False] * 2, 4, vq=True), tmp_path / "vq.pt")
    torch.save(official([32, 32], [False] * 2, 4), tmp_path / "kl.pt")
    with pytest.raises(CheckpointError, match="holds no autoencoder of latent diffusion"):
        KL(str(tmp_path / "dit.pt")).encode(x, 0, position)
    with pytest.raises(CheckpointError, match="is a VQ autoencoder; choose first_stage=vq_f4"):
        KL(str(tmp_path / "vq.pt")).encode(x, 0, position)
    with pytest.raises(CheckpointError, match="is a KL autoencoder; choose first_stage=kl_f8"):
        VQ(str(tmp_path / "kl.pt")).encode(x, 0, position)
    with pytest.raises(CheckpointError, match="a folder in diffusers' layout"):
        Tiny(str(tmp_path / "kl.pt")).encode(x, 0, position)
    state = official([32, 32], [False] * 2, 4)
    del state["encoder.mid.block_1.conv1.bias"]
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"of an unknown form: no encoder\.mid_block\.resnets\.0\.conv1\.bias"):
        KL(str(tmp_path / "odd.pt")).encode(x, 0, position)
