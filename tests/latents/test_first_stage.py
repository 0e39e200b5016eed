"""First stages on a small autoencoder that diffusers writes and reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_rdm.core import seeding
from neural_rdm.core.errors import CheckpointError
from neural_rdm.latents.first_stage import KL, VQ, Autoencoder, Identity, Tiny, measured_scale
from tests.helpers import shared


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


def tiny_vq(folder: Path) -> Path:
    """A VQModel with random weights: 2x smaller, 3 channels."""
    from diffusers import VQModel

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = VQModel(**blocks, block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4, num_vq_embeddings=5)
    nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder)
    return folder


def test_a_vq_autoencoder_quantises_when_it_decodes(tmp_path: Path) -> None:
    from diffusers import VQModel

    stage = VQ(str(tiny_vq(tmp_path)), downsample=2, channels=3)
    source = VQModel.from_pretrained(tmp_path).eval()
    x = torch.rand(2, 3, 8, 8) * 2 - 1
    z = stage.encode(x, 0, torch.arange(2))
    with torch.no_grad():
        torch.testing.assert_close(z, source.quant_conv(source.encoder(x)))
        codes = source.quantize.embedding.weight
        near = codes[torch.cdist(z.movedim(1, -1).flatten(0, 2), codes).argmin(1)]
        quantised = near.view(2, 4, 4, 3).movedim(-1, 1)
        expected = source.decoder(source.post_quant_conv(quantised))
    torch.testing.assert_close(stage.decode(z), expected)
    assert stage.moments(x)[1] is None


def test_a_tiny_autoencoder(tmp_path: Path) -> None:
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    options: dict[str, Any] = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    counts = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    source = AutoencoderTiny(**options, **counts, latent_channels=4).eval()
    source.save_pretrained(tmp_path)
    stage = Tiny(str(tmp_path), scale=2.0, downsample=2)
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    z = stage.encode(x, 0, torch.arange(3))
    with torch.no_grad():
        torch.testing.assert_close(z, 2 * source.encode(x).latents)
        torch.testing.assert_close(stage.decode(z), source.decode(z / 2).sample)


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_clips_go_through_frame_by_frame_whatever_the_chunk(chunk: int, tmp_path: Path) -> None:
    stage = KL(str(tiny_autoencoder(tmp_path)), scale=0.5, downsample=2, chunk=chunk)
    x, positions = torch.rand(2, 3, 3, 8, 8) * 2 - 1, torch.tensor([5, 6])
    z = stage.encode(x, 11, positions)
    assert z.shape == (2, 3, 4, 4, 4)
    mean, std = stage.moments(x.flatten(0, 1))
    noise = seeding.normal(11, "posterior", positions, (3, 4, 4, 4))
    expected = (mean.view_as(z) + std.view_as(z) * noise) * 0.5
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    pixels = stage.decode(z)
    torch.testing.assert_close(pixels[1, 2], stage.decode(z[1, 2][None])[0], atol=1e-5, rtol=1e-5)


def test_it_computes_in_its_own_dtype_whatever_surrounds_it(tmp_path: Path) -> None:
    folder = str(tiny_autoencoder(tmp_path))
    x, positions = torch.rand(2, 3, 8, 8) * 2 - 1, torch.arange(2)
    full, half, small = (KL(folder, downsample=2, dtype=d) for d in ("float32", "bfloat16", "float16"))
    z = full.encode(x, 0, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(full.encode(x, 0, positions), z, rtol=0, atol=0)
        assert full.decode(z.bfloat16()).dtype == torch.float32
    rounded = half.encode(x, 0, positions)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, z)
    torch.testing.assert_close(rounded, z, rtol=0.1, atol=0.1)
    torch.testing.assert_close(small.encode(x, 0, positions), z, rtol=0.02, atol=0.02)
    assert small.decode(z).isfinite().all()
    with pytest.raises(ValueError, match="dtype=half is not one of float32"):
        KL(folder, dtype="half")


def test_loading_says_nothing_that_means_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = KL(str(tiny_autoencoder(tmp_path)), downsample=2, dtype="bfloat16")
    capfd.readouterr()
    assert stage.moments(torch.zeros(1, 3, 8, 8))[0].dtype == torch.float32
    out, err = capfd.readouterr()
    assert "float32" not in out + err


def test_large_images_are_tiled(tmp_path: Path) -> None:
    folder = str(tiny_autoencoder(tmp_path))
    whole, tiled = KL(folder, downsample=2), KL(folder, downsample=2, tile=True)
    vae = tiled.network(torch.device("cpu"))
    vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z, other = whole.encode(x, 0, torch.arange(1)), tiled.encode(x, 0, torch.arange(1))
    assert other.shape == z.shape
    assert not torch.equal(other, z)
    assert tiled.decode(z).shape == x.shape
    for kind in (VQ, Tiny):
        with pytest.raises(ValueError, match="only a KL autoencoder has tiles"):
            kind(folder, tile=True)


def test_the_scale_can_be_measured(tmp_path: Path) -> None:
    stage = KL(str(tiny_autoencoder(tmp_path)), scale=None, downsample=2)
    x, positions = torch.rand(8, 3, 8, 8) * 2 - 1, torch.arange(8)
    with pytest.raises(CheckpointError, match=r"first_stage\.scale is to be measured"):
        stage.decode(torch.zeros(1, 4, 4, 4))
    stage.scale = measured_scale(stage, x, 3, positions)
    assert abs(stage.encode(x, 3, positions).std().item() - 1) < 1e-5
    with pytest.raises(CheckpointError, match="do not vary"):
        measured_scale(_Constant("nowhere"), x, 3, positions)


class _Constant(Autoencoder):
    def moments(self, x: Tensor) -> tuple[Tensor, None]:
        return torch.zeros(len(x), 4, 1, 1), None


def test_what_does_not_fit_says_what_to_pass(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(CheckpointError, match=r"4 channels and 2 pixels a cell; pass first_stage\.channels=4 and"):
        KL(str(tiny_autoencoder(tmp_path / "kl"))).encode(x, 0, torch.zeros(1))
    with pytest.raises(CheckpointError, match=r"pass first_stage\.channels=3 and first_stage\.downsample=2"):
        VQ(str(tiny_vq(tmp_path / "vq"))).encode(x, 0, torch.zeros(1))
    for stage in (
        Tiny(str(tmp_path / "kl"), downsample=8),
        VQ(str(tmp_path / "kl"), downsample=2),
        KL(str(tmp_path / "vq"), downsample=2, channels=3),
    ):
        with pytest.raises(CheckpointError, match=r"is no Auto|cannot load the autoencoder"):
            stage.encode(x, 0, torch.zeros(1))


class TinyBlock(nn.Module):
    """A residual block of the tiny autoencoder; in the middle with a normalised path in front."""

    def __init__(self, inner: int, out: int, pool: bool) -> None:
        super().__init__()
        if pool:
            narrow: list[nn.Module] = [nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.GroupNorm(4, 4 * inner)]
            self.pool = nn.Sequential(*narrow, nn.ReLU(), nn.Conv2d(4 * inner, inner, 1, bias=False))
        layers: list[nn.Module] = [nn.Conv2d(inner, out, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(out, out, 3, padding=1), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)]
        self.conv = nn.Sequential(*layers)
        self.skip = nn.Conv2d(inner, out, 1, bias=False) if inner != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + self.skip(x))


def _layers(state: dict[str, Tensor], decoder: bool) -> nn.Sequential:
    """The network of a tiny autoencoder's half, from the names and shapes of its weights."""
    numbers = sorted({int(k.split(".")[0]) for k in state})
    layers: list[nn.Module] = []
    for number in range(numbers[-1] + 1):
        names = {k.split(".", 1)[1]: v for k, v in state.items() if k.startswith(f"{number}.")}
        if "weight" in names:
            out, inner, side, _ = names["weight"].shape
            # the half that goes down strides in its convolutions without a bias; the other one upsamples before them
            stride = 2 if not decoder and "bias" not in names else 1
            layers.append(nn.Conv2d(inner, out, side, stride, side // 2, bias="bias" in names))
        elif names:
            out, inner = names["conv.0.weight"].shape[:2]
            layers.append(TinyBlock(inner, out, "pool.0.weight" in names))
        elif number == 0:
            layers.append(nn.Identity())  # the clamp in front of the decoder
        elif decoder and number + 1 in numbers and f"{number + 1}.bias" not in state and number > 2:
            layers.append(nn.Upsample(scale_factor=2))
        else:
            layers.append(nn.ReLU())
    network = nn.Sequential(*layers)
    network.load_state_dict(state)
    return network.eval()


class TAEF2:
    """The tiny autoencoder of FLUX.2 behind the interface of diffusers' autoencoders."""

    def __init__(self, folder: Path) -> None:
        halves = [torch.load(folder / f"taef2_{half}.pth", weights_only=True) for half in ("encoder", "decoder")]
        self.encoder, self.decoder = (
            _layers({k: v.float() for k, v in half.items()}, decoder=i == 1) for i, half in enumerate(halves)
        )

    def encode(self, x: Tensor) -> Any:
        return type("Output", (), {"latents": self.encoder((x + 1) / 2)})

    def decode(self, z: Tensor) -> Any:
        z = 3 * torch.tanh(z / 3)
        return type("Output", (), {"sample": self.decoder(z) * 2 - 1})

    def to(self, device: torch.device) -> TAEF2:
        return self


def test_real_weights_bring_real_images_back() -> None:
    """Twelve ImageNet images at 256 pixels, smooth ones and fine textures: measured 20 to 38 dB, 30.1 on average; the
    manifest of these weights says 29.8 to 33.7 for three of its own.
    """
    folder = shared("data/weights/taef2")
    images = sorted(shared("data/imagenet/sample1000_256").glob("*/*.JPEG"))[:12]
    stage = Tiny("taef2", channels=32)
    stage._vae = TAEF2(folder)
    from neural_rdm.media.images import adm_crop, read_rgb

    x = torch.stack([torch.from_numpy(adm_crop(read_rgb(str(p)), 256).copy()) for p in images])
    x = x.movedim(-1, 1).float() / 127.5 - 1
    z = stage.encode(x, 0, torch.arange(12))
    assert z.shape == (12, 32, 32, 32)
    assert 0.5 < z.std() < 1.5
    error = (stage.decode(z).clamp(-1, 1) - x).square().flatten(1).mean(1) / 4
    decibel = -10 * error.log10()
    assert decibel.mean() > 29.8
    assert decibel.min() > 19
