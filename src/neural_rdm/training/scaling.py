"""The factor by which 16-mixed precision multiplies the loss, and the one place that takes it off the gradients."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from neural_rdm.training import parallel


def scaler_of(trainer: pl.Trainer) -> Any:
    """The gradient scaler of 16-mixed precision; None under any other."""
    return getattr(trainer.precision_plugin, "scaler", None)


def loss_scale(trainer: pl.Trainer, like: Tensor) -> Tensor:
    """The factor [] by which 16-mixed precision multiplies the loss, 1 under any other; it stays on the device."""
    one, scaler = torch.ones((), dtype=like.dtype, device=like.device), scaler_of(trainer)
    return one if scaler is None else scaler.scale(one)


def unscale(trainer: pl.Trainer, optimizer: Any) -> None:
    """Divide the gradients of a whole step by the loss scale, before anybody reads, changes or clips them.

    A fused optimizer would do so itself, but only in the middle of its step. It is told what is left to divide by, and
    the scaler still looks for overflows when it comes to the step, so that it sees what callbacks have added as well.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if scaler_of(trainer) is None or not gradients:
        return
    inverse = loss_scale(trainer, gradients[0]).reciprocal()
    torch._foreach_mul_([parallel.local(gradient) for gradient in gradients], inverse)
    optimizer.grad_scale = inverse  # GradScaler.step multiplies it by the scale, which gives 1
