"""`hc`: n copies; `u = sum_s A_s X_s`, `X_s <- sum_r C_rs X_r + B_s f`: hyper-connections.

Source: Zhu et al. 2024, *Hyper-Connections*, Eq. 1 to 14, as lucidrains/hyper-connections writes it [F]; closed as the
mean of the copies, where the source takes their sum, so that the plain start is z + F(z).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count
from neural_rdm.residual.rivals.copies import Copies
from neural_rdm.residual.rivals.sums import weighted_sum
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Unit, rule


@rule("hc")
class HC(Unit):
    """Hyper-connections, static or dynamic.

    Starts as the plain rule: unit l reads copy l mod n, carries every copy on as it is, and writes 1 to all.

    Args:
        n: copies.
        dynamic: a token adds `s * tanh(W X_r / rms(X_r))` to its weights, W = 0 and s = 0.01 at the start, for each
            copy r: to A_r, to B_r, and to row r of C.
    """

    single = False
    no_supervision = "no law of its gain is known: a write reaches every later unit by its own weights"

    def __init__(self, place: Place, *, n: Count = 4, dynamic: bool = False) -> None:
        super().__init__(place)
        self.n, self.dynamic = n, dynamic
        self.read_weight = nn.Parameter(self.first_read(place, n))
        self.carry = nn.Parameter(torch.eye(n))
        self.write_weight = nn.Parameter(torch.ones(n))
        if dynamic:
            self.dynamic_weight = nn.Parameter(torch.zeros(place.dim, n + 2))
            self.dynamic_scale = nn.Parameter(torch.full((3,), 0.01))

    @staticmethod
    def first_read(place: Place, n: int) -> Tensor:
        """[n]: 1 for copy l mod n."""
        return nn.functional.one_hot(torch.tensor(place.index % n), n).to(torch.get_default_dtype())

    @classmethod
    def make_stack(cls, place: Place, *, n: int = 4, **options: object) -> Stack:
        """Its copies."""
        return Copies(n)

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        weights = list(self.read_weight)
        if self.dynamic:
            weights = [a + d[0] for a, d in zip(weights, self._dynamic(z, slice(0, 1)), strict=True)]
        return weighted_sum(weights, z)

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        if not self.dynamic:
            weights = [b if g is None else self.spread(g * b, f) for b in self.write_weight]
            return _Written.apply(self.carry, torch.stack(weights), f, *z)
        f = self.gated(f, g)  # the weights are each token's own: the block's gate goes onto f once
        added = self._dynamic(z, slice(1, None))
        columns = [[c + d[1 + s] for c, d in zip(self.carry[:, s], added, strict=True)] for s in range(self.n)]
        weights = [b + d[0] for b, d in zip(self.write_weight, added, strict=True)]
        return tuple(weighted_sum([*c, b], [*z, f]) for c, b in zip(columns, weights, strict=True))

    def _dynamic(self, z: Tensors, part: slice) -> list[list[Tensor]]:
        """What each copy's tokens add to the weights, each [B, ..., 1]: its read weight (column 0 of `dynamic_weight`),
        its write weight (1), its row of the carry (the rest).
        """
        scale = torch.cat([self.dynamic_scale[:2], self.dynamic_scale[2:].expand(self.n)])[part]
        weight = self.dynamic_weight[:, part]
        normed = (nn.functional.rms_norm(copy, copy.shape[-1:], eps=1e-6) for copy in z)
        return [list((scale * (x @ weight).tanh()).split(1, dim=-1)) for x in normed]

    def plain_values(self) -> dict[str, float | Tensor]:
        """One copy read, all carried and written alike; what a token adds is 0."""
        values: dict[str, float | Tensor] = {
            "read_weight": self.first_read(self.place, self.n), "carry": torch.eye(self.n), "write_weight": 1.0
        }  # fmt: skip
        return values | ({"dynamic_weight": 0.0, "dynamic_scale": 0.01} if self.dynamic else {})

    def identity_values(self) -> dict[str, float | Tensor]:
        """Every copy carried on, and nothing written."""
        return {**self.plain_values(), "write_weight": 0.0}


class _Written(torch.autograd.Function):
    """X_s = sum_r C[r, s] X_r + B_s f. By hand, since autograd forms a product of the stream's size for the gradient of
    every entry of C. It keeps what is there already.
    """

    @staticmethod
    def forward(ctx: Any, carry: Tensor, weights: Tensor, f: Tensor, *copies: Tensor) -> Tensors:
        ctx.save_for_backward(carry, weights, f, *copies)
        return tuple(weighted_sum([*c, b], [*copies, f]) for c, b in zip(carry.T, weights, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        carry, weights, f, *copies = ctx.saved_tensors
        to_carry = [torch.stack([torch.dot(x.reshape(-1).to(g.dtype), g.reshape(-1)) for g in grads]) for x in copies]
        to_weights = torch.stack([(g * f).sum_to_size(weights[0].shape) for g in grads])
        to_copies = (weighted_sum(row, grads) for row in carry)
        return torch.stack(to_carry), to_weights, weighted_sum(weights, grads).to(f.dtype), *to_copies
