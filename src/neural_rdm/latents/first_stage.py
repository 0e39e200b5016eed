"""First stages: frozen networks that turn pixels into latents and back. They are never part of a training checkpoint.

A first stage is not an `nn.Module`, so that a LightningModule that holds one neither saves, nor averages, nor wraps it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_rdm.core import seeding
from neural_rdm.core.arguments import Count, Positive, checked
from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.core.hub import from_hub
from neural_rdm.latents import constraints

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Identity:
    """No first stage: the network works on the data as they are."""

    downsample = 1

    def encode(self, x: Tensor, seed: int, positions: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return `z` unchanged."""
        return z


@checked(constraints.has_tiles)
class Autoencoder:
    """What `KL`, `VQ` and `Tiny` share: an autoencoder of diffusers, loaded at its first use.

    Args:
        path: a hub name, a local folder written by `save_pretrained`, or an official file (`.ckpt`, `.pt`,
            `.safetensors`) of latent diffusion: an autoencoder's own, or a diffusion model's that holds one.
        subfolder: the folder inside `path` that holds the autoencoder, or None.
        scale: latents are `(latent - shift) * scale`; 0.18215 for the Stable Diffusion autoencoder. None: 1 over the
            standard deviation of the latents of the first training batch (LDM's `scale_by_std`), measured once when a
            run begins, on 64 samples at most, and written into its config.yaml.
        shift: see `scale`.
        downsample: pixels per latent cell along a side.
        channels: channels of the latent.
        dtype: what the autoencoder computes in, `float32`, `bfloat16` or `float16`, whatever surrounds it.
        tile: cut large images into overlapping tiles, to bound memory (`KL` only: diffusers has none for the others, or
            for four channels alone).
        chunk: images, or frames of clips, that go through at a time.

    Raises:
        ValueError: an unknown dtype, or tiles where diffusers has none.
    """

    #: the class of diffusers
    kind = ""
    tiles = False

    def __init__(
        self,
        path: str,
        subfolder: str | None = None,
        scale: Positive | None = 1.0,
        shift: float = 0.0,
        downsample: Count = 8,
        channels: Count = 4,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        tile: bool = False,
        chunk: Count = 16,
    ) -> None:
        self.path, self.subfolder, self.scale, self.shift = path, subfolder, scale, shift
        self.downsample, self.channels = downsample, channels
        self.dtype, self.tile, self.chunk = DTYPES[dtype], tile, chunk
        #: whether what it is given to encode are moments that were made before (see `encode.py`), no pixels
        self.reads_moments = False
        self._vae: Any = None
        self._fingerprint: str | None = None

    def _encoded(self, vae: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and standard deviation of the latents, or the latents themselves and None where they are not random."""
        return vae.encode(x).latents, None

    def _latent(self, vae: Any) -> tuple[int, int]:
        """(channels, pixels per cell) of a loaded autoencoder."""
        return vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, x: Tensor, seed: int, positions: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> latents, scaled, float32 [B, channels, H/downsample, W/downsample].

        Clips [B, F, 3, H, W] are encoded frame by frame. A posterior is sampled with noise that is keyed by (seed,
        position), so that it is the same on any number of ranks.
        """
        return (self.drawn(x, seed, positions) - self.shift) * (1.0 if self.scale is None else self.scale)

    def drawn(self, x: Tensor, seed: int, positions: Tensor) -> Tensor:
        """The latents of `encode` before shift and scale."""
        mean, std = self.moments(x)
        if std is None:
            return mean
        return mean + std * seeding.normal(seed, "posterior", positions, mean.shape[1:], x.device)

    @torch.no_grad()
    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pixels as in `encode` -> mean and standard deviation of the unscaled posterior, float32; None as the second
        where the latents are not random.

        With `reads_moments`, x are these two already, one behind the other on the axis of channels, in any dtype.
        """
        if self.reads_moments:
            parts = x.float().split(self.channels, dim=-3)
            return parts[0], parts[1] if len(parts) > 1 else None
        vae = self.network(x.device)
        with torch.autocast(x.device.type, enabled=False):  # it computes in its own dtype
            encoded = [self._encoded(vae, part) for part in self._parts(x)]
        mean = torch.cat([m.float() for m, _ in encoded]).reshape(*x.shape[:-3], *encoded[0][0].shape[-3:])
        deviations = [s.float() for _, s in encoded if s is not None]
        return mean, torch.cat(deviations).reshape(mean.shape) if deviations else None

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents [B, channels, h, w] (or [B, F, ...]) -> float32 pixels [B, 3, H, W], about [-1, 1].

        Raises:
            CheckpointError: the scale is not known yet.
        """
        if self.scale is None:
            raise CheckpointError("first_stage.scale is to be measured by training; this run has no number for it")
        vae, scaled = self.network(z.device), z.float() / self.scale + self.shift
        with torch.autocast(z.device.type, enabled=False):
            pixels = torch.cat([vae.decode(part).sample.float() for part in self._parts(scaled)])
        return pixels.reshape(*z.shape[:-3], *pixels.shape[-3:])

    def _parts(self, x: Tensor) -> list[Tensor]:
        return list(x.reshape(-1, *x.shape[-3:]).to(self.dtype).split(self.chunk))

    def fingerprint(self) -> str:
        """sha256 of the encoder's weights (float32): what the latents depend on, whatever decodes them.

        Raises:
            CheckpointError: the autoencoder cannot be loaded.
        """
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self._load().state_dict().items()):
                if name.startswith(("encoder.", "quant_conv.")):
                    digest.update(f"{name}\0{list(tensor.shape)}\0".encode())
                    digest.update(tensor.float().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def network(self, device: torch.device) -> Any:
        """The autoencoder, loaded at its first use and moved to `device`."""
        if self._vae is None:
            vae = self._load()
            found = self._latent(vae)
            if found != (self.channels, self.downsample):
                raise CheckpointError(
                    f"{self.path} has {found[0]} channels and {found[1]} pixels a cell; pass first_stage.channels="
                    f"{found[0]} and first_stage.downsample={found[1]}"
                )
            if self.tile:
                vae.enable_tiling()
            self._vae = nn.Module.to(vae.eval().requires_grad_(False), self.dtype)  # diffusers' own warns of nothing
        return self._vae.to(device)

    def _load(self) -> Any:
        import diffusers

        if Path(self.path).is_file():
            from neural_rdm.latents.official import autoencoder

            return autoencoder(self.path, self.kind)
        try:
            vae, info = from_hub(
                self.path,
                lambda local: getattr(diffusers, self.kind).from_pretrained(
                    self.path,
                    subfolder=self.subfolder,
                    low_cpu_mem_usage=False,
                    output_loading_info=True,
                    local_files_only=local,
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"first_stage.path={self.path}: cannot load the autoencoder ({first_line(error)}). "
                "Pass a local folder in diffusers' layout or an official file with first_stage.path=..., or "
                "data=synthetic to train without pictures."
            ) from error
        if info["missing_keys"]:  # diffusers would go on with random numbers
            first = sorted(info["missing_keys"])[0]
            raise CheckpointError(
                f"first_stage.path={self.path} is no {self.kind} (it lacks {first}); choose its own first_stage"
            )
        return vae


class KL(Autoencoder):
    """A KL autoencoder (`AutoencoderKL`), as DiT, SiT, Latte, U-ViT and LDM use it: its posterior is sampled."""

    kind = "AutoencoderKL"
    tiles = True

    def _encoded(self, vae: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
        posterior = vae.encode(x).latent_dist
        return posterior.mean, posterior.std


class VQ(Autoencoder):
    """A VQ autoencoder (`VQModel`), as LDM-4 and LDM-8 use it: latents are taken before quantisation, which belongs to
    decoding.
    """

    kind = "VQModel"

    def _latent(self, vae: Any) -> tuple[int, int]:
        return vae.config.vq_embed_dim or vae.config.latent_channels, 2 ** (len(vae.config.block_out_channels) - 1)


class Tiny(Autoencoder):
    """A distilled tiny autoencoder (`AutoencoderTiny`, TAESD): fast, for previews and small machines."""

    kind = "AutoencoderTiny"

    def _latent(self, vae: Any) -> tuple[int, int]:
        return vae.config.latent_channels, 2 ** (len(vae.config.encoder_block_out_channels) - 1)


def measured_scale(stage: Autoencoder, x: Tensor, seed: int, positions: Tensor) -> float:
    """1 over the standard deviation of the unscaled latents of pixels x: LDM's `scale_by_std`.

    Args:
        x, positions: of the first global training batch, so that every rank measures the same number.

    Raises:
        CheckpointError: latents that do not vary.
    """
    deviation = stage.drawn(x, seed, positions).double().std().item()
    if not deviation > 0:
        raise CheckpointError(f"first_stage.scale=null: the latents of {stage.path} do not vary; pass a number")
    return 1 / deviation
