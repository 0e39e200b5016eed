"""Layers that DiT and its relatives share. Parameter names are those of the official DiT code, so that its weights
load.

Attention, MLP and patch embedding are timm's, as in the official code.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Attention, Mlp, PatchEmbed
from torch import Tensor, nn

__all__ = [
    "Attention",
    "FinalLayer",
    "LabelEmbedder",
    "Mlp",
    "PatchEmbed",
    "TimestepEmbedder",
    "modulate",
    "sincos_2d",
    "unpatchify",
]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`; x [B, N, D], shift and scale [B, D]."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


class TimestepEmbedder(nn.Module):
    """Timesteps [B] -> embedding [B, D]: cosines and sines of geometric frequencies, then a two-layer MLP.

    The frequency exponent divides by `half` (diffusers' `downscale_freq_shift=0`), as in the official DiT.
    """

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256, max_period: float = 10000.0) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        half = frequency_embedding_size // 2
        frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies[None]
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class labels [B] in [0, num_classes] -> [B, D]; the last row, `num_classes`, is the null class of guidance.

    Without label dropout (`has_null=False`) there is no such row. The dropout itself is drawn once per sample outside
    the network, so that it is keyed and the same for every embedder.
    """

    def __init__(self, num_classes: int, hidden_size: int, has_null: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding_table = nn.Embedding(num_classes + has_null, hidden_size)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class FinalLayer(nn.Module):
    """Tokens [B, N, D] and c = SiLU(condition) [B, D] -> patches [B, N, patch_size^2 * out_channels]."""

    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        # Index 1 keeps the official key; the SiLU before it is applied once, by the network.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def unpatchify(x: Tensor, patch_size: int, channels: int) -> Tensor:
    """Patches [B, N, p*p*C] of a square image -> [B, C, H, W], H = W = p * sqrt(N)."""
    side = math.isqrt(x.shape[1])
    x = x.reshape(x.shape[0], side, side, patch_size, patch_size, channels)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(x.shape[0], channels, side * patch_size, side * patch_size)


def sincos_1d(dim: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions [M] -> table [M, dim], sines in the first half and cosines in the second, in float64."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = np.outer(positions.reshape(-1), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(dim: int, side: int) -> Tensor:
    """The fixed position table of DiT [side*side, dim]: the first half of the channels encodes the column, the second
    the row.
    """
    # The official code builds the grid in float32 and the table in float64; both leave integer positions exact.
    columns, rows = np.meshgrid(np.arange(side, dtype=np.float64), np.arange(side, dtype=np.float64))
    table = np.concatenate([sincos_1d(dim // 2, columns), sincos_1d(dim // 2, rows)], axis=1)
    return torch.from_numpy(table).float()
