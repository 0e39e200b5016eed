"""Attention over depth: a weighted mean of earlier outputs, which `delta`, `dar` and `block_attnres` share.

    logit_i = scale * <q, s_i> / rms(s_i),   rms(s) = sqrt(mean of squares over channels + eps)
    out     = sum_i softmax_i(logit) s_i

Each token weighs its sources for itself. Nothing is stacked: a [units, B, N, D] copy for every unit that reads would
cost half a training step. Backward keeps references to the sources, and one number a token, source and router.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.residual.rivals.sums import weighted_sum
from neural_rdm.residual.stack import Noted, Stack, Stream, Tensors, tensors_of

#: added to the mean square; small against a stream of order one, large against float32's smallest numbers
EPS = 1e-6

_frozen = False


class Sources(Stack):
    """(z0, ...): a list of tensors that every unit reads as their mean, and never as a running sum."""

    def open(self, z: Tensor) -> Tensors:
        """z is the first source."""
        return (z,)

    def add(self, stream: Stream, x: Tensor) -> Tensors:
        """To the first source."""
        first, *others = tensors_of(stream)
        return first + x, *others

    def plain_values(self) -> dict[str, float | Tensor]:
        """Every read is the plain mean."""
        return {name: 0.0 for name, _ in self.named_parameters()}


@contextmanager
def frozen_weights() -> Iterator[None]:
    """Inside, the weights are taken as constants: gradients reach the sources through the weighted mean alone. For the
    depth-mixing matrix (`dynamics.mixing`).
    """
    global _frozen
    before, _frozen = _frozen, True
    try:
        yield
    finally:
        _frozen = before


def attend(weights: Tensor, sources: Sequence[Tensor], onto: Tensor | None = None) -> Tensor:
    """The sum of the sources by each token's own weights.

    Args:
        weights: [B, ..., K].
        sources: K tensors [B, ..., D].
        onto: [B, ..., D], which the sum is added to.

    Returns:
        [B, ..., D], of the type of `onto` or of the first source.
    """
    out = weighted_sum(weights.split(1, dim=-1), sources, onto)
    return out.to((sources[0] if onto is None else onto).dtype)


def logits_of(source: Tensor, queries: Tensor, scale: float = 1.0) -> Tensor:
    """What L routers give a source: `scale * <q, s> / rms(s)`, in float32 at least.

    Args:
        source: [B, ..., D].
        queries: [L, D], or [B, L, D] with its own for each row of the source.
        scale: of the logits.

    Returns:
        [B, ..., L].
    """
    if _frozen:
        source, queries = source.detach(), queries.detach()
    return _Logits.apply(source, queries, scale)


class Routers(Stack):
    """A stream of sources, and the queries [L, D] of all routers that look at them: a row each.

    When a unit has written a source, one matrix product works out what all routers give it. The notes of the stream
    are these queries and the logits [B, ..., K, L].

    Args:
        dim: D.
        count: L.
        scale: of the logits.
    """

    def __init__(self, dim: int, count: int, scale: float = 1.0) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(count, dim))
        self.scale = scale

    def queries(self, e: Tensor | None) -> Tensor:
        """[L, D], or [B, L, D] at the timestep embedding e [B, E]."""
        return self.query

    def sources(self, tensors: Tensors) -> Tensors:
        """Which tensors of the stream are looked at: here all."""
        return tensors

    def seen(self, stream: Stream, e: Tensor | None) -> Noted:
        """The stream with its notes, worked out now where it has none."""
        if isinstance(stream, Noted):
            return stream
        queries, tensors = self.queries(e), tensors_of(stream)
        logits = [logits_of(source, queries, self.scale) for source in self.sources(tensors)]
        return Noted(tensors, (queries, torch.stack(logits, dim=-2)))

    def weights(self, stream: Stream, router: int, e: Tensor | None) -> Tensor:
        """[B, ..., K]: what a router gives the sources, which adds up to 1."""
        return self.seen(stream, e).notes[1][..., router].softmax(dim=-1)

    def written(self, before: Stream, tensors: Tensors, e: Tensor | None) -> Noted:
        """The stream of `tensors`, the last of which is a new source beside those `before`."""
        queries, logits = self.seen(before, e).notes
        new = logits_of(tensors[-1], queries, self.scale)
        return Noted(tensors, (queries, torch.cat([logits, new.unsqueeze(-2)], dim=-2)))

    def plain_values(self) -> dict[str, float | Tensor]:
        """Every router takes the plain mean."""
        return {name: 0.0 for name, _ in self.named_parameters()}


class _Logits(torch.autograd.Function):
    """By hand, since autograd would keep a float32 copy of a source in half precision."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, queries: Tensor, scale: float) -> Tensor:
        with torch.autocast(source.device.type, enabled=False):  # which would round the logits
            wide = torch.promote_types(source.dtype, torch.float32)
            square = torch.linalg.vector_norm(source, dim=-1, keepdim=True, dtype=wide).square() / source.shape[-1]
            inverse = (square + EPS).rsqrt()
            rows = source.to(wide).flatten(queries.ndim - 2, -2)
            dots = rows @ queries.to(wide).mT
            logits = dots.view(*source.shape[:-1], -1) * (scale * inverse)
        ctx.save_for_backward(source, queries, logits, inverse)
        ctx.scale = scale
        return logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, queries, logits, inverse = ctx.saved_tensors
        with torch.autocast(source.device.type, enabled=False):
            rows = source.to(logits.dtype)
            # of <q, s>, and of the rms
            to_dots = (grad * (ctx.scale * inverse)).flatten(queries.ndim - 2, -2)
            to_rms = (grad * logits).sum(dim=-1, keepdim=True) * inverse.square() / -source.shape[-1]
            to_source = (to_dots @ queries.to(logits.dtype)).view(rows.shape).addcmul_(to_rms, rows)
            to_queries = to_dots.mT @ rows.flatten(queries.ndim - 2, -2)
        return to_source.to(source.dtype), to_queries.to(queries.dtype), None
