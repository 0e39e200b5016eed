"""`sandwich`: `z + tanh(alpha) * N(F(z))`: a second norm, behind the branch, so that its write has a bounded size.

`N(f) = weight * f / rms(f)` over channels. Source: Lumina2, Z-Image and Mochi as diffusers writes them [F]; there the
tanh is the block's own gate's, here alpha is the unit's and the block's gate multiplies behind it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from neural_rdm.residual.rivals.norms import rms_norm
from neural_rdm.residual.unit import Place, Start, Unit, add_scaled, rule


@rule("sandwich")
class Sandwich(Unit):
    """`z + tanh(alpha) * weight * f / rms(f)`; with `gate="none"` there is no alpha.

    Args:
        gate: `tanh` (alpha = 0 at the start, which leaves the stream alone) or `none` (weight = 1 at the start: neither
            plain nor the identity).
    """

    start: Start = "identity"
    no_supervision = "the norm behind its branch cancels the branch's scale"
    has_alpha = True

    def __init__(self, place: Place, *, gate: Literal["tanh", "none"] = "tanh") -> None:
        super().__init__(place)
        self.has_alpha = gate == "tanh"
        self.start = self.starts(gate=gate)
        if self.has_alpha:
            self.alpha = nn.Parameter(torch.zeros(place.dim_out))
        self.weight = nn.Parameter(torch.ones(place.dim_out))

    @classmethod
    def starts(cls, *, gate: str = "tanh", **options: object) -> Start:
        """With alpha it leaves the stream alone; without, its norm changes the branch."""
        return "identity" if gate == "tanh" else "other"

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        f = rms_norm(f, self.channel_axis)
        scale = self.weight * self.alpha.tanh() if self.has_alpha else self.weight
        return add_scaled(z, self.spread(scale if g is None else g * scale, z), f)

    def plain_values(self) -> dict[str, float | Tensor]:
        """None: its norm stands behind every branch.

        Raises:
            ValueError: always.
        """
        raise ValueError("it divides every branch's output by its size, so no value of its parameters is plain")

    def identity_values(self) -> dict[str, float]:
        """alpha 0; without alpha, the norm's weight."""
        return {"alpha" if self.has_alpha else "weight": 0.0}

    def affine(self, gated_behind: bool) -> tuple[Tensor | None, Tensor | None]:
        """None.

        Raises:
            ValueError: always.
        """
        raise ValueError("the norm behind its branch divides by the output's size, which no affine layer does")
