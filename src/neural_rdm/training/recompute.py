"""Activation checkpointing: what a block has computed is given up, and computed again in the backward pass.

A network knows nothing of it; its blocks are those of the contract (`backbones.contract`), which are also what is
compiled (`training.module`) and sharded (`training.sharding`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from neural_rdm.backbones.contract import blocks_of
from neural_rdm.core.arguments import Count

How: TypeAlias = Literal["none", "full", "selective"] | Count

#: the fused attentions of every device; a name is absent where torch's version has not got it
_ATTENTIONS = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
    if hasattr(torch.ops.aten, name)
)


def _keep_attention(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _ATTENTIONS else CheckpointPolicy.PREFER_RECOMPUTE


class _Again(nn.Module):
    """In front of a block's own class: its forward pass keeps its arguments, and what `kept` says, alone."""

    kept: Any

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, context_fn=type(self).kept, **kwargs)


def recompute(net: nn.Module, how: How) -> None:
    """Let blocks of a network give up what they compute until the backward pass needs it; results stay the same to the
    bit, names of weights and classes too (a block's class becomes a subclass of itself).

    Args:
        how: `none`; `full`: every block keeps its inputs alone; N: the first block of every N does; `selective`: every
            block keeps its inputs and what its attentions found, which is dear to compute and small.

    Raises:
        ConfigError: the network states no blocks.
    """
    if how == "none":
        return
    kept = partial(create_selective_checkpoint_contexts, _keep_attention) if how == "selective" else noop_context_fn
    every = how if isinstance(how, int) else 1
    for block in blocks_of(net, "checkpointed (trainer.activation_checkpointing)")[::every]:
        if not isinstance(block, _Again):
            own = type(block)
            block.__class__ = type(own.__name__, (_Again, own), {"kept": staticmethod(kept), "__doc__": own.__doc__})
