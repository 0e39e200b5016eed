"""Layers that DiT and its relatives share. Parameter names are those of the official DiT code, so that its weights
load.

Attention, MLP and patch embedding are timm's, as in the official code. `Style` chooses what later transformers do
otherwise; its default is DiT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Attention, Mlp, PatchEmbed, SwiGLU
from timm.layers.activations import GELUTanh
from torch import Tensor, nn

from neural_rdm.backbones.attention import BACKENDS, Pinned, RotaryAttention, SelfAttention
from neural_rdm.core.arguments import Natural, checked

__all__ = [
    "Blocks",
    "FinalLayer",
    "Float32Linear",
    "LabelEmbedder",
    "PatchEmbed",
    "Registers",
    "Shift",
    "Style",
    "TimestepEmbedder",
    "frequencies",
    "linear_layers",
    "modulate",
    "repeated",
    "sincos_1d",
    "sincos_2d",
    "unpatchify",
    "waves",
]


Block = TypeVar("Block", bound=nn.Module)


class Blocks(nn.ModuleList, Generic[Block]):
    """A list of blocks of one kind, in run order."""

    def __iter__(self) -> Iterator[Block]:
        children: Iterator[Any] = super().__iter__()
        return children

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """(name, block): the names are numbers, with gaps where a network leaves blocks out."""
        children: Iterator[Any] = super().named_children()
        return children


def linear_layers(module: nn.Module) -> Iterator[nn.Linear]:
    """Every linear layer of a module, itself included."""
    return (layer for layer in module.modules() if isinstance(layer, nn.Linear))


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under any autocast: an island in mixed precision, for what is small, and
    whose rounding the whole network would share (the timestep's embedding, modulation).
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`x * (1 + scale) + shift`; x [B, N, D], shift and scale [B, D]."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def repeated(x: Tensor, times: int) -> Tensor:
    """`x` [B, D] with every row repeated, [B * times, D]: one for each frame or each place."""
    return x if times == 1 else x.repeat_interleave(times, dim=0)


Norm = Literal["layer", "rms"]
MLP = Literal["gelu", "swiglu"]
Positions = Literal["sincos", "rope"]
Kernel = Literal["auto", "math", "flash", "efficient", "cudnn"]


@checked()
@dataclass(frozen=True)
class Style:
    """What later transformers do otherwise than DiT, each off by default.

    Args:
        qk_norm: normalise queries and keys per head (ViT-22B).
        norm: `layer` or `rms` (no mean is removed, so a scalar beta is no longer invisible).
        mlp: `gelu`, or `swiglu` with 2/3 of the width, which keeps the number of parameters (LightningDiT).
        positions: `sincos` (a fixed table added once) or `rope` (queries and keys turned in every block; no table).
        register_tokens: learned tokens beside those of the image (Darcet et al. 2024).
        attention: kernel of scaled dot-product attention: `auto` (torch's choice), `math`, `flash`, `efficient`,
            `cudnn`.

    Raises:
        ValueError: an unknown value, naming the choices.
    """

    qk_norm: bool = False
    norm: Norm = "layer"
    mlp: MLP = "gelu"
    positions: Positions = "sincos"
    register_tokens: Natural = 0
    attention: Kernel = "auto"

    def norm_layer(self, dim: int) -> nn.Module:
        """The norm in front of a branch; adaLN supplies scale and shift."""
        kind = nn.LayerNorm if self.norm == "layer" else nn.RMSNorm
        return kind(dim, elementwise_affine=False, eps=1e-6)

    def attention_layer(self, dim: int, num_heads: int, grid: tuple[int, ...], mixes: bool | None = None) -> Attention:
        """Self-attention over the tokens of a `grid` ((side, side) or (frames,)) behind the register tokens.

        Args:
            mixes: None without value residual; with it, whether this one mixes its values, or is the first.
        """
        kind: type[Attention] = Attention if mixes is None else SelfAttention
        if self.positions == "rope":
            kind = RotaryAttention
        if self.attention != "auto":
            kind = type(f"{kind.__name__}_{self.attention}", (Pinned, kind), {"backend": BACKENDS[self.attention]})
        options: dict[str, Any] = {"qkv_bias": True} | ({} if mixes is None else {"mixes": mixes})
        if self.qk_norm:
            options |= {"qk_norm": True, "norm_layer": nn.LayerNorm if self.norm == "layer" else nn.RMSNorm}
        if self.positions == "rope":
            options |= {"grid": grid, "unturned": self.register_tokens if len(grid) == 2 else 0}
        return kind(dim, num_heads=num_heads, **options)

    def mlp_layer(self, dim: int, hidden: int) -> Mlp | SwiGLU:
        """The MLP; its last layer is called fc2 in either form."""
        if self.mlp == "swiglu":
            return SwiGLU(dim, int(hidden * 2 / 3), align_to=8)
        return Mlp(dim, hidden, act_layer=GELUTanh)


class Registers(nn.Module):
    """Tokens [B, N, D] -> [B, R + N, D]: learned tokens in front; the network cuts them off before its last layer."""

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.zeros(1, count, dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tokens.expand(len(x), -1, -1).to(x.dtype), x], dim=1)


class Shift(nn.Module):
    """`x + bias`: what a block keeps of its own modulation where the network shares one (adaLN-single, PixArt)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


def frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """The geometric frequencies of a timestep's embedding of width `dim`, from 1 down: float32 [dim / 2].

    Their exponent divides by `dim / 2` (diffusers' `downscale_freq_shift=0`), as in the official DiT, ADM and U-ViT.
    """
    half = dim // 2
    return torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=device) / half)


def waves(t: Tensor, frequencies: Tensor) -> Tensor:
    """Timesteps [B], whole or not -> [B, 2 * len(frequencies)]: cosines, then sines."""
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """Timesteps [B] -> embedding [B, D]: cosines and sines, then a two-layer MLP."""

    frequencies: Tensor

    def __init__(self, hidden_size: int, frequency_embedding_size: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Float32Linear(frequency_embedding_size, hidden_size), nn.SiLU(), Float32Linear(hidden_size, hidden_size)
        )
        self.register_buffer("frequencies", frequencies(frequency_embedding_size), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(waves(t, self.frequencies).to(next(self.mlp.parameters()).dtype))


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
        self.adaLN_modulation = nn.Sequential(nn.Identity(), Float32Linear(hidden_size, 2 * hidden_size))

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
