"""Fixed position tables of one size fitted to another (`pretrained.reinit=[pos_embed]`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neural_rdm.backbones.uvit import UViT

#: what `reinit` fits to another size instead of dropping it
TABLES = ("pos_embed", "temp_embed")


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


def uvit_fitted(table: Tensor, own: Tensor, found: Mapping[str, Tensor], model: UViT) -> Tensor | None:
    """The same of a U-ViT, whose table has rows for the tokens in front of the patches as well: the label's (if there
    is one), the timestep's, the text's. Those stay as they are; a label's that the file lacks is the network's own.

    Args:
        found: the whole file, which tells whether it has labels.
    """
    labelled, wants = "label_emb.weight" in found, hasattr(model, "label_emb")
    kept = model.extras - wants  # of the timestep and the text
    front = [own[:, :1]] if wants and not labelled else [table[:, :1]] if wants else []
    patches = fitted(table[:, labelled + kept :], own[:, model.extras :])
    if patches is None or table.shape[-1] != own.shape[-1] or table.shape[1] <= labelled + kept:
        return None
    return torch.cat([*front, table[:, labelled : labelled + kept], patches.to(table.dtype)], dim=1)
