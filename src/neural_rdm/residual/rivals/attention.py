"""Attention over depth: a weighted mean of earlier outputs, which `delta`, `dar` and `block_attnres` share.

    logit_i = scale * <q, s_i> / rms(s_i),   rms(s) = sqrt(mean of squares over channels + eps)
    out     = sum_i softmax_i(logit) s_i

Each token weighs its sources for itself. Nothing is stacked: a [units, B, N, D] copy for every unit that reads would
cost half a training step. Backward keeps references to the sources, and one number a token and source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from neural_rdm.residual.rivals.sums import weighted_sum
from neural_rdm.residual.stack import Stack, Tensors

#: added to the mean square; small against a stream of order one, large against float32's smallest numbers
EPS = 1e-6

_frozen = False


class Sources(Stack):
    """(z0, ...): a list of tensors that every unit reads as their mean, and never as a running sum."""

    def open(self, z: Tensor) -> Tensors:
        """z is the first source."""
        return (z,)

    def add(self, stream: Tensors, x: Tensor) -> Tensors:  # type: ignore[override]
        """To the first source."""
        return stream[0] + x, *stream[1:]

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


def attend(query: Tensor, sources: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """The mean of the sources, each token's own weights.

    Args:
        query: [D], or [B, D] with one for each row of the sources.
        sources: at least one tensor [B, ..., D].
        scale: of the logits.

    Returns:
        [B, ..., D], of the sources' type.
    """
    if len(sources) == 1:
        return sources[0]
    if _frozen:
        with torch.no_grad():
            weights = torch.stack([_logit(query, s, scale)[0] for s in sources], dim=-1).softmax(dim=-1)
        return weighted_sum(weights.to(sources[0].dtype).split(1, dim=-1), sources)
    return _Attend.apply(query, scale, *sources)


def _logit(query: Tensor, source: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(logit, 1 / rms) of every token [B, ...], in float32 at least."""
    wide = torch.promote_types(source.dtype, torch.float32)
    square = torch.linalg.vector_norm(source, dim=-1, dtype=wide).square() / source.shape[-1]
    inverse = (square + EPS).rsqrt()
    return scale * inverse * _dots(source.to(wide), query.to(wide)), inverse


def _dots(x: Tensor, q: Tensor) -> Tensor:
    """<q, x> over the last axis: x [B, ..., D], q [D] or [B, D]."""
    if q.ndim == 1:
        return x @ q
    return torch.bmm(x.flatten(1, -2), q[:, :, None]).reshape(x.shape[:-1])


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, scale: float, *sources: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):  # which would round the logits
            logits, inverses = zip(*(_logit(query, s, scale) for s in sources), strict=True)
            logit, inverse = torch.stack(logits, dim=-1), torch.stack(inverses, dim=-1)
            weights = logit.softmax(dim=-1)
            ctx.save_for_backward(query, logit, inverse, *sources)
            ctx.scale = scale
            narrow = weights.to(sources[0].dtype)
            out = narrow[..., :1] * sources[0]
            for i, source in enumerate(sources[1:], 1):  # as `weighted_sum`, in place: nothing here is differentiated
                out.addcmul_(narrow[..., i : i + 1], source)
            return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, logit, inverse, *sources = ctx.saved_tensors
        scale, dim = ctx.scale, query.shape[-1]
        with torch.autocast(query.device.type, enabled=False):
            weights = logit.softmax(dim=-1)
            wide = [s.to(logit.dtype) for s in sources]
            grad = grad.to(logit.dtype)
            along = torch.stack([torch.linalg.vecdot(grad, s) for s in wide], dim=-1)
            pull = weights * (along - (weights * along).sum(dim=-1, keepdim=True))  # gradient of the logits
            to_query = scale * pull * inverse
            shrink = -pull * logit * inverse.square() / dim
            row = query.to(logit.dtype)
            row = row if row.ndim == 1 else row.reshape(len(row), *[1] * (grad.ndim - 2), dim)
            grads, grad_query = [], torch.zeros_like(query, dtype=logit.dtype)
            for i, source in enumerate(wide):
                each = grad * weights[..., i : i + 1]
                each.addcmul_(source, shrink[..., i : i + 1]).addcmul_(to_query[..., i : i + 1], row)
                grads.append(each.to(sources[i].dtype))
                if query.ndim == 1:
                    grad_query += to_query[..., i].flatten() @ source.flatten(0, -2)
                else:
                    grad_query += torch.bmm(to_query[..., i].flatten(1)[:, None], source.flatten(1, -2))[:, 0]
        return grad_query.to(query.dtype), None, *grads
