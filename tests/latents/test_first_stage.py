"""First stages on a small autoencoder that diffusers writes and reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neural_rdm.core import seeding
from neural_rdm.core.errors import CheckpointError
from neural_rdm.latents.first_stage import KL, Identity


def tiny_autoencoder(folder: Path) -> Path:
    """An AutoencoderKL with random weights: 2x smaller, 4 channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(**blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4).save_pretrained(folder)
    return folder


def test_identity_changes_nothing() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert Identity().encode(x, 0, torch.arange(2)) is x
    assert Identity().decode(x) is x


def test_encode_is_the_scaled_posterior_sample_keyed_by_position(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    stage = KL(str(tiny_autoencoder(tmp_path)), scale=0.5, shift=0.25, downsample=2)
    x, positions = torch.rand(3, 3, 8, 8) * 2 - 1, torch.tensor([5, 6, 7])
    z = stage.encode(x, 11, positions)
    posterior = AutoencoderKL.from_pretrained(tmp_path).encode(x).latent_dist
    noise = seeding.normal(11, "posterior", positions, (4, 4, 4))
    torch.testing.assert_close(z, ((posterior.mean + posterior.std * noise) - 0.25) * 0.5)
    torch.testing.assert_close(stage.encode(x[1:], 11, positions[1:]), z[1:], atol=1e-5, rtol=1e-5)
    assert not torch.equal(stage.encode(x, 11, positions + 9), z)
    assert not z.requires_grad


def test_decode_undoes_scale_and_shift(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    stage = KL(str(tiny_autoencoder(tmp_path)), scale=0.5, shift=0.25, downsample=2)
    z = torch.randn(3, 4, 4, 4)
    expected = AutoencoderKL.from_pretrained(tmp_path).decode(z / 0.5 + 0.25).sample
    torch.testing.assert_close(stage.decode(z), expected, atol=1e-5, rtol=1e-5)


def test_a_missing_autoencoder_is_one_clear_message(tmp_path: Path) -> None:
    stage = KL(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"first_stage\.path"):
        stage.encode(torch.zeros(1, 3, 8, 8), 0, torch.zeros(1, dtype=torch.int64))
