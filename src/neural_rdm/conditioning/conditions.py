"""What a network is shown beside its noisy input, as its arguments: classes, or the tokens of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from neural_rdm.backbones.contract import Backbone

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder


def encoded(text: TextEncoder, captions: list[str], device: torch.device | str) -> dict[str, Tensor]:
    """The arguments by which a network takes a text: `context` [B, L, E] and `context_mask` [B, L]."""
    context, mask = text.encode(captions)
    return {"context": context.to(device, non_blocking=True), "context_mask": mask.to(device, non_blocking=True)}


def null_condition(net: Backbone, text: TextEncoder | None) -> dict[str, Tensor]:
    """What stands for "no condition" in guidance, one row: the null class, the empty text; empty where the network was
    never trained without its condition.
    """
    if not net.class_dropout_prob:
        return {}
    nothing = {} if net.null_class is None else {"y": torch.tensor([net.null_class])}
    return nothing if text is None else nothing | encoded(text, [""], "cpu")


def condition_of(shown: Sequence[int | str], text: TextEncoder | None = None) -> dict[str, Tensor]:
    """The condition of samples that show these classes (numbers) or texts, one row each; of nothing, none."""
    if not shown:
        return {}
    if text is not None:
        return encoded(text, [str(prompt) for prompt in shown], "cpu")
    return {"y": torch.tensor(shown)}
