"""Class labels and their dropout, which teaches one network the conditional and the unconditional distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from neural_rdm.core.seeding import uniform


def dropout_mask(seed: int, positions: Sequence[int] | Tensor, p: float) -> Tensor:
    """Which samples lose their condition: bool [B] on the CPU, True with probability p.

    A function of (seed, position) alone. Draw it once per sample and hand it to everything that conditions the network:
    two embedders that drop independently would leak the label.

    Args:
        positions: the samples' ordinal numbers in the whole run [B].
        p: the dropout rate in [0, 1]; DiT and Latte train with 0.1.

    Raises:
        ValueError: p outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise ValueError(f"label dropout p={p} must lie in [0, 1]")
    return torch.from_numpy(uniform(seed, "dropout", positions) < p)


def drop_labels(y: Tensor, drop: Tensor, null_class: int) -> Tensor:
    """Labels [B] (or [B, 1 + I], a clip's and its I images') with `null_class` in every row where `drop` (bool [B], on
    the device of y) is True; y itself is not changed.

    Source: LabelEmbedder.token_drop of the official DiT code.
    """
    return y.masked_fill(drop.view(-1, *[1] * (y.ndim - 1)), null_class)
