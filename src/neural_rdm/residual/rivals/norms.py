"""`weight * x / rms(x)`, which `sandwich` and `mvsplit` write."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, channel_axis: int, weight: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """`weight * x / sqrt(mean of squares over channels + eps)`; channels [D] on the axis -1 or 1."""
    if channel_axis == -1:
        return _RMSNorm.apply(x, weight, eps)
    return _RMSNorm.apply(x.movedim(1, -1), weight, eps).movedim(-1, 1)


class _RMSNorm(torch.autograd.Function):
    """By hand, since autograd's goes through x ten times on a CPU. It keeps x and one number a token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square() / x.shape[-1]
        inverse = (square + eps).rsqrt()
        ctx.save_for_backward(x, weight, inverse)
        out = x * inverse
        return (out if weight is None else out.mul_(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        grad = grad.to(inverse.dtype)
        normed = (grad * x).mul_(inverse)  # times the gradient, entry by entry
        with torch.autocast(x.device.type, enabled=False):  # which would round the products
            along = normed.sum(dim=-1) if weight is None else normed @ weight.to(normed.dtype)
        to_x = grad * inverse if weight is None else (grad * weight).mul_(inverse)
        to_x.addcmul_(x, along.unsqueeze(-1) * inverse.square() / x.shape[-1], value=-1)
        to_weight = None if weight is None else normed.sum(dim=tuple(range(x.ndim - 1))).to(weight.dtype)
        return to_x.to(x.dtype), to_weight, None
