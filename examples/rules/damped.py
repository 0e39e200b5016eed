"""A residual rule of one's own, with an option: `z + F(z) / (1 + i)^power`, i the unit's number in the stack.

It has no parameters; deeper units write less. With `power=0` it is the plain rule.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neural_rdm.core.arguments import NonNegative
from neural_rdm.residual import Place, Unit, rule


@rule("damped")
class Damped(Unit):
    """`z + F(z) / (1 + i)^power`.

    Args:
        power: how fast the writes decay over depth; 0 or more.
    """

    start = "other"  # neither z + F(z) nor z
    no_growth = "how much a unit writes depends on its number"

    def __init__(self, place: Place, *, power: NonNegative = 0.5) -> None:
        super().__init__(place)
        self.factor = (1 + place.index) ** -power

    def write(self, z: Any, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Any:
        """The block's own gate g, where there is one, and the factor in front of the branch."""
        return super().write(z, self.factor * f, g, e)

    def plain_values(self) -> dict[str, float]:
        """Trained weights cannot be put under it."""
        if self.factor != 1:
            raise ValueError("residual rule 'damped' never computes z + F(z), which pretrained weights need")
        return {}

    def affine(self, gated_behind: bool) -> Any:
        """The factor goes into the branch's last layer."""
        return torch.tensor([self.factor]), None
