"""The oracle of ancestral sampling: a process of fewer steps, as the official DiT code builds it for its samplers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from neural_rdm.core.noise import even
from neural_rdm.diffusion.process import DDPM


def spaced(process: DDPM, steps: int) -> tuple[DDPM, Tensor]:
    """The process that visits `steps` evenly spread timesteps with the same alpha_bar there, and these timesteps."""
    timesteps = torch.tensor(even(process.num_timesteps, steps))
    bar = process.alphas_cumprod[timesteps]
    fewer = copy.copy(process)
    fewer._fill(1 - bar / torch.cat([bar.new_ones(1), bar[:-1]]))
    return fewer, timesteps
