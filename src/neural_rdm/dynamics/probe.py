"""Per-unit sensitivity `s_i = dL/dz_i` (paper, Sec. 3.3, Eq. 7-11 [R]), measured in the backward pass of an ordinary
step.

    with probe(model) as rows:            # rows [units, 2], zeros
        loss = objective(model(x, t))
    loss.backward()                       # rows.grad[i] = ||s_i||^2 at the unit's entry, ||s_{i+1}||^2 at its exit

The taps only measure: outputs and parameter gradients stay bit-equal. Gradients of several backward passes add up in
`rows.grad`, so the squared norm over micro-batches and, after a sum over ranks, over the global batch comes out by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from neural_rdm.residual import units


@contextmanager
def probe(model: nn.Module) -> Iterator[Tensor]:
    """Switch the taps of every unit of `model` on, and yield their rows [units, 2] (float32 zeros on the model's
    device).

    After the backward pass `rows.grad[:, 0]` holds `||s_i||^2` (the gradient where the stream enters unit i) and
    `rows.grad[:, 1]` holds `||s_{i+1}||^2` (where it leaves). The backward pass may run after the context has closed.
    """
    found = [unit for _, unit in units(model)]
    device = next(model.parameters()).device
    rows = torch.zeros(len(found), 2, device=device, requires_grad=True)
    try:
        for unit, row in zip(found, rows.unbind(), strict=True):
            unit.probe = row
        yield rows
    finally:
        for unit in found:
            unit.probe = None


@dataclass(frozen=True)
class Sensitivity:
    """What one measured step says of one unit.

    Attributes:
        norm: `||s_i||`, of the gradient of the loss averaged over the global batch.
        normalized: `norm` over the largest of the stack (Fig. 5); None where all are 0.
        gain: `||s_i|| / ||s_{i+1}||`; None where either is 0. A gain of 1 everywhere is dynamical isometry.
    """

    unit: int
    name: str
    norm: float
    normalized: float | None
    gain: float | None


def sensitivities(model: nn.Module, squared: Tensor) -> list[Sensitivity]:
    """Turn the squared norms [units, 2] of a probe (`rows.grad`) into one `Sensitivity` a unit, in run order."""
    entry, exit_ = squared.detach().double().cpu().sqrt().unbind(dim=1)
    largest = max(entry.max().item(), 0.0)
    result = []
    for i, (name, _) in enumerate(units(model)):
        norm, after = entry[i].item(), exit_[i].item()
        result.append(
            Sensitivity(
                i, name, norm, norm / largest if largest > 0 else None, norm / after if norm > 0 and after > 0 else None
            )
        )
    return result
