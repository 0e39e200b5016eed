"""Attention: with turned queries and keys, with the first attention's values, on a chosen kernel; to a text."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

#: kernels by the names of `Style.attention`
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


class Pinned(nn.Module):
    """Mixed into an attention layer: its kernel is `backend`."""

    backend: SDPBackend

    def forward(self, x: Tensor, *values: list[Tensor]) -> Tensor:
        with sdpa_kernel(self.backend):
            return super().forward(x, *values)


class SelfAttention(Attention):
    """timm's attention, opened for what stands between its projections: queries and keys that are turned, values that
    are mixed with those of the first attention.

    Args:
        mixes: it mixes its values, by a learned weight that starts at 0 (see `options.Options.value_residual`).
    """

    def __init__(self, dim: int, num_heads: int, mixes: bool = False, **options: Any) -> None:
        super().__init__(dim, num_heads=num_heads, **options)
        if mixes:
            self.value_lambda = nn.Parameter(torch.zeros(1))  # FSDP2 shards no tensor without a dimension

    def forward(self, x: Tensor, values: list[Tensor] | None = None) -> Tensor:  # type: ignore[override]  # no mask
        """x [B, N, D] -> [B, N, D]. `values` holds those of the first attention [B, heads, N, head_dim]; an empty list
        is given this one's, which is then the first; None: values are not mixed.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        if values:
            v = v + self.value_lambda.to(v.dtype) * (values[0] - v)
        elif values is not None:
            values.append(v)
        out = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys [B, heads, N, head_dim] as they are compared."""
        return x


class RotaryAttention(SelfAttention):
    """Self-attention whose queries and keys are turned by their place, so that scores depend on distances (RoFormer).

    Each axis of the grid turns an equal share of every head's channels, in pairs.

    Args:
        grid: tokens along each axis, last axis fastest.
        unturned: tokens in front that have no place.

    Raises:
        ValueError: the channels of a head do not split into pairs for each axis.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, ...], unturned: int = 0, **options: Any) -> None:
        super().__init__(dim, num_heads=num_heads, **options)
        pairs, rest = divmod(dim // num_heads, 2 * len(grid))
        if rest:
            raise ValueError(f"positions=rope needs channels of a head, {dim // num_heads}, in {2 * len(grid)}s")
        frequencies = 10000.0 ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)
        axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device="cpu") for n in grid), indexing="ij")
        angles = torch.cat([axis.flatten()[:, None] * frequencies for axis in axes], dim=1)  # [N, head_dim / 2]
        angles = torch.cat([angles.new_zeros(unturned, angles.shape[1]), angles])
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def turn(self, x: Tensor) -> Tensor:
        """Turn [B, heads, N, head_dim]: channel i and i + head_dim/2 are one pair."""
        a, b = x.float().chunk(2, dim=-1)
        return torch.cat([a * self.cos - b * self.sin, a * self.sin + b * self.cos], dim=-1).to(x.dtype)


class CrossAttention(nn.Module):
    """Tokens attend to a text: [R, N, D] and context [B, L, E] -> [R, N, D], R a multiple of B (the frames of a clip).

    Its last projection starts at zero, so that adding it to trained weights changes nothing.
    """

    def __init__(self, dim: int, context_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(context_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool [B, L], True for a token of the text; a text without any contributes nothing."""
        batch = len(context)
        q = self.q(x).reshape(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(context).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is None:
            mask = torch.ones(context.shape[:2], dtype=torch.bool, device=x.device)
        some = mask.any(dim=1, keepdim=True)
        # softmax over no token at all is NaN: such a text attends to its padding, and is then multiplied by 0
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=(mask | ~some)[:, None, None])
        out = out.transpose(1, 2).flatten(2) * some[..., None]
        return self.proj(out.reshape(*x.shape[:-1], -1))
