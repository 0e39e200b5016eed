"""Fixed position tables of one size fitted to another (`pretrained.reinit=[pos_embed]`)."""

from __future__ import annotations

import math

from torch import Tensor, nn


def fitted(table: Tensor, own: Tensor) -> Tensor | None:
    """A position table [1, T, D] interpolated to the size of `own`, or None where its width is another's."""
    if table.shape == own.shape:
        return table
    if table.ndim != 3 or table.shape[-1] != own.shape[-1]:
        return None
    old, new = table.shape[1], own.shape[1]
    side, new_side = math.isqrt(old), math.isqrt(new)
    channels = table.float().transpose(1, 2)
    if side**2 == old and new_side**2 == new and own.shape[1] != 1:
        grid = channels.unflatten(2, (side, side))
        return nn.functional.interpolate(grid, (new_side, new_side), mode="bicubic").flatten(2).transpose(1, 2)
    return nn.functional.interpolate(channels, new, mode="linear").transpose(1, 2)
