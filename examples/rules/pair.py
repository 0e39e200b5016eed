"""A residual rule of one's own whose stream is two tensors: units read two copies by turns and write to both.

`u = X_s`, s = i mod 2; `X_k += B_k * F(u)`; closed as the mean. A static hyper-connection of two streams, in short.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.residual import Place, Stack, Unit, rule


class Copies(Stack):
    """Two copies of the stream; their mean leaves the stack."""

    def open(self, z: Tensor) -> Any:
        """Two equal copies."""
        return z, z

    def close(self, stream: Any, e: Tensor | None = None) -> Tensor:
        """The mean of both."""
        return (stream[0] + stream[1]) / 2


@rule("pair")
class Pair(Unit):
    """`X_k += B_k * F(X_s)` for k = 0, 1; B = 1 at the start, where it computes what the plain rule does."""

    single = False
    no_supervision = "how B scales its gain is not known"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.reads = place.index % 2
        self.write_gates = nn.Parameter(torch.ones(2, place.dim_out))

    @classmethod
    def make_stack(cls, place: Place, **options: Any) -> Stack:
        """Copies, opened and closed."""
        return Copies()

    def read(self, z: Any, e: Tensor | None = None) -> Tensor:
        """The copy that is this unit's."""
        return z[self.reads]

    def write(self, z: Any, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Any:
        """Both copies, each with its own gates."""
        f = f if g is None else self.spread(g, f) * f
        return tuple(torch.addcmul(x, self.spread(b, x), f) for x, b in zip(z, self.write_gates, strict=True))

    def plain_values(self) -> dict[str, float]:
        """All gates 1."""
        return {"write_gates": 1.0}

    def identity_values(self) -> dict[str, float]:
        """All gates 0: neither copy is touched."""
        return {"write_gates": 0.0}
