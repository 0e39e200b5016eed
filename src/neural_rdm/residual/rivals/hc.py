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
from neural_rdm.residual.unit import Place, Unit, add_scaled, rule


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
        added = self._dynamic(z, slice(0, 1))
        weights = [a if d is None else a + d[0] for a, d in zip(self.read_weight, added, strict=True)]
        return weighted_sum(weights, z)

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        added = self._dynamic(z, slice(1, None))
        if self.dynamic:  # weights of each token: the block's gate goes onto f once
            f, g = self.gated(f, g), None
        copies = z if self.dynamic else _Mixed.apply(self.carry.T, *z)
        result = []
        for s in range(self.n):
            out, weight, extra = copies[s], self.write_weight[s], added[s]
            if extra is not None:
                carried = [c + d[1 + s] for c, d in zip(self.carry[:, s], added, strict=True) if d is not None]
                out, weight = weighted_sum(carried, z), weight + extra[0]
            result.append(add_scaled(out, weight if g is None else self.spread(g * weight, out), f))
        return tuple(result)

    def _dynamic(self, z: Tensors, part: slice) -> list[list[Tensor] | None]:
        """What each copy's tokens add to the weights, each [B, ..., 1]: its read weight (column 0 of `dynamic_weight`),
        its write weight (1), its row of the carry (the rest).
        """
        if not self.dynamic:
            return [None] * self.n
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


class _Mixed(torch.autograd.Function):
    """Copies X_s -> sum_r W[s, r] X_r as one matrix product, which keeps for backward what is there already."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *copies: Tensor) -> Tensors:
        ctx.save_for_backward(weight, *copies)
        with torch.autocast(weight.device.type, enabled=False):  # which would round the stream itself
            out = weight.to(copies[0].dtype) @ torch.stack(copies).flatten(1)
        return tuple(row.view_as(copies[0]) for row in out)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        weight, *copies = ctx.saved_tensors
        rows = torch.stack(grads).flatten(1)
        to_weight = rows @ torch.stack(copies).flatten(1).to(rows.dtype).T
        out = weight.T.to(rows.dtype) @ rows
        return to_weight.to(weight.dtype), *(row.view_as(copies[0]) for row in out)
