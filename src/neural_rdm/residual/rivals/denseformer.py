"""`denseformer`: `z <- sum_j a_j x_j` behind every k-th block, over the input and the outputs of all blocks so far.

a is one-hot at the start: the block's own output, exactly the plain rule. Source: Pagliardini et al. 2024,
*DenseFormer*, epfml/DenseFormer [F] (depth-weighted averages; `every` is its period, its dilation is 1).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count
from neural_rdm.residual.rivals.delta import BEGINS_ANEW, OLD_SOURCES, Sum
from neural_rdm.residual.rivals.sums import weighted_sum
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Unit, add_scaled, rule


@rule("denseformer")
class DenseFormer(Unit):
    """Plain units; the last one of every k-th block, its MLP, averages.

    Args:
        every: k.
    """

    single = False
    no_reopening = BEGINS_ANEW
    no_growth = OLD_SOURCES
    no_supervision = "its units have no gates; its weights stand between blocks"

    def __init__(self, place: Place, *, every: Count = 1) -> None:
        super().__init__(place)
        self.ends_block = place.role == "mlp"
        if self.ends_block and (place.block + 1) % every == 0:
            self.weights = nn.Parameter(self.own_output(place))

    @staticmethod
    def own_output(place: Place) -> Tensor:
        """[block + 2]: 1 for the last, the block's own output."""
        return torch.cat([torch.zeros(place.block + 1), torch.ones(1)])

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The stream, z0 and the outputs of all blocks before averaging."""
        return Sum()

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return z[0]

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        out = z[0] + f if g is None else add_scaled(z[0], self.spread(g, f), f)
        if not self.ends_block:
            return out, *z[1:]
        past = (*z[1:], out)
        if not hasattr(self, "weights"):
            return out, *past
        return weighted_sum(self.weights, past), *past

    def plain_values(self) -> dict[str, float | Tensor]:
        """The block's own output alone."""
        return {name: self.own_output(self.place) for name, _ in self.named_parameters()}
