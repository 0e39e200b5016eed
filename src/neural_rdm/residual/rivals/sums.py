"""`sum_s w_s x_s`, which several rules write."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from neural_rdm.residual.unit import add_scaled


def weighted_sum(weights: Iterable[Tensor], tensors: Iterable[Tensor], onto: Tensor | None = None) -> Tensor:
    """The sum of tensors [B, ..., D], each times its weight: a number, or what broadcasts to it.

    Args:
        onto: [B, ..., D], which the sum is added to.
    """
    pairs = zip(weights, tensors, strict=True)
    weight, tensor = next(pairs)
    out = weight * tensor if onto is None else add_scaled(onto, weight, tensor)
    for weight, tensor in pairs:
        out.addcmul_(weight, tensor)  # in place: backward keeps weights and tensors, but no partial sum
    return out
