"""Explicit supervision of the gates (paper, Sec. 3.3 [P]: weight gamma = 0.35; its formula is lost, this is ours [O]).

`L = L_denoise + gamma * L_sens` with `L_sens = 1/N * sum_i 1/2 * (log r_i)^2`, `r_i = ||s_i|| / ||s_{i+1}||` the gain
of unit i: 0 where every unit hands the gradient on at its size (`isometry`); `floor` counts only gains below 1.

`L_sens` is a function of gradients. Instead of differentiating twice, the objective is taken *locally*: the stream z_i,
the gradient s_{i+1} behind the unit and the branch's Jacobian are held fixed. Then s_i is linear in the unit's gates.
How much of the local gradient an ordinary backward pass gives depends on where a gate sits:

| gate                       | what is added                                                                       |
|----------------------------|-------------------------------------------------------------------------------------|
| on the stream: alpha of    | the whole local gradient, `gamma/N * log r_i * <s_i, s_{i+1}> / ||s_i||^2`, the     |
| `skip`, the linear beta    | product summed for each channel (`dynamics.probe.stream_overlaps`)                  |
| on the branch: alpha of    | its projection on theta_i (alpha, with W_alpha where gates are time-conditioned),   |
| `gated` and `rezero`       | `gamma/N * log r_i * q_i * theta_i / ||theta_i||^2`                                 |
| the additive beta          | nothing: its local gradient is 0, since s_i does not depend on it                   |

`q_i = d log||s_i|| / d log(scale of theta_i)` follows from the four norms of a probe of branches, by polarisation:
`<s_i, g_br> / ||s_i||^2` where alpha scales the branch, `<s_i, s_i - g_br> / ||s_i||^2` where it scales the stream.

So with one gate a channel, supervision of `gated` and `rezero` only makes a unit's whole alpha larger or smaller: it
never moves one channel against another, and it never moves an additive beta. For a scalar alpha the projection is the
whole local gradient. One entry for each channel would need `<J_i s_i, g s_{i+1}>`, a product of the branch's Jacobian
with s_i, forward through every branch, under the MATH attention kernel: it is not computed, since it more than doubles
the time of a step (benchmarks/results/local_jvp.json).

None of this is the gradient of L_sens through the whole network (`sensitivity_loss` with `torch.autograd.grad` is): an
earlier unit's s_i also changes with every later gate, and the stream with every earlier one. How near the two are
depends on the network (docs/results/supervision.md, which also says what either does in training, and at what cost).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from neural_rdm.core.sharded import distributed
from neural_rdm.core.weights import local
from neural_rdm.residual import Unit, units

Target = Literal["isometry", "floor"]


def check_supervision(model: nn.Module, gamma: float, target: str) -> None:
    """Refuse what cannot be supervised.

    Raises:
        ValueError: a negative gamma, an unknown target, or gates whose scale the gain does not depend on.
    """
    if target not in get_args(Target):
        raise ValueError(f"target={target} is not one of {', '.join(get_args(Target))}")
    if gamma < 0:
        raise ValueError(f"gamma={gamma} is below 0: it would drive the gains apart")
    for name, unit in units(model):
        if unit.no_supervision is not None:
            raise ValueError(
                f"gamma={gamma} needs gates that scale the branch or the stream; the rule "
                f"{type(unit).__name__} of {name} is measured only, since {unit.no_supervision}: pass gamma=0"
            )


@torch.no_grad()
def supervise(
    model: nn.Module,
    squared: Tensor,
    gamma: float,
    target: Target = "isometry",
    overlaps: Mapping[Unit, Sequence[Tensor | None]] | None = None,
) -> Tensor:
    """Add the gradient of `gamma * L_sens` to the gradients of the gates, before clipping, and return `L_sens` [].

    Tensor operations only: no host synchronisation. Call it on every rank, with the same norms. Units where the gates,
    the entry or the exit have norm 0 have no gain and do not count in N, nor do those that change the stream's width.

    Args:
        squared: squared norms [units, 4] of `probe(model, branches=True)`, of the loss averaged over the global batch
            (summed over micro-batches and ranks, free of any loss scale).
        gamma: weight of `L_sens`.
        target: `isometry`, or `floor`: only gains below 1 are pulled up.
        overlaps: the gradients of `stream_overlaps`, of the same batch and scale as `squared`, for the whole local
            gradient of gates on the stream. Where a unit has none, `skip`'s alpha gets the projection on itself and the
            linear beta nothing.
    """
    pairs = [
        (unit, row) for (_, unit), row in zip(units(model), squared.unbind(), strict=True) if unit.dim == unit.dim_out
    ]
    gates = [unit.gate_parameters("alpha") for unit, _ in pairs]
    size = _squared_norms(gates).to(squared.dtype)
    entry, exit_ = torch.stack([row[:2] for _, row in pairs]).unbind(dim=1)
    scaled = torch.stack([row[2 if unit.scales_branch else 3] for unit, row in pairs])  # the way on which the gates act
    other = torch.stack([row[3 if unit.scales_branch else 2] for unit, row in pairs])
    counted = (entry > 0) & (exit_ > 0) & (size > 0)
    log_r = _log_gain(entry, exit_, counted, target)
    q = (entry + scaled - other) / (2 * entry)
    n = counted.sum().clamp(min=1)
    weight = torch.where(counted, gamma / n * log_r, 0.0)
    along, whole = (torch.where(counted, weight * factor, 0.0).unbind() for factor in (q / size, 1 / entry))
    for (unit, _), alpha, w, v in zip(pairs, gates, along, whole, strict=True):
        overlap = _present((overlaps or {}).get(unit, ()))
        if overlap and unit.stream_gate is not None:
            for parameter, product in zip(unit.gate_parameters(unit.stream_gate), overlap, strict=True):
                _add(parameter, local(distributed(product, parameter)), v)
        if not (overlap and unit.stream_gate == "alpha"):
            for parameter in alpha:
                _add(parameter, local(parameter), w)
    return 0.5 * log_r.square().sum() / n


def _present(overlap: Sequence[Tensor | None]) -> list[Tensor]:
    """The overlaps that were measured."""
    return [product for product in overlap if product is not None]


def _add(parameter: nn.Parameter, direction: Tensor, weight: Tensor) -> None:
    """Add `weight * direction` to the (local) gradient of a parameter that has one."""
    if parameter.grad is not None:
        grad = local(parameter.grad)
        grad.addcmul_(direction.to(grad.dtype), weight.to(grad.dtype))


def sensitivity_loss(model: nn.Module, loss: Callable[[], Tensor], target: Target = "isometry") -> Tensor:
    """`L_sens` [] as a differentiable function of all parameters: the slow reference (`supervision=exact`).

    It runs the forward pass and a backward pass that can itself be differentiated, under the MATH attention kernel,
    since the fused ones have no second derivative.

    Args:
        model: a network whose units are called in eager mode.
        loss: runs the network and returns the loss, a mean over the whole batch.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found = [unit for _, unit in units(model)]
    entries: dict[nn.Module, Tensor] = {}  # by unit: one inside another is entered after it and left before it
    exits: dict[nn.Module, Tensor] = {}

    def enter(unit: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        entries[unit] = arguments[0].view_as(arguments[0])  # what flows through this unit, not all that reads z_i
        return entries[unit], *arguments[1:]

    def leave(unit: nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> None:
        exits[unit] = out

    hooks = [unit.register_forward_pre_hook(enter) for unit in found]
    hooks += [unit.register_forward_hook(leave) for unit in found]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            value = loss()
            tensors = [entries[unit] for unit in found] + [exits[unit] for unit in found]
            gradients = torch.autograd.grad(value, tensors, create_graph=True)
    finally:
        for hook in hooks:
            hook.remove()
    entry, exit_ = torch.stack([g.square().sum() for g in gradients]).view(2, -1)
    gated = [unit for unit in found if unit.has_alpha]
    size = (
        dict(zip(gated, _squared_norms([unit.gate_parameters("alpha") for unit in gated]), strict=True))
        if gated
        else {}
    )
    kept = [unit.dim == unit.dim_out and bool(size.get(unit, 1.0) > 0) for unit in found]  # as `supervise` counts
    counted = (entry > 0) & (exit_ > 0) & torch.tensor(kept, device=entry.device)
    log_r = _log_gain(entry, exit_, counted, target)
    return 0.5 * log_r.square().sum() / counted.sum().clamp(min=1)


def _log_gain(entry: Tensor, exit_: Tensor, counted: Tensor, target: Target) -> Tensor:
    """log r [units] from squared norms, 0 where a unit does not count."""
    ratio = torch.where(counted, entry, 1.0) / torch.where(counted, exit_, 1.0)
    log_r = 0.5 * ratio.log()
    return log_r.clamp(max=0) if target == "floor" else log_r


def _squared_norms(gates: list[list[nn.Parameter]]) -> Tensor:
    """||theta_i||^2 [units], of whole gates where they are sharded (then a collective call)."""
    parts = torch.stack([torch.stack([local(p).square().sum() for p in parameters]).sum() for parameters in gates])
    if hasattr(gates[0][0], "device_mesh"):
        gate: Any = gates[0][0]
        for dimension, placement in enumerate(gate.placements):
            if placement.is_shard():  # along any other the ranks hold copies
                torch.distributed.all_reduce(parts, group=gate.device_mesh.get_group(dimension))
    return parts
