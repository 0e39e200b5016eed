"""`ihc`: n copies; `u[c] = sum_s A[c, s] X_s[c]`, `X_s[c] += B[c, s] f[c]`: hyper-connections channel by channel.

The copies are carried on unchanged (an identity carry), only read and write are learned. Source:
tongtongliang/residual-stream-burden [F], whose slots are the four sub-positions of a finer patch grid, not copies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count
from neural_rdm.residual.rivals.copies import Copies
from neural_rdm.residual.rivals.sums import weighted_sum
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Unit, add_scaled, rule


@rule("ihc")
class IHC(Unit):
    """Feature-wise hyper-connections with an identity carry.

    Starts as the plain rule, to the bit for n = 1, 2, 4, and with copies that learn to differ: channel c of unit l
    reads copy (l + c) mod n alone. (Reading their mean would be plain as well, and would keep them equal for ever.)

    Args:
        n: copies.
    """

    single = False
    no_supervision = "no law of its gain is known: a write reaches every later unit by its own weights"

    def __init__(self, place: Place, *, n: Count = 4) -> None:
        super().__init__(place)
        self.n = n
        self.read_weight = nn.Parameter(self.first_read(place, n))
        self.write_weight = nn.Parameter(torch.ones(n, place.dim_out))

    @staticmethod
    def first_read(place: Place, n: int) -> Tensor:
        """[n, D]: 1 where copy s is the one that channel c of this unit reads first."""
        chosen = (place.index + torch.arange(place.dim)) % n
        return nn.functional.one_hot(chosen, n).T.to(torch.get_default_dtype()).contiguous()

    @classmethod
    def make_stack(cls, place: Place, *, n: int = 4, **options: object) -> Stack:
        """Its copies."""
        return Copies(n)

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return weighted_sum((self.spread(weight, z[0]) for weight in self.read_weight), z)

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        weights = self.write_weight if g is None else g[None] * self.write_weight[:, None]
        return tuple(add_scaled(copy, self.spread(w, copy), f) for copy, w in zip(z, weights, strict=True))

    def plain_values(self) -> dict[str, float | Tensor]:
        """Every channel reads one copy and writes 1 to all."""
        return {"read_weight": self.first_read(self.place, self.n), "write_weight": 1.0}

    def identity_values(self) -> dict[str, float]:
        """It writes nothing."""
        return {"write_weight": 0.0}
