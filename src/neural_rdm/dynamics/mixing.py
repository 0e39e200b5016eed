"""The depth-mixing matrix C: how much of what each unit wrote reaches what each later unit reads.

    u_l = C[l, 0] z_0 + sum_{s < l} C[l, s + 1] f_s

z_0 enters the stack, f_s is the gated output of unit s, u_l what the branch of unit l reads; the last row is what
leaves the stack. For `resnet` all weights are 1, for `gated` column s holds alpha_s, for `dar` a row adds up to 1.
Branches are cut: only what the residual rule itself carries counts. Weights that depend on the sample (`dar`, `delta`,
`block_attnres`) are taken as they are, as constants; a norm in the stream (`mvsplit`) enters with its derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.residual import Stack, Stream, Unit, units
from neural_rdm.residual.rivals.attention import frozen_weights
from neural_rdm.residual.stack import map_stream


def has_mixing(model: nn.Module) -> bool:
    """Whether the stream of a network runs from its first unit to its last through the residual rule alone: not where
    long skips go through layers that mix channels (U-ViT), nor in a network without a stack (U-Net).
    """
    blocks: Any = getattr(model, "blocks", ())
    return isinstance(getattr(model, "stack", None), Stack) and all(
        getattr(block, "skip_linear", None) is None for block in blocks
    )


def depth_mixing(model: nn.Module, run: Callable[[], Any]) -> Tensor:
    """C [U + 1, U + 1] of a network with U units, float64 on the CPU: the mean over samples, tokens and channels.

    Args:
        model: a DiT or a Latte; its mode and parameters stay as they are.
        run: runs it once, on a batch at one timestep, or at several where their mean is wanted.

    Raises:
        ValueError: a network in which layers of its own stand between the units and mix the channels of the stream.
    """
    found = [unit for _, unit in units(model)]
    if not has_mixing(model):
        raise ValueError(
            f"a {type(model).__name__} has no depth-mixing matrix: its long skips go through layers that mix channels"
        )
    seen = _Seen(len(found) + 1)
    replaced: list[tuple[nn.Module, str]] = []

    def replace(module: nn.Module, name: str, method: Callable[..., Any]) -> None:
        setattr(module, name, method)
        replaced.append((module, name))

    stack: Any = model.stack
    close = stack.close
    replace(stack, "open", lambda z, opened=stack.open: opened(seen.source(z)))
    replace(stack, "close", lambda stream, e=None: seen.reader(close(stream, e)))
    for unit in found:
        replace(unit, "forward", _forward(unit, seen))
    try:
        with torch.enable_grad(), frozen_weights():
            run()
    finally:
        for module, name in replaced:
            delattr(module, name)
    return seen.matrix


class _Seen:
    """The sources so far, and the rows of the matrix."""

    def __init__(self, size: int) -> None:
        self.sources: list[Tensor] = []
        self.matrix = torch.zeros(size, size, dtype=torch.float64)
        self._row = 0

    def source(self, x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_()
        self.sources.append(leaf)
        return leaf

    def reader(self, u: Tensor) -> Tensor:
        grads = torch.autograd.grad(u.sum(), self.sources, retain_graph=True, allow_unused=True)
        for column, grad in enumerate(grads):
            if grad is not None:
                self.matrix[self._row, column] = grad.double().mean().item()
        self._row += 1
        return u


def _forward(unit: Unit, seen: _Seen) -> Callable[..., Stream]:
    def forward(
        z: Stream,
        branch: Callable[[Tensor], Tensor],
        g: Tensor | None = None,
        e: Tensor | None = None,
        shortcut: Callable[[Tensor], Tensor] | None = None,
    ) -> Stream:
        u = seen.reader(unit.read(z, e))
        with torch.no_grad():
            f = unit.gated(branch(u), g)
        return unit.write(z if shortcut is None else map_stream(shortcut, z), seen.source(f), None, e)

    return forward
