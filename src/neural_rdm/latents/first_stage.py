"""First stages: frozen networks that turn pixels into latents and back. They are never part of a training checkpoint.

A first stage is not an `nn.Module`, so that a LightningModule that holds one neither saves, nor averages, nor wraps it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neural_rdm.core import seeding
from neural_rdm.core.errors import CheckpointError


class Identity:
    """No first stage: the network works on the data as they are."""

    downsample = 1

    def encode(self, x: Tensor, seed: int, positions: Tensor) -> Tensor:
        """Return `x` unchanged."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return `z` unchanged."""
        return z


class KL:
    """A KL autoencoder of diffusers (`AutoencoderKL`), as DiT, SiT, Latte and LDM use it.

    Args:
        path: a hub name or a local folder written by `save_pretrained`.
        subfolder: the folder inside `path` that holds the autoencoder, or None.
        scale: latents are `(sample - shift) * scale`; 0.18215 for the Stable Diffusion autoencoder.
        shift: see `scale`.
        downsample: pixels per latent cell along a side.
        channels: channels of the latent.
    """

    def __init__(
        self,
        path: str,
        subfolder: str | None = None,
        scale: float = 0.18215,
        shift: float = 0.0,
        downsample: int = 8,
        channels: int = 4,
    ) -> None:
        self.path, self.subfolder, self.scale, self.shift = path, subfolder, scale, shift
        self.downsample, self.channels = downsample, channels
        self._vae: Any = None

    def _on(self, device: torch.device) -> Any:
        """The autoencoder, loaded at its first use and moved to `device`."""
        if self._vae is None:
            from diffusers import AutoencoderKL

            try:
                vae = AutoencoderKL.from_pretrained(self.path, subfolder=self.subfolder, use_safetensors=None)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"first_stage.path={self.path}: cannot load the autoencoder ({str(error).splitlines()[0]}). "
                    "Pass a local folder in diffusers' layout with first_stage.path=DIR, or data=synthetic to train "
                    "without pictures."
                ) from error
            self._vae = vae.eval().requires_grad_(False)
        return self._vae.to(device)

    @torch.no_grad()
    def encode(self, x: Tensor, seed: int, positions: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in [-1, 1] -> a posterior sample, scaled: [B, channels, H/downsample, W/downsample].

        Clips [B, F, 3, H, W] are encoded frame by frame, one clip at a time, to bound memory. The sample's noise is
        keyed by (seed, position), so that it is the same on any number of ranks.
        """
        vae = self._on(x.device)
        posteriors = [vae.encode(part).latent_dist for part in (x if x.ndim == 5 else [x])]
        mean, std = (torch.stack([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))
        mean, std = (mean, std) if x.ndim == 5 else (mean[0], std[0])
        noise = seeding.normal(seed, "posterior", positions, mean.shape[1:], x.device)
        return (mean + std * noise - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents [B, channels, h, w] (or [B, F, ...]) -> pixels [B, 3, H, W], about [-1, 1]; one image or frame
        at a time, to bound memory.
        """
        vae, flat = self._on(z.device), z.reshape(-1, *z.shape[-3:])
        pixels = torch.cat([vae.decode(one / self.scale + self.shift).sample for one in flat.split(1)])
        return pixels.reshape(*z.shape[:-3], *pixels.shape[-3:])
