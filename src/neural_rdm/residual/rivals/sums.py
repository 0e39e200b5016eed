"""`sum_s w_s x_s`, which several rules write."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def weighted_sum(weights: Iterable[Tensor], tensors: Iterable[Tensor]) -> Tensor:
    """The sum of tensors [B, ..., D], each times its weight: a number, or what broadcasts to it."""
    (weight, tensor), *rest = zip(weights, tensors, strict=True)
    out = weight * tensor
    for weight, tensor in rest:
        out = torch.addcmul(out, weight, tensor)
    return out
