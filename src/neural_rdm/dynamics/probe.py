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

from neural_rdm.core.weights import full
from neural_rdm.residual import Unit, units


@contextmanager
def probe(model: nn.Module, branches: bool = False) -> Iterator[Tensor]:
    """Switch the taps of every unit of `model` on, and yield their rows (zeros on the model's device; float64 for a
    model in float64, else float32).

    After the backward pass, which may run after the context has closed, `rows.grad` holds squared norms of gradients:

    | column | where                                                              |
    |--------|--------------------------------------------------------------------|
    | 0      | entry: `s_i`, where the stream enters unit i                       |
    | 1      | exit: `s_{i+1}`, all that the stream behind the unit is used for   |
    | 2      | branch entrance: `g_br`, the part of `s_i` that came by the branch |
    | 3      | identity leg: `s_i - g_br`, the rest, before any shortcut          |

    Args:
        branches: take columns 2 and 3 as well, rows [units, 4]; otherwise rows are [units, 2].
    """
    found = [unit for _, unit in units(model)]
    first = next(model.parameters())
    dtype = torch.promote_types(first.dtype, torch.float32)
    rows = torch.zeros(len(found), 4 if branches else 2, dtype=dtype, device=first.device, requires_grad=True)
    try:
        for unit, row in zip(found, rows.unbind(), strict=True):
            unit.probe = row
        yield rows
    finally:
        for unit in found:
            unit.probe = None


@contextmanager
def stream_overlaps(model: nn.Module) -> Iterator[dict[Unit, tuple[Tensor, ...]]]:
    """Switch on, for every unit with a gate on the stream (`Unit.stream_gate`), the measurement of what that gate does
    to `s_i`; yields zeros by unit, one for each of the gate's parameters, of the parameter's whole shape.

    After the backward pass the gradient of each holds `<s_i, s_{i+1}>`, summed for each entry of the parameter over
    what that entry acts on (tokens and samples; times e(t) for the weight of a time-conditioned gate): half the
    derivative of ||s_i||^2 in it, with z_i, s_{i+1} and the branch's Jacobian held fixed. It stays None behind a
    shortcut, which mixes channels or resamples.
    """
    found = [unit for _, unit in units(model) if unit.stream_gate is not None and not unit.entered]
    leaves = {unit: tuple(map(_leaf, unit.gate_parameters(unit.stream_gate))) for unit in found if unit.stream_gate}
    try:
        for unit, overlap in leaves.items():
            unit.overlap = overlap
        yield leaves
    finally:
        for unit in found:
            unit.overlap = None


def _leaf(gate: Tensor) -> Tensor:
    """Zeros of a gate's whole shape that collect a gradient."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    return torch.zeros(gate.shape, dtype=dtype, device=gate.device, requires_grad=True)


@dataclass(frozen=True)
class Sensitivity:
    """What one measured step says of one unit."""

    unit: int
    name: str
    norm: float  # `||s_i||`, of the gradient of the loss averaged over the global batch
    normalized: float | None  # `norm` over the largest of the stack (Fig. 5); None where all are 0.
    gain: float | None  # `||s_i|| / ||s_{i+1}||`; None where either is 0. A gain of 1 everywhere is dynamical isometry.
    alpha_mean: float | None  # mean of the static alpha over its channels; None for a rule without
    alpha_std: float | None  # its standard deviation over them
    beta_norm: float | None  # Euclidean norm of the static beta; None for a rule without


def sensitivities(model: nn.Module, squared: Tensor) -> list[Sensitivity]:
    """Turn the squared norms [units, 2 or 4] of a probe (`rows.grad`) into one `Sensitivity` a unit, in run order.

    Every rank must call it where the gates are sharded.
    """
    found = list(units(model))
    norms = squared.detach()[:, :2].double().cpu().sqrt().tolist()
    gates = torch.stack([_gates(unit, squared.device) for _, unit in found]).cpu().tolist()
    largest = max(norm for norm, _ in norms)
    return [
        Sensitivity(
            i,
            name,
            norm,
            norm / largest if largest > 0 else None,
            norm / after if norm > 0 and after > 0 else None,
            alpha_mean=mean if unit.has_alpha else None,
            alpha_std=std if unit.has_alpha else None,
            beta_norm=size if unit.has_beta else None,
        )
        for i, ((name, unit), (norm, after), (mean, std, size)) in enumerate(zip(found, norms, gates, strict=True))
    ]


@torch.no_grad()
def _gates(unit: Unit, device: torch.device) -> Tensor:
    """Mean and standard deviation of alpha, norm of beta: [3], 0 where the rule has none."""
    result = torch.zeros(3, dtype=torch.float64, device=device)
    if unit.has_alpha:
        alpha = full(unit.gate_parameters("alpha")[0]).double()
        result[0], result[1] = alpha.mean(), alpha.std(correction=0)
    if unit.has_beta:
        result[2] = full(unit.gate_parameters("beta")[0]).double().norm()
    return result
